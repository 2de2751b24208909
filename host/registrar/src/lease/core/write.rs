//! Group commits: while one transaction is in progress, changes gather; the next one takes them together.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::debug;

use crate::{
    error::Error,
    etcd::{Failure, MAX_BYTES, MAX_OPS, Op, Outcome, latency::Verb},
    faults::{FaultChange, Source},
    lease::core::{
        LeaseCore,
        health::LeaseHealth,
        key::{Gone, OnConflict, Origin},
        messages::Action,
    },
    lease_id::LeaseId,
    status::EventKind,
};

impl LeaseCore {
    /// Takes as many keys from the queue as one transaction may have.
    pub(super) fn next_batch(&mut self, lease: LeaseId, now: Instant) -> Vec<Op> {
        let (mut ops, mut bytes): (Vec<Op>, usize) = (Vec::new(), 0);
        let is_refused = self.is_refused();
        if is_refused {
            // An etcd without space refuses a transaction with a put as a whole; deletes go on, by themselves.
            self.keys.queue_deletes_first();
        }
        while ops.len() < MAX_OPS && bytes < MAX_BYTES {
            let Some(key) = self.keys.next_queued() else { break };
            match self.keys.get(&key) {
                Some(entry) if entry.is_abandoned() => {
                    // Its handle was dropped a moment ago; the key is not written first.
                    self.discard(&key, Error::Ended, now);
                    continue;
                }
                Some(entry) if ops.first().is_some_and(|first| !entry.joins(first, is_refused)) => break,
                _ => {}
            }
            let Some(entry) = self.keys.dequeue().filter(|entry| entry.is_dirty()) else { continue };
            let op = entry.op(&key, lease, now);
            bytes += op.bytes();
            ops.push(op);
            if !entry.is_batched() {
                break;
            }
        }
        ops
    }

    /// Notes the outcome of a group commit, key by key.
    pub(super) fn on_committed(
        &mut self,
        lease: LeaseId,
        ops: &[Op],
        outcome: Result<Vec<Outcome>, Failure>,
        now: Instant,
    ) {
        let outcomes = match outcome {
            Ok(outcomes) if self.leases.is_alive(lease) => outcomes,
            Ok(_) => {
                // The keys go with their lease, whatever the response is that came after the news of its end.
                for op in ops {
                    if let Some(key) = self.keys.get_mut(op.key()) {
                        key.on_failed(Some(lease));
                    }
                }
                return self.on_not_committed(lease, ops, Failure::LeaseGone, now);
            }
            Err(failure) => return self.on_not_committed(lease, ops, failure, now),
        };
        self.failures = 0;
        self.on_succeeded(Verb::Write, now);
        for (op, outcome) in ops.iter().zip(outcomes) {
            match op {
                Op::Put { key, .. } => self.on_put(key, outcome, lease, now),
                Op::Delete { key, .. } => self.on_deleted(key, &outcome, now),
            }
        }
    }

    /// Notes the outcome of a put.
    fn on_put(&mut self, key: &Arc<str>, outcome: Outcome, lease: LeaseId, now: Instant) {
        match outcome {
            Outcome::Written { over, revision } => self.on_written(key, lease, over, revision, now),
            Outcome::HeldBy { lease: Some(holder), value } => self.on_held(key, holder, value, now),
            // A missing key is free, so the put cannot have found it missing and done nothing.
            Outcome::HeldBy { lease: None, .. } | Outcome::Deleted | Outcome::Absent => self.keys.enqueue(key, now),
        }
    }

    fn on_written(&mut self, key: &Arc<str>, lease: LeaseId, over: Option<LeaseId>, revision: i64, now: Instant) {
        let origin = match over {
            Some(over) if self.config.former_leases.contains(&over) => Origin::Former,
            Some(over) if !self.leases.contains(over) => Origin::Another,
            _ => Origin::Own,
        };
        let is_recovering = self.health == LeaseHealth::Recovering;
        let Some(entry) = self.keys.get_mut(key) else { return };
        if entry.has_fault() {
            self.metrics.faults().apply(FaultChange::Resolved(Source::Key(key.clone())), now);
        }
        let news = entry.on_written(lease, over, origin, revision, is_recovering);
        entry.show(self.health);
        if let Some(reply) = entry.take_pending() {
            self.actions.push_back(Action::Reply(reply, Ok(())));
        }
        let service = entry.service().clone();
        if let Some((kind, why)) = news {
            self.report(kind, Some((key, service)), why, now);
        }
        self.keys.enqueue(key, now);
    }

    /// Notes that a put met a key that a lease holds which the put did not name.
    fn on_held(&mut self, key: &Arc<str>, holder: LeaseId, value: Vec<u8>, now: Instant) {
        let is_ours = self.leases.contains(holder);
        let Some(entry) = self.keys.get_mut(key) else { return };
        if is_ours {
            entry.on_held_by_us(holder);
            return self.keys.enqueue(key, now);
        }
        match entry.on_conflict(holder) {
            OnConflict::TakeOver => self.keys.enqueue(key, now),
            OnConflict::Refuse => {
                let error = Error::Conflict { key: key.clone(), lease: Some(holder) };
                self.discard(key, error, now);
            }
            OnConflict::Wait { is_news } => {
                let is_reported = is_news && entry.was_confirmed();
                let fault = FaultChange::Held { key: key.clone(), holder, value, is_logged: !is_reported };
                self.metrics.faults().apply(fault, now);
                entry.show(self.health);
                let service = entry.service().clone();
                if is_reported {
                    let why = format!("lease {holder} of another host holds the key");
                    self.report(EventKind::Conflict, Some((key, service)), why, now);
                }
            }
        }
    }

    /// Notes the outcome of a delete.
    fn on_deleted(&mut self, key: &Arc<str>, outcome: &Outcome, now: Instant) {
        match outcome {
            Outcome::HeldBy { lease: Some(holder), .. } if self.leases.contains(*holder) => {
                if let Some(entry) = self.keys.get_mut(key) {
                    entry.on_not_deleted(*holder);
                }
                self.keys.enqueue(key, now);
            }
            Outcome::HeldBy { lease: Some(holder), .. } => self.on_key_gone(key, Gone::Held(*holder)),
            _ => self.on_key_gone(key, Gone::Deleted),
        }
    }

    /// Notes that nothing of a group commit is confirmed. Where a write may yet take effect, the lease is given up.
    fn on_not_committed(&mut self, lease: LeaseId, ops: &[Op], failure: Failure, now: Instant) {
        debug!(%lease, ops = ops.len(), %failure, "etcd has not written the keys");
        let is_refusal = failure.is_refusal();
        let in_doubt = failure.may_have_been_applied();
        if let [op] = ops
            && is_refusal
        {
            return self.on_refused(op.key(), failure, now);
        }
        for key in ops.iter().rev().map(Op::key) {
            let Some(entry) = self.keys.get_mut(key) else { continue };
            entry.on_failed(in_doubt.then_some(lease));
            if is_refusal {
                entry.isolate();
            }
            self.keys.requeue(key);
        }
        match failure {
            Failure::LeaseGone => self.on_lost(lease, now),
            _ if is_refusal => {}
            failure => {
                self.on_failed(Verb::Write, &failure, now);
                if in_doubt {
                    if let Some(held) = self.leases.get_mut(lease) {
                        held.has_unanswered_write = true;
                    }
                    let why = format!("a write was not answered: {failure}");
                    self.change_health(LeaseHealth::Recovering, EventKind::Recovering, why, now);
                } else if !failure.is_transient() {
                    self.fail_pending(&failure, now);
                }
                self.back_off(&failure, now);
            }
        }
    }

    /// Notes that etcd refuses one key: a new one fails, an old one waits for the next audit.
    fn on_refused(&mut self, key: &Arc<str>, failure: Failure, now: Instant) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        entry.on_failed(None);
        if !entry.is_kept() && entry.was_never_written() {
            self.on_key_gone(key, Gone::Deleted);
        } else if !entry.is_kept() || entry.was_confirmed() {
            entry.defer();
            let fault = FaultChange::Refused {
                source: Source::Key(key.clone()),
                why: Error::unavailable(failure),
                prefix: Some(entry.prefix()),
                is_logged: true,
            };
            self.metrics.faults().apply(fault, now);
            entry.show(self.health);
        } else {
            self.discard(key, Error::unavailable(failure), now);
        }
    }
}
