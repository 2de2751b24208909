//! Registrations under several layouts.

use leasehold::{Error, Options, Ownership, State, Terms};
use leasehold_scenarios::{
    on_both, wait_for,
    world::{SOON, World},
};

use crate::promises::{KEY, layouts, user, weight};

on_both!(layouts_of_one_node_are_one_registration, layouts_of_a_refused_node_leave_nothing, layouts_are_read_together,);

async fn layouts_of_one_node_are_one_registration(mut world: World) {
    let names = ["seed", "kratos", "etcd-naming"];
    let options = Options { layouts: layouts(&names), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    let keys: Vec<_> = registration.keys().cloned().collect();
    assert_eq!((keys.len(), &*keys[0], &*keys[2]), (3, KEY, "user/127.0.0.1:10002"));
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(world.stands(key).await.lease);
    }
    registration.set_weight(weight(5)).await.unwrap();
    world.key_is(&keys[1], "weighed", |found| found.is_some_and(|found| found.value.contains(r#""weight":"5""#))).await;
    world.key_is(&keys[0], "weighed", |found| found.is_some_and(|found| found.value.contains(r#""weight":"5""#))).await;

    // A change of one key shows in the status of the registration.
    let theirs = world.grant(60).await;
    world.put(&keys[1], "taken", theirs).await;
    registration.wait_for(|status| status.state == State::Conflict).await.unwrap();
    world.revoke(theirs).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();

    world.restart(false).await;
    for key in &keys {
        world.stands(key).await;
    }
    registration.wait_for(|status| status.state == State::Registered && status.recoveries >= 3).await.unwrap();
    registration.stop().await.unwrap();
    for key in &keys {
        assert_eq!(world.get(key).await, None, "{key}");
    }
    assert_eq!(registration.status().state, State::Stopped);
    wait_for("no lease is left", SOON, async || world.leases().await.is_empty()).await;
}

async fn layouts_of_a_refused_node_leave_nothing(world: World) {
    let options = Options { layouts: layouts(&["seed", "kitex"]), ownership: Ownership::Refuse, ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let theirs = world.grant(60).await;
    let taken = "kitex/registry-etcd/user/127.0.0.1:10002";
    world.put(taken, "theirs", theirs).await;
    assert!(matches!(registrar.register(user()).await, Err(Error::Conflict { .. })));
    world.key_is(KEY, "gone", |found| found.is_none()).await;
    assert_eq!(world.get(taken).await.unwrap().value, "theirs");
    let none = Terms { layouts: Some(Vec::new()), ..Terms::default() };
    assert!(matches!(registrar.register_on(user(), none).await, Err(Error::Invalid(_))));
}

async fn layouts_are_read_together(world: World) {
    let options = Options { layouts: layouts(&["seed", "go-zero", "kitex"]), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let _registration = registrar.register(user()).await.unwrap();
    world.put("user/7587848943239875124", "127.0.0.2:80", 0).await;
    world.put("kitex/registry-etcd/user/127.0.0.3:80", r#"{"network":"tcp","address":"127.0.0.3:80"}"#, 0).await;
    world.put("/user/garbage", "}", 0).await;
    world.put("/user/v1/127.0.0.1:9", r#"{"name":"user","addr":"127.0.0.1:9","version":"v1","weight":"1"}"#, 0).await;
    let found = registrar.resolve(&"user".parse().unwrap(), &"".parse().unwrap()).await.unwrap();
    let mut addrs: Vec<_> = found.iter().map(|node| node.addr.as_str()).collect();
    addrs.sort_unstable();
    assert_eq!(addrs, ["127.0.0.1:10002", "127.0.0.1:9", "127.0.0.2:80", "127.0.0.3:80"]);
    let found = registrar.resolve(&"user".parse().unwrap(), &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(found.len(), 1);
    let listed = registrar.list(None).await.unwrap();
    // Our node under each layout, three foreign nodes, a node of another version, and an invalid key.
    assert_eq!(listed.len(), 7, "{listed:?}");
    assert_eq!(listed.iter().filter(|listed| listed.node.is_err()).count(), 1, "{listed:?}");
    assert!(listed.is_sorted_by_key(|listed| &listed.key));
}
