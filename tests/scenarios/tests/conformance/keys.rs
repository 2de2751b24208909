//! Reads, puts and deletes, with their limits; compaction and the full quota.

use etcd_client::{
    AlarmAction, AlarmType, CompactionOptions, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget,
};
use tonic::Code;

use crate::conformance::{Target, on_both, refused, revision, value};

on_both!(simulated, real:
    a_write_is_a_revision,
    ranges_are_read_with_their_options,
    the_past_is_read_until_it_is_compacted,
    a_put_returns_the_previous_value,
    a_put_can_keep_the_value_or_the_lease,
    an_empty_key_is_refused,
    a_delete_returns_the_previous_values,
    a_large_request_is_refused,
    a_full_etcd_refuses_puts_and_nothing_else,
    the_member_leads,
);

async fn a_write_is_a_revision(target: Target) {
    let mut client = target.client().await;
    assert_eq!(revision(&mut client).await, 1);
    let put = client.put("a", "1", None).await.unwrap();
    assert_eq!(put.header().unwrap().revision(), 2);
    client.put("a", "2", None).await.unwrap();
    let get = client.get("a", None).await.unwrap();
    let kv = &get.kvs()[0];
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version()), (2, 3, 2));
    let delete = client.delete("b", None).await.unwrap();
    assert_eq!(delete.deleted(), 0);
    assert_eq!(delete.header().unwrap().revision(), 3);
    client.delete("a", None).await.unwrap();
    client.put("a", "3", None).await.unwrap();
    let get = client.get("a", None).await.unwrap();
    let kv = &get.kvs()[0];
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version()), (5, 5, 1));
}

async fn ranges_are_read_with_their_options(target: Target) {
    let mut client = target.client().await;
    for (key, text) in [("/a/2", "x"), ("/a/1", "z"), ("/a/3", "y"), ("/b", "w")] {
        client.put(key, text, None).await.unwrap();
    }
    client.put("/a/2", "xx", None).await.unwrap();
    let mut read = async |key: &str, options: GetOptions| {
        let response = client.get(key, Some(options)).await.unwrap();
        let pairs = response.kvs().iter().map(|kv| format!("{}={}", kv.key_str().unwrap(), kv.value_str().unwrap()));
        (pairs.collect::<Vec<_>>().join(" "), response.count(), response.more())
    };
    let expect = |text: &str, count, more| (text.to_owned(), count, more);
    let prefix = || GetOptions::new().with_prefix();
    assert_eq!(read("/a/", prefix()).await, expect("/a/1=z /a/2=xx /a/3=y", 3, false));
    assert_eq!(read("/a/", prefix().with_keys_only()).await, expect("/a/1= /a/2= /a/3=", 3, false));
    assert_eq!(read("/a/", prefix().with_count_only()).await, expect("", 3, false));
    assert_eq!(read("/a/", prefix().with_limit(2)).await, expect("/a/1=z /a/2=xx", 3, true));
    assert_eq!(read("/a/3", GetOptions::new().with_from_key()).await, expect("/a/3=y /b=w", 2, false));
    assert_eq!(read("/a/2", GetOptions::new().with_range("/b")).await, expect("/a/2=xx /a/3=y", 2, false));
    assert_eq!(
        read("/a/", prefix().with_sort(SortTarget::Key, SortOrder::Descend)).await,
        expect("/a/3=y /a/2=xx /a/1=z", 3, false)
    );
    let by_change = SortTarget::Mod;
    assert_eq!(
        read("/a/", prefix().with_sort(by_change, SortOrder::Descend).with_limit(1)).await,
        expect("/a/2=xx", 3, true)
    );
    assert_eq!(
        read("/a/", prefix().with_sort(SortTarget::Value, SortOrder::None)).await,
        expect("/a/2=xx /a/3=y /a/1=z", 3, false)
    );
    assert_eq!(read("/a/", prefix().with_min_mod_revision(4)).await, expect("/a/2=xx /a/3=y", 3, false));
    assert_eq!(read("/a/", prefix().with_revision(3)).await, expect("/a/1=z /a/2=x", 2, false));
    assert_eq!(read("/c", GetOptions::new()).await, expect("", 0, false));
}

async fn the_past_is_read_until_it_is_compacted(target: Target) {
    let mut client = target.client().await;
    for text in ["1", "2", "3"] {
        client.put("a", text, None).await.unwrap();
    }
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    let past = client.get("a", at(2)).await.unwrap();
    assert_eq!(past.kvs()[0].value(), b"1");
    assert_eq!(past.header().unwrap().revision(), 4);
    refused(client.get("a", at(5)).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let physical = CompactionOptions::new().with_physical();
    client.compact(3, Some(physical)).await.unwrap();
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    refused(client.get("a", at(2)).await, Code::OutOfRange, compacted);
    assert_eq!(client.get("a", at(3)).await.unwrap().kvs()[0].value(), b"2");
    refused(client.compact(3, None).await, Code::OutOfRange, compacted);
    refused(
        client.compact(9, None).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("3"));
}

async fn a_put_returns_the_previous_value(target: Target) {
    let mut client = target.client().await;
    let shown = || Some(PutOptions::new().with_prev_key());
    assert!(client.put("a", "1", shown()).await.unwrap().prev_key().is_none());
    let again = client.put("a", "2", shown()).await.unwrap();
    assert_eq!(again.prev_key().unwrap().value(), b"1");
    assert!(client.put("a", "3", None).await.unwrap().prev_key().is_none());
}

async fn a_put_can_keep_the_value_or_the_lease(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let keep_value = || PutOptions::new().with_ignore_value();
    let keep_lease = || PutOptions::new().with_ignore_lease();
    let missing = "etcdserver: key not found";
    refused(client.put("a", "", Some(keep_value())).await, Code::InvalidArgument, missing);
    refused(client.put("a", "1", Some(keep_lease())).await, Code::InvalidArgument, missing);
    client.put("a", "1", None).await.unwrap();
    refused(client.put("a", "2", Some(keep_value())).await, Code::InvalidArgument, "etcdserver: value is provided");
    refused(
        client.put("a", "2", Some(keep_lease().with_lease(lease))).await,
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );
    client.put("a", "", Some(keep_value().with_lease(lease))).await.unwrap();
    client.put("a", "2", Some(keep_lease())).await.unwrap();
    let get = client.get("a", None).await.unwrap();
    assert_eq!((get.kvs()[0].value(), get.kvs()[0].lease()), (&b"2"[..], lease));
}

async fn an_empty_key_is_refused(target: Target) {
    let mut client = target.client().await;
    let words = "etcdserver: key is not provided";
    refused(client.get("", None).await, Code::InvalidArgument, words);
    refused(client.put("", "1", None).await, Code::InvalidArgument, words);
    refused(client.delete("", None).await, Code::InvalidArgument, words);
}

async fn a_delete_returns_the_previous_values(target: Target) {
    let mut client = target.client().await;
    for key in ["/a/1", "/a/2", "/b"] {
        client.put(key, key, None).await.unwrap();
    }
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("/a/", Some(options)).await.unwrap();
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (2, 2));
    assert_eq!(deleted.prev_kvs()[0].key(), b"/a/1");
    assert_eq!(deleted.header().unwrap().revision(), 5);
    assert_eq!(value(&mut client, "/b").await.as_deref(), Some("/b"));
}

async fn a_large_request_is_refused(target: Target) {
    let mut client = target.client().await;
    let text = |bytes: usize| "x".repeat(bytes);
    const LIMIT: usize = 3 * 512 * 1024;
    client.put("a", text(LIMIT - 1024), None).await.unwrap();
    let words = "etcdserver: request is too large";
    refused(client.put("a", text(LIMIT), None).await, Code::InvalidArgument, words);
    let beyond = client.put("a", text(2 * 1024 * 1024), None).await;
    let Err(etcd_client::Error::GRpcStatus(status)) = beyond else {
        panic!("a message beyond what gRPC reads was accepted");
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let words = "received message larger than max";
    assert!(status.message().contains(words), "{}", status.message());
}

async fn a_full_etcd_refuses_puts_and_nothing_else(target: Target) {
    let mut client = target.client().await;
    client.put("a", "1", None).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    let words = "etcdserver: mvcc: database space exceeded";
    refused(client.put("a", "2", None).await, Code::ResourceExhausted, words);
    refused(client.lease_grant(60, None).await, Code::ResourceExhausted, words);
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("1"));
    client.lease_keep_alive(lease).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    client.delete("a", None).await.unwrap();
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.unwrap();
    client.put("a", "2", None).await.unwrap();
}

async fn the_member_leads(target: Target) {
    let mut client = target.client().await;
    let status = client.status().await.unwrap();
    assert_ne!(status.leader(), 0);
    assert_eq!(status.leader(), status.header().unwrap().member_id());
}
