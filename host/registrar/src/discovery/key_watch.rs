//! A watch of every key of the layouts, valid or not.

use std::{collections::HashSet, time::Duration};

use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::{
    discovery::{
        list::{Ranges, RawEntry},
        watcher::{KeyChange, PrefixWatcher, Update},
    },
    error::Error,
    etcd::{Etcd, Unavailable},
};

/// A watch of the keys of the layouts; see [`Registrar::watch_keys`](crate::Registrar::watch_keys). Dropping it ends it.
#[derive(Debug)]
pub struct KeyWatch {
    pub(crate) events: mpsc::Receiver<WatchEvent>,
}

/// An event of a [`KeyWatch`].
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// Changes in order. The first ones put every key that exists.
    Changes(Vec<KeyEvent>),
    /// Every existing key has been reported: after the first read, and after each interruption.
    Synced,
    /// etcd cannot be watched at the moment. The watch keeps trying.
    Interrupted(Unavailable),
}

/// A change of one key.
#[derive(Debug, Clone)]
pub enum KeyEvent {
    /// The key was put, or was found again after an interruption, changed or not.
    Put(RawEntry),
    /// The key was deleted, or was missing after an interruption.
    Deleted {
        /// The key; bytes that are not UTF-8 are replaced.
        key: String,
        /// The revision of etcd that deleted it, or in which it was missing.
        revision: i64,
    },
}

impl KeyWatch {
    /// Waits for the next event. Fails with [`Error::Ended`] when the registrar has ended. Cancel safe.
    pub async fn next(&mut self) -> Result<WatchEvent, Error> {
        self.events.recv().await.ok_or(Error::Ended)
    }
}

/// Watches all keys and sends events until the receiver is dropped.
pub(crate) async fn watch(
    etcd: Etcd,
    ranges: Ranges,
    request_timeout: Duration,
    mut rng: fastrand::Rng,
    events: mpsc::Sender<WatchEvent>,
) {
    let ranges = &ranges;
    let prefixes = ranges.prefixes();
    let mut reported: Vec<_> = prefixes.iter().map(|_| Reported::default()).collect();
    let updates = prefixes.into_iter().enumerate().map(|(index, prefix)| {
        let parser = move || move |found| ranges.parse(found).1;
        let watcher = PrefixWatcher::new(etcd.clone(), prefix, request_timeout, parser, rng.fork());
        let updates = stream::unfold(watcher, |mut watcher| async { Some((watcher.next().await, watcher)) });
        Box::pin(updates.map(move |update| (index, update)))
    });
    let mut updates = stream::select_all(updates);
    let reporting = async {
        let mut is_interrupted = false;
        while let Some((index, update)) = updates.next().await {
            let is_read = matches!(update, Update::Read(_));
            let changes = match update {
                Update::Read(snapshot) => reported[index].read(snapshot.entries, snapshot.revision),
                Update::Changed(changes) => reported[index].changed(changes),
                Update::Failed(failure) => {
                    reported[index].is_synced = false;
                    if !std::mem::replace(&mut is_interrupted, true) {
                        // A closed channel ends the watch below.
                        let _ = events.send(WatchEvent::Interrupted(failure.into())).await;
                    }
                    continue;
                }
            };
            if !changes.is_empty() {
                let _ = events.send(WatchEvent::Changes(changes)).await;
            }
            if is_read && reported.iter().all(|reported| reported.is_synced) {
                is_interrupted = false;
                let _ = events.send(WatchEvent::Synced).await;
            }
        }
    };
    tokio::select! {
        () = reporting => {}
        () = events.closed() => {}
    }
}

/// Keys under one prefix that have been reported.
#[derive(Default)]
struct Reported {
    keys: HashSet<String>,
    is_synced: bool,
}

impl Reported {
    fn read(&mut self, entries: Vec<RawEntry>, revision: i64) -> Vec<KeyEvent> {
        let keys: HashSet<_> = entries.iter().map(|entry| entry.key.clone()).collect();
        let mut deleted: Vec<_> = self.keys.difference(&keys).cloned().collect();
        deleted.sort();
        (self.keys, self.is_synced) = (keys, true);
        let deleted = deleted.into_iter().map(|key| KeyEvent::Deleted { key, revision });
        deleted.chain(entries.into_iter().map(KeyEvent::Put)).collect()
    }

    fn changed(&mut self, changes: Vec<KeyChange<RawEntry>>) -> Vec<KeyEvent> {
        let event = |change: KeyChange<RawEntry>| match change {
            KeyChange::Put(entry) => {
                self.keys.insert(entry.key.clone());
                KeyEvent::Put(entry)
            }
            KeyChange::Deleted(key, revision) => {
                let key = String::from_utf8_lossy(&key).into_owned();
                self.keys.remove(&key);
                KeyEvent::Deleted { key, revision }
            }
        };
        changes.into_iter().map(event).collect()
    }
}
