//! A `wasi:http` 0.3 component that knows nothing of the registry.
//!
//! `/echo` sends back the body with its trailers while they come, `/break` traps in the middle of an answer,
//! `/relay/HOST/PATH` asks another host; anything else is greeted.

use std::sync::atomic::{AtomicUsize, Ordering};

use wasip3::{
    exports::http::handler::Guest,
    http::{
        client,
        types::{ErrorCode, Fields, Request, Response, Scheme},
    },
    http_compat::{http_from_wasi_request, http_into_wasi_response},
    wit_bindgen, wit_future, wit_stream,
};

struct Plain;

wasip3::http::service::export!(Plain);

impl Guest for Plain {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        match request.get_path_with_query().as_deref() {
            Some("/echo") => echo(request),
            Some("/break") => Ok(greeting("hello\n".to_owned(), true)),
            Some(path) if let Some(target) = path.strip_prefix("/relay/") => relay(request, target).await,
            _ => Ok(greeting("hello\n".to_owned(), false)),
        }
    }
}

fn echo(request: Request) -> Result<Response, ErrorCode> {
    http_into_wasi_response(http::Response::new(http_from_wasi_request(request)?.into_body()))
}

/// Asks a host for a path once all of the body has come, under the parent that the header `own-parent` names, if any. Says
/// how many requests this instance had at a time.
async fn relay(request: Request, target: &str) -> Result<Response, ErrorCode> {
    static INSIDE: AtomicUsize = AtomicUsize::new(0);
    let inside = INSIDE.fetch_add(1, Ordering::Relaxed) + 1;
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let headers = Fields::new();
    for parent in request.get_headers().get("own-parent") {
        headers.append("traceparent", &parent).expect("a header");
    }
    let (_, taken) = wit_future::new(|| Ok(()));
    let (body, _) = Request::consume_body(request, taken);
    let length = body.collect().await.len();

    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (asked, _sent) = Request::new(headers, None, no_trailers, None);
    asked.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    asked.set_authority(Some(host)).expect("a host");
    asked.set_path_with_query(Some(&format!("/{path}?secret={length}"))).expect("a path");
    let status = client::send(asked).await?.get_status_code();
    INSIDE.fetch_sub(1, Ordering::Relaxed);
    Ok(greeting(format!("{status} {inside}\n"), false))
}

fn greeting(text: String, breaks: bool) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(reader), no_trailers);
    wit_bindgen::spawn_local(async move {
        body.write_all(text.into_bytes()).await; // What is left over was not wanted.
        assert!(!breaks, "told to trap");
    });
    response
}
