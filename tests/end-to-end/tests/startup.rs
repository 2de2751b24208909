//! Cheap: a component is compiled once, and a start takes milliseconds. Independent: a slow or failed start does not block other
//! services. `make bench-startup` checks the target on an idle machine.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use leasehold_end_to_end::{
    Ended, Host,
    config::{config, greeter, plain, with},
    http::{get, post},
    large::large,
    paths,
    startup::{measure, median},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// Limit for a start on a loaded machine.
const LENIENT: Duration = Duration::from_secs(1);

/// Services of one component.
const SERVICES: usize = 100;

/// Runs a configuration with its own cache, and waits until it is ready.
async fn ready(config: &Value, cache: &Path) -> Host {
    let cache = cache.to_str().expect("a temporary directory has a plain name");
    let mut host = Host::spawn_with(config, &["-v"], &[("XDG_CACHE_HOME", cache)]);
    host.event("ready").await;
    host
}

#[tokio::test]
async fn cheap_many_services_of_one_component_are_one_compilation_and_the_next_start_is_none() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-cache-").expect("a temporary directory");
    let many = config(&world, (0..SERVICES).map(|index| plain(&format!("plain-{index}"))));
    for (compiled, cached) in [(1, 0), (0, 1)] {
        let mut host = ready(&many, folder.path()).await;
        let loaded = host.says("components are loaded").await;
        assert_eq!((&loaded["compiled"], &loaded["cached"]), (&json!(compiled), &json!(cached)), "{loaded}");
        assert_eq!(get(&host.url("plain-0")).await.body, "hello\n");
        assert_eq!(host.stop().await.code, Some(0));
    }
    let mode = fs::metadata(folder.path().join("leasehold")).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn sandboxed_a_cache_where_others_may_write_is_not_used() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-cache-").expect("a temporary directory");
    let cache = folder.path().join("leasehold");
    fs::create_dir(&cache).expect("the directory is our own");
    fs::set_permissions(&cache, Permissions::from_mode(0o777)).expect("the directory is our own");
    let mut host = ready(&config(&world, [plain("plain")]), folder.path()).await;
    let said = host.says("components are compiled at every start").await["message"].to_string();
    assert!(said.contains("others may write there"), "{said}");
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(fs::read_dir(&cache).expect("it is there").count(), 0, "something was left there");
}

#[expect(clippy::print_stdout, reason = "a figure to look at")]
#[tokio::test]
async fn cheap_from_the_start_of_the_process_to_the_key_in_etcd() {
    let times = measure(&World::real().await, 10).await;
    let median = median(&times);
    println!("process start to key visible: median {median:.1?} of {times:.1?}");
    assert!(median <= LENIENT, "{times:?}");
}

/// Memory that a host may hold beyond what it would hold if another process had compiled its components.
const COMPILED_BYTES: u64 = 48 << 20;

#[expect(clippy::print_stdout, reason = "a figure to look at")]
#[tokio::test]
async fn independent_a_component_that_takes_long_to_compile_holds_up_no_other_and_its_memory_is_given_back() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-large-").expect("a temporary directory");
    let file = folder.path().join("large.wasm");
    fs::write(&file, large("plain")).expect("the directory is our own");
    let cache = folder.path().join("cache");
    let variables = [("XDG_CACHE_HOME", cache.to_str().expect("a temporary directory has a plain name"))];
    ready(&config(&world, [greeter()]), &cache).await.stop().await;

    let slow = with(plain("slow"), json!({ "component": file }));
    let both = with(config(&world, [slow, greeter()]), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    let mut host = Host::spawn_with(&both, &[], &variables);
    host.event("serving").await;
    assert_eq!(get(&host.url("greeter")).await.body, "hello\n");
    world.stands(&format!("/greeter/v1/{}", host.addr("greeter"))).await;
    let readyz = get(&format!("{}readyz", host.admin())).await;
    assert_eq!(
        (readyz.status, readyz.body.as_str()),
        (503, "not ready\nslow: it is starting: its component is being loaded\n")
    );
    let compiling = host.says(&format!("compiling {}, ", file.display())).await;
    assert!(compiling["message"].as_str().is_some_and(|said| said.ends_with(" MB")), "{compiling}");
    host.says(&format!("compiled {} in ", file.display())).await;
    host.event("ready").await;
    assert_eq!(get(&host.url("slow")).await.body, "hello\n");
    let compiled = host.resident_bytes();
    assert_eq!(host.stop().await.code, Some(0));

    let mut host = Host::spawn_with(&both, &[], &variables);
    host.event("ready").await;
    assert_eq!((get(&host.url("slow")).await.status, get(&host.url("greeter")).await.status), (200, 200));
    let cached = host.resident_bytes();
    println!("resident after a compilation: {} MiB; without one: {} MiB", compiled >> 20, cached >> 20);
    assert!(compiled < cached + COMPILED_BYTES, "{compiled} bytes after a compilation, {cached} without one");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn independent_a_compilation_ends_with_its_host() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-large-").expect("a temporary directory");
    let file = folder.path().join("large.wasm");
    fs::write(&file, large("plain")).expect("the directory is our own");
    let cache = folder.path().join("cache");
    let variables = [("XDG_CACHE_HOME", cache.to_str().expect("a temporary directory has a plain name"))];
    for signal in ["TERM", "KILL"] {
        let slow = with(plain("slow"), json!({ "component": file }));
        let mut host = Host::spawn_with(&config(&world, [slow]), &[], &variables);
        host.says("compiling ").await;
        host.signal(signal);
        // A child that outlived it would hold the stream of its log open.
        let ended = host.ends().await;
        assert_eq!(ended.code, (signal == "TERM").then_some(0), "{ended:?}");
    }
}

/// The same configuration with an admin endpoint.
fn with_admin(world: &World, services: impl IntoIterator<Item = Value>) -> Value {
    with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))
}

/// The value of the one sample of `/metrics` that begins so.
async fn sample(admin: &str, series: &str) -> f64 {
    let page = get(&format!("{admin}metrics")).await.body;
    let line = page.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in:\n{page}"));
    line.rsplit_once(' ').expect("a sample has a value").1.parse().expect("a sample is a number")
}

#[tokio::test]
async fn independent_of_a_thousand_services_one_whose_port_is_in_use_is_reported_and_tried_again() {
    let world = World::real().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let addr = taken.local_addr().expect("it listens").to_string();
    let mut services: Vec<_> = (1..1000).map(|index| plain(&format!("plain-{index}"))).collect();
    services.insert(500, with(plain("late"), json!({ "listen": addr })));
    let mut host = Host::spawn(&with_admin(&world, services), &[]);
    let ready = host.event("ready").await;
    assert_eq!((&ready["message"], &ready["services"]), (&json!("the host is ready, without late"), &json!(999)));
    let admin = host.admin();
    let why = format!("cannot listen on {addr}: Address already in use (os error 98); attempts so far: ");
    let readyz = get(&format!("{admin}readyz")).await;
    let (said, attempts) = readyz.body.split_at(readyz.body.len() - 2);
    assert_eq!((readyz.status, said), (503, format!("not ready\nlate: it does not start: {why}").as_str()));
    assert!(attempts.trim().parse::<u32>().is_ok_and(|attempts| attempts >= 1), "{attempts}");
    let services = get(&format!("{admin}services")).await.json();
    let row = &services[500];
    assert_eq!(
        (&row["service"], &row["phase"], &row["readiness"]),
        (&json!("late"), &json!("failed"), &json!("not ready"))
    );
    assert!(row["why"].as_str().is_some_and(|said| said.contains(&why)), "{row}");
    let labels = format!("{{service=\"late\",listen=\"{addr}\"");
    assert_eq!(sample(&admin, &format!("leasehold_service_phase{labels},phase=\"failed\"}}")).await, 1.0);
    assert!(sample(&admin, &format!("leasehold_start_failures_total{labels}}}")).await >= 1.0);
    let said = host.says("not started: cannot listen on ").await;
    assert_eq!((&said["level"], &said["service"]), (&json!("ERROR"), &json!("late")));
    assert_eq!(world.count().await, 999);

    drop(taken);
    wait_for("it is started after all", SOON, async || get(&format!("{admin}readyz")).await.status == 200).await;
    assert_eq!(get(&format!("http://{addr}/")).await.body, "hello\n");
    assert_eq!(sample(&admin, &format!("leasehold_service_phase{labels},phase=\"serving\"}}")).await, 1.0);
    assert_eq!(world.count().await, 1000);
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn independent_a_service_that_does_not_start_is_reloaded_and_drained_like_any_other() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-late-").expect("a temporary directory");
    let file = folder.path().join("late.wasm");
    let late = |name: &str| with(plain(name), json!({ "component": file }));
    let mut host = Host::spawn(&with_admin(&world, [plain("plain"), late("late"), late("never")]), &[]);
    host.says("the host is ready, without late, never").await;
    let admin = host.admin();
    let command = async |path: &str| post(&format!("{admin}{path}")).await;
    let reloaded = command("reload/late").await.json();
    assert_eq!(reloaded[0]["reloaded"], false);
    assert_eq!(reloaded[0]["why"], format!("cannot read {}: No such file or directory (os error 2)", file.display()));
    assert_eq!(command("drain/never").await.json()[0]["phase"], "drained");
    fs::copy(paths::component("plain"), &file).expect("the directory is our own");
    let reloaded = command("reload/late").await.json();
    assert_eq!(reloaded[0]["reloaded"], true, "{reloaded}");
    let url = get(&format!("{admin}services")).await.json()[1]["url"].as_str().expect("it has one").to_owned();
    assert_eq!(get(&url).await.body, "hello\n");
    // What was drained stays out.
    assert_eq!(command("reload/never").await.json()[0]["why"], "never: it is drained");
    assert_eq!(get(&format!("{admin}readyz")).await.body, "ready\n");
    assert_eq!(world.count().await, 2);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn independent_where_a_service_is_required_or_none_starts_the_host_ends() {
    let world = World::real().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let addr = taken.local_addr().expect("it listens").to_string();
    let bad = with(plain("bad"), json!({ "listen": addr }));
    let missing = with(plain("missing"), json!({ "component": "/does/not/exist.wasm" }));
    let required = with(bad.clone(), json!({ "required": true }));
    let in_use = format!("bad: cannot listen on {addr}: Address already in use (os error 98)");
    let unread = "cannot read /does/not/exist.wasm: No such file or directory (os error 2)";
    let last = |ended: &Ended| {
        let line: Value = serde_json::from_str(ended.stderr.lines().last().expect("it says why")).expect("JSON");
        line["message"].as_str().expect("a message is text").to_owned()
    };
    for (services, arguments, said, code) in [
        (vec![plain("plain"), required], &[][..], &[in_use.as_str()][..], 1),
        (vec![plain("plain"), bad.clone()], &["--strict"], &[in_use.as_str()], 1),
        (vec![plain("plain"), missing.clone()], &["--strict"], &[unread], 64),
        (vec![bad, missing.clone()], &[], &[in_use.as_str(), unread], 0),
        (vec![missing], &[], &[unread], 64),
    ] {
        let ended = Host::spawn(&config(&world, services), arguments).ends().await;
        assert!(said.contains(&last(&ended).as_str()), "{ended:?}");
        assert!(ended.code == Some(code) || (code == 0 && matches!(ended.code, Some(1 | 64))), "{ended:?}");
        assert_eq!(world.count().await, 0);
    }
}
