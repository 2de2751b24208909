//! A service that registers itself and calls another service by name.

use leasehold_guest::{Client, Service};
use wstd::http::{Body, Error, Request, Response};

leasehold_guest::service!(service);

fn service() -> Service {
    Service::new("user")
        .version("v1")
        .metadata("zone", "a")
        .on_start(|registration| {
            eprintln!("registered as {}", registration.key());
            Ok::<_, leasehold_guest::Error>(())
        })
        .on_stop(|| eprintln!("stopped"))
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let body = match request.uri().path() {
        "/shop" => Client::new("shop").get("/").await.map(|response| response.text()),
        "/nodes" => leasehold_guest::resolve("shop", "").map(|nodes| format!("{nodes:?}\n")),
        _ => Ok("hello\n".to_owned()),
    };
    Ok(Response::new(body.unwrap_or_else(|error| format!("{error}\n")).into()))
}
