//! The terms of a lease: grant, renewal, loss and revocation.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::{
    backoff::{FIRST_BACKOFF, backoff},
    error::Error,
    etcd::{Failure, Granted, latency::Verb},
    lease::core::{
        LeaseCore, MAX_AUDIT_INTERVAL, deadline,
        health::LeaseHealth,
        held::HeldLease,
        key::Gone,
        messages::{Action, Renewal},
    },
    lease_id::LeaseId,
    status::EventKind,
};

impl LeaseCore {
    /// Begins a term: every key that is kept is written under the new lease.
    pub(super) fn on_granted(&mut self, outcome: Result<Granted, Failure>, requested_at: Instant, now: Instant) {
        let granted = match outcome {
            Ok(granted) => granted,
            Err(failure) => {
                debug!(%failure, "etcd granted no lease");
                self.on_failed(Verb::Grant, &failure, now);
                if !failure.is_transient() {
                    self.fail_pending(&failure, now);
                }
                return self.back_off(&failure, now);
            }
        };
        self.on_succeeded(Verb::Grant, now);
        let Granted { lease, ttl } = granted;
        debug!(%lease, ttl_seconds = ttl.as_secs_f64(), "etcd granted a lease");
        self.leases.add(HeldLease::new(lease, ttl, requested_at));
        self.metrics.held(lease, requested_at, requested_at + ttl);
        self.audit_at = requested_at + self.interval().min(MAX_AUDIT_INTERVAL);
        for (_, key) in self.keys.iter_mut() {
            key.unpublish();
        }
        self.keys.enqueue_all(now);
    }

    pub(super) fn start_renewals(&mut self, now: Instant) {
        for held in self.leases.iter_mut() {
            if held.start_renewal(now) {
                let (lease, ttl) = (held.id, held.ttl);
                let deadline = deadline(self.config.request_timeout, held.interval());
                self.actions.push_back(Action::Renew { lease, ttl, deadline });
            }
        }
    }

    /// Notes the outcome of a renewal. Without a response the lease is suspect, not lost: only etcd's own word ends it.
    pub(super) fn on_renewal(&mut self, renewal: Renewal, now: Instant) {
        let Renewal { lease, requested_at, outcome } = renewal;
        let longest_pause = self.longest_pause();
        let is_current = self.leases.is_current(lease);
        let Some(held) = self.leases.get_mut(lease).filter(|held| held.expects(outcome.is_ok())) else { return };
        match outcome {
            Ok(ttl) => {
                held.on_renewed(requested_at, ttl, &mut self.rng);
                if !is_current {
                    return;
                }
                self.metrics.held(held.id, held.granted_at, held.expires_at());
                self.metrics.renewed();
                self.report(EventKind::Renewed, None, format!("it ends in {ttl:?} unless it is renewed again"), now);
                self.resolve(Verb::Renew, now);
                if self.health == LeaseHealth::Suspect && !self.is_refused() {
                    let why = "etcd confirmed the lease".to_owned();
                    self.change_health(LeaseHealth::Steady, EventKind::Confirmed, why, now);
                }
            }
            Err(Failure::LeaseGone) => self.on_lost(lease, now),
            Err(failure) => {
                held.failures += 1;
                let pause = backoff(&mut self.rng, held.failures, longest_pause);
                held.on_renewal_failed(now + pause);
                let unconfirmed = now - held.confirmed_at;
                if is_current {
                    self.on_failed(Verb::Renew, &failure, now);
                }
                if is_current && self.health == LeaseHealth::Steady {
                    let why = format!("last confirmed {unconfirmed:.1?} ago: {failure}");
                    self.change_health(LeaseHealth::Suspect, EventKind::Suspect, why, now);
                }
            }
        }
    }

    /// Notes etcd's own word that a lease has ended. Its keys may remain for a while, since etcd deletes them in a second
    /// step. Only the revocation proves that they are gone and that no late write can take effect.
    pub(super) fn on_lost(&mut self, lease: LeaseId, now: Instant) {
        let was_current = self.leases.is_current(lease);
        let Some(held) = self.leases.get_mut(lease) else { return };
        let lived = now - held.granted_at;
        self.retire(lease);
        if was_current {
            self.metrics.lost();
        }
        if was_current && self.keys.kept() > 0 {
            let why = format!("etcd ended the lease after {lived:.1?}");
            self.change_health(LeaseHealth::Recovering, EventKind::Recovering, why, now);
            // Hosts that lost their leases at the same moment must not come back at the same moment.
            let longest_pause = self.longest_pause();
            self.not_before = now + backoff(&mut self.rng, 1, longest_pause);
        }
        for (_, key) in self.keys.iter_mut().filter(|(_, key)| key.is_under(lease)) {
            key.unpublish();
            key.show(self.health);
        }
        self.keys.enqueue_all(now);
    }

    /// Renews and writes no more under a lease.
    pub(super) fn retire(&mut self, lease: LeaseId) {
        if let Some(held) = self.leases.get_mut(lease) {
            held.retire();
            self.actions.push_back(Action::Disconnect(lease));
        }
    }

    /// Ends a term: the lease does not exist any more, and no write under it can take effect.
    pub(super) fn on_revoked(&mut self, lease: LeaseId, outcome: Result<(), Failure>, now: Instant) {
        if let Err(failure) = outcome {
            self.on_failed(Verb::Revoke, &failure, now);
            return self.back_off(&failure, now);
        }
        self.failures = 0;
        self.on_succeeded(Verb::Revoke, now);
        self.leases.remove(lease);
        for key in self.keys.names(|key| key.is_deleting() && key.is_under(lease)) {
            self.on_key_gone(&key, Gone::WithLease);
        }
        for (_, key) in self.keys.iter_mut() {
            key.on_lease_gone(lease);
            key.show(self.health);
        }
        match self.leases.current() {
            Some(held) => self.metrics.held(held.id, held.granted_at, held.expires_at()),
            None => self.metrics.lost(),
        }
        self.keys.enqueue_all(now);
    }

    /// Notes that time went by unseen by timers: leases may have expired, and are renewed before they are trusted.
    pub(super) fn on_suspended(&mut self, by: Duration, now: Instant) {
        for held in self.leases.iter_mut().filter(|held| !held.is_retired()) {
            held.on_suspended(by, now);
            // A response from before says nothing about now, and on this stream it would be taken for the next one.
            self.actions.push_back(Action::Disconnect(held.id));
        }
        if let Some(held) = self.leases.current() {
            self.metrics.held(held.id, held.granted_at, held.expires_at());
        }
    }

    /// Repeats failed requests at once, apart from a little jitter.
    pub(super) fn retry_soon(&mut self, now: Instant) {
        let soon = now + FIRST_BACKOFF.mul_f64(self.rng.f64() / 4.0);
        self.not_before = self.not_before.min(soon);
        for held in self.leases.iter_mut() {
            held.retry_soon(soon);
        }
    }

    /// Lets time pass before the next request.
    pub(super) fn back_off(&mut self, failure: &Failure, now: Instant) {
        self.failures += 1;
        let longest_pause = self.longest_pause();
        let pause = backoff(&mut self.rng, self.failures, longest_pause);
        debug!(%failure, failures = self.failures, pause_seconds = pause.as_secs_f64(), "etcd is tried again");
        self.not_before = now + pause;
    }

    /// Fails the registrations that are pending, after a failure that waiting does not cure.
    pub(super) fn fail_pending(&mut self, failure: &Failure, now: Instant) {
        let error = Error::unavailable(failure.clone());
        for (deadline, key) in std::mem::take(&mut self.pending) {
            if self.keys.get(&key).is_some_and(|entry| entry.is_pending_until(deadline)) {
                self.discard(&key, error.clone(), now);
            }
        }
    }
}
