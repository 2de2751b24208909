//! The entries under a prefix, in the order of their keys. Copies are cheap and share the leaves that stay the same.

use std::{collections::HashSet, sync::Arc};

use smallvec::SmallVec;

use crate::node::ServerNode;

/// Largest number of entries in a leaf. A leaf that a copy shares is copied when it changes.
const LEAF: usize = 256;

/// A key. Most are short enough to need no allocation of their own.
pub(crate) type Key = SmallVec<[u8; 24]>;

/// A key with its parsed value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// Revision that created the key.
    pub(crate) created: i64,
    pub(crate) content: Content,
}

/// A parsed value.
#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    Node(ServerNode),
    /// A node that says it uses TLS.
    TlsNode(ServerNode),
    /// A node of another service or version.
    OtherService,
    Invalid,
}

impl Entry {
    pub(crate) fn node(&self) -> Option<&ServerNode> {
        match &self.content {
            Content::Node(node) | Content::TlsNode(node) => Some(node),
            Content::OtherService | Content::Invalid => None,
        }
    }

    pub(crate) fn uses_tls(&self) -> bool {
        matches!(self.content, Content::TlsNode(_))
    }
}

/// Consecutive entries, shared between copies while none of them changes.
pub(crate) type Leaf = Vec<Arc<Entry>>;

/// A sorted map from keys to entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSet(Arc<Leaves>);

#[derive(Debug, Clone, Default)]
struct Leaves {
    /// None of them is empty.
    all: Vec<Arc<Leaf>>,
    nodes: usize,
    invalid: usize,
}

impl NodeSet {
    /// Builds a set from entries in the order of their keys.
    pub(crate) fn from_sorted(entries: impl IntoIterator<Item = Arc<Entry>>) -> Self {
        let mut leaves = Leaves::default();
        let mut leaf = Leaf::with_capacity(LEAF);
        for entry in entries {
            leaves.count(&entry, true);
            leaf.push(entry);
            if leaf.len() == LEAF {
                leaves.all.push(Arc::new(std::mem::replace(&mut leaf, Leaf::with_capacity(LEAF))));
            }
        }
        if !leaf.is_empty() {
            leaf.shrink_to_fit();
            leaves.all.push(Arc::new(leaf));
        }
        Self(Arc::new(leaves))
    }

    /// Number of entries that are nodes.
    pub(crate) fn node_count(&self) -> usize {
        self.0.nodes
    }

    /// Number of entries that are invalid.
    pub(crate) fn invalid_count(&self) -> usize {
        self.0.invalid
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> + Clone {
        self.0.all.iter().flat_map(|leaf| leaf.iter())
    }

    pub(crate) fn leaves(&self) -> &[Arc<Leaf>] {
        &self.0.all
    }

    /// The union of both sets, with the entries of `others` where both have a key.
    pub(crate) fn union(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for entry in others.iter() {
            all.insert(entry.clone());
        }
        all
    }

    /// Entries of leaves that the two sets do not share; a superset of their differences.
    pub(crate) fn unshared<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a Arc<Entry>> {
        let pointers = |set: &Self| set.0.all.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let (ours, theirs) = (pointers(self), pointers(others));
        let ours_alone = self.0.all.iter().filter(move |leaf| !theirs.contains(&Arc::as_ptr(leaf)));
        let theirs_alone = others.0.all.iter().filter(move |leaf| !ours.contains(&Arc::as_ptr(leaf)));
        ours_alone.chain(theirs_alone).flat_map(|leaf| leaf.iter())
    }

    /// Inserts an entry, and returns its predecessor.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let leaves = Arc::make_mut(&mut self.0);
        leaves.count(&entry, true);
        if leaves.all.is_empty() {
            leaves.all.push(Arc::default());
        }
        let (index, place) = leaves.find(&entry.key);
        let leaf = Arc::make_mut(&mut leaves.all[index]);
        let at = match place {
            Ok(at) => {
                let replaced = std::mem::replace(&mut leaf[at], entry);
                leaves.count(&replaced, false);
                return Some(replaced);
            }
            Err(at) => at,
        };
        leaf.insert(at, entry);
        if leaf.len() > LEAF {
            let half = leaf.split_off(LEAF / 2);
            leaves.all.insert(index + 1, Arc::new(half));
        }
        None
    }

    /// Removes the entry of a key, and returns it.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<Entry>> {
        let (index, Ok(at)) = self.0.find(key) else { return None };
        let leaves = Arc::make_mut(&mut self.0);
        let leaf = Arc::make_mut(&mut leaves.all[index]);
        let removed = leaf.remove(at);
        if leaf.is_empty() {
            leaves.all.remove(index);
        }
        leaves.count(&removed, false);
        Some(removed)
    }
}

impl Leaves {
    /// The leaf of a key, the last one for a key after all others, and the key's place in it: `Err` if absent.
    fn find(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let before = self.all.partition_point(|leaf| leaf.last().is_some_and(|last| *last.key < *key));
        let index = before.min(self.all.len().saturating_sub(1));
        let leaf = self.all.get(index);
        (index, leaf.map_or(Err(0), |leaf| leaf.binary_search_by(|entry| (*entry.key).cmp(key))))
    }

    fn count(&mut self, entry: &Entry, is_added: bool) {
        let counter = match entry.content {
            Content::Node(_) | Content::TlsNode(_) => &mut self.nodes,
            Content::OtherService => return,
            Content::Invalid => &mut self.invalid,
        };
        *counter = if is_added { *counter + 1 } else { *counter - 1 };
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{Content, Entry, Key, LEAF, NodeSet};

    fn entry(key: u16, created: i64) -> Arc<Entry> {
        Arc::new(Entry { key: Key::from_slice(&key.to_be_bytes()), created, content: Content::Invalid })
    }

    fn contents(set: &NodeSet) -> Vec<(Key, i64)> {
        set.iter().map(|entry| (entry.key.clone(), entry.created)).collect()
    }

    #[test]
    fn a_set_stays_a_sorted_map_and_copies_stay_as_they_were() {
        let mut rng = fastrand::Rng::with_seed(7);
        for size in [0, 1, LEAF - 1, LEAF, LEAF + 1, 10 * LEAF] {
            let mut set = NodeSet::from_sorted((0..size).map(|key| entry(2 * key as u16, 0)));
            let mut model: BTreeMap<u16, i64> = (0..size).map(|key| (2 * key as u16, 0)).collect();
            let mut copies = Vec::new();
            for step in 1..4000 {
                let key = rng.u16(..3000);
                // More keys are removed than inserted for a while, so that leaves run empty.
                let (was, is) = if rng.u8(..10) < if step < 2000 { 7 } else { 2 } {
                    (model.insert(key, step), set.insert(entry(key, step)))
                } else {
                    (model.remove(&key), set.remove(&key.to_be_bytes()))
                };
                assert_eq!(was, is.map(|entry| entry.created));
                assert_eq!(set.invalid_count(), model.len());
                if step % 500 == 0 {
                    copies.push((set.clone(), contents(&set)));
                }
            }
            let expected: Vec<_> =
                model.iter().map(|(key, created)| (Key::from_slice(&key.to_be_bytes()), *created)).collect();
            assert_eq!(contents(&set), expected);
            assert!(copies.iter().all(|(copy, was)| contents(copy) == *was));
        }
    }

    #[test]
    fn a_change_leaves_most_leaves_shared() {
        let mut set = NodeSet::from_sorted((0..10_000).map(|key| entry(2 * key, 0)));
        let before = set.clone();
        set.insert(entry(5001, 1));
        assert!(set.unshared(&before).count() <= 3 * LEAF);
        assert!(set.unshared(&before).any(|entry| entry.created == 1));
        assert_eq!(set.unshared(&set.clone()).count(), 0);
    }
}
