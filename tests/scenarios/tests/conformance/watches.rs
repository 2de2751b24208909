//! Watches: their events, their start, their portions, and their end.

use etcd_client::{
    DeleteOptions, EventType, PutOptions, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};

use crate::conformance::{Target, on_both};

on_both!(simulated, real:
    a_watch_reports_puts_and_deletes,
    a_transaction_is_one_response,
    the_end_of_a_lease_is_one_response,
    a_watch_can_begin_in_the_past,
    a_watch_of_the_compacted_past_is_cancelled,
    a_watch_can_be_cancelled,
    a_watch_reports_progress,
    a_watch_can_be_filtered,
    a_stream_carries_many_watches,
    an_impossible_watch_is_refused,
);

fn prefix() -> Option<WatchOptions> {
    Some(WatchOptions::new().with_prefix())
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    stream.message().await.unwrap().expect("the stream goes on")
}

/// The events of a response as text: `+key=value`, `-key`.
fn described(response: &WatchResponse) -> Vec<String> {
    let text = |event: &etcd_client::Event| {
        let kv = event.kv().unwrap();
        let key = kv.key_str().unwrap();
        match event.event_type() {
            EventType::Put => format!("+{key}={}", kv.value_str().unwrap()),
            EventType::Delete => format!("-{key}"),
        }
    };
    response.events().iter().map(text).collect()
}

async fn a_watch_reports_puts_and_deletes(target: Target) {
    let mut client = target.client().await;
    client.put("/p/0", "old", None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("/p/", Some(options)).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created() && !created.canceled() && created.events().is_empty());
    client.put("/p/1", "1", None).await.unwrap();
    client.put("/q", "1", None).await.unwrap();
    client.put("/p/0", "new", None).await.unwrap();
    client.delete("/p/0", None).await.unwrap();

    let first = next(&mut stream).await;
    assert_eq!(described(&first), ["+/p/1=1"]);
    assert!(first.events()[0].prev_kv().is_none());
    assert_eq!(first.events()[0].kv().unwrap().version(), 1);
    assert_eq!(first.header().unwrap().revision(), 3);
    let second = next(&mut stream).await;
    assert_eq!(described(&second), ["+/p/0=new"]);
    assert_eq!(second.events()[0].prev_kv().unwrap().value(), b"old");
    let third = next(&mut stream).await;
    assert_eq!(described(&third), ["-/p/0"]);
    assert_eq!(third.events()[0].prev_kv().unwrap().value(), b"new");
    let kv = third.events()[0].kv().unwrap();
    assert_eq!((kv.mod_revision(), kv.version(), kv.value()), (6, 0, &b""[..]));
}

async fn a_transaction_is_one_response(target: Target) {
    let mut client = target.client().await;
    client.put("/p/3", "1", None).await.unwrap();
    let mut stream = client.watch("/p/", prefix()).await.unwrap();
    next(&mut stream).await;
    let operations = [TxnOp::put("/p/2", "1", None), TxnOp::put("/p/1", "1", None), TxnOp::delete("/p/3", None)];
    client.txn(Txn::new().and_then(operations)).await.unwrap();
    assert_eq!(described(&next(&mut stream).await), ["+/p/2=1", "+/p/1=1", "-/p/3"]);
    let all = DeleteOptions::new().with_prefix();
    client.delete("/p/", Some(all)).await.unwrap();
    assert_eq!(described(&next(&mut stream).await), ["-/p/1", "-/p/2"]);
}

async fn the_end_of_a_lease_is_one_response(target: Target) {
    let mut client = target.client().await;
    let lease = client.lease_grant(2, None).await.unwrap().id();
    for key in ["/p/b", "/p/a"] {
        let bound = PutOptions::new().with_lease(lease);
        client.put(key, "1", Some(bound)).await.unwrap();
    }
    let mut stream = client.watch("/p/", prefix()).await.unwrap();
    next(&mut stream).await;
    assert_eq!(described(&next(&mut stream).await), ["-/p/a", "-/p/b"]);
}

async fn a_watch_can_begin_in_the_past(target: Target) {
    let mut client = target.client().await;
    for text in ["1", "2", "3"] {
        client.put("a", text, None).await.unwrap();
    }
    let options = WatchOptions::new().with_start_revision(3);
    let mut stream = client.watch("a", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(described(&next(&mut stream).await));
    }
    client.put("a", "4", None).await.unwrap();
    seen.extend(described(&next(&mut stream).await));
    assert_eq!(seen, ["+a=2", "+a=3", "+a=4"]);

    let future = WatchOptions::new().with_start_revision(7);
    let mut stream = client.watch("a", Some(future)).await.unwrap();
    assert!(next(&mut stream).await.created());
    client.put("a", "6", None).await.unwrap();
    client.put("a", "7", None).await.unwrap();
    assert_eq!(described(&next(&mut stream).await), ["+a=7"]);
}

async fn a_watch_of_the_compacted_past_is_cancelled(target: Target) {
    let mut client = target.client().await;
    for text in ["1", "2", "3"] {
        client.put("a", text, None).await.unwrap();
    }
    client.compact(4, None).await.unwrap();
    let options = WatchOptions::new().with_start_revision(2);
    let mut stream = client.watch("a", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let cancelled = next(&mut stream).await;
    assert!(cancelled.canceled());
    assert_eq!(cancelled.compact_revision(), 4);
}

async fn a_watch_can_be_cancelled(target: Target) {
    let mut client = target.client().await;
    let mut stream = client.watch("a", None).await.unwrap();
    let id = next(&mut stream).await.watch_id();
    stream.cancel(id).await.unwrap();
    let cancelled = next(&mut stream).await;
    assert!(cancelled.canceled() && !cancelled.created());
    assert_eq!((cancelled.watch_id(), cancelled.compact_revision()), (id, 0));
}

async fn a_watch_reports_progress(target: Target) {
    let mut client = target.client().await;
    client.put("b", "1", None).await.unwrap();
    let mut stream = client.watch("a", None).await.unwrap();
    next(&mut stream).await;
    stream.request_progress().await.unwrap();
    let progress = next(&mut stream).await;
    assert!(progress.events().is_empty() && !progress.canceled());
    assert_eq!(progress.watch_id(), -1);
    assert_eq!(progress.header().unwrap().revision(), 2);
}

async fn a_watch_can_be_filtered(target: Target) {
    let mut client = target.client().await;
    let options = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    let mut stream = client.watch("a", Some(options)).await.unwrap();
    next(&mut stream).await;
    client.put("a", "1", None).await.unwrap();
    client.delete("a", None).await.unwrap();
    assert_eq!(described(&next(&mut stream).await), ["-a"]);
}

async fn a_stream_carries_many_watches(target: Target) {
    let mut client = target.client().await;
    let mut stream = client.watch("a", None).await.unwrap();
    let first = next(&mut stream).await.watch_id();
    stream.watch("b", None).await.unwrap();
    let second = next(&mut stream).await;
    assert!(second.created());
    assert_ne!(first, second.watch_id());
    client.put("b", "1", None).await.unwrap();
    let response = next(&mut stream).await;
    assert_eq!((response.watch_id(), described(&response)), (second.watch_id(), vec!["+b=1".to_owned()]));
}

async fn an_impossible_watch_is_refused(target: Target) {
    let mut client = target.client().await;
    let backwards = WatchOptions::new().with_range("a");
    let mut stream = client.watch("b", Some(backwards)).await.unwrap();
    let refused = next(&mut stream).await;
    assert!(refused.created() && refused.canceled());
    assert_eq!(refused.watch_id(), -1);
}
