//! A service that registers itself, greets, reports its registration, and calls other services by name.

mod bindings {
    //! The interfaces of wit/world.wit.
    wit_bindgen::generate!({ path: "wit", world: "service", generate_all });
    use super::Service;
    export!(Service);
}

use bindings::{
    exports::leasehold::registry::lifecycle,
    leasehold::registry::{discovery, registrar, registry_types::ServerNode},
};
use serde_json::json;
use wstd::http::{Body, Client, Error, Request, Response, StatusCode};

const NAME: &str = "{{name}}";
/// Time that the key in etcd outlives a dead host.
const TTL_SECONDS: u32 = 10;

struct Service;

impl lifecycle::Guest for Service {
    /// Called once, when the listener is open. The host keeps the registration until `stop`.
    fn start() -> Result<(), String> {
        let node = ServerNode {
            name: NAME.into(),
            // Empty: the address at which the host serves this component.
            addr: String::new(),
            version: "v1".into(),
            // None would be a weight that the host computes from the load of the machine.
            weight: Some(50),
            metadata: vec![("language".into(), "rust".into())],
        };
        let registration = registrar::register(&node, TTL_SECONDS)
            .map_err(|error| format!("register {NAME}: {error:?}"))?;
        // Standard error is the host's log.
        eprintln!("registered as {}", registration.key());
        Ok(())
    }

    /// Called once, when the last request is complete.
    fn stop() {
        for registration in registrar::current() {
            // After a timeout the host goes on until the key is gone.
            let _ = registration.stop();
        }
        eprintln!("stopped");
    }
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    let answer = match path.trim_start_matches('/').split_once('/') {
        None if path == "/" => Ok(format!("hello from {NAME}\n")),
        None if path == "/status" => status(),
        Some(("nodes", service)) => nodes(service),
        Some(("call", service)) => call(service).await,
        _ => return respond(StatusCode::NOT_FOUND, "not found\n".into()),
    };
    match answer {
        Ok(body) => respond(StatusCode::OK, body),
        Err(message) => respond(StatusCode::BAD_GATEWAY, message + "\n"),
    }
}

/// The registration that `start` made, maybe on another instance.
fn status() -> Result<String, String> {
    let registration = registrar::describe()
        .into_iter()
        .next()
        .ok_or("not registered")?;
    let (node, status) = (registration.node, registration.status);
    let body = json!({
        "key": registration.key,
        "addr": node.addr,
        "version": node.version,
        "weight": status.weight,
        "state": format!("{:?}", status.state).trim_start_matches("State::").to_lowercase(),
        "metadata": node.metadata,
    });
    Ok(format!("{body}\n"))
}

/// The nodes of a service, as etcd has them.
fn nodes(service: &str) -> Result<String, String> {
    let nodes = discovery::resolve(service, "").map_err(|error| format!("{service}: {error:?}"))?;
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| json!({ "addr": node.addr, "version": node.version }))
        .collect();
    Ok(format!("{}\n", json!(nodes)))
}

/// Calls a service by name; the host picks one of its nodes.
async fn call(service: &str) -> Result<String, String> {
    let failed = |error: Error| format!("{service}: {error:#}");
    let request = Request::get(format!("http://{service}.leasehold/")).body(Body::empty());
    let mut response = Client::new()
        .send(request.map_err(|error| failed(error.into()))?)
        .await
        .map_err(failed)?;
    let status = response.status().as_u16();
    let body = response.body_mut().str_contents().await.map_err(failed)?;
    Ok(format!("{service} answered {status}: {body}"))
}

fn respond(status: StatusCode, body: String) -> Result<Response<Body>, Error> {
    Ok(Response::builder().status(status).body(body.into())?)
}
