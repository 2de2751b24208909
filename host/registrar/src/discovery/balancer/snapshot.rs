//! What is picked from at one generation of the view.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::discovery::{
    balancer::{
        candidates::{Part, Taste},
        stride::Tier,
    },
    node_set::Leaf,
    nodes::Nodes,
};

/// From this many nodes on a table is kept for [`REST`] times as long as it took to make, though at most for [`PACE`].
const LARGE: usize = 1000;
/// So that a tenth of a processor at most is spent on tables.
const REST: u32 = 10;
/// How old the table of many nodes may be. Nodes serve on for longer than that after they have left.
const PACE: Duration = Duration::from_millis(100);

/// The nodes of one generation of the view, ready to be picked from.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) generation: u64,
    /// When it was made, and how long that took. None: no view has been looked at yet.
    pub(super) made: Option<(Instant, Duration)>,
    pub(super) parts: Vec<Arc<Part>>,
    /// Those that are preferred, if that tells some apart, then all.
    pub(super) tiers: Vec<Tier>,
}

impl Table {
    pub(super) fn of(generation: u64, nodes: &Nodes, taste: &Taste, before: &Self) -> Self {
        let begun = Instant::now();
        let mut changed: HashMap<_, _> = before.parts.iter().map(|part| (Arc::as_ptr(&part.leaf), part)).collect();
        let shared = nodes.0.leaves().iter().map(|leaf| (leaf, changed.remove(&Arc::as_ptr(leaf))));
        let shared: Vec<_> = shared.collect();
        let peers = changed.values().flat_map(|part| &part.candidates);
        let peers: HashMap<_, _> =
            peers.filter_map(|candidate| Some((&candidate.node().addr, candidate.peer.get()?))).collect();
        let part = |(leaf, part): (&Arc<Leaf>, Option<&Arc<Part>>)| {
            part.cloned().unwrap_or_else(|| Arc::new(Part::of(leaf.clone(), taste, &peers)))
        };
        let parts: Vec<_> = shared.into_iter().map(part).collect();
        let count = |is_preferred| parts.iter().map(|part| part.len(is_preferred)).sum::<usize>();
        let (all, preferred) = (count(false), count(true));
        let mut tiers = Vec::new();
        if preferred > 0 && preferred < all {
            tiers.push(Tier::of(true, &parts));
        }
        if all > 0 {
            tiers.push(Tier::of(false, &parts));
        }
        let made = Some((begun, begun.elapsed()));
        Self { generation, made, parts, tiers }
    }

    /// Whether no other has to be made for a generation of the view, or not yet.
    pub(super) fn is_good_for(&self, generation: u64) -> bool {
        let Some((made, took)) = self.made else { return false };
        let is_large = || self.tiers.last().is_some_and(|all| all.len() >= LARGE);
        self.generation == generation || is_large() && made.elapsed() < PACE.min(REST * took)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc, time::Duration};

    use super::{Part, Table, Taste, Tier};
    use crate::{
        discovery::{
            balancer::candidates::Candidate,
            node_set::{Keys, Known, What},
            nodes::Nodes,
        },
        node::{Metadata, ServerNode},
    };

    fn table(weights: &[u32], prefer: &[(&str, &str)]) -> Table {
        let node = |(index, weight): (usize, &u32)| {
            let zone = vec![("zone".to_owned(), if index % 2 == 0 { "a" } else { "b" }.to_owned())];
            let node = ServerNode {
                weight: Some((*weight).try_into().unwrap()),
                metadata: Metadata::try_from(zone).unwrap(),
                ..ServerNode::new("user", &format!("h:{}", index + 1)).unwrap()
            };
            Arc::new(Known { key: vec![index as u8].into(), created: 1, what: What::Node(node) })
        };
        let nodes = Nodes(Keys::of(weights.iter().enumerate().map(node)));
        let prefer: Vec<_> = prefer.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Table::of(0, &nodes, &Taste { prefer, plain: false }, &Table::default())
    }

    #[test]
    fn nodes_that_speak_tls_are_left_out_for_those_who_do_not() {
        let node = |port: u8| ServerNode::new("user", &format!("h:{port}")).unwrap();
        let known = [What::Node(node(1)), What::Secured(node(2))].into_iter().enumerate();
        let known = known.map(|(index, what)| Arc::new(Known { key: vec![index as u8].into(), created: 1, what }));
        let nodes = Nodes(Keys::of(known));
        let ports = |plain| {
            let table = Table::of(0, &nodes, &Taste { plain, ..Taste::default() }, &Table::default());
            members(&table, &table.tiers[0])
        };
        assert_eq!((ports(false), ports(true)), (vec![1, 2], vec![1]));
    }

    fn port(candidate: &Candidate) -> usize {
        candidate.node().addr.port().into()
    }

    fn members(table: &Table, tier: &Tier) -> Vec<usize> {
        (0..tier.len()).map(|index| port(tier.at(&table.parts, index))).collect()
    }

    #[test]
    fn picks_are_in_proportion_to_the_weights_and_evenly_spread() {
        let table = table(&[100, 50, 10], &[]);
        let picks: Vec<_> = (0..1600).map(|_| port(table.tiers[0].next(&table.parts, |_| true).unwrap())).collect();
        for (window, times) in picks.chunks(160).map(|window| {
            let mut times = HashMap::new();
            window.iter().for_each(|port| *times.entry(*port).or_insert(0_i32) += 1);
            (window, times)
        }) {
            for (port, share) in [(1, 100), (2, 50), (3, 10)] {
                assert!((times.get(&port).unwrap_or(&0) - share).abs() <= 3, "{port}: {times:?} {window:?}");
            }
        }
        let longest = picks.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
        assert!(longest <= Some(3), "{picks:?}");
    }

    #[test]
    fn a_node_that_is_not_fine_is_never_picked() {
        let table = table(&[100, 1, 1], &[]);
        for _ in 0..100 {
            let picked = table.tiers[0].next(&table.parts, |candidate| port(candidate) == 3).unwrap();
            assert_eq!(port(picked), 3);
        }
        assert!(table.tiers[0].next(&table.parts, |_| false).is_none());
    }

    #[test]
    fn the_preferred_come_first_if_that_tells_some_apart() {
        let tiers = |table: &Table| table.tiers.iter().map(|tier| members(table, tier)).collect::<Vec<_>>();
        assert_eq!(tiers(&table(&[1, 1, 1], &[("zone", "b")])), [vec![2], vec![1, 2, 3]]);
        assert_eq!(tiers(&table(&[1, 1], &[("zone", "c")])), [vec![1, 2]]);
        assert_eq!(tiers(&table(&[1, 1], &[])), [vec![1, 2]]);
        assert!(table(&[], &[]).tiers.is_empty());
    }

    #[test]
    fn a_change_makes_little_anew_and_forgets_nothing() {
        let known = |port: u16| {
            let node = ServerNode::new("user", &format!("h:{port}")).unwrap();
            Arc::new(Known { key: port.to_be_bytes().to_vec().into(), created: 1, what: What::Node(node) })
        };
        let mut keys = Keys::of((1..10_000).map(|number| known(2 * number)));
        let before = Table::of(0, &Nodes(keys.clone()), &Taste::default(), &Table::default());
        for part in &before.parts {
            part.candidates[0].picked().failed();
        }
        keys.insert(known(5001));
        let table = Table::of(1, &Nodes(keys), &Taste::default(), &before);
        let is_shared = |part: &&Arc<Part>| before.parts.iter().any(|old| Arc::ptr_eq(old, part));
        assert!(table.parts.iter().filter(is_shared).count() >= before.parts.len() - 1);
        assert_eq!(members(&table, &table.tiers[0]).len(), 10_000);
        let out = table.parts.iter().flat_map(|part| &part.candidates).filter(|one| one.is_out());
        assert_eq!(out.count(), before.parts.len());
    }

    #[test]
    fn two_choices_prefer_the_faster() {
        let table = table(&[50, 50], &[]);
        table.parts[0].candidates[0].picked().succeeded(Duration::from_millis(100));
        table.parts[0].candidates[1].picked().succeeded(Duration::from_millis(1));
        let fast =
            (0..1000).filter(|_| port(table.tiers[0].better_of_two(&table.parts, |_| true).unwrap()) == 2).count();
        assert!(fast > 900, "{fast}");
    }
}
