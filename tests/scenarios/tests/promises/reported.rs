//! Reported: events and latencies.

use std::time::Duration;

use leasehold::{EventKind, State, Verb};
use leasehold_scenarios::{
    on_both, wait_for,
    world::{SOON, World},
};
use tokio::time::sleep;

use crate::promises::user;

on_both!(events_report_each_change_once, latencies_measure_each_kind_of_request,);

async fn events_report_each_change_once(mut world: World) {
    let registrar = world.registrar("host").await;
    let mut events = registrar.events();
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    world.restart(false).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    registration.stop().await.unwrap();
    let mut reported = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert!(!event.why.is_empty());
        if event.kind != EventKind::Renewed {
            reported.push(event.kind);
        }
    }
    assert_eq!(
        reported,
        [EventKind::Registered, EventKind::Suspect, EventKind::Recovering, EventKind::Recovered, EventKind::Stopped]
    );
}

async fn latencies_measure_each_kind_of_request(mut world: World) {
    let registrar = world.registrar("host").await;
    let counted = |verb: Verb| {
        let latency = registrar.latencies().into_iter().find(|latency| latency.verb == verb).unwrap();
        (latency.buckets.iter().map(|(_, count)| count).sum::<u64>(), latency.failed)
    };
    let is_answered = |verb: Verb| counted(verb).0 > 0 && counted(verb).1 == 0;
    assert!(Verb::ALL.iter().all(|verb| counted(*verb) == (0, 0)));
    let registration = registrar.register(user()).await.unwrap();
    assert!(is_answered(Verb::Grant) && is_answered(Verb::Write));
    registrar.resolve(&user().name, &user().version).await.unwrap();
    assert!(is_answered(Verb::Read));
    wait_for("it is renewed and audited", SOON, async || is_answered(Verb::Renew) && is_answered(Verb::Look)).await;
    world.kill();
    wait_for("what fails is counted apart", SOON, async || counted(Verb::Renew).1 > 0).await;
    world.restart(true).await;
    registration.stop().await.unwrap();
    assert!(counted(Verb::Revoke).0 > 0);
}
