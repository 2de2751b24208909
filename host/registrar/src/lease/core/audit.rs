//! Audits: the keys that etcd has under the lease, and the revisions of some of them, compared with those that it should
//! have.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::debug;

use crate::{
    etcd::{Comparison, Failure, LeaseView, MAX_OPS, latency::Verb},
    faults::{FaultChange, Source},
    lease::core::{LeaseCore, MAX_AUDIT_INTERVAL, intact::Intact, key::Key, messages::Request},
    lease_id::LeaseId,
};

/// Time for which the revision of etcd alone is trusted: a member that has stopped to apply what the others write, or a restored
/// backup, shows a revision that says nothing.
const MAX_TRUST: Duration = Duration::from_secs(60);

impl LeaseCore {
    /// Makes an audit: one is due every third of the TTL, and every ten seconds at most. The load is read with it.
    pub(super) fn next_audit(&mut self, lease: LeaseId, now: Instant) -> Request {
        let interval = self.interval().min(MAX_AUDIT_INTERVAL);
        self.audit_at = now + interval;
        let published = self.published(lease);
        if self.intact.until.is_some_and(|until| now >= until) {
            self.intact = Intact::default();
        }
        let intact_at = Some(self.intact.revision).filter(|_| self.intact.compared >= published.max(1));
        let revisions = self.revisions_to_audit(lease, interval);
        self.follow_load(now);
        Request::Audit { lease, revisions, intact_at }
    }

    /// Number of keys that should be under the lease.
    fn published(&self, lease: LeaseId) -> usize {
        self.keys.iter().filter(|(_, entry)| entry.revision_under(lease).is_some()).count()
    }

    /// Keys whose revision this audit compares. Each key has its turn within the longest interval between two audits,
    /// however many there are.
    fn revisions_to_audit(&mut self, lease: LeaseId, interval: Duration) -> Vec<(Arc<str>, i64)> {
        let share = interval.as_secs_f64() / MAX_AUDIT_INTERVAL.as_secs_f64();
        let limit = MAX_OPS.max((self.keys.kept() as f64 * share).ceil() as usize);
        let last = self.audited.take();
        let published = self.keys.iter_behind(last.as_ref()).filter_map(|(key, entry)| {
            let revision = entry.revision_under(lease)?;
            Some((key.clone(), revision))
        });
        let revisions: Vec<_> = published.take(limit).collect();
        self.audited = revisions.last().map(|(key, _)| key.clone());
        revisions
    }

    /// Publishes the computed weight where it differs enough from the one in etcd.
    fn follow_load(&mut self, now: Instant) {
        let (damping, computed) = (self.config.damping, self.computed.weight);
        let is_due = |published, age| damping.lets_through(published, computed, age);
        let mut changed = Vec::new();
        for (key, entry) in self.keys.iter_mut() {
            if entry.follow_load(computed, now, is_due) {
                entry.show(self.health);
                changed.push(key.clone());
            }
        }
        for key in changed {
            self.keys.enqueue(&key, now);
        }
    }

    pub(super) fn on_audited(
        &mut self,
        lease: LeaseId,
        keys: Result<Option<LeaseView>, Failure>,
        revisions: Result<Comparison, Failure>,
        now: Instant,
    ) {
        if let Err(Failure::LeaseGone) = keys {
            return self.on_lost(lease, now);
        }
        match keys.as_ref().err().or(revisions.as_ref().err()) {
            None => {
                self.on_succeeded(Verb::Look, now);
                self.resume_refused(now);
            }
            Some(failure) => {
                debug!(%failure, "the audit failed; the next one is due as planned");
                self.on_failed(Verb::Look, failure, now);
            }
        }
        if let Ok(Comparison { altered, .. }) = &revisions {
            self.on_altered(lease, altered, now);
        }
        let Ok(view) = keys else {
            // The keys of this audit had their turn, and were not compared.
            self.intact = Intact::default();
            return;
        };
        self.failures = 0;
        if let Some(view) = view {
            let is_complete = self.on_keys_read(lease, &view);
            self.note_intact(revisions.ok().filter(|_| is_complete), view.revision, now);
        }
        // Deferred keys have their turn now.
        self.keys.enqueue_all(now);
    }

    /// Notes keys that were found as they should be, at a revision of etcd or later.
    fn note_intact(&mut self, found: Option<Comparison>, revision: i64, now: Instant) {
        let found = found.filter(|found| found.altered.is_empty());
        let Some(Comparison { compared, revision: Some(first), .. }) = found else {
            self.intact = Intact::default();
            return;
        };
        let revision = first.min(revision);
        if revision <= 0 {
            // A response without a revision.
            self.intact = Intact::default();
            return;
        }
        if revision != self.intact.revision {
            self.intact = Intact { revision, compared: 0, until: Some(now + MAX_TRUST) };
        }
        self.intact.compared += compared;
    }

    /// Notes that other clients have written or deleted these keys, which are then written again.
    fn on_altered(&mut self, lease: LeaseId, keys: &[Arc<str>], now: Instant) {
        for key in keys {
            if let Some(entry) = self.keys.get_mut(key).filter(|entry| entry.revision_under(lease).is_some()) {
                entry.on_altered();
                entry.show(self.health);
                self.keys.enqueue(key, now);
            }
        }
    }

    /// Notes which keys are missing under the lease. Returns true if none is.
    fn on_keys_read(&mut self, lease: LeaseId, view: &LeaseView) -> bool {
        let entry_of = |key: &Vec<u8>| std::str::from_utf8(key).ok().and_then(|key| self.keys.get(key));
        let is_published = |entry: &&Key| entry.revision_under(lease).is_some();
        let found = view.keys.iter().filter_map(entry_of).filter(is_published).count();
        if found == self.published(lease) {
            return true;
        }
        let found: HashSet<&[u8]> = view.keys.iter().map(Vec::as_slice).collect();
        for (key, entry) in self.keys.iter_mut() {
            if entry.is_under(lease) && !found.contains(key.as_bytes()) {
                entry.unpublish();
                entry.show(self.health);
            }
        }
        false
    }

    /// Drops the faults of refused writes and grants that are not needed any more, such as of a weight that moved back.
    fn resume_refused(&mut self, now: Instant) {
        for (key, entry) in self.keys.iter_mut().filter(|(_, entry)| entry.is_deferred() && !entry.is_dirty()) {
            entry.resume();
            self.metrics.faults().apply(FaultChange::Forgotten(Source::Key(key.clone())), now);
            entry.show(self.health);
        }
        let is_answered = self.leases.current().is_some_and(|held| !held.has_unanswered_write);
        if is_answered && !self.failing.is_empty() && !self.keys.iter().any(|(_, entry)| entry.is_dirty()) {
            self.on_succeeded(Verb::Write, now);
            self.on_succeeded(Verb::Grant, now);
        }
    }
}
