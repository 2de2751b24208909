//! One desired key of a lease: what should stand in etcd, what is believed to stand there, and who waits for it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::Error,
    etcd::Op,
    layout::Layout,
    node::{Invalid, ServerNode, Version, Weight},
    options::Ownership,
    status::{LeaseMetrics, Standing, State, StatusCell},
};

/// Answers to whoever waits for a command.
pub(crate) type Reply = oneshot::Sender<Result<(), Error>>;

/// A wish to keep a node in etcd, on its way to a lease.
pub(crate) struct Wish {
    pub(crate) key: Arc<str>,
    pub(crate) node: Arc<ServerNode>,
    pub(crate) layout: Layout,
    pub(crate) ownership: Ownership,
    /// Dead once the handle is dropped.
    pub(crate) status: Weak<StatusCell>,
    /// Until when it is to be registered.
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
}

/// What a write of the key published, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) weight: Weight,
    /// Counts the nodes that the registration has had.
    edition: u16,
}

/// A weight that its owner sets by hand, or another node, is written no sooner after the one before than this, the last
/// one then: whoever sets weights in a loop is not to keep etcd busy.
const MIN_REWRITE: Duration = Duration::from_secs(1);

/// What the key should come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    Present,
    Absent,
    /// It has come to be absent; what remains is to be sure that no late write brings it back.
    Gone,
}

/// How the lease as a whole is doing; every entry's state follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Steady,
    Suspect,
    Recovering,
}

pub(crate) struct Entry {
    node: Arc<ServerNode>,
    layout: Layout,
    pub(crate) ownership: Ownership,
    pub(crate) goal: Goal,
    /// The lease under which the key is believed to stand; 0 for none. etcd corrects it.
    pub(crate) held: i64,
    /// Somebody else's lease that the first write may take the key from; 0 for none. A delete never names it.
    pub(crate) displaces: i64,
    /// What etcd confirmed under the current lease; `None` when the key must be written.
    pub(crate) published: Option<Written>,
    /// The revision of the write that published it; 0 for none.
    pub(crate) revision: i64,
    /// Somebody else has written over it.
    pub(crate) altered: bool,
    pub(crate) weight: Weight,
    edition: u16,
    /// When what is published changed last, or the change was sent.
    pub(crate) weighed_at: Instant,
    /// What the write that is under way publishes.
    pub(crate) in_flight: Option<Written>,
    /// Whether etcd ever confirmed a write, or left one unanswered.
    pub(crate) may_exist: bool,
    /// Whether etcd ever confirmed it.
    pub(crate) visible: bool,
    /// Somebody else's lease that holds the key; 0 for none.
    pub(crate) rival: i64,
    /// Refused by etcd as part of a batch; it is written alone.
    pub(crate) solo: bool,
    /// Refused by etcd even alone; it is tried again with the next audit.
    pub(crate) parked: bool,
    /// It has an unresolved fault of its own.
    pub(crate) faulty: bool,
    pub(crate) queued: bool,
    pub(crate) recoveries: u32,
    /// Who waits for it to be registered, and until when.
    birth: Option<(Instant, Reply)>,
    pub(crate) farewells: Vec<Reply>,
    status: Weak<StatusCell>,
    metrics: Arc<LeaseMetrics>,
}

impl Entry {
    pub(crate) fn new(wish: Wish, metrics: Arc<LeaseMetrics>, load: Weight, now: Instant) -> Self {
        Self {
            weight: wish.node.weight.unwrap_or(load),
            node: wish.node,
            layout: wish.layout,
            ownership: wish.ownership,
            goal: Goal::Present,
            held: 0,
            displaces: 0,
            published: None,
            revision: 0,
            altered: false,
            edition: 0,
            weighed_at: now,
            in_flight: None,
            may_exist: false,
            visible: false,
            rival: 0,
            solo: false,
            parked: false,
            faulty: false,
            queued: false,
            recoveries: 0,
            birth: Some((wish.deadline, wish.reply)),
            farewells: Vec::new(),
            status: wish.status,
            metrics,
        }
    }

    pub(crate) fn awaits_birth_until(&self, deadline: Instant) -> bool {
        self.birth.as_ref().is_some_and(|(until, _)| *until == deadline)
    }

    /// Tells whoever waits for the registration. Who has given up has dropped the handle, and that withdraws the key.
    pub(crate) fn answer_birth(&mut self, outcome: Result<(), Error>) {
        if let Some((_, reply)) = self.birth.take() {
            let _ = reply.send(outcome);
        }
    }

    /// What the keys of its service begin with.
    pub(crate) fn prefix(&self) -> String {
        self.layout.prefix(&self.node.name, &Version::default())
    }

    /// Whether the weight follows the load.
    pub(crate) fn follows_load(&self) -> bool {
        self.node.weight.is_none()
    }

    /// From now on this weight, instead of the computed one.
    pub(crate) fn pin_weight(&mut self, weight: Weight) {
        let node = ServerNode { weight: Some(weight), ..(*self.node).clone() };
        self.node = Arc::new(node);
        self.weight = weight;
    }

    /// From now on this node, under the same key.
    pub(crate) fn replace(&mut self, key: &str, node: Arc<ServerNode>) -> Result<(), Error> {
        self.layout.accept(&node)?;
        let other = self.layout.key(&node);
        if other != key {
            return Err(Invalid::new("node", format!("must have the key {key}, not {other}")).into());
        }
        self.weight = node.weight.unwrap_or(self.weight);
        self.node = node;
        self.edition = self.edition.wrapping_add(1);
        Ok(())
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.goal == Goal::Present && self.status.strong_count() == 0
    }

    /// Whether etcd should have the key under this lease, as it was written last.
    pub(crate) fn stands_under(&self, lease: i64) -> bool {
        self.goal == Goal::Present && self.published.is_some() && self.held == lease
    }

    /// Whether etcd has to be told something.
    pub(crate) fn is_dirty(&self) -> bool {
        match self.goal {
            Goal::Present => self.published != Some(self.wanted()),
            Goal::Absent => true,
            Goal::Gone => false,
        }
    }

    fn wanted(&self) -> Written {
        Written { weight: self.weight, edition: self.edition }
    }

    /// When it may be written; in the past for a key that does not stand as it should.
    pub(crate) fn due(&self) -> Instant {
        match (self.goal, self.published) {
            (Goal::Present, Some(_)) => self.weighed_at + MIN_REWRITE,
            _ => self.weighed_at,
        }
    }

    /// Whether the last write published another node, rather than another weight.
    pub(crate) fn was_replaced(&self, before: Written) -> bool {
        self.published.is_some_and(|published| published.edition != before.edition)
    }

    /// Whether the key cannot be in etcd, since nothing was ever sent that etcd did not refuse.
    pub(crate) fn was_never_written(&self) -> bool {
        !self.may_exist && self.in_flight.is_none()
    }

    /// Its next write, for a transaction that puts under `lease`.
    pub(crate) fn op(&mut self, key: &Arc<str>, lease: i64, now: Instant) -> Op {
        let key = key.clone();
        match self.goal {
            Goal::Present => {
                if self.published.is_some() {
                    self.weighed_at = now;
                }
                self.in_flight = Some(self.wanted());
                let held = if self.displaces == 0 { self.held } else { self.displaces };
                Op::Put { key, value: self.layout.value(&self.node, self.weight), held }
            }
            Goal::Absent | Goal::Gone => Op::Delete { key, held: if self.held == 0 { lease } else { self.held } },
        }
    }

    /// The lease is gone, and the key with it if it stood there.
    pub(crate) fn lost(&mut self, lease: i64) {
        if self.held == lease {
            self.held = 0;
            self.published = None;
        }
    }

    /// Tells the handle where the registration stands.
    pub(crate) fn show(&self, mood: Mood) {
        let state = match self.goal {
            Goal::Absent | Goal::Gone => State::Draining,
            Goal::Present if !self.visible => State::Pending,
            Goal::Present if self.rival != 0 => State::Conflict,
            Goal::Present if self.published.is_none() || mood == Mood::Recovering => State::Recovering,
            Goal::Present if mood == Mood::Suspect || self.parked => State::Suspect,
            Goal::Present => State::Registered,
        };
        self.set(state);
    }

    /// Ends it: everybody who waits is told.
    pub(crate) fn end(mut self, birth: Error) {
        self.set(State::Stopped);
        self.answer_birth(Err(birth));
        for reply in self.farewells.drain(..) {
            let _ = reply.send(Ok(())); // The caller may have given up.
        }
    }

    fn set(&self, state: State) {
        let next = Standing { state, weight: self.weight, recoveries: self.recoveries };
        if self.status.upgrade().is_some_and(|status| status.write(next)) {
            self.metrics.changed.notify_waiters();
        }
    }
}
