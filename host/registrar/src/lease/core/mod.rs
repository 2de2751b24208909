//! The life of one lease as a state machine: inputs and the time go in, actions come out. It reads no clock and does no I/O,
//! so that tests can play every order of events; `lease/task.rs` executes its actions against etcd.
//!
//! A term of its life is: grant, write every key that is kept, revoke the lease of the term before, and hold: renew, write
//! changes in group commits, audit. A term ends when etcd says that the lease is gone, or when a write has no response: such
//! a write may still take effect, so every key moves to a new lease, the old one is revoked, and the late write then names a
//! lease that does not exist. Every failure leads back on this one way.
//!
//! | file | part of the life |
//! |---|---|
//! | `messages` | inputs, requests and other actions |
//! | `key`, `keys` | one key with its state; all keys with the queue of those to write |
//! | `held` | leases that may exist |
//! | `register` | commands: keys come, change and leave |
//! | `term` | grant, renewal, loss, revocation |
//! | `write` | group commits and their outcomes |
//! | `audit`, `intact` | comparison of etcd's keys with the ones that are kept |
//! | `health` | the health of the lease, which the status of its keys follows |
//! | `failures` | failures of requests, and their effect on the health |

mod audit;
mod failures;
mod health;
mod held;
mod intact;
mod key;
mod keys;
pub(crate) mod messages;
mod register;
mod term;
mod write;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use self::{
    health::LeaseHealth,
    held::{HeldLease, HeldLeases},
    intact::Intact,
    keys::Keys,
};
use crate::{
    etcd::{Failure, latency::Verb},
    lease::core::messages::{Action, Command, Input, Request, Response},
    lease_id::LeaseId,
    node::Weight,
    options::Ttl,
    status::LeaseMetrics,
    weight::Damping,
};

/// Longest interval between audits, under a long TTL.
const MAX_AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after which the task looks again although nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Settings of a lease.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) ttl: Ttl,
    pub(crate) request_timeout: Duration,
    pub(crate) register_timeout: Duration,
    pub(crate) damping: Damping,
    /// Leases of the former process of this host.
    pub(crate) former_leases: Arc<[LeaseId]>,
}

/// Weight computed from the load of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComputedWeight {
    pub(crate) weight: Weight,
    /// Set until the load has been measured.
    pub(crate) is_estimate: bool,
}

/// Keys, and the leases that carry them one after the other.
#[derive(Debug)]
pub(crate) struct LeaseCore {
    config: Config,
    rng: fastrand::Rng,
    metrics: Arc<LeaseMetrics>,
    computed: ComputedWeight,
    keys: Keys,
    /// Registrations that are not confirmed, by deadline.
    pending: VecDeque<(Instant, Arc<str>)>,
    /// Keys that are not in etcd, and wait until no late write can bring them back.
    gone: Vec<Arc<str>>,
    /// Time until which a lease is held although there is no key.
    pregranted_until: Option<Instant>,
    leases: HeldLeases,
    /// The request in progress and its time, renewals apart.
    in_flight: Option<(Verb, Instant)>,
    /// Failed requests in a row.
    failures: u32,
    /// Earliest time for the next request.
    not_before: Instant,
    audit_at: Instant,
    /// The key whose revision the last audit compared last; the next one starts behind it.
    audited: Option<Arc<str>>,
    intact: Intact,
    health: LeaseHealth,
    /// Time of the last change of `health`.
    health_since: Instant,
    /// Kinds of requests whose last one failed, with that failure.
    failing: BTreeMap<Verb, Failure>,
    is_ending: bool,
    actions: VecDeque<Action>,
}

impl LeaseCore {
    pub(crate) fn new(
        config: Config,
        metrics: Arc<LeaseMetrics>,
        computed: ComputedWeight,
        rng: fastrand::Rng,
        now: Instant,
    ) -> Self {
        Self {
            config,
            rng,
            metrics,
            computed,
            keys: Keys::default(),
            pending: VecDeque::new(),
            gone: Vec::new(),
            pregranted_until: None,
            leases: HeldLeases::default(),
            in_flight: None,
            failures: 0,
            not_before: now,
            audit_at: now,
            audited: None,
            intact: Intact::default(),
            health: LeaseHealth::Steady,
            health_since: now,
            failing: BTreeMap::new(),
            is_ending: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes the latest computed weight, which is read with each registration and each audit.
    pub(crate) fn set_computed_weight(&mut self, computed: ComputedWeight) {
        self.computed = computed;
    }

    /// Takes an input. [`advance`](Self::advance) follows when there are no more.
    pub(crate) fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Command(Command::Register { request, shared, reply }) => {
                self.register(*request, shared, reply, now);
            }
            Input::Command(Command::GrantAhead(until)) => self.grant_ahead(until),
            Input::Command(Command::SetWeight { key, weight, reply }) => self.set_weight(&key, weight, reply, now),
            Input::Command(Command::Replace { key, node, layout, reply }) => {
                self.replace(&key, node, layout, reply, now);
            }
            Input::Command(Command::Stop { key, reply }) => self.stop(&key, reply, now),
            Input::Command(Command::End) => self.end(now),
            Input::HandleDropped => self.stop_abandoned(now),
            Input::Response(response) => self.on_response(response, now),
            Input::Renewal(renewal) => self.on_renewal(renewal, now),
            Input::Suspended(by) => self.on_suspended(by, now),
            Input::EtcdIsBack => self.retry_soon(now),
        }
    }

    /// Starts everything that is due. After it, nothing is left to do before the next input or
    /// [`wake_at`](Self::wake_at).
    pub(crate) fn advance(&mut self, now: Instant) {
        self.pregranted_until.take_if(|until| *until <= now);
        self.expire_pending(now);
        self.keys.enqueue_due(now);
        self.release_gone_keys(now);
        self.note_recovery(now);
        self.start_renewals(now);
        if self.in_flight.is_none()
            && now >= self.not_before
            && let Some(request) = self.next_request(now)
        {
            self.start(request, now);
        }
    }

    /// The next action, in the order in which they came about.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Time at which [`advance`](Self::advance) has something to do if there is no input before.
    pub(crate) fn wake_at(&self, now: Instant) -> Instant {
        let pending = self.pending.front().map(|(deadline, _)| *deadline);
        let is_idle = self.in_flight.is_none();
        let retry = (is_idle && self.not_before > now).then_some(self.not_before);
        let audit = (is_idle && self.leases.current().is_some()).then(|| self.audit_at.max(self.not_before));
        let renewals = self.leases.iter().filter_map(HeldLease::renew_at);
        let others = [pending, self.pregranted_until, self.keys.rewrite_at(), retry, audit].into_iter().flatten();
        others.chain(renewals).min().unwrap_or(now + IDLE)
    }

    /// Returns true after [`Command::End`], once nothing is left to stop or to revoke.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_ending && self.has_nothing_in_etcd()
    }

    /// Returns true after [`Command::End`]: further commands need not be taken.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Decides what is done next at etcd. In this order: end, have a lease that can be trusted, write, tidy up, audit.
    fn next_request(&mut self, now: Instant) -> Option<Request> {
        let grant = Request::Grant { ttl: self.config.ttl };
        let is_pregranted = self.pregranted_until.is_some() && self.keys.is_empty();
        if self.keys.kept() == 0 && !is_pregranted {
            // Keys that are left go with their leases.
            return self.leases.oldest().map(|held| Request::Revoke { lease: held.id });
        }
        let Some(current) = self.leases.current() else {
            let surplus = self.leases.oldest().filter(|_| self.leases.is_full());
            return Some(surplus.map_or(grant, |held| Request::Revoke { lease: held.id }));
        };
        let lease = current.id;
        if current.has_unanswered_write && !self.leases.is_full() {
            return Some(grant);
        }
        let ops = self.next_batch(lease, now);
        if !ops.is_empty() {
            return Some(Request::Commit { lease, ops });
        }
        if let Some(former) = self.former_lease(lease) {
            return Some(Request::Revoke { lease: former });
        }
        (now >= self.audit_at).then(|| self.next_audit(lease, now))
    }

    fn start(&mut self, request: Request, now: Instant) {
        let deadline = self.deadline();
        let verb = match &request {
            Request::Grant { .. } => Verb::Grant,
            Request::Commit { .. } => Verb::Write,
            Request::Revoke { .. } => Verb::Revoke,
            Request::Audit { .. } => Verb::Look,
        };
        self.in_flight = Some((verb, now));
        if let Request::Revoke { lease } = request {
            self.retire(lease);
        }
        self.actions.push_back(Action::Request { request, deadline });
    }

    fn on_response(&mut self, response: Response, now: Instant) {
        let verb = match &response {
            Response::Granted(_) => Verb::Grant,
            Response::Committed { .. } => Verb::Write,
            Response::Revoked { .. } => Verb::Revoke,
            Response::Audited { .. } => Verb::Look,
        };
        // A second response to one request says nothing.
        let Some((_, requested_at)) = self.in_flight.take_if(|(expected, _)| *expected == verb) else { return };
        match response {
            Response::Granted(outcome) => self.on_granted(outcome, requested_at, now),
            Response::Committed { lease, ops, outcome } => self.on_committed(lease, &ops, outcome, now),
            Response::Revoked { lease, outcome } => self.on_revoked(lease, outcome, now),
            Response::Audited { lease, keys, revisions } => self.on_audited(lease, keys, revisions, now),
        }
    }

    /// Returns true if this task knows of no lease, and no request may create one.
    fn has_nothing_in_etcd(&self) -> bool {
        self.leases.is_empty() && self.in_flight.is_none()
    }

    /// A former lease that is not needed any more. A key that etcd refused to write under the current lease keeps it alive,
    /// also where the key is under it only if a write without a response has taken effect.
    fn former_lease(&self, current: LeaseId) -> Option<LeaseId> {
        let carries_key =
            |held: &HeldLease| self.keys.iter().any(|(_, key)| key.is_kept() && key.may_be_under(held.id));
        let mut former = self.leases.iter().filter(|held| held.id != current);
        former.find(|held| !carries_key(held)).map(|held| held.id)
    }

    /// Interval between renewals.
    fn interval(&self) -> Duration {
        self.leases.current().map_or(Duration::from_secs(self.config.ttl.seconds()) / 3, HeldLease::interval)
    }

    /// Deadline of a request: three quarters of a renewal interval, at most. The pause after it is a quarter, at most: a
    /// request that hung or failed when etcd came back has been repeated one interval later.
    fn deadline(&self) -> Duration {
        deadline(self.config.request_timeout, self.interval())
    }

    fn longest_pause(&self) -> Duration {
        self.interval() / 4
    }
}

fn deadline(request_timeout: Duration, interval: Duration) -> Duration {
    request_timeout.min(interval * 3 / 4)
}

#[cfg(test)]
mod tests;
