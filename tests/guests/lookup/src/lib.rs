//! A component of `leasehold:registry` 0.2 that registers itself and looks services up, by plain functions.
//!
//! `GET /describe` responds with its registrations, `/weight/N` sets the weight of all of them first. `GET /resolve/NAME`
//! responds with the addresses of a service, and `/pick/COUNT/NAME` with those of so many picks. An error is its case and text.

mod bindings;

use bindings::{
    exports::leasehold::registry::lifecycle,
    leasehold::registry::{
        discovery, registrar,
        registry_types::{Error, ServerNode},
    },
    wasi::config::store,
};
use serde_json::{Value, json};
use wstd::http::{self, Body, Request, Response};

struct Lookup;

impl lifecycle::Guest for Lookup {
    fn start() -> Result<(), String> {
        let node = ServerNode {
            name: store::get("name").ok().flatten().unwrap_or_default(),
            addr: String::new(),
            version: "v2".into(),
            weight: Some(40),
            metadata: vec![("zone".into(), "a".into())],
        };
        registrar::register(&node, 0).map(drop).map_err(|error| error.to_string())
    }

    fn stop() {
        for registration in registrar::current() {
            let _ = registration.stop(); // After a timeout the host goes on.
        }
    }
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, http::Error> {
    let path: Vec<_> = request.uri().path().split('/').skip(1).collect();
    let outcome = match path[..] {
        ["describe"] => Ok(described()),
        ["weight", weight] => set_weight(weight.parse().unwrap_or(0)).map(|()| described()),
        ["resolve", name] => discovery::resolve(name, "").map(|nodes| json!(addresses(&nodes))),
        ["pick", count, name] => (0..count.parse().unwrap_or(1))
            .map(|_| discovery::pick(name, ""))
            .collect::<Result<Vec<_>, _>>()
            .map(|nodes| json!(nodes.iter().map(|node| node.as_ref().map(|node| &node.addr)).collect::<Vec<_>>())),
        _ => Ok(json!("lookup")),
    };
    let body = outcome.unwrap_or_else(|error| json!({ "error": error.to_string() }));
    Ok(Response::new(format!("{body}\n").into()))
}

fn set_weight(weight: u32) -> Result<(), Error> {
    registrar::current().iter().try_for_each(|registration| registration.set_weight(weight))
}

fn described() -> Value {
    let one = |info: registrar::RegistrationInfo| {
        json!({
            "key": info.key,
            "addr": info.node.addr,
            "weight": info.node.weight,
            "metadata": info.node.metadata,
            "state": format!("{:?}", info.status.state),
            "publishes_metadata": info.publishes_metadata,
        })
    };
    registrar::describe().into_iter().map(one).collect()
}

fn addresses(nodes: &[ServerNode]) -> Vec<&str> {
    nodes.iter().map(|node| node.addr.as_str()).collect()
}
