//! Registrations that an embedder makes for a component, on a simulated etcd.

use std::time::Duration;

use leasehold::{Error, Metadata, ServerNode, State, Terms, Weight};
use leasehold_scenarios::{
    sim::SimEtcd,
    world::{SOON, World},
};
use leasehold_wasmtime::{Policy, RegistryCtx};
use tokio::time::timeout;

const KEY: &str = "kitex/registry-etcd/user/127.0.0.1:10002";

/// An etcd, and a component whose registrations have metadata in it.
async fn component() -> (SimEtcd, World, RegistryCtx) {
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    let terms = Terms { layouts: Some(vec!["kitex".parse().unwrap()]), ..Terms::default() };
    let policy = Policy { deadline: Duration::from_secs(5), terms, ..Policy::default() };
    let component = RegistryCtx::new(world.registrar("host").await, policy);
    (etcd, world, component)
}

fn user(zone: &str, weight: Option<u32>) -> ServerNode {
    let metadata = Metadata::try_from(vec![("zone".to_owned(), zone.to_owned())]).unwrap();
    let weight = weight.map(|weight| Weight::try_from(weight).unwrap());
    ServerNode { weight, metadata, ..ServerNode::new("user", "127.0.0.1:10002").unwrap() }
}

async fn shows(world: &World, zone: &str, weight: u32) {
    let (zone, weight) = (format!(r#""zone":"{zone}""#), format!(r#""weight":{weight}"#));
    let what = format!("of {zone} and {weight}");
    world
        .key_is(KEY, &what, |found| {
            found.is_some_and(|found| found.value.contains(&zone) && found.value.contains(&weight))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn bounded_a_second_registration_does_not_wait_for_etcd_without_an_end() {
    let (etcd, _world, component) = component().await;
    let registration = component.register_node(user("a", None)).await.unwrap();
    etcd.blackhole("host");
    registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
    let second = timeout(SOON, component.register_node(user("a", None))).await.unwrap();
    assert!(matches!(second, Err(Error::Timeout { what: "register", .. })), "{second:?}");
    etcd.heal("host");
    // The first registration is unaffected.
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    component.register_node(user("a", None)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_given_back_has_its_former_value() {
    let (_etcd, world, component) = component().await;
    component.register_node(user("a", None)).await.unwrap();
    component.register_node(user("b", Some(7))).await.unwrap();
    shows(&world, "b", 7).await;
    let before = world.get(KEY).await.unwrap();
    let next = component.successor();
    next.register_node(user("c", Some(9))).await.unwrap();
    shows(&world, "c", 9).await;
    next.give_back(&component).await.unwrap();
    shows(&world, "b", 7).await;
    let after = world.get(KEY).await.unwrap();
    assert_eq!((after.lease, after.created), (before.lease, before.created), "it was deleted meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_given_back_keeps_no_weight_of_the_version_that_is_not_served() {
    let (_etcd, world, component) = component().await;
    component.register_node(user("a", None)).await.unwrap();
    shows(&world, "a", 73).await;
    let next = component.successor();
    next.register_node(user("c", Some(9))).await.unwrap();
    shows(&world, "c", 9).await;
    next.give_back(&component).await.unwrap();
    shows(&world, "a", 73).await;
}
