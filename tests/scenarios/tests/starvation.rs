//! Isolated: a registrar whose thread has no processor for seconds, around a take-over, keeps its lease and its write.

use std::time::Duration;

use futures::future::join_all;
use leasehold::{EventKind, Options, Registrar, Registration, ServerNode, State, Weight};
use leasehold_scenarios::{
    fleet::options,
    real::Etcd,
    sim::{self, SimEtcd},
    wait_for,
    world::{SOON, World},
};
use tokio::time::{Instant, sleep, sleep_until};

/// Of the leases: renewed every 2 s, and a request may take 1.5 s.
const TTL: u64 = 6;
/// Less than what is left of a lease when its renewal is due.
const STARVED: Duration = Duration::from_millis(3500);

fn node(index: usize) -> ServerNode {
    ServerNode::new("user", &format!("127.0.0.1:{}", index + 1)).unwrap()
}

/// In virtual time, at each moment of two renewal intervals, for each host of the two.
#[tokio::test(start_paused = true)]
async fn isolated_a_host_that_stands_still_around_a_take_over_keeps_its_lease() {
    for after in (0..16).map(|quarter| Duration::from_millis(250 * quarter)) {
        for starves_the_successor in [true, false] {
            let etcd = SimEtcd::new(1);
            let world = World::Simulated(etcd.clone());
            let options = || Options { ttl: TTL.try_into().unwrap(), ..world.options() };
            let former = world.registrar_with("former", options()).await;
            let _taken = former.register(node(0)).await.unwrap();
            let successor = world.registrar_with("successor", options()).await;
            let _taking = successor.register(node(0)).await.unwrap();
            sleep(after).await;
            let starved = if starves_the_successor { &successor } else { &former };
            starved.suspend(true);
            sleep(STARVED).await;
            starved.suspend(false);
            sleep(Duration::from_secs(2 * TTL)).await;
            let expired: Vec<_> = etcd
                .history()
                .into_iter()
                .filter(|event| matches!(event.kind, sim::EventKind::Expired { .. }))
                .collect();
            assert!(expired.is_empty(), "{after:?}: {expired:?}");
        }
    }
}

/// Takes over from a stranger, writes a weight, and has its thread stand still from a moment on.
async fn starved(etcd: &Etcd, index: usize) -> (Registrar, Registration, i64) {
    let mut client = etcd.client().await;
    let holder = client.lease_grant(60, None).await.unwrap().id();
    let key = format!("/user/127.0.0.1:{}", index + 1);
    let under = etcd_client::PutOptions::new().with_lease(holder);
    client.put(&*key, "holder", Some(under)).await.unwrap();
    let options = Options { ttl: TTL.try_into().unwrap(), ..options([etcd.endpoint()]) };
    let registrar = Registrar::start(options).unwrap();
    let registration = registrar.register(node(index)).await.unwrap();
    let lease = client.get(&*key, None).await.unwrap().kvs()[0].lease();
    assert_ne!(lease, holder);
    let begun = Instant::now();
    sleep_until(begun + Duration::from_millis(300 * index as u64)).await;
    // The request leaves, or is about to, when the thread stands still.
    registration.set_weight(Weight::MIN).await.unwrap();
    registrar.starve(STARVED).await.unwrap();
    (registrar, registration, lease)
}

#[tokio::test]
async fn isolated_an_answer_that_came_while_the_thread_stood_still_costs_no_lease() {
    let etcd = Box::pin(Etcd::start()).await;
    let all = join_all((0..12).map(|index| {
        let etcd = &etcd;
        async move {
            let (registrar, registration, lease) = starved(etcd, index).await;
            let mut events = registrar.events();
            registration.wait_for(|status| status.state == State::Registered).await.unwrap();
            wait_for("its weight is written", SOON, async || {
                let found = etcd.client().await.get(&**registration.key(), None).await.unwrap();
                String::from_utf8_lossy(found.kvs()[0].value()).contains(r#""weight":"1""#)
            })
            .await;
            let found = etcd.client().await.get(&**registration.key(), None).await.unwrap();
            assert_eq!(found.kvs()[0].lease(), lease, "number {index} is under another lease");
            while let Ok(event) = events.try_recv() {
                assert!(!matches!(event.kind, EventKind::Recovering | EventKind::Suspect), "number {index}: {event:?}");
            }
        }
    }));
    all.await;
}
