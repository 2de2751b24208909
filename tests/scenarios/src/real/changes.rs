//! What every watcher of a real etcd is told, from one revision on.

use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions};
use tokio::time::timeout;

use crate::wait::wait_for;

/// A watcher that gets nothing for so long will not get it any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// One event of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Whether the key went, by a delete or with its lease.
    pub is_delete: bool,
    /// The lease of a put; 0 is none.
    pub lease: i64,
    /// The revision.
    pub revision: i64,
}

/// The store's revision now.
///
/// # Panics
/// When etcd does not answer.
pub async fn revision(client: &mut Client) -> i64 {
    let mut revision = None;
    // One of several endpoints may be down.
    wait_for("etcd answers", PATIENCE, async || {
        let answer = client.get("/", None).await;
        revision = answer.ok().and_then(|answer| answer.header().map(|header| header.revision()));
        revision.is_some()
    })
    .await;
    revision.expect("it was just there")
}

/// Every event after a revision, of all keys, up to now.
///
/// etcd tells every watcher the same events whenever it asks for them, so a watcher that asks afterwards is told what
/// one would have been told that watched all the time. It watches etcd itself, past any proxy.
///
/// # Panics
/// When etcd does not tell them, because they are compacted away for instance.
pub async fn changes(client: &mut Client, after: i64) -> Vec<Change> {
    let until = revision(client).await;
    let mut changes = Vec::new();
    if until == after {
        return changes;
    }
    let options = WatchOptions::new().with_all_keys().with_start_revision(after + 1);
    // The events of one response may hold large values.
    let mut watching = client.watch_client().max_decoding_message_size(usize::MAX);
    let mut stream = None;
    wait_for("etcd takes a watcher", PATIENCE, async || {
        stream = watching.watch("", Some(options.clone())).await.ok();
        stream.is_some()
    })
    .await;
    let mut stream = stream.expect("it was just there");
    loop {
        let told = timeout(PATIENCE, stream.message()).await.expect("etcd tells its watchers in time");
        let told = told.expect("the watch lives").expect("the watch does not end");
        assert!(!told.canceled(), "the watch was cancelled: {}", told.cancel_reason());
        for event in told.events() {
            let kv = event.kv().expect("an event has its key");
            changes.push(Change {
                key: String::from_utf8_lossy(kv.key()).into_owned(),
                is_delete: event.event_type() == EventType::Delete,
                lease: kv.lease(),
                revision: kv.mod_revision(),
            });
        }
        if changes.last().is_some_and(|last| last.revision >= until) {
            return changes;
        }
    }
}
