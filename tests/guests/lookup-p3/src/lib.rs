//! A component of `leasehold:registry` 0.2 and `wasi:http` 0.3 that registers itself and follows services.
//!
//! `/watch/NAME` streams the nodes of a service, a line for each state, and a last line at the end of the watch.
//! `/step/NAME` does so with one state for each byte of the request's body. `/hoard/COUNT/NAME` opens so many watches, and
//! responds with the number of those that it got, and the reason for which it got no more. `/crowd/COUNT/NAME` begins so many
//! look-ups at a time, and responds with the number that were refused, and one reason. `/resolve/NAME` and `/pick/NAME`
//! respond with addresses, and `/busy/NAME` also with the number of ticks of a clock while it looked the service up.
//! With `leave` in its configuration it begins to register at its start, and leaves the call behind.
//! `/describe` responds with its registrations, and `/weight/N` sets their weight first. An error is its case and text.

mod bindings;

use std::{cell::Cell, future::poll_fn, mem::forget, rc::Rc, task::Poll};

use bindings::{
    exports::{leasehold::registry::async_lifecycle, wasi::http::handler},
    leasehold::registry::{
        async_discovery::{self, Snapshot},
        async_registrar, registrar,
        registry_types::{Error, ServerNode},
    },
    wasi::{
        clocks::monotonic_clock::wait_for,
        config::store,
        http::types::{ErrorCode, Fields, Request, Response},
    },
    wit_future, wit_stream,
};
use serde_json::{Value, json};
use wit_bindgen::{StreamReader, StreamWriter, spawn_local};

/// Pause between two ticks, in nanoseconds.
const TICK: u64 = 10_000_000;

struct Lookup;

impl async_lifecycle::Guest for Lookup {
    async fn start() -> Result<(), String> {
        let node = ServerNode {
            name: store::get("name").ok().flatten().unwrap_or_default(),
            addr: String::new(),
            version: "v3".into(),
            weight: Some(40),
            metadata: Vec::new(),
        };
        let register = async_registrar::register(node, 0);
        if store::get("leave").ok().flatten().is_some() {
            // Begun, and never looked after again.
            let mut register = Box::pin(register);
            poll_fn(|cx| Poll::Ready(register.as_mut().poll(cx).is_ready())).await;
            forget(register);
            return Ok(());
        }
        register.await.map(drop).map_err(|error| error.to_string())
    }

    async fn stop() {
        for registration in registrar::current() {
            let _ = async_registrar::stop(&registration).await; // After a timeout the host goes on.
        }
    }
}

impl handler::Guest for Lookup {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let path: Vec<_> = path.split('/').skip(1).collect();
        let outcome = match path[..] {
            ["watch", name] => match async_discovery::watch(name.to_owned(), String::new()).await {
                Ok(states) => return Ok(respond(async move |body| follow(states, body).await)),
                Err(error) => Err(error),
            },
            ["step", name] => match async_discovery::watch(name.to_owned(), String::new()).await {
                Ok(states) => {
                    let (_, taken) = wit_future::new(|| Ok(()));
                    let (steps, _) = Request::consume_body(request, taken);
                    return Ok(respond(async move |body| step(states, steps, body).await));
                }
                Err(error) => Err(error),
            },
            ["hoard", count, name] => Ok(hoard(count.parse().unwrap_or(1), name).await),
            ["crowd", count, name] => Ok(crowd(count.parse().unwrap_or(1), name).await),
            ["resolve", name] => resolve(name).await,
            ["busy", name] => Ok(busy(name).await),
            ["pick", name] => async_discovery::pick(name.to_owned(), String::new())
                .await
                .map(|node| json!(node.map(|node| node.addr))),
            ["weight", weight] => set_weight(weight.parse().unwrap_or(0)).await.map(|()| described()),
            ["describe"] => Ok(described()),
            _ => Ok(json!("lookup")),
        };
        let line = outcome.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        Ok(respond(async move |mut body| write(&mut body, &line).await))
    }
}

/// Writes each state as it is read, until the watch ends or the client leaves.
async fn follow(mut states: StreamReader<Snapshot>, mut body: StreamWriter<u8>) {
    while let Some(state) = states.next().await {
        if !write(&mut body, &line(&state)).await {
            return;
        }
    }
    write(&mut body, &json!("end")).await;
}

/// Reads one state for each byte of the request's body.
async fn step(mut states: StreamReader<Snapshot>, mut steps: StreamReader<u8>, mut body: StreamWriter<u8>) {
    while steps.next().await.is_some() {
        let Some(state) = states.next().await else { break };
        if !write(&mut body, &line(&state)).await {
            return;
        }
    }
    write(&mut body, &json!("end")).await;
}

async fn hoard(count: usize, name: &str) -> Value {
    let mut open = Vec::new();
    for _ in 0..count {
        match async_discovery::watch(name.to_owned(), String::new()).await {
            Ok(states) => open.push(states),
            Err(error) => return json!({ "open": open.len(), "error": error.to_string() }),
        }
    }
    json!({ "open": open.len() })
}

async fn crowd(count: usize, name: &str) -> Value {
    let (refused, left, reason) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(count)), Rc::new(Cell::new(String::new())));
    for _ in 0..count {
        let (refused, left, reason, name) = (refused.clone(), left.clone(), reason.clone(), name.to_owned());
        spawn_local(async move {
            if let Err(error @ Error::QuotaExceeded(_)) = async_discovery::resolve(name, String::new()).await {
                refused.set(refused.get() + 1);
                reason.set(error.to_string());
            }
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        wait_for(TICK).await;
    }
    json!({ "refused": refused.get(), "error": reason.take() })
}

async fn resolve(name: &str) -> Result<Value, Error> {
    let nodes = async_discovery::resolve(name.to_owned(), String::new()).await?;
    Ok(json!(addresses(&nodes)))
}

/// Looks a service up while a clock ticks in another task.
async fn busy(name: &str) -> Value {
    let ticks = Rc::new(Cell::new(0));
    let (counter, goes_on) = (ticks.clone(), Rc::new(Cell::new(true)));
    let ticking = goes_on.clone();
    spawn_local(async move {
        while ticking.get() {
            wait_for(TICK).await;
            counter.set(counter.get() + 1);
        }
    });
    let found = resolve(name).await.unwrap_or_else(|error| json!({ "error": error.to_string() }));
    goes_on.set(false);
    json!({ "ticks": ticks.get(), "found": found })
}

async fn set_weight(weight: u32) -> Result<(), Error> {
    for registration in registrar::current() {
        async_registrar::set_weight(&registration, weight).await?;
    }
    Ok(())
}

fn described() -> Value {
    let one = |info: registrar::RegistrationInfo| json!({ "key": info.key, "weight": info.node.weight });
    registrar::describe().into_iter().map(one).collect()
}

fn line(state: &Snapshot) -> Value {
    let nodes: Vec<_> = state.nodes.iter().map(|node| json!([node.addr, node.weight])).collect();
    json!({ "nodes": nodes, "total": state.total, "current": state.is_current })
}

fn addresses(nodes: &[ServerNode]) -> Vec<&str> {
    nodes.iter().map(|node| node.addr.as_str()).collect()
}

/// Writes a line. Returns false if the client has left.
async fn write(body: &mut StreamWriter<u8>, line: &Value) -> bool {
    body.write_all(format!("{line}\n").into_bytes()).await.is_empty()
}

/// Response whose body `write` writes.
fn respond<T>(write: impl AsyncFnOnce(StreamWriter<u8>) -> T + 'static) -> Response {
    let (body, reader) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(reader), no_trailers);
    spawn_local(async move { drop(write(body).await) });
    response
}
