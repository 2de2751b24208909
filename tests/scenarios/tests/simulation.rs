//! The simulated etcd under its own faults, in virtual time.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, PutOptions, Txn, TxnOp};
use leasehold_scenarios::sim::{Call, Cause, Event, EventKind, FaultPlan, SimEtcd};
use leasehold_scenarios::wait_for;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, ConnectError};

const SECOND: Duration = Duration::from_secs(1);
/// Deadline of a host's call.
const DEADLINE: Duration = Duration::from_secs(2);

fn bound(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

async fn code_of<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Error>>) -> Code {
    match timeout(60 * SECOND, call).await.unwrap() {
        Err(Error::GRpcStatus(status)) => status.code(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn puts(events: &[Event]) -> Vec<&Event> {
    let is_put = |event: &&Event| matches!(event.kind, EventKind::Put { .. });
    events.iter().filter(is_put).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lease_expires_at_the_next_tick() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    let granted = etcd.history()[0].at;
    wait_for("the key is gone", 20 * SECOND, async || etcd.get("a").is_none()).await;
    let history = etcd.history();
    let [.., expired, deleted] = &history[..] else { panic!("{history:?}") };
    assert_eq!(expired.kind, EventKind::Expired { lease });
    assert_eq!(expired.cause, Cause::Expiry);
    let key = "a".to_owned();
    let previous_lease = lease;
    assert_eq!(deleted.kind, EventKind::Delete { key, previous_lease });
    assert_eq!(deleted.revision, expired.revision);
    let lived = expired.at - granted;
    assert!((10 * SECOND..=10 * SECOND + SECOND / 2).contains(&lived), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn the_history_names_the_cause_and_the_lease_before() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    etcd.put("a", "2", 0);
    let history = etcd.history();
    let puts = puts(&history);
    assert_eq!(puts[0].host(), Some("host"));
    assert!(matches!(puts[0].kind, EventKind::Put { previous_lease: None, .. }));
    assert_eq!(puts[1].cause, Cause::Foreign);
    let EventKind::Put { lease: now, previous_lease, .. } = puts[1].kind else { unreachable!() };
    assert_eq!((now, previous_lease), (0, Some(lease)));
    assert!(etcd.leases()[&lease].keys.is_empty());
    assert_eq!((etcd.count("host", Call::Put), etcd.writes("host")), (1, 1));
    assert_eq!(etcd.count("other", Call::Put), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_lands_after_its_caller_gave_up() {
    let etcd = SimEtcd::new(3);
    let mut client = etcd.client("host").await;
    let plan = FaultPlan { late: 1.0, ..FaultPlan::none() };
    etcd.set_faults("host", plan);
    timeout(DEADLINE, client.put("a", "1", None)).await.unwrap_err();
    let gave_up = etcd.now();
    assert!(etcd.get("a").is_none());
    wait_for("the write lands", 60 * SECOND, async || etcd.get("a").is_some()).await;
    let history = etcd.history();
    assert!(history[0].at > gave_up);
    assert!(matches!(history[0].cause, Cause::Call { call: Call::Put, late: true, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_late_write_under_a_dead_lease_does_nothing() {
    let etcd = SimEtcd::new(3);
    let mut client = etcd.client("host").await;
    let lease = etcd.grant(60 * SECOND);
    let plan = FaultPlan { late: 1.0, ..FaultPlan::none() };
    etcd.set_faults("host", plan);
    let txn = Txn::new().and_then([TxnOp::put("a", "1", bound(lease)), TxnOp::put("b", "1", None)]);
    timeout(DEADLINE, client.txn(txn)).await.unwrap_err();
    etcd.revoke(lease);
    sleep(120 * SECOND).await;
    assert!(etcd.keys("").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_error_does_not_tell_if_the_request_was_applied() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    etcd.set_faults("host", FaultPlan { error_before: 1.0, ..FaultPlan::none() });
    assert_eq!(code_of(client.put("a", "1", None)).await, Code::Unavailable);
    assert!(etcd.get("a").is_none());
    etcd.set_faults("host", FaultPlan { error_after: 1.0, ..FaultPlan::none() });
    assert_eq!(code_of(client.put("a", "1", None)).await, Code::Unavailable);
    assert!(etcd.get("a").is_some());
    etcd.set_faults("host", FaultPlan { answer_lost: 1.0, ..FaultPlan::none() });
    timeout(3600 * SECOND, client.put("b", "1", None)).await.unwrap_err();
    assert!(etcd.get("b").is_some());
}

#[tokio::test(start_paused = true)]
async fn faults_are_of_one_host() {
    let etcd = SimEtcd::new(1);
    let (mut one, mut two) = (etcd.client("one").await, etcd.client("two").await);
    etcd.set_faults("one", FaultPlan { error_before: 1.0, ..FaultPlan::none() });
    one.put("a", "1", None).await.unwrap_err();
    two.put("a", "1", None).await.unwrap();
    etcd.set_all_faults(&FaultPlan::none());
    one.put("a", "1", None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_blackholed_host_hangs_until_it_is_healed() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    etcd.blackhole("host");
    keeper.keep_alive().await.unwrap();
    let mut writer = client.clone();
    let pending = tokio::spawn(async move { writer.put("a", "1", None).await });
    timeout(20 * SECOND, answers.message()).await.unwrap_err();
    assert!(!pending.is_finished());
    assert!(etcd.leases().is_empty());
    etcd.heal("host");
    pending.await.unwrap().unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.ttl(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_blackholed_host_does_not_see_a_restart() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let mut stream = client.watch("a", None).await.unwrap();
    stream.message().await.unwrap();
    etcd.blackhole("host");
    etcd.restart(true);
    timeout(60 * SECOND, stream.message()).await.unwrap_err();
    etcd.heal("host");
    stream.message().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_stopped_etcd_refuses_and_breaks_its_streams() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    let (_keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    etcd.stop();
    answers.message().await.unwrap_err();
    let Err(Error::GRpcStatus(status)) = client.put("a", "1", None).await else {
        panic!("a stopped etcd answered");
    };
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "tcp connect error"));
    let source = std::error::Error::source(&status).unwrap();
    assert!(source.is::<ConnectError>());
    sleep(60 * SECOND).await;
    etcd.start();
    let left = etcd.leases()[&lease].left;
    assert_eq!(left, 11 * SECOND, "a restart gives the full TTL");
    client.lease_keep_alive(lease).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wiped_etcd_is_a_new_one() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    etcd.restart(false);
    assert_eq!(etcd.revision(), 1);
    assert!(etcd.leases().is_empty() && etcd.keys("").is_empty());
    let history = etcd.history();
    let [.., deleted, wiped] = &history[..] else { panic!("{history:?}") };
    assert_eq!((deleted.key(), &deleted.cause), (Some("a"), &Cause::Wipe));
    assert_eq!(wiped.kind, EventKind::Wiped { lease });
    assert_eq!(code_of(client.put("a", "1", bound(lease))).await, Code::NotFound);
    client.put("a", "1", None).await.unwrap();
    assert_eq!(etcd.history().last().unwrap().era, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_extends_every_lease() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    sleep(9 * SECOND).await;
    etcd.leader_change();
    let begun = Instant::now();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 10);
    assert!(begun.elapsed() > SECOND / 2, "renewals wait for the election");
    assert!(etcd.leases()[&lease].left > 9 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_calls_time_out_and_leases_stay() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(5, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    etcd.lose_quorum();
    let begun = Instant::now();
    assert_eq!(code_of(client.put("a", "1", None)).await, Code::Unavailable);
    assert!(begun.elapsed() >= 7 * SECOND);
    let options = ConnectOptions::new().with_require_leader(true);
    let mut impatient = Client::from_channel(etcd.channel("host"), Some(options)).await.unwrap();
    let begun = Instant::now();
    assert_eq!(code_of(impatient.put("a", "1", None)).await, Code::Unavailable);
    assert!(begun.elapsed() < SECOND);
    keeper.keep_alive().await.unwrap();
    let Err(Error::GRpcStatus(status)) = answers.message().await else {
        panic!("a renewal without a quorum was answered");
    };
    assert_eq!(status.message(), "etcdserver: request timed out");
    sleep(60 * SECOND).await;
    assert!(etcd.leases().contains_key(&lease));
    etcd.regain_quorum();
    sleep(3 * SECOND).await;
    client.lease_keep_alive(lease).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn streams_break_by_plan() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    etcd.set_faults("host", FaultPlan { stream_broken: 1.0, ..FaultPlan::none() });
    keeper.keep_alive().await.unwrap();
    answers.message().await.unwrap_err();
    etcd.set_faults("host", FaultPlan::none());
    let (_keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    etcd.cut("host");
    answers.message().await.unwrap_err();
    client.lease_keep_alive(lease).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_a_lease_that_just_expired_waits_for_its_end() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    sleep(SECOND / 10).await;
    let lease = client.lease_grant(2, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    wait_for("the lease runs out", 3 * SECOND, async || {
        etcd.leases().get(&lease).is_none_or(|lease| lease.left.is_zero())
    })
    .await;
    assert!(etcd.leases().contains_key(&lease), "its tick is still to come");
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 0);
    assert!(etcd.leases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn renewals_record_the_time_left() {
    let etcd = SimEtcd::new(1);
    let mut client = etcd.client("host").await;
    let lease = client.lease_grant(10, None).await.unwrap().id();
    let revision = etcd.revision();
    sleep(7 * SECOND).await;
    client.lease_keep_alive(lease).await.unwrap();
    let history = etcd.history();
    let EventKind::Renewed { left, ttl, .. } = history.last().unwrap().kind else {
        panic!("{history:?}");
    };
    assert_eq!(ttl, 10 * SECOND);
    assert!(left < 3 * SECOND && left > 2 * SECOND, "{left:?}");
    assert_eq!(etcd.revision(), revision);
    assert_eq!(etcd.count("host", Call::Renew), 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_forgotten_with_the_process() {
    let etcd = SimEtcd::new(1);
    etcd.require_user("root", "secret", 300 * SECOND);
    let options = ConnectOptions::new().with_user("root", "secret");
    let mut client = Client::from_channel(etcd.channel("host"), Some(options)).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    etcd.restart(true);
    assert_eq!(code_of(client.put("a", "1", None)).await, Code::Unauthenticated);
}

/// Runs a storm of two hosts for a while, and returns all events.
async fn storm(seed: u64) -> Vec<Event> {
    let etcd = SimEtcd::new(seed);
    etcd.set_all_faults(&FaultPlan::all(0.1));
    let host = async |name: &str| {
        let mut client = etcd.client(name).await;
        for round in 0..50 {
            let Ok(Ok(grant)) = timeout(DEADLINE, client.lease_grant(5, None)).await else {
                continue;
            };
            let text = round.to_string();
            let write = client.put(name, text, bound(grant.id()));
            // Whatever becomes of it is what the history is for.
            let _ = timeout(DEADLINE, write).await;
            let _ = timeout(DEADLINE, client.lease_keep_alive(grant.id())).await;
            sleep(SECOND).await;
        }
    };
    let weather = async {
        sleep(20 * SECOND).await;
        etcd.leader_change();
        sleep(20 * SECOND).await;
        etcd.restart(true);
        etcd.blackhole("one");
        sleep(20 * SECOND).await;
        etcd.heal("one");
    };
    tokio::join!(host("one"), host("two"), weather);
    sleep(120 * SECOND).await;
    etcd.history()
}

/// Each run has its own runtime: in a used runtime, timers of the same millisecond fire in another order.
#[test]
fn a_seed_repeats_itself_exactly() {
    let run = |seed| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(storm(seed))
    };
    for seed in 1..20 {
        let (once, again) = (run(seed), run(seed));
        let differs = once.iter().zip(&again).position(|(one, other)| one != other);
        assert_eq!((differs, once.len()), (None, again.len()), "seed {seed}");
    }
    let history = run(11);
    assert!(history.len() > 100);
    assert!(history.iter().any(|event| matches!(event.cause, Cause::Call { late: true, .. })));
    assert!(history != run(12));
}

#[tokio::test(start_paused = true)]
async fn the_history_replays_to_the_store() {
    let etcd = SimEtcd::new(5);
    etcd.set_all_faults(&FaultPlan::all(0.15));
    let mut client = etcd.client("host").await;
    for round in 0..100 {
        let key = format!("k{}", round % 7);
        let Ok(Ok(grant)) = timeout(DEADLINE, client.lease_grant(3, None)).await else {
            continue;
        };
        let write = client.put(key, round.to_string(), bound(grant.id()));
        // Whatever becomes of it is what the history is for.
        let _ = timeout(DEADLINE, write).await;
    }
    let mut replayed = std::collections::BTreeMap::new();
    let mut revision = 1;
    for event in etcd.history() {
        assert!(event.revision == revision || event.revision == revision + 1, "{event:?}");
        revision = event.revision;
        match event.kind {
            EventKind::Put { key, value, lease, previous_lease } => {
                let before = replayed.insert(key, (value, lease));
                assert_eq!(before.map(|(_, lease)| lease), previous_lease);
            }
            EventKind::Delete { key, previous_lease } => {
                assert_eq!(replayed.remove(&key).map(|(_, lease)| lease), Some(previous_lease));
            }
            _ => {}
        }
    }
    let keys = etcd.keys("").into_iter();
    let now: std::collections::BTreeMap<_, _> = keys.map(|(key, entry)| (key, (entry.value, entry.lease))).collect();
    assert_eq!(replayed, now);
}
