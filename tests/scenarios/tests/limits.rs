//! Bad input, and limits of a real etcd: sizes, times, space, history.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions};
use leasehold::{Error, EventKind, Metadata, Options, Registrar, ServerNode, State, Terms, Ttl};
use leasehold_scenarios::{
    fleet::{Fleet, options},
    real::{Etcd, revision},
    wait_for,
    world::SOON,
};
use tokio::{task::JoinSet, time::Instant};

/// Extra time for a loaded machine.
const SLACK: Duration = Duration::from_secs(2);

fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:10002").unwrap()
}

#[test]
fn bounded_bad_input_is_an_error_that_names_the_field_and_the_limit() {
    for (seconds, limit) in [(0, "1 to"), (9_000_000_001, "9000000000"), (u64::MAX, "9000000000")] {
        let error = Ttl::try_from(seconds).unwrap_err().to_string();
        assert!(error.contains("ttl") && error.contains(limit) && error.contains(&seconds.to_string()), "{error}");
    }
    let long = |bytes| "x".repeat(bytes);
    for (error, field, limit) in [
        (ServerNode::new(&long(254), "127.0.0.1:1").unwrap_err(), "name", "253"),
        (ServerNode::new("user", &format!("{}:1", long(254))).unwrap_err(), "addr", ""),
        (long(129).parse::<leasehold::Version>().unwrap_err(), "version", "128"),
        (Metadata::try_from(vec![("key".to_owned(), long(17 * 1024))]).unwrap_err(), "metadata", "16384"),
        (Metadata::try_from(vec![("key".to_owned(), long(1)); 65]).unwrap_err(), "metadata", "64"),
        (leasehold::Weight::try_from(101).unwrap_err(), "weight", "100"),
    ] {
        let error = error.to_string();
        assert!(error.contains(field) && error.contains(limit), "{error}");
        assert!(error.len() < 1024, "an error is for people: {} bytes", error.len());
    }
}

#[test]
fn bounded_options_that_break_a_rule_start_nothing() {
    let good = || Options::new(["http://127.0.0.1:1"]);
    for bad in [
        Options::new(Vec::<String>::new()),
        Options::new(["http://root:correct-horse@127.0.0.1:1"]),
        Options { request_timeout: Duration::ZERO, ..good() },
        Options { dial_timeout: Duration::from_secs(3601), ..good() },
    ] {
        let error = Registrar::start(bad).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(!error.to_string().contains("correct-horse"), "{error}");
    }
}

#[tokio::test]
async fn no_clobber_a_prefix_of_another_registry_is_refused() {
    let etcd = Box::pin(Etcd::start()).await;
    let registrar = Registrar::start(options([etcd.endpoint()])).unwrap();
    for (name, owner) in [("microservices", "kratos"), ("micro", "go-micro"), ("rpcx", "rpcx"), ("service", "goframe")]
    {
        let error = registrar.register(ServerNode::new(name, "127.0.0.1:1").unwrap()).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains(owner), "{error}");
    }
    assert_eq!(revision(&mut etcd.client().await).await, 1, "something was written");
}

#[tokio::test]
async fn visible_with_the_shortest_and_the_longest_ttl() {
    let etcd = Box::pin(Etcd::start()).await;
    let registrar = Registrar::start(options([etcd.endpoint()])).unwrap();
    // etcd grants at least 2 s.
    for (requested, granted) in [(1, 2), (9_000_000_000, 9_000_000_000)] {
        let terms = Terms { ttl: Some(requested.try_into().unwrap()), ..Terms::default() };
        let registration = registrar.register_on(user(), terms).await.unwrap();
        let mut client = etcd.client().await;
        let lease = client.get(&**registration.key(), None).await.unwrap().kvs()[0].lease();
        assert_eq!(client.lease_time_to_live(lease, None).await.unwrap().granted_ttl(), granted);
        let left = registration.status().ttl_remaining.as_secs_f64();
        assert!(left <= granted as f64 && left > granted as f64 - 2.0, "{left}");
        registration.stop().await.unwrap();
    }
}

#[tokio::test]
async fn bounded_more_than_a_request_may_hold_goes_key_by_key() {
    let etcd = Box::pin(Etcd::options().max_request(1024).start()).await;
    let registrar = Registrar::start(options([etcd.endpoint()])).unwrap();
    let begun = Instant::now();
    let mut registering = JoinSet::new();
    for index in 0..40 {
        let registrar = registrar.clone();
        let node = ServerNode::new(&format!("service-{index}"), "127.0.0.1:1").unwrap();
        registering.spawn(async move { registrar.register(node).await });
    }
    let too_long = ServerNode::new(&"x".repeat(250), "127.0.0.1:1").unwrap();
    let (registered, refused) = tokio::join!(registering.join_all(), registrar.register(too_long));
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("too large") && refused.to_string().contains(&etcd.endpoint()), "{refused}");
    assert!(begun.elapsed() <= SLACK, "{:?}", begun.elapsed());
    assert!(registered.iter().all(|one| one.as_ref().unwrap().status().state == State::Registered));
    registrar.shutdown(SOON).await.unwrap();
}

#[tokio::test]
async fn self_healing_through_compactions() {
    let etcd = Box::pin(Etcd::start()).await;
    let mut fleet = Fleet::start(options([etcd.endpoint()]), etcd.client().await).await;
    let mut client = etcd.client().await;
    for round in 0..3 {
        client.put("elsewhere", format!("{round}"), None).await.unwrap();
        let now = revision(&mut client).await;
        client.compact(now, Some(CompactionOptions::new().with_physical())).await.unwrap();
        fleet.is_renewed(1).await;
    }
    fleet.heard_none_of(&[EventKind::Suspect, EventKind::Recovering]);
    let key = fleet.registrations[0].key().clone();
    client.delete(&*key, None).await.unwrap();
    fleet.registrations[0].wait_for(|status| status.recoveries == 1).await.unwrap();
    fleet.stands().await;
}

/// Puts until etcd has no space left.
async fn fill(client: &mut Client) {
    let text = "x".repeat(512 * 1024);
    wait_for("the quota is reached", SOON, async || client.put("filling", text.clone(), None).await.is_err()).await;
}

/// Frees space, as an operator does.
async fn make_room(client: &mut Client) {
    let now = revision(client).await;
    client.compact(now, Some(CompactionOptions::new().with_physical())).await.unwrap();
    client.defragment().await.unwrap();
    let raised = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    assert!(!raised.alarms().is_empty());
    for alarm in raised.alarms() {
        let mut of_member = AlarmOptions::new();
        of_member.with_member(alarm.member_id());
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of_member)).await.unwrap();
    }
}

#[tokio::test]
async fn self_healing_after_etcd_had_no_space() {
    let etcd = Box::pin(Etcd::options().quota(4 * 1024 * 1024).start()).await;
    let endpoint = etcd.endpoint();
    let patient = Duration::from_secs(2);
    let options = Options { register_timeout: patient, ..options([endpoint.clone()]) };
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    let mut client = etcd.client().await;
    fill(&mut client).await;
    fleet.events();
    fleet.is_renewed(4).await;
    fleet.heard_none_of(&[EventKind::Suspect, EventKind::Recovering]);
    assert!(!fleet.changes().await.iter().any(|change| change.is_delete));
    let begun = Instant::now();
    let registrar = fleet.registrar.clone();
    let refused = async |node| {
        let error = registrar.register(node).await.err()?.to_string();
        assert!(error.contains(&endpoint) && error.contains("database space exceeded"), "{error}");
        Some(())
    };
    // A fourth instance needs a lease of its own, and etcd grants no lease.
    assert!(refused(user()).await.is_some());
    // On an existing lease a key may still be written: some releases of etcd do not count the puts of a nested
    // transaction.
    refused(ServerNode::new("new", "127.0.0.1:1").unwrap()).await;
    assert!(begun.elapsed() <= 2 * (patient + SLACK), "{:?}", begun.elapsed());
    // A stop needs no space, and a lease that is lost now recovers when there is space again.
    fleet.registrations.pop().unwrap().stop().await.unwrap();
    let lost = fleet.leases().await[0];
    client.lease_revoke(lost).await.unwrap();
    wait_for("the loss is noticed", SOON, async || {
        fleet.registrations.iter().any(|one| one.status().state == State::Recovering)
    })
    .await;
    make_room(&mut client).await;
    assert!(fleet.stands().await <= SLACK);
    fleet.registrar.register(user()).await.unwrap().stop().await.unwrap();
}
