//! The nodes of a view at one time.

use std::{fmt, sync::Arc};

use crate::{
    discovery::node_set::{Keys, Known},
    node::ServerNode,
};

/// Nodes at one time, in the order of their keys. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Nodes(pub(crate) Keys);

impl Nodes {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.nodes()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them say that they speak TLS.
    pub fn secured(&self) -> usize {
        self.known().filter(|known| known.is_secured()).count()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &ServerNode> + Clone {
        self.known().filter_map(|known| known.node())
    }

    /// At most so many: where there are more, those from a place among them on, in the order of their keys and around. Places
    /// are all of `u32`, spread evenly: who keeps one is given the same nodes as long as they stay, but for very few.
    pub fn some(&self, most: usize, place: u32) -> impl Iterator<Item = &ServerNode> {
        let at = |all: usize| (all as u128 * u128::from(place)) >> u32::BITS;
        let from = if self.len() > most { usize::try_from(at(self.0.iter().count())).unwrap_or(0) } else { 0 };
        let all = self.0.iter().skip(from).chain(self.0.iter().take(from));
        all.filter_map(|known| known.node()).take(most)
    }

    /// Those among them that have a node.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Arc<Known>> + Clone {
        self.0.iter().filter(|known| known.node().is_some())
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

    use super::{Keys, Known, Nodes, ServerNode};
    use crate::discovery::node_set::What;

    fn crowd(numbers: impl Iterator<Item = usize>) -> Nodes {
        let known = |number| {
            let addr = format!("10.0.{}.{}:80", number / 250, number % 250);
            let what = What::Node(ServerNode::new("crowd", &addr).unwrap());
            Arc::new(Known { key: format!("{number:06}").into_bytes().into(), created: 1, what })
        };
        Nodes(Keys::of(numbers.map(known)))
    }

    #[test]
    fn who_keeps_a_place_is_given_the_same_nodes_and_places_cover_all() {
        let (all, most) = (crowd(0..10_000), 1000);
        let given = |nodes: &Nodes, place: u32| -> HashSet<String> {
            nodes.some(most, place).map(|node| node.addr.to_string()).collect()
        };
        let mut seen = HashSet::new();
        for place in (0..=u32::MAX).step_by(1 << 28) {
            let now = given(&all, place);
            assert_eq!(now.len(), most);
            assert_eq!(given(&all, place), now);
            // Some come and go, wherever.
            let later = given(&crowd((3..9_998).filter(|number| number % 5000 != 1)), place);
            assert_eq!(later.len(), most);
            assert!(later.intersection(&now).count() > most - 10, "{place}: {}", later.intersection(&now).count());
            seen.extend(now);
        }
        assert_eq!(seen.len(), 10_000);
        assert_eq!(given(&all, u32::MAX).len(), most);
        assert_eq!(given(&crowd(0..most), u32::MAX).len(), most);
        assert!(given(&crowd(0..0), 7).is_empty());
    }
}
