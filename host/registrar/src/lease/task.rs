//! The life of one lease, top to bottom.
//!
//! One task owns the lease and the keys on it. It holds what is *desired*, and it alone writes it. A term of its life is:
//! grant, write every desired key, revoke the lease of the term before, and hold: renew, write changes in group commits,
//! audit. A term ends when etcd says that the lease is gone, or when a write was not answered: such a write may still
//! land, so everything moves to a new lease, the old one is revoked, and the late write then names a dead lease.
//! Whatever goes wrong, this is the one way back.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{pending, poll_fn},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::future::join;
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    backoff::{FIRST_BACKOFF, backoff},
    error::Error,
    etcd::{Call, Etcd, Failure, Granted, LeaseView, MAX_BYTES, MAX_OPS, Op, Outcome, Renewals, latency::Verb},
    faults::Source,
    lease::key::{Entry, Goal, Mood, Reply, Wish},
    node::{ServerNode, Weight},
    options::{Ownership, Ttl},
    status::{Event, LeaseMetrics, What},
    weight::Damping,
};

/// Leases that one task may hold at a time while writes keep going unanswered. At the bound it goes on under the newest
/// until the older ones are revoked.
const MAX_HELD: usize = 4;
/// Audits, and looks at the load, come with every renewal, and at least this often under a long TTL.
const MAX_AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// Commands taken up before the next write is made of them.
const MAX_GATHERED: usize = 1024;

/// What the registrar, or a registration's handle, asks of the lease.
pub(crate) enum Command {
    Keep(Box<Wish>),
    /// Have a lease for a key that is about to come; not beyond that time if none does.
    Await(Instant),
    Weigh {
        key: Arc<str>,
        weight: Weight,
        reply: Reply,
    },
    Replace {
        key: Arc<str>,
        node: Arc<ServerNode>,
        reply: Reply,
    },
    Stop {
        key: Arc<str>,
        reply: Reply,
    },
    /// Take everything back, then end.
    End,
}

/// Where a lease hears from and speaks to.
pub(crate) struct Surroundings {
    pub(crate) etcd: Etcd,
    pub(crate) ttl: Ttl,
    pub(crate) request_timeout: Duration,
    pub(crate) register_timeout: Duration,
    pub(crate) damping: Damping,
    pub(crate) load: watch::Receiver<Weight>,
    /// Whether the load is an estimate yet.
    pub(crate) estimated: Arc<AtomicBool>,
    pub(crate) metrics: Arc<LeaseMetrics>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Keys that are out of etcd for good.
    pub(crate) released: mpsc::UnboundedSender<Arc<str>>,
    /// Wakes the lease when a handle was dropped.
    pub(crate) dropped: Arc<Notify>,
    /// How much time went by, all in all, that timers did not see.
    pub(crate) suspended_for: watch::Receiver<Duration>,
    pub(crate) rng: fastrand::Rng,
}

/// A lease that etcd granted us and that is not known to be gone.
struct Held {
    lease: i64,
    ttl: Duration,
    granted_at: Instant,
    /// When the last confirmed renewal was *asked for*: the lease lasts at least a TTL from then.
    confirmed_at: Instant,
    renew_at: Instant,
    failures: u32,
    /// A write under it was not answered and may still land.
    tainted: bool,
    /// It ended by etcd's word, or its revocation was asked for; see `doom`.
    doomed: bool,
    stream: Option<Renewals>,
    renewal: Option<Call<Renewal>>,
}

impl Held {
    /// It is on its way out: nothing is written under it or renewed any more, only its revocation is left.
    fn doom(&mut self) {
        self.doomed = true;
        self.renewal = None;
        self.stream = None;
    }
}

/// A renewal that was tried: when, with which outcome, and the stream if it is still good.
struct Renewal {
    asked_at: Instant,
    outcome: Result<Duration, Failure>,
    stream: Option<Renewals>,
}

/// What came of the one call that may be under way besides the renewals.
enum Answer {
    Granted(Result<Granted, Failure>, Instant),
    Committed { lease: i64, ops: Vec<Op>, outcome: Result<Vec<Outcome>, Failure> },
    Revoked { lease: i64, outcome: Result<(), Failure> },
    Audited { lease: i64, keys: Result<LeaseView, Failure>, altered: Result<Vec<Arc<str>>, Failure> },
}

/// Everything that can wake the task.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, for a moment")]
enum Wake {
    Command(Command),
    Answer(Answer),
    Renewal(i64, Renewal),
    HandleDropped,
    /// The machine was suspended.
    Leap,
    /// etcd can be reached again, as somebody else on this host found out.
    EtcdIsBack,
    Time,
    Deserted,
}

pub(crate) struct Lease {
    around: Surroundings,
    entries: BTreeMap<Arc<str>, Entry>,
    /// Entries with the goal to be present.
    present: usize,
    /// Until when there is to be a lease although there is no entry.
    awaited: Option<Instant>,
    /// Keys that have something to write, in the order they came.
    queue: VecDeque<Arc<str>>,
    /// Registrations not confirmed yet, by deadline.
    births: VecDeque<(Instant, Arc<str>)>,
    /// When the first of the writes that came too soon after the one before is due.
    rewrite_at: Option<Instant>,
    /// Keys that came to be absent and wait until no late write can bring them back.
    leaving: Vec<Arc<str>>,
    /// Oldest first; the last one that is not doomed is the current one.
    leases: Vec<Held>,
    call: Option<Call<Answer>>,
    committing: bool,
    failures: u32,
    not_before: Instant,
    audit_at: Instant,
    /// The key whose value the last audit looked at last; the next one goes on behind it.
    audited: Option<Arc<str>>,
    mood: Mood,
    mood_since: Instant,
    last_failure: Option<Failure>,
    /// Kinds of calls whose last one failed, and whether etcd refused it.
    failing: Vec<(Verb, bool)>,
    ending: bool,
    /// Of `suspended`, what is accounted for.
    leapt: Duration,
}

impl Lease {
    pub(crate) fn new(around: Surroundings) -> Self {
        let (now, leapt) = (Instant::now(), *around.suspended_for.borrow());
        Self {
            around,
            entries: BTreeMap::new(),
            present: 0,
            awaited: None,
            queue: VecDeque::new(),
            births: VecDeque::new(),
            rewrite_at: None,
            leaving: Vec::new(),
            leases: Vec::new(),
            call: None,
            committing: false,
            failures: 0,
            not_before: now,
            audit_at: now,
            audited: None,
            mood: Mood::Steady,
            mood_since: now,
            last_failure: None,
            failing: Vec::new(),
            ending: false,
            leapt,
        }
    }

    /// Lives until the registrar ends it, or until nobody is left who could command it.
    pub(crate) async fn live(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.advance();
            if self.ending && self.leases.is_empty() && self.call.is_none() {
                return self.give_up_calls();
            }
            let wake = self.wake(&mut commands).await;
            self.on(wake);
            for _ in 0..MAX_GATHERED {
                let Ok(command) = commands.try_recv() else { break };
                self.on(Wake::Command(command));
            }
        }
    }

    async fn wake(&mut self, commands: &mut mpsc::Receiver<Command>) -> Wake {
        let alarm = self.alarm();
        let Self { call, leases, around, ending, .. } = self;
        tokio::select! {
            biased;
            answer = under_way(call) => Wake::Answer(answer),
            (lease, renewal) = renewed(leases) => Wake::Renewal(lease, renewal),
            () = sleep_until(alarm) => Wake::Time,
            command = commands.recv(), if !*ending => command.map_or(Wake::Deserted, Wake::Command),
            () = around.dropped.notified() => Wake::HandleDropped,
            () = around.etcd.is_back() => Wake::EtcdIsBack,
            Ok(()) = around.suspended_for.changed() => Wake::Leap,
        }
    }

    fn on(&mut self, wake: Wake) {
        match wake {
            Wake::Command(Command::Keep(wish)) => self.keep(*wish),
            Wake::Command(Command::Await(until)) => self.awaited = Some(until).filter(|_| !self.ending),
            Wake::Command(Command::Weigh { key, weight, reply }) => self.weigh(&key, weight, reply),
            Wake::Command(Command::Replace { key, node, reply }) => self.replace(&key, node, reply),
            Wake::Command(Command::Stop { key, reply }) => self.stop(&key, reply),
            Wake::Command(Command::End) | Wake::Deserted => self.end(),
            Wake::Answer(answer) => self.answered(answer),
            Wake::Renewal(lease, renewal) => self.renewal(lease, renewal),
            Wake::HandleDropped => self.drop_abandoned(),
            Wake::EtcdIsBack => self.retry_soon(),
            Wake::Leap => self.leap(),
            Wake::Time => {}
        }
    }

    // What is asked of it.

    fn keep(&mut self, wish: Wish) {
        if self.ending {
            let _ = wish.reply.send(Err(Error::Ended)); // The caller may have given up.
            return;
        }
        let (key, deadline, load) = (wish.key.clone(), wish.deadline, *self.around.load.borrow());
        if wish.status.strong_count() == 0 {
            // Whoever asked has given up by now, and nothing was written.
            let _ = self.around.released.send(key); // The registrar may have ended before its leases.
            return;
        }
        let place = self.births.partition_point(|(other, _)| *other <= deadline);
        self.births.insert(place, (deadline, key.clone()));
        let mut entry = Entry::new(wish, self.around.metrics.clone(), load, Instant::now());
        if self.around.estimated.load(Ordering::Relaxed) {
            // A weight that was measured replaces an estimate as soon as there is one.
            let long_ago = entry.weighed_at.checked_sub(self.around.damping.min_interval);
            entry.weighed_at = long_ago.unwrap_or(entry.weighed_at);
        }
        self.entries.insert(key.clone(), entry);
        self.present += 1;
        self.awaited = None;
        self.enqueue(&key);
    }

    fn weigh(&mut self, key: &Arc<str>, weight: Weight, reply: Reply) {
        let outcome = match self.entries.get_mut(key) {
            Some(entry) if entry.goal == Goal::Present => {
                entry.pin_weight(weight);
                entry.show(self.mood);
                Ok(())
            }
            _ => Err(Error::Ended),
        };
        self.enqueue(key);
        let _ = reply.send(outcome); // The caller may have given up.
    }

    fn replace(&mut self, key: &Arc<str>, node: Arc<ServerNode>, reply: Reply) {
        let outcome = match self.entries.get_mut(key) {
            Some(entry) if entry.goal == Goal::Present => {
                let replaced = entry.replace(key, node);
                entry.show(self.mood);
                replaced
            }
            _ => Err(Error::Ended),
        };
        self.enqueue(key);
        let _ = reply.send(outcome); // The caller may have given up.
    }

    fn stop(&mut self, key: &Arc<str>, reply: Reply) {
        match self.entries.get_mut(key) {
            Some(entry) => entry.farewells.push(reply),
            None => {
                let _ = reply.send(Ok(())); // The caller may have given up.
            }
        }
        self.withdraw(key, Error::Ended);
    }

    /// No longer desired, from this moment: no recovery writes it again.
    fn withdraw(&mut self, key: &Arc<str>, birth: Error) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.answer_birth(Err(birth));
        if entry.goal == Goal::Present {
            entry.goal = Goal::Absent;
            self.present -= 1;
            entry.show(self.mood);
            if entry.was_never_written() {
                self.gone(key);
            } else {
                self.enqueue(key);
            }
        }
    }

    fn end(&mut self) {
        (self.ending, self.awaited) = (true, None);
        let keys: Vec<_> = self.entries.keys().cloned().collect();
        for key in keys {
            self.withdraw(&key, Error::Ended);
        }
    }

    fn drop_abandoned(&mut self) {
        let keys: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.is_abandoned()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.withdraw(&key, Error::Ended);
        }
    }

    fn follow_load(&mut self) {
        let load = *self.around.load.borrow();
        let now = Instant::now();
        let damping = self.around.damping;
        let mut moved = Vec::new();
        for (key, entry) in &mut self.entries {
            let due = damping.lets_through(entry.weight, load, now - entry.weighed_at);
            if entry.goal == Goal::Present && entry.follows_load() && due {
                entry.weight = load;
                entry.show(self.mood);
                moved.push(key.clone());
            }
        }
        for key in moved {
            self.enqueue(&key);
        }
    }

    fn enqueue(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.is_dirty()
            && !entry.queued
        {
            let due = entry.due();
            if due > Instant::now() {
                self.rewrite_at = Some(self.rewrite_at.map_or(due, |first| first.min(due)));
                return;
            }
            entry.queued = true;
            self.queue.push_back(key.clone());
        }
    }

    // What it does next.

    /// Starts whatever is due. After it, nothing is left to do before the next wake-up.
    fn advance(&mut self) {
        let now = Instant::now();
        self.awaited.take_if(|until| *until <= now);
        self.expire_births(now);
        if self.rewrite_at.is_some_and(|at| at <= now) {
            self.rewrite_at = None;
            self.enqueue_all();
        }
        self.settle(now);
        for held in &mut self.leases {
            if held.renewal.is_none() && !held.doomed && now >= held.renew_at {
                held.renewal = Some(renew(self.around.etcd.clone(), held, self.around.request_timeout, now));
            }
        }
        if self.call.is_none() && now >= self.not_before {
            self.call = self.next_call(now);
        }
    }

    /// When `advance` has something to do although nothing else woke the task.
    fn alarm(&self) -> Instant {
        let births = self.births.front().map(|(deadline, _)| *deadline);
        let renewals =
            self.leases.iter().filter(|held| held.renewal.is_none() && !held.doomed).map(|held| held.renew_at);
        let backoff = (self.call.is_none() && self.not_before > Instant::now()).then_some(self.not_before);
        let audit = (self.call.is_none() && self.current().is_some()).then(|| self.audit_at.max(self.not_before));
        let never = Instant::now() + Duration::from_secs(3600);
        let others = [births, self.awaited, self.rewrite_at, backoff, audit].into_iter().flatten();
        others.chain(renewals).min().unwrap_or(never)
    }

    /// Registrations that were not confirmed in time fail, with the reason if there is one.
    fn expire_births(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.births.front() {
            let (deadline, key) = (*deadline, key.clone());
            let waits = self.entries.get(&key).filter(|entry| entry.awaits_birth_until(deadline));
            if waits.is_some() && deadline > now {
                return;
            }
            self.births.pop_front();
            let Some(entry) = waits else { continue };
            let error = match (entry.rival, &self.last_failure) {
                (0, Some(failure)) => Error::unavailable(failure.clone()),
                (0, None) => Error::Timeout { what: "register", after: self.around.register_timeout, why: None },
                (lease, _) => Error::Conflict { key: key.clone(), lease },
            };
            self.withdraw(&key, error);
        }
    }

    /// Draws the consequences of what was learned: what is gone for good, and how the lease is doing.
    fn settle(&mut self, now: Instant) {
        let nothing_left = self.leases.is_empty() && self.call.is_none();
        if nothing_left && self.present == 0 {
            self.give_up_calls();
            self.leaving = self.entries.keys().cloned().collect();
        }
        if nothing_left || !self.leases.iter().any(|held| held.tainted) {
            // No write that is still on its way can land any more.
            for key in std::mem::take(&mut self.leaving) {
                self.finish(&key);
            }
        }
        let sound = self.current().is_some_and(|held| !held.tainted && held.failures == 0);
        if self.present == 0 {
            (self.mood, self.mood_since) = (Mood::Steady, now);
        } else if self.mood == Mood::Recovering && sound && self.queue.is_empty() && !self.committing {
            self.feel(Mood::Steady, What::Recovered, "every key stands under the new lease".to_owned());
        }
    }

    fn next_call(&mut self, now: Instant) -> Option<Call<Answer>> {
        let is_awaited = self.awaited.is_some() && self.entries.is_empty();
        if self.present == 0 && !is_awaited {
            // Whatever is left of the keys goes with their leases.
            let lease = self.leases.first()?.lease;
            return Some(self.revoke(lease));
        }
        let Some(current) = self.current() else {
            let oldest = self.leases.first().filter(|_| self.leases.len() >= MAX_HELD).map(|held| held.lease);
            return Some(match oldest {
                Some(oldest) => self.revoke(oldest),
                None => self.grant(now),
            });
        };
        let (lease, tainted) = (current.lease, current.tainted);
        if tainted && self.leases.len() < MAX_HELD {
            return Some(self.grant(now));
        }
        let ops = self.next_batch(lease, now);
        if !ops.is_empty() {
            return Some(self.commit(lease, ops));
        }
        // A key that etcd refused to write under the current lease keeps the former one alive.
        let carries = |held: &Held| self.entries.values().any(|e| e.goal == Goal::Present && e.held == held.lease);
        if let Some(former) = self.leases.iter().find(|held| held.lease != lease && !carries(held)) {
            let former = former.lease;
            return Some(self.revoke(former));
        }
        (now >= self.audit_at).then(|| self.audit(lease, now))
    }

    fn grant(&self, now: Instant) -> Call<Answer> {
        let (etcd, ttl) = (self.around.etcd.clone(), self.around.ttl);
        let deadline = self.deadline();
        Box::pin(async move { Answer::Granted(etcd.grant(ttl, deadline).await, now) })
    }

    /// Takes as much from the queue as one transaction may hold.
    fn next_batch(&mut self, lease: i64, now: Instant) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        let mut bytes = 0;
        let refused = self.is_refused();
        if refused {
            // An etcd without space refuses a transaction with a put as a whole; deletes are to go on, by themselves.
            let is_put = |key: &Arc<str>| self.entries.get(key).is_some_and(|entry| entry.goal == Goal::Present);
            self.queue.make_contiguous().sort_by_key(is_put);
        }
        while ops.len() < MAX_OPS && bytes < MAX_BYTES {
            let Some(key) = self.queue.pop_front() else { break };
            if self.entries.get(&key).is_some_and(Entry::is_abandoned) {
                // Its handle was dropped a moment ago; what nobody wants any more is not written first.
                self.withdraw(&key, Error::Ended);
            }
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let other_kind = ops.first().is_some_and(|op| op.is_put() != (entry.goal == Goal::Present));
            if !ops.is_empty() && (entry.solo || refused && other_kind) {
                self.queue.push_front(key);
                break;
            }
            entry.queued = false;
            if !entry.is_dirty() {
                continue;
            }
            let op = entry.op(&key, lease, now);
            bytes += op.bytes();
            ops.push(op);
            if entry.solo {
                break;
            }
        }
        ops
    }

    fn commit(&mut self, lease: i64, ops: Vec<Op>) -> Call<Answer> {
        self.committing = true;
        let (etcd, deadline) = (self.around.etcd.clone(), self.deadline());
        Box::pin(async move {
            let outcome = etcd.commit(&ops, lease, deadline).await;
            Answer::Committed { lease, ops, outcome }
        })
    }

    fn revoke(&mut self, lease: i64) -> Call<Answer> {
        let (etcd, deadline) = (self.around.etcd.clone(), self.deadline());
        for held in self.leases.iter_mut().filter(|held| held.lease == lease) {
            held.doom();
        }
        Box::pin(async move { Answer::Revoked { lease, outcome: etcd.revoke(lease, deadline).await } })
    }

    fn audit(&mut self, lease: i64, now: Instant) -> Call<Answer> {
        let (etcd, deadline) = (self.around.etcd.clone(), self.deadline());
        let pause = self.interval().min(MAX_AUDIT_INTERVAL);
        self.audit_at = now + pause;
        let expected = self.values_to_audit(lease, pause);
        self.follow_load();
        Box::pin(async move {
            let keys = etcd.look_at(lease, true, deadline);
            let (keys, altered) = join(keys, etcd.altered(&expected, deadline)).await;
            Answer::Audited { lease, keys, altered }
        })
    }

    /// Keys whose value this audit looks at, with the revision that etcd should have them at. Each key has its turn within
    /// the longest interval between two audits, however many there are.
    fn values_to_audit(&mut self, lease: i64, pause: Duration) -> Vec<(Arc<str>, i64)> {
        let share = pause.as_secs_f64() / MAX_AUDIT_INTERVAL.as_secs_f64();
        let most = MAX_OPS.max((self.present as f64 * share).ceil() as usize);
        let from = self.audited.take().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.entries.range::<Arc<str>, _>((from.clone(), Bound::Unbounded));
        let before = match from {
            Bound::Excluded(last) => self.entries.range::<Arc<str>, _>(..=last),
            _ => self.entries.range::<Arc<str>, _>(..),
        };
        let around = behind.chain(before).take(self.entries.len());
        let standing = around.filter(|(_, entry)| entry.stands_under(lease));
        let some: Vec<_> = standing.take(most).map(|(key, entry)| (key.clone(), entry.revision)).collect();
        self.audited = some.last().map(|(key, _)| key.clone());
        some
    }

    // What comes of it.

    fn answered(&mut self, answer: Answer) {
        self.call = None;
        self.committing = false;
        match answer {
            Answer::Granted(Ok(granted), asked_at) => {
                self.worked(Verb::Grant);
                self.granted(granted, asked_at);
            }
            Answer::Granted(Err(failure), _) => {
                debug!(%failure, "no lease");
                self.failed(Verb::Grant, &failure);
                if !failure.is_transient() {
                    self.fail_births(&failure);
                }
                self.back_off(failure);
            }
            // Its keys go with it, whatever the answer was that came after the news.
            Answer::Committed { lease, ops, outcome: Ok(_) } if !self.is_alive(lease) => {
                for op in &ops {
                    if let Some(entry) = self.entries.get_mut(op.key()) {
                        entry.may_exist = true;
                    }
                }
                self.not_committed(lease, &ops, Failure::LeaseGone);
            }
            Answer::Committed { lease, ops, outcome: Ok(outcomes) } => {
                (self.failures, self.last_failure) = (0, None);
                self.worked(Verb::Write);
                for (op, outcome) in ops.iter().zip(outcomes) {
                    match op {
                        Op::Put { key, .. } => self.put(key, outcome, lease),
                        Op::Delete { key, .. } => self.deleted(key, &outcome),
                    }
                }
            }
            Answer::Committed { lease, ops, outcome: Err(failure) } => self.not_committed(lease, &ops, failure),
            Answer::Revoked { lease, outcome: Ok(()) } => {
                self.failures = 0;
                self.worked(Verb::Revoke);
                self.forget(lease);
            }
            Answer::Revoked { outcome: Err(failure), .. } => {
                self.failed(Verb::Revoke, &failure);
                self.back_off(failure);
            }
            Answer::Audited { lease, keys: Err(Failure::LeaseGone), .. } => self.lose(lease),
            Answer::Audited { lease, keys, altered } => {
                match keys.as_ref().err().or(altered.as_ref().err()) {
                    None => {
                        self.worked(Verb::Look);
                        self.drop_moot_refusals();
                    }
                    Some(failure) => {
                        debug!(%failure, "the audit failed; the next one is due as planned");
                        self.failed(Verb::Look, failure);
                    }
                }
                if let Ok(altered) = altered {
                    self.written_over(lease, &altered);
                }
                if let Ok(view) = keys {
                    self.audited(lease, &view);
                }
            }
        }
    }

    /// A new term: everything that is desired is written under the new lease.
    fn granted(&mut self, granted: Granted, asked_at: Instant) {
        debug!(lease = format_args!("{:x}", granted.lease), ttl = ?granted.ttl, "lease granted");
        self.leases.push(Held {
            lease: granted.lease,
            ttl: granted.ttl,
            granted_at: asked_at,
            confirmed_at: asked_at,
            // At once: from then on there is a stream, and a connection that breaks is noticed when it breaks.
            renew_at: asked_at,
            failures: 0,
            tainted: false,
            doomed: false,
            stream: None,
            renewal: None,
        });
        self.around.metrics.held(asked_at, asked_at + granted.ttl);
        self.audit_at = asked_at + self.interval().min(MAX_AUDIT_INTERVAL);
        for entry in self.entries.values_mut() {
            entry.published = None;
        }
        self.enqueue_all();
    }

    fn put(&mut self, key: &Arc<str>, outcome: Outcome, lease: i64) {
        let (Outcome::Written { over: other, .. } | Outcome::HeldBy { lease: other, .. }) = &outcome else {
            // A missing key is free, so the put cannot have found it missing and done nothing.
            return self.enqueue(key);
        };
        let (other, ours) = (*other, self.is_ours(*other));
        let Some(entry) = self.entries.get_mut(key) else { return };
        let written = entry.in_flight.take();
        match outcome {
            Outcome::Written { over, revision } => {
                let taken_over = over != 0 && !ours;
                let was_conflict = entry.rival != 0;
                let was_altered = std::mem::take(&mut entry.altered);
                let before = entry.published;
                entry.held = lease;
                (entry.published, entry.revision) = (written, revision);
                entry.may_exist = true;
                (entry.displaces, entry.rival, entry.solo, entry.parked) = (0, 0, false, false);
                if std::mem::take(&mut entry.faulty) {
                    self.around.metrics.faults().clear(&Source::Key(key.clone()));
                }
                let was_visible = std::mem::replace(&mut entry.visible, true);
                let what = match (was_visible, taken_over) {
                    (false, false) => Some((What::Registered, "new".to_owned())),
                    (false, true) => Some((What::TookOver, format!("it was held by lease {over:x}"))),
                    (true, _) if was_conflict => Some((What::Healed, "the key was free again".to_owned())),
                    (true, _) if over == 0 && self.mood != Mood::Recovering => {
                        Some((What::Healed, "the key was missing or had lost its lease".to_owned()))
                    }
                    (true, _) if was_altered && over == lease => {
                        Some((What::Healed, "somebody else had written over its value".to_owned()))
                    }
                    (true, _) => before.map(|before| match entry.was_replaced(before) {
                        true => (What::Updated, "the node behind the key is another one".to_owned()),
                        false => (What::Weighed, format!("weight {}", entry.weight)),
                    }),
                };
                if was_visible && (over == 0 || was_altered && over == lease) {
                    entry.recoveries += 1;
                }
                entry.show(self.mood);
                entry.answer_birth(Ok(()));
                if let Some((what, why)) = what {
                    self.tell(what, Some(key), why);
                }
                self.enqueue(key);
            }
            Outcome::HeldBy { lease: holder, .. } if ours => {
                // Our own write took it over, and its answer was lost.
                (entry.held, entry.displaces) = (holder, 0);
                self.enqueue(key);
            }
            Outcome::HeldBy { lease: holder, value } if entry.visible || entry.ownership == Ownership::Wait => {
                let news = std::mem::replace(&mut entry.rival, holder) == 0;
                (entry.held, entry.displaces, entry.published) = (0, 0, None);
                (entry.altered, entry.faulty) = (false, true);
                entry.show(self.mood);
                let conflicts = entry.visible;
                self.around.metrics.faults().held(key, holder, &value, news && conflicts);
                if news && conflicts {
                    self.tell(What::Conflict, Some(key), format!("lease {holder:x} of somebody else holds the key"));
                }
            }
            Outcome::HeldBy { lease: holder, .. } if entry.ownership == Ownership::TakeOver => {
                entry.displaces = holder;
                self.enqueue(key);
            }
            _ => self.withdraw(key, Error::Conflict { key: key.clone(), lease: other }),
        }
    }

    fn deleted(&mut self, key: &Arc<str>, outcome: &Outcome) {
        let ours = matches!(outcome, Outcome::HeldBy { lease, .. } if self.is_ours(*lease));
        let Some(entry) = self.entries.get_mut(key) else { return };
        match *outcome {
            Outcome::HeldBy { lease: holder, .. } if ours => {
                entry.held = holder;
                self.enqueue(key);
            }
            // Gone, or somebody else's by now and so none of our business.
            _ => self.gone(key),
        }
    }

    fn not_committed(&mut self, lease: i64, ops: &[Op], failure: Failure) {
        debug!(lease = format_args!("{lease:x}"), ops = ops.len(), %failure, "not written");
        let refused = failure.is_refusal();
        let in_doubt = failure.may_have_been_applied();
        if let [op] = ops
            && refused
        {
            return self.refused(op.key(), failure);
        }
        for op in ops.iter().rev() {
            let Some(entry) = self.entries.get_mut(op.key()) else { continue };
            entry.may_exist |= in_doubt && entry.in_flight.is_some();
            entry.in_flight = None;
            entry.solo |= refused;
            if !std::mem::replace(&mut entry.queued, true) {
                self.queue.push_front(op.key().clone());
            }
        }
        match failure {
            Failure::LeaseGone => self.lose(lease),
            _ if refused => {}
            failure => {
                self.failed(Verb::Write, &failure);
                if in_doubt {
                    for held in self.leases.iter_mut().filter(|held| held.lease == lease) {
                        held.tainted = true;
                    }
                    self.feel(Mood::Recovering, What::Recovering, format!("a write was not answered: {failure}"));
                } else if !failure.is_transient() {
                    self.fail_births(&failure);
                }
                self.back_off(failure);
            }
        }
    }

    /// etcd refuses this one key: a new one fails, an old one waits for the next audit.
    fn refused(&mut self, key: &Arc<str>, failure: Failure) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.in_flight = None;
        if entry.was_never_written() && entry.goal != Goal::Present {
            self.gone(key);
        } else if entry.visible || entry.goal != Goal::Present {
            (entry.parked, entry.faulty) = (true, true);
            entry.show(self.mood);
            let (source, prefix) = (Source::Key(key.clone()), entry.prefix());
            self.around.metrics.faults().refused(source, Error::unavailable(failure), Some(&prefix), false);
        } else {
            self.withdraw(key, Error::unavailable(failure));
        }
    }

    /// A call for the lease has failed, and will be made again.
    fn failed(&mut self, verb: Verb, failure: &Failure) {
        let refused = failure.refusal().is_some();
        self.failing.retain(|(failing, _)| *failing != verb);
        self.failing.push((verb, refused));
        // A token that has run out costs one renewal, and is replaced.
        let quietly = verb == Verb::Renew && self.current().is_some_and(|held| held.failures < 2);
        let prefix = self.entries.values().next().map(Entry::prefix);
        let (source, why) = (self.around.metrics.source(verb), Error::unavailable(failure.clone()));
        self.around.metrics.faults().refused(source, why, prefix.as_deref(), quietly);
        if self.is_refused() && self.mood == Mood::Steady && self.present > 0 {
            self.feel(Mood::Suspect, What::Refused, format!("etcd refuses to {verb}: {failure}"));
        }
    }

    /// A call of that kind has done what it was to do.
    fn worked(&mut self, verb: Verb) {
        let Some(index) = self.failing.iter().position(|(failing, _)| *failing == verb) else { return };
        self.failing.swap_remove(index);
        self.around.metrics.faults().clear(&self.around.metrics.source(verb));
        let renewed = self.current().is_some_and(|held| held.failures == 0);
        if self.mood == Mood::Suspect && renewed && !self.is_refused() {
            self.feel(Mood::Steady, What::Confirmed, "etcd no longer refuses what it is asked".to_owned());
        }
    }

    /// What was refused need not be written any more, as a weight that moved back: nothing would tell that it could be.
    fn drop_moot_refusals(&mut self) {
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.parked && !entry.is_dirty()) {
            (entry.parked, entry.faulty) = (false, false);
            entry.show(self.mood);
            self.around.metrics.faults().forget(&Source::Key(key.clone()));
        }
        let sound = self.current().is_some_and(|held| !held.tainted);
        if sound && !self.failing.is_empty() && !self.entries.values().any(Entry::is_dirty) {
            self.worked(Verb::Write);
            self.worked(Verb::Grant);
        }
    }

    /// What failed is not tried again: there is nothing left to do.
    fn give_up_calls(&mut self) {
        for (verb, _) in std::mem::take(&mut self.failing) {
            self.around.metrics.faults().forget(&self.around.metrics.source(verb));
        }
    }

    /// Whether keys could not be written if they had to be. Renewals are told apart: keys stay until one is due.
    fn is_refused(&self) -> bool {
        let counts = |verb: Verb| matches!(verb, Verb::Grant | Verb::Write | Verb::Look);
        self.failing.iter().any(|(verb, refused)| *refused && counts(*verb))
    }

    /// Somebody else has written these keys, or deleted them. They are written again as they should be.
    fn written_over(&mut self, lease: i64, keys: &[Arc<str>]) {
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.stands_under(lease)) {
                (entry.published, entry.altered) = (None, true);
                entry.show(self.mood);
                self.enqueue(key);
            }
        }
    }

    fn audited(&mut self, lease: i64, view: &LeaseView) {
        self.failures = 0;
        let entry_of = |key: &Vec<u8>| std::str::from_utf8(key).ok().and_then(|key| self.entries.get(key));
        let found = view.keys.iter().filter_map(entry_of).filter(|entry| entry.stands_under(lease)).count();
        if found < self.entries.values().filter(|entry| entry.stands_under(lease)).count() {
            let there: std::collections::HashSet<&[u8]> = view.keys.iter().map(Vec::as_slice).collect();
            for (key, entry) in &mut self.entries {
                if entry.held == lease && !there.contains(key.as_bytes()) {
                    entry.published = None;
                    entry.show(self.mood);
                }
            }
        }
        self.enqueue_all();
    }

    fn renewal(&mut self, lease: i64, renewal: Renewal) {
        let now = Instant::now();
        let cap = self.cap();
        let is_current = self.current().is_some_and(|held| held.lease == lease);
        let Some(held) = self.leases.iter_mut().find(|held| held.lease == lease) else { return };
        held.renewal = None;
        held.stream = renewal.stream;
        match renewal.outcome {
            Ok(ttl) => {
                held.ttl = ttl;
                held.failures = 0;
                held.confirmed_at = renewal.asked_at;
                held.renew_at = renewal.asked_at + jittered_interval(&mut self.around.rng, ttl);
                if is_current {
                    self.around.metrics.held(held.granted_at, renewal.asked_at + ttl);
                    self.around.metrics.renewed();
                    self.tell(What::Renewed, None, format!("for {ttl:?}"));
                    if self.mood == Mood::Suspect && !self.is_refused() {
                        self.feel(Mood::Steady, What::Confirmed, "etcd confirmed the lease".to_owned());
                    }
                    self.worked(Verb::Renew);
                }
            }
            Err(Failure::LeaseGone) => self.lose(lease),
            Err(failure) => {
                held.failures += 1;
                held.renew_at = now + backoff(&mut self.around.rng, held.failures, cap);
                let last_confirmed = held.confirmed_at;
                if is_current {
                    self.failed(Verb::Renew, &failure);
                }
                if is_current && self.mood == Mood::Steady {
                    let last = now - last_confirmed;
                    self.feel(Mood::Suspect, What::Suspect, format!("last confirmed {last:.1?} ago: {failure}"));
                }
                self.last_failure = Some(failure);
            }
        }
    }

    /// etcd's own word that the lease has ended. Its keys may still stand for a while, since etcd takes them back in a
    /// second step; only its revocation proves that they are gone and that no late write can land.
    fn lose(&mut self, lease: i64) {
        let was_current = self.current().is_some_and(|held| held.lease == lease);
        let Some(held) = self.leases.iter_mut().find(|held| held.lease == lease) else { return };
        let lived = held.granted_at.elapsed();
        held.doom();
        if was_current {
            self.around.metrics.lost();
        }
        if was_current && self.present > 0 {
            self.feel(Mood::Recovering, What::Recovering, format!("etcd ended the lease after {lived:.1?}"));
            // Hosts that lost their leases at the same moment must not come back in the same moment.
            let cap = self.cap();
            self.not_before = Instant::now() + backoff(&mut self.around.rng, 1, cap);
        }
        for entry in self.entries.values_mut().filter(|entry| entry.held == lease) {
            entry.published = None;
            entry.show(self.mood);
        }
        self.enqueue_all();
    }

    /// The lease does not exist any more; no write under it can land.
    fn forget(&mut self, lease: i64) {
        self.leases.retain(|held| held.lease != lease);
        let mut gone = Vec::new();
        for (key, entry) in &mut self.entries {
            if entry.held == lease && entry.goal == Goal::Absent {
                gone.push(key.clone());
            }
            entry.lost(lease);
            entry.show(self.mood);
        }
        for key in gone {
            self.gone(&key);
        }
        match self.current() {
            Some(held) => self.around.metrics.held(held.granted_at, held.confirmed_at + held.ttl),
            None => self.around.metrics.lost(),
        }
        self.enqueue_all();
    }

    fn gone(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.goal == Goal::Absent
        {
            entry.goal = Goal::Gone;
            self.leaving.push(key.clone());
        }
    }

    fn finish(&mut self, key: &Arc<str>) {
        let Some(entry) = self.entries.remove(key) else { return };
        if entry.visible {
            self.tell(What::Stopped, Some(key), "it is gone from etcd for good".to_owned());
        }
        if entry.faulty {
            self.around.metrics.faults().forget(&Source::Key(key.clone()));
        }
        let _ = self.around.released.send(key.clone()); // The registrar may have ended before its leases.
        entry.end(Error::Ended);
    }

    // How it goes about failures.

    fn fail_births(&mut self, failure: &Failure) {
        let error = Error::unavailable(failure.clone());
        for (deadline, key) in std::mem::take(&mut self.births) {
            if self.entries.get(&key).is_some_and(|entry| entry.awaits_birth_until(deadline)) {
                self.withdraw(&key, error.clone());
            }
        }
    }

    fn back_off(&mut self, failure: Failure) {
        self.failures += 1;
        let cap = self.cap();
        let pause = backoff(&mut self.around.rng, self.failures, cap);
        debug!(%failure, failures = self.failures, ?pause, "etcd is tried again");
        self.not_before = Instant::now() + pause;
        self.last_failure = Some(failure);
    }

    /// What failed is tried again at once, all but a little jitter.
    fn retry_soon(&mut self) {
        let soon = Instant::now() + FIRST_BACKOFF.mul_f64(self.around.rng.f64() / 4.0);
        self.not_before = self.not_before.min(soon);
        for held in self.leases.iter_mut().filter(|held| held.failures > 0) {
            held.renew_at = held.renew_at.min(soon);
        }
    }

    /// More time went by than the timers know. Leases may have run out, and are asked about before they are trusted.
    fn leap(&mut self) {
        let total = *self.around.suspended_for.borrow();
        let by = total - std::mem::replace(&mut self.leapt, total);
        let now = Instant::now();
        for held in self.leases.iter_mut().filter(|held| !held.doomed) {
            held.confirmed_at = held.confirmed_at.checked_sub(by).unwrap_or(held.confirmed_at);
            held.renew_at = now;
            // What was answered before says nothing of now, and on this stream it would be taken for the next answer.
            (held.renewal, held.stream) = (None, None);
        }
        if let Some(held) = self.current() {
            self.around.metrics.held(held.granted_at, held.confirmed_at + held.ttl);
        }
    }

    fn feel(&mut self, mood: Mood, what: What, why: String) {
        if self.mood == mood {
            return;
        }
        self.mood = mood;
        for entry in self.entries.values() {
            entry.show(mood);
        }
        self.tell(what, None, why);
        self.mood_since = Instant::now();
    }

    fn tell(&self, what: What, key: Option<&Arc<str>>, why: String) {
        let (lease, lease_age) =
            self.current().map_or((0, Duration::ZERO), |held| (held.lease, held.granted_at.elapsed()));
        let since = self.mood_since.elapsed();
        let on = key.map_or("its keys", |key| key);
        match what {
            // A refusal is logged once for all leases that meet it.
            What::Renewed | What::Weighed | What::Updated | What::Refused => {
                debug!(key = on, lease = format_args!("{lease:x}"), "{what:?}: {why}");
            }
            What::Registered | What::Stopped | What::Recovered | What::Confirmed => {
                info!(key = on, lease = format_args!("{lease:x}"), ?since, "{what:?}: {why}");
            }
            _ => warn!(key = on, keys = self.present, lease = format_args!("{lease:x}"), ?since, "{what:?}: {why}"),
        }
        // Nobody may be listening.
        let _ = self.around.events.send(Event { what, key: key.cloned(), why, lease, lease_age, since });
    }

    fn enqueue_all(&mut self) {
        let now = Instant::now();
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.is_dirty() && !entry.queued) {
            match entry.due() {
                due if due > now => self.rewrite_at = Some(self.rewrite_at.map_or(due, |first| first.min(due))),
                _ => {
                    entry.queued = true;
                    self.queue.push_back(key.clone());
                }
            }
        }
    }

    fn is_alive(&self, lease: i64) -> bool {
        self.leases.iter().any(|held| held.lease == lease && !held.doomed)
    }

    fn is_ours(&self, lease: i64) -> bool {
        self.leases.iter().any(|held| held.lease == lease)
    }

    fn current(&self) -> Option<&Held> {
        self.leases.iter().rev().find(|held| !held.doomed)
    }

    /// A third of the TTL leaves room for two failed attempts.
    fn interval(&self) -> Duration {
        self.current().map_or(Duration::from_secs(self.around.ttl.seconds()), |held| held.ttl) / 3
    }

    fn deadline(&self) -> Duration {
        deadline(self.around.request_timeout, self.interval())
    }

    fn cap(&self) -> Duration {
        longest_backoff(self.interval())
    }
}

/// Three quarters of a renewal interval for a request, a quarter for the pause after it: whatever hung or failed when
/// etcd came back has been tried again one interval later.
fn deadline(request_timeout: Duration, interval: Duration) -> Duration {
    request_timeout.min(interval * 3 / 4)
}

/// The other quarter.
fn longest_backoff(interval: Duration) -> Duration {
    interval / 4
}

/// Renews on the open stream; opens one if there is none, or if the open one is broken.
fn renew(etcd: Etcd, held: &mut Held, request_timeout: Duration, now: Instant) -> Call<Renewal> {
    let lease = held.lease;
    let ttl = held.ttl;
    let deadline = deadline(request_timeout, ttl / 3);
    let mut stream = held.stream.take();
    Box::pin(async move {
        if let Some(open) = &mut stream {
            match open.renew(deadline).await {
                // Only a stream that broke at once leaves time for another within the same attempt.
                Err(Failure::Unanswered { .. }) if now.elapsed() < deadline / 2 => {}
                outcome => {
                    let stream = stream.filter(|_| outcome.is_ok());
                    return Renewal { asked_at: now, outcome, stream };
                }
            }
        }
        let asked_at = Instant::now();
        match etcd.open_renewals(lease, deadline).await {
            Ok(stream) => Renewal { asked_at, outcome: Ok(ttl), stream: Some(stream) },
            Err(failure) => Renewal { asked_at, outcome: Err(failure), stream: None },
        }
    })
}

/// A third of the TTL, up to a tenth sooner, so that hosts that started together do not renew together.
fn jittered_interval(rng: &mut fastrand::Rng, ttl: Duration) -> Duration {
    (ttl / 3).mul_f64(0.9 + 0.1 * rng.f64())
}

async fn under_way(call: &mut Option<Call<Answer>>) -> Answer {
    match call {
        Some(call) => call.await,
        None => pending().await,
    }
}

/// A renewal that came to its end, or a stream that broke while nothing was asked on it.
async fn renewed(leases: &mut [Held]) -> (i64, Renewal) {
    poll_fn(|cx| {
        for held in leases.iter_mut() {
            let renewal = match (&mut held.renewal, &mut held.stream) {
                (Some(renewal), _) => renewal.as_mut().poll(cx),
                (None, Some(stream)) => stream.poll_broken(cx).map(|failure| Renewal {
                    asked_at: Instant::now(),
                    outcome: Err(failure),
                    stream: None,
                }),
                (None, None) => Poll::Pending,
            };
            if let Poll::Ready(renewal) = renewal {
                return Poll::Ready((held.lease, renewal));
            }
        }
        Poll::Pending
    })
    .await
}
