//! Rules of calls by name (`registry.calls`): further tries and their budget, ejection, hedging, limits and deadlines.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, hostile, with},
    http::{ask, get},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

/// Reaction of a node to each request.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Responds with this status after that time.
    Responds(u16, Duration),
    /// Breaks the connection off.
    Breaks,
}

const GOOD: Behaviour = Behaviour::Responds(200, Duration::ZERO);
const BAD: Behaviour = Behaviour::Responds(503, Duration::ZERO);

/// A node of the service `user`, whose response has its status and the deadline that the request brought.
struct Node {
    addr: String,
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    async fn start(world: &World, behaviour: Behaviour) -> Self {
        Self::of_version(world, "", behaviour).await
    }

    async fn of_version(world: &World, version: &str, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, behaviour, counted.clone()));
            }
        });
        let value = json!({ "name": "user", "addr": addr, "version": version, "weight": "100" });
        let version = if version.is_empty() { String::new() } else { format!("{version}/") };
        world.put(&format!("/user/{version}{addr}"), &value.to_string(), 0).await;
        Self { addr, requests, task: serving.abort_handle() }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, behaviour: Behaviour, requests: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut deadline = String::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if let Some(value) = line.strip_prefix("x-leasehold-deadline: ") {
                    value.trim().clone_into(&mut deadline);
                }
                if line == "\r\n" {
                    break;
                }
            } else {
                return;
            }
        }
        requests.fetch_add(1, Ordering::Relaxed);
        let Behaviour::Responds(status, after) = behaviour else { return };
        sleep(after).await;
        let body = format!("{status} {deadline}");
        let length = body.len();
        let response = format!("HTTP/1.1 {status} Any\r\ncontent-length: {length}\r\n\r\n{body}");
        if stream.get_mut().write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A host whose component calls `user` under a rule.
async fn caller(world: &World, rule: Value) -> Host {
    let caller = with(hostile("caller"), json!({ "allow": { "discover": ["user"] } }));
    let registry = json!({ "registry": { "calls": [rule] }, "admin": { "listen": "127.0.0.1:0" } });
    Host::ready(&with(config(world, [caller]), registry)).await
}

/// Case and text of a call to `user`.
async fn call(host: &Host) -> (String, String) {
    let response = get(&format!("{}call/user.leasehold", host.url("caller"))).await;
    assert_eq!(response.status, 200, "{response:?}");
    let response = response.json();
    (response["case"].as_str().unwrap().to_owned(), response["text"].as_str().unwrap().to_owned())
}

/// Number of calls by the beginning of their text: the status.
async fn statuses(host: &Host, calls: usize) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for _ in 0..calls {
        let (_, text) = call(host).await;
        *times.entry(text.split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    times
}

/// The metric of calls to `user`.
async fn counted(host: &Host, event: &str) -> usize {
    let page = get(&format!("{}metrics", host.admin())).await.body;
    let line = page.lines().find(|line| {
        line.starts_with("leasehold_calls_total{")
            && line.contains(&format!("event=\"{event}\""))
            && line.contains("target=\"user\"")
    });
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse::<f64>().unwrap() as usize
}

#[tokio::test]
async fn a_failed_read_is_sent_to_another_node_and_the_failing_node_is_ejected() {
    let world = World::real().await;
    let (bad, good) = (Node::start(&world, BAD).await, Node::start(&world, GOOD).await);
    let broken = Node::start(&world, Behaviour::Breaks).await;
    let host = caller(&world, json!({ "retries": 2 })).await;
    assert_eq!(statuses(&host, 40).await, HashMap::from([("200".to_owned(), 40)]));
    assert!((1..=5).contains(&bad.requests()), "{}", bad.requests());
    assert!(broken.requests() >= 1, "{} was not picked", broken.addr);
    assert_eq!(good.requests(), 40);
    assert_eq!(counted(&host, "succeeded").await, 40);
    assert!(counted(&host, "retried").await >= 2);
}

#[tokio::test]
async fn a_call_without_retries_gets_the_response_of_the_node() {
    let world = World::real().await;
    let _nodes = (Node::start(&world, BAD).await, Node::start(&world, GOOD).await);
    let host = caller(&world, json!({ "retries": 0, "eject_after": 0 })).await;
    let statuses = statuses(&host, 20).await;
    assert!(statuses["503"] >= 8 && statuses["200"] >= 8, "{statuses:?}");
    assert_eq!(counted(&host, "retried").await, 0);
}

#[tokio::test]
async fn a_service_that_fails_as_a_whole_gets_a_fifth_more_calls_at_most() {
    let world = World::real().await;
    let nodes = [Node::start(&world, BAD).await, Node::start(&world, BAD).await, Node::start(&world, BAD).await];
    let host = caller(&world, json!({ "retries": 2 })).await;
    const CALLS: usize = 200;
    assert_eq!(statuses(&host, CALLS).await, HashMap::from([("503".to_owned(), CALLS)]));
    let sent: usize = nodes.iter().map(Node::requests).sum();
    // Ten more are in reserve.
    assert!((CALLS + 10..=CALLS * 6 / 5 + 10).contains(&sent), "{sent}");
    assert_eq!(counted(&host, "failed").await, CALLS);
    assert!(counted(&host, "budget_spent").await > 0);
}

#[tokio::test]
async fn a_slow_node_costs_a_try_and_a_hedged_call_nearly_nothing() {
    let slow = Behaviour::Responds(200, Duration::from_secs(5));
    for (rule, limit) in [
        (json!({ "try_timeout": "300ms", "timeout": "3s" }), Duration::from_millis(1500)),
        (json!({ "hedge_after": "100ms" }), Duration::from_millis(1000)),
    ] {
        let world = World::real().await;
        let (slow, good) = (Node::start(&world, slow).await, Node::start(&world, GOOD).await);
        let host = caller(&world, rule).await;
        for _ in 0..6 {
            let begun = Instant::now();
            let (case, text) = call(&host).await;
            assert_eq!(case, "ok", "{text}");
            assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
        }
        assert!(slow.requests() >= 1 && good.requests() == 6, "{} {}", slow.requests(), good.requests());
    }
}

#[tokio::test]
async fn calls_in_flight_are_limited() {
    let world = World::real().await;
    let node = Node::start(&world, Behaviour::Responds(200, Duration::from_secs(2))).await;
    let host = Arc::new(caller(&world, json!({ "in_flight": 2 })).await);
    let mut calls = JoinSet::new();
    for _ in 0..2 {
        let host = host.clone();
        calls.spawn(async move { call(&host).await });
    }
    wait_for("two calls are in flight", SOON, async || node.requests() == 2).await;
    let (case, text) = call(&host).await;
    assert!(case == "failed" && text.contains("ConnectionLimitReached"), "{text}");
    for (case, text) in calls.join_all().await {
        assert_eq!(case, "ok", "{text}");
    }
    assert_eq!(counted(&host, "refused").await, 1);
}

#[tokio::test]
async fn the_time_that_is_left_is_passed_on() {
    let world = World::real().await;
    let _node = Node::start(&world, GOOD).await;
    let host = caller(&world, json!({ "timeout": "4s" })).await;
    let left = async |headers: &[(&str, &str)]| {
        let response = ask("GET", &format!("{}call/user.leasehold", host.url("caller")), headers).await.json();
        response["text"].as_str().unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let all = left(&[]).await;
    assert!((3000..=4000).contains(&all), "{all} ms are left of the rule's 4 s");
    let callers = left(&[("x-leasehold-deadline", "1500")]).await;
    assert!((500..=1500).contains(&callers), "{callers} ms are left of the caller's 1.5 s");
}

#[tokio::test]
async fn a_host_does_not_work_longer_than_its_caller_waits() {
    let world = World::real().await;
    let _node = Node::start(&world, Behaviour::Responds(200, Duration::from_secs(10))).await;
    let host = caller(&world, json!({})).await;
    let begun = Instant::now();
    let url = format!("{}call/user.leasehold", host.url("caller"));
    let response = ask("GET", &url, &[("x-leasehold-deadline", "300")]).await;
    assert_eq!(response.status, 504, "{response:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_version_gets_its_share_of_the_calls() {
    let world = World::real().await;
    let [v1, v2] = [Node::of_version(&world, "v1", GOOD).await, Node::of_version(&world, "v2", GOOD).await];
    let split = json!([{ "version": "v2", "share": "20%" }]);
    let host = caller(&world, json!({ "split": split })).await;
    const CALLS: usize = 500;
    assert_eq!(statuses(&host, CALLS).await, HashMap::from([("200".to_owned(), CALLS)]));
    assert_eq!(v1.requests() + v2.requests(), CALLS);
    // Five standard deviations.
    assert!((55..=145).contains(&v2.requests()), "{}", v2.requests());
}

#[tokio::test]
async fn a_reload_changes_the_rules_without_a_failed_call() {
    let world = World::real().await;
    let [v1, v2] = [Node::of_version(&world, "v1", GOOD).await, Node::of_version(&world, "v2", GOOD).await];
    let host = caller(&world, json!({ "split": [{ "version": "v2", "share": "100%" }] })).await;
    assert_eq!(statuses(&host, 20).await, HashMap::from([("200".to_owned(), 20)]));
    assert_eq!((v1.requests(), v2.requests()), (0, 20));
    let written: Value = serde_json::from_str(&fs::read_to_string(host.file()).unwrap()).unwrap();
    let changed =
        with(written, json!({ "registry": { "calls": [{ "split": [{ "version": "v1", "share": "100%" }] }] } }));
    fs::write(host.file(), changed.to_string()).unwrap();
    host.signal("HUP");
    wait_for("the calls go to the other version", SOON, async || {
        let (case, text) = call(&host).await;
        assert_eq!(case, "ok", "{text}");
        v1.requests() > 0
    })
    .await;
    let before = v2.requests();
    assert_eq!(statuses(&host, 20).await, HashMap::from([("200".to_owned(), 20)]));
    assert_eq!(v2.requests(), before);
}

#[tokio::test]
async fn calls_to_a_version_that_no_node_has_say_so() {
    let world = World::real().await;
    let v1 = Node::of_version(&world, "v1", GOOD).await;
    let host = caller(&world, json!({ "split": [{ "version": "v3", "share": "100%" }] })).await;
    let (case, text) = call(&host).await;
    assert!(case == "failed" && text.contains("no node is registered as user in version v3"), "{text}");
    assert_eq!(v1.requests(), 0);
}

#[tokio::test]
async fn a_client_in_a_hurry_ejects_no_node() {
    let world = World::real().await;
    let slow = Behaviour::Responds(200, Duration::from_millis(300));
    let nodes = [Node::start(&world, slow).await, Node::start(&world, slow).await];
    let host = caller(&world, json!({})).await;
    let url = format!("{}call/user.leasehold", host.url("caller"));
    for _ in 0..6 {
        let response = ask("GET", &url, &[("x-leasehold-deadline", "100")]).await;
        assert!(response.status == 504 || response.json()["case"] == "failed", "{response:?}");
    }
    // Requests that were given up may have yet to arrive.
    sleep(Duration::from_millis(500)).await;
    let before = nodes.each_ref().map(Node::requests);
    assert_eq!(statuses(&host, 4).await, HashMap::from([("200".to_owned(), 4)]));
    let after = nodes.each_ref().map(Node::requests);
    assert_eq!([after[0] - before[0], after[1] - before[1]], [2, 2], "both take calls");
}

#[tokio::test]
async fn explain_shows_the_nodes_of_a_call_and_why_others_are_left_out() {
    let world = World::real().await;
    let put = async |version: &str, port: u16, scheme: &str| {
        let endpoints = [format!("{scheme}://127.0.0.1:{port}")];
        let node = json!({ "id": port.to_string(), "name": "user", "version": version, "metadata": { "zone": "a" }, "endpoints": endpoints });
        world.put(&format!("/microservices/user/{port}"), &node.to_string(), 0).await;
    };
    put("v1", 1, "http").await;
    put("v1", 2, "http").await;
    put("v2", 3, "http").await;
    put("v1", 4, "https").await;
    let caller = with(hostile("caller"), json!({ "allow": { "discover": ["user"] } }));
    let split = json!([{ "version": "v2", "share": "10%" }, { "version": "v3", "share": "2%" }]);
    let registry = json!({ "registry": { "layout": "kratos", "calls": [{ "service": "user", "split": split }] } });
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("services.yaml");
    fs::write(&path, with(config(&world, [caller]), registry).to_string()).unwrap();
    let explain = async |url: &str, more: &[&str]| {
        let arguments = [&["explain", path.to_str().unwrap(), "--call", url], more].concat();
        Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await
    };
    let text = explain("http://user.leasehold/x", &[]).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    for expected in [
        "caller calls user in plain text (retries: 1, retry_budget: 20%)",
        "10 % go to v2",
        "2 % go to v3; no node has it, so these calls fail",
        "127.0.0.1:1  v1          100  44.0 %",
        "127.0.0.1:3  v2          100  10.0 %",
        "it uses TLS, which registry.calls.tls permits",
    ] {
        assert!(text.stdout.contains(expected), "{expected}: {}", text.stdout);
    }
    let rows: Value = serde_json::from_str(&explain("http://v2.user.leasehold/", &["--json"]).await.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!((&rows[0]["addr"], &rows[0]["share"]), (&json!("127.0.0.1:3"), &json!(100.0)));
    let denied = explain("http://order.leasehold/", &[]).await;
    assert_eq!(denied.code, Some(64), "{denied:?}");
    assert!(denied.stderr.contains("caller may not call order.leasehold"), "{}", denied.stderr);
    let unknown = explain("http://user.leasehold/", &["--from", "shop"]).await;
    assert!(unknown.stderr.contains("--from: the configuration has no service \"shop\""), "{}", unknown.stderr);
}
