//! A component of `leasehold-guest` in WASI 0.3 that has every function of the library behind a path.
//!
//! At its start it registers as `library-p3`, calls the service of its variable `GREET` and prints the response; with `FAIL` the
//! start fails. `/status`, `/nodes/NAME`, `/pick/NAME`, `/weight/N`, `/register/VERSION` and `/stop/VERSION` respond with JSON;
//! an error is its kind and its text. `/call/NAME` responds with the response of a service, `/post/NAME` sends it the length of
//! text that the last part of the path says, and `/pass/NAME` passes on request and response while they come. `/watch/NAME`
//! streams a line for each state, after a first call that was dropped. `/later` has a task that goes on after the response.
//! `/fail` is an error of the handler.

use std::{env, future::poll_fn, pin::pin, task::Poll};

use futures::StreamExt;
use leasehold_guest::{
    Error, describe,
    p3::{
        self, Client, Service, Snapshot,
        http::{Body, Method, Request, Response, spawn},
    },
};
use serde_json::{Value, json};

const NAME: &str = "library-p3";

leasehold_guest::async_service!(service);
leasehold_guest::serve!(handle);

#[expect(clippy::print_stderr, reason = "the lines go to the host's log")]
fn service() -> Service {
    Service::new(NAME)
        .version("v1")
        .weight(50)
        .metadata("zone", "a")
        .on_start(async |registration| {
            eprintln!("registered as {}", registration.key());
            if let Ok(name) = env::var("GREET") {
                let response = Client::new(&name).send(Method::POST, "/", b"hello".to_vec()).await?;
                eprintln!("{name} responds with {}", response.text().trim_end());
            }
            Ok::<_, Error>(())
        })
        .on_start(async |_| match env::var("FAIL") {
            Ok(reason) => Err(reason),
            Err(_) => Ok(()),
        })
        .on_stop(async || eprintln!("stopped, with {} left", describe().len()))
}

async fn handle(request: Request) -> Result<Response<Body>, String> {
    let path = request.uri().path().to_owned();
    let outcome = match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["status"] => Ok(described()),
        ["nodes", name] => p3::resolve(name, "").await.map(|nodes| addresses(&nodes)),
        ["pick", name] => p3::pick(name, "").await.map(|node| json!(node.map(|node| node.addr))),
        ["weight", weight] => set_weight(weight.parse().unwrap_or(0)).await,
        ["register", version] => {
            Service::new(NAME).version(version).register().await.map(|registration| json!(registration.key()))
        }
        ["stop", version] => stop(version).await,
        ["call", name] => match Client::new(name).get("/").await {
            Ok(response) => return Ok(Response::new(format!("{} {}", response.status, response.text()).into())),
            Err(error) => Err(error),
        },
        ["post", name, path, length] => {
            let text = vec![b'x'; length.parse().unwrap_or(0)];
            Client::new(name)
                .send(Method::POST, &format!("/{path}"), text)
                .await
                .map(|response| json!([response.status, response.text()]))
        }
        ["pass", name, path] => match pass(name, path, request).await {
            Ok(response) => return Ok(response),
            Err(error) => Err(error),
        },
        ["watch", name] => match watch(name).await {
            Ok(body) => return Ok(Response::new(body)),
            Err(error) => Err(error),
        },
        ["later"] => {
            spawn(async { drop(Service::new(NAME).version("later").register().await) });
            Ok(json!("later"))
        }
        ["fail"] => return Err("no luck today".to_owned()),
        _ => Ok(json!("library")),
    };
    let line =
        outcome.unwrap_or_else(|error| json!({ "kind": format!("{:?}", error.kind()), "error": error.to_string() }));
    Ok(Response::new(format!("{line}\n").into()))
}

fn described() -> Value {
    let one = |registration: leasehold_guest::Described| {
        json!({
            "key": registration.key,
            "weight": registration.status.weight,
            "state": registration.status.state.name(),
            "metadata": registration.node.metadata,
        })
    };
    describe().into_iter().map(one).collect()
}

async fn set_weight(weight: u32) -> Result<Value, Error> {
    for registration in p3::current() {
        registration.set_weight(weight).await?;
    }
    Ok(described())
}

async fn stop(version: &str) -> Result<Value, Error> {
    for registration in p3::current() {
        if registration.node().version == version {
            registration.stop().await?;
            return Ok(json!(registration.status().state.name()));
        }
    }
    Ok(Value::Null)
}

/// Sends the body of the request on, and gives back the body of the response, each while it comes.
async fn pass(name: &str, path: &str, request: Request) -> Result<Response<Body>, Error> {
    let client = Client::new(name);
    let (head, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = head.method;
    *onward.uri_mut() = client.url(&format!("/{path}")).parse().unwrap_or_default();
    Ok(client.request(onward).await?.map(Body::from))
}

/// The states of a service, of which a call that is dropped before its end loses none.
async fn watch(name: &str) -> Result<Body, Error> {
    let mut states = p3::watch(name, "").await?;
    let first = {
        let mut next = pin!(states.next());
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(state) => Poll::Ready(state),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    };
    Ok(Body::stream(futures::stream::iter(first).chain(states).map(|state| line(&state))))
}

fn line(state: &Snapshot) -> String {
    format!("{}\n", json!({ "nodes": addresses(&state.nodes), "total": state.total, "current": state.is_current }))
}

fn addresses(nodes: &[leasehold_guest::Node]) -> Value {
    nodes.iter().map(|node| node.addr.as_str()).collect()
}
