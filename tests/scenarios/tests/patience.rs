//! Bounded: the time for which a request in etcd's log is waited for.

use std::{sync::Arc, time::Duration};

use leasehold::{Options, Registrar, ServerNode};
use leasehold_scenarios::sim::{Call, CallRecord, SimEtcd};
use tokio::time::{Instant, sleep};

/// Three quarters of the interval between renewals, under a TTL of ten seconds.
const DEADLINE: Duration = Duration::from_millis(2500);
/// Time in which a request is given up after its deadline and made again.
const AGAIN: Duration = Duration::from_millis(1000);
const NEVER: Duration = Duration::from_secs(3600);

async fn registrar(members: &[&SimEtcd]) -> Registrar {
    let options = Options { ttl: 10.try_into().unwrap(), jitter_seed: Some(1), ..Options::new(["sim"]) };
    let dials = members.iter().map(|etcd| (Arc::from("sim"), etcd.dial("host"))).collect();
    Registrar::start_over(options, dials).await.unwrap()
}

fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:1").unwrap()
}

/// The member has lost a request, as a follower does whose leader goes, and answers the later ones.
#[tokio::test(start_paused = true)]
async fn bounded_a_request_that_later_ones_overtake_is_given_up() {
    let etcd = SimEtcd::new(1);
    let registrar = registrar(&[&etcd]).await;
    let begun = Instant::now();
    etcd.set_pace(NEVER);
    let registering = tokio::spawn(async move { registrar.register(user()).await });
    sleep(DEADLINE / 2).await;
    etcd.set_pace(Duration::ZERO);
    registering.await.unwrap().unwrap();
    let took = begun.elapsed();
    assert!((DEADLINE..DEADLINE + AGAIN).contains(&took), "{took:?}");
}

/// The other member is silent, and so says nothing about a request that the first one has lost.
#[tokio::test(start_paused = true)]
async fn bounded_a_lost_request_is_given_up_beside_a_silent_member() {
    let [lossy, silent] = [SimEtcd::new(1), SimEtcd::new(2)];
    silent.blackhole("host");
    let registrar = registrar(&[&lossy, &silent]).await;
    lossy.set_pace(NEVER);
    let registering = tokio::spawn(async move { registrar.register(user()).await });
    sleep(DEADLINE / 2).await;
    lossy.set_pace(Duration::ZERO);
    sleep(DEADLINE / 2 + AGAIN).await;
    let is_grant = |call: &CallRecord| call.call == Call::Grant;
    assert!(silent.take_calls().iter().any(is_grant), "the next request goes to the other member");
    registering.abort();
}

/// The member answers everything but what goes through the log, as one without the others does.
#[tokio::test(start_paused = true)]
async fn bounded_a_member_that_writes_nothing_is_passed_over() {
    let [cut_off, well] = [SimEtcd::new(1), SimEtcd::new(2)];
    cut_off.set_pace(NEVER);
    let registrar = registrar(&[&cut_off, &well]).await;
    let begun = Instant::now();
    let registration = registrar.register(user()).await.unwrap();
    let took = begun.elapsed();
    assert!((DEADLINE..DEADLINE + AGAIN).contains(&took), "{took:?}");
    assert!(well.get(registration.key()).is_some());
}

/// No member writes anything; the response of etcd itself, after 7 s, ends the wait.
#[tokio::test(start_paused = true)]
async fn bounded_a_request_is_waited_for_as_long_as_etcd_may_take() {
    let members = [SimEtcd::new(1), SimEtcd::new(2)];
    members.iter().for_each(|etcd| etcd.set_pace(NEVER));
    let registrar = registrar(&[&members[0], &members[1]]).await;
    let error = registrar.register(user()).await.unwrap_err();
    assert!(error.to_string().contains("request timed out"), "{error}");
    let is_grant = |call: &CallRecord| call.call == Call::Grant;
    let grants = members.iter().flat_map(SimEtcd::take_calls).filter(is_grant).count();
    assert_eq!(grants, 2, "one to each member");
}
