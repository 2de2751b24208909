//! A `wasi:http` 0.3 component that knows nothing of the registry.
//!
//! `/echo` sends back the body with its trailers while they come, `/break` traps in the middle of an answer; anything else
//! is greeted.

use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Fields, Request, Response},
    http_compat::{http_from_wasi_request, http_into_wasi_response},
    wit_bindgen, wit_future, wit_stream,
};

struct Plain;

wasip3::http::service::export!(Plain);

impl Guest for Plain {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        match request.get_path_with_query().as_deref() {
            Some("/echo") => echo(request),
            Some("/break") => Ok(hello(true)),
            _ => Ok(hello(false)),
        }
    }
}

fn echo(request: Request) -> Result<Response, ErrorCode> {
    http_into_wasi_response(http::Response::new(http_from_wasi_request(request)?.into_body()))
}

fn hello(breaks: bool) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(reader), no_trailers);
    wit_bindgen::spawn_local(async move {
        body.write_all(b"hello\n".to_vec()).await; // What is left over was not wanted.
        assert!(!breaks, "told to trap");
    });
    response
}
