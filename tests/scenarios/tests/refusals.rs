//! Status of registrations while the simulated etcd refuses requests; a refused key does not block other keys.

use std::time::Duration;

use leasehold::{Error, Event, EventKind, Options, Refusal, ServerNode, State, Weight};
use leasehold_scenarios::{
    sim::SimEtcd,
    wait_for,
    world::{SOON, World},
};
use tokio::{sync::broadcast, time::sleep};

fn node(name: &str) -> ServerNode {
    ServerNode::new(name, "127.0.0.1:10002").unwrap()
}

fn counted(events: &mut broadcast::Receiver<Event>, what: EventKind) -> usize {
    let mut count = 0;
    while let Ok(event) = events.try_recv() {
        count += usize::from(event.kind == what);
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_refused_shows_while_the_lease_is_renewed() {
    let etcd = SimEtcd::new(1);
    let registrar = World::Simulated(etcd.clone()).registrar("host").await;
    let mut events = registrar.events();
    let registration = registrar.register(node("user")).await.unwrap();
    etcd.set_no_space(true);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(registration.status().state, State::Registered, "nothing had to be written");
    registration.set_weight(Weight::MIN).await.unwrap();
    registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
    let fault = registration.fault().unwrap();
    assert_eq!(fault.refusal(), Some(Refusal::Space), "{fault}");
    assert!(fault.to_string().contains("alarm disarm"), "{fault}");
    // For longer than its TTL: it is renewed, and says so as long as it lasts.
    sleep(Duration::from_secs(30)).await;
    assert_eq!(registration.status().state, State::Suspect);
    assert!(!registration.status().ttl_remaining.is_zero());
    assert_eq!(counted(&mut events, EventKind::Refused), 1);
    etcd.set_no_space(false);
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert!(registration.fault().is_none() && registrar.faults().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_refused_and_is_no_longer_needed_is_forgotten() {
    let etcd = SimEtcd::new(1);
    let registrar = World::Simulated(etcd.clone()).registrar("host").await;
    let registration = registrar.register(node("user")).await.unwrap();
    let published = registration.status().weight;
    for refused in [SimEtcd::set_no_space, |etcd: &SimEtcd, is| etcd.set_forbidden("host", is)] {
        refused(&etcd, true);
        registration.set_weight(Weight::MIN).await.unwrap();
        registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
        registration.set_weight(published).await.unwrap();
        refused(&etcd, false);
        let revision = etcd.revision();
        registration.wait_for(|status| status.state == State::Registered).await.unwrap();
        assert!(registrar.faults().is_empty());
        assert_eq!(etcd.revision(), revision, "nothing had to be written");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_done_while_puts_are_refused_for_want_of_space() {
    let etcd = SimEtcd::new(1);
    let registrar = World::Simulated(etcd.clone()).registrar("host").await;
    let leaving = registrar.register(node("user")).await.unwrap();
    let staying = registrar.register(node("order")).await.unwrap();
    etcd.set_no_space(true);
    staying.set_weight(Weight::MIN).await.unwrap();
    staying.wait_for(|status| status.state == State::Suspect).await.unwrap();
    leaving.stop().await.unwrap();
    assert_eq!(etcd.get(leaving.key()), None);
    etcd.set_no_space(false);
    staying.wait_for(|status| status.state == State::Registered).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_shows_within_a_renewal_interval_and_is_over_when_it_is_given_back() {
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    let registrar =
        world.registrar_with("host", Options { stop_timeout: Duration::from_secs(1), ..world.options() }).await;
    let registration = registrar.register(node("user")).await.unwrap();
    etcd.set_forbidden("host", true);
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(registration.status().state, State::Suspect);
    let fault = registration.fault().unwrap();
    assert!(fault.to_string().contains("--prefix=true readwrite /user/"), "{fault}");
    etcd.set_forbidden("host", false);
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert!(registration.fault().is_none());

    // A stop that is refused says why, and goes on.
    etcd.set_forbidden("host", true);
    let error = registration.stop().await.unwrap_err();
    assert!(matches!(&error, Error::Timeout { why: Some(why), .. } if why.is_denied()), "{error}");
    etcd.set_forbidden("host", false);
    registration.wait_for(|status| status.state == State::Stopped).await.unwrap();
    wait_for("it is over", SOON, async || registrar.faults().is_empty()).await;
}
