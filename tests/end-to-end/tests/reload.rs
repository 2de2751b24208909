//! Reload: a new version of a component replaces the served version, without a failed request.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, greeter, hostile, plain, service, with},
    follower::{Call, Follower},
    http::{begin, get, post},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A component file that is replaced atomically, as a deployment does.
struct Component {
    folder: TempDir,
}

impl Component {
    fn of(name: &str) -> Self {
        let component = Self { folder: TempDir::with_prefix("leasehold-reload-").expect("a temporary directory") };
        component.becomes(&fs::read(paths::component(name)).expect("it was built"));
        component
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("component.wasm")
    }

    fn becomes(&self, bytes: &[u8]) {
        let fresh = self.folder.path().join("fresh");
        fs::write(&fresh, bytes).expect("the directory is our own");
        fs::rename(&fresh, self.path()).expect("the directory is our own");
    }

    fn becomes_component(&self, name: &str) {
        self.becomes(&fs::read(paths::component(name)).expect("it was built"));
    }

    /// This file as the component of a service.
    fn in_place_of(&self, service: Value) -> Value {
        with(service, json!({ "component": self.path() }))
    }
}

/// Number of requests between two reloads.
const ANSWERS: usize = 50;

async fn host(world: &World, service: Value) -> Host {
    Host::ready(&with(config(world, [service]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

async fn reload(host: &Host, arguments: &[&str]) -> Ended {
    reload_at(&host.admin(), arguments).await
}

async fn reload_at(admin: &str, arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-reload-").expect("a temporary directory");
    let run = ["reload", "--admin", admin].into_iter().chain(arguments.iter().copied());
    Program::spawn(Path::new(&paths::leasehold()), run, folder.path()).ends().await
}

#[tokio::test]
async fn reload_under_load_fails_no_request_and_leaves_the_key_alone() {
    let world = World::real().await;
    let component = Component::of("plain");
    let grpc = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    let services = [component.in_place_of(plain("plain")), grpc];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    let names = ["plain", "grpc-greeter"];
    let [key, grpc_key] = names.map(|name| format!("/{name}/{}", host.addr(name)));
    let before = [world.stands(&key).await, world.stands(&grpc_key).await];
    let mut follower = Follower::of(&world, "plain", Duration::ZERO).await;
    let mut grpc = Follower::of(&world, "grpc-greeter", Duration::ZERO).await;
    [Call::Http1, Call::Http1, Call::Http2, Call::Http2].into_iter().for_each(|call| follower.calls(call));
    [Call::Grpc, Call::Grpc, Call::GrpcStream].into_iter().for_each(|call| grpc.calls(call));
    for (name, answer) in
        [("hostile", "hostile\n"), ("plain-p3", "hello\n"), ("hostile", "hostile\n"), ("plain", "hello\n")]
    {
        component.becomes_component(name);
        let ended = reload(&host, &[]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let expected = format!("~ plain on {}, new component\n1 service stays as it is\n", host.addr("plain"));
        assert_eq!(ended.stdout, expected);
        assert_eq!(get(&host.url("plain")).await.body, answer);
        for follower in [&follower, &grpc] {
            let so_far = follower.answered();
            wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
        }
    }
    for follower in [follower, grpc] {
        let tally = follower.ends().await;
        assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    }
    assert_eq!(before, [world.stands(&key).await, world.stands(&grpc_key).await], "a key was written");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn reload_a_component_that_registers_itself_keeps_its_key() {
    let world = World::real().await;
    let component = Component::of("greeter");
    let mut host = host(&world, component.in_place_of(greeter())).await;
    let key = format!("/greeter/v1/{}", host.addr("greeter"));
    let before = world.stands(&key).await;
    assert_eq!(reload(&host, &["greeter"]).await.code, Some(0));
    // At its end the former version stops all registrations that it finds.
    host.says("the former version has ended").await;
    assert_eq!(world.stands(&key).await, before);
    let whoami = get(&format!("{}whoami", host.url("greeter"))).await.json();
    assert_eq!((&whoami["state"], &whoami["key"]), (&json!("registered"), &json!(key)));
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn reload_registrations_that_the_next_version_lacks_are_deleted() {
    let world = World::real().await;
    let component = Component::of("greeter");
    let start = json!({ "config": { "start": "register" } });
    let host = host(&world, component.in_place_of(with(greeter(), start))).await;
    let addr = host.addr("greeter");
    world.stands(&format!("/greeter/v1/{addr}")).await;
    component.becomes_component("hostile");
    assert_eq!(reload(&host, &[]).await.code, Some(0));
    world.stands(&format!("/greeter/{addr}")).await;
    assert_eq!(world.get(&format!("/greeter/v1/{addr}")).await, None);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn reload_a_version_that_does_not_start_changes_nothing() {
    let world = World::real().await;
    let component = Component::of("greeter");
    let start = json!({ "config": { "start": "register-and-fail" } });
    let host = host(&world, component.in_place_of(with(greeter(), start))).await;
    let key = format!("/greeter/v1/{}", host.addr("greeter"));
    let before = world.stands(&key).await;
    let path = component.path().display().to_string();
    component.becomes(b"not a component");
    for (name, why) in [
        (None, format!("{path}: not WebAssembly")),
        (Some("plain"), format!("{path}: the component does not import leasehold:registry/registrar")),
        (Some("hostile"), "greeter: lifecycle.start failed: other: told to fail".to_owned()),
    ] {
        name.iter().for_each(|name| component.becomes_component(name));
        let ended = reload(&host, &["greeter"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains(&format!("is not reloaded: {why}")), "{ended:?}");
        assert_eq!(ended.stderr, "leasehold: 1 of 1 services are not reloaded\n");
        assert_eq!(get(&host.url("greeter")).await.body, "hello\n");
        assert_eq!(world.stands(&key).await, before);
        wait_for("nothing else stays registered", SOON, async || world.count().await == 1).await;
    }
    component.becomes_component("greeter");
    assert_eq!(reload(&host, &["greeter"]).await.code, Some(0));
    assert_eq!(world.stands(&key).await, before);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn reload_completes_requests_of_the_former_version() {
    let world = World::real().await;
    let component = Component::of("hostile");
    let host = host(&world, component.in_place_of(with(hostile("hostile"), json!({ "register": "host" })))).await;
    let slow = begin(&format!("{}act/slow", host.url("hostile"))).await;
    component.becomes_component("plain");
    assert_eq!(reload(&host, &[]).await.code, Some(0));
    assert_eq!(get(&host.url("hostile")).await.body, "hello\n");
    assert_eq!(slow.answer().await.expect("it was in flight").json()["text"], "slow");
    assert_eq!(host.stop().await.code, Some(0));
}

/// Number of concurrent requests of the service.
const BUSY: usize = 8;

#[tokio::test]
async fn reload_of_a_service_that_is_full_delays_requests_and_fails_none() {
    let world = World::real().await;
    let component = Component::of("hostile");
    // A request takes two seconds; a request that waited for an instance of the former version would be late.
    let full = json!({
        "register": "host",
        "limits": { "concurrency": BUSY, "request_timeout": "3s" },
        "health": { "path": "/", "fall": 1000 },
    });
    let host = host(&world, component.in_place_of(with(hostile("hostile"), full))).await;
    let slow = format!("{}act/slow", host.url("hostile"));
    let call = || {
        let slow = slow.clone();
        tokio::spawn(async move { get(&slow).await })
    };
    let metrics = format!("{}metrics", host.admin());
    let within = async |most: usize| {
        let sample =
            format!("leasehold_requests_in_flight{{service=\"hostile\",listen=\"{}\"}} {most}", host.addr("hostile"));
        let counted =
            async || get(&metrics).await.body.lines().any(|line| line.strip_suffix(".0").unwrap_or(line) == sample);
        wait_for("so many requests are in flight", SOON, counted).await;
    };
    let mut pending: Vec<_> = (0..BUSY).map(|_| call()).collect();
    within(BUSY).await;
    assert_eq!(reload(&host, &[]).await.code, Some(0), "it waits for no request of the former version");
    // The queue is full, including the health check.
    pending.extend((1..BUSY).map(|_| call()));
    for answer in pending {
        let answer = answer.await.expect("it does not panic");
        assert_eq!((answer.status, &answer.json()["text"]), (200, &json!("slow")), "{answer:?}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn reload_that_does_not_end_gives_way_to_a_drain() {
    let world = World::real().await;
    let component = Component::of("greeter");
    // Only the next version knows this act.
    let hanging = json!({ "config": { "start": "sleep" }, "limits": { "start_timeout": "1h" } });
    let mut host = host(&world, component.in_place_of(with(greeter(), hanging))).await;
    let url = host.url("greeter");
    component.becomes_component("hostile");
    let drain = format!("{}drain/greeter", host.admin());
    let drained = async {
        host.says("sleeping").await;
        assert_eq!(get(&url).await.body, "hello\n");
        post(&drain).await
    };
    let admin = drain.trim_end_matches("drain/greeter").to_owned();
    let (ended, drained) = tokio::join!(reload_at(&admin, &["greeter"]), drained);
    assert_eq!(drained.json()[0]["all_answered"], json!(true), "{drained:?}");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.ends_with("is not reloaded: greeter: it is drained\n"), "{ended:?}");
    assert_eq!(world.count().await, 0);
    assert_eq!(host.stop().await.code, Some(0));
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs()
}

#[tokio::test]
async fn reload_that_does_not_end_leaves_the_former_version_monitored() {
    let world = World::real().await;
    let component = Component::of("hostile");
    let (sleep_from, ill_from) = (seconds() + 5, seconds() + 12);
    let hanging = json!({
        "config": { "start": "sleep-late", "sleep_from": sleep_from, "ill_from": ill_from, "ill_until": u64::MAX },
        "register": "host",
        "health": { "path": "/act/tide", "interval": "200ms" },
        "limits": { "start_timeout": "1h" },
    });
    let mut host = host(&world, component.in_place_of(with(hostile("hostile"), hanging))).await;
    let key = format!("/hostile/{}", host.addr("hostile"));
    let admin = host.admin();
    wait_for("a version that starts now sleeps", SOON, async || seconds() >= sleep_from).await;
    let reloading = tokio::spawn(async move { reload_at(&admin, &["hostile"]).await });
    host.says("sleeping").await;
    world.stands(&key).await;
    host.says("withdrawn: its health check fails").await;
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert!(!reloading.is_finished());
    assert_eq!(host.stop().await.code, Some(0));
    reloading.await.expect("it does not panic");
}

#[tokio::test]
async fn reload_a_host_that_watches_follows_the_file() {
    let world = World::real().await;
    let component = Component::of("plain");
    let mut host = Host::spawn(&config(&world, [component.in_place_of(plain("plain"))]), &["--watch"]);
    host.event("ready").await;
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    component.becomes(b"half of a compon");
    host.says("not reloaded, the former version serves on").await;
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    component.becomes_component("hostile");
    host.event("reloaded").await;
    assert_eq!(get(&host.url("plain")).await.body, "hostile\n");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn reload_by_sighup_is_one_of_every_service_and_ends_none() {
    let world = World::real().await;
    let (one, other) = (Component::of("plain"), Component::of("plain"));
    let services = [one.in_place_of(plain("one")), other.in_place_of(plain("other"))];
    let mut host = Host::ready(&config(&world, services)).await;
    let keys = ["one", "other"].map(|name| format!("/{name}/{}", host.addr(name)));
    let before = [world.stands(&keys[0]).await, world.stands(&keys[1]).await];
    one.becomes_component("hostile");
    other.becomes_component("plain-p3");
    // Those that are sent by habit, and would end a process that does not listen.
    for signal in ["USR1", "HUP"] {
        host.signal(signal);
    }
    host.says("the configuration is reloaded").await;
    assert_eq!(get(&host.url("one")).await.body, "hostile\n");
    assert_eq!(get(&host.url("other")).await.body, "hello\n");
    one.becomes(b"not a component");
    host.signal("HUP");
    let is_refused = |line: &Value| {
        line["service"] == "one" && line["message"].as_str().is_some_and(|said| said.starts_with("SIGHUP: "))
    };
    wait_for("the failure is logged", SOON, async || host.log().iter().any(is_refused)).await;
    let log = host.log();
    let said = log.iter().find(|line| is_refused(line)).expect("it is logged");
    assert!(said["message"].as_str().is_some_and(|said| said.ends_with("component.wasm: not WebAssembly")), "{said}");
    assert_eq!(get(&host.url("one")).await.body, "hostile\n");
    assert_eq!(before, [world.stands(&keys[0]).await, world.stands(&keys[1]).await], "a key was written");
    assert_eq!(host.stop().await.code, Some(0));
}
