//! TCP flows that die silently: packets of the open connections vanish, new connections work. And bits flipped on the wire.

use std::time::Duration;

use etcd_client::Client;
use leasehold::{EventKind, Options, Registrar, Registration, ServerNode, State, View, Weight};
use leasehold_scenarios::{
    fleet::{Fleet, SERVICES, options},
    proxy::{Mode, Proxy},
    real::Etcd,
    wait_for,
};
use tokio::time::{Instant, sleep, timeout};

/// Extra time for a loaded machine.
const SLACK: Duration = Duration::from_secs(1);
/// Longest delay of a view.
const STALE: Duration = Duration::from_secs(6);
/// Leases of a fleet.
const LEASES: usize = 3;
/// Interval of polls.
const LOOK: Duration = Duration::from_millis(5);

#[expect(clippy::print_stdout, reason = "the run prints figures")]
fn report(what: &str, took: Duration) {
    println!("{what}: {took:.2?}");
}

/// Several proxies in front of one etcd: endpoints whose flows die together.
struct Way(Vec<Proxy>);

impl Way {
    async fn start(etcd: &Etcd, endpoints: usize) -> Self {
        let mut proxies = Vec::new();
        for _ in 0..endpoints {
            proxies.push(Proxy::start(&etcd.address()).await);
        }
        Self(proxies)
    }

    fn options(&self, ttl: u64) -> Options {
        let options = options(self.0.iter().map(Proxy::endpoint));
        Options { ttl: ttl.try_into().unwrap(), ..options }
    }

    fn forget(&self) {
        self.0.iter().for_each(Proxy::forget);
    }

    fn accepted(&self) -> u64 {
        self.0.iter().map(Proxy::accepted).sum()
    }

    /// Has a connection made to each endpoint, which then lies idle.
    async fn dial_each(&self, registrar: &Registrar) {
        let health = registrar.health().await.unwrap();
        assert!(health.endpoints.iter().all(|(_, member)| member.is_ok()), "{health:?}");
    }
}

fn interval(ttl: u64) -> Duration {
    Duration::from_secs(ttl) / 3
}

/// Waits until every lease is renewed so many times; tells when a registration was last seen in any other state than
/// registered, counted from `begun`.
async fn last_unready(fleet: &Fleet, times: u64, begun: Instant, within: Duration) -> Duration {
    let before: Vec<u64> = fleet.registrations.iter().map(|one| one.status().renewals).collect();
    let mut unready = Duration::ZERO;
    let watching = async {
        loop {
            let all = fleet.registrations.iter().map(Registration::status).collect::<Vec<_>>();
            if !all.iter().all(|status| status.state == State::Registered) {
                unready = begun.elapsed();
            } else if all.iter().zip(&before).all(|(status, before)| status.renewals >= before + times) {
                return;
            }
            sleep(LOOK).await;
        }
    };
    let renewed = timeout(within, watching).await;
    assert!(renewed.is_ok(), "not renewed {times} times within {within:?}");
    unready
}

async fn kept_when_flows_die(ttl: u64, endpoints: usize) {
    let etcd = Box::pin(Etcd::start()).await;
    let way = Way::start(&etcd, endpoints).await;
    let mut fleet = Fleet::start(way.options(ttl), etcd.client().await).await;
    way.dial_each(&fleet.registrar).await;
    // The longest silence: the flows die right after a renewal.
    fleet.is_renewed(1).await;
    let before = fleet.leases().await;
    fleet.events();
    let (begun, accepted) = (Instant::now(), way.accepted());
    way.forget();
    let times = if ttl > 10 { 1 } else { 2 };
    let unready = last_unready(&fleet, times, begun, interval(ttl) * (times as u32 + 2) + SLACK).await;
    report(&format!("TTL {ttl} s, {endpoints} endpoints: ready again after"), unready);
    assert!(unready <= interval(ttl) + SLACK, "TTL {ttl} s: ready only after {unready:?}");
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
    fleet.heard_none_of(&[EventKind::Recovering]);
    assert_eq!(fleet.leases().await, before);
    let dialled = way.accepted() - accepted;
    assert!(dialled <= 2 * endpoints as u64, "{dialled} connections were made");
}

#[tokio::test]
async fn no_key_is_lost_when_every_open_flow_dies_silently() {
    tokio::join!(
        kept_when_flows_die(5, 1),
        kept_when_flows_die(5, 3),
        kept_when_flows_die(10, 1),
        kept_when_flows_die(10, 3),
        kept_when_flows_die(30, 1),
        kept_when_flows_die(30, 3),
    );
}

async fn written_again_when_flows_die(ttl: u64, endpoints: usize) {
    let etcd = Box::pin(Etcd::start()).await;
    let way = Way::start(&etcd, endpoints).await;
    let mut fleet = Fleet::start(way.options(ttl), etcd.client().await).await;
    way.dial_each(&fleet.registrar).await;
    fleet.is_renewed(1).await;
    let mut events = fleet.registrar.events();
    let begun = Instant::now();
    way.forget();
    for registration in &fleet.registrations {
        registration.set_weight(Weight::try_from(9).unwrap()).await.unwrap();
    }
    // A write without a response may or may not have been applied, so it costs a lease, but no key. A write that had to wait for
    // another request of its lease goes over a fresh connection, and costs nothing.
    let mut client = etcd.client().await;
    let written = async {
        for registration in &fleet.registrations {
            let key = registration.key().to_string();
            let is_written = async |client: &mut Client| {
                let found = client.get(key.as_str(), None).await.unwrap();
                found.kvs().first().is_some_and(|key| String::from_utf8_lossy(key.value()).contains(r#""weight":"9""#))
            };
            while !is_written(&mut client).await {
                sleep(LOOK).await;
            }
            registration.wait_for(|status| status.state == State::Registered).await.unwrap();
        }
    };
    assert!(timeout(interval(ttl) + SLACK, written).await.is_ok(), "TTL {ttl} s: not every weight is written");
    let (mut lost, mut recovered) = (0, 0);
    while let Ok(event) = events.try_recv() {
        match event.kind {
            EventKind::Recovering => lost += 1,
            EventKind::Recovered => recovered += 1,
            _ => {}
        }
    }
    assert!((1..=LEASES).contains(&lost) && lost == recovered, "TTL {ttl} s: {recovered} of {lost} recovered");
    let unready = begun.elapsed();
    report(&format!("TTL {ttl} s, {endpoints} endpoints, with a write: ready again after"), unready);
    assert!(unready <= interval(ttl) + SLACK, "TTL {ttl} s: ready only after {unready:?}");
    fleet.stands().await;
    fleet.saw_no_delete().await;
    wait_for("the former leases are revoked", STALE, async || client.leases().await.unwrap().leases().len() == LEASES)
        .await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn no_gap_when_a_flow_dies_under_a_write() {
    tokio::join!(
        written_again_when_flows_die(5, 1),
        written_again_when_flows_die(5, 3),
        written_again_when_flows_die(10, 1),
        written_again_when_flows_die(30, 3),
    );
}

async fn view(registrar: &Registrar) -> View {
    let view = registrar.watch(&SERVICES[0].parse().unwrap(), &"".parse().unwrap()).await.unwrap();
    view.ready().await.unwrap();
    view
}

#[tokio::test]
async fn a_view_is_behind_for_at_most_six_seconds_when_its_flow_dies_silently() {
    let etcd = Box::pin(Etcd::start()).await;
    let follows = async |endpoints: usize| {
        let way = Way::start(&etcd, endpoints).await;
        let registrar = Registrar::start(way.options(10)).unwrap();
        way.dial_each(&registrar).await;
        let name = SERVICES[0];
        let view = view(&registrar).await;
        // The longest silence: the flow dies right after a sign of life.
        wait_for("a sign of life", STALE, async || view.age().unwrap() > Duration::from_secs(1)).await;
        wait_for("a sign of life", STALE, async || view.age().unwrap() < Duration::from_millis(100)).await;
        let begun = Instant::now();
        way.forget();
        let node = ServerNode::new(name, &format!("127.0.0.1:{endpoints}")).unwrap();
        let other = Registrar::start(options([etcd.endpoint()])).unwrap();
        let _registered = other.register(node.clone()).await.unwrap();
        let has_it = async || view.nodes().iter().any(|found| found.addr == node.addr);
        wait_for("the view has the node", 3 * STALE, has_it).await;
        let behind = begun.elapsed();
        report(&format!("{endpoints} endpoints: the view was behind for"), behind);
        assert!(behind <= STALE, "{behind:?}");
    };
    tokio::join!(follows(1), follows(3));
}

async fn kept_after_flipped_bits(ttl: u64) {
    let etcd = Box::pin(Etcd::start()).await;
    let way = Way::start(&etcd, 1).await;
    let fleet = Fleet::start(way.options(ttl), etcd.client().await).await;
    let mut worst = Duration::ZERO;
    for _ in 0..ROUNDS {
        fleet.is_renewed(1).await;
        way.0[0].set(Mode::Flip(2));
        for (number, registration) in fleet.registrations.iter().enumerate() {
            registration.set_weight(Weight::try_from(number as u32 + 1).unwrap()).await.unwrap();
        }
        sleep(interval(ttl)).await;
        way.0[0].set(Mode::Pass);
        let begun = Instant::now();
        let unready = last_unready(&fleet, 1, begun, interval(ttl) * 3 + SLACK).await;
        worst = worst.max(unready);
    }
    report(&format!("TTL {ttl} s, flipped bits: ready again after"), worst);
    assert!(worst <= interval(ttl) + SLACK, "TTL {ttl} s: ready only {worst:?} after the last flipped bit");
}

/// Number of times that bits are flipped for a renewal interval.
const ROUNDS: usize = 3;

#[tokio::test]
async fn ready_one_interval_after_the_last_bit_was_flipped() {
    tokio::join!(kept_after_flipped_bits(5), kept_after_flipped_bits(5), kept_after_flipped_bits(10));
}

#[tokio::test]
async fn an_etcd_that_is_slow_is_not_dialled_over_and_over() {
    let etcd = Box::pin(Etcd::start()).await;
    let way = Way::start(&etcd, 1).await;
    let mut fleet = Fleet::start(way.options(5), etcd.client().await).await;
    fleet.is_renewed(1).await;
    let accepted = way.accepted();
    // Longer than the silence after which a connection is checked.
    way.0[0].set(Mode::Slow(Duration::from_millis(250)));
    fleet.is_renewed(4).await;
    let dialled = way.accepted() - accepted;
    assert!(dialled <= 4, "{dialled} connections were made");
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
    fleet.heard_none_of(&[EventKind::Suspect, EventKind::Recovering]);
}
