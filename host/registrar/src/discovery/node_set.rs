//! What stands under a prefix, in the order of the keys. A copy costs nothing, and shares what stays the same.

use std::{collections::HashSet, sync::Arc};

use smallvec::SmallVec;

use crate::node::ServerNode;

/// Keys to a leaf, at most. A leaf is copied when it changes while a copy of the whole has it, too.
const LEAF: usize = 256;

/// A key; most have so few bytes that they take no allocation of their own.
pub(crate) type Key = SmallVec<[u8; 24]>;

/// A key and what stands there.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) key: Key,
    pub(crate) created: i64,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq)]
pub(crate) enum What {
    Node(ServerNode),
    /// One that says that it speaks TLS.
    Secured(ServerNode),
    /// No node of the service that is looked for.
    Other,
    Garbage,
}

impl Known {
    pub(crate) fn is_secured(&self) -> bool {
        matches!(self.what, What::Secured(_))
    }

    pub(crate) fn node(&self) -> Option<&ServerNode> {
        match &self.what {
            What::Node(node) | What::Secured(node) => Some(node),
            What::Other | What::Garbage => None,
        }
    }
}

/// A few of them, in order; one that stays the same is shared from one generation to the next.
pub(crate) type Leaf = Vec<Arc<Known>>;

/// A sorted map: leaves, none of which is empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Arc<Leaves>);

#[derive(Debug, Clone, Default)]
struct Leaves {
    all: Vec<Arc<Leaf>>,
    nodes: usize,
    garbage: usize,
}

impl Keys {
    /// Of what is in the order of its keys.
    pub(crate) fn of(sorted: impl IntoIterator<Item = Arc<Known>>) -> Self {
        let mut leaves = Leaves::default();
        let mut leaf = Leaf::with_capacity(LEAF);
        for known in sorted {
            leaves.count(&known, true);
            leaf.push(known);
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

    /// How many of them are nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.0.nodes
    }

    pub(crate) fn garbage(&self) -> usize {
        self.0.garbage
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Known>> + Clone {
        self.0.all.iter().flat_map(|leaf| leaf.iter())
    }

    pub(crate) fn leaves(&self) -> &[Arc<Leaf>] {
        &self.0.all
    }

    /// These, and `others` over them.
    pub(crate) fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for known in others.iter() {
            all.insert(known.clone());
        }
        all
    }

    /// What these and `others` do not share.
    pub(crate) fn unshared<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a Arc<Known>> {
        let pointers = |keys: &Self| keys.0.all.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let (ours, theirs) = (pointers(self), pointers(others));
        let ours_alone = self.0.all.iter().filter(move |leaf| !theirs.contains(&Arc::as_ptr(leaf)));
        let theirs_alone = others.0.all.iter().filter(move |leaf| !ours.contains(&Arc::as_ptr(leaf)));
        ours_alone.chain(theirs_alone).flat_map(|leaf| leaf.iter())
    }

    /// Gives what stood there before.
    pub(crate) fn insert(&mut self, known: Arc<Known>) -> Option<Arc<Known>> {
        let leaves = Arc::make_mut(&mut self.0);
        leaves.count(&known, true);
        if leaves.all.is_empty() {
            leaves.all.push(Arc::default());
        }
        let (index, place) = leaves.place(&known.key);
        let leaf = Arc::make_mut(&mut leaves.all[index]);
        let at = match place {
            Ok(at) => {
                let before = std::mem::replace(&mut leaf[at], known);
                leaves.count(&before, false);
                return Some(before);
            }
            Err(at) => at,
        };
        leaf.insert(at, known);
        if leaf.len() > LEAF {
            let half = leaf.split_off(LEAF / 2);
            leaves.all.insert(index + 1, Arc::new(half));
        }
        None
    }

    /// Gives what stood there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<Known>> {
        let (index, Ok(at)) = self.0.place(key) else { return None };
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
    /// The leaf of a key, the last for one after all, and where it stands there, or would.
    fn place(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let before = self.all.partition_point(|leaf| leaf.last().is_some_and(|last| *last.key < *key));
        let index = before.min(self.all.len().saturating_sub(1));
        let leaf = self.all.get(index);
        (index, leaf.map_or(Err(0), |leaf| leaf.binary_search_by(|known| (*known.key).cmp(key))))
    }

    fn count(&mut self, known: &Known, is_there: bool) {
        let counter = match known.what {
            What::Node(_) | What::Secured(_) => &mut self.nodes,
            What::Other => return,
            What::Garbage => &mut self.garbage,
        };
        *counter = if is_there { *counter + 1 } else { *counter - 1 };
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{Key, Keys, Known, LEAF, What};

    fn known(key: u16, created: i64) -> Arc<Known> {
        Arc::new(Known { key: Key::from_slice(&key.to_be_bytes()), created, what: What::Garbage })
    }

    fn contents(keys: &Keys) -> Vec<(Key, i64)> {
        keys.iter().map(|known| (known.key.clone(), known.created)).collect()
    }

    #[test]
    fn it_is_a_sorted_map_whatever_happens_to_it_and_copies_stay_as_they_were() {
        let mut rng = fastrand::Rng::with_seed(7);
        for size in [0, 1, LEAF - 1, LEAF, LEAF + 1, 10 * LEAF] {
            let mut keys = Keys::of((0..size).map(|key| known(2 * key as u16, 0)));
            let mut model: BTreeMap<u16, i64> = (0..size).map(|key| (2 * key as u16, 0)).collect();
            let mut copies = Vec::new();
            for step in 1..4000 {
                let key = rng.u16(..3000);
                // More go than come for a while, so that leaves run empty.
                let (was, is) = if rng.u8(..10) < if step < 2000 { 7 } else { 2 } {
                    (model.insert(key, step), keys.insert(known(key, step)))
                } else {
                    (model.remove(&key), keys.remove(&key.to_be_bytes()))
                };
                assert_eq!(was, is.map(|known| known.created));
                assert_eq!(keys.garbage(), model.len());
                if step % 500 == 0 {
                    copies.push((keys.clone(), contents(&keys)));
                }
            }
            let expected: Vec<_> =
                model.iter().map(|(key, created)| (Key::from_slice(&key.to_be_bytes()), *created)).collect();
            assert_eq!(contents(&keys), expected);
            assert!(copies.iter().all(|(copy, was)| contents(copy) == *was));
        }
    }

    #[test]
    fn what_is_not_shared_is_little() {
        let mut keys = Keys::of((0..10_000).map(|key| known(2 * key, 0)));
        let before = keys.clone();
        keys.insert(known(5001, 1));
        assert!(keys.unshared(&before).count() <= 3 * LEAF);
        assert!(keys.unshared(&before).any(|known| known.created == 1));
        assert_eq!(keys.unshared(&keys.clone()).count(), 0);
    }
}
