//! The nodes of a view at one time, and the differences between two times.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use crate::{
    discovery::node_set::{Entry, NodeSet},
    node::{Addr, ServerNode, Version},
};

/// Nodes at one time, in the order of their keys. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Nodes(pub(crate) NodeSet);

/// One difference between the nodes of a [`View`](crate::View) at two times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// A node was added.
    Joined(ServerNode),
    /// The weight or the metadata of a node changed.
    Changed(ServerNode),
    /// A node was removed.
    Left(ServerNode),
}

impl Nodes {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.0.node_count()
    }

    /// Returns true if there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of nodes that say they use TLS.
    pub fn tls_count(&self) -> usize {
        self.entries().filter(|entry| entry.uses_tls()).count()
    }

    /// Every node, with true for those that say they use TLS.
    pub fn iter_with_tls(&self) -> impl Iterator<Item = (&ServerNode, bool)> + Clone {
        self.entries().filter_map(|entry| Some((entry.node()?, entry.uses_tls())))
    }

    /// Iterates over the nodes in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &ServerNode> + Clone {
        self.entries().filter_map(|entry| entry.node())
    }

    /// At most `limit` nodes: a window that starts at `offset` and wraps in key order (deterministic subsetting).
    ///
    /// Offsets are all of `u32`, spread evenly over the nodes. A caller that keeps its offset gets the same nodes as long as
    /// they exist, except for a few near the ends of the window.
    pub fn subset(&self, limit: usize, offset: u32) -> impl Iterator<Item = &ServerNode> {
        let scaled = |all: usize| (all as u128 * u128::from(offset)) >> u32::BITS;
        let start = if self.len() > limit { usize::try_from(scaled(self.0.iter().count())).unwrap_or(0) } else { 0 };
        let wrapped = self.0.iter().skip(start).chain(self.0.iter().take(start));
        wrapped.filter_map(|entry| entry.node()).take(limit)
    }

    /// Entries that are nodes.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> + Clone {
        self.0.iter().filter(|entry| entry.node().is_some())
    }

    /// Differences from earlier nodes: those that left, then those that joined or changed.
    pub(crate) fn events_since(&self, before: &Self) -> Vec<NodeEvent> {
        let instance = |node: &ServerNode| (node.version.clone(), node.addr.clone());
        // An instance may have moved to another key, so those at both the old and the new place of a change are compared.
        let touched: HashSet<_> = self.0.unshared(&before.0).filter_map(|entry| entry.node()).map(instance).collect();
        let by_instance = |nodes: &Self| -> BTreeMap<(Version, Addr), ServerNode> {
            let all = nodes.iter().map(|node| (instance(node), node));
            all.filter(|(key, _)| touched.contains(key)).map(|(key, node)| (key, node.clone())).collect()
        };
        let (old, new) = (by_instance(before), by_instance(self));
        let left = old.iter().filter(|(instance, _)| !new.contains_key(instance));
        let left = left.map(|(_, node)| NodeEvent::Left(node.clone()));
        let came = new.iter().filter_map(|(instance, node)| match old.get(instance) {
            None => Some(NodeEvent::Joined(node.clone())),
            Some(old) if old != node => Some(NodeEvent::Changed(node.clone())),
            Some(_) => None,
        });
        left.chain(came).collect()
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::{Entry, NodeSet, Nodes, ServerNode};
    use crate::discovery::node_set::Content;

    fn nodes(numbers: impl Iterator<Item = usize>) -> Nodes {
        let entry = |number| {
            let addr = format!("10.0.{}.{}:80", number / 250, number % 250);
            let content = Content::Node(ServerNode::new("user", &addr).unwrap());
            Arc::new(Entry { key: format!("{number:06}").into_bytes().into(), created: 1, content })
        };
        Nodes(NodeSet::from_sorted(numbers.map(entry)))
    }

    #[test]
    fn an_offset_keeps_its_nodes_and_offsets_cover_all() {
        let (all, limit) = (nodes(0..10_000), 1000);
        let subset = |nodes: &Nodes, offset: u32| -> HashSet<String> {
            nodes.subset(limit, offset).map(|node| node.addr.to_string()).collect()
        };
        let mut covered = HashSet::new();
        for offset in (0..=u32::MAX).step_by(1 << 28) {
            let now = subset(&all, offset);
            assert_eq!(now.len(), limit);
            assert_eq!(subset(&all, offset), now);
            // A few nodes join and leave in other places.
            let later = subset(&nodes((3..9_998).filter(|number| number % 5000 != 1)), offset);
            assert_eq!(later.len(), limit);
            assert!(later.intersection(&now).count() > limit - 10, "{offset}: {}", later.intersection(&now).count());
            covered.extend(now);
        }
        assert_eq!(covered.len(), 10_000);
        assert_eq!(subset(&all, u32::MAX).len(), limit);
        assert_eq!(subset(&nodes(0..limit), u32::MAX).len(), limit);
        assert!(subset(&nodes(0..0), 7).is_empty());
    }
}
