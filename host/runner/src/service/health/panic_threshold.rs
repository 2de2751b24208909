//! Panic threshold of a service: it is withdrawn for its failures only while enough nodes of its names remain in etcd. An
//! outage that every host shares would otherwise take all of them out of etcd, one host after the other.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use leasehold::{Addr, Registrar, ServiceName, Version, View};
use leasehold_wasmtime::RegistryCtx;
use tokio::time::{Instant, timeout};

use crate::config::Quarantine;

/// Window in which the largest number of nodes counts.
const WINDOW: Duration = Duration::from_secs(300);
/// Age from which on a view is relied on: two samples.
const SETTLED: Duration = Duration::from_secs(1);
/// Longest wait for the registrar to begin a view; the next sample tries again.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Hosts that find the same outage at the same moment withdraw one sample after the other, by the order of their keys, this
/// many at most: each sees in etcd which nodes left before.
const TURNS: usize = 8;

/// Names of a service, watched from its first failure on.
pub(crate) struct PanicThreshold {
    policy: Quarantine,
    registrar: Registrar,
    registry: RegistryCtx,
    names: Vec<Watched>,
    /// Time since which every view has been read.
    read: Option<Instant>,
    /// Time of the latest sample with a failure.
    failed_at: Option<Instant>,
    /// Samples in a row at which the service could have been withdrawn.
    samples: usize,
}

/// Decision about a service that fails.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Withdraw,
    /// The next sample decides.
    Wait,
    /// Too few nodes would remain, as the text says.
    Keep(String),
}

/// One name that the service has registered.
struct Watched {
    view: View,
    own: BTreeSet<Addr>,
    max: Max,
}

/// Nodes of one name at one moment.
#[derive(Debug, Clone, Copy)]
struct Count {
    others: usize,
    /// Other nodes that have to remain.
    needed: usize,
    /// Rank of the service among the nodes, in the order of keys.
    rank: usize,
}

impl PanicThreshold {
    pub(crate) fn new(policy: Quarantine, registrar: Registrar, registry: RegistryCtx) -> Self {
        Self { policy, registrar, registry, names: Vec::new(), read: None, failed_at: None, samples: 0 }
    }

    /// Returns true if failures that are mostly traps withdraw the service regardless of other nodes.
    pub(crate) fn excepts_traps(&self) -> bool {
        self.policy.withdraw_on_trap
    }

    /// Watches the names that the service has registered. Dropped halfway, the next call goes on.
    pub(crate) async fn watch(&mut self, now: Instant) {
        self.failed_at = Some(now);
        if self.policy.panic_threshold == 0 {
            return;
        }
        let nodes: Vec<_> = self.registry.registrations().iter().map(|kept| kept.node().clone()).collect();
        // The nodes of a withdrawn service are known from before.
        if !nodes.is_empty() {
            self.names.retain(|watched| nodes.iter().any(|node| node.name == *watched.view.name()));
        }
        for node in nodes {
            if let Some(watched) = self.names.iter_mut().find(|watched| *watched.view.name() == node.name) {
                watched.own.insert(node.addr);
                continue;
            }
            let Ok(Ok(view)) = timeout(BEGIN_TIMEOUT, self.registrar.watch(&node.name, &Version::default())).await
            else {
                return; // Without etcd or the registrar no service can be withdrawn either.
            };
            self.names.push(Watched { view, own: BTreeSet::from([node.addr]), max: Max::default() });
            self.read = None;
        }
        if self.counts(now).is_none() {
            self.read = None;
        } else if self.read.is_none() {
            self.read = Some(now);
        }
    }

    /// Ends the views once nothing has failed for the whole window.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.samples = 0;
        if self.failed_at.is_some_and(|failed| now.duration_since(failed) > WINDOW) {
            (self.names, self.read, self.failed_at) = (Vec::new(), None, None);
        }
    }

    /// Decides about a service whose requests fail.
    pub(crate) fn decide(&mut self, now: Instant) -> Decision {
        if self.policy.panic_threshold == 0 {
            return Decision::Withdraw;
        }
        let counts = self.counts(now).filter(|_| self.read.is_some_and(|read| now.duration_since(read) >= SETTLED));
        let Some(counts) = counts else { return Decision::Wait };
        if let Some((name, few)) = counts.iter().find(|(_, count)| count.others < count.needed) {
            self.samples = 0;
            return Decision::Keep(format!(
                "{} other nodes of {name} stand in etcd, and {} have to remain (health.panic_threshold is {}%)",
                few.others, few.needed, self.policy.panic_threshold
            ));
        }
        self.samples += 1;
        let turn = counts.iter().map(|(_, count)| count.rank % TURNS).max().unwrap_or(0);
        if self.samples > turn { Decision::Withdraw } else { Decision::Wait }
    }

    /// Returns true if a withdrawn service has too few other nodes.
    pub(crate) fn is_needed(&mut self, now: Instant) -> bool {
        let counts = self.counts(now);
        counts.is_some_and(|counts| counts.iter().any(|(_, count)| count.others < count.needed))
    }

    /// Counts the nodes of each name; none while one was not read, or is not kept up to date.
    fn counts(&mut self, now: Instant) -> Option<Vec<(ServiceName, Count)>> {
        let share = self.policy.panic_threshold;
        let counts =
            self.names.iter_mut().map(|watched| Some((watched.view.name().clone(), watched.count(now, share)?)));
        counts.collect::<Option<Vec<_>>>().filter(|counts| !counts.is_empty())
    }
}

impl Watched {
    fn count(&mut self, now: Instant, share: u32) -> Option<Count> {
        self.view.age()?;
        if self.view.error().is_some() {
            return None;
        }
        let nodes = self.view.nodes();
        let is_own = |addr: &Addr| self.own.contains(addr);
        let others = nodes.iter().filter(|node| !is_own(&node.addr)).count();
        let rank = nodes.iter().position(|node| is_own(&node.addr)).unwrap_or(0);
        let most = self.max.add(now, others + self.own.len());
        Some(Count { others, needed: needed(most, share), rank })
    }
}

/// Number of nodes that have to remain, of the largest number.
fn needed(most: usize, share: u32) -> usize {
    most.saturating_mul(share as usize).div_ceil(100)
}

/// Maximum over the window.
#[derive(Debug, Default)]
struct Max(VecDeque<(Instant, usize)>);

impl Max {
    fn add(&mut self, now: Instant, number: usize) -> usize {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
        while self.0.back().is_some_and(|(_, smaller)| *smaller <= number) {
            self.0.pop_back();
        }
        self.0.push_back((now, number));
        self.0[0].1
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Max, WINDOW, needed};

    #[test]
    fn half_of_the_nodes_remain_and_never_none() {
        // Number of nodes that leave, if each decides in turn.
        let leave = |all: usize, share| (0..all).take_while(|left| all - left > needed(all, share)).count();
        assert_eq!([1, 2, 3, 4, 5, 10].map(|all| leave(all, 50)), [0, 1, 1, 2, 2, 5]);
        assert_eq!([leave(10, 100), leave(10, 1), leave(10, 0)], [0, 9, 10]);
    }

    #[test]
    fn a_node_that_left_within_the_window_counts() {
        let (begun, mut max) = (Instant::now(), Max::default());
        let at = |seconds| begun + std::time::Duration::from_secs(seconds);
        assert_eq!([max.add(begun, 4), max.add(at(1), 2), max.add(at(2), 3), max.add(at(3), 1)], [4; 4]);
        assert_eq!(max.add(begun + WINDOW + std::time::Duration::from_millis(500), 1), 3);
        assert_eq!(max.add(at(3) + WINDOW * 2, 1), 1);
    }
}
