//! Nodes that can be picked, with the statistics of their endpoints.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    discovery::{
        balancer::pick::{EndpointStats, Pick},
        node_set::{Entry, Leaf},
    },
    node::{Addr, ServerNode, Weight},
};

/// Preferences of a balancer among nodes.
#[derive(Debug, Default)]
pub(super) struct Preference {
    /// Pairs that a preferred node has; without any, no node is preferred.
    pub(super) metadata: Vec<(String, String)>,
}

/// Candidates of one leaf of the view. Snapshots share those of leaves that stay the same.
#[derive(Debug)]
pub(super) struct CandidateLeaf {
    pub(super) source: Arc<Leaf>,
    pub(super) candidates: Vec<Candidate>,
    /// Indices of preferred candidates.
    preferred: Vec<u16>,
    /// Heaviest weight of all, and of the preferred candidates.
    heaviest: [u32; 2],
}

/// Endpoints that were candidates before, with their statistics once they were picked.
pub(super) type Known<'a> = HashMap<&'a Addr, Option<&'a Arc<EndpointStats>>>;

/// A node that can be picked.
#[derive(Debug)]
pub(super) struct Candidate {
    entry: Arc<Entry>,
    pub(super) weight: u32,
    pub(super) uses_tls: bool,
    /// Created by the first pick, or with a fresh node: of many nodes, most are never picked.
    stats: OnceLock<Arc<EndpointStats>>,
}

impl Preference {
    fn prefers(&self, node: &ServerNode) -> bool {
        let has = |(key, value): &(String, String)| {
            let is_equal = |(other_key, other_value): &(String, String)| other_key == key && other_value == value;
            node.metadata.pairs().iter().any(is_equal) || key == "version" && node.version.as_str() == value
        };
        !self.metadata.is_empty() && self.metadata.iter().all(has)
    }
}

impl CandidateLeaf {
    /// Builds the candidates of a leaf, with the statistics of endpoints that are known already. Others are fresh; without
    /// `known`, none is.
    pub(super) fn build(source: Arc<Leaf>, preference: &Preference, known: Option<&Known>) -> Self {
        let candidate = |entry: &Arc<Entry>| {
            let node = node_of(entry);
            let stats = match known.map(|known| known.get(&node.addr)) {
                None | Some(Some(None)) => OnceLock::new(),
                Some(Some(Some(stats))) => OnceLock::from(Arc::clone(stats)),
                Some(None) => OnceLock::from(Arc::new(EndpointStats::new(true))),
            };
            let weight = node.weight.unwrap_or(Weight::MAX).value();
            Candidate { entry: entry.clone(), weight, uses_tls: entry.uses_tls(), stats }
        };
        let candidates: Vec<_> = source.iter().filter(|entry| entry.node().is_some()).map(candidate).collect();
        // A leaf is small enough for `u16`.
        let preferred = |(candidate, index): (&Candidate, u16)| preference.prefers(candidate.node()).then_some(index);
        let preferred: Vec<_> = candidates.iter().zip(0..).filter_map(preferred).collect();
        let of_all = candidates.iter().map(|candidate| candidate.weight).max();
        let of_preferred = preferred.iter().map(|&index| candidates[usize::from(index)].weight).max();
        Self { source, heaviest: [of_all, of_preferred].map(Option::unwrap_or_default), candidates, preferred }
    }

    pub(super) fn len(&self, is_preferred: bool) -> usize {
        if is_preferred { self.preferred.len() } else { self.candidates.len() }
    }

    pub(super) fn get(&self, is_preferred: bool, index: usize) -> &Candidate {
        &self.candidates[if is_preferred { self.preferred[index].into() } else { index }]
    }

    pub(super) fn heaviest(&self, is_preferred: bool) -> u32 {
        self.heaviest[usize::from(is_preferred)]
    }
}

fn node_of(entry: &Entry) -> &ServerNode {
    entry.node().expect("only nodes become candidates")
}

impl Candidate {
    pub(super) fn node(&self) -> &ServerNode {
        node_of(&self.entry)
    }

    /// The statistics of the endpoint; `None` before the first pick.
    pub(super) fn stats(&self) -> Option<&Arc<EndpointStats>> {
        self.stats.get()
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.stats().is_some_and(|stats| stats.is_ejected())
    }

    /// Draws if a fresh node takes a call already, as `slow_start` has it.
    pub(super) fn is_warm(&self, slow_start: Duration) -> bool {
        let warmth = self.stats().map_or(1.0, |stats| stats.warmth(slow_start));
        warmth >= 1.0 || fastrand::f64() < warmth
    }

    /// Cost of the next call: latency times calls in progress, per weight. A node that has never answered costs little, so
    /// that it is tried.
    pub(super) fn cost(&self) -> f64 {
        let (calls, latency) = self.stats().map_or((0, 0), |stats| stats.calls_and_latency());
        latency.max(1) as f64 * f64::from(calls.saturating_add(1)) / f64::from(self.weight)
    }

    pub(super) fn pick(&self) -> Pick {
        let stats = self.stats.get_or_init(|| Arc::new(EndpointStats::new(false)));
        Pick::new(self.entry.clone(), stats.clone())
    }
}
