//! Leases that etcd granted to one task and that may still exist.

use std::time::Duration;

use tokio::time::Instant;

use crate::lease_id::LeaseId;

/// Largest number of leases that one task holds while writes keep having no response. At the limit it continues under the
/// newest until the older ones are revoked.
const MAX_HELD: usize = 4;

/// A lease from its grant to its confirmed revocation.
#[derive(Debug)]
pub(super) struct HeldLease {
    pub(super) id: LeaseId,
    /// TTL that etcd granted, or confirmed with the last renewal.
    pub(super) ttl: Duration,
    pub(super) granted_at: Instant,
    /// Time of the request that etcd confirmed last: the lease lasts at least a TTL from then.
    pub(super) confirmed_at: Instant,
    /// Failed renewals since the last confirmed one.
    pub(super) failures: u32,
    /// Set once a write under it has no response: the write may still take effect, until the lease is gone.
    pub(super) has_unanswered_write: bool,
    state: HeldState,
}

/// State of a held lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeldState {
    /// Renewed next at that time.
    Waiting { renew_at: Instant },
    /// A renewal is in progress.
    Renewing,
    /// Ended by etcd's own word, or about to be revoked: not renewed, and nothing is written under it. Its keys may exist
    /// until the revocation is confirmed.
    Retired,
}

impl HeldLease {
    pub(super) fn new(id: LeaseId, ttl: Duration, granted_at: Instant) -> Self {
        Self {
            id,
            ttl,
            granted_at,
            confirmed_at: granted_at,
            failures: 0,
            has_unanswered_write: false,
            // At once: from then on there is a stream, and a connection that breaks is noticed when it breaks.
            state: HeldState::Waiting { renew_at: granted_at },
        }
    }

    /// Interval between renewals: a third of the TTL leaves room for two failed attempts.
    pub(super) fn interval(&self) -> Duration {
        self.ttl / 3
    }

    /// Time at which the lease expires without a further renewal.
    pub(super) fn expires_at(&self) -> Instant {
        self.confirmed_at + self.ttl
    }

    pub(super) fn is_retired(&self) -> bool {
        self.state == HeldState::Retired
    }

    /// Returns true while renewals succeed and every write has had its response.
    pub(super) fn is_sound(&self) -> bool {
        !self.has_unanswered_write && self.failures == 0
    }

    /// Time of the next renewal; `None` while one is in progress, and for a retired lease.
    pub(super) fn renew_at(&self) -> Option<Instant> {
        match self.state {
            HeldState::Waiting { renew_at } => Some(renew_at),
            HeldState::Renewing | HeldState::Retired => None,
        }
    }

    /// Starts a renewal if one is due.
    pub(super) fn start_renewal(&mut self, now: Instant) -> bool {
        let is_due = self.renew_at().is_some_and(|at| at <= now);
        if is_due {
            self.state = HeldState::Renewing;
        }
        is_due
    }

    /// Returns true if an outcome is expected: any while renewing, and a failure while waiting.
    pub(super) fn expects(&self, outcome_is_ok: bool) -> bool {
        match self.state {
            HeldState::Renewing => true,
            // The stream broke between two renewals.
            HeldState::Waiting { .. } => !outcome_is_ok,
            HeldState::Retired => false,
        }
    }

    pub(super) fn on_renewed(&mut self, requested_at: Instant, ttl: Duration, rng: &mut fastrand::Rng) {
        (self.ttl, self.confirmed_at, self.failures) = (ttl, requested_at, 0);
        // Up to a tenth sooner, so that hosts that started together do not renew together.
        let interval = self.interval().mul_f64(0.9 + 0.1 * rng.f64());
        self.state = HeldState::Waiting { renew_at: requested_at + interval };
    }

    pub(super) fn on_renewal_failed(&mut self, retry_at: Instant) {
        self.state = HeldState::Waiting { renew_at: retry_at };
    }

    /// Renews no later than `soon` after a failure.
    pub(super) fn retry_soon(&mut self, soon: Instant) {
        if let HeldState::Waiting { renew_at } = &mut self.state
            && self.failures > 0
        {
            *renew_at = soon.min(*renew_at);
        }
    }

    /// Accounts for time that timers did not see, and renews at once: the lease may have expired.
    pub(super) fn on_suspended(&mut self, by: Duration, now: Instant) {
        self.confirmed_at = self.confirmed_at.checked_sub(by).unwrap_or(self.confirmed_at);
        self.state = HeldState::Waiting { renew_at: now };
    }

    pub(super) fn retire(&mut self) {
        self.state = HeldState::Retired;
    }
}

/// Held leases, oldest first.
#[derive(Debug, Default)]
pub(super) struct HeldLeases(Vec<HeldLease>);

impl HeldLeases {
    /// The lease that keys are written under: the newest that is not retired.
    pub(super) fn current(&self) -> Option<&HeldLease> {
        self.0.iter().rev().find(|held| !held.is_retired())
    }

    pub(super) fn is_current(&self, id: LeaseId) -> bool {
        self.current().is_some_and(|held| held.id == id)
    }

    pub(super) fn oldest(&self) -> Option<&HeldLease> {
        self.0.first()
    }

    pub(super) fn get_mut(&mut self, id: LeaseId) -> Option<&mut HeldLease> {
        self.0.iter_mut().find(|held| held.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldLease> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut HeldLease> {
        self.0.iter_mut()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_HELD
    }

    /// Returns true if the lease may exist and is this task's.
    pub(super) fn contains(&self, id: LeaseId) -> bool {
        self.0.iter().any(|held| held.id == id)
    }

    /// Returns true if keys may be written under the lease.
    pub(super) fn is_alive(&self, id: LeaseId) -> bool {
        self.0.iter().any(|held| held.id == id && !held.is_retired())
    }

    /// Returns true if a write may still take effect although it has had no response.
    pub(super) fn have_unanswered_writes(&self) -> bool {
        self.0.iter().any(|held| held.has_unanswered_write)
    }

    pub(super) fn add(&mut self, held: HeldLease) {
        self.0.push(held);
    }

    pub(super) fn remove(&mut self, id: LeaseId) {
        self.0.retain(|held| held.id != id);
    }
}
