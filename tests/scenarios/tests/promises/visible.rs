//! Visible: a registered node is in etcd as its readers expect it.

use std::time::Duration;

use leasehold::{ServerNode, State, Terms};
use leasehold_scenarios::{on_both, world::World};
use tokio::time::sleep;

use crate::promises::{KEY, VALUE, user};

on_both!(visible_key_and_value_byte_for_byte, visible_under_a_lease_with_the_granted_ttl, visible_after_three_ttls,);

async fn visible_key_and_value_byte_for_byte(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    assert_eq!(&**registration.key(), KEY);
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
    let versioned = ServerNode { version: "v1".parse().unwrap(), ..user() };
    let versioned = registrar.register(versioned).await.unwrap();
    let found = world.get("/user/v1/127.0.0.1:10002").await.unwrap();
    assert_eq!(found.value, r#"{"name":"user","addr":"127.0.0.1:10002","version":"v1","weight":"73"}"#);
    assert_eq!(versioned.status().state, State::Registered);
}

async fn visible_under_a_lease_with_the_granted_ttl(world: World) {
    let registrar = world.registrar("host").await;
    let ten = Terms { ttl: Some(10.try_into().unwrap()), ..Terms::default() };
    let _registration = registrar.register_on(user(), ten).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    let answer = world.client().await.lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(answer.granted_ttl(), 10);
}

async fn visible_after_three_ttls(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.get(KEY).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.get(KEY).await.unwrap(), before);
    let status = registration.status();
    assert_eq!(status.state, State::Registered);
    assert!(status.renewals >= 9, "{status:?}");
    assert_eq!(status.recoveries, 0);
    assert!(status.ttl_remaining <= Duration::from_secs(3) && !status.ttl_remaining.is_zero(), "{status:?}");
}
