//! Picks a node of a view for each call: by weight, by latency where it is wanted, and not one that just failed.
//!
//! By weight is static stride scheduling, as gRPC does it (gRFC A58, "Static Stride Scheduler"): as smooth as smooth
//! weighted round robin, without its walk over all nodes at every pick.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    discovery::{Nodes, View},
    keys::Known,
    node::{Addr, ServerNode, Weight},
};

/// A node that failed once is left out for this long; twice as long each further time.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest time that a node is left out.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// How much of the mean a new latency is: the mean of about the last ten.
const LATENCY_SHARE: f64 = 0.2;
/// From this many nodes on a table is made anew at most once in [`PACE`]: it costs a walk over all of them.
const LARGE: usize = 1000;
/// How old the table of many nodes may be. Nodes serve on for longer than that after they have left.
const PACE: Duration = Duration::from_millis(100);
/// Picks that may meet a node that is left out, before one is looked for.
const MAX_TRIES: usize = 8;

/// How nodes are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// In proportion to their weights, evenly spread.
    #[default]
    Weighted,
    /// The better of two random ones, by observed latency, calls in progress and weight ("The Power of Two Choices in
    /// Randomized Load Balancing", Mitzenmacher, 2001). For nodes whose speeds differ.
    LeastLatency,
}

/// Picks nodes of a [`View`], and learns from what becomes of the calls.
#[derive(Debug)]
pub struct Balancer {
    view: View,
    choice: Choice,
    prefer: Vec<(String, String)>,
    plain: bool,
    table: Mutex<Arc<Table>>,
}

/// A picked node. Tell it what became of the call, unless that says nothing about the node.
#[derive(Debug)]
pub struct Pick {
    known: Arc<Known>,
    peer: Arc<Peer>,
}

/// The nodes of one generation of the view, ready to be picked from.
#[derive(Debug, Default)]
struct Table {
    generation: u64,
    made: Option<Instant>,
    candidates: Vec<Candidate>,
    /// Those that are preferred, if that tells some apart, then all.
    tiers: Vec<Tier>,
}

#[derive(Debug)]
struct Candidate {
    known: Arc<Known>,
    peer: Arc<Peer>,
}

/// Candidates among which the choice is by weight.
#[derive(Debug)]
struct Tier {
    members: Vec<u32>,
    strides: Vec<u16>,
    sequence: AtomicU32,
}

/// What is known of an address, over all generations in which it is there.
#[derive(Debug)]
struct Peer {
    born: Instant,
    failures: AtomicU32,
    /// Left out until then, in milliseconds since `born`.
    out_until: AtomicU64,
    calls: AtomicU32,
    /// In nanoseconds; 0 before the first call.
    latency: AtomicU64,
}

impl Balancer {
    /// A balancer by weight.
    pub fn new(view: View) -> Self {
        let table = Mutex::new(Arc::new(Table { generation: u64::MAX, ..Table::default() }));
        Self { view, choice: Choice::default(), prefer: Vec::new(), plain: false, table }
    }

    /// The same with another way to choose.
    #[must_use]
    pub fn choosing(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// The same with nodes preferred whose metadata has all of these, as `zone` may be; the version of a node counts as its
    /// `version`. Others are picked while none of those can be.
    #[must_use]
    pub fn preferring(self, metadata: Vec<(String, String)>) -> Self {
        Self { prefer: metadata, ..self }
    }

    /// The same without the nodes that say that they speak TLS, for callers that do not.
    #[must_use]
    pub fn without_tls(self) -> Self {
        Self { plain: true, ..self }
    }

    /// What it picks from.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A node for the next call, other than those in `except`; `None` when there is no other.
    ///
    /// A node that failed is left out for 1 s, and up to 30 s if it goes on failing, as long as there is another: if all
    /// have failed, the failures say more about the way to them.
    pub fn pick(&self, except: &[Addr]) -> Option<Pick> {
        let table = self.table();
        let now = Instant::now();
        // Nothing of the node is read unless there is an exception: there are many nodes, and few are at hand.
        let is_wanted = |candidate: &Candidate| except.iter().all(|addr| *addr != candidate.node().addr);
        let is_fine = |candidate: &Candidate| is_wanted(candidate) && !candidate.peer.is_out(now);
        let fine = table.tiers.iter().find_map(|tier| match self.choice {
            Choice::Weighted => tier.next(&table.candidates, is_fine),
            Choice::LeastLatency => tier.better_of_two(&table.candidates, is_fine),
        });
        let any = || table.tiers.last()?.next(&table.candidates, is_wanted);
        fine.or_else(any).map(Candidate::picked)
    }

    /// The table of the view's present generation.
    fn table(&self) -> Arc<Table> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.view.generation();
        let is_new_enough = || table.candidates.len() >= LARGE && table.made.is_some_and(|made| made.elapsed() < PACE);
        if table.generation != generation && !is_new_enough() {
            *table = Arc::new(Table::of(generation, &self.view.nodes(), &self.prefer, self.plain, &table));
        }
        table.clone()
    }
}

impl Table {
    fn of(generation: u64, nodes: &Nodes, prefer: &[(String, String)], plain: bool, before: &Self) -> Self {
        let known: HashMap<&Addr, &Arc<Peer>> =
            before.candidates.iter().map(|candidate| (&candidate.node().addr, &candidate.peer)).collect();
        let peer = |addr: &Addr| known.get(addr).map_or_else(|| Arc::new(Peer::new()), |peer| (*peer).clone());
        let candidate = |known: &Arc<Known>| Candidate { peer: peer(&node_of(known).addr), known: known.clone() };
        let can_be_called = |known: &&Arc<Known>| !(plain && known.is_secured());
        let candidates: Vec<Candidate> = nodes.known().filter(can_be_called).map(candidate).collect();
        let all = || 0..u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        let is_preferred = |&member: &u32| {
            let node = candidates[member as usize].node();
            let has = |(key, value): &(String, String)| {
                let stands = |(at, is): &(String, String)| at == key && is == value;
                node.metadata.pairs().iter().any(stands) || key == "version" && node.version.as_str() == value
            };
            prefer.iter().all(has)
        };
        let preferred: Vec<u32> = all().filter(is_preferred).collect();
        let mut tiers = Vec::new();
        if !preferred.is_empty() && preferred.len() < candidates.len() {
            tiers.push(Tier::of(preferred, &candidates));
        }
        if !candidates.is_empty() {
            tiers.push(Tier::of(all().collect(), &candidates));
        }
        Self { generation, made: Some(Instant::now()), candidates, tiers }
    }
}

impl Tier {
    fn of(members: Vec<u32>, candidates: &[Candidate]) -> Self {
        let weight = |&member: &u32| candidates[member as usize].node().weight.unwrap_or(Weight::MAX).value();
        let heaviest = members.iter().map(weight).max().unwrap_or(1);
        // The heaviest is picked in every round, the others in their share of the rounds.
        let stride = |member: &u32| (weight(member) * u32::from(u16::MAX) / heaviest) as u16;
        let strides = members.iter().map(stride).collect();
        // Anywhere in the first rounds, so that many clients do not begin with the same node.
        Self { sequence: AtomicU32::new(fastrand::u32(..1 << 16)), strides, members }
    }

    /// The next in turn that `is_fine`.
    fn next<'a>(&self, candidates: &'a [Candidate], is_fine: impl Fn(&Candidate) -> bool) -> Option<&'a Candidate> {
        let at = |index: usize| &candidates[self.members[index] as usize];
        let tries = (0..MAX_TRIES).map(|_| at(self.turn()));
        tries.into_iter().find(|candidate| is_fine(candidate)).or_else(|| {
            let from = fastrand::usize(..self.members.len());
            let others = (from..self.members.len()).chain(0..from).map(at);
            others.into_iter().find(|candidate| is_fine(candidate))
        })
    }

    /// Whose turn it is.
    fn turn(&self) -> usize {
        let count = self.members.len();
        const WHOLE: u64 = u16::MAX as u64;
        loop {
            let sequence = u64::from(self.sequence.fetch_add(1, Ordering::Relaxed));
            let (index, round) = ((sequence % count as u64) as usize, sequence / count as u64);
            let stride = u64::from(self.strides[index]);
            // Members of one weight have their pauses in different rounds.
            let offset = index as u64 * (WHOLE / 2);
            if (stride * round + offset) % WHOLE >= WHOLE - stride {
                return index;
            }
        }
    }

    fn better_of_two<'a>(
        &self,
        candidates: &'a [Candidate],
        is_fine: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let draw = || &candidates[self.members[fastrand::usize(..self.members.len())] as usize];
        let mut fine = (0..MAX_TRIES).map(|_| draw()).filter(|candidate| is_fine(candidate));
        let Some(one) = fine.next() else { return self.next(candidates, is_fine) };
        let Some(two) = fine.find(|two| !std::ptr::eq(*two, one)) else { return Some(one) };
        Some(if one.cost() <= two.cost() { one } else { two })
    }
}

fn node_of(known: &Known) -> &ServerNode {
    known.node().expect("nodes are all that is picked from")
}

impl Candidate {
    fn node(&self) -> &ServerNode {
        node_of(&self.known)
    }

    fn picked(&self) -> Pick {
        self.peer.calls.fetch_add(1, Ordering::Relaxed);
        Pick { known: self.known.clone(), peer: self.peer.clone() }
    }

    fn cost(&self) -> f64 {
        let weight = self.node().weight.unwrap_or(Weight::MAX).value();
        let calls = self.peer.calls.load(Ordering::Relaxed).saturating_add(1);
        // One that has never answered costs little, so that it is tried.
        let latency = self.peer.latency.load(Ordering::Relaxed).max(1);
        latency as f64 * f64::from(calls) / f64::from(weight)
    }
}

impl Pick {
    /// The node.
    pub fn node(&self) -> &ServerNode {
        node_of(&self.known)
    }

    /// It answered, after `latency`.
    pub fn succeeded(&self, latency: Duration) {
        self.peer.failures.store(0, Ordering::Relaxed);
        self.peer.out_until.store(0, Ordering::Relaxed);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two at a time may lose one of them, which a mean can bear.
        let before = self.peer.latency.load(Ordering::Relaxed);
        let mean =
            if before == 0 { latency as f64 } else { before as f64 + LATENCY_SHARE * (latency as f64 - before as f64) };
        self.peer.latency.store(mean as u64, Ordering::Relaxed);
    }

    /// It could not be reached, or broke off: it is left out for a while.
    pub fn failed(&self) {
        let failures = self.peer.failures.fetch_add(1, Ordering::Relaxed);
        let out = FIRST_EJECTION.saturating_mul(1 << failures.min(16)).min(LONGEST_EJECTION);
        let until = self.peer.born.elapsed() + out;
        self.peer.out_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.peer.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            born: Instant::now(),
            failures: zero(),
            out_until: AtomicU64::new(0),
            calls: zero(),
            latency: AtomicU64::new(0),
        }
    }

    fn is_out(&self, now: Instant) -> bool {
        let until = self.out_until.load(Ordering::Relaxed);
        until != 0 && (now - self.born).as_millis() < u128::from(until)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::{Candidate, Table};
    use crate::{
        discovery::Nodes,
        keys::{Keys, Known, What},
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
            Arc::new(Known { key: [index as u8].into(), created: 1, what: What::Node(node) })
        };
        let nodes = Nodes(Keys::of(weights.iter().enumerate().map(node)));
        let prefer: Vec<_> = prefer.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Table::of(0, &nodes, &prefer, false, &Table::default())
    }

    #[test]
    fn nodes_that_speak_tls_are_left_out_for_those_who_do_not() {
        let node = |port: u8| ServerNode::new("user", &format!("h:{port}")).unwrap();
        let known = [What::Node(node(1)), What::Secured(node(2))].into_iter().enumerate();
        let known = known.map(|(index, what)| Arc::new(Known { key: [index as u8].into(), created: 1, what }));
        let nodes = Nodes(Keys::of(known));
        let ports = |plain| {
            let table = Table::of(0, &nodes, &[], plain, &Table::default());
            table.candidates.iter().map(port).collect::<Vec<_>>()
        };
        assert_eq!((ports(false), ports(true)), (vec![1, 2], vec![1]));
    }

    fn port(candidate: &Candidate) -> usize {
        candidate.node().addr.port().into()
    }

    #[test]
    fn picks_are_in_proportion_to_the_weights_and_evenly_spread() {
        let table = table(&[100, 50, 10], &[]);
        let picks: Vec<_> =
            (0..1600).map(|_| port(table.tiers[0].next(&table.candidates, |_| true).unwrap())).collect();
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
            let picked = table.tiers[0].next(&table.candidates, |candidate| port(candidate) == 3).unwrap();
            assert_eq!(port(picked), 3);
        }
        assert!(table.tiers[0].next(&table.candidates, |_| false).is_none());
    }

    #[test]
    fn the_preferred_come_first_if_that_tells_some_apart() {
        let members = |table: &Table| table.tiers.iter().map(|tier| tier.members.clone()).collect::<Vec<_>>();
        assert_eq!(members(&table(&[1, 1, 1], &[("zone", "b")])), [vec![1], vec![0, 1, 2]]);
        assert_eq!(members(&table(&[1, 1], &[("zone", "c")])), [vec![0, 1]]);
        assert_eq!(members(&table(&[1, 1], &[])), [vec![0, 1]]);
        assert!(table(&[], &[]).tiers.is_empty());
    }

    #[test]
    fn two_choices_prefer_the_faster() {
        let table = table(&[50, 50], &[]);
        table.candidates[0].picked().succeeded(std::time::Duration::from_millis(100));
        table.candidates[1].picked().succeeded(std::time::Duration::from_millis(1));
        let fast =
            (0..1000).filter(|_| port(table.tiers[0].better_of_two(&table.candidates, |_| true).unwrap()) == 2).count();
        assert!(fast > 900, "{fast}");
    }
}
