//! A `wasi:http` 0.3 component that does not use the registry.
//!
//! `/echo` sends back the body with its trailers while they come. `/fail` traps at the end of an answer, and `/break` does so
//! when its beginning has been sent. `/yield` and `/compute` work for a second after the head, the one bit by bit and the other
//! at a stretch. `/length/N` tells the length of its body, N bytes, and `/pass` gives back the body that came as it is.
//! `/relay/HOST/PATH` asks another host. `/authority` tells the authority of the request and the host that was forwarded.
//! Anything else is greeted.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use wasip3::{
    exports::http::handler::Guest,
    http::{
        client,
        types::{ErrorCode, Fields, Request, Response, Scheme},
    },
    http_compat::{http_from_wasi_request, http_into_wasi_response},
    wit_bindgen::{self, StreamWriter},
    wit_future, wit_stream,
};

const HELLO: &[u8] = b"hello\n";
/// Duration of the work before the body of a response.
const A_WHILE: Duration = Duration::from_secs(1);

struct Plain;

wasip3::http::service::export!(Plain);

impl Guest for Plain {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        match request.get_path_with_query().as_deref() {
            Some("/echo") => echo(request),
            Some("/fail") => Ok(answer(async |mut body| {
                body.write_all(HELLO.to_vec()).await;
                panic!("told to trap");
            })),
            Some("/break") => Ok(answer(async |mut body| {
                body.write_all(HELLO.to_vec()).await;
                compute(A_WHILE / 10).await;
                panic!("told to trap");
            })),
            Some("/yield") => Ok(answer(async |mut body| {
                compute(A_WHILE).await;
                body.write_all(HELLO.to_vec()).await;
            })),
            Some("/compute") => Ok(answer(async |mut body| {
                // The host sees the head only when it has the thread.
                wit_bindgen::yield_async().await;
                let begun = Instant::now();
                while begun.elapsed() < A_WHILE {}
                body.write_all(HELLO.to_vec()).await;
            })),
            Some("/pass") => Ok(pass(request)),
            Some("/authority") => {
                let forwarded = request.get_headers().get("x-forwarded-host").pop().unwrap_or_default();
                let authority = request.get_authority().unwrap_or_default();
                let text = format!("{authority} {}", String::from_utf8_lossy(&forwarded));
                Ok(answer(async move |mut body| drop(body.write_all(text.into_bytes()).await)))
            }
            Some(path) if let Some(length) = path.strip_prefix("/length/") => {
                Ok(long(length.parse().expect("a number")))
            }
            Some("/code/connection-refused") => Err(ErrorCode::ConnectionRefused),
            Some("/code/dns-timeout") => Err(ErrorCode::DnsTimeout),
            Some("/code/http-request-denied") => Err(ErrorCode::HttpRequestDenied),
            Some("/code/http-request-body-size") => Err(ErrorCode::HttpRequestBodySize(None)),
            Some("/code/internal-error") => Err(ErrorCode::InternalError(Some("told \x1b[31mso".to_owned()))),
            Some(path) if let Some(target) = path.strip_prefix("/relay/") => relay(request, target).await,
            _ => Ok(answer(async |mut body| drop(body.write_all(HELLO.to_vec()).await))),
        }
    }
}

fn echo(request: Request) -> Result<Response, ErrorCode> {
    http_into_wasi_response(http::Response::new(http_from_wasi_request(request)?.into_body()))
}

/// Requests a path of a host when the whole body has arrived, with the trace parent of the header `own-parent`, if any.
/// Responds with the status, and the number of concurrent requests in this instance.
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
    let (outgoing, _sent) = Request::new(headers, None, no_trailers, None);
    outgoing.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    outgoing.set_authority(Some(host)).expect("a host");
    outgoing.set_path_with_query(Some(&format!("/{path}?secret={length}"))).expect("a path");
    let status = client::send(outgoing).await?.get_status_code();
    INSIDE.fetch_sub(1, Ordering::Relaxed);
    Ok(answer(async move |mut body| drop(body.write_all(format!("{status} {inside}\n").into_bytes()).await)))
}

/// Response with the body of the request, unread.
fn pass(request: Request) -> Response {
    let (_, taken) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, taken);
    Response::new(Fields::new(), Some(body), trailers).0
}

fn long(length: usize) -> Response {
    let headers = Fields::new();
    headers.append("content-length", length.to_string().as_bytes()).expect("a header");
    answer_with(headers, async move |mut body| drop(body.write_all(vec![b'x'; length]).await))
}

/// Computes and yields all the time.
async fn compute(within: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < within {
        wit_bindgen::yield_async().await;
    }
}

/// Response whose body `write` writes. A rest that the client did not read is dropped.
fn answer(write: impl AsyncFnOnce(StreamWriter<u8>) + 'static) -> Response {
    answer_with(Fields::new(), write)
}

fn answer_with(headers: Fields, write: impl AsyncFnOnce(StreamWriter<u8>) + 'static) -> Response {
    let (body, reader) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(reader), no_trailers);
    wit_bindgen::spawn_local(write(body));
    response
}
