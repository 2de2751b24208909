//! The state of the simulated etcd, behind one lock that is never held across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::proto::PbResponseHeader;
use fastrand::Rng;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::auth::Auth;
use super::failure::Failure;
use super::fault::{FaultPlan, between};
use super::history::{Cause, Event, EventKind, History};
use super::lessor::Lessor;
use super::store::{Change, Range, Store, Writer};
use super::watch::Watches;
use super::wire::Link;

/// Cluster id in every header.
const CLUSTER: u64 = 0x0cad_e000_0000_0001;
/// Time that a request waits for a leader, or in the log: 5 s and two election timeouts, as in etcd.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// Member id in every header.
pub(crate) const MEMBER: u64 = 0x8e9e_0000_0000_0001;

/// State shared by the handle, the channels and the tasks.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tracker: TaskTracker,
    pub(crate) runtime: Handle,
    started: Instant,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            started: Instant::now(),
            state: Mutex::new(State::new(seed)),
        }
    }

    /// Locks the current state; an election that ended meanwhile takes effect first.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no panic while the state is held");
        state.now = self.started.elapsed();
        state.settle();
        state
    }

    /// Applies a write once those before it are done. A caller that has waited too long gets etcd's error; the write goes on.
    pub(crate) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        apply: impl FnOnce(&mut State) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (wait, boot) = {
            let mut state = self.lock();
            if state.pace.is_zero() {
                return state.apply(apply);
            }
            (state.join_queue(), state.boot)
        };
        let (reply, applied) = oneshot::channel();
        let shared = self.clone();
        self.spawn(async move {
            sleep(wait).await;
            let mut state = shared.lock();
            if state.boot == boot && state.running {
                drop(reply.send(state.apply(apply)));
            }
        });
        match timeout(REQUEST_TIMEOUT, applied).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Status::unavailable("etcdserver: server stopped")),
            Err(_) => Err(Failure::TimedOut.status()),
        }
    }

    /// Spawns a task on the simulation's runtime, from any runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }
}

/// The member's data, its sessions, and the history for the tests.
#[derive(Debug)]
pub(crate) struct State {
    /// Virtual time since the simulation began, as of the last lock.
    pub(crate) now: Duration,
    pub(crate) rng: Rng,
    pub(crate) store: Store,
    pub(crate) lessor: Lessor,
    pub(crate) auth: Auth,
    pub(crate) watches: Watches,
    pub(crate) history: History,
    pub(crate) links: BTreeMap<Arc<str>, Arc<Link>>,
    pub(crate) plan: FaultPlan,
    /// The alarm NOSPACE.
    pub(crate) no_space: bool,
    /// Hosts whose user may not touch any key.
    pub(crate) forbidden: BTreeSet<String>,
    /// Number of writes that have come through the log.
    pub(crate) log: u64,
    /// Time that a write takes; writes wait for those before them.
    pub(crate) pace: Duration,
    /// Time at which the last write of the queue is done.
    busy_until: Duration,
    pub(crate) running: bool,
    /// Number of starts; a request does not outlive the process that it was sent to.
    pub(crate) boot: u64,
    pub(crate) term: u64,
    era: u32,
    election_ends: Option<Duration>,
}

impl State {
    fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            rng: Rng::with_seed(seed),
            store: Store::new(),
            lessor: Lessor::default(),
            auth: Auth::new(),
            watches: Watches::default(),
            history: History::default(),
            links: BTreeMap::new(),
            plan: FaultPlan::none(),
            no_space: false,
            forbidden: BTreeSet::new(),
            log: 0,
            pace: Duration::ZERO,
            busy_until: Duration::ZERO,
            running: true,
            boot: 1,
            term: 2,
            era: 0,
            election_ends: None,
        }
    }

    fn apply<T>(&mut self, apply: impl FnOnce(&mut State) -> T) -> T {
        self.log += 1;
        apply(self)
    }

    /// Joins the queue of the writes. Returns the time until this one is applied.
    fn join_queue(&mut self) -> Duration {
        self.busy_until = self.busy_until.max(self.now) + self.pace;
        self.busy_until - self.now
    }

    fn settle(&mut self) {
        if let Some(end) = self.election_ends
            && self.now >= end
        {
            self.election_ends = None;
            self.lessor.promote(end);
        }
    }

    pub(crate) fn header(&self) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: CLUSTER,
            member_id: MEMBER,
            revision: self.store.revision(),
            raft_term: self.term,
        }
    }

    /// Time until a new leader is elected.
    pub(crate) fn election_left(&self) -> Option<Duration> {
        let end = self.election_ends?;
        Some(end.saturating_sub(self.now))
    }

    /// Loses the leader; the next leader is elected within two seconds.
    pub(crate) fn elect(&mut self) {
        let pause = Duration::from_secs(1)..=Duration::from_secs(2);
        self.term += 1;
        self.election_ends = Some(self.now + between(&pause, &mut self.rng));
    }

    /// Loses the quorum: too few members are left for an election.
    pub(crate) fn lose_quorum(&mut self) {
        self.term += 1;
        self.election_ends = Some(Duration::MAX);
    }

    pub(crate) fn start(&mut self) {
        if !self.running {
            self.busy_until = self.now;
            self.running = true;
            self.boot += 1;
            self.term += 1;
            self.election_ends = None;
            self.lessor.promote(self.now);
        }
    }

    /// Ends the process, with its tokens and streams.
    pub(crate) fn stop(&mut self) {
        self.running = false;
        self.auth.forget_tokens();
        self.watches = Watches::default();
        for link in self.links.values() {
            link.break_open();
        }
    }

    /// Wipes the data; users stay, as if the operator had created them again.
    pub(crate) fn wipe(&mut self) {
        let everything = Range::new(b"\0", b"\0");
        let mut writer = self.store.write();
        writer.delete(&everything);
        let lost = writer.commit();
        self.record_changes(&Cause::Wipe, &lost);
        let leases: Vec<i64> = self.lessor.by_expiry().iter().map(|(id, _)| *id).collect();
        for lease in leases {
            self.record(Cause::Wipe, EventKind::Wiped { lease });
        }
        self.store = Store::new();
        self.lessor = Lessor::default();
        self.no_space = false;
        self.era += 1;
    }

    /// Runs one write transaction, updates leases and history, and notifies watchers.
    pub(crate) fn write<T>(&mut self, cause: &Cause, apply: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        let mut writer = self.store.write();
        let outcome = apply(&mut writer);
        let changes = writer.commit();
        self.publish(cause, &changes);
        outcome
    }

    fn publish(&mut self, cause: &Cause, changes: &[Change]) {
        self.lessor.follow(changes);
        self.record_changes(cause, changes);
        if !changes.is_empty() {
            let header = self.header();
            self.watches.notify(changes, self.store.compacted(), &header);
        }
    }

    pub(crate) fn grant(&mut self, cause: Cause, id: i64, seconds: i64) -> Result<(i64, Duration), Failure> {
        let id = if id == 0 { self.rng.i64(1..i64::MAX) } else { id };
        let ttl = self.lessor.grant(id, seconds, self.now)?;
        self.record(cause, EventKind::Granted { lease: id, ttl });
        Ok((id, ttl))
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(crate) fn revoke(&mut self, cause: &Cause, id: i64) -> Result<(), Failure> {
        let kind = match cause {
            Cause::Expiry => EventKind::Expired { lease: id },
            _ => EventKind::Revoked { lease: id },
        };
        let lease = self.lessor.remove(id).ok_or(Failure::LeaseNotFound)?;
        let mut writer = self.store.write();
        for key in &lease.keys {
            writer.delete(&Range::new(key, b""));
        }
        let changes = writer.commit();
        self.record(cause.clone(), kind);
        self.publish(cause, &changes);
        Ok(())
    }

    /// Revokes expired leases, as the leader's tick does.
    pub(crate) fn tick(&mut self) {
        if self.running && self.election_ends.is_none() {
            for lease in self.lessor.expired(self.now) {
                self.revoke(&Cause::Expiry, lease).expect("an expired lease is there until it is revoked");
            }
        }
    }

    pub(crate) fn record(&mut self, cause: Cause, kind: EventKind) {
        self.history.events.push(Event { at: self.now, era: self.era, revision: self.store.revision(), cause, kind });
    }

    fn record_changes(&mut self, cause: &Cause, changes: &[Change]) {
        for change in changes {
            let key = text(&change.key);
            let previous_lease = change.before.as_ref().map(|item| item.lease);
            let kind = match &change.after {
                Some(item) => EventKind::Put { key, value: item.value.clone(), lease: item.lease, previous_lease },
                None => EventKind::Delete { key, previous_lease: previous_lease.unwrap_or_default() },
            };
            self.record(cause.clone(), kind);
        }
    }
}

/// Converts a key to text, with replacement characters for invalid UTF-8.
pub(crate) fn text(key: &Bytes) -> String {
    String::from_utf8_lossy(key).into_owned()
}
