// A service that registers itself, greets, reports its registration, and calls other services by name.

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bindings/service.h"

#define NAME "{{name}}"
// Time that the key in etcd outlives a dead host.
#define TTL_SECONDS 10

// The body of a response. An instance has one request at a time.
static char body[16384];
static size_t length;

// Appends to the body; the end of a longer text is cut off.
static void append(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(body + length, sizeof body - length, format, arguments);
    va_end(arguments);
    if (written > 0) length += written;
    if (length >= sizeof body) length = sizeof body - 1;
}

// A string that is borrowed for a call: not to be freed.
static service_string_t borrowed(const char *text) {
    return (service_string_t){(uint8_t *)text, strlen(text)};
}

// The text of an error of the host; the bindings number its cases in the order of the contract.
static void append_error(const char *subject, const leasehold_registry_registry_types_error_t *error) {
    static const char *const cases[] = {"invalid argument", "access denied", "quota exceeded", "conflict",
                                        "unavailable",      "timeout",       "not registered", "other"};
    append("%s: %s", subject, cases[error->tag]);
    // Timeout and not-registered have no text.
    if (error->tag != LEASEHOLD_REGISTRY_REGISTRY_TYPES_ERROR_TIMEOUT && error->tag != LEASEHOLD_REGISTRY_REGISTRY_TYPES_ERROR_NOT_REGISTERED)
        append(": %.*s", (int)error->val.other.len, error->val.other.ptr);
    append("\n");
}

// Called once, when the listener is open. The host keeps the registration until `stop`.
bool exports_leasehold_registry_lifecycle_start(service_string_t *message) {
    service_tuple2_string_string_t language = {borrowed("language"), borrowed("c")};
    leasehold_registry_registry_types_server_node_t node = {
        .name = borrowed(NAME),
        // Empty: the address at which the host serves this component.
        .addr = borrowed(""),
        .version = borrowed("v1"),
        // Without a value it would be a weight that the host computes from the load of the machine.
        .weight = {.is_some = true, .val = 50},
        .metadata = {&language, 1},
    };
    leasehold_registry_registrar_own_registration_t registration;
    leasehold_registry_registrar_error_t error;
    if (!leasehold_registry_registrar_register(&node, TTL_SECONDS, &registration, &error)) {
        length = 0;
        append_error("register " NAME, &error);
        leasehold_registry_registrar_error_free(&error);
        service_string_dup(message, body);
        return false;
    }
    service_string_t key;
    leasehold_registry_registrar_method_registration_key(
        leasehold_registry_registrar_borrow_registration(registration), &key);
    // Standard error is the host's log.
    fprintf(stderr, "registered as %.*s\n", (int)key.len, key.ptr);
    service_string_free(&key);
    leasehold_registry_registrar_registration_drop_own(registration);
    return true;
}

// Called once, when the last request is complete.
void exports_leasehold_registry_lifecycle_stop(void) {
    leasehold_registry_registrar_list_own_registration_t all;
    leasehold_registry_registrar_current(&all);
    for (size_t i = 0; i < all.len; i++) {
        leasehold_registry_registrar_error_t error;
        // After a timeout the host goes on until the key is gone.
        if (!leasehold_registry_registrar_method_registration_stop(
                leasehold_registry_registrar_borrow_registration(all.ptr[i]), &error))
            leasehold_registry_registrar_error_free(&error);
    }
    leasehold_registry_registrar_list_own_registration_free(&all);
    fprintf(stderr, "stopped\n");
}

// The registration that `start` made, maybe on another instance. A name that JSON would have to escape cannot occur.
static int status(void) {
    static const char *const states[] = {"pending",  "registered", "suspect", "recovering",
                                         "conflict", "draining",   "stopped"};
    leasehold_registry_registrar_list_registration_info_t all;
    leasehold_registry_registrar_describe(&all);
    int code = 502;
    if (all.len == 0) append("not registered\n");
    else {
        const service_string_t key = all.ptr[0].key;
        const leasehold_registry_registrar_server_node_t node = all.ptr[0].node;
        const leasehold_registry_registrar_status_t now = all.ptr[0].status;
        append("{\"key\":\"%.*s\",\"addr\":\"%.*s\",\"version\":\"%.*s\",\"weight\":%u,\"state\":\"%s\",\"metadata\":[",
               (int)key.len, key.ptr, (int)node.addr.len, node.addr.ptr, (int)node.version.len, node.version.ptr,
               (unsigned)now.weight, states[now.state]);
        for (size_t i = 0; i < node.metadata.len; i++)
            append("%s[\"%.*s\",\"%.*s\"]", i ? "," : "", (int)node.metadata.ptr[i].f0.len, node.metadata.ptr[i].f0.ptr,
                   (int)node.metadata.ptr[i].f1.len, node.metadata.ptr[i].f1.ptr);
        append("]}\n");
        code = 200;
    }
    leasehold_registry_registrar_list_registration_info_free(&all);
    return code;
}

// The nodes of a service, as etcd has them.
static int nodes(const char *service) {
    service_string_t name = borrowed(service), version = borrowed("");
    leasehold_registry_discovery_list_server_node_t found;
    leasehold_registry_discovery_error_t error;
    if (!leasehold_registry_discovery_resolve(&name, &version, &found, &error)) {
        append_error(service, &error);
        leasehold_registry_discovery_error_free(&error);
        return 502;
    }
    append("[");
    for (size_t i = 0; i < found.len; i++)
        append("%s{\"addr\":\"%.*s\",\"version\":\"%.*s\"}", i ? "," : "", (int)found.ptr[i].addr.len,
               found.ptr[i].addr.ptr, (int)found.ptr[i].version.len, found.ptr[i].version.ptr);
    append("]\n");
    leasehold_registry_discovery_list_server_node_free(&found);
    return 200;
}

// Appends the body of a response, and drops it.
static void append_content(wasi_http_types_own_incoming_response_t response) {
    wasi_http_types_own_incoming_body_t content;
    if (!wasi_http_types_method_incoming_response_consume(wasi_http_types_borrow_incoming_response(response), &content))
        return;
    wasi_http_types_own_input_stream_t stream;
    if (wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(content), &stream)) {
        service_list_u8_t chunk;
        wasi_io_streams_stream_error_t end;
        while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(stream), 4096,
                                                                 &chunk, &end)) {
            append("%.*s", (int)chunk.len, chunk.ptr);
            service_list_u8_free(&chunk);
        }
        wasi_io_streams_stream_error_free(&end);
        wasi_io_streams_input_stream_drop_own(stream);
    }
    wasi_http_types_incoming_body_drop_own(content);
}

// Calls a service by name; the host picks one of its nodes.
static int call(const char *service) {
    char authority[300];
    snprintf(authority, sizeof authority, "%s.leasehold", service);
    wasi_http_types_own_outgoing_request_t request =
        wasi_http_types_constructor_outgoing_request(wasi_http_types_constructor_fields());
    wasi_http_types_borrow_outgoing_request_t head = wasi_http_types_borrow_outgoing_request(request);
    wasi_http_types_scheme_t scheme = {.tag = WASI_HTTP_TYPES_SCHEME_HTTP};
    service_string_t host = borrowed(authority), path = borrowed("/");
    wasi_http_types_method_outgoing_request_set_scheme(head, &scheme);
    wasi_http_types_method_outgoing_request_set_authority(head, &host);
    wasi_http_types_method_outgoing_request_set_path_with_query(head, &path);
    wasi_http_outgoing_handler_own_future_incoming_response_t future;
    wasi_http_outgoing_handler_error_code_t error;
    if (!wasi_http_outgoing_handler_handle(request, NULL, &future, &error)) {
        append("%s: error %d of wasi:http\n", service, error.tag);
        wasi_http_outgoing_handler_error_code_free(&error);
        return 502;
    }
    wasi_http_types_borrow_future_incoming_response_t waiting = wasi_http_types_borrow_future_incoming_response(future);
    wasi_io_poll_own_pollable_t ready = wasi_http_types_method_future_incoming_response_subscribe(waiting);
    wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(ready));
    wasi_io_poll_pollable_drop_own(ready);
    wasi_http_types_result_result_own_incoming_response_error_code_void_t got;
    int code = 502;
    if (!wasi_http_types_method_future_incoming_response_get(waiting, &got) || got.is_err)
        append("%s: no response\n", service);
    else if (got.val.ok.is_err) {
        append("%s: error %d of wasi:http\n", service, got.val.ok.val.err.tag);
        wasi_http_types_error_code_free(&got.val.ok.val.err);
    } else {
        wasi_http_types_own_incoming_response_t response = got.val.ok.val.ok;
        append("%s answered %d: ", service,
               wasi_http_types_method_incoming_response_status(wasi_http_types_borrow_incoming_response(response)));
        append_content(response);
        wasi_http_types_incoming_response_drop_own(response);
        code = 200;
    }
    wasi_http_types_future_incoming_response_drop_own(future);
    return code;
}

// Sends the body with this status.
static void respond(int code, exports_wasi_http_incoming_handler_own_response_outparam_t out) {
    wasi_http_types_own_outgoing_response_t response =
        wasi_http_types_constructor_outgoing_response(wasi_http_types_constructor_fields());
    wasi_http_types_borrow_outgoing_response_t head = wasi_http_types_borrow_outgoing_response(response);
    wasi_http_types_method_outgoing_response_set_status_code(head, code);
    wasi_http_types_own_outgoing_body_t content;
    wasi_http_types_method_outgoing_response_body(head, &content);
    wasi_http_types_result_own_outgoing_response_error_code_t ok = {.is_err = false, .val = {.ok = response}};
    wasi_http_types_static_response_outparam_set(out, &ok);
    wasi_http_types_own_output_stream_t stream;
    wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(content), &stream);
    // A write has 4096 bytes at most.
    for (size_t at = 0; at < length;) {
        size_t rest = length - at;
        service_list_u8_t chunk = {(uint8_t *)body + at, rest < 4096 ? rest : 4096};
        wasi_io_streams_stream_error_t gone;
        if (!wasi_io_streams_method_output_stream_blocking_write_and_flush(wasi_io_streams_borrow_output_stream(stream),
                                                                           &chunk, &gone)) {
            wasi_io_streams_stream_error_free(&gone);
            break;
        }
        at += chunk.len;
    }
    wasi_io_streams_output_stream_drop_own(stream);
    wasi_http_types_error_code_t failed;
    if (!wasi_http_types_static_outgoing_body_finish(content, NULL, &failed)) wasi_http_types_error_code_free(&failed);
}

void exports_wasi_http_incoming_handler_handle(exports_wasi_http_incoming_handler_own_incoming_request_t request,
                                               exports_wasi_http_incoming_handler_own_response_outparam_t out) {
    char path[300] = "/";
    service_string_t given;
    if (wasi_http_types_method_incoming_request_path_with_query(wasi_http_types_borrow_incoming_request(request), &given)) {
        snprintf(path, sizeof path, "%.*s", (int)given.len, given.ptr);
        service_string_free(&given);
    }
    wasi_http_types_incoming_request_drop_own(request);
    length = 0;
    int code = 200;
    if (!strcmp(path, "/")) append("hello from " NAME "\n");
    else if (!strcmp(path, "/status")) code = status();
    else if (!strncmp(path, "/nodes/", 7)) code = nodes(path + 7);
    else if (!strncmp(path, "/call/", 6)) code = call(path + 6);
    else {
        code = 404;
        append("not found\n");
    }
    respond(code, out);
}
