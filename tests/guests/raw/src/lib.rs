//! A `wasi:http` 0.2 component without a library in between, which responds as no library would.
//!
//! `/authority` returns the authority of the request and the forwarded host, `/id` its identifiers, `/unfinished` drops its body without `finish`,
//! `/length/ANNOUNCED/WRITTEN` writes fewer or more bytes than its `content-length`, `/status/N` responds with that status, and
//! `/slow` after 300 ms. Any other path gets a greeting, with the caller that the host names.

use wasip2::{
    clocks::monotonic_clock::subscribe_duration,
    exports::http::incoming_handler::Guest,
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

/// 300 ms.
const A_WHILE: u64 = 300_000_000;

struct Raw;

wasip2::http::proxy::export!(Raw);

impl Guest for Raw {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["authority"] => {
                let forwarded = request.headers().get("x-forwarded-host").pop().unwrap_or_default();
                let authority = request.authority().unwrap_or_default();
                answer(out, 200, &[], format!("{authority} {}", String::from_utf8_lossy(&forwarded)).as_bytes());
            }
            ["id"] => {
                let ids = request.headers().get("x-request-id");
                answer(out, 200, &[], String::from_utf8_lossy(&ids.join(&b' ')).as_bytes());
            }
            ["unfinished"] => drop(begin(out, 200, &[], b"half")),
            ["length", length, written] => {
                let written = written.parse().unwrap_or(0);
                answer(out, 200, &[("content-length", length)], &vec![b'x'; written]);
            }
            ["status", status] => answer(out, status.parse().unwrap_or(200), &[], b"status\n"),
            ["slow"] => {
                subscribe_duration(A_WHILE).block();
                answer(out, 200, &[], b"slow\n");
            }
            _ => {
                let caller = request.headers().get("x-leasehold-caller").concat();
                let separator = if caller.is_empty() { "" } else { " " };
                answer(out, 200, &[], format!("raw{separator}{}\n", String::from_utf8_lossy(&caller)).as_bytes());
            }
        }
    }
}

fn answer(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], text: &[u8]) {
    // A body of another length than its `content-length` is refused; the host logs the reason.
    let _ = OutgoingBody::finish(begin(out, status, headers, text), None);
}

fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], text: &[u8]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).expect("a header");
    }
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("the first time");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the first time");
    let _ = stream.blocking_write_and_flush(text); // Fails beyond the `content-length`, or if the client has disconnected.
    drop(stream);
    body
}
