//! No clobber: keys of other hosts are left to them, as the ownership says.

use std::time::Duration;

use leasehold::{Error, LeaseId, Ownership, ServerNode, State, Terms};
use leasehold_scenarios::{
    on_both, wait_for,
    world::{SOON, World},
};
use tokio::time::sleep;

use crate::promises::{KEY, VALUE, user};

on_both!(
    no_clobber_stop_leaves_a_successor_alone,
    no_clobber_take_over_replaces_the_holder,
    no_clobber_refuse_leaves_the_holder,
    no_clobber_wait_comes_after_the_holder,
    no_clobber_wait_tells_what_it_waits_for,
    no_clobber_a_taken_key_is_a_conflict_until_it_is_free,
);

async fn no_clobber_stop_leaves_a_successor_alone(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let keeper = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    let lease = world.grant(60).await;
    world.put(KEY, "successor", lease).await;
    registration.stop().await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, "successor");
    keeper.stop().await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, "successor");
}

async fn no_clobber_take_over_replaces_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let _registration = registrar.register(user()).await.unwrap();
    let taken = world.get(KEY).await.unwrap();
    assert_eq!(taken.value, VALUE);
    world.revoke(lease).await;
    assert_eq!(world.get(KEY).await.unwrap(), taken);
}

async fn no_clobber_refuse_leaves_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let refuse = Terms { ownership: Some(Ownership::Refuse), ..Terms::default() };
    let error = registrar.register_on(user(), refuse.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict { lease: holder, .. } if *holder == LeaseId::new(lease)), "{error}");
    assert_eq!(world.get(KEY).await.unwrap().value, "holder");
    world.revoke(lease).await;
    let _registration = registrar.register_on(user(), refuse).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
}

async fn no_clobber_wait_comes_after_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let wait = Terms { ownership: Some(Ownership::Wait), ..Terms::default() };
    let free = async {
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.get(KEY).await.unwrap().value, "holder");
        world.revoke(lease).await;
    };
    let (registration, ()) = tokio::join!(registrar.register_on(user(), wait), free);
    let registration = registration.unwrap();
    assert_eq!(registration.status().state, State::Registered);
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
}

async fn no_clobber_wait_tells_what_it_waits_for(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let wait = Terms { ownership: Some(Ownership::Wait), ..Terms::default() };
    let noticed = async {
        wait_for("it is told", SOON, async || !registrar.faults().is_empty()).await;
        let faults = registrar.faults();
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!(fault.key.as_deref(), Some(KEY));
        assert!(
            matches!(&fault.why, Error::Conflict { lease: holder, .. } if *holder == LeaseId::new(lease)),
            "{fault}"
        );
        let text = fault.to_string();
        assert!(text.contains(&format!("{lease:x}")) && text.contains("with the value holder"), "{text}");
        wait_for("and for how long", SOON, async || registrar.faults()[0].to_string().contains("(for 1s)")).await;
        world.revoke(lease).await;
    };
    let (registration, ()) = tokio::join!(registrar.register_on(user(), wait), noticed);
    let registration = registration.unwrap();
    assert!(registrar.faults().is_empty() && registration.fault().is_none());
}

async fn no_clobber_a_taken_key_is_a_conflict_until_it_is_free(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.grant(60).await;
    world.put(KEY, "rival", lease).await;
    registration.wait_for(|status| status.state == State::Conflict).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.get(KEY).await.unwrap().value, "rival");
    let fault = registration.fault().unwrap().to_string();
    assert!(fault.contains(&format!("held by lease {lease:x}")) && fault.contains("with the value rival"), "{fault}");
    world.revoke(lease).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
    assert!(registration.fault().is_none());
}
