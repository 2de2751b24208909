//! Leases: granted, renewed, bound, moved, detached, revoked, expired.

use std::time::Duration;

use etcd_client::{Client, Error, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp};
use leasehold_scenarios::wait_for;
use tonic::Code;

use crate::conformance::{Target, keys, on_both, refused, revision, value};

on_both!(simulated, real:
    a_grant_chooses_the_id_and_raises_the_ttl,
    an_unknown_lease_is_reported_as_such,
    a_revocation_of_no_lease_goes_through_the_log_and_changes_nothing,
    a_lease_lists_its_keys,
    a_revoke_deletes_the_keys_in_one_revision,
    a_put_under_another_lease_moves_the_key,
    a_put_without_a_lease_detaches_the_key,
    a_deleted_key_leaves_its_lease,
    a_transaction_moves_keys,
    a_stream_renews_until_the_lease_is_gone,
    a_lease_expires_with_its_keys,
    leases_are_listed,
);

fn bound(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

async fn keys_of(client: &mut Client, lease: i64) -> Vec<String> {
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let response = client.lease_time_to_live(lease, Some(options)).await.unwrap();
    let mut keys: Vec<String> = response.keys().iter().map(|key| String::from_utf8(key.clone()).unwrap()).collect();
    keys.sort();
    keys
}

async fn a_grant_chooses_the_id_and_raises_the_ttl(target: Target) {
    let mut client = target.client().await;
    for (requested, granted) in [(-5, 2), (0, 2), (1, 2), (2, 2), (10, 10), (9_000_000_000, 9_000_000_000)] {
        let grant = client.lease_grant(requested, None).await.unwrap();
        assert!(grant.id() > 0);
        assert_eq!(grant.ttl(), granted, "asked for {requested}");
    }
    refused(client.lease_grant(9_000_000_001, None).await, Code::OutOfRange, "etcdserver: too large lease TTL");
    let chosen = || Some(LeaseGrantOptions::new().with_id(77));
    assert_eq!(client.lease_grant(10, chosen()).await.unwrap().id(), 77);
    refused(client.lease_grant(10, chosen()).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    assert_eq!(revision(&mut client).await, 1);
}

async fn an_unknown_lease_is_reported_as_such(target: Target) {
    let mut client = target.client().await;
    let unknown = client.lease_time_to_live(4242, None).await.unwrap();
    assert_eq!((unknown.id(), unknown.ttl(), unknown.granted_ttl()), (4242, -1, 0));
    refused(client.lease_revoke(4242).await, Code::NotFound, "etcdserver: requested lease not found");
    let renewed = client.lease_keep_alive(4242).await;
    assert!(matches!(renewed, Err(Error::LeaseKeepAliveError(_))), "{renewed:?}");
}

async fn a_revocation_of_no_lease_goes_through_the_log_and_changes_nothing(target: Target) {
    let mut client = target.client().await;
    let (before, granted) = (client.status().await.unwrap().raft_index(), revision(&mut client).await);
    refused(client.lease_revoke(0).await, Code::NotFound, "etcdserver: requested lease not found");
    let after = client.status().await.unwrap().raft_index();
    assert!(after > before, "{before} {after}");
    assert_eq!(revision(&mut client).await, granted);
}

async fn a_lease_lists_its_keys(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    assert_eq!(keys_of(&mut client, lease).await.len(), 0);
    client.put("a", "1", bound(lease)).await.unwrap();
    client.put("b", "1", bound(lease)).await.unwrap();
    client.put("b", "2", bound(lease)).await.unwrap();
    assert_eq!(keys_of(&mut client, lease).await, ["a", "b"]);
    let without = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(without.keys().is_empty());
    assert_eq!(without.granted_ttl(), 60);
    assert!((58..=60).contains(&without.ttl()), "{}", without.ttl());
}

async fn a_revoke_deletes_the_keys_in_one_revision(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    for key in ["a", "b", "c"] {
        client.put(key, "1", bound(lease)).await.unwrap();
    }
    let revoked = client.lease_revoke(lease).await.unwrap();
    assert_eq!(revoked.header().unwrap().revision(), 5);
    assert_eq!(keys(&mut client, "").await.len(), 0);
    let empty = client.lease_grant(60, None).await.unwrap().id();
    client.lease_revoke(empty).await.unwrap();
    assert_eq!(revision(&mut client).await, 5);
}

async fn a_put_under_another_lease_moves_the_key(target: Target) {
    let mut client = target.client().await;
    let old = client.lease_grant(60, None).await.unwrap().id();
    let new = client.lease_grant(60, None).await.unwrap().id();
    client.put("a", "1", bound(old)).await.unwrap();
    client.put("a", "2", bound(new)).await.unwrap();
    assert_eq!(keys_of(&mut client, old).await.len(), 0);
    assert_eq!(keys_of(&mut client, new).await, ["a"]);
    client.lease_revoke(old).await.unwrap();
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("2"));
    client.lease_revoke(new).await.unwrap();
    assert_eq!(value(&mut client, "a").await, None);
}

async fn a_put_without_a_lease_detaches_the_key(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    client.put("a", "2", None).await.unwrap();
    assert_eq!(keys_of(&mut client, lease).await.len(), 0);
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("2"));
}

async fn a_deleted_key_leaves_its_lease(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    client.delete("a", None).await.unwrap();
    assert_eq!(keys_of(&mut client, lease).await.len(), 0);
    client.put("a", "2", None).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("2"));
}

async fn a_transaction_moves_keys(target: Target) {
    let mut client = target.client().await;
    let old = client.lease_grant(60, None).await.unwrap().id();
    let new = client.lease_grant(60, None).await.unwrap().id();
    for key in ["a", "b", "c"] {
        client.put(key, "1", bound(old)).await.unwrap();
    }
    let operations = [
        TxnOp::put("a", "2", bound(new)),
        TxnOp::put("b", "2", None),
        TxnOp::txn(Txn::new().and_then([TxnOp::put("d", "2", bound(new))])),
        TxnOp::delete("c", None),
    ];
    client.txn(Txn::new().and_then(operations)).await.unwrap();
    assert_eq!(keys_of(&mut client, old).await.len(), 0);
    assert_eq!(keys_of(&mut client, new).await, ["a", "d"]);
}

async fn a_stream_renews_until_the_lease_is_gone(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let other = client.lease_grant(30, None).await.unwrap().id();
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    for _ in 0..2 {
        keeper.keep_alive().await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id(), answer.ttl()), (lease, 60));
    }
    let (_keeper, _answers) = client.lease_keep_alive(other).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.id(), answer.ttl()), (lease, 0));
    drop(keeper);
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(revision(&mut client).await, 1);
}

async fn a_lease_expires_with_its_keys(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(2, None).await.unwrap().id();
    client.put("a", "1", bound(lease)).await.unwrap();
    client.put("b", "1", bound(lease)).await.unwrap();
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("1"));
    let mut reader = client.clone();
    wait_for("the lease runs out", Duration::from_secs(10), async || value(&mut reader, "a").await.is_none()).await;
    assert_eq!(value(&mut client, "b").await, None);
    assert_eq!(revision(&mut client).await, 4);
    assert_eq!(client.lease_time_to_live(lease, None).await.unwrap().ttl(), -1);
    refused(client.put("a", "2", bound(lease)).await, Code::NotFound, "etcdserver: requested lease not found");
}

async fn leases_are_listed(target: Target) {
    let mut client = target.client().await;
    assert!(client.leases().await.unwrap().leases().is_empty());
    let late = client.lease_grant(60, None).await.unwrap().id();
    let soon = client.lease_grant(30, None).await.unwrap().id();
    let listed = client.leases().await.unwrap();
    let ids: Vec<i64> = listed.leases().iter().map(|lease| lease.id()).collect();
    assert_eq!(ids, [soon, late]);
}
