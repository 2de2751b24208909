//! The status of a registration as its owner sees it: its state now, and the events of its lease.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    etcd::latency::Verb,
    faults::{Fault, Faults, Source},
    lease_id::LeaseId,
    node::{ServerNode, ServiceName, Weight},
};

/// State of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not in etcd yet.
    Pending,
    /// In etcd, under a lease that etcd confirmed within its time to live.
    Registered,
    /// The last renewal was not confirmed, or etcd refuses to write; the host is finding out.
    Suspect,
    /// Lost, or on its way to a new lease; the host writes it again until it succeeds.
    Recovering,
    /// A live lease of another host holds the key; the registration returns once the key is free.
    Conflict,
    /// On its way out of etcd.
    Draining,
    /// Out of etcd, for good.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Registered => "registered",
            Self::Suspect => "suspect",
            Self::Recovering => "recovering",
            Self::Conflict => "conflict",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// A registration at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// State of the registration.
    pub state: State,
    /// The weight that is published, or will be as soon as it can be written.
    pub weight: Weight,
    /// Time to live of the lease without a further renewal; zero without a lease.
    pub ttl_remaining: Duration,
    /// Age of the lease since its grant; zero without a lease.
    pub lease_age: Duration,
    /// Renewals that etcd confirmed since the registration began.
    pub renewals: u64,
    /// Number of times that the key was lost and written again.
    pub recoveries: u64,
}

impl Status {
    /// This and that of another key of the same node as one: what is worst, and what was lost in all.
    pub(crate) fn with(self, other: Self) -> Self {
        let rank = |status: &Self| match status.state {
            State::Stopped => 0,
            State::Registered => 1,
            State::Suspect => 2,
            State::Recovering => 3,
            State::Conflict => 4,
            State::Draining => 5,
            State::Pending => 6,
        };
        Self {
            state: if rank(&other) > rank(&self) { other.state } else { self.state },
            weight: self.weight,
            ttl_remaining: self.ttl_remaining.min(other.ttl_remaining),
            lease_age: self.lease_age.min(other.lease_age),
            renewals: self.renewals.min(other.renewals),
            recoveries: self.recoveries + other.recoveries,
        }
    }
}

/// Event of a lease or of one of its keys. Sent once per change, not once per retry.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// Kind of the event.
    pub kind: EventKind,
    /// The key it happened to; `None` when it happened to the lease with all its keys.
    pub key: Option<Arc<str>>,
    /// The service of that key.
    pub service: Option<ServiceName>,
    /// Reason, for people.
    pub why: String,
    /// The lease; `None` while there is none.
    pub lease: Option<LeaseId>,
    /// Age of that lease since its grant.
    pub lease_age: Duration,
    /// Time since the last change in the health of the lease.
    pub since: Duration,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A new key is in etcd.
    Registered,
    /// A new key replaced one of a live lease of another host.
    TookOver,
    /// A renewal was confirmed.
    Renewed,
    /// A renewal was not confirmed.
    Suspect,
    /// etcd refuses what the lease, with all its keys, would need to be written again.
    Refused,
    /// A renewal was confirmed after all, or what etcd refused is accepted again; nothing was lost.
    Confirmed,
    /// The lease is lost or given up; its keys are about to be written under a new one.
    Recovering,
    /// All keys are back under a new lease.
    Recovered,
    /// A key was missing, detached from its lease, or written over by another client, and is as it should be again.
    Healed,
    /// A key is held by a live lease of another host.
    Conflict,
    /// A new weight is in etcd.
    Weighed,
    /// Another node is in etcd, under the same key.
    Updated,
    /// A registration has ended: its key is out of etcd for good, or belongs to another process there.
    Stopped,
}

impl EventKind {
    /// Name of the kind for machines, in snake case. It does not change from one release to the next.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::TookOver => "took_over",
            Self::Renewed => "renewed",
            Self::Suspect => "suspect",
            Self::Refused => "refused",
            Self::Confirmed => "confirmed",
            Self::Recovering => "recovering",
            Self::Recovered => "recovered",
            Self::Healed => "healed",
            Self::Conflict => "conflict",
            Self::Weighed => "weighed",
            Self::Updated => "updated",
            Self::Stopped => "stopped",
        }
    }

    /// The kind as a sentence, before the reason.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Registered => "the key is registered",
            Self::TookOver => "the key is taken over from another host",
            Self::Renewed => "the lease is renewed",
            Self::Suspect => "the lease is in doubt",
            Self::Refused => "etcd refuses what the lease needs",
            Self::Confirmed => "the lease is confirmed again, and nothing was lost",
            Self::Recovering => "the lease is lost, and its keys are written again under a new one",
            Self::Recovered => "the keys are registered again",
            Self::Healed => "the key is registered again",
            Self::Conflict => "the key is not ours any more",
            Self::Weighed => "the weight is published",
            Self::Updated => "the node is published anew",
            Self::Stopped => "the registration has ended",
        }
    }
}

/// Part of a registration's status that is its own, not its lease's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyStatus {
    pub(crate) state: State,
    pub(crate) weight: Weight,
    pub(crate) recoveries: u32,
}

/// A key as its lease, its handles and its registrar share it: the lease writes the status, the handles read it. One
/// allocation of 80 bytes, since there may be many.
#[derive(Debug)]
pub(crate) struct SharedKey {
    key: Arc<str>,
    /// The node that was registered first under the key.
    node: Arc<ServerNode>,
    status: AtomicU64,
    /// Registrations that have not released the key.
    owners: AtomicU32,
    /// Of the lease, at the registration.
    renewals_before: u64,
    metrics: Arc<LeaseMetrics>,
}

impl SharedKey {
    /// A key that has one owner.
    pub(crate) fn new(key: Arc<str>, node: Arc<ServerNode>, status: KeyStatus, metrics: Arc<LeaseMetrics>) -> Self {
        let (status, owners, renewals_before) = (AtomicU64::new(packed(status)), AtomicU32::new(1), metrics.renewals());
        Self { key, node, status, owners, renewals_before, metrics }
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.node.name
    }

    pub(crate) fn metrics(&self) -> &LeaseMetrics {
        &self.metrics
    }

    pub(crate) fn add_owner(&self) {
        self.owners.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn remove_owner(&self) {
        self.owners.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn is_owned(&self) -> bool {
        self.owners.load(Ordering::SeqCst) > 0
    }

    /// Writes the status, and notifies those who wait for another one.
    pub(crate) fn write(&self, status: KeyStatus) {
        let next = packed(status);
        if self.status.swap(next, Ordering::Relaxed) != next {
            self.metrics.changed.notify_waiters();
        }
    }

    pub(crate) fn read(&self) -> KeyStatus {
        let bits = self.status.load(Ordering::Relaxed);
        let [state, weight, ..] = bits.to_le_bytes();
        KeyStatus {
            state: STATES[usize::from(state)],
            weight: Weight::try_from(u32::from(weight)).unwrap_or(Weight::MIN),
            recoveries: (bits >> 32) as u32,
        }
    }

    /// The lease that the key is under, or about to be written under; `None` while it is under no lease of this host.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        match self.read().state {
            State::Pending | State::Conflict | State::Stopped => None,
            State::Registered | State::Suspect | State::Recovering | State::Draining => self.metrics.lease(),
        }
    }

    /// The status with that of the lease.
    pub(crate) fn status(&self) -> Status {
        let KeyStatus { state, weight, recoveries } = self.read();
        let is_over = matches!(state, State::Stopped | State::Pending);
        let now = Instant::now();
        let (ttl_remaining, lease_age) = match is_over {
            true => (Duration::ZERO, Duration::ZERO),
            false => (self.metrics.remaining(now), self.metrics.age(now)),
        };
        // After a suspension of the process, the lease may have expired unnoticed.
        let state = if state == State::Registered && ttl_remaining.is_zero() { State::Suspect } else { state };
        let renewals = self.metrics.renewals() - self.renewals_before;
        Status { state, weight, ttl_remaining, lease_age, renewals, recoveries: recoveries.into() }
    }
}

/// In the order of their numbers.
const STATES: [State; 7] = [
    State::Pending,
    State::Registered,
    State::Suspect,
    State::Recovering,
    State::Conflict,
    State::Draining,
    State::Stopped,
];

fn packed(KeyStatus { state, weight, recoveries }: KeyStatus) -> u64 {
    u64::from(recoveries) << 32 | u64::from(weight.value()) << 8 | state as u64
}

/// Values that change with every renewal, shared by all registrations of one lease so that a renewal costs the same for one
/// key and for a thousand.
#[derive(Debug)]
pub(crate) struct LeaseMetrics {
    origin: Instant,
    /// Identifier of the lease in etcd; 0 when there is none.
    lease: AtomicI64,
    /// Milliseconds from `origin` to the end of the lease; 0 when there is none.
    ends: AtomicU64,
    /// Milliseconds from `origin` to its grant.
    granted: AtomicU64,
    renewals: AtomicU64,
    /// Number of the lease among those of its registrar.
    id: u64,
    /// Those of the registrar.
    faults: Arc<Faults>,
    /// Notified when the standing of a registration changes.
    pub(crate) changed: Notify,
    /// Notified when the last owner of a key has dropped its handle.
    pub(crate) dropped: Notify,
}

impl LeaseMetrics {
    pub(crate) fn new(now: Instant, id: u64, faults: Arc<Faults>) -> Self {
        Self {
            id,
            faults,
            origin: now,
            lease: AtomicI64::new(0),
            ends: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            changed: Notify::new(),
            dropped: Notify::new(),
        }
    }

    /// Number of the lease among those of its registrar.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn source(&self, verb: Verb) -> Source {
        Source::Calls { lease: self.id, verb }
    }

    /// The fault of one key of the lease, or of the lease: first those that keep it from being written.
    pub(crate) fn fault(&self, key: &Arc<str>) -> Option<Fault> {
        let calls = [Verb::Write, Verb::Grant, Verb::Look, Verb::Revoke, Verb::Renew];
        let sources = calls.map(|verb| self.source(verb));
        std::iter::once(Source::Key(key.clone())).chain(sources).find_map(|source| self.faults.of(&source))
    }

    pub(crate) fn held(&self, lease: LeaseId, granted: Instant, end: Instant) {
        // A lease that ended before the origin, as on a machine that was suspended, has ended as well.
        let millis = |at: Instant| {
            let millis = at.saturating_duration_since(self.origin).as_millis();
            u64::try_from(millis).unwrap_or(u64::MAX)
        };
        self.lease.store(lease.get(), Ordering::Relaxed);
        self.granted.store(millis(granted), Ordering::Relaxed);
        self.ends.store(millis(end), Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.lease.store(0, Ordering::Relaxed);
        self.ends.store(0, Ordering::Relaxed);
    }

    /// The lease in etcd, while there is one.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        LeaseId::new(self.lease.load(Ordering::Relaxed))
    }

    pub(crate) fn renewed(&self) {
        self.renewals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Relaxed)
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        match self.ends.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            _ => (now - self.origin).saturating_sub(Duration::from_millis(self.granted.load(Ordering::Relaxed))),
        }
    }

    pub(crate) fn remaining(&self, now: Instant) -> Duration {
        let gone = now.saturating_duration_since(self.origin);
        Duration::from_millis(self.ends.load(Ordering::Relaxed)).saturating_sub(gone)
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::size_of, sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{KeyStatus, LeaseMetrics, STATES, SharedKey, State};
    use crate::{lease_id::LeaseId, node::ServerNode};

    #[test]
    fn a_status_is_read_as_it_was_written() {
        let node = Arc::new(ServerNode::new("user", "10.0.0.1:80").unwrap());
        let metrics = Arc::new(LeaseMetrics::new(Instant::now(), 0, Arc::default()));
        for (number, state) in STATES.into_iter().enumerate() {
            let status = KeyStatus { state, weight: 100.try_into().unwrap(), recoveries: u32::MAX - number as u32 };
            let initial = KeyStatus { recoveries: 0, ..status };
            let key = SharedKey::new("/user/10.0.0.1:80".into(), node.clone(), initial, metrics.clone());
            key.write(status);
            assert_eq!(key.read(), status);
        }
    }

    #[test]
    fn a_key_has_the_lease_that_it_is_under() {
        let now = Instant::now();
        let node = Arc::new(ServerNode::new("user", "10.0.0.1:80").unwrap());
        let metrics = Arc::new(LeaseMetrics::new(now, 0, Arc::default()));
        let status = |state| KeyStatus { state, weight: 1.try_into().unwrap(), recoveries: 0 };
        let key = SharedKey::new("/user/10.0.0.1:80".into(), node, status(State::Registered), metrics.clone());
        assert_eq!(key.lease(), None, "none is granted");
        let lease = LeaseId::new(0x694d).unwrap();
        metrics.held(lease, now, now + Duration::from_secs(10));
        for state in STATES {
            key.write(status(state));
            let is_elsewhere = matches!(state, State::Pending | State::Conflict | State::Stopped);
            assert_eq!(key.lease(), (!is_elsewhere).then_some(lease), "{state}");
        }
        metrics.lost();
        key.write(status(State::Recovering));
        assert_eq!(key.lease(), None);
    }

    #[tokio::test]
    async fn a_change_of_a_status_is_notified_once() {
        let node = Arc::new(ServerNode::new("user", "10.0.0.1:80").unwrap());
        let metrics = Arc::new(LeaseMetrics::new(Instant::now(), 0, Arc::default()));
        let status = KeyStatus { state: STATES[0], weight: 1.try_into().unwrap(), recoveries: 0 };
        let key = SharedKey::new("/user/10.0.0.1:80".into(), node, status, metrics.clone());
        for (next, is_notified) in [(status, false), (KeyStatus { state: STATES[1], ..status }, true)] {
            let changed = metrics.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            key.write(next);
            assert_eq!(tokio::time::timeout(Duration::ZERO, changed).await.is_ok(), is_notified);
        }
    }

    #[test]
    fn a_shared_key_is_small() {
        // With the two counters of its `Arc`, within an allocation of 72 bytes.
        assert!(size_of::<SharedKey>() <= 56, "{}", size_of::<SharedKey>());
    }
}
