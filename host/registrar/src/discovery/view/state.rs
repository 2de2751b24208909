//! The state of a view: filled by the tasks that watch etcd, read by the handles.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tracing::info;

use crate::{
    discovery::{
        node_set::{Content, Entry, Key, NodeSet},
        nodes::Nodes,
        watcher::KeyChange,
    },
    error::Error,
    etcd::{Etcd, Failure, Found, Unavailable},
    layout::{Layout, template::memo::ParseMemo},
    node::{ServerNode, ServiceName, Version},
    timers::Timers,
};

/// Time for which earlier nodes are retained after etcd lost its data: more than four renewal intervals at the default TTL,
/// and a service takes one to come back.
const RETENTION: Duration = Duration::from_secs(15);

/// State of a view, shared by its handles and its tasks.
#[derive(Debug)]
pub(crate) struct ViewState {
    pub(super) name: ServiceName,
    pub(super) version: Version,
    /// Layouts in the order of preference, each with the beginning of its keys.
    pub(super) prefixes: Vec<(Layout, String)>,
    pub(super) request_timeout: Duration,
    pub(super) timers: Arc<Timers>,
    /// Number of changes of the nodes, readable without a lock.
    generation: AtomicU64,
    pub(super) changes: watch::Sender<()>,
    contents: Mutex<Contents>,
}

#[derive(Debug)]
struct Contents {
    layouts: Vec<LayoutSnapshot>,
    /// Nodes of several layouts, or with retained ones. Merged on demand, so that a burst of changes costs one merge.
    merged: Option<Nodes>,
    has_ended: bool,
}

/// Last known entries of one layout.
#[derive(Debug, Default)]
pub(super) struct LayoutSnapshot {
    entries: NodeSet,
    /// Entries from before etcd lost its data, until their retention ends.
    retained: Option<(Instant, NodeSet)>,
    revision: i64,
    /// Time of the last message from etcd.
    confirmed_at: Option<Instant>,
    error: Option<Unavailable>,
}

impl ViewState {
    pub(crate) fn new(
        name: ServiceName,
        version: Version,
        layouts: &[Layout],
        request_timeout: Duration,
        timers: Arc<Timers>,
    ) -> Self {
        let with_prefix = |layout: &Layout| (layout.clone(), layout.prefix(&name, &version));
        let prefixes = layouts.iter().map(with_prefix).collect();
        let layouts = layouts.iter().map(|_| LayoutSnapshot::default()).collect();
        let contents = Mutex::new(Contents { layouts, merged: None, has_ended: false });
        let (generation, changes) = (AtomicU64::new(0), watch::channel(()).0);
        Self { name, version, prefixes, request_timeout, timers, generation, changes, contents }
    }

    /// Subscribes to changes; `None` once the view has ended.
    pub(super) fn subscribe(&self) -> Option<watch::Receiver<()>> {
        let contents = self.contents.lock();
        (!contents.has_ended).then(|| self.changes.subscribe())
    }

    /// Outcome of the first read of all layouts; `None` while it may still succeed.
    pub(super) fn first_read(&self) -> Option<Result<(), Error>> {
        let contents = self.contents.lock();
        if contents.layouts.iter().all(|layout| layout.confirmed_at.is_some()) {
            return Some(Ok(()));
        }
        if contents.has_ended {
            return Some(Err(Error::Ended));
        }
        let denied = |layout: &LayoutSnapshot| layout.error.clone().filter(Unavailable::is_denied);
        contents.layouts.iter().find_map(denied).map(|denied| Err(Error::Unavailable(denied)))
    }

    pub(super) fn nodes(&self) -> Nodes {
        let contents = self.contents.lock();
        match (contents.layouts.as_slice(), &contents.merged) {
            ([LayoutSnapshot { entries, retained: None, .. }], _) => return Nodes(entries.clone()),
            (_, Some(merged)) => return merged.clone(),
            _ => {}
        }
        let retained = |layout: &LayoutSnapshot| layout.retained.as_ref().map(|(_, retained)| retained.clone());
        let layouts: Vec<_> =
            contents.layouts.iter().map(|layout| (retained(layout), layout.entries.clone())).collect();
        let generation = self.generation();
        // Merging very many nodes takes a while, and must not block the thread that renews leases.
        drop(contents);
        let merged = merge(layouts);
        let mut contents = self.contents.lock();
        if self.generation() == generation {
            contents.merged = Some(merged.clone());
        }
        merged
    }

    /// Time at which etcd last confirmed every layout; `None` before the first read.
    pub(super) fn confirmed_at(&self) -> Option<Instant> {
        self.contents.lock().layouts.iter().map(|layout| layout.confirmed_at).min()?
    }

    pub(super) fn error(&self) -> Option<Unavailable> {
        self.contents.lock().layouts.iter().find_map(|layout| layout.error.clone())
    }

    pub(super) fn invalid_keys(&self) -> usize {
        self.contents.lock().layouts.iter().map(|layout| layout.entries.invalid_count()).sum()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Parses a key for one layout.
    pub(super) fn parse(&self, layout: &Layout, memo: &mut ParseMemo, found: Found) -> Arc<Entry> {
        // Under some layouts, keys of other services or versions begin with the same prefix.
        let Self { name, version, .. } = self;
        let is_ours =
            |node: &ServerNode| node.name == *name && (version.as_str().is_empty() || node.version == *version);
        let content = match layout.read_with(memo, &found.key, &found.value) {
            Ok((node, uses_tls)) if is_ours(&node) => {
                // All nodes share one allocation of a long name.
                let node = ServerNode { name: name.clone(), ..node };
                if uses_tls { Content::TlsNode(node) } else { Content::Node(node) }
            }
            Ok(_) => Content::OtherService,
            Err(_) => Content::Invalid,
        };
        Arc::new(Entry { key: Key::from_vec(found.key), created: found.created, content })
    }

    /// Detects whether etcd, now at `revision`, still has the data that this layout was read from. An etcd that lost its data
    /// is at an earlier revision, or does not remember a key.
    pub(super) async fn has_same_data(&self, layout: usize, etcd: &Etcd, revision: i64) -> Result<bool, Failure> {
        let Some((key, created, at)) = self.sample(layout) else { return Ok(true) };
        if revision < at {
            return Ok(false);
        }
        match etcd.created(&key, at).await {
            Ok(remembered) => Ok(remembered == Some(created)),
            // The revision is compacted: etcd has gone on from there.
            Err(Failure::Refused { .. }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// A known key, the revision that created it, and a revision at which it existed.
    fn sample(&self, layout: usize) -> Option<(Key, i64, i64)> {
        let contents = self.contents.lock();
        let layout = contents.layouts.get(layout)?;
        let entry = layout.entries.iter().next()?;
        Some((entry.key.clone(), entry.created, layout.revision.max(entry.created)))
    }

    /// Updates the snapshot of one layout, and notifies the handles if a node changed (the result of `update`), or if the view
    /// failed or recovered.
    pub(super) fn update(&self, layout: usize, update: impl FnOnce(&mut LayoutSnapshot) -> bool) {
        let mut contents = self.contents.lock();
        // Absent once the view has ended; the task behind this update is about to end, too.
        let Some(layout) = contents.layouts.get_mut(layout) else { return };
        let had_failed = layout.error.is_some();
        let changed = update(layout);
        let notifies = changed || layout.error.is_some() != had_failed;
        if changed {
            contents.merged = None;
            self.generation.fetch_add(1, Ordering::Release);
        }
        drop(contents);
        if notifies {
            self.changes.send_replace(());
        }
    }

    /// Ends the view if no handle is left. No handle can be created afterwards.
    pub(super) fn end_if_unused(&self) -> bool {
        let mut contents = self.contents.lock();
        if self.changes.is_closed() {
            contents.has_ended = true;
            contents.merged = None;
            contents.layouts.clear();
        }
        contents.has_ended
    }

    pub(crate) fn end(&self) {
        self.contents.lock().has_ended = true;
        self.changes.send_replace(());
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.contents.lock().has_ended
    }
}

impl LayoutSnapshot {
    /// Replaces all entries. If etcd has lost its data, the former ones are retained for a while.
    pub(super) fn replace(&mut self, now: Instant, revision: i64, entries: NodeSet, has_same_data: bool) {
        let before = std::mem::replace(&mut self.entries, entries);
        if !has_same_data {
            info!(nodes = before.node_count(), "etcd has lost its data; earlier nodes are retained for {RETENTION:?}");
            let retained = self.retained.take().map(|(_, retained)| retained).unwrap_or_default();
            self.retained = Some((now + RETENTION, retained.union(&before)));
        }
        self.revision = revision;
        self.confirmed_at = Some(now);
        self.error = None;
    }

    /// Applies changes in order. Returns true if a node changed.
    pub(super) fn apply(&mut self, now: Instant, changes: Vec<KeyChange<Arc<Entry>>>) -> bool {
        self.confirmed_at = Some(now);
        let mut changed = self.retained.take_if(|(until, _)| *until <= now).is_some();
        for change in changes {
            // A retained entry is obsolete once its key is put or deleted.
            let key = match &change {
                KeyChange::Put(entry) => &entry.key,
                KeyChange::Deleted(key, _) => key.as_slice(),
            };
            let retained = self.retained.as_mut().and_then(|(_, retained)| retained.remove(key));
            let (new, old) = match change {
                KeyChange::Put(entry) => (Some(entry.clone()), self.entries.insert(entry)),
                KeyChange::Deleted(key, _) => (None, self.entries.remove(&key)),
            };
            changed |= published(old.or(retained).as_ref()) != published(new.as_ref());
        }
        changed
    }

    pub(super) fn fail(&mut self, error: Unavailable) {
        self.error = Some(error);
    }
}

/// The part of an entry that handles can see: its node, and whether that uses TLS.
fn published(entry: Option<&Arc<Entry>>) -> Option<(&ServerNode, bool)> {
    let entry = entry?;
    Some((entry.node()?, entry.uses_tls()))
}

/// Merges the retained and the current entries of each layout. An instance under several layouts counts once, as the first
/// of them has it.
fn merge(layouts: Vec<(Option<NodeSet>, NodeSet)>) -> Nodes {
    let is_single = layouts.len() == 1;
    let mut instances = HashSet::new();
    let mut is_new = |entry: &Arc<Entry>| {
        let node = entry.node();
        is_single || node.is_some_and(|node| instances.insert((node.version.clone(), node.addr.clone())))
    };
    let mut all: Vec<Arc<Entry>> = Vec::new();
    for (retained, entries) in layouts {
        let of_layout = retained.map_or_else(|| entries.clone(), |retained| retained.union(&entries));
        all.extend(of_layout.iter().filter(|entry| is_new(entry)).cloned());
    }
    Nodes(NodeSet::from_sorted(all))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::ViewState;

    #[test]
    fn the_task_of_a_second_layout_may_have_changes_after_the_end() {
        let layouts = ["seed", "kratos"].map(|name| name.parse().unwrap());
        let (name, version) = ("user".parse().unwrap(), "".parse().unwrap());
        let state = ViewState::new(name, version, &layouts, Duration::from_secs(1), Arc::default());
        drop(state.subscribe().unwrap());
        assert!(state.end_if_unused());
        state.update(1, |_| panic!("the view has ended"));
        assert!(state.sample(1).is_none() && state.subscribe().is_none());
    }
}
