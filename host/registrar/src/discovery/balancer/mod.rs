//! Picks a node of a view for each call: by weight, or by latency, and none that failed recently.

mod candidates;
mod outliers;
mod pick;
mod snapshot;
mod stride;
mod traffic;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::{
    outliers::OutlierRules,
    pick::Pick,
    traffic::{InFlight, Traffic},
};
use crate::{
    discovery::{
        balancer::{
            candidates::{Candidate, Preference},
            outliers::{Interval, Outliers},
            snapshot::CandidateSnapshot,
        },
        view::View,
    },
    node::{Addr, ServerNode},
};

/// Strategy for choosing among nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// In proportion to their weights, evenly spread.
    #[default]
    Weighted,
    /// The better of two random nodes, by observed latency, calls in progress and weight ("The Power of Two Choices in
    /// Randomized Load Balancing", Mitzenmacher, 2001). For nodes whose speeds differ.
    LeastLatency,
}

/// Rules for choosing among nodes.
///
/// Written by struct update, `PickRules { choice, ..PickRules::default() }`, since a minor release may add a field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PickRules {
    /// The strategy.
    pub choice: Choice,
    /// Time over which the share of calls of a fresh node rises from a tenth to the whole. A node is fresh if it was registered while
    /// the balancer knew others. While more than half of the nodes are fresh, each has its whole share.
    ///
    /// By default zero: a fresh node has its whole share at once.
    pub slow_start: Duration,
    /// Excludes nodes that say they use TLS, for calls in plain text.
    ///
    /// By default false.
    pub excludes_tls: bool,
}

/// Picks nodes of a [`View`], and learns from the outcome of calls.
#[derive(Debug)]
pub struct Balancer {
    view: View,
    preference: Preference,
    rules: PickRules,
    traffic: Traffic,
    outliers: Outliers,
    snapshot: Mutex<Arc<CandidateSnapshot>>,
    /// Held while the next snapshot is built. Other callers use the current one meanwhile.
    building: Mutex<()>,
}

impl Balancer {
    /// Creates a balancer by weight.
    pub fn new(view: View) -> Self {
        Self {
            view,
            preference: Preference::default(),
            rules: PickRules::default(),
            traffic: Traffic::default(),
            outliers: Outliers::default(),
            snapshot: Mutex::default(),
            building: Mutex::default(),
        }
    }

    /// Replaces the strategy.
    #[must_use]
    pub fn with_choice(self, choice: Choice) -> Self {
        Self { rules: PickRules { choice, ..self.rules }, ..self }
    }

    /// Prefers nodes whose metadata has all of these pairs, such as a `zone`; the version of a node counts as its `version`.
    /// Other nodes are picked only while no preferred one is available.
    #[must_use]
    pub fn with_preferred(self, metadata: Vec<(String, String)>) -> Self {
        Self { preference: Preference { metadata }, ..self }
    }

    /// Excludes nodes that say they use TLS, for callers that do not.
    #[must_use]
    pub fn without_tls(self) -> Self {
        Self { rules: PickRules { excludes_tls: true, ..self.rules }, ..self }
    }

    /// The view whose nodes are picked.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Picks a node for the next call, other than those in `except`; `None` if there is no other.
    ///
    /// A node that failed is ejected for 1 s, and up to 30 s if it keeps failing, unless all others are ejected as well: then
    /// the fault is more likely on the way to them.
    pub fn pick(&self, except: &[Addr]) -> Option<Pick> {
        self.pick_by(&self.rules, except)
    }

    /// Picks a node as [`pick`](Self::pick) does, by other rules.
    pub fn pick_by(&self, rules: &PickRules, except: &[Addr]) -> Option<Pick> {
        self.pick_candidate(|_| true, rules, except)
    }

    /// Picks a node as [`pick_by`](Self::pick_by) does, among those for which `is_meant` returns true.
    pub fn pick_among(
        &self,
        is_meant: impl Fn(&ServerNode) -> bool,
        rules: &PickRules,
        except: &[Addr],
    ) -> Option<Pick> {
        self.pick_candidate(|candidate| is_meant(candidate.node()), rules, except)
    }

    fn pick_candidate(
        &self,
        is_meant: impl Fn(&Candidate) -> bool,
        rules: &PickRules,
        except: &[Addr],
    ) -> Option<Pick> {
        let snapshot = self.snapshot();
        // Without exceptions the node is not read: of many nodes, few are in the processor's cache.
        let is_allowed = |candidate: &Candidate| {
            !(rules.excludes_tls && candidate.uses_tls)
                && except.iter().all(|addr| *addr != candidate.node().addr)
                && is_meant(candidate)
        };
        let is_available = |candidate: &Candidate| is_allowed(candidate) && !candidate.is_ejected();
        let slow_start = if snapshot.is_mostly_fresh(rules.slow_start) { Duration::ZERO } else { rules.slow_start };
        let is_warm = |candidate: &Candidate| is_available(candidate) && candidate.is_warm(slow_start);
        let available = snapshot.schedules.iter().find_map(|schedule| {
            let warm = match rules.choice {
                Choice::Weighted => schedule.next(&snapshot.leaves, is_warm),
                Choice::LeastLatency => schedule.better_of_two(&snapshot.leaves, is_warm),
            };
            // A fresh node is better than an ejected one, and than one that is not preferred.
            warm.or_else(|| schedule.next(&snapshot.leaves, is_available))
        });
        let allowed = || snapshot.schedules.last()?.next(&snapshot.leaves, is_allowed);
        available.or_else(allowed).map(Candidate::pick)
    }

    /// Reports that a node responded after `latency`, with an error of its own, or not in time. By these rules the node may be
    /// ejected, as one that [`failed`](Pick::failed), unless half of the nodes have been ejected so already: then the fault is more
    /// likely in what they have in common. Returns the number of nodes that are ejected now: this one, and those whose success rate
    /// turns out to be far below that of the others.
    pub fn responded_badly(&self, pick: &Pick, latency: Duration, rules: &OutlierRules) -> usize {
        let (stats, nodes) = (pick.stats(), self.current().len());
        let in_a_row = stats.responded_badly(latency);
        let is_outlier = rules.consecutive > 0 && in_a_row >= rules.consecutive;
        let ejected = usize::from(is_outlier && self.outliers.eject(stats, nodes));
        let interval = self.outliers.next_interval(Instant::now());
        if !rules.by_success_rate || interval == Interval::Running {
            return ejected;
        }
        let snapshot = self.current();
        let all = snapshot.leaves.iter().flat_map(|leaf| &leaf.candidates).filter_map(Candidate::stats);
        ejected + self.outliers.judge(&all.collect::<Vec<_>>(), nodes, interval)
    }

    /// The calls that are made through this balancer, where its caller says so, and the budget of their retries.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The snapshot of the view's current generation, or the one before while another caller builds it.
    fn snapshot(&self) -> Arc<CandidateSnapshot> {
        let snapshot = self.current();
        if snapshot.is_good_for(self.view.generation()) {
            return snapshot;
        }
        let building = match self.building.try_lock() {
            Some(building) => building,
            None if snapshot.is_built() => return snapshot,
            // There is no snapshot before the first.
            None => self.building.lock(),
        };
        // Another caller may just have built it.
        let before = self.current();
        let generation = self.view.generation();
        if before.is_good_for(generation) {
            return before;
        }
        let next = CandidateSnapshot::build(generation, &self.view.nodes(), &self.preference, &before);
        let next = Arc::new(next);
        *self.snapshot.lock() = next.clone();
        drop(building);
        next
    }

    fn current(&self) -> Arc<CandidateSnapshot> {
        self.snapshot.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{Balancer, CandidateSnapshot};
    use crate::discovery::view::{View, ViewState};

    #[test]
    fn only_the_first_snapshot_is_waited_for() {
        let layouts = ["seed".parse().unwrap()];
        let (name, version) = ("user".parse().unwrap(), "".parse().unwrap());
        let state = ViewState::new(name, version, &layouts, Duration::from_secs(1), Arc::default());
        let balancer = Balancer::new(View::new(&Arc::new(state)).unwrap());
        let built = Some((Instant::now(), Duration::ZERO));
        *balancer.snapshot.lock() =
            Arc::new(CandidateSnapshot { generation: 7, built, ..CandidateSnapshot::default() });
        let building = balancer.building.lock();
        assert_eq!(balancer.snapshot().generation, 7);
        drop(building);
        assert_eq!(balancer.snapshot().generation, 0);
    }
}
