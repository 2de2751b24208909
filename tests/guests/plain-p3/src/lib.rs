//! A `wasi:http` 0.3 component that knows nothing of the registry.

use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Fields, Request, Response},
    wit_bindgen, wit_future, wit_stream,
};

struct Plain;

wasip3::http::service::export!(Plain);

impl Guest for Plain {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let (mut body, reader) = wit_stream::new();
        let (_, no_trailers) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(reader), no_trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(b"hello\n".to_vec()).await; // What is left over was not wanted.
        });
        Ok(response)
    }
}
