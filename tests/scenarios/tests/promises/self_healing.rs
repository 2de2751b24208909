//! Self-healing: a key that is lost comes back.

use std::time::Duration;

use leasehold::{EventKind, State, Terms};
use leasehold_scenarios::{
    on_both,
    sim::{Call, FaultPlan, SimEtcd},
    wait_for,
    world::{SOON, Standing, World},
};
use tokio::time::{Instant, sleep};

use crate::promises::{KEY, VALUE, services, user, wait_for_event};

on_both!(
    self_healing_after_the_lease_is_revoked,
    self_healing_after_the_key_is_deleted,
    self_healing_after_the_key_is_detached,
    self_healing_after_a_value_is_changed_under_its_own_lease,
    self_healing_of_every_value_among_many,
    self_healing_at_once_after_the_machine_was_suspended,
    self_healing_after_etcd_restarts_with_its_data,
    self_healing_after_etcd_restarts_without_its_data,
);

async fn self_healing_after_the_lease_is_revoked(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    world.revoke(lease).await;
    let again = world.stands(KEY).await;
    assert_ne!(again.lease, lease);
    assert_eq!(again.value, VALUE);
    let status = registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(status.recoveries, 1);
}

async fn self_healing_after_the_key_is_deleted(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.get(KEY).await.unwrap();
    world.delete(KEY).await;
    assert_eq!(world.stands(KEY).await.lease, before.lease);
    let status = registration.wait_for(|status| status.recoveries == 1).await.unwrap();
    assert_eq!(status.state, State::Registered);
}

async fn self_healing_after_the_key_is_detached(world: World) {
    let registrar = world.registrar("host").await;
    let _registration = registrar.register(user()).await.unwrap();
    world.put(KEY, "garbage", 0).await;
    assert_eq!(world.stands(KEY).await.value, VALUE);
}

async fn self_healing_after_a_value_is_changed_under_its_own_lease(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    let mut events = registrar.events();
    // As `etcdctl put --ignore-lease` does.
    world.put(KEY, r#"{"name":"user","addr":"6.6.6.6:6","version":"","weight":"73"}"#, lease).await;
    world.key_is(KEY, "as it was", |found| found.is_some_and(|found| found.value == VALUE)).await;
    assert_eq!(world.get(KEY).await.unwrap().lease, lease);
    let status = registration.wait_for(|status| status.recoveries == 1).await.unwrap();
    assert_eq!(status.state, State::Registered);
    let healed = wait_for_event(&mut events, EventKind::Healed).await;
    assert!(healed.why.contains("written over"), "{}", healed.why);
    // What was written over is all that is written.
    let revision = world.revision().await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.revision().await, revision);
}

/// An audit looks at some of the values, and the next one at others.
async fn self_healing_of_every_value_among_many(world: World) {
    let held = services(&world, 300).await;
    let lease = world.leases().await[0];
    let keys: Vec<_> = [0, 150, 299].map(|index| held[index].key().to_string()).into();
    for key in &keys {
        world.put(key, "foreign", lease).await;
    }
    for key in &keys {
        world.key_is(key, "as it was", |found| found.is_some_and(|found| found.value != "foreign")).await;
    }
    assert_eq!(held.iter().map(|one| one.status().recoveries).sum::<u64>(), 3);
}

async fn self_healing_at_once_after_the_machine_was_suspended(world: World) {
    let registrar = world.registrar("host").await;
    // The next renewal is due in 20 s.
    let minute = Terms { ttl: Some(60.try_into().unwrap()), ..Terms::default() };
    let registration = registrar.register_on(user(), minute).await.unwrap();
    wait_for("it was renewed", SOON, async || registration.status().renewals > 0).await;
    let before = world.get(KEY).await.unwrap().lease;
    registrar.simulate_suspension(Duration::from_secs(20));
    wait_for("what is left is confirmed", SOON, async || registration.status().renewals > 1).await;
    assert_eq!((registration.status().state, registration.status().recoveries), (State::Registered, 0));
    world.revoke(before).await;
    registrar.simulate_suspension(Duration::from_secs(180));
    let woke = Instant::now();
    let back = |found: Option<&Standing>| found.is_some_and(|found| found.lease != before);
    world.key_is(KEY, "back", back).await;
    assert!(woke.elapsed() < Duration::from_secs(2), "{:?}", woke.elapsed());
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
}

/// On the simulated etcd only: the renewal's response must arrive after the resume.
#[tokio::test(start_paused = true)]
async fn self_healing_trusts_no_renewal_from_before_the_machine_was_suspended() {
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    let registrar = world.registrar("host").await;
    // Renewed after 21.6 to 24 s, which coincides with no audit: audits run every 10 s and would detect the loss as well.
    let terms = Terms { ttl: Some(72.try_into().unwrap()), ..Terms::default() };
    let registration = registrar.register_on(user(), terms).await.unwrap();
    wait_for("it was renewed", SOON, async || registration.status().renewals > 0).await;
    let (lease, renewals) = (world.get(KEY).await.unwrap().lease, etcd.count("host", Call::Renew));
    let slow = Duration::from_millis(500);
    etcd.set_faults("host", FaultPlan { latency: slow..=slow, ..FaultPlan::none() });
    wait_for("etcd has renewed it", 2 * SOON, async || etcd.count("host", Call::Renew) > renewals).await;
    // The response is on its way.
    let mut events = registrar.events();
    etcd.set_faults("host", FaultPlan::none());
    etcd.revoke(lease);
    registrar.simulate_suspension(Duration::from_secs(180));
    assert_eq!(events.recv().await.unwrap().kind, EventKind::Recovering);
    registration.wait_for(|status| status.state == State::Registered && status.recoveries == 1).await.unwrap();
}

async fn self_healing_after_etcd_restarts_with_its_data(mut world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    let status = registration.wait_for(|status| status.state != State::Registered).await.unwrap();
    assert_eq!(status.state, State::Suspect);
    world.restart(true).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(world.stands(KEY).await.value, VALUE);
}

async fn self_healing_after_etcd_restarts_without_its_data(mut world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    world.restart(false).await;
    assert_eq!(world.stands(KEY).await.value, VALUE);
    registration.wait_for(|status| status.state == State::Registered && status.recoveries == 1).await.unwrap();
}
