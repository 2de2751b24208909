//! Calls by name over TLS: names and authorities of nodes, certificates of callers and their rotation.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Host,
    config::{config, hostile, service, with},
    http::get,
};
use leasehold_scenarios::{
    real::{Authority, Pair},
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

/// Certificates of one host, in a folder of their own.
struct Files(TempDir);

impl Files {
    fn new(authority: &Authority, pair: &Pair) -> Self {
        let files = Self(TempDir::new().unwrap());
        fs::write(files.path("ca.pem"), authority.certificate()).unwrap();
        files.write(pair);
        files
    }

    fn write(&self, pair: &Pair) {
        fs::write(self.path("cert.pem"), &pair.certificate).unwrap();
        fs::write(self.path("key.pem"), &pair.key).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As the key `tls` of a service whose clients need a certificate.
    fn listener(&self) -> Value {
        json!({ "cert": self.path("cert.pem"), "key": self.path("key.pem"), "client_ca": self.path("ca.pem") })
    }

    /// As the key `tls` of calls.
    fn calls(&self) -> Value {
        json!({ "ca": self.path("ca.pem"), "cert": self.path("cert.pem"), "key": self.path("key.pem") })
    }
}

/// A host with the service `raw`, which shows its caller.
async fn called(world: &World, files: &Files, layout: &str, allow: Value) -> Host {
    let raw = with(service("raw", "raw"), json!({ "register": "host", "tls": files.listener(), "allow": allow }));
    Host::ready(&with(config(world, [raw]), json!({ "registry": { "layout": layout } }))).await
}

/// A host whose component calls `raw` under this rule.
async fn caller(world: &World, layout: &str, rule: Value) -> Host {
    let caller = with(hostile("caller"), json!({ "allow": { "discover": ["raw"] } }));
    let registry = json!({ "registry": { "layout": layout, "calls": [rule] } });
    Host::ready(&with(config(world, [caller]), registry)).await
}

/// Case and text of a call to `raw`.
async fn call(host: &Host) -> (String, String) {
    let response = get(&format!("{}call/raw.leasehold", host.url("caller"))).await;
    assert_eq!(response.status, 200, "{response:?}");
    let response = response.json();
    (response["case"].as_str().unwrap().to_owned(), response["text"].as_str().unwrap().trim().to_owned())
}

async fn becomes(host: &Host, expected: &str) {
    let mut latest = None;
    wait_for(&format!("the response is {expected}"), SOON, async || {
        let (_, text) = latest.insert(call(host).await);
        text.contains(expected)
    })
    .await;
}

#[tokio::test]
async fn the_called_component_learns_who_calls() {
    let (world, authority) = (World::real().await, Authority::new("mesh"));
    // Nodes of `kratos` say that they use TLS; those of `seed` say nothing.
    for layout in ["kratos", "seed"] {
        let files = Files::new(&authority, &authority.node("raw", &[]));
        let shop = Files::new(&authority, &authority.node("shop", &["spiffe://mesh/shop", "shop.mesh"]));
        let _called = called(&world, &files, layout, json!({})).await;
        let caller = caller(&world, layout, json!({ "service": "raw", "tls": shop.calls() })).await;
        becomes(&caller, "raw spiffe://mesh/shop").await;
    }
}

#[tokio::test]
async fn a_caller_that_the_policy_does_not_list_is_refused() {
    let (world, authority) = (World::real().await, Authority::new("mesh"));
    let files = Files::new(&authority, &authority.node("raw", &[]));
    let _called = called(&world, &files, "seed", json!({ "callers": ["shop.mesh"] })).await;
    let rule = |files: &Files| json!({ "tls": files.calls() });
    let shop = Files::new(&authority, &authority.node("shop", &["shop.mesh"]));
    becomes(&caller(&world, "seed", rule(&shop)).await, "raw").await;
    let other = Files::new(&authority, &authority.node("other", &["other.mesh"]));
    becomes(&caller(&world, "seed", rule(&other)).await, "the caller may not call this service").await;
}

#[tokio::test]
async fn a_node_has_to_have_the_expected_name_and_authority() {
    let (world, authority, stranger) = (World::real().await, Authority::new("mesh"), Authority::new("stranger"));
    let files = Files::new(&authority, &authority.node("raw", &["raw.mesh", "spiffe://mesh/raw"]));
    let _called = called(&world, &files, "kratos", json!({})).await;
    let own = Files::new(&authority, &authority.node("shop", &["spiffe://mesh/shop"]));
    let (wrong, good) = ("ConnectionRefused", "raw spiffe://mesh/shop");
    for (server_name, expected) in [
        (None, good),
        (Some("{name}.mesh"), good),
        (Some("spiffe://mesh/{name}"), good),
        (Some("other.mesh"), wrong),
        (Some("spiffe://mesh/other"), wrong),
    ] {
        let tls = with(own.calls(), json!({ "server_name": server_name }));
        becomes(&caller(&world, "kratos", json!({ "tls": tls })).await, expected).await;
    }
    let foreign = Files::new(&stranger, &authority.node("shop", &[]));
    becomes(&caller(&world, "kratos", json!({ "tls": foreign.calls() })).await, wrong).await;
    let plain = caller(&world, "kratos", json!({})).await;
    becomes(&plain, "1 node there speaks TLS, which this host does not: registry.calls.tls").await;
}

#[tokio::test]
async fn certificates_are_rotated_on_both_sides_without_a_failed_call() {
    const ROTATIONS: usize = 3;
    /// Two looks of a listener at its files, and some time with the new ones.
    const LIFE: Duration = Duration::from_secs(6);
    let (world, authority) = (World::real().await, Authority::new("mesh"));
    let files = Files::new(&authority, &authority.node("raw", &[]));
    let pair = |number: usize| authority.node("shop", &[&format!("spiffe://mesh/shop-{number}")]);
    let shop = Files::new(&authority, &pair(0));
    let _called = called(&world, &files, "kratos", json!({})).await;
    let caller = caller(&world, "kratos", json!({ "tls": shop.calls(), "retries": 0 })).await;
    becomes(&caller, "raw spiffe://mesh/shop-0").await;
    let mut callers = Vec::new();
    for rotation in 1..=ROTATIONS {
        files.write(&authority.node("raw", &[]));
        shop.write(&pair(rotation));
        let until = Instant::now() + LIFE;
        while Instant::now() < until {
            let (case, text) = call(&caller).await;
            assert_eq!(case, "ok", "{text}");
            callers.push(text);
            // Pooled connections are kept for 10 s, and have the former certificate.
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(callers.len() > 100, "{}", callers.len());
    // No call for longer than a connection is kept.
    sleep(Duration::from_secs(11)).await;
    assert_eq!(call(&caller).await.1, format!("raw spiffe://mesh/shop-{ROTATIONS}"));
}
