//! A service of WASI 0.3 that registers itself, calls another service, and follows its nodes.

use std::convert::Infallible;

use futures::StreamExt;
use leasehold_guest::{
    Error,
    p3::{
        self, Client, Service, Watch,
        http::{Body, Request, Response},
    },
};

leasehold_guest::async_service!(service);
leasehold_guest::serve!(handle);

fn service() -> Service {
    Service::new("shop").version("v1").metadata("zone", "a").on_start(async |registration| {
        let users = p3::resolve("user", "").await?;
        eprintln!("registered as {}, beside {} users", registration.key(), users.len());
        Ok::<_, Error>(())
    })
}

async fn handle(request: Request) -> Result<Response<Body>, Infallible> {
    let body = match request.uri().path() {
        "/user" => Client::new("user").get("/").await.map(|response| response.text().into()),
        "/users" => p3::watch("user", "").await.map(lines),
        _ => Ok("hello\n".into()),
    };
    Ok(Response::new(body.unwrap_or_else(|error| format!("{error}\n").into())))
}

/// A line for each state of the service.
fn lines(users: Watch) -> Body {
    Body::stream(users.map(|state| format!("{} users\n", state.total)))
}
