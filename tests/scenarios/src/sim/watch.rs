//! The watchers of keys, and the events for each of them.

use std::collections::BTreeMap;

use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader, PbWatchRequestUnion, PbWatchResponse};
use tokio::sync::mpsc::UnboundedSender;

use super::failure::Failure;
use super::store::{Change, Item, Range, Store};

/// Watch id in etcd for a watch that was refused, and for progress of a whole stream.
const NO_WATCH: i64 = -1;
/// Maximum number of past revisions in one response.
const REVISIONS_PER_RESPONSE: usize = 1000;

/// Sender for the responses of one watch stream.
pub(crate) type Outlet = UnboundedSender<PbWatchResponse>;

/// All watch streams of all hosts.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    streams: BTreeMap<u64, Stream>,
    next: u64,
}

#[derive(Debug)]
struct Stream {
    outlet: Outlet,
    watchers: BTreeMap<i64, Watcher>,
    next: i64,
}

#[derive(Debug)]
struct Watcher {
    range: Range,
    from: i64,
    puts: bool,
    deletes: bool,
    previous: bool,
}

impl Watches {
    pub(crate) fn open(&mut self, outlet: Outlet) -> u64 {
        self.next += 1;
        let stream = Stream { outlet, watchers: BTreeMap::new(), next: 0 };
        self.streams.insert(self.next, stream);
        self.next
    }

    pub(crate) fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
    }

    /// Handles one request of a stream; `permitted` is the result of the token's check.
    pub(crate) fn request(
        &mut self,
        stream: u64,
        request: Option<PbWatchRequestUnion>,
        permitted: Result<(), Failure>,
        store: &Store,
        header: &PbResponseHeader,
    ) {
        let Some(stream) = self.streams.get_mut(&stream) else {
            return;
        };
        match request {
            Some(PbWatchRequestUnion::CreateRequest(mut create)) => {
                if create.key.is_empty() {
                    create.key = vec![0];
                }
                let wanted = (create.watch_id != 0).then_some(create.watch_id);
                let watcher = Watcher {
                    range: Range::new(&create.key, &create.range_end),
                    from: create.start_revision,
                    puts: !create.filters.contains(&0),
                    deletes: !create.filters.contains(&1),
                    previous: create.prev_kv,
                };
                stream.create(wanted, watcher, permitted, store, header);
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) if stream.watchers.remove(&cancel.watch_id).is_some() => {
                stream.send(PbWatchResponse {
                    header: Some(*header),
                    watch_id: cancel.watch_id,
                    canceled: true,
                    ..PbWatchResponse::default()
                });
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) if !stream.watchers.is_empty() => {
                stream.send(PbWatchResponse {
                    header: Some(*header),
                    watch_id: NO_WATCH,
                    ..PbWatchResponse::default()
                });
            }
            _ => {}
        }
    }

    /// Sends the events of one transaction to every watcher, in one response each.
    pub(crate) fn notify(&self, changes: &[Change], compacted: i64, header: &PbResponseHeader) {
        for stream in self.streams.values() {
            for (id, watcher) in &stream.watchers {
                let events = watcher.events(changes.iter(), compacted);
                stream.events(*id, events, header);
            }
        }
    }
}

impl Stream {
    /// Sends a response. The receiver may have ended with its host; the stream's task notices.
    fn send(&self, response: PbWatchResponse) {
        let _ = self.outlet.send(response);
    }

    fn events(&self, watch_id: i64, events: Vec<PbEvent>, header: &PbResponseHeader) {
        if !events.is_empty() {
            self.send(PbWatchResponse { header: Some(*header), watch_id, events, ..PbWatchResponse::default() });
        }
    }

    fn create(
        &mut self,
        wanted: Option<i64>,
        mut watcher: Watcher,
        permitted: Result<(), Failure>,
        store: &Store,
        header: &PbResponseHeader,
    ) {
        let refusal = if watcher.from < 0 {
            Some(Failure::Compacted.reason())
        } else if let Err(failure) = permitted {
            Some(failure.reason())
        } else if watcher.range.is_empty() {
            Some("mvcc: watcher range is empty".to_owned())
        } else if wanted.is_some_and(|id| self.watchers.contains_key(&id)) {
            Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else {
            None
        };
        let created = PbWatchResponse { header: Some(*header), created: true, ..PbWatchResponse::default() };
        if let Some(cancel_reason) = refusal {
            self.send(PbWatchResponse { watch_id: NO_WATCH, canceled: true, cancel_reason, ..created });
            return;
        }
        let id = wanted.unwrap_or_else(|| {
            while self.watchers.contains_key(&self.next) {
                self.next += 1;
            }
            self.next += 1;
            self.next - 1
        });
        self.send(PbWatchResponse { watch_id: id, ..created });
        let past = watcher.from > 0 && watcher.from <= store.revision();
        if past && watcher.from < store.compacted() {
            self.send(PbWatchResponse {
                header: Some(*header),
                watch_id: id,
                canceled: true,
                compact_revision: store.compacted(),
                ..PbWatchResponse::default()
            });
            return;
        }
        if past {
            let changes: Vec<&Change> = store.log_from(watcher.from).collect();
            let mut revisions = changes.chunk_by(|a, b| a.revision == b.revision).peekable();
            while revisions.peek().is_some() {
                let chunk = revisions.by_ref().take(REVISIONS_PER_RESPONSE).flatten();
                let events = watcher.events(chunk.copied(), store.compacted());
                self.events(id, events, header);
            }
        }
        watcher.from = watcher.from.max(store.revision() + 1);
        self.watchers.insert(id, watcher);
    }
}

impl Watcher {
    fn events<'a>(&self, changes: impl Iterator<Item = &'a Change>, compacted: i64) -> Vec<PbEvent> {
        const DELETE: i32 = 1;
        changes
            .filter(|change| {
                let wanted = if change.after.is_some() { self.puts } else { self.deletes };
                wanted && change.revision >= self.from && self.range.contains(&change.key)
            })
            .map(|change| {
                let readable = self.previous && change.revision > compacted;
                let before = change.before.as_ref().filter(|_| readable);
                let (r#type, kv) = match &change.after {
                    Some(item) => (0, item.to_proto()),
                    None => (DELETE, tombstone(change)),
                };
                PbEvent { r#type, kv: Some(kv), prev_kv: before.map(Item::to_proto) }
            })
            .collect()
    }
}

fn tombstone(change: &Change) -> PbKeyValue {
    PbKeyValue { key: change.key.to_vec(), mod_revision: change.revision, ..PbKeyValue::default() }
}
