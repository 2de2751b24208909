//! A service that registers itself, greets, reports its registration, and calls other services by name.

use leasehold_guest::{Client, Service};
use serde_json::json;
use wstd::http::{Body, Error, Request, Response, StatusCode};

const NAME: &str = "{{name}}";

// The host calls it at the start, when the listener is open, and at the end, when the last request is complete.
leasehold_guest::service!(service);

fn service() -> Service {
    // Without a weight the host computes one from the load of the machine.
    Service::new(NAME)
        .version("v1")
        .weight(50)
        .metadata("language", "rust")
        .on_start(|registration| {
            // Standard error is the host's log.
            eprintln!("registered as {}", registration.key());
            Ok::<_, leasehold_guest::Error>(())
        })
        .on_stop(|| eprintln!("stopped"))
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    let answer = match path.trim_start_matches('/').split_once('/') {
        None if path == "/" => Ok(format!("hello from {NAME}\n")),
        None if path == "/status" => return respond(StatusCode::OK, status()),
        Some(("nodes", service)) => nodes(service),
        Some(("call", service)) => call(service).await,
        _ => return respond(StatusCode::NOT_FOUND, "not found\n".into()),
    };
    match answer {
        Ok(body) => respond(StatusCode::OK, body),
        Err(error) => respond(StatusCode::BAD_GATEWAY, format!("{error}\n")),
    }
}

/// The registration that the host made at the start, maybe for another instance.
fn status() -> String {
    let one = |registration: leasehold_guest::Described| {
        json!({
            "key": registration.key,
            "addr": registration.node.addr,
            "version": registration.node.version,
            "weight": registration.status.weight,
            "state": registration.status.state.name(),
            "metadata": registration.node.metadata,
        })
    };
    let registration = leasehold_guest::describe().into_iter().next().map(one);
    format!("{}\n", json!(registration))
}

/// The nodes of a service, as etcd has them.
fn nodes(service: &str) -> Result<String, leasehold_guest::Error> {
    let nodes = leasehold_guest::resolve(service, "")?;
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| json!({ "addr": node.addr, "version": node.version }))
        .collect();
    Ok(format!("{}\n", json!(nodes)))
}

/// Calls a service by name; the host picks one of its nodes.
async fn call(service: &str) -> Result<String, leasehold_guest::Error> {
    let response = Client::new(service).get("/").await?;
    Ok(format!("{service} answered {}: {}", response.status, response.text()))
}

fn respond(status: StatusCode, body: String) -> Result<Response<Body>, Error> {
    Ok(Response::builder().status(status).body(body.into())?)
}
