//! A service that registers itself, greets, reports its registration, follows other services and calls them by name. Its
//! functions are asynchronous: an instance serves its other requests while one waits.

use std::convert::Infallible;

use futures::StreamExt;
use leasehold_guest::{
    Error, Node,
    p3::{
        self, Client, Service, Snapshot,
        http::{Body, Request, Response, StatusCode},
    },
};
use serde_json::{Value, json};

const NAME: &str = "{{name}}";

// The host calls it at the start, when the listener is open, and at the end, when the last request is complete.
leasehold_guest::async_service!(service);
leasehold_guest::serve!(handle);

fn service() -> Service {
    // Without a weight the host computes one from the load of the machine.
    Service::new(NAME)
        .version("v1")
        .weight(50)
        .metadata("language", "rust")
        .on_start(async |registration| {
            // Standard error is the host's log.
            eprintln!("registered as {}", registration.key());
            Ok::<_, Error>(())
        })
        .on_stop(async || eprintln!("stopped"))
}

async fn handle(request: Request) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    let answer = match path.trim_start_matches('/').split_once('/') {
        None if path == "/" => Ok(format!("hello from {NAME}\n").into()),
        None if path == "/status" => Ok(status()),
        Some(("nodes", service)) => nodes(service).await,
        Some(("watch", service)) => watch(service).await,
        Some(("call", service)) => call(service).await,
        _ => return Ok(respond(StatusCode::NOT_FOUND, "not found\n".into())),
    };
    Ok(match answer {
        Ok(body) => respond(StatusCode::OK, body),
        Err(error) => respond(StatusCode::BAD_GATEWAY, format!("{error}\n").into()),
    })
}

/// The registration that the host made at the start, maybe for another instance.
fn status() -> Body {
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
    format!("{}\n", json!(registration)).into()
}

/// The nodes of a service, as etcd has them.
async fn nodes(service: &str) -> Result<Body, Error> {
    Ok(format!("{}\n", listed(&p3::resolve(service, "").await?)).into())
}

/// The nodes of a service, a line now and one after each change, until the client leaves or this service ends.
async fn watch(service: &str) -> Result<Body, Error> {
    let states = p3::watch(service, "").await?;
    Ok(Body::stream(states.map(|state: Snapshot| format!("{}\n", listed(&state.nodes)))))
}

/// Calls a service by name; the host picks one of its nodes.
async fn call(service: &str) -> Result<Body, Error> {
    let response = Client::new(service).get("/").await?;
    Ok(format!("{service} answered {}: {}", response.status, response.text()).into())
}

fn listed(nodes: &[Node]) -> Value {
    nodes.iter().map(|node| json!({ "addr": node.addr, "version": node.version })).collect()
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
