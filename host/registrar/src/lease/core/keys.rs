//! The keys of one lease, and the queue of those to write.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use tokio::time::Instant;

use crate::lease::core::key::Key;

/// Services that one log line names.
const MAX_NAMED: usize = 5;

/// Keys in order, with a queue of those that are dirty.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Boxed, since a map of this kind is half empty.
    all: BTreeMap<Arc<str>, Box<Key>>,
    /// Number of keys that should be in etcd.
    kept: usize,
    /// Keys to write, in the order in which they became dirty.
    queue: VecDeque<Arc<str>>,
    /// Earliest time for the write of a dirty key that is not queued, since the write before it was too recent.
    rewrite_at: Option<Instant>,
}

impl Keys {
    pub(super) fn insert(&mut self, key: Arc<str>, entry: Key) {
        self.all.insert(key, Box::new(entry));
        self.kept += 1;
    }

    /// Starts the deletion of a key that is kept.
    pub(super) fn stop(&mut self, key: &str) {
        if let Some(entry) = self.all.get_mut(key).filter(|entry| entry.is_kept()) {
            entry.stop();
            self.kept -= 1;
        }
    }

    /// Removes a key, from the queue as well: registered again, it would be in one transaction twice.
    pub(super) fn remove(&mut self, key: &str) -> Option<Box<Key>> {
        let entry = self.all.remove(key)?;
        if entry.is_queued {
            self.queue.retain(|queued| **queued != *key);
        }
        Some(entry)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Key> {
        self.all.get(key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Key> {
        self.all.get_mut(key).map(Box::as_mut)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Key)> {
        self.all.iter().map(|(key, entry)| (key, &**entry))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Arc<str>, &mut Key)> {
        self.all.iter_mut().map(|(key, entry)| (key, &mut **entry))
    }

    /// All keys, those behind `last` first.
    pub(super) fn iter_behind<'a>(&'a self, last: Option<&Arc<str>>) -> impl Iterator<Item = (&'a Arc<str>, &'a Key)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let until = last.map_or(Bound::Unbounded, Bound::Included);
        let behind = self.all.range::<Arc<str>, _>((from, Bound::Unbounded));
        let rest = self.all.range::<Arc<str>, _>((Bound::Unbounded, until));
        behind.chain(rest).take(self.all.len()).map(|(key, entry)| (key, &**entry))
    }

    /// Names of the keys that `is_meant` selects.
    pub(super) fn names(&self, is_meant: impl Fn(&Key) -> bool) -> Vec<Arc<str>> {
        self.all.iter().filter(|(_, entry)| is_meant(entry)).map(|(key, _)| key.clone()).collect()
    }

    /// Returns true if there is no key at all.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Services of the kept keys, for the log; `None` without any. A lease carries one instance of each.
    pub(super) fn services(&self) -> Option<String> {
        let mut names: Vec<_> =
            self.all.values().filter(|key| key.is_kept()).map(|key| key.service().as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let more = match names.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        names.truncate(MAX_NAMED);
        (!names.is_empty()).then(|| format!("{}{more}", names.join(",")))
    }

    /// Queues a key if it is dirty, or notes when it is due.
    pub(super) fn enqueue(&mut self, key: &Arc<str>, now: Instant) {
        if let Some(entry) = self.all.get_mut(key) {
            enqueue(key, entry, now, &mut self.queue, &mut self.rewrite_at);
        }
    }

    /// Queues every dirty key.
    pub(super) fn enqueue_all(&mut self, now: Instant) {
        for (key, entry) in &mut self.all {
            enqueue(key, entry, now, &mut self.queue, &mut self.rewrite_at);
        }
    }

    /// Queues the keys whose rewrite was too soon before. Refused and conflicting keys wait for the next audit.
    pub(super) fn enqueue_due(&mut self, now: Instant) {
        if self.rewrite_at.take_if(|at| *at <= now).is_some() {
            for (key, entry) in self.all.iter_mut().filter(|(_, entry)| entry.is_rewrite()) {
                enqueue(key, entry, now, &mut self.queue, &mut self.rewrite_at);
            }
        }
    }

    /// Puts a key at the front of the queue again.
    pub(super) fn requeue(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.all.get_mut(key)
            && !std::mem::replace(&mut entry.is_queued, true)
        {
            self.queue.push_front(key.clone());
        }
    }

    /// The first key in the queue.
    pub(super) fn next_queued(&self) -> Option<Arc<str>> {
        self.queue.front().cloned()
    }

    /// Takes the first key out of the queue.
    pub(super) fn dequeue(&mut self) -> Option<&mut Key> {
        let entry = self.all.get_mut(&self.queue.pop_front()?)?;
        entry.is_queued = false;
        Some(entry)
    }

    pub(super) fn is_queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Empties the queue, where no key is left to write.
    pub(super) fn clear_queue(&mut self) {
        for key in self.queue.drain(..) {
            if let Some(entry) = self.all.get_mut(&key) {
                entry.is_queued = false;
            }
        }
    }

    /// Moves keys that are to be deleted to the front of the queue.
    pub(super) fn queue_deletes_first(&mut self) {
        let all = &self.all;
        self.queue.make_contiguous().sort_by_key(|key| all.get(key).is_some_and(|entry| entry.is_kept()));
    }

    pub(super) fn rewrite_at(&self) -> Option<Instant> {
        self.rewrite_at
    }
}

fn enqueue(
    key: &Arc<str>,
    entry: &mut Key,
    now: Instant,
    queue: &mut VecDeque<Arc<str>>,
    rewrite_at: &mut Option<Instant>,
) {
    if !entry.is_dirty() || entry.is_queued {
        return;
    }
    let at = entry.write_at();
    if at > now {
        *rewrite_at = Some(rewrite_at.map_or(at, |first| first.min(at)));
        return;
    }
    entry.is_queued = true;
    queue.push_back(key.clone());
}
