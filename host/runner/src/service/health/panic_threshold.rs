//! Panic threshold of a service: for its failures it is withdrawn only while enough nodes of its names remain in etcd. An
//! outage that every host shares would otherwise take all of them out of etcd, one host after the other.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use leasehold::{Addr, Registrar, ServiceName, Version, View};
use leasehold_wasmtime::RegistryCtx;
use tokio::time::{Instant, timeout};

use crate::config::Quarantine;

/// How far back the largest number of nodes is remembered.
const MEMORY: Duration = Duration::from_secs(300);
/// A view tells enough once it has been read for this long: two looks.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the registrar may take to begin a view; the next look tries again.
const BEGIN: Duration = Duration::from_secs(1);
/// Hosts that find the same outage at the same moment withdraw one look after the other, by the order of their keys, this
/// many at most: each sees in etcd who left before it.
const TURNS: usize = 8;

/// Names of a service, watched from its first failure on.
pub(crate) struct PanicThreshold {
    policy: Quarantine,
    registrar: Registrar,
    registry: RegistryCtx,
    names: Vec<Watched>,
    /// Since when every view has been read.
    read: Option<Instant>,
    /// Looks in a row at which the service could have been withdrawn.
    looks: usize,
}

/// What is to be done about a service that fails.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Withdraw,
    /// The next look decides.
    Wait,
    /// Too few nodes would remain, as the text says.
    Keep(String),
}

/// One name that the service has registered.
struct Watched {
    view: View,
    own: BTreeSet<Addr>,
    most: Most,
}

/// Nodes of one name at one moment.
#[derive(Debug, Clone, Copy)]
struct Count {
    others: usize,
    /// Others that have to remain.
    needed: usize,
    /// Place of the service among the nodes, in the order of keys.
    rank: usize,
}

impl PanicThreshold {
    pub(crate) fn new(policy: Quarantine, registrar: Registrar, registry: RegistryCtx) -> Self {
        Self { policy, registrar, registry, names: Vec::new(), read: None, looks: 0 }
    }

    /// Whether failures that are mostly traps withdraw the service whatever remains.
    pub(crate) fn excepts_traps(&self) -> bool {
        self.policy.withdraw_on_trap
    }

    /// Watches the names that the service has registered. Dropped halfway, the next call goes on.
    pub(crate) async fn watch(&mut self, now: Instant) {
        if self.policy.panic_threshold == 0 {
            return;
        }
        let nodes: Vec<_> = self.registry.registrations().iter().map(|kept| kept.node().clone()).collect();
        // Those that are withdrawn are known from before.
        if !nodes.is_empty() {
            self.names.retain(|watched| nodes.iter().any(|node| node.name == *watched.view.name()));
        }
        for node in nodes {
            if let Some(watched) = self.names.iter_mut().find(|watched| *watched.view.name() == node.name) {
                watched.own.insert(node.addr);
                continue;
            }
            let Ok(Ok(view)) = timeout(BEGIN, self.registrar.watch(&node.name, &Version::default())).await else {
                return; // etcd or the registrar is away; nobody can be withdrawn either.
            };
            self.names.push(Watched { view, own: BTreeSet::from([node.addr]), most: Most::default() });
            self.read = None;
        }
        if self.counts(now).is_none() {
            self.read = None;
        } else if self.read.is_none() {
            self.read = Some(now);
        }
    }

    /// Ends the views once nothing has failed for as long as is remembered.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.looks = 0;
        if self.read.is_some_and(|read| now.duration_since(read) > MEMORY) {
            (self.names, self.read) = (Vec::new(), None);
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
            self.looks = 0;
            return Decision::Keep(format!(
                "{} other nodes of {name} stand in etcd, and {} have to remain (health.panic_threshold is {}%)",
                few.others, few.needed, self.policy.panic_threshold
            ));
        }
        self.looks += 1;
        let turn = counts.iter().map(|(_, count)| count.rank % TURNS).max().unwrap_or(0);
        if self.looks > turn { Decision::Withdraw } else { Decision::Wait }
    }

    /// Whether too few others remain of a service that is withdrawn.
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
        let most = self.most.add(now, others + self.own.len());
        Some(Count { others, needed: needed(most, share), rank })
    }
}

/// Nodes that have to remain of the most there were.
fn needed(most: usize, share: u32) -> usize {
    most.saturating_mul(share as usize).div_ceil(100)
}

/// The largest number of a while.
#[derive(Debug, Default)]
struct Most(VecDeque<(Instant, usize)>);

impl Most {
    fn add(&mut self, now: Instant, number: usize) -> usize {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > MEMORY) {
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

    use super::{MEMORY, Most, needed};

    #[test]
    fn half_of_the_nodes_remain_and_never_none() {
        // Of that many nodes this many leave, if each asks in turn.
        let leave = |all: usize, share| (0..all).take_while(|left| all - left > needed(all, share)).count();
        assert_eq!([1, 2, 3, 4, 5, 10].map(|all| leave(all, 50)), [0, 1, 1, 2, 2, 5]);
        assert_eq!([leave(10, 100), leave(10, 1), leave(10, 0)], [0, 9, 10]);
    }

    #[test]
    fn who_left_lately_counts_as_one_of_all() {
        let (begun, mut most) = (Instant::now(), Most::default());
        let at = |seconds| begun + std::time::Duration::from_secs(seconds);
        assert_eq!([most.add(begun, 4), most.add(at(1), 2), most.add(at(2), 3), most.add(at(3), 1)], [4; 4]);
        assert_eq!(most.add(begun + MEMORY + std::time::Duration::from_millis(500), 1), 3);
        assert_eq!(most.add(at(3) + MEMORY * 2, 1), 1);
    }
}
