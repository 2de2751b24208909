//! A greeter in gRPC: tonic's generated code over `wasi:http` 0.3, which takes the place of tonic's own transport.

mod generated;
mod greeter;
mod router;

use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Request, Response},
    http_compat::{http_from_wasi_request, http_into_wasi_response},
};

struct Component;

wasip3::http::service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        http_into_wasi_response(router::route(http_from_wasi_request(request)?).await)
    }
}
