//! No gap: a key is there at every moment of its life.

use leasehold::{Error, EventKind, ServerNode, State, Terms};
use leasehold_scenarios::{
    on_both,
    sim::{self, FaultPlan, SimEtcd},
    world::{SOON, World},
};
use tokio::time::{sleep, timeout};

use crate::promises::{KEY, layouts, user, weight};

on_both!(no_gap_when_another_node_takes_the_key,);

/// On the simulated etcd only: a bit that flips where it matters cannot be made to flip on a wire.
#[tokio::test(start_paused = true)]
async fn no_gap_while_answers_lack_their_content() {
    for seed in 1..=20 {
        let etcd = SimEtcd::new(seed);
        let world = World::Simulated(etcd.clone());
        let registrar = world.registrar("host").await;
        let kept = registrar.register(user()).await.unwrap();
        etcd.set_faults("host", FaultPlan { damaged: 1.0, ..FaultPlan::none() });
        let (registering, ()) = tokio::join!(
            timeout(SOON / 4, registrar.register(ServerNode::new("order", "127.0.0.1:81").unwrap())),
            async {
                kept.set_weight(7.try_into().unwrap()).await.unwrap();
                sleep(SOON / 4).await;
            }
        );
        assert!(!matches!(registering, Ok(Ok(_))), "nothing confirms it");
        assert!(!registrar.has_ended());
        etcd.set_faults("host", FaultPlan::none());
        kept.wait_for(|status| status.state == State::Registered).await.unwrap();
        world.key_is(KEY, "of that weight", |key| key.is_some_and(|key| key.value.contains("\"7\""))).await;
        let is_delete = |event: &sim::Event| matches!(&event.kind, sim::EventKind::Delete { key, .. } if key == KEY);
        assert_eq!(etcd.history().iter().find(|event| is_delete(event)), None, "seed {seed}");
        assert!(registrar.forbidden(vec![KEY.to_owned()]).await.unwrap().is_empty());
        kept.stop().await.unwrap();
        assert!(world.get(KEY).await.is_none());
    }
}

async fn no_gap_when_another_node_takes_the_key(world: World) {
    let terms = Terms { layouts: Some(layouts(&["kratos", "kitex"])), ..Terms::default() };
    let registrar = world.registrar("host").await;
    let node = |version: &str, zone: &str| ServerNode {
        version: version.parse().unwrap(),
        metadata: vec![("zone".to_owned(), zone.to_owned())].try_into().unwrap(),
        ..user()
    };
    let registration = registrar.register_on(node("v1", "a"), terms.clone()).await.unwrap();
    assert_eq!(registrar.keys(&node("v1", "a"), &terms), registrar.keys(&node("v1", "b"), &terms));
    let keys: Vec<String> = registration.keys().map(ToString::to_string).collect();
    let mut before = Vec::new();
    for key in &keys {
        before.push(world.get(key).await.unwrap());
    }
    let mut events = registrar.events();
    registration.replace(ServerNode { weight: Some(weight(9)), ..node("v1", "b") }).await.unwrap();
    for (key, before) in keys.iter().zip(&before) {
        world
            .key_is(key, "of the other node", |found| found.is_some_and(|found| found.value.contains(r#":"b""#)))
            .await;
        let now = world.get(key).await.unwrap();
        assert_eq!(now.lease, before.lease);
        let is_light = |value: &str| value.contains(r#""weight":"9""#) || value.contains(r#""weight":9"#);
        assert!(is_light(&now.value) && !is_light(&before.value), "{now:?}");
    }
    assert_eq!((registration.status().state, registration.status().recoveries), (State::Registered, 0));
    let mut updated = 0;
    while let Ok(event) = events.try_recv() {
        updated += u32::from(event.kind == EventKind::Updated);
        assert!(matches!(event.kind, EventKind::Updated | EventKind::Renewed), "{event:?}");
    }
    assert_eq!(updated, 2);
    // Such a node has other keys.
    let elsewhere = ServerNode { addr: "127.0.0.1:3".parse().unwrap(), ..user() };
    assert!(matches!(registration.replace(elsewhere).await, Err(Error::Invalid(_))));
    registration.stop().await.unwrap();
    assert!(matches!(registration.replace(node("v1", "c")).await, Err(Error::Ended)));
    assert_eq!(world.get(&keys[0]).await, None);
}
