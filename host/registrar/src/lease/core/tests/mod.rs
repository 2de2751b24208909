//! The promises of a lease, played through by hand: a test is the etcd, the clock and the callers.

mod conflicts;
mod keys;
mod renewals;
mod terms;
mod weights;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::Instant,
};

use super::{ComputedWeight, Config, LeaseCore, messages::*};
use crate::{
    error::Error,
    etcd::{Comparison, Failure, Granted, LeaseView, Op, Outcome},
    faults::FaultChange,
    lease_id::LeaseId,
    node::{ServerNode, Weight},
    options::{Options, Ownership, Ttl},
    status::{EventKind, KeyStatus, LeaseMetrics, SharedKey, State},
};

/// TTL that these tests are granted, so that a renewal interval is 10 s.
const TTL: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// A key that every test may use.
const KEY: &str = "/user/10.0.0.1:80";

/// Identifiers of leases: of this host in the order in which it was granted them, and of another host.
const FIRST: LeaseId = LeaseId::new(1).unwrap();
const SECOND_LEASE: LeaseId = LeaseId::new(2).unwrap();
const THEIRS: LeaseId = LeaseId::new(0x7e1).unwrap();

/// Outcome of a command, which may be owed.
type Outcomes = oneshot::Receiver<Result<(), Error>>;

/// A lease with everything around it.
struct Scene {
    lease: LeaseCore,
    now: Instant,
    metrics: Arc<LeaseMetrics>,
    /// Handles of registrations.
    handles: HashMap<String, Arc<SharedKey>>,
    /// The request in progress and its deadline.
    request: Option<(Request, Duration)>,
    /// Renewals in progress.
    renewals: Vec<LeaseId>,
    disconnected: Vec<LeaseId>,
    events: VecDeque<EventKind>,
    reasons: Vec<String>,
    released: Vec<String>,
    leases_granted: i64,
    revision: i64,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let options = Options::new(["http://etcd"]);
        let ttl = Ttl::try_from(TTL.as_secs()).unwrap();
        let Options { request_timeout, register_timeout, damping, .. } = options;
        let mut config = Config { ttl, request_timeout, register_timeout, damping, former_leases: Arc::default() };
        change(&mut config);
        // Far enough from the clock's origin for times before it.
        let now = Instant::now() + Duration::from_secs(100_000);
        let metrics = Arc::new(LeaseMetrics::new(now, 0, Arc::default()));
        let computed = ComputedWeight { weight: weight(50), is_estimate: false };
        Self {
            lease: LeaseCore::new(config, metrics.clone(), computed, fastrand::Rng::with_seed(7), now),
            now,
            metrics,
            handles: HashMap::new(),
            request: None,
            renewals: Vec::new(),
            disconnected: Vec::new(),
            events: VecDeque::new(),
            reasons: Vec::new(),
            released: Vec::new(),
            leases_granted: 0,
            revision: 0,
        }
    }

    /// A lease with one key that etcd has confirmed and a renewal that it has confirmed, too.
    fn holding() -> Self {
        let mut scene = Self::new();
        let mut outcome = scene.register(KEY);
        scene.grant();
        scene.write();
        scene.renew(FIRST);
        assert!(done(&mut outcome).is_ok());
        assert_eq!(scene.state(KEY), State::Registered);
        scene.events.clear();
        scene
    }

    /// Latest change to the faults.
    fn last_fault_change(&self) -> Option<FaultChange> {
        self.metrics.faults().changes().pop()
    }

    // Inputs.

    fn handle(&mut self, input: Input) {
        self.lease.handle(input, self.now);
        self.advance();
    }

    fn advance(&mut self) {
        self.lease.advance(self.now);
        while let Some(action) = self.lease.next_action() {
            match action {
                Action::Request { request, deadline } => {
                    let before = self.request.replace((request, deadline));
                    assert!(before.is_none(), "two requests at a time: {before:?}");
                }
                Action::Renew { lease, .. } => self.renewals.push(lease),
                Action::Disconnect(lease) => {
                    self.renewals.retain(|other| *other != lease);
                    self.disconnected.push(lease);
                }
                Action::Reply(reply, outcome) => drop(reply.send(outcome)),
                Action::Report(event) => {
                    self.events.push_back(event.kind);
                    self.reasons.push(event.why);
                }
                Action::Release(key) => self.released.push(key.to_string()),
            }
        }
    }

    /// Lets time pass, with each wake-up that the lease wants meanwhile.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.lease.wake_at(self.now);
            if next > end {
                break;
            }
            self.now = next.max(self.now + Duration::from_nanos(1));
            self.advance();
        }
        self.now = end;
        self.advance();
    }

    fn register(&mut self, key: &str) -> Outcomes {
        self.register_with(key, Ownership::TakeOver)
    }

    fn register_with(&mut self, key: &str, ownership: Ownership) -> Outcomes {
        let (name, addr) = key[1..].split_once('/').unwrap();
        let node = Arc::new(ServerNode::new(name, addr).unwrap());
        let standing = KeyStatus { state: State::Pending, weight: weight(50), recoveries: 0 };
        let shared = Arc::new(SharedKey::new(key.into(), node.clone(), standing, self.metrics.clone()));
        let (reply, outcome) = oneshot::channel();
        let request = Box::new(RegisterRequest {
            key: key.into(),
            node,
            layout: "seed".parse().unwrap(),
            ttl: Ttl::try_from(TTL.as_secs()).unwrap(),
            ownership,
            deadline: self.now + self.lease.config.register_timeout,
        });
        self.handles.insert(key.to_owned(), shared.clone());
        self.handle(Input::Command(Command::Register { request, shared, reply }));
        outcome
    }

    fn stop(&mut self, key: &str) -> Outcomes {
        self.handles[key].remove_owner();
        self.stop_of(&self.handles[key].clone())
    }

    /// Stops the key of a handle that was released.
    fn stop_of(&mut self, key: &Arc<SharedKey>) -> Outcomes {
        let (reply, outcome) = oneshot::channel();
        self.handle(Input::Command(Command::Stop { key: key.clone(), reply }));
        outcome
    }

    fn set_weight(&mut self, key: &str, value: u32) {
        let (reply, mut outcome) = oneshot::channel();
        self.handle(Input::Command(Command::SetWeight {
            key: self.handles[key].clone(),
            weight: weight(value),
            reply,
        }));
        done(&mut outcome).unwrap();
    }

    // Responses of etcd to the request in progress.

    fn respond(&mut self, response: Response) {
        self.request = None;
        self.handle(Input::Response(response));
    }

    /// Grants the next lease with the usual TTL.
    fn grant(&mut self) -> LeaseId {
        assert!(matches!(self.request, Some((Request::Grant { .. }, _))), "{:?}", self.request);
        self.leases_granted += 1;
        let lease = LeaseId::new(self.leases_granted).unwrap();
        self.respond(Response::Granted(Ok(Granted { lease, ttl: TTL })));
        lease
    }

    /// Carries out the transaction in progress, as if each key were as it is believed to be.
    fn write(&mut self) {
        self.write_with(|op| match op {
            Op::Put { held, .. } => Outcome::Written { over: *held, revision: 0 },
            Op::Delete { .. } => Outcome::Deleted,
        });
    }

    /// Responds to each operation of the transaction in progress.
    fn write_with(&mut self, outcome: impl Fn(&Op) -> Outcome) {
        self.revision += 1;
        let revision = self.revision;
        let (lease, ops) = self.commit();
        let outcomes = ops.iter().map(|op| match outcome(op) {
            Outcome::Written { over, .. } => Outcome::Written { over, revision },
            other => other,
        });
        let outcome = Ok(outcomes.collect());
        self.respond(Response::Committed { lease, ops, outcome });
    }

    fn fail_write(&mut self, failure: Failure) {
        let (lease, ops) = self.commit();
        self.respond(Response::Committed { lease, ops, outcome: Err(failure) });
    }

    fn revoke(&mut self) {
        let lease = self.revocation();
        self.respond(Response::Revoked { lease, outcome: Ok(()) });
    }

    /// Confirms the audit in progress: etcd has these keys under the lease, and those of `altered` at other revisions.
    fn audit(&mut self, keys: &[&str], altered: &[&str]) {
        let Some((Request::Audit { lease, ref revisions, .. }, _)) = self.request else {
            panic!("no audit: {:?}", self.request)
        };
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let altered = altered.iter().map(|key| Arc::from(*key)).collect();
        let revision = self.revision;
        let view = LeaseView { ttl: TTL, remaining: TTL, keys, revision };
        let compared = revisions.len();
        let found = Comparison { compared, altered, revision: (compared > 0).then_some(revision) };
        self.respond(Response::Audited { lease, keys: Ok(Some(view)), revisions: Ok(found) });
    }

    /// A lease with these keys, as etcd has it.
    fn view(&self, keys: &[&str]) -> LeaseView {
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        LeaseView { ttl: TTL, remaining: TTL, keys, revision: self.revision }
    }

    /// Revision at which the audit in progress may take all keys to be intact.
    fn intact_at(&self) -> Option<i64> {
        match self.request {
            Some((Request::Audit { intact_at, .. }, _)) => intact_at,
            ref other => panic!("no audit: {other:?}"),
        }
    }

    fn renew(&mut self, lease: LeaseId) {
        self.end_renewal(lease, Ok(TTL));
    }

    fn end_renewal(&mut self, lease: LeaseId, outcome: Result<Duration, Failure>) {
        let index = self.renewals.iter().position(|other| *other == lease).expect("it is being renewed");
        self.renewals.remove(index);
        self.handle(Input::Renewal(Renewal { lease, requested_at: self.now, outcome }));
    }

    // Observations.

    /// Lease and operations of the transaction in progress.
    fn commit(&self) -> (LeaseId, Vec<Op>) {
        match &self.request {
            Some((Request::Commit { lease, ops }, _)) => (*lease, ops.clone()),
            other => panic!("no transaction: {other:?}"),
        }
    }

    /// Operations of the transaction in progress: `+` for a put and `-` for a delete, with the lease that they name.
    fn ops(&self) -> Vec<String> {
        let id = |held: Option<LeaseId>| held.map_or("none".to_owned(), |held| held.to_string());
        let ops = self.commit().1;
        let shown = ops.iter().map(|op| match op {
            Op::Put { key, held, .. } => format!("+{key} {}", id(*held)),
            Op::Delete { key, held } => format!("-{key} {held}"),
        });
        shown.collect()
    }

    /// The lease whose revocation is in progress.
    fn revocation(&self) -> LeaseId {
        match self.request {
            Some((Request::Revoke { lease }, _)) => lease,
            ref other => panic!("no revocation: {other:?}"),
        }
    }

    fn is_granting(&self) -> bool {
        matches!(self.request, Some((Request::Grant { .. }, _)))
    }

    fn state(&self, key: &str) -> State {
        self.handles[key].read().state
    }

    fn doubtful(&self, key: &str) -> &[LeaseId] {
        self.lease.keys.get(key).expect("it is registered").doubtful()
    }

    fn recoveries(&self, key: &str) -> u32 {
        self.handles[key].read().recoveries
    }

    fn events(&mut self) -> Vec<EventKind> {
        self.events.drain(..).collect()
    }
}

fn weight(value: u32) -> Weight {
    value.try_into().unwrap()
}

/// Outcome that is there.
fn done(outcome: &mut Outcomes) -> Result<(), Error> {
    outcome.try_recv().expect("there is an outcome")
}

fn is_owed(outcome: &mut Outcomes) -> bool {
    matches!(outcome.try_recv(), Err(TryRecvError::Empty))
}

fn endpoint() -> Arc<str> {
    "http://etcd".into()
}

/// No response within the deadline.
fn unanswered() -> Failure {
    Failure::Unanswered { endpoint: endpoint(), reason: "nothing within 5s".to_owned() }
}

fn unreachable() -> Failure {
    Failure::Unreachable { endpoint: endpoint(), reason: "connection refused".to_owned() }
}

fn refused() -> Failure {
    Failure::Refused { endpoint: endpoint(), message: "etcdserver: request is too large".to_owned() }
}

fn no_space() -> Failure {
    Failure::Busy { endpoint: endpoint(), message: "etcdserver: mvcc: database space exceeded".to_owned() }
}

fn held_by(lease: LeaseId) -> Outcome {
    Outcome::HeldBy { lease: Some(lease), value: b"theirs".to_vec() }
}
