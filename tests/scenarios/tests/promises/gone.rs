//! Gone: a node leaves etcd with its registration.

use std::time::Duration;

use leasehold::{Error, ServerNode, State};
use leasehold_scenarios::{
    on_both, wait_for,
    world::{SOON, World},
};
use tokio::time::timeout;

use crate::promises::{KEY, user, weight};

on_both!(
    gone_key_and_lease_after_stop,
    gone_stays_gone_through_a_restart_of_etcd,
    gone_when_the_handle_is_dropped,
    kept_by_its_handle_alone,
    gone_when_the_caller_gives_up,
    gone_all_at_shutdown,
);

async fn gone_key_and_lease_after_stop(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    registration.stop().await.unwrap();
    assert_eq!(world.get(KEY).await, None);
    assert_eq!(registration.status().state, State::Stopped);
    wait_for("the lease is revoked", SOON, async || world.leases().await.is_empty()).await;
    registration.stop().await.unwrap();
    assert!(matches!(registration.set_weight(weight(5)).await, Err(Error::Ended)));
}

async fn gone_stays_gone_through_a_restart_of_etcd(mut world: World) {
    let registrar = world.registrar("host").await;
    let gone = registrar.register(user()).await.unwrap();
    let stays = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    gone.stop().await.unwrap();
    world.restart(false).await;
    world.stands(stays.key()).await;
    assert_eq!(world.get(KEY).await, None);
}

async fn gone_when_the_handle_is_dropped(world: World) {
    let registrar = world.registrar("host").await;
    drop(registrar.register(user()).await.unwrap());
    world.key_is(KEY, "gone", |found| found.is_none()).await;
}

async fn kept_by_its_handle_alone(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    drop(registrar);
    let renewals = registration.status().renewals;
    wait_for("it is renewed", SOON, async || registration.status().renewals >= renewals + 3).await;
    world.stands(KEY).await;
    drop(registration);
    world.key_is(KEY, "gone", |found| found.is_none()).await;
}

async fn gone_when_the_caller_gives_up(mut world: World) {
    let registrar = world.registrar("host").await;
    world.kill();
    assert!(timeout(Duration::from_millis(500), registrar.register(user())).await.is_err());
    world.restart(true).await;
    // If it were registered, its key would exist by now: another registration proves that the registrar has processed it.
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    assert_eq!(world.get(KEY).await, None);
    other.stop().await.unwrap();
}

async fn gone_all_at_shutdown(world: World) {
    let registrar = world.registrar("host").await;
    let mut registrations = Vec::new();
    for port in 1..=20 {
        let node = ServerNode::new("user", &format!("127.0.0.1:{port}")).unwrap();
        registrations.push(registrar.register(node).await.unwrap());
    }
    assert_eq!(world.count().await, 20);
    registrar.shutdown(SOON).await.unwrap();
    assert_eq!(world.count().await, 0);
    assert_eq!(world.leases().await, Vec::<i64>::new());
    assert!(matches!(registrar.register(user()).await, Err(Error::Ended)));
    assert!(registrations.iter().all(|registration| registration.status().state == State::Stopped));
    registrar.shutdown(SOON).await.unwrap();
}
