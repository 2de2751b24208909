//! A greeter that registers itself in etcd, responds with a greeting, and reports its registration.

mod bindings;

use bindings::{
    exports::leasehold::registry::lifecycle,
    leasehold::registry::{
        registrar,
        types::{self, ServerNode, State},
    },
    wasi::config::store,
};
use serde_json::json;
use wstd::http::{Body, Error, Method, Request, Response, StatusCode};

/// Time that the key outlives a dead host.
const TTL_SECONDS: u32 = 10;

struct Greeter;

impl lifecycle::Guest for Greeter {
    /// Called once, when the listener is bound. The host keeps this registration until `stop`.
    fn start() -> Result<(), String> {
        let node = ServerNode {
            name: config("name")?.unwrap_or_else(|| "greeter".into()),
            // Empty: the host fills in the address at which it serves this component.
            addr: config("addr")?.unwrap_or_default(),
            version: config("version")?.unwrap_or_default(),
            // None: the host computes the weight from the load of the machine.
            weight: None,
            metadata: vec![],
        };
        registrar::register(&node, TTL_SECONDS).map_err(|error| format!("register {}: {}", node.name, text(&error)))?;
        Ok(())
    }

    /// Called once, when the last request is complete.
    fn stop() {
        for registration in registrar::current() {
            let _ = registration.stop(); // After a timeout the host goes on until the key is gone.
        }
    }
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => greet(),
        (&Method::GET, "/whoami") => whoami(),
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "not found\n".into()),
    }
}

fn greet() -> Result<Response<Body>, Error> {
    let greeting = config("greeting").map_err(Error::msg)?.unwrap_or_else(|| "hello".into());
    respond(StatusCode::OK, "text/plain", greeting + "\n")
}

/// Reports the registration that `start` made on another instance.
fn whoami() -> Result<Response<Body>, Error> {
    let Some(registration) = registrar::current().into_iter().next() else {
        return respond(StatusCode::SERVICE_UNAVAILABLE, "application/json", json!({ "state": "stopped" }).to_string());
    };
    let (node, status) = (registration.node(), registration.status());
    let body = json!({
        "key": registration.key(),
        "name": node.name,
        "addr": node.addr,
        "version": node.version,
        "weight": status.weight,
        "state": name_of(status.state),
        "ttl_remaining_ms": status.ttl_remaining_ms,
        "renewals": status.renewals,
        "recoveries": status.recoveries,
    });
    respond(StatusCode::OK, "application/json", body.to_string())
}

fn respond(status: StatusCode, content_type: &str, body: String) -> Result<Response<Body>, Error> {
    Ok(Response::builder().status(status).header("content-type", content_type).body(body.into())?)
}

fn config(key: &str) -> Result<Option<String>, String> {
    store::get(key).map_err(|error| match error {
        store::Error::Upstream(text) | store::Error::Io(text) => format!("configuration {key}: {text}"),
    })
}

/// Text of the host about a refused call.
fn text(error: &types::Error) -> &str {
    match error {
        types::Error::InvalidArgument(text)
        | types::Error::AccessDenied(text)
        | types::Error::QuotaExceeded(text)
        | types::Error::Conflict(text)
        | types::Error::Unavailable(text)
        | types::Error::Other(text) => text,
        types::Error::Timeout => "the deadline expired",
        types::Error::NotRegistered => "the registration has ended already",
    }
}

fn name_of(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Registered => "registered",
        State::Suspect => "suspect",
        State::Recovering => "recovering",
        State::Conflict => "conflict",
        State::Draining => "draining",
        State::Stopped => "stopped",
    }
}
