//! The library for components in Rust, in WASI 0.3: a service that starts and stops asynchronously, its registrations, look-ups,
//! watches and calls by name.

use std::time::Duration;

use leasehold_end_to_end::{
    Host,
    config::{config, greeter, service, with},
    http::get,
    lines::Lines,
    paths, raw,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::time::timeout;

const NAME: &str = "library-p3";

/// The component, which may look up and call these.
fn library(names: &[&str]) -> Value {
    with(service(NAME, NAME), json!({ "allow": { "discover": names } }))
}

/// A service that sends back what it receives at `/echo`, and a greeting elsewhere.
fn echo() -> Value {
    with(service("echo", "plain-p3"), json!({ "register": "host" }))
}

async fn ask(host: &Host, path: &str) -> Value {
    let answer = get(&format!("{}{path}", host.url(NAME))).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

async fn put_node(world: &World, name: &str, addr: &str, weight: u32) {
    let value = json!({ "name": name, "addr": addr, "version": "", "weight": weight.to_string() });
    world.put(&format!("/{name}/{addr}"), &value.to_string(), 0).await;
}

/// Asserts that an error has this kind, and this text.
#[track_caller]
fn is_refused(answer: &Value, kind: &str, text: &str) {
    assert_eq!(answer, &json!({ "kind": kind, "error": text }));
}

#[tokio::test]
async fn a_service_registers_at_its_start_and_ends_with_its_last_action() {
    let world = World::real().await;
    let host = Host::of(&world, [library(&[])]).await;
    let (addr, key) = (host.addr(NAME), format!("/{NAME}/v1/{}", host.addr(NAME)));
    let stands = world.stands(&key).await;
    let node: Value = serde_json::from_str(&stands.value).unwrap();
    assert_eq!(node, json!({ "name": NAME, "addr": addr, "version": "v1", "weight": "50" }));
    let described =
        |weight: u32| json!([{ "key": key, "weight": weight, "state": "registered", "metadata": [["zone", "a"]] }]);
    assert_eq!(ask(&host, "status").await, described(50));
    assert_eq!(ask(&host, "weight/77").await, described(77));
    is_refused(
        &ask(&host, "weight/0").await,
        "InvalidArgument",
        "set the weight: invalid argument: weight must be 1 to 100, not 0",
    );
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.wrote(&format!("registered as {key}")) && ended.wrote("stopped, with 0 left"), "{ended:?}");
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn an_action_of_the_start_calls_by_name_and_its_error_fails_the_start() {
    let world = World::real().await;
    let neighbour = Host::of(&world, [echo()]).await;
    let greets = |more: Value| with(with(library(&["echo"]), json!({ "env": { "GREET": "echo" } })), more);
    let mut host = Host::spawn(&config(&world, [greets(json!({}))]), &[]);
    host.event("ready").await;
    assert!(host.log().iter().any(|line| line.to_string().contains("echo responds with hello")), "{:?}", host.log());
    assert_eq!(host.stop().await.code, Some(0));

    let failing = greets(json!({ "env": { "FAIL": "told so" } }));
    let ended = Host::spawn(&config(&world, [failing]), &["--strict"]).ends().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.wrote("library-p3: lifecycle.start failed: told so"), "{ended:?}");
    assert_eq!(world.count().await, 1, "the neighbour's key alone");

    assert_eq!(neighbour.stop().await.code, Some(0));
    let ended = Host::spawn(&config(&world, [greets(json!({}))]), &["--strict"]).ends().await;
    assert!(ended.wrote("lifecycle.start failed: call echo.leasehold: the request failed: "), "{ended:?}");
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn a_registration_by_hand_stands_until_it_is_stopped() {
    let world = World::real().await;
    let host = Host::of(&world, [library(&[])]).await;
    let key = |version: &str| format!("/{NAME}/{version}/{}", host.addr(NAME));
    assert_eq!(ask(&host, "register/v2").await, json!(key("v2")));
    assert_eq!(ask(&host, "register/v2").await, json!(key("v2")), "once more, the same");
    assert_eq!(world.count().await, 2);
    assert_eq!(ask(&host, "stop/v2").await, "stopped");
    assert_eq!((ask(&host, "stop/v2").await, world.count().await), (Value::Null, 1));
    let long = "x".repeat(129);
    let answer = ask(&host, &format!("register/{long}")).await;
    assert_eq!(answer["kind"], "InvalidArgument", "{answer}");
    assert!(
        answer["error"].as_str().unwrap().starts_with("register library-p3: invalid argument: version must"),
        "{answer}"
    );
    // A task that goes on after the response.
    assert_eq!(ask(&host, "later").await, "later");
    wait_for("it registers later", SOON, async || world.get(&key("later")).await.is_some()).await;
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn a_service_is_looked_up_and_followed() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 50).await;
    let host = Host::of(&world, [library(&["shop", "none"])]).await;
    assert_eq!(ask(&host, "nodes/shop").await, json!(["10.0.0.1:80"]));
    assert_eq!((ask(&host, "pick/shop").await, ask(&host, "pick/none").await), (json!("10.0.0.1:80"), Value::Null));
    let mut watch = Lines::open(&host.addr(NAME), "watch/shop", 0).await;
    let state = |nodes: &[&str]| Some(json!({ "nodes": nodes, "total": nodes.len(), "current": true }));
    assert_eq!(watch.next().await, state(&["10.0.0.1:80"]), "a call that was dropped has lost no state");
    let unchanged = timeout(Duration::from_millis(300), watch.next()).await;
    assert!(unchanged.is_err(), "the same state comes once: {unchanged:?}");
    put_node(&world, "shop", "10.0.0.2:80", 50).await;
    assert_eq!(watch.next().await, state(&["10.0.0.1:80", "10.0.0.2:80"]));
    for call in ["nodes", "pick", "watch"] {
        let verb = if call == "nodes" { "resolve" } else { call };
        let text = format!("{verb} stranger: access denied: name is not in this component's allow.discover");
        is_refused(&ask(&host, &format!("{call}/stranger")).await, "AccessDenied", &text);
    }
    let (ended, last) = tokio::join!(host.stop(), watch.next());
    assert_eq!((ended.code, last), (Some(0), None), "the watch ends with the service");
}

#[tokio::test]
async fn a_service_is_called_by_name_with_bodies_of_any_size() {
    let world = World::real().await;
    let host = Host::of(&world, [library(&["greeter", "echo"]), greeter(), echo()]).await;
    let answer = get(&format!("{}call/greeter", host.url(NAME))).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "200 hello\n"));
    for length in [0, 1, 3_000_000] {
        let answer = ask(&host, &format!("post/echo/echo/{length}")).await;
        let [status, body] = answer.as_array().unwrap().as_slice() else { panic!("{answer}") };
        assert_eq!((status, body.as_str().unwrap().len()), (&json!(200), length));
    }
    // The node responds and leaves the body unread.
    assert_eq!(ask(&host, "post/echo/elsewhere/3000000").await, json!([200, "hello\n"]));
    // The node breaks its response off.
    let answer = ask(&host, "post/echo/break/1").await;
    assert_eq!(answer["kind"], "Http", "{answer}");
    assert!(answer["error"].as_str().unwrap().starts_with("call echo.leasehold: the request failed: "), "{answer}");

    let body = "x".repeat(100_000);
    let (addr, length) = (host.addr(NAME), body.len());
    let request = format!("POST /pass/echo/echo HTTP/1.0\r\nhost: {addr}\r\ncontent-length: {length}\r\n\r\n{body}");
    let passed = raw::exchange(&addr, request.as_bytes(), false).await;
    assert!(passed.contains(" 200 ") && passed.ends_with(&format!("\r\n\r\n{body}")), "{}", passed.len());

    let denied = ask(&host, "pass/stranger/").await;
    is_refused(&denied, "Http", "call stranger.leasehold: the request failed: http request denied");
    let denied = ask(&host, "call/stranger").await;
    is_refused(&denied, "Http", "call stranger.leasehold: the request failed: http request denied");
}

#[tokio::test]
async fn an_error_of_the_handler_is_500_for_the_client_and_a_text_for_the_log() {
    let world = World::real().await;
    let mut host = Host::of(&world, [library(&[])]).await;
    let answer = get(&format!("{}fail", host.url(NAME))).await;
    assert_eq!((answer.status, answer.body.contains("luck")), (500, false), "{answer:?}");
    wait_for("the log has it", SOON, async || host.log().iter().any(|line| line.to_string().contains("no luck today")))
        .await;
    assert_eq!(ask(&host, "status").await[0]["state"], "registered");
    host.event("ready").await;
}

#[tokio::test]
async fn explain_knows_the_asynchronous_lifecycle_of_the_library() {
    let component = paths::component(NAME).display().to_string();
    let folder = tempfile::TempDir::new().unwrap();
    let inspected =
        leasehold_end_to_end::Program::spawn(&paths::leasehold(), ["inspect", &component], folder.path()).ends().await;
    assert_eq!(inspected.code, Some(0), "{inspected:?}");
    assert!(inspected.stdout.contains("lifecycle   started and stopped by the host\n"), "{inspected:?}");
}
