//! The keys of the simulated etcd and their revisions, without time, leases or network.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use super::failure::Failure;

/// A key at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) lease: i64,
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
}

impl Item {
    pub(crate) fn to_proto(&self) -> PbKeyValue {
        PbKeyValue {
            key: self.key.to_vec(),
            value: self.value.to_vec(),
            lease: self.lease,
            create_revision: self.created,
            mod_revision: self.modified,
            version: self.version,
        }
    }
}

/// One step of the log: a key before and after a change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) key: Bytes,
    pub(crate) before: Option<Item>,
    pub(crate) after: Option<Item>,
}

/// A range in etcd's encoding: an empty end means one key, a single zero byte means "from this key on".
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) start: Bytes,
    pub(crate) end: Bytes,
}

impl Range {
    pub(crate) fn new(start: &[u8], end: &[u8]) -> Self {
        Self { start: Bytes::copy_from_slice(start), end: Bytes::copy_from_slice(end) }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        if self.end.is_empty() {
            return key == self.start;
        }
        key >= &self.start[..] && (self.is_open() || key < &self.end[..])
    }

    /// True if the range can contain no key.
    pub(crate) fn is_empty(&self) -> bool {
        !self.end.is_empty() && !self.is_open() && self.start >= self.end
    }

    fn is_open(&self) -> bool {
        self.end[..] == [0]
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = Bound::Included(&self.start[..]);
        if self.end.is_empty() {
            (start, start)
        } else if self.is_open() {
            (start, Bound::Unbounded)
        } else {
            (start, Bound::Excluded(&self.end[..]))
        }
    }
}

/// A key at a revision; without an item, a tombstone.
#[derive(Debug)]
struct Version {
    revision: i64,
    item: Option<Item>,
}

/// The multi-version store.
#[derive(Debug)]
pub(crate) struct Store {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    log: VecDeque<Change>,
}

impl Store {
    /// Creates an empty store, which has revision 1 in etcd.
    pub(crate) fn new() -> Self {
        Self { revision: 1, compacted: -1, keys: BTreeMap::new(), log: VecDeque::new() }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Item> {
        self.keys.get(key)?.last()?.item.as_ref()
    }

    /// The current keys of a range, in order.
    pub(crate) fn range(&self, range: &Range) -> impl Iterator<Item = &Item> + use<'_> {
        let found = (!range.is_empty()).then(|| self.keys.range::<[u8], _>(range.bounds()));
        found.into_iter().flatten().filter_map(|(_, versions)| versions.last()?.item.as_ref())
    }

    /// Fails if a read at this revision is impossible; 0 means now.
    pub(crate) fn check_revision(&self, revision: i64) -> Result<(), Failure> {
        if revision > self.revision {
            Err(Failure::FutureRevision)
        } else if revision > 0 && revision < self.compacted {
            Err(Failure::Compacted)
        } else {
            Ok(())
        }
    }

    /// The keys of a range at a revision, in order.
    pub(crate) fn range_at(&self, range: &Range, revision: i64) -> Result<Vec<&Item>, Failure> {
        self.check_revision(revision)?;
        if revision <= 0 {
            return Ok(self.range(range).collect());
        }
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let at = |versions: &'_ [Version]| {
            let newer = versions.partition_point(|version| version.revision <= revision);
            newer.checked_sub(1)
        };
        let found = self.keys.range::<[u8], _>(range.bounds());
        Ok(found.filter_map(|(_, versions)| versions[at(versions)?].item.as_ref()).collect())
    }

    /// All changes from a revision on, as far as they are not compacted.
    pub(crate) fn log_from(&self, revision: i64) -> impl Iterator<Item = &Change> {
        let start = self.log.partition_point(|change| change.revision < revision);
        self.log.range(start..)
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), Failure> {
        if revision <= self.compacted {
            return Err(Failure::Compacted);
        }
        if revision > self.revision {
            return Err(Failure::FutureRevision);
        }
        self.compacted = revision;
        self.keys.retain(|_, versions| {
            let newer = versions.partition_point(|version| version.revision <= revision);
            versions.drain(..newer.saturating_sub(1));
            let dead = versions.first().is_some_and(|first| first.item.is_none() && first.revision <= revision);
            if dead {
                versions.remove(0);
            }
            !versions.is_empty()
        });
        while self.log.front().is_some_and(|change| change.revision < revision) {
            self.log.pop_front();
        }
        Ok(())
    }

    /// Opens the write transaction of the next revision.
    pub(crate) fn write(&mut self) -> Writer<'_> {
        Writer { store: self, changes: Vec::new() }
    }
}

/// A write transaction: its changes are visible to its own reads and share one revision.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    store: &'a mut Store,
    changes: Vec<Change>,
}

impl Writer<'_> {
    pub(crate) fn store(&self) -> &Store {
        self.store
    }

    /// The revision of responses inside the transaction.
    pub(crate) fn revision(&self) -> i64 {
        self.store.revision + i64::from(!self.changes.is_empty())
    }

    pub(crate) fn put(&mut self, key: &Bytes, value: Bytes, lease: i64) {
        let revision = self.store.revision + 1;
        let before = self.store.get(key).cloned();
        let after = Item {
            key: key.clone(),
            value,
            lease,
            created: before.as_ref().map_or(revision, |item| item.created),
            modified: revision,
            version: before.as_ref().map_or(1, |item| item.version + 1),
        };
        self.change(key, before, Some(after));
    }

    /// Deletes a range; returns the number of deleted keys.
    pub(crate) fn delete(&mut self, range: &Range) -> i64 {
        let doomed: Vec<Item> = self.store.range(range).cloned().collect();
        let count = i64::try_from(doomed.len()).expect("fewer keys than i64 counts");
        for item in doomed {
            let key = item.key.clone();
            self.change(&key, Some(item), None);
        }
        count
    }

    fn change(&mut self, key: &Bytes, before: Option<Item>, after: Option<Item>) {
        let revision = self.store.revision + 1;
        let versions = self.store.keys.entry(key.clone()).or_default();
        versions.push(Version { revision, item: after.clone() });
        self.changes.push(Change { revision, key: key.clone(), before, after });
    }

    /// Ends the transaction. Without a change, the revision stays.
    pub(crate) fn commit(self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.store.revision += 1;
            self.store.log.extend(self.changes.iter().cloned());
        }
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, key: &'static str, lease: i64) {
        let mut writer = store.write();
        writer.put(&Bytes::from(key), Bytes::from("v"), lease);
        writer.commit();
    }

    fn delete(store: &mut Store, key: &str) -> usize {
        let mut writer = store.write();
        writer.delete(&Range::new(key.as_bytes(), b""));
        writer.commit().len()
    }

    #[test]
    fn a_key_keeps_its_creation_and_counts_its_versions() {
        let mut store = Store::new();
        put(&mut store, "a", 0);
        put(&mut store, "a", 7);
        let item = store.get(b"a").unwrap();
        assert_eq!((item.created, item.modified, item.version), (2, 3, 2));
        assert_eq!(item.lease, 7);
        delete(&mut store, "a");
        put(&mut store, "a", 0);
        let item = store.get(b"a").unwrap();
        assert_eq!((item.created, item.modified, item.version), (5, 5, 1));
    }

    #[test]
    fn deleting_nothing_makes_no_revision() {
        let mut store = Store::new();
        assert_eq!(delete(&mut store, "a"), 0);
        assert_eq!(store.revision(), 1);
    }

    #[test]
    fn the_past_is_readable_until_it_is_compacted() {
        let mut store = Store::new();
        put(&mut store, "a", 1);
        put(&mut store, "a", 2);
        delete(&mut store, "a");
        let all = Range::new(b"a", b"b");
        assert_eq!(store.range_at(&all, 2).unwrap()[0].lease, 1);
        assert_eq!(store.range_at(&all, 3).unwrap()[0].lease, 2);
        assert!(store.range_at(&all, 4).unwrap().is_empty());
        store.compact(3).unwrap();
        assert!(matches!(store.range_at(&all, 2), Err(Failure::Compacted)));
        assert_eq!(store.range_at(&all, 3).unwrap()[0].lease, 2);
        assert!(matches!(store.compact(3), Err(Failure::Compacted)));
        assert!(matches!(store.compact(9), Err(Failure::FutureRevision)));
        store.compact(4).unwrap();
        assert!(store.keys.is_empty());
    }

    #[test]
    fn ranges_read_as_etcd_reads_them() {
        let one = Range::new(b"a", b"");
        assert!(one.contains(b"a") && !one.contains(b"ab"));
        let open = Range::new(b"b", b"\0");
        assert!(open.contains(b"zz") && !open.contains(b"a"));
        assert!(Range::new(b"b", b"a").is_empty());
    }
}
