//! Gone, and never beyond the TTL: however a host ends, its keys end with it, or with their lease.

use std::time::{Duration, Instant};

use leasehold_end_to_end::{
    Host,
    config::{TTL, greeter, hostile, plain},
    http::{begin, get},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::json;
use tokio::net::TcpStream;

/// Time that an expired key may stay until etcd checks its leases, on a loaded machine.
const EXPIRY: Duration = Duration::from_secs(2);

async fn nothing_is_left(world: &World) {
    assert_eq!(world.count().await, 0);
    wait_for("the leases are revoked", SOON, async || world.leases().await.is_empty()).await;
}

#[tokio::test]
async fn gone_key_and_lease_when_the_component_stops() {
    let world = World::real().await;
    let host = Host::of(&world, [hostile("hostile")]).await;
    let answer = get(&format!("{}act/stop-twice", host.url("hostile"))).await.json();
    assert_eq!((&answer["case"], &answer["text"]), (&json!("ok"), &json!("true 0")));
    nothing_is_left(&world).await;
    for act in ["weight-after-stop", "node-after-stop"] {
        let answer = get(&format!("{}act/{act}", host.url("hostile"))).await.json();
        let case = if act == "weight-after-stop" { "not-registered" } else { "ok" };
        assert_eq!(answer["case"], case, "{act}: {answer}");
        assert_eq!(world.count().await, 0, "{act}");
    }
}

#[tokio::test]
async fn gone_at_sigterm_with_exit_code_0() {
    gone_at("TERM").await;
}

#[tokio::test]
async fn gone_at_the_first_ctrl_c_with_exit_code_0() {
    gone_at("INT").await;
}

async fn gone_at(signal: &str) {
    let world = World::real().await;
    let host = Host::of(&world, [greeter(), plain("plain")]).await;
    assert_eq!(world.count().await, 2);
    host.signal(signal);
    let ended = host.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("WARN"), "{ended:?}");
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

#[tokio::test]
async fn gone_before_the_end_which_a_second_ctrl_c_does_not_wait_for() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain"), hostile("hostile")]).await;
    // A request that would last for the whole drain.
    let stuck = begin(&format!("{}act/sleep", host.url("hostile"))).await;
    host.signal("INT");
    let addr = host.addr("plain");
    wait_for("the listener is closed", SOON, async || TcpStream::connect(&addr).await.is_err()).await;
    assert_eq!(world.count().await, 0);
    let again = Instant::now();
    host.signal("INT");
    assert_eq!(host.ends().await.code, Some(130));
    assert!(again.elapsed() < Duration::from_secs(10), "it took {:?}", again.elapsed());
    assert_eq!(stuck.answer().await, None);
}

#[tokio::test]
async fn never_beyond_the_ttl_when_the_host_is_killed() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain")]).await;
    let key = format!("/plain/{}", host.addr("plain"));
    assert!(world.get(&key).await.is_some());
    host.signal("KILL");
    let ended = host.ends().await;
    assert_eq!(ended.code, None);
    let killed = Instant::now();
    let within = Duration::from_secs(TTL) + EXPIRY;
    wait_for("the key is gone", within, async || world.get(&key).await.is_none()).await;
    assert!(killed.elapsed() <= within);
    nothing_is_left(&world).await;
}
