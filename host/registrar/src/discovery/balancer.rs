//! Picks a node of a view for each call: by weight, by latency where it is wanted, and not one that just failed.
//!
//! By weight is static stride scheduling, as gRPC does it (gRFC A58, "Static Stride Scheduler"): as smooth as smooth
//! weighted round robin, without its walk over all nodes at every pick.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    discovery::{
        node_set::{Known, Leaf},
        view::{Nodes, View},
    },
    node::{Addr, ServerNode, Weight},
};

/// A node that failed once is left out for this long; twice as long each further time.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest time that a node is left out.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// How much of the mean a new latency is: the mean of about the last ten.
const LATENCY_SHARE: f64 = 0.2;
/// From this many nodes on a table is kept for [`REST`] times as long as it took to make, though at most for [`PACE`].
const LARGE: usize = 1000;
/// So that a tenth of a processor at most is spent on tables.
const REST: u32 = 10;
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
    taste: Taste,
    choice: Choice,
    table: Mutex<Arc<Table>>,
    /// Held by whoever makes the next table. The others go on with the one that is there.
    making: Mutex<()>,
}

/// Which nodes are picked at all, and which ones first.
#[derive(Debug, Default)]
struct Taste {
    prefer: Vec<(String, String)>,
    plain: bool,
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
    /// When it was made, and how long that took. None: no view has been looked at yet.
    made: Option<(Instant, Duration)>,
    parts: Vec<Arc<Part>>,
    /// Those that are preferred, if that tells some apart, then all.
    tiers: Vec<Tier>,
}

/// What is made of one leaf of the view, once: the next table shares the parts that stay the same.
#[derive(Debug)]
struct Part {
    leaf: Arc<Leaf>,
    candidates: Vec<Candidate>,
    preferred: Vec<u16>,
    /// The heaviest weight of all, and of those that are preferred.
    heaviest: [u32; 2],
}

#[derive(Debug)]
struct Candidate {
    known: Arc<Known>,
    weight: u32,
    /// Of many nodes most are never picked.
    peer: OnceLock<Arc<Peer>>,
}

/// Candidates among which the choice is by weight.
#[derive(Debug)]
struct Tier {
    is_preferred: bool,
    /// Where the members of each part end, in the order of all.
    ends: Vec<u32>,
    /// By weight.
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
        let (taste, choice) = (Taste::default(), Choice::default());
        Self { view, taste, choice, table: Mutex::default(), making: Mutex::default() }
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
        Self { taste: Taste { prefer: metadata, ..self.taste }, ..self }
    }

    /// The same without the nodes that say that they speak TLS, for callers that do not.
    #[must_use]
    pub fn without_tls(self) -> Self {
        Self { taste: Taste { plain: true, ..self.taste }, ..self }
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
        // Nothing of the node is read unless there is an exception: there are many nodes, and few are at hand.
        let is_wanted = |candidate: &Candidate| except.iter().all(|addr| *addr != candidate.node().addr);
        let is_fine = |candidate: &Candidate| is_wanted(candidate) && !candidate.is_out();
        let fine = table.tiers.iter().find_map(|tier| match self.choice {
            Choice::Weighted => tier.next(&table.parts, is_fine),
            Choice::LeastLatency => tier.better_of_two(&table.parts, is_fine),
        });
        let any = || table.tiers.last()?.next(&table.parts, is_wanted);
        fine.or_else(any).map(Candidate::picked)
    }

    /// The table of the view's present generation, or the one before while somebody else makes it.
    fn table(&self) -> Arc<Table> {
        let table = self.current();
        if table.is_good_for(self.view.generation()) {
            return table;
        }
        let making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if table.made.is_some() => return table,
            // There is none before the first.
            Err(TryLockError::WouldBlock) => self.making.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Somebody else may just have made it.
        let before = self.current();
        let generation = self.view.generation();
        if before.is_good_for(generation) {
            return before;
        }
        let table = Arc::new(Table::of(generation, &self.view.nodes(), &self.taste, &before));
        *self.kept() = table.clone();
        drop(making);
        table
    }

    fn current(&self) -> Arc<Table> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

impl Table {
    fn of(generation: u64, nodes: &Nodes, taste: &Taste, before: &Self) -> Self {
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
    fn is_good_for(&self, generation: u64) -> bool {
        let Some((made, took)) = self.made else { return false };
        let is_large = || self.tiers.last().is_some_and(|all| all.len() >= LARGE);
        self.generation == generation || is_large() && made.elapsed() < PACE.min(REST * took)
    }
}

impl Part {
    fn of(leaf: Arc<Leaf>, taste: &Taste, peers: &HashMap<&Addr, &Arc<Peer>>) -> Self {
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

    fn len(&self, is_preferred: bool) -> usize {
        if is_preferred { self.preferred.len() } else { self.candidates.len() }
    }

    fn at(&self, is_preferred: bool, index: usize) -> &Candidate {
        &self.candidates[if is_preferred { self.preferred[index].into() } else { index }]
    }
}

impl Tier {
    fn of(is_preferred: bool, parts: &[Arc<Part>]) -> Self {
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len(is_preferred) as u32;
            Some(*end)
        });
        let heaviest = parts.iter().map(|part| part.heaviest[usize::from(is_preferred)]).max().unwrap_or(1);
        // The heaviest is picked in every round, the others in their share of the rounds.
        let strides = (0..=heaviest).map(|weight| (weight * u32::from(u16::MAX) / heaviest) as u16);
        // In any round, so that many clients do not begin with the same node, nor one with the same nodes after each change.
        let sequence = AtomicU32::new(fastrand::u32(..));
        Self { is_preferred, ends: ends.collect(), strides: strides.collect(), sequence }
    }

    fn len(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    fn at<'a>(&self, parts: &'a [Arc<Part>], index: usize) -> &'a Candidate {
        let part = self.ends.partition_point(|end| *end as usize <= index);
        let begin = part.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        parts[part].at(self.is_preferred, index - begin)
    }

    /// The next in turn that `is_fine`.
    fn next<'a>(&self, parts: &'a [Arc<Part>], is_fine: impl Fn(&Candidate) -> bool) -> Option<&'a Candidate> {
        let tries = (0..MAX_TRIES).map(|_| self.turn(parts));
        tries.into_iter().find(|candidate| is_fine(candidate)).or_else(|| {
            let from = fastrand::usize(..self.len());
            let others = (from..self.len()).chain(0..from).map(|index| self.at(parts, index));
            others.into_iter().find(|candidate| is_fine(candidate))
        })
    }

    /// Whose turn it is.
    fn turn<'a>(&self, parts: &'a [Arc<Part>]) -> &'a Candidate {
        let count = self.len() as u64;
        const WHOLE: u64 = u16::MAX as u64;
        loop {
            let sequence = u64::from(self.sequence.fetch_add(1, Ordering::Relaxed));
            let (index, round) = (sequence % count, sequence / count);
            let candidate = self.at(parts, index as usize);
            let stride = u64::from(self.strides[candidate.weight as usize]);
            // Members of one weight have their pauses in different rounds.
            let offset = index * (WHOLE / 2);
            if (stride * round + offset) % WHOLE >= WHOLE - stride {
                return candidate;
            }
        }
    }

    fn better_of_two<'a>(&self, parts: &'a [Arc<Part>], is_fine: impl Fn(&Candidate) -> bool) -> Option<&'a Candidate> {
        let draw = || self.at(parts, fastrand::usize(..self.len()));
        let mut fine = (0..MAX_TRIES).map(|_| draw()).filter(|candidate| is_fine(candidate));
        let Some(one) = fine.next() else { return self.next(parts, is_fine) };
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

    fn is_out(&self) -> bool {
        self.peer.get().is_some_and(|peer| peer.is_out())
    }

    fn picked(&self) -> Pick {
        let peer = self.peer.get_or_init(|| Arc::new(Peer::new()));
        peer.calls.fetch_add(1, Ordering::Relaxed);
        Pick { known: self.known.clone(), peer: peer.clone() }
    }

    fn cost(&self) -> f64 {
        // One that has never answered costs little, so that it is tried.
        let of = |peer: &Arc<Peer>| (peer.calls.load(Ordering::Relaxed), peer.latency.load(Ordering::Relaxed));
        let (calls, latency) = self.peer.get().map_or((0, 0), of);
        latency.max(1) as f64 * f64::from(calls.saturating_add(1)) / f64::from(self.weight)
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

    fn is_out(&self) -> bool {
        let until = self.out_until.load(Ordering::Relaxed);
        // A look at the clock costs as much as half of a pick, and few nodes are left out.
        until != 0 && self.born.elapsed().as_millis() < u128::from(until)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{Balancer, Candidate, Part, Table, Taste, Tier};
    use crate::{
        discovery::{
            node_set::{Keys, Known, What},
            view::{Nodes, Picture},
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
    fn nobody_waits_for_a_table_but_the_first() {
        let layouts = ["seed".parse().unwrap()];
        let picture = Picture::new("user".parse().unwrap(), "".parse().unwrap(), &layouts, Duration::from_secs(1));
        let balancer = Balancer::new(Arc::new(picture).view().unwrap());
        let old = Table { generation: 7, made: Some((Instant::now(), Duration::ZERO)), ..Table::default() };
        *balancer.kept() = Arc::new(old);
        let making = balancer.making.lock().unwrap();
        assert_eq!(balancer.table().generation, 7);
        drop(making);
        assert_eq!(balancer.table().generation, 0);
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
