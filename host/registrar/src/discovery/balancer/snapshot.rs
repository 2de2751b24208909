//! A snapshot of the candidates: the nodes of one generation of the view, ready to be picked from.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::discovery::{
    balancer::{
        candidates::{Candidate, CandidateLeaf, Known, Preference},
        stride::StrideSchedule,
    },
    node_set::Leaf,
    nodes::Nodes,
};

/// Number of nodes from which a snapshot is kept for [`REST`] times as long as it took to build, at most for [`MAX_AGE`].
const LARGE: usize = 1000;
/// Ratio of the time between builds to the time of a build, so that they take a tenth of a processor at most.
const REST: u32 = 10;
/// Longest age of a large snapshot. Nodes keep serving for longer than that after they have left.
const MAX_AGE: Duration = Duration::from_millis(100);

/// The candidates of one generation of the view.
#[derive(Debug, Default)]
pub(super) struct CandidateSnapshot {
    pub(super) generation: u64,
    /// Start and duration of the build; `None` for the empty snapshot of a new balancer.
    pub(super) built: Option<(Instant, Duration)>,
    pub(super) leaves: Vec<Arc<CandidateLeaf>>,
    /// Preferred candidates, if some but not all are preferred; then all candidates.
    pub(super) schedules: Vec<StrideSchedule>,
    /// Time since which more than half of the candidates have come; `None` if fewer are fresh, or if there are very many.
    pub(super) mostly_fresh_since: Option<Instant>,
}

impl CandidateSnapshot {
    /// Builds a snapshot. Leaves that stay the same, and statistics of endpoints, are taken over from the one before.
    pub(super) fn build(generation: u64, nodes: &Nodes, preference: &Preference, before: &Self) -> Self {
        let begun = Instant::now();
        let mut former: HashMap<_, _> = before.leaves.iter().map(|leaf| (Arc::as_ptr(&leaf.source), leaf)).collect();
        let leaves = nodes.0.leaves().iter().map(|leaf| (leaf, former.remove(&Arc::as_ptr(leaf))));
        let leaves: Vec<_> = leaves.collect();
        let changed = former.values().flat_map(|leaf| &leaf.candidates);
        let known: Known = changed.map(|candidate| (&candidate.node().addr, candidate.stats())).collect();
        let known = before.has_nodes().then_some(&known);
        let candidates = |(leaf, unchanged): (&Arc<Leaf>, Option<&Arc<CandidateLeaf>>)| {
            let build = || Arc::new(CandidateLeaf::build(leaf.clone(), preference, known));
            unchanged.cloned().unwrap_or_else(build)
        };
        let leaves: Vec<_> = leaves.into_iter().map(candidates).collect();
        let count = |is_preferred| leaves.iter().map(|leaf| leaf.len(is_preferred)).sum::<usize>();
        let (all, preferred) = (count(false), count(true));
        let mut schedules = Vec::new();
        if preferred > 0 && preferred < all {
            schedules.push(StrideSchedule::new(true, &leaves));
        }
        if all > 0 {
            schedules.push(StrideSchedule::new(false, &leaves));
        }
        let mostly_fresh_since = if all < LARGE { mostly_fresh_since(&leaves, all) } else { None };
        let built = Some((begun, begun.elapsed()));
        Self { generation, built, leaves, schedules, mostly_fresh_since }
    }

    /// Detects nodes of which most are fresh, as after a deploy of all of them: the others could not take their share as well.
    pub(super) fn is_mostly_fresh(&self, slow_start: Duration) -> bool {
        self.mostly_fresh_since.is_some_and(|since| since.elapsed() < slow_start)
    }

    /// Number of candidates.
    pub(super) fn len(&self) -> usize {
        self.schedules.last().map_or(0, StrideSchedule::len)
    }

    fn has_nodes(&self) -> bool {
        self.len() > 0
    }

    pub(super) fn is_built(&self) -> bool {
        self.built.is_some()
    }

    /// Returns true if a generation of the view needs no new snapshot, or not yet.
    pub(super) fn is_good_for(&self, generation: u64) -> bool {
        let Some((begun, took)) = self.built else { return false };
        let is_large = || self.len() >= LARGE;
        self.generation == generation || is_large() && begun.elapsed() < MAX_AGE.min(REST * took)
    }
}

fn mostly_fresh_since(leaves: &[Arc<CandidateLeaf>], all: usize) -> Option<Instant> {
    let stats = leaves.iter().flat_map(|leaf| &leaf.candidates).filter_map(Candidate::stats);
    let mut fresh: Vec<_> = stats.filter_map(|stats| stats.fresh_since()).collect();
    fresh.sort_unstable_by(|one, other| other.cmp(one));
    fresh.get(all / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc, time::Duration};

    use super::{CandidateLeaf, CandidateSnapshot, Preference, StrideSchedule};
    use crate::{
        discovery::{
            balancer::candidates::Candidate,
            node_set::{Content, Entry, NodeSet},
            nodes::Nodes,
        },
        node::{Metadata, ServerNode},
    };

    fn snapshot(weights: &[u32], preferred: &[(&str, &str)]) -> CandidateSnapshot {
        let node = |(index, weight): (usize, &u32)| {
            let zone = vec![("zone".to_owned(), if index % 2 == 0 { "a" } else { "b" }.to_owned())];
            let node = ServerNode {
                weight: Some((*weight).try_into().unwrap()),
                metadata: Metadata::try_from(zone).unwrap(),
                ..ServerNode::new("user", &format!("h:{}", index + 1)).unwrap()
            };
            Arc::new(Entry { key: vec![index as u8].into(), created: 1, content: Content::Node(node) })
        };
        let nodes = Nodes(NodeSet::from_sorted(weights.iter().enumerate().map(node)));
        let metadata = preferred.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let preference = Preference { metadata };
        CandidateSnapshot::build(0, &nodes, &preference, &CandidateSnapshot::default())
    }

    #[test]
    fn nodes_that_use_tls_can_be_excluded() {
        let node = |port: u8| ServerNode::new("user", &format!("h:{port}")).unwrap();
        let contents = [Content::Node(node(1)), Content::TlsNode(node(2))].into_iter().enumerate();
        let entry = |(index, content)| Arc::new(Entry { key: vec![index as u8].into(), created: 1, content });
        let nodes = Nodes(NodeSet::from_sorted(contents.map(entry)));
        let snapshot = CandidateSnapshot::build(0, &nodes, &Preference::default(), &CandidateSnapshot::default());
        let schedule = &snapshot.schedules[0];
        let plain = |_| port(schedule.next(&snapshot.leaves, |candidate| !candidate.uses_tls).unwrap());
        assert!((0..10).map(plain).all(|port| port == 1));
        assert_eq!(ports(&snapshot, schedule), [1, 2]);
    }

    fn port(candidate: &Candidate) -> usize {
        candidate.node().addr.port().into()
    }

    fn ports(snapshot: &CandidateSnapshot, schedule: &StrideSchedule) -> Vec<usize> {
        (0..schedule.len()).map(|index| port(schedule.get(&snapshot.leaves, index))).collect()
    }

    #[test]
    fn picks_are_in_proportion_to_the_weights_and_evenly_spread() {
        let snapshot = snapshot(&[100, 50, 10], &[]);
        let picks: Vec<_> =
            (0..1600).map(|_| port(snapshot.schedules[0].next(&snapshot.leaves, |_| true).unwrap())).collect();
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
    fn an_unavailable_node_is_never_picked() {
        let snapshot = snapshot(&[100, 1, 1], &[]);
        for _ in 0..100 {
            let picked = snapshot.schedules[0].next(&snapshot.leaves, |candidate| port(candidate) == 3).unwrap();
            assert_eq!(port(picked), 3);
        }
        assert!(snapshot.schedules[0].next(&snapshot.leaves, |_| false).is_none());
    }

    #[test]
    fn preferred_nodes_come_first_if_some_are_not_preferred() {
        let schedules = |snapshot: &CandidateSnapshot| {
            snapshot.schedules.iter().map(|schedule| ports(snapshot, schedule)).collect::<Vec<_>>()
        };
        assert_eq!(schedules(&snapshot(&[1, 1, 1], &[("zone", "b")])), [vec![2], vec![1, 2, 3]]);
        assert_eq!(schedules(&snapshot(&[1, 1], &[("zone", "c")])), [vec![1, 2]]);
        assert_eq!(schedules(&snapshot(&[1, 1], &[])), [vec![1, 2]]);
        assert!(snapshot(&[], &[]).schedules.is_empty());
    }

    #[test]
    fn a_change_rebuilds_one_leaf_and_keeps_all_statistics() {
        let entry = |port: u16| {
            let node = ServerNode::new("user", &format!("h:{port}")).unwrap();
            Arc::new(Entry { key: port.to_be_bytes().to_vec().into(), created: 1, content: Content::Node(node) })
        };
        let mut set = NodeSet::from_sorted((1..10_000).map(|number| entry(2 * number)));
        let before =
            CandidateSnapshot::build(0, &Nodes(set.clone()), &Preference::default(), &CandidateSnapshot::default());
        for leaf in &before.leaves {
            leaf.candidates[0].pick().failed();
        }
        set.insert(entry(5001));
        let snapshot = CandidateSnapshot::build(1, &Nodes(set), &Preference::default(), &before);
        let is_shared = |leaf: &&Arc<CandidateLeaf>| before.leaves.iter().any(|old| Arc::ptr_eq(old, leaf));
        assert!(snapshot.leaves.iter().filter(is_shared).count() >= before.leaves.len() - 1);
        assert_eq!(ports(&snapshot, &snapshot.schedules[0]).len(), 10_000);
        let ejected = snapshot.leaves.iter().flat_map(|leaf| &leaf.candidates).filter(|one| one.is_ejected());
        assert_eq!(ejected.count(), before.leaves.len());
    }

    #[test]
    fn the_better_of_two_is_the_faster() {
        let snapshot = snapshot(&[50, 50], &[]);
        snapshot.leaves[0].candidates[0].pick().succeeded(Duration::from_millis(100));
        snapshot.leaves[0].candidates[1].pick().succeeded(Duration::from_millis(1));
        let fast = (0..1000)
            .filter(|_| port(snapshot.schedules[0].better_of_two(&snapshot.leaves, |_| true).unwrap()) == 2)
            .count();
        assert!(fast > 900, "{fast}");
    }
}
