//! Faults of a real etcd and of the network to it, on registrations of several leases.

use std::time::Duration;

use etcd_client::Client;
use leasehold::{Error, EventKind, Options, Registrar, ServerNode, State, Weight};
use leasehold_scenarios::{
    fleet::{Fleet, options},
    proxy::{Mode, Proxy},
    real::{Etcd, changes, revision},
    wait_for,
    world::SOON,
};
use tokio::time::{Instant, sleep, timeout};

/// The TTL in the options, which etcd grants.
const TTL: Duration = Duration::from_secs(3);
/// Time for a recovery: a renewal interval, and as much again for a loaded machine.
const PROMPT: Duration = Duration::from_secs(2);
/// Delay of etcd in noticing an expired lease: its own tick, and a loaded machine.
const TICK: Duration = Duration::from_secs(3);

#[expect(clippy::print_stdout, reason = "figures are for whoever reads the run")]
fn report(what: &str, took: Duration) {
    println!("{what}: {took:.2?}");
}

fn was_prompt(what: &str, took: Duration) {
    report(what, took);
    assert!(took <= PROMPT, "{what}: took {took:?}");
}

async fn etcd() -> Etcd {
    Box::pin(Etcd::start()).await
}

async fn fleet(etcd: &Etcd) -> Fleet {
    Fleet::start(options([etcd.endpoint()]), etcd.client().await).await
}

async fn fleet_behind_a_proxy(etcd: &Etcd) -> (Fleet, Proxy) {
    let proxy = Proxy::start(&etcd.address()).await;
    let fleet = Fleet::start(options([proxy.endpoint()]), etcd.client().await).await;
    (fleet, proxy)
}

async fn count(client: &mut Client, key: &str) -> i64 {
    client.get(key, None).await.unwrap().count()
}

fn weight(value: u32) -> Weight {
    Weight::try_from(value).unwrap()
}

fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:10002").unwrap()
}

const KEY: &str = "/user/127.0.0.1:10002";

/// Number of leases that share the endpoints: even, so that one endpoint switch per lease would return to the first endpoint.
const INSTANCES: u16 = 4;

#[tokio::test]
async fn kept_by_another_endpoint_when_the_first_falls_silent() {
    let etcd = etcd().await;
    let (silent, other) = (Proxy::start(&etcd.address()).await, Proxy::start(&etcd.address()).await);
    let registrar = Registrar::start(options([silent.endpoint(), other.endpoint()])).unwrap();
    let mut held = Vec::new();
    for port in 1..=INSTANCES {
        held.push(registrar.register(ServerNode::new("user", &format!("127.0.0.1:{port}")).unwrap()).await.unwrap());
    }
    let mut events = registrar.events();
    silent.set(Mode::Blackhole);
    for registration in &held {
        let renewals = registration.status().renewals;
        wait_for("it is renewed", SOON, async || registration.status().renewals >= renewals + 3).await;
    }
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event.kind, EventKind::Recovering), "{event:?}");
    }
    assert!(held.iter().all(|registration| registration.status().state == State::Registered));
}

// Faults of etcd.

#[tokio::test]
async fn no_gap_while_etcd_restarts_within_the_ttl() {
    let mut etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    Box::pin(etcd.restart(true)).await;
    fleet.is_renewed(2).await;
    fleet.stands().await;
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
    fleet.heard_none_of(&[EventKind::Recovering]);
}

#[tokio::test]
async fn no_gap_while_etcd_is_down_longer_than_the_ttl_and_keeps_its_data() {
    let mut etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    etcd.kill();
    fleet.outlasts_its_leases().await;
    Box::pin(etcd.restart(true)).await;
    was_prompt("back after etcd was down longer than the TTL", fleet.stands().await);
    fleet.is_renewed(1).await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn self_healing_after_etcd_was_down_longer_than_the_ttl_and_lost_its_data() {
    let mut etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    etcd.kill();
    fleet.outlasts_its_leases().await;
    Box::pin(etcd.restart(false)).await;
    was_prompt("back after etcd lost its data", fleet.stands().await);
    assert_eq!(etcd.client().await.leases().await.unwrap().leases().len(), 3);
}

#[tokio::test]
async fn self_healing_after_etcd_was_frozen_longer_than_the_ttl() {
    let etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    etcd.pause();
    fleet.registrations[0].set_weight(weight(9)).await.unwrap();
    fleet.outlasts_its_leases().await;
    etcd.resume();
    was_prompt("back after etcd was frozen", fleet.stands().await);
    fleet.is_renewed(2).await;
    fleet.stands().await;
    let mut client = etcd.client().await;
    wait_for("no lease is left over", SOON, async || client.leases().await.unwrap().leases().len() == 3).await;
}

#[tokio::test]
async fn no_gap_while_etcd_is_frozen_within_the_ttl() {
    let etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    fleet.is_renewed(1).await;
    etcd.pause();
    fleet.is(State::Suspect).await;
    etcd.resume();
    fleet.stands().await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn self_healing_after_every_lease_is_revoked_at_once() {
    let etcd = etcd().await;
    let mut fleet = fleet(&etcd).await;
    let mut client = etcd.client().await;
    let mut leases = fleet.leases().await;
    leases.sort_unstable();
    leases.dedup();
    assert_eq!(leases.len(), 3);
    let begun = Instant::now();
    for lease in leases {
        client.lease_revoke(lease).await.unwrap();
    }
    fleet.stands().await;
    was_prompt("back after every lease was revoked", begun.elapsed());
}

// Faults of the network.

#[tokio::test]
async fn no_gap_while_the_network_is_cut_within_the_ttl() {
    let etcd = etcd().await;
    let (mut fleet, proxy) = fleet_behind_a_proxy(&etcd).await;
    fleet.is_renewed(1).await;
    proxy.set(Mode::Cut);
    fleet.is(State::Suspect).await;
    proxy.set(Mode::Pass);
    was_prompt("confirmed after a short cut", fleet.stands().await);
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
}

#[tokio::test]
async fn self_healing_after_the_network_was_cut_longer_than_the_ttl() {
    let etcd = etcd().await;
    let (mut fleet, proxy) = fleet_behind_a_proxy(&etcd).await;
    proxy.set(Mode::Cut);
    fleet.is_gone(TTL + TICK).await;
    proxy.set(Mode::Pass);
    was_prompt("back after a cut", fleet.stands().await);
}

#[tokio::test]
async fn self_healing_after_a_blackhole_longer_than_the_ttl() {
    let etcd = etcd().await;
    let (mut fleet, proxy) = fleet_behind_a_proxy(&etcd).await;
    proxy.set(Mode::Blackhole);
    fleet.is_gone(TTL + TICK).await;
    proxy.set(Mode::Pass);
    was_prompt("back after a blackhole", fleet.stands().await);
}

#[tokio::test]
async fn no_gap_when_a_write_goes_unanswered() {
    let etcd = etcd().await;
    let (mut fleet, proxy) = fleet_behind_a_proxy(&etcd).await;
    let before = fleet.leases().await;
    proxy.set(Mode::HalfOpen);
    // Every lease has a write without a response.
    for registration in &fleet.registrations {
        registration.set_weight(weight(9)).await.unwrap();
    }
    fleet.is(State::Recovering).await;
    // The host's requests still reach etcd, and so do its renewals: the old leases stay alive.
    fleet.outlasts_its_leases().await;
    proxy.set(Mode::Pass);
    was_prompt("on new leases after answers were lost", fleet.stands().await);
    let after = fleet.leases().await;
    assert!(after.iter().all(|lease| !before.contains(lease)), "{before:x?} became {after:x?}");
    fleet.saw_no_delete().await;
    let mut client = etcd.client().await;
    wait_for("leases that nobody heard of run out", SOON, async || client.leases().await.unwrap().leases().len() == 3)
        .await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn no_gap_on_a_slow_network() {
    let etcd = etcd().await;
    let proxy = Proxy::start(&etcd.address()).await;
    proxy.set(Mode::Slow(Duration::from_millis(50)));
    let mut fleet = Fleet::start(options([proxy.endpoint()]), etcd.client().await).await;
    fleet.is_renewed(6).await;
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
    fleet.heard_none_of(&[EventKind::Recovering]);
}

#[tokio::test]
async fn gone_a_held_write_does_not_bring_a_stopped_key_back() {
    let etcd = etcd().await;
    let proxy = Proxy::start(&etcd.address()).await;
    let options = Options { stop_timeout: Duration::from_millis(1500), ..options([proxy.endpoint()]) };
    let registrar = Registrar::start(options).unwrap();
    let mut client = etcd.client().await;
    let registration = registrar.register(user()).await.unwrap();
    let keeper = registrar.register(ServerNode::new("order", "127.0.0.1:1").unwrap()).await.unwrap();
    let since = revision(&mut client).await;
    proxy.set(Mode::Hold);
    registration.set_weight(weight(9)).await.unwrap();
    let timed_out = registration.stop().await.unwrap_err();
    assert!(matches!(timed_out, Error::Timeout { .. }), "{timed_out}");
    proxy.set(Mode::Pass);
    registration.wait_for(|status| status.state == State::Stopped).await.unwrap();
    assert_eq!(count(&mut client, KEY).await, 0);
    let gone = revision(&mut client).await;
    keeper.wait_for(|status| status.state == State::Registered).await.unwrap();
    wait_for("only the keeper's lease is left", SOON, async || client.leases().await.unwrap().leases().len() == 1)
        .await;
    let later = changes(&mut client, gone).await;
    assert!(later.iter().all(|change| change.key != KEY), "{later:?}");
    let all = changes(&mut client, since).await;
    let deletes = all.iter().filter(|change| change.key == KEY && change.is_delete).count();
    assert_eq!(deletes, 1, "{all:?}");
}

#[tokio::test]
async fn gone_a_stop_that_returned_ok_is_final_while_a_write_is_still_held() {
    let etcd = etcd().await;
    let mut client = etcd.client().await;
    for _ in 0..5 {
        let held = Proxy::start(&etcd.address()).await;
        let way = Proxy::start(&etcd.address()).await;
        way.set(Mode::Cut);
        let registrar = Registrar::start(options([held.endpoint(), way.endpoint()])).unwrap();
        let registration = registrar.register(user()).await.unwrap();
        let keeper = registrar.register(ServerNode::new("order", "127.0.0.1:1").unwrap()).await.unwrap();
        let old = client.get(KEY, None).await.unwrap().kvs()[0].lease();
        // The write is held by one proxy, and later requests take the other endpoint.
        held.set(Mode::Hold);
        way.set(Mode::Pass);
        registration.set_weight(weight(9)).await.unwrap();
        registration.wait_for(|status| status.state == State::Recovering).await.unwrap();
        registration.stop().await.unwrap();
        assert_eq!(count(&mut client, KEY).await, 0);
        let live = client.leases().await.unwrap();
        assert!(live.leases().iter().all(|lease| lease.id() != old), "a held write could still land");
        let gone = revision(&mut client).await;
        held.set(Mode::Pass);
        // The held bytes arrive now or never, and bytes without an effect cause no event.
        sleep(Duration::from_millis(300)).await;
        let later = changes(&mut client, gone).await;
        assert!(later.iter().all(|change| change.key != KEY), "{later:?}");
        keeper.stop().await.unwrap();
        registrar.shutdown(SOON).await.unwrap();
    }
}

#[tokio::test]
async fn gone_a_registration_that_failed_while_it_was_held_leaves_nothing() {
    let etcd = etcd().await;
    let proxy = Proxy::start(&etcd.address()).await;
    let options = Options { register_timeout: Duration::from_millis(1500), ..options([proxy.endpoint()]) };
    let registrar = Registrar::start(options).unwrap();
    let keeper = registrar.register(ServerNode::new("order", "127.0.0.1:1").unwrap()).await.unwrap();
    proxy.set(Mode::Hold);
    let error = registrar.register(user()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(error.to_string().contains(&proxy.endpoint()), "{error}");
    proxy.set(Mode::Pass);
    keeper.wait_for(|status| status.state == State::Registered).await.unwrap();
    let mut client = etcd.client().await;
    wait_for("only the keeper's lease and key are left", SOON, async || {
        let leases = client.leases().await.unwrap().leases().len();
        leases == 1 && count(&mut client, KEY).await == 0
    })
    .await;
    // The key is free for the next registration.
    timeout(SOON, registrar.register(user())).await.unwrap().unwrap();
}
