//! Health: an unhealthy service leaves etcd, is probed, and returns.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, endpoint, free_address, greeter, hostile, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::sleep};

/// Number of failed requests in a row after which a component is withdrawn.
const FAILURES: usize = 5;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A service with a health check that is unhealthy between two points in time.
fn tidal(from: u64, until: u64, limits: &Value) -> Value {
    let changes = json!({
        "register": "host",
        "health": { "path": "/act/tide", "interval": "200ms", "rise": 2, "fall": 2 },
        "config": { "ill_from": from, "ill_until": until },
        "limits": limits,
    });
    with(hostile("hostile"), changes)
}

async fn host(world: &World, service: Value) -> Host {
    Host::ready(&with(config(world, [service]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

async fn readyz(host: &Host) -> String {
    get(&format!("{}readyz", host.admin())).await.body
}

#[tokio::test]
async fn health_an_unhealthy_service_is_withdrawn_and_restored() {
    let world = World::real().await;
    let (from, until) = (now() + 10, now() + 16);
    let mut host = host(&world, tidal(from, until, &json!({}))).await;
    let key = format!("/hostile/{}", host.addr("hostile"));
    world.stands(&key).await;
    host.says("withdrawn: its health check fails: the service failed").await;
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert!(now() >= from);
    assert_eq!(get(&host.url("hostile")).await.status, 200, "a withdrawn service still responds");
    assert_eq!(
        readyz(&host).await,
        "not ready\nhostile: it is withdrawn: its health check fails: the service failed\n"
    );
    host.event("announced").await;
    world.stands(&key).await;
    assert!(now() >= until);
    assert_eq!(readyz(&host).await, "ready\n");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn health_the_example_of_the_page_works_with_the_example_component() {
    let world = World::real().await;
    let page = fs::read_to_string(paths::workspace().join("docs/health.md")).expect("the page is there");
    let block = page.split("```yaml\n").nth(1).expect("it has an example");
    let (greeter, _) = block.split_once("  - name: ledger").expect("it has two services");
    let (addr, component) = (free_address(), paths::component("greeter"));
    let text = format!(
        "etcd: {{ endpoints: [{}] }}\n{greeter}    component: {}\n    listen: {addr}\n",
        endpoint(&world),
        component.display()
    );
    let folder = TempDir::with_prefix("leasehold-health-").expect("a temporary directory");
    let file = folder.path().join("services.yaml");
    fs::write(&file, text).expect("the directory is our own");
    let mut host = Program::spawn(&paths::leasehold(), [Path::new("run"), &file], folder.path());
    host.line("ready", |line| line.contains("ready")).await;
    world.stands(&format!("/greeter/{addr}")).await;
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
}

#[tokio::test]
async fn health_a_failed_check_says_what_it_got() {
    let world = World::real().await;
    let health = json!({ "health": { "path": "/healthz" }, "limits": { "start_timeout": "2s" } });
    let mut host = host(&world, with(greeter(), health)).await;
    let why = "its health check has not passed yet: /healthz answers 404 Not Found";
    host.says(&format!("not announced: {why}")).await;
    assert_eq!(readyz(&host).await, format!("not ready\ngreeter: it is withdrawn: {why}\n"));
    let optional = get(&format!("{}readyz?etcd=optional", host.admin())).await;
    assert_eq!(optional.status, 503, "it is not etcd that is away");
    let status = get(&format!("{}status/greeter", host.admin())).await.json();
    assert_eq!(status["services"][0]["why"], format!("it is withdrawn: {why}"));
    assert_eq!(get(&format!("{}readyz?etcd=maybe", host.admin())).await.status, 400);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_a_service_is_announced_when_it_is_healthy() {
    let world = World::real().await;
    let until = now() + 4;
    let host = host(&world, tidal(0, until, &json!({}))).await;
    assert!(now() >= until, "the host was ready before its service");
    world.stands(&format!("/hostile/{}", host.addr("hostile"))).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_a_host_waits_for_a_service_with_a_bound() {
    let world = World::real().await;
    let mut host = host(&world, tidal(0, now() + 8, &json!({ "start_timeout": "1s" }))).await;
    assert_eq!(world.count().await, 0);
    host.event("announced").await;
    assert_eq!(world.count().await, 1);
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn health_a_component_that_registers_itself_is_started_when_it_is_healthy() {
    let world = World::real().await;
    let registers = json!({ "register": "component", "config": { "start": "register" } });
    let until = now() + 4;
    let patient = host(&world, with(tidal(0, until, &json!({})), registers.clone())).await;
    assert!(now() >= until, "the host was ready before its service");
    world.stands(&format!("/hostile/{}", patient.addr("hostile"))).await;
    assert_eq!(patient.stop().await.code, Some(0));

    let late = tidal(0, now() + 8, &json!({ "start_timeout": "1s" }));
    let mut hasty = host(&world, with(late, registers)).await;
    assert_eq!(world.count().await, 0);
    let why = "it is withdrawn: its health check has not passed yet";
    let said = readyz(&hasty).await;
    assert!(said.starts_with(&format!("not ready\nhostile: {why}: ")), "{said}");
    hasty.event("announced").await;
    assert_eq!((world.count().await, readyz(&hasty).await.as_str()), (1, "ready\n"));
    assert_eq!(hasty.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn health_a_failed_late_start_is_tried_again() {
    let world = World::real().await;
    let changes = json!({ "register": "component", "config": { "start": "register-and-fail" } });
    let late = tidal(0, now() + 4, &json!({ "start_timeout": "1s" }));
    let mut host = host(&world, with(late, changes)).await;
    host.says("not started yet: hostile: lifecycle.start failed: other: told to fail").await;
    wait_for("it is tried again", SOON, async || {
        host.log()
            .iter()
            .filter(|line| line["message"].as_str().is_some_and(|said| said.starts_with("not started")))
            .count()
            >= 2
    })
    .await;
    wait_for("what it registered is undone", SOON, async || world.count().await == 0).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_a_component_that_fails_most_requests_is_quarantined() {
    let world = World::real().await;
    let changes = json!({ "config": { "start": "register" }, "health": { "withdraw_on_trap": true } });
    let mut host = host(&world, with(hostile("hostile"), changes)).await;
    let url = host.url("hostile");
    let key = format!("/hostile/{}", host.addr("hostile"));
    let act = async |name: &str| get(&format!("{url}act/{name}")).await;
    let before = world.stands(&key).await;
    assert_eq!(act("current").await.json()["text"], "1 Some(State::Registered)");
    for _ in 0..FAILURES {
        assert_eq!(act("trap").await.status, 500);
    }
    host.says("withdrawn: 5 of its last").await;
    world.key_is(&key, "gone", |found| found.is_none()).await;
    // A second withdrawal in a row would last longer, so its absence is observed.
    let text = act("current").await.json()["text"].clone();
    assert!(text == "1 Some(State::Recovering)" || text == "1 Some(State::Registered)", "{text}");
    host.event("announced").await;
    let after = world.stands(&key).await;
    assert_eq!(before.value, after.value);
    assert_eq!(act("current").await.json()["text"], "1 Some(State::Registered)");
    // The component's own `stop` counts as usual.
    assert_eq!(act("stop-twice").await.json()["text"], "true 0");
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_a_few_failures_are_tolerated() {
    let world = World::real().await;
    let host = host(&world, with(hostile("hostile"), json!({ "register": "host" }))).await;
    let before = world.stands(&format!("/hostile/{}", host.addr("hostile"))).await;
    for _ in 0..2 * FAILURES {
        assert_eq!(get(&host.url("hostile")).await.status, 200);
    }
    for _ in 0..FAILURES {
        assert_eq!(get(&format!("{}act/trap", host.url("hostile"))).await.status, 500);
    }
    // Twice the time in which failures are noticed.
    sleep(Duration::from_secs(1)).await;
    let after = world.stands(&format!("/hostile/{}", host.addr("hostile"))).await;
    assert_eq!(before, after, "it was never away, {SOON:?} or not");
}

#[tokio::test]
async fn health_grpc_services_are_checked_over_grpc() {
    let world = World::real().await;
    let probed = |name: &str, component: &str| {
        let health = json!({ "grpc": true, "interval": "200ms" });
        let changes = json!({ "register": "host", "health": health, "limits": { "start_timeout": "3s" } });
        with(service(name, component), changes)
    };
    let services = [probed("grpc-greeter", "grpc-greeter"), probed("plain", "plain")];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    world.stands(&format!("/grpc-greeter/{}", host.addr("grpc-greeter"))).await;
    assert_eq!(world.count().await, 1, "what does not speak gRPC is not announced");
    let why = "it is withdrawn: its health check has not passed yet";
    let said = readyz(&host).await;
    assert_eq!(said, format!("not ready\nplain: {why}: grpc.health.v1 is not answered as gRPC\n"));
    assert_eq!(host.stop().await.code, Some(0));
}

/// Traps as long as it lives.
fn trap_on(host: &Host) -> JoinHandle<()> {
    let url = format!("{}act/trap", host.url("hostile"));
    tokio::spawn(async move {
        loop {
            assert_eq!(get(&url).await.status, 500);
            sleep(Duration::from_millis(50)).await;
        }
    })
}

#[tokio::test]
async fn health_the_last_node_of_a_service_stays_whatever_fails() {
    let world = World::real().await;
    let mut host = host(&world, with(hostile("hostile"), json!({ "register": "host" }))).await;
    let key = format!("/hostile/{}", host.addr("hostile"));
    let before = world.stands(&key).await;
    let traps = trap_on(&host);
    let said = host.says("not withdrawn, although").await;
    let why = "0 other nodes of hostile stand in etcd, and 1 have to remain (health.panic_threshold is 50%)";
    assert!(said["message"].as_str().unwrap().ends_with(why), "{said}");
    traps.abort();
    assert_eq!(world.stands(&key).await, before);
    assert_eq!(readyz(&host).await, "ready\n");
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    assert!(metrics.contains("kind=\"too_few_nodes\"} 1"), "{metrics}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn health_of_hosts_that_fail_alike_most_remain() {
    let world = World::real().await;
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(host(&world, with(hostile("hostile"), json!({ "register": "host" }))).await);
    }
    assert_eq!(world.count().await, 3);
    let traps: Vec<_> = hosts.iter().map(trap_on).collect();
    let says = |start: &str| {
        let says = |line: &Value| line["message"].as_str().is_some_and(|said| said.starts_with(start));
        hosts.iter().filter(|host| host.log().iter().any(says)).count()
    };
    let mut least = 3;
    // Of three, one may leave, and the others find that out.
    wait_for("one was withdrawn, and two were not", SOON, async || {
        least = least.min(world.count().await);
        says("withdrawn: ") >= 1 && says("not withdrawn, although") >= 2
    })
    .await;
    for _ in 0..20 {
        least = least.min(world.count().await);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(least, 2);
    traps.iter().for_each(JoinHandle::abort);
    for host in hosts {
        assert_eq!(host.stop().await.code, Some(0));
    }
}
