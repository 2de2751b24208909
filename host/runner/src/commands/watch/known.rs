//! The nodes that a watch knows, by their keys, and what changes among them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use leasehold::{KeyEvent, Layout, LeaseId, LeaseTtl};
use serde::Serialize;

use crate::{
    cli::lease_state::LeaseState,
    commands::{filter::Names, node_row::NodeRow},
};

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ChangeKind {
    /// Existed before the watch began.
    Present,
    Joined,
    Changed,
    Left,
}

impl ChangeKind {
    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::Present => " ",
            Self::Joined => "+",
            Self::Changed => "~",
            Self::Left => "-",
        }
    }
}

/// A change of one node; of a node that left, the last known state.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) kind: ChangeKind,
    pub(super) row: NodeRow,
    /// Revision of etcd that made the change.
    pub(super) revision: i64,
}

/// Nodes and invalid keys.
#[derive(Debug)]
pub(super) struct Known {
    layouts: Vec<Layout>,
    nodes: BTreeMap<String, NodeRow>,
    invalid: BTreeSet<String>,
    /// Set once every key that existed has been reported.
    pub(super) is_complete: bool,
}

impl Known {
    pub(super) fn new(layouts: Vec<Layout>) -> Self {
        Self { layouts, nodes: BTreeMap::new(), invalid: BTreeSet::new(), is_complete: false }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values()
    }

    /// The node of a key.
    pub(super) fn node(&self, key: &str) -> Option<&NodeRow> {
        self.nodes.get(key)
    }

    /// Number of keys that are not nodes.
    pub(super) fn invalid(&self) -> usize {
        self.invalid.len()
    }

    pub(super) fn has_layouts(&self) -> bool {
        self.layouts.len() > 1
    }

    /// Number of addresses with nodes under leases of their own in one layout: all but one are left over, or strangers.
    pub(super) fn conflicts(&self) -> usize {
        let mut leases: HashMap<(&str, &str), HashSet<Option<LeaseId>>> = HashMap::new();
        for row in self.nodes() {
            leases.entry((row.layout.as_str(), row.addr.as_str())).or_default().insert(row.lease);
        }
        leases.values().filter(|leases| leases.len() > 1).count()
    }

    pub(super) fn leases(&self) -> HashSet<LeaseId> {
        self.nodes().filter_map(|row| row.lease).collect()
    }

    /// Leases whose remaining time etcd has not reported yet.
    pub(super) fn unread_leases(&self) -> HashSet<LeaseId> {
        self.nodes().filter(|row| row.state == LeaseState::Unknown).filter_map(|row| row.lease).collect()
    }

    pub(super) fn set_ttls(&mut self, left: &HashMap<LeaseId, LeaseTtl>) {
        self.nodes.values_mut().for_each(|row| row.set_ttl(left));
    }

    /// Applies events, and returns the changes of nodes with these names. A key that was put again without a difference is no
    /// change.
    pub(super) fn apply(&mut self, events: Vec<KeyEvent>, names: &Names) -> Vec<Change> {
        events.into_iter().filter_map(|event| self.apply_one(event, names)).collect()
    }

    fn apply_one(&mut self, event: KeyEvent, names: &Names) -> Option<Change> {
        let (key, revision, row) = match event {
            KeyEvent::Put(entry) => {
                let (key, revision) = (entry.key.clone(), entry.revision);
                let row = NodeRow::of(entry, &self.layouts);
                match &row {
                    Some(_) => drop(self.invalid.remove(&key)),
                    None => drop(self.invalid.insert(key.clone())),
                }
                (key, revision, row)
            }
            KeyEvent::Deleted { key, revision } => {
                self.invalid.remove(&key);
                (key, revision, None)
            }
        };
        let row = row.filter(|row| names.matches(&row.name));
        let before = self.nodes.get(&key);
        let (kind, row) = match (before, row) {
            (None, None) => return None,
            (Some(before), Some(row)) if before.shows_as(&row) => return None,
            (None, Some(row)) if self.is_complete => (ChangeKind::Joined, row),
            (None, Some(row)) => (ChangeKind::Present, row),
            (Some(before), Some(mut row)) => {
                row.keep_ttl(before);
                (ChangeKind::Changed, row)
            }
            (Some(before), None) => (ChangeKind::Left, before.clone()),
        };
        match kind {
            ChangeKind::Left => drop(self.nodes.remove(&key)),
            _ => drop(self.nodes.insert(key, row.clone())),
        }
        Some(Change { kind, row, revision })
    }
}

/// Events for the tests of this folder.
#[cfg(test)]
pub(super) mod events {
    use leasehold::{KeyEvent, Layout, LeaseId, RawEntry};

    fn found(key: &str, value: &str, lease: i64) -> KeyEvent {
        let value = value.as_bytes().to_vec();
        let node = Layout::default().parse(key.as_bytes(), &value);
        KeyEvent::Put(RawEntry { key: key.to_owned(), value, node, lease: LeaseId::new(lease), revision: 5 })
    }

    pub(crate) fn put_at(name: &str, addr: &str, weight: u32, lease: i64) -> KeyEvent {
        let value = format!(r#"{{"name":"{name}","addr":"{addr}","version":"","weight":"{weight}"}}"#);
        found(&format!("/{name}/{addr}"), &value, lease)
    }

    pub(crate) fn put(name: &str, weight: u32, lease: i64) -> KeyEvent {
        put_at(name, "h:1", weight, lease)
    }

    pub(crate) fn garbage(name: &str) -> KeyEvent {
        found(&format!("/{name}/h:1"), "{", 0)
    }

    pub(crate) fn gone(name: &str) -> KeyEvent {
        KeyEvent::Deleted { key: format!("/{name}/h:1"), revision: 6 }
    }
}

#[cfg(test)]
mod tests {
    use leasehold::{KeyEvent, Layout};

    use super::{
        ChangeKind, Known,
        events::{garbage, gone, put, put_at},
    };
    use crate::commands::filter::Names;

    fn known() -> Known {
        Known::new(vec![Layout::default()])
    }

    fn expected(all: &[(ChangeKind, &str)]) -> Vec<(ChangeKind, String)> {
        all.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect()
    }

    #[test]
    fn a_change_is_reported_once_and_a_key_put_again_is_no_change() {
        let mut known = known();
        let mut apply = |is_complete: bool, events: Vec<KeyEvent>| -> Vec<(ChangeKind, String)> {
            known.is_complete = is_complete;
            known.apply(events, &Names::All).into_iter().map(|change| (change.kind, change.row.name)).collect()
        };
        let first = vec![put("a", 1, 7), put("b", 1, 7), garbage("x")];
        assert_eq!(apply(false, first), expected(&[(ChangeKind::Present, "a"), (ChangeKind::Present, "b")]));
        let then = vec![gone("a"), put("b", 2, 7), put("c", 1, 7), put("c", 1, 7)];
        let differs = [(ChangeKind::Left, "a"), (ChangeKind::Changed, "b"), (ChangeKind::Joined, "c")];
        assert_eq!(apply(true, then), expected(&differs));
        assert_eq!(apply(true, vec![gone("a"), gone("x"), put("b", 2, 7)]), []);
        let last = vec![put("b", 2, 8), garbage("b"), gone("b"), put("a", 1, 7)];
        let differs = [(ChangeKind::Changed, "b"), (ChangeKind::Left, "b"), (ChangeKind::Joined, "a")];
        assert_eq!(apply(true, last), expected(&differs));
    }

    #[test]
    fn invalid_keys_are_counted_while_they_exist() {
        let mut known = known();
        known.apply(vec![garbage("x"), garbage("y"), put("a", 1, 7)], &Names::All);
        assert_eq!(known.invalid(), 2);
        known.apply(vec![gone("x"), put("y", 1, 7), garbage("a")], &Names::All);
        assert_eq!((known.invalid(), known.nodes().count()), (1, 1));
    }

    #[test]
    fn an_address_under_several_leases_is_a_conflict() {
        let mut known = known();
        known.apply(vec![put_at("a", "h:1", 1, 7), put_at("b", "h:1", 1, 7), put_at("c", "h:2", 1, 8)], &Names::All);
        assert_eq!(known.conflicts(), 0, "one instance may have several names");
        known.apply(vec![put_at("d", "h:1", 1, 9)], &Names::All);
        assert_eq!(known.conflicts(), 1);
    }

    #[test]
    fn other_names_are_no_changes() {
        let mut known = known();
        let names = Names::parse(Some("a*")).unwrap();
        let changes = known.apply(vec![put("a1", 1, 7), put("b", 1, 7), gone("b")], &names);
        assert_eq!(changes.into_iter().map(|change| change.row.name).collect::<Vec<_>>(), ["a1"]);
    }
}
