//! Bounded: every call ends, and every number has a limit.

use std::{sync::Arc, time::Duration};

use leasehold::{Error, Options, ServerNode, State};
use leasehold_scenarios::{
    on_both,
    world::{SOON, World},
};
use tokio::time::{sleep, timeout};

use crate::promises::{KEY, user};

on_both!(
    bounded_an_etcd_that_is_down_is_an_error_in_time,
    bounded_a_stop_without_etcd_times_out_and_goes_on,
    bounded_registrations_are_limited,
    bounded_calls_that_gave_up_are_forgotten,
    bounded_calls_end_with_the_registrar,
);

async fn bounded_an_etcd_that_is_down_is_an_error_in_time(mut world: World) {
    let options = Options { register_timeout: Duration::from_secs(2), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    world.kill();
    let error = registrar.register(user()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    world.restart(true).await;
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    assert_eq!(world.get(KEY).await, None, "a failed registration came back");
    drop(other);
}

async fn bounded_a_stop_without_etcd_times_out_and_goes_on(mut world: World) {
    let options = Options { stop_timeout: Duration::from_secs(1), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    assert!(matches!(registration.stop().await, Err(Error::Timeout { .. })));
    assert_eq!(registration.status().state, State::Draining);
    world.restart(true).await;
    registration.wait_for(|status| status.state == State::Stopped).await.unwrap();
    assert_eq!(world.get(KEY).await, None);
}

async fn bounded_registrations_are_limited(world: World) {
    let options = Options { max_registrations: 1, ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let first = registrar.register(user()).await.unwrap();
    let second = ServerNode::new("order", "127.0.0.1:2").unwrap();
    assert!(matches!(registrar.register(second.clone()).await, Err(Error::Quota { limit: 1, .. })));
    first.stop().await.unwrap();
    assert!(registrar.register(second).await.is_ok());
}

async fn bounded_calls_that_gave_up_are_forgotten(mut world: World) {
    let options = Options { stop_timeout: Duration::from_millis(200), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    let leaving = registrar.register(user()).await.unwrap();
    let written = world.revision().await;
    world.kill();
    assert!(matches!(leaving.stop().await, Err(Error::Timeout { .. })));
    // More calls than the queue holds, and all of them have given up.
    for _ in 0..100 {
        assert!(timeout(Duration::from_millis(10), registrar.register(user())).await.is_err());
    }
    world.restart(true).await;
    let again = registrar.register(user()).await.unwrap();
    world.stands(other.key()).await;
    leaving.wait_for(|status| status.state == State::Stopped).await.unwrap();
    // The delete, the last registration, and at most all three keys again under another lease.
    let written = world.revision().await - written;
    assert!(written <= 6, "{written} revisions");
    again.wait_for(|status| status.state == State::Registered).await.unwrap();
}

async fn bounded_calls_end_with_the_registrar(mut world: World) {
    let registrar = Arc::new(world.registrar("host").await);
    let _user = registrar.register(user()).await.unwrap();
    world.kill();
    let asking = tokio::spawn({
        let registrar = registrar.clone();
        async move {
            loop {
                if let Err(Error::Ended) = registrar.leases().await {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    // The lease cannot be revoked.
    assert!(matches!(registrar.shutdown(Duration::from_secs(1)).await, Err(Error::Timeout { .. })));
    timeout(SOON, asking).await.unwrap().unwrap();
    assert!(matches!(registrar.register(user()).await, Err(Error::Ended)));
}
