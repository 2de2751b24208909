//! A `wasi:http` 0.2 component that does not use the registry.

use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>, Error> {
    Ok(Response::new("hello\n".to_owned().into()))
}
