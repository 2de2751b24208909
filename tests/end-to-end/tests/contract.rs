//! The versions of the contract: components of 0.1 and 0.2 in one host, look-ups by plain and by asynchronous functions, and
//! watches.

use std::{
    collections::HashMap,
    fs, iter,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, greeter, service, with},
    http::get,
    lines::Lines,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Watches that a component may have open.
const MAX_WATCHES: usize = 256;
/// Asynchronous calls that a component may have in progress.
const MAX_CALLS: usize = 256;

/// A component of 0.2 that may look up these names: `lookup` by plain functions, `lookup-p3` by asynchronous ones.
fn lookup(component: &str, names: &[&str]) -> Value {
    with(service(component, component), json!({ "allow": { "discover": names } }))
}

/// Puts a node of the layout `seed` that no host keeps.
async fn put_node(world: &World, name: &str, addr: &str, weight: u32) {
    let value = json!({ "name": name, "addr": addr, "version": "", "weight": weight.to_string() });
    world.put(&format!("/{name}/{addr}"), &value.to_string(), 0).await;
}

async fn leasehold(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-contract-").unwrap();
    Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await
}

async fn ask(host: &Host, service: &str, path: &str) -> Value {
    let answer = get(&format!("{}{path}", host.url(service))).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

/// Begins a request of `lookup-p3` whose body has this length.
async fn open(host: &Host, path: &str, length: usize) -> Lines {
    Lines::open(&host.addr("lookup-p3"), path, length).await
}

/// Reads the end of the watch, which may come after a last state.
async fn ends(mut lines: Lines) {
    while let Some(line) = lines.next().await {
        if line == "end" {
            assert_eq!(lines.next().await, None);
            return;
        }
    }
    panic!("the response broke off");
}

#[test]
fn a_published_contract_is_frozen() {
    let contract = fs::read(paths::workspace().join("wit/0.1/registry.wit")).unwrap();
    let digest = format!("{:x}", Sha256::digest(contract));
    assert_eq!(
        digest, "f31b1a9c75f01204ab47b09a89e56da61860ada8070fe5e04a4acb6f96bab6d1",
        "components are built for it: a change belongs into a later version"
    );
}

#[tokio::test]
async fn components_of_both_versions_register_in_one_host() {
    let world = World::real().await;
    let services = [greeter(), lookup("lookup", &["greeter"]), lookup("lookup-p3", &["greeter"])];
    let host = Host::of(&world, services).await;
    let key = |version: &str, name: &str| format!("/{name}/{version}/{}", host.addr(name));
    for key in [key("v1", "greeter"), key("v2", "lookup"), key("v3", "lookup-p3")] {
        assert!(world.get(&key).await.is_some_and(|found| found.lease != 0), "{key}");
    }
    let described = ask(&host, "lookup", "describe").await;
    let expected = json!([{
        "key": key("v2", "lookup"),
        "addr": host.addr("lookup"),
        "weight": 40,
        "metadata": [["zone", "a"]],
        "state": "State::Registered",
        // The layout has no place for it.
        "publishes_metadata": false,
    }]);
    assert_eq!(described, expected);
    for name in ["lookup", "lookup-p3"] {
        assert_eq!(ask(&host, name, "resolve/greeter").await, json!([host.addr("greeter")]), "{name}");
        assert_eq!(ask(&host, name, "weight/77").await[0]["weight"], 77, "{name}");
        assert!(ask(&host, name, "weight/0").await["error"].as_str().unwrap().contains("InvalidArgument"), "{name}");
    }
    for component in ["lookup", "lookup-p3"] {
        let component = paths::component(component).display().to_string();
        let check = leasehold(&["wit", "--check", &component]).await;
        assert_eq!(check.code, Some(0), "{check:?}");
        assert!(check.stdout.contains("served   leasehold:registry 0.2.0; the host has 0.1 and 0.2\n"), "{check:?}");
        let inspect = leasehold(&["inspect", &component]).await;
        assert!(inspect.stdout.contains("lifecycle   started and stopped by the host\n"), "{inspect:?}");
    }
    let keys = [key("v1", "greeter"), key("v2", "lookup"), key("v3", "lookup-p3")];
    assert_eq!(host.stop().await.code, Some(0));
    for key in keys {
        assert!(world.get(&key).await.is_none(), "{key}");
    }
}

#[tokio::test]
async fn a_component_that_was_built_before_keeps_working() {
    let world = World::real().await;
    let file = paths::workspace().join("tests/guests/frozen/greeter-0.1.wasm");
    let built = with(greeter(), json!({ "component": file }));
    let host = Host::ready(&with(config(&world, [built]), json!({ "admin": { "listen": free_address() } }))).await;
    let key = format!("/greeter/v1/{}", host.addr("greeter"));
    let written = world.stands(&key).await.created;
    assert!(get(&host.url("greeter")).await.body.contains("hello"));
    let admin = host.admin();
    let reloaded = leasehold(&["reload", "greeter", "--admin", &admin]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(world.get(&key).await.unwrap().created, written);
    let drained = leasehold(&["drain", "greeter", "--admin", &admin]).await;
    assert_eq!((drained.code, world.count().await), (Some(0), 0));
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn metadata_is_described_as_published_where_a_layout_has_a_place_for_it() {
    let world = World::real().await;
    let registry = json!({ "registry": { "layout": ["seed", "kratos"] } });
    let host = Host::ready(&with(config(&world, [lookup("lookup", &[])]), registry)).await;
    assert_eq!(ask(&host, "lookup", "describe").await[0]["publishes_metadata"], true);
}

#[tokio::test]
async fn picks_are_spread_over_the_nodes_by_their_weights() {
    let world = World::real().await;
    for (addr, weight) in [("10.0.0.1:80", 60), ("10.0.0.2:80", 30), ("10.0.0.3:80", 10)] {
        put_node(&world, "shop", addr, weight).await;
    }
    let host = Host::of(&world, [lookup("lookup", &["shop", "none"]), lookup("lookup-p3", &["shop", "none"])]).await;
    let picks = ask(&host, "lookup", "pick/200/shop").await;
    let mut times = HashMap::new();
    picks.as_array().unwrap().iter().for_each(|addr| *times.entry(addr.as_str().unwrap()).or_insert(0_i32) += 1);
    for (addr, share) in [("10.0.0.1:80", 120), ("10.0.0.2:80", 60), ("10.0.0.3:80", 20)] {
        assert!((times[addr] - share).abs() <= 3, "{times:?}");
    }
    // Every request has an instance of its own; the schedule belongs to the component.
    let mut times = HashMap::new();
    for _ in 0..20 {
        let addr = ask(&host, "lookup-p3", "pick/shop").await;
        *times.entry(addr.as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert!((11..=13).contains(&times["10.0.0.1:80"]) && times.len() == 3, "{times:?}");
    assert_eq!(ask(&host, "lookup", "pick/1/none").await, json!([null]));
    assert_eq!(ask(&host, "lookup-p3", "pick/none").await, Value::Null);
}

#[tokio::test]
async fn names_that_a_component_may_not_look_up_are_denied_in_every_function() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    let host = Host::of(&world, [lookup("lookup", &["other"]), lookup("lookup-p3", &["other"])]).await;
    let calls = [
        ("lookup", "resolve/shop"),
        ("lookup", "pick/1/shop"),
        ("lookup-p3", "resolve/shop"),
        ("lookup-p3", "pick/shop"),
        ("lookup-p3", "watch/shop"),
    ];
    for (service, path) in calls {
        let error = ask(&host, service, path).await["error"].as_str().unwrap().to_owned();
        assert!(error.contains("AccessDenied") && error.contains("name is not in"), "{path}: {error}");
    }
    let long = format!("watch/{}", "x".repeat(254));
    let error = ask(&host, "lookup-p3", &long).await["error"].as_str().unwrap().to_owned();
    assert!(error.contains("InvalidArgument"), "{error}");
}

#[tokio::test]
async fn a_call_that_a_component_leaves_behind_is_ended_by_the_host() {
    let world = World::real().await;
    let left = json!({ "config": { "name": "lookup-p3", "leave": "yes" }, "listen": free_address() });
    let services = [with(lookup("lookup-p3", &[]), left)];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": free_address() } }))).await;
    let key = format!("/lookup-p3/v3/{}", host.addr("lookup-p3"));
    let written = world.stands(&key).await.created;
    let (admin, begun) = (host.admin(), Instant::now());
    for command in iter::repeat_n("reload", 10).chain(["drain"]) {
        let ended = leasehold(&[command, "lookup-p3", "--admin", &admin]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let stands = world.get(&key).await.map(|standing| standing.created);
        assert_eq!(stands, (command == "reload").then_some(written), "{command}");
    }
    assert!(begun.elapsed() < SOON, "nothing waited for it: {:?}", begun.elapsed());
    // Nothing brings it back.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.count().await, 0);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_watch_sees_a_node_come_change_and_go() {
    let world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let mut watch = open(&host, "watch/shop", 0).await;
    assert_eq!(watch.next().await, Some(json!({ "nodes": [], "total": 0, "current": true })));
    put_node(&world, "shop", "10.0.0.1:80", 50).await;
    let state = watch.next().await.unwrap();
    assert_eq!(state, json!({ "nodes": [["10.0.0.1:80", 50]], "total": 1, "current": true }));
    put_node(&world, "shop", "10.0.0.1:80", 20).await;
    assert_eq!(watch.next().await.unwrap()["nodes"], json!([["10.0.0.1:80", 20]]));
    world.delete("/shop/10.0.0.1:80").await;
    assert_eq!(watch.next().await.unwrap()["nodes"], json!([]));
}

#[tokio::test]
async fn a_watch_follows_services_of_other_hosts_to_their_end() {
    let world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["greeter"])]).await;
    let mut watch = open(&host, "watch/greeter", 0).await;
    assert_eq!(watch.next().await.unwrap()["total"], 0);
    let other = Host::of(&world, [greeter()]).await;
    let addr = other.addr("greeter");
    watch.until("it comes", |state| state["nodes"][0][0] == *addr).await;
    assert_eq!(other.stop().await.code, Some(0));
    watch.until("it goes", |state| state["total"] == 0).await;
}

#[tokio::test]
async fn a_slow_reader_reads_the_latest_state_once() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let mut steps = open(&host, "step/shop", 100).await;
    steps.step().await;
    assert_eq!(steps.next().await.unwrap()["nodes"], json!([["10.0.0.1:80", 1]]));
    for weight in 2..=60 {
        put_node(&world, "shop", "10.0.0.1:80", weight).await;
    }
    // The host has read the last of them.
    wait_for("the view is at 60", SOON, async || {
        let mut other = open(&host, "watch/shop", 0).await;
        other.next().await.unwrap()["nodes"][0][1] == 60
    })
    .await;
    steps.step().await;
    assert_eq!(steps.next().await.unwrap()["nodes"], json!([["10.0.0.1:80", 60]]), "none in between");
    steps.step().await;
    let unchanged = timeout(Duration::from_millis(500), steps.next()).await;
    assert!(unchanged.is_err(), "the same state comes once: {unchanged:?}");
    put_node(&world, "shop", "10.0.0.1:80", 61).await;
    assert_eq!(steps.next().await.unwrap()["nodes"], json!([["10.0.0.1:80", 61]]));
}

#[tokio::test]
async fn a_snapshot_has_no_more_nodes_than_the_limit() {
    let world = World::real().await;
    for number in 1..=7 {
        put_node(&world, "shop", &format!("10.0.0.{number}:80"), 1).await;
    }
    let limited = with(lookup("lookup-p3", &["shop"]), json!({ "limits": { "nodes": 3 } }));
    let host = Host::of(&world, [limited]).await;
    let state = open(&host, "watch/shop", 0).await.next().await.unwrap();
    assert_eq!((state["nodes"].as_array().unwrap().len(), &state["total"]), (3, &json!(7)), "{state}");
}

#[tokio::test]
async fn watches_are_limited_in_number_and_given_back() {
    let world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let hoard = format!("hoard/{}/shop", MAX_WATCHES + 1);
    let opened = open(&host, "watch/shop", 0).await;
    let report = ask(&host, "lookup-p3", &hoard).await;
    assert_eq!(report["open"], MAX_WATCHES - 1, "all instances together: {report}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("QuotaExceeded") && error.contains("may watch 256 services"), "{error}");
    drop(opened);
    assert_eq!(ask(&host, "lookup-p3", &hoard).await["open"], MAX_WATCHES - 1, "those that it closed are given back");
    // The component notices that its client has left when it writes further states.
    let mut weight = 1;
    wait_for("all are given back", SOON, async || {
        weight = weight % 100 + 1;
        put_node(&world, "shop", "10.0.0.1:80", weight).await;
        ask(&host, "lookup-p3", &hoard).await["open"] == MAX_WATCHES
    })
    .await;
}

#[tokio::test]
async fn an_instance_goes_on_while_a_call_waits_and_calls_are_limited_in_number() {
    let world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["late", "later"])]).await;
    let World::Real(etcd) = &world else { unreachable!("it is real") };
    etcd.pause();
    let busy = ask(&host, "lookup-p3", "busy/late").await;
    assert!(busy["ticks"].as_u64() > Some(20), "{busy}");
    let error = busy["found"]["error"].as_str().unwrap();
    assert!(error.contains("Unavailable") || error.contains("Timeout"), "{error}");
    let crowd = ask(&host, "lookup-p3", &format!("crowd/{}/later", MAX_CALLS + 44)).await;
    assert_eq!(crowd["refused"], 44, "{crowd}");
    assert!(crowd["error"].as_str().unwrap().contains("256 asynchronous calls"), "{crowd}");
    etcd.resume();
    wait_for("etcd is read", SOON, async || ask(&host, "lookup-p3", "resolve/late").await == json!([])).await;
}

#[tokio::test]
async fn a_watch_outlives_etcd_and_says_so() {
    let mut world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 50).await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let mut watch = open(&host, "watch/shop", 0).await;
    let nodes = json!([["10.0.0.1:80", 50]]);
    assert_eq!(watch.next().await.unwrap()["nodes"], nodes);
    world.kill();
    let state = watch.until("etcd is away", |state| state["current"] == false).await;
    assert_eq!(state["nodes"], nodes, "the last known nodes");
    world.restart(true).await;
    let state = watch.until("etcd is back", |state| state["current"] == true).await;
    assert_eq!(state["nodes"], nodes);
    put_node(&world, "shop", "10.0.0.1:80", 20).await;
    watch.until("it is watched", |state| state["nodes"][0][1] == 20).await;
}

#[tokio::test]
async fn a_drain_ends_watches_and_waits_for_no_deadline() {
    let world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let mut watch = open(&host, "watch/shop", 0).await;
    assert_eq!(watch.next().await.unwrap()["total"], 0);
    let begun = Instant::now();
    let (ended, ()) = tokio::join!(host.stop(), ends(watch));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "the drain timeout is 30 s");
    assert!(!ended.stderr.contains("cut off"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_drain_without_etcd_ends_watches_as_well() {
    let mut world = World::real().await;
    let host = Host::of(&world, [lookup("lookup-p3", &["shop"])]).await;
    let mut watch = open(&host, "watch/shop", 0).await;
    assert_eq!(watch.next().await.unwrap()["total"], 0);
    world.kill();
    let (ended, ()) = tokio::join!(host.stop(), ends(watch));
    assert!(!ended.stderr.contains("requests were cut off"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_reload_ends_watches_of_the_former_version_and_the_next_one_opens_its_own() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let mut host = Host::ready(&with(config(&world, [lookup("lookup-p3", &["shop"])]), admin)).await;
    let mut watch = open(&host, "watch/shop", 0).await;
    assert_eq!(watch.next().await.unwrap()["total"], 0);
    let reload = leasehold(&["reload", "--admin", &host.admin(), "lookup-p3"]).await;
    assert_eq!(reload.code, Some(0), "{reload:?}");
    ends(watch).await;
    host.says("the former version has ended").await;
    let mut watch = open(&host, "watch/shop", 0).await;
    assert_eq!(watch.next().await.unwrap()["total"], 0);
    put_node(&world, "shop", "10.0.0.1:80", 50).await;
    watch.until("it is watched", |state| state["total"] == 1).await;
}
