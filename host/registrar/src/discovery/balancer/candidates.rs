//! What is picked from: the nodes of each leaf of the view.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use crate::{
    discovery::{
        balancer::pick::{Peer, Pick},
        node_set::{Known, Leaf},
    },
    node::{Addr, ServerNode, Weight},
};

/// Which nodes are picked at all, and which ones first.
#[derive(Debug, Default)]
pub(super) struct Taste {
    pub(super) prefer: Vec<(String, String)>,
    pub(super) plain: bool,
}

/// What is made of one leaf of the view, once: the next table shares the parts that stay the same.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) leaf: Arc<Leaf>,
    pub(super) candidates: Vec<Candidate>,
    preferred: Vec<u16>,
    /// The heaviest weight of all, and of those that are preferred.
    pub(super) heaviest: [u32; 2],
}

#[derive(Debug)]
pub(super) struct Candidate {
    known: Arc<Known>,
    pub(super) weight: u32,
    /// Of many nodes most are never picked.
    pub(super) peer: OnceLock<Arc<Peer>>,
}

impl Taste {
    fn takes(&self, known: &Known) -> bool {
        known.node().is_some() && !(self.plain && known.is_secured())
    }

    fn prefers(&self, node: &ServerNode) -> bool {
        let has = |(key, value): &(String, String)| {
            let stands = |(at, is): &(String, String)| at == key && is == value;
            node.metadata.pairs().iter().any(stands) || key == "version" && node.version.as_str() == value
        };
        !self.prefer.is_empty() && self.prefer.iter().all(has)
    }
}

impl Part {
    pub(super) fn of(leaf: Arc<Leaf>, taste: &Taste, peers: &HashMap<&Addr, &Arc<Peer>>) -> Self {
        let candidate = |known: &Arc<Known>| {
            let node = node_of(known);
            let peer = peers.get(&node.addr).map_or_else(OnceLock::new, |peer| OnceLock::from(Arc::clone(peer)));
            Candidate { known: known.clone(), weight: node.weight.unwrap_or(Weight::MAX).value(), peer }
        };
        let candidates: Vec<_> = leaf.iter().filter(|known| taste.takes(known)).map(candidate).collect();
        // A leaf is small.
        let preferred = |(candidate, at): (&Candidate, u16)| taste.prefers(candidate.node()).then_some(at);
        let preferred: Vec<_> = candidates.iter().zip(0..).filter_map(preferred).collect();
        let of_all = candidates.iter().map(|candidate| candidate.weight).max();
        let of_preferred = preferred.iter().map(|&at| candidates[usize::from(at)].weight).max();
        Self { leaf, heaviest: [of_all, of_preferred].map(Option::unwrap_or_default), candidates, preferred }
    }

    pub(super) fn len(&self, is_preferred: bool) -> usize {
        if is_preferred { self.preferred.len() } else { self.candidates.len() }
    }

    pub(super) fn at(&self, is_preferred: bool, index: usize) -> &Candidate {
        &self.candidates[if is_preferred { self.preferred[index].into() } else { index }]
    }
}

fn node_of(known: &Known) -> &ServerNode {
    known.node().expect("nodes are all that is picked from")
}

impl Candidate {
    pub(super) fn node(&self) -> &ServerNode {
        node_of(&self.known)
    }

    pub(super) fn is_out(&self) -> bool {
        self.peer.get().is_some_and(|peer| peer.is_out())
    }

    pub(super) fn picked(&self) -> Pick {
        let peer = self.peer.get_or_init(|| Arc::new(Peer::new()));
        peer.calls.fetch_add(1, Ordering::Relaxed);
        Pick { known: self.known.clone(), peer: peer.clone() }
    }

    pub(super) fn cost(&self) -> f64 {
        // One that has never answered costs little, so that it is tried.
        let of = |peer: &Arc<Peer>| (peer.calls.load(Ordering::Relaxed), peer.latency.load(Ordering::Relaxed));
        let (calls, latency) = self.peer.get().map_or((0, 0), of);
        latency.max(1) as f64 * f64::from(calls.saturating_add(1)) / f64::from(self.weight)
    }
}
