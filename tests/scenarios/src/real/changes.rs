//! Watch events of a real etcd, from one revision on.

use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions};
use tokio::time::timeout;

use crate::wait::wait_for;

/// Timeout for a watch event.
const PATIENCE: Duration = Duration::from_secs(20);

/// One event of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// True for a DELETE, of the key or with its lease.
    pub is_delete: bool,
    /// The lease of a put; 0 means none.
    pub lease: i64,
    /// The revision.
    pub revision: i64,
}

/// The store's current revision.
///
/// # Panics
/// If etcd does not respond.
pub async fn revision(client: &mut Client) -> i64 {
    let mut revision = None;
    // An endpoint may be down.
    wait_for("etcd answers", PATIENCE, async || {
        let answer = client.get("/", None).await;
        revision = answer.ok().and_then(|answer| answer.header().map(|header| header.revision()));
        revision.is_some()
    })
    .await;
    revision.expect("it was just there")
}

/// Returns every event after a revision, of all keys, up to now.
///
/// etcd sends the same events to every watcher, at any time. So a watcher that starts afterwards gets the same events as a watcher
/// that was there all the time. It watches etcd itself, without a proxy.
///
/// # Panics
/// If etcd does not send the events, for instance because they were compacted.
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
        let message = timeout(PATIENCE, stream.message()).await.expect("etcd tells its watchers in time");
        let message = message.expect("the watch lives").expect("the watch does not end");
        assert!(!message.canceled(), "the watch was cancelled: {}", message.cancel_reason());
        for event in message.events() {
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
