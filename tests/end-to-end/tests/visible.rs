//! Visible: running services are in etcd, byte for byte, under a live lease, and are served at their address.

use std::{net::TcpListener, time::Duration};

use leasehold_end_to_end::{
    Host, Program,
    config::{TTL, WEIGHT, config, endpoint, greeter, hostile, plain, service, with},
    http::{BOTH, get, get_over},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

/// The value of a key at the configured weight.
fn value(name: &str, addr: &str, version: &str) -> String {
    format!(r#"{{"name":"{name}","addr":"{addr}","version":"{version}","weight":"{WEIGHT}"}}"#)
}

async fn granted_ttl(world: &World, lease: i64) -> i64 {
    world.client().await.lease_time_to_live(lease, None).await.unwrap().granted_ttl()
}

#[tokio::test]
async fn visible_key_and_value_byte_for_byte_under_the_requested_ttl() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter()]).await;
    let addr = host.addr("greeter");
    let found = world.get(&format!("/greeter/v1/{addr}")).await.unwrap();
    assert_eq!(found.value, value("greeter", &addr, "v1"));
    assert_eq!(granted_ttl(&world, found.lease).await, 10);
    assert_eq!(world.count().await, 1);
}

#[tokio::test]
async fn visible_over_both_protocols_on_one_port() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter()]).await;
    let (url, addr) = (host.url("greeter"), host.addr("greeter"));
    for protocol in BOTH {
        let answer = get_over(protocol, &url).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello\n"));
        let who = get_over(protocol, &format!("{url}whoami")).await.unwrap().json();
        assert_eq!(who["key"], format!("/greeter/v1/{addr}"));
        assert_eq!(who["name"], "greeter");
        assert_eq!(who["addr"], addr);
        assert_eq!(who["version"], "v1");
        assert_eq!(who["weight"], WEIGHT);
        assert_eq!(who["state"], "registered");
        assert_eq!(who["recoveries"], 0);
        assert!((1..=10_000).contains(&who["ttl_remaining_ms"].as_u64().unwrap()), "{who}");
        assert_eq!(get_over(protocol, &format!("{url}elsewhere")).await.unwrap().status, 404);
    }
}

#[tokio::test]
async fn visible_at_the_advertised_address() {
    let world = World::real().await;
    let elsewhere = with(greeter(), json!({ "advertise": "greeter.example:80" }));
    let _host = Host::of(&world, [elsewhere]).await;
    let found = world.get("/greeter/v1/greeter.example:80").await.unwrap();
    assert_eq!(found.value, value("greeter", "greeter.example:80", "v1"));
}

#[tokio::test]
async fn visible_still_after_three_ttls_on_the_same_lease() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain")]).await;
    let key = format!("/plain/{}", host.addr("plain"));
    let before = world.get(&key).await.unwrap();
    assert_eq!(granted_ttl(&world, before.lease).await, i64::try_from(TTL).unwrap());
    sleep(Duration::from_secs(3 * TTL + 1)).await; // The key must stay meanwhile.
    assert_eq!(world.get(&key).await.unwrap(), before);
}

#[tokio::test]
async fn visible_two_services_in_one_host() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter(), plain("other")]).await;
    for (name, key, body) in [("greeter", "/greeter/v1/", "hello\n"), ("other", "/other/", "hello\n")] {
        let addr = host.addr(name);
        assert!(world.get(&format!("{key}{addr}")).await.is_some());
        assert_eq!(get(&host.url(name)).await.body, body);
    }
    assert_eq!(world.count().await, 2);
    // A component sees its own registrations only.
    assert_eq!(get(&format!("{}whoami", host.url("greeter"))).await.json()["name"], "greeter");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn visible_by_the_host_for_a_component_without_the_registry() {
    let world = World::real().await;
    let v3 = with(service("plain-p3", "plain-p3"), json!({ "register": "host", "version": "v3" }));
    let host = Host::of(&world, [plain("plain"), v3]).await;
    for (name, prefix, version) in [("plain", "/plain/", ""), ("plain-p3", "/plain-p3/v3/", "v3")] {
        let addr = host.addr(name);
        let found = world.get(&format!("{prefix}{addr}")).await.unwrap();
        assert_eq!(found.value, value(name, &addr, version));
        for protocol in BOTH {
            let answer = get_over(protocol, &host.url(name)).await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "hello\n"));
        }
    }
}

#[tokio::test]
async fn visible_nowhere_when_registration_is_off() {
    let world = World::real().await;
    let off = with(plain("plain"), json!({ "register": "off" }));
    let host = Host::of(&world, [off]).await;
    assert_eq!(get(&host.url("plain")).await.status, 200);
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn visible_once_when_a_component_registers_twice() {
    let world = World::real().await;
    let host = Host::of(&world, [hostile("hostile")]).await;
    let answer = get(&format!("{}act/twice", host.url("hostile"))).await.json();
    assert_eq!((&answer["case"], &answer["text"]), (&json!("ok"), &json!("1 true 42")));
    assert_eq!(world.count().await, 1);
    let key = format!("/hostile/{}", host.addr("hostile"));
    world.key_is(&key, "at its own weight", |found| found.is_some_and(|found| found.value.contains("\"42\""))).await;
}

#[tokio::test]
async fn visible_once_etcd_is_there() {
    let mut world = World::real().await;
    let endpoint = endpoint(&world);
    world.kill();
    let mut host = Host::spawn(&config(&world, [greeter()]), &[]);
    let waits = host.says("waiting for etcd").await;
    assert!(waits["message"].as_str().unwrap().contains(&endpoint), "{waits}");
    world.restart(true).await;
    host.event("ready").await;
    world.stands(&format!("/greeter/v1/{}", host.addr("greeter"))).await;
}

#[tokio::test]
async fn visible_again_after_etcd_restarted_with_its_data() {
    visible_again_after_a_restart(true).await;
}

#[tokio::test]
async fn visible_again_after_etcd_restarted_without_its_data() {
    visible_again_after_a_restart(false).await;
}

async fn visible_again_after_a_restart(keep_data: bool) {
    let mut world = World::real().await;
    let host = Host::of(&world, [greeter(), plain("plain")]).await;
    let keys = [format!("/greeter/v1/{}", host.addr("greeter")), format!("/plain/{}", host.addr("plain"))];
    world.kill();
    // The service is served nevertheless.
    assert_eq!(get(&host.url("greeter")).await.status, 200);
    world.restart(keep_data).await;
    for key in &keys {
        world.stands(key).await;
    }
    wait_for("both are registered", SOON, async || {
        get(&format!("{}whoami", host.url("greeter"))).await.json()["state"] == "registered"
    })
    .await;
    // On a renewed lease: the keys outlive any earlier lease.
    sleep(Duration::from_secs(TTL + 1)).await;
    assert!(world.get(&keys[1]).await.is_some_and(|found| found.lease != 0));
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn visible_and_gone_in_an_embedder() {
    let world = World::real().await;
    let component = paths::component("greeter").display().to_string();
    let addr = "127.0.0.1:10002";
    let key = format!("/greeter/v1/{addr}");
    visible_and_gone("embed", [component, endpoint(&world), addr.to_owned()], &world, &key).await;
}

#[tokio::test]
async fn visible_and_gone_in_a_plain_service() {
    let world = World::real().await;
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let key = format!("/user/{addr}");
    visible_and_gone("native", [endpoint(&world), "user".to_owned(), addr], &world, &key).await;
}

/// The example that the documentation of the plugin prints: it registers the greeter, and takes it back.
#[tokio::test]
async fn visible_and_gone_as_the_documentation_prints_it() {
    let world = World::real().await;
    let greeter = paths::component("greeter");
    let workspace = greeter.ancestors().nth(3).unwrap();
    let mut example = tokio::process::Command::new(paths::example("minimal"));
    let ended = example.arg(endpoint(&world)).current_dir(workspace).output();
    let ended = tokio::time::timeout(3 * SOON, ended).await.unwrap().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

/// An example that registers until SIGTERM.
async fn visible_and_gone(example: &str, arguments: [String; 3], world: &World, key: &str) {
    let folder = TempDir::new().unwrap();
    let mut program = Program::spawn(&paths::example(example), arguments, folder.path());
    program.line("its key", |line| line.contains(key) && line.contains("registered")).await;
    let found: Value = serde_json::from_str(&world.stands(key).await.value).unwrap();
    assert!(key.ends_with(found["addr"].as_str().unwrap()), "{found}");
    program.signal("TERM");
    let ended = program.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(world.get(key).await, None);
    assert!(world.leases().await.is_empty());
}
