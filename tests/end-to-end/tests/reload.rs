//! Reload: another version of a component takes the place of one that is served, and nobody notices.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, greeter, hostile, plain, with},
    follower::{Call, Follower},
    http::{begin, get},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A component file that is replaced as a deployment does: by another one, at once.
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

/// So many requests are answered between two reloads.
const ANSWERS: usize = 50;

async fn host(world: &World, service: Value) -> Host {
    Host::ready(&with(config(world, [service]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

async fn reload(host: &Host, arguments: &[&str]) -> Ended {
    let (admin, folder) = (host.admin(), TempDir::with_prefix("leasehold-reload-").expect("a temporary directory"));
    let run = ["reload", "--admin", admin.as_str()].into_iter().chain(arguments.iter().copied());
    Program::spawn(Path::new(&paths::leasehold()), run, folder.path()).ends().await
}

#[tokio::test]
async fn reload_under_load_fails_no_request_and_leaves_the_key_alone() {
    let world = World::real().await;
    let component = Component::of("plain");
    let host = host(&world, component.in_place_of(plain("plain"))).await;
    let key = format!("/plain/{}", host.addr("plain"));
    let before = world.stands(&key).await;
    let mut follower = Follower::of(&world, "plain", Duration::ZERO).await;
    for call in [Call::Http1, Call::Http1, Call::Http2, Call::Http2, Call::Grpc] {
        follower.calls(call);
    }
    for (name, answer) in
        [("hostile", "hostile\n"), ("plain-p3", "hello\n"), ("hostile", "hostile\n"), ("plain", "hello\n")]
    {
        component.becomes_component(name);
        let ended = reload(&host, &["plain"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.stdout, format!("plain on {} is reloaded\n", host.addr("plain")));
        assert_eq!(get(&host.url("plain")).await.body, answer);
        let so_far = follower.answered();
        wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
    }
    let tally = follower.ends().await;
    assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    let after = world.stands(&key).await;
    assert_eq!((before.value, before.lease), (after.value, after.lease));
    assert_eq!(before.modified, after.modified, "the key was written");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn reload_what_registers_itself_keeps_its_key() {
    let world = World::real().await;
    let component = Component::of("greeter");
    let mut host = host(&world, component.in_place_of(greeter())).await;
    let key = format!("/greeter/v1/{}", host.addr("greeter"));
    let before = world.stands(&key).await;
    assert_eq!(reload(&host, &[]).await.code, Some(0));
    // The former version takes back, at its end, whatever it finds to be registered.
    host.says("the former version has ended").await;
    assert_eq!(world.stands(&key).await, before);
    let whoami = get(&format!("{}whoami", host.url("greeter"))).await.json();
    assert_eq!((&whoami["state"], &whoami["key"]), (&json!("registered"), &json!(key)));
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn reload_what_the_next_version_does_not_register_leaves() {
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
        assert!(ended.stdout.contains(&format!("goes on as it was: {why}")), "{ended:?}");
        assert_eq!(ended.stderr, "leasehold: 1 of 1 services go on as they were\n");
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
async fn reload_answers_what_was_asked_of_the_former_version() {
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

#[tokio::test]
async fn reload_a_host_that_watches_follows_the_file() {
    let world = World::real().await;
    let component = Component::of("plain");
    let mut host = Host::spawn(&config(&world, [component.in_place_of(plain("plain"))]), &["--watch"]);
    host.says("ready").await;
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    component.becomes(b"half of a compon");
    host.says("not reloaded, the former version serves on").await;
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    component.becomes_component("hostile");
    host.says("reloaded").await;
    assert_eq!(get(&host.url("plain")).await.body, "hostile\n");
    assert_eq!(host.stop().await.code, Some(0));
}
