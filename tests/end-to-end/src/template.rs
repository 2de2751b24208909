//! Services of `leasehold new`, in any language: one table of expectations for all.

use std::{path::PathBuf, time::Duration};

use leasehold_scenarios::{wait_for, world::World};
use serde_json::{Value, json};

use crate::{
    Ended, Host, Program,
    config::{config, free_address, with},
    http::get,
    paths,
};

/// Longest start of a host whose components are compiled first, which takes seconds for an interpreter.
const START: Duration = Duration::from_secs(300);
/// Weight that every template registers with.
const WEIGHT: u32 = 50;

/// A built service of one template.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The service's name.
    pub name: String,
    /// Name of the language, which is published as metadata.
    pub language: String,
    /// The component.
    pub component: PathBuf,
}

impl Guest {
    /// Configuration of the service, which may call these others.
    fn service(&self, all: &[Self]) -> Value {
        let names: Vec<_> = all.iter().map(|guest| &guest.name).collect();
        json!({
            "name": self.name,
            "component": self.component,
            "listen": free_address(),
            "allow": { "names": [self.name], "discover": names },
        })
    }

    /// Key in etcd.
    fn key(&self, host: &Host) -> String {
        format!("/{}/v1/{}", self.name, host.addr(&self.name))
    }
}

/// Starts the services in one host with its own compile cache, and waits until all are ready.
pub async fn start(world: &World, guests: &[Guest], cache: &str) -> Host {
    let services = guests.iter().map(|guest| guest.service(guests));
    let config = with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    let host = Host::spawn_with(&config, &[], &[("XDG_CACHE_HOME", cache)]);
    wait_for("the host is ready", START, async || host.log().iter().any(|line| line["event"] == "ready")).await;
    host
}

/// Holds the services against the expectations, in one host, and ends it.
///
/// # Panics
/// At the first that is not met.
pub async fn meets_expectations(world: &World, guests: &[Guest], cache: &str) {
    let host = start(world, guests, cache).await;
    for guest in guests {
        is_registered(world, &host, guest).await;
        serves(&host, guest, guests).await;
    }
    for guest in guests {
        is_drained_and_resumed(world, &host, guest, guests).await;
    }
    let keys: Vec<_> = guests.iter().map(|guest| guest.key(&host)).collect();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (guest, key) in guests.iter().zip(keys) {
        assert_eq!(world.get(&key).await, None, "{}: the key is left after SIGTERM", guest.language);
        assert!(has_said(&ended, &guest.name, "stopped"), "{}: stop was not called: {ended:?}", guest.language);
    }
}

/// The key and its value stand in etcd, and the component's log line names the key.
async fn is_registered(world: &World, host: &Host, guest: &Guest) {
    let key = guest.key(host);
    let found = world.stands(&key).await;
    let node: Value = serde_json::from_str(&found.value).expect("a value of this layout is JSON");
    let expected =
        json!({ "name": guest.name, "addr": host.addr(&guest.name), "version": "v1", "weight": WEIGHT.to_string() });
    assert_eq!(node, expected, "{}", guest.language);
    let line = format!("registered as {key}");
    assert!(
        host.log().iter().any(|entry| entry.to_string().contains(&line)),
        "{}: the log has no line {line:?}: {:?}",
        guest.language,
        host.log()
    );
}

/// The greeting, the status, the nodes, the calls by name, and the errors.
async fn serves(host: &Host, guest: &Guest, all: &[Guest]) {
    let (language, url) = (&guest.language, host.url(&guest.name));
    let answer = get(&url).await;
    assert_eq!((answer.status, answer.body), (200, format!("hello from {}\n", guest.name)), "{language}");

    let answer = get(&format!("{url}status")).await;
    assert_eq!(answer.status, 200, "{language}: {answer:?}");
    let expected = json!({
        "key": guest.key(host),
        "addr": host.addr(&guest.name),
        "version": "v1",
        "weight": WEIGHT,
        "state": "registered",
        "metadata": [["language", language]],
    });
    assert_eq!(answer.json(), expected, "{language}");

    for other in all {
        let answer = get(&format!("{url}nodes/{}", other.name)).await;
        let expected = json!([{ "addr": host.addr(&other.name), "version": "v1" }]);
        assert_eq!((answer.status, answer.json()), (200, expected), "{language}: nodes of {}", other.name);
        let answer = get(&format!("{url}call/{}", other.name)).await;
        let expected = format!("{0} answered 200: hello from {0}\n", other.name);
        assert_eq!((answer.status, answer.body), (200, expected), "{language}: a call of {}", other.name);
    }
    for (path, expected) in [("call/stranger", 502), ("nodes/stranger", 502), ("nowhere", 404), ("", 200)] {
        let answer = get(&format!("{url}{path}")).await;
        assert_eq!(answer.status, expected, "{language}: /{path}: {answer:?}");
        if path == "nodes/stranger" {
            let reason = ": access denied: name is not in this component's allow.discover\n";
            assert!(answer.body.ends_with(reason), "{language}: {answer:?}");
        }
    }
}

/// A drain takes the key out and calls `stop`; the other services go on; it comes back.
async fn is_drained_and_resumed(world: &World, host: &Host, guest: &Guest, all: &[Guest]) {
    let key = guest.key(host);
    let drained = command(host, "drain", &guest.name).await;
    assert_eq!(drained.code, Some(0), "{}: {drained:?}", guest.language);
    assert_eq!(world.get(&key).await, None, "{}: the key is left after a drain", guest.language);
    for other in all.iter().filter(|other| other.name != guest.name) {
        assert_eq!(get(&host.url(&other.name)).await.status, 200, "{} after a drain of {}", other.name, guest.name);
    }
    let resumed = command(host, "resume", &guest.name).await;
    assert_eq!(resumed.code, Some(0), "{}: {resumed:?}", guest.language);
    world.stands(&key).await;
    let reloaded = command(host, "reload", &guest.name).await;
    assert_eq!(reloaded.code, Some(0), "{}: {reloaded:?}", guest.language);
    assert_eq!(get(&host.url(&guest.name)).await.status, 200, "{} after a reload", guest.language);
}

async fn command(host: &Host, command: &str, service: &str) -> Ended {
    let arguments = [command, service, "--admin", &host.admin()];
    Program::spawn(&paths::leasehold(), arguments, &host.temporary()).ends().await
}

/// Returns true if a log line of the service has this text of the component.
fn has_said(ended: &Ended, service: &str, text: &str) -> bool {
    let lines = ended.stderr.lines().filter(|line| line.contains(text));
    lines.into_iter().any(|line| line.contains(service))
}
