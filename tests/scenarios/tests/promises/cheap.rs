//! Cheap: many registrations share few leases.

use std::time::Duration;

use etcd_client::LeaseTimeToLiveOptions;
use leasehold::{Options, ServerNode};
use leasehold_scenarios::{
    on_both, wait_for,
    world::{SOON, World},
};
use tokio::time::{Instant, sleep};

use crate::promises::{KEY, services, user};

on_both!(
    cheap_many_services_share_one_lease,
    cheap_a_lease_granted_ahead_is_used_or_revoked,
    cheap_a_thousand_keys_are_all_that_one_lease_carries,
    cheap_instances_of_one_service_never_share_a_lease,
);

async fn cheap_many_services_share_one_lease(world: World) {
    let held = services(&world, 300).await;
    assert_eq!(world.count().await, 300);
    assert_eq!(world.leases().await.len(), 1);
    drop(held);
}

async fn cheap_a_lease_granted_ahead_is_used_or_revoked(world: World) {
    let ttl = 4.try_into().unwrap();
    let registrar = world.registrar_with("host", Options { ttl, ..world.options() }).await;
    registrar.grant_ahead(Duration::MAX);
    let granted = async || world.leases().await.len() == 1;
    wait_for("a lease is granted", SOON, granted).await;
    let ahead = world.leases().await;
    // The lease is kept as long as a registration may still come.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.leases().await, ahead);
    let registration = registrar.register(user()).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().lease, ahead[0]);
    registration.stop().await.unwrap();
    wait_for("it is revoked with its last key", SOON, async || world.leases().await.is_empty()).await;

    let (begun, within) = (Instant::now(), Duration::from_secs(3));
    registrar.grant_ahead(within);
    wait_for("a lease is granted", SOON, granted).await;
    wait_for("nobody used it", SOON, async || world.leases().await.is_empty()).await;
    assert!(begun.elapsed() >= within, "it was not waited with: {:?}", begun.elapsed());

    registrar.grant_ahead(Duration::from_secs(60));
    wait_for("a lease is granted", SOON, granted).await;
    registrar.shutdown(SOON).await.unwrap();
    assert!(world.leases().await.is_empty());
}

async fn cheap_a_thousand_keys_are_all_that_one_lease_carries(world: World) {
    let held = services(&world, 1001).await;
    let mut client = world.client().await;
    let mut carried = Vec::new();
    for lease in world.leases().await {
        let keys = Some(LeaseTimeToLiveOptions::new().with_keys());
        carried.push(client.lease_time_to_live(lease, keys).await.unwrap().keys().len());
    }
    carried.sort_unstable();
    assert_eq!(carried, [1, 1000]);
    drop(held);
}

async fn cheap_instances_of_one_service_never_share_a_lease(world: World) {
    let registrar = world.registrar("host").await;
    let mut leases = Vec::new();
    let mut held = Vec::new();
    for port in 1..=3 {
        let registration =
            registrar.register(ServerNode::new("user", &format!("127.0.0.1:{port}")).unwrap()).await.unwrap();
        leases.push(world.get(registration.key()).await.unwrap().lease);
        held.push(registration);
    }
    leases.dedup();
    assert_eq!(leases.len(), 3);
}
