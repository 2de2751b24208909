//! The leases of the simulated etcd: pure, with time as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::failure::Failure;
use super::store::{Change, Item};

/// With etcd's default timing no lease is shorter than `ceil(3/2 * election timeout)`.
pub(crate) const MIN_TTL_SECONDS: i64 = 2;
/// Longest TTL that etcd grants.
pub(crate) const MAX_TTL_SECONDS: i64 = 9_000_000_000;
/// Interval of etcd's search for expired leases.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// Maximum number of expired leases that etcd revokes in one tick.
const REVOKED_PER_TICK: usize = 500;
/// Extension of every lease by a new leader, on top of the full TTL.
const ELECTION: Duration = Duration::from_secs(1);

/// One lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) ttl: Duration,
    pub(crate) expiry: Duration,
    pub(crate) keys: BTreeSet<Bytes>,
}

impl Lease {
    /// Time left: zero while the lease waits for the tick that revokes it.
    pub(crate) fn left(&self, now: Duration) -> Duration {
        self.expiry.saturating_sub(now)
    }
}

/// Result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    Renewed {
        ttl: Duration,
        left: Duration,
    },
    /// Expired, but not yet revoked by a tick: in etcd the renewal waits for the tick.
    Expiring,
    Unknown,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Lessor {
    leases: BTreeMap<i64, Lease>,
}

impl Lessor {
    pub(crate) fn get(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases, the first to expire first, as etcd lists them.
    pub(crate) fn by_expiry(&self) -> Vec<(i64, &Lease)> {
        let mut all: Vec<_> = self.leases.iter().map(|(id, lease)| (*id, lease)).collect();
        all.sort_by_key(|(id, lease)| (lease.expiry, *id));
        all
    }

    pub(crate) fn grant(&mut self, id: i64, seconds: i64, now: Duration) -> Result<Duration, Failure> {
        if seconds > MAX_TTL_SECONDS {
            return Err(Failure::TtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Failure::LeaseExists);
        }
        let seconds = seconds.max(MIN_TTL_SECONDS).unsigned_abs();
        let ttl = Duration::from_secs(seconds);
        let lease = Lease { ttl, expiry: now + ttl, keys: BTreeSet::new() };
        self.leases.insert(id, lease);
        Ok(ttl)
    }

    pub(crate) fn renew(&mut self, id: i64, now: Duration) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else {
            return Renewal::Unknown;
        };
        let left = lease.left(now);
        if left.is_zero() {
            return Renewal::Expiring;
        }
        lease.expiry = now + lease.ttl;
        let ttl = lease.ttl;
        Renewal::Renewed { ttl, left }
    }

    pub(crate) fn remove(&mut self, id: i64) -> Option<Lease> {
        self.leases.remove(&id)
    }

    /// Leases that this tick revokes.
    pub(crate) fn expired(&self, now: Duration) -> Vec<i64> {
        self.by_expiry()
            .into_iter()
            .take_while(|(_, lease)| lease.left(now).is_zero())
            .take(REVOKED_PER_TICK)
            .map(|(id, _)| id)
            .collect()
    }

    /// Extends all leases, as a new or restarted leader does.
    pub(crate) fn promote(&mut self, now: Duration) {
        for lease in self.leases.values_mut() {
            lease.expiry = now + ELECTION + lease.ttl;
        }
    }

    /// Moves keys between leases after a transaction.
    pub(crate) fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            let lease_of = |item: &Option<Item>| item.as_ref().map(|item| item.lease);
            let before = lease_of(&change.before).unwrap_or_default();
            let after = lease_of(&change.after).unwrap_or_default();
            if let Some(lease) = self.leases.get_mut(&before) {
                lease.keys.remove(&change.key);
            }
            if let Some(lease) = self.leases.get_mut(&after) {
                lease.keys.insert(change.key.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_short_ttl_is_raised_and_a_long_one_refused() {
        let mut lessor = Lessor::default();
        assert_eq!(lessor.grant(1, 0, SECOND), Ok(2 * SECOND));
        assert_eq!(lessor.grant(2, 10, SECOND), Ok(10 * SECOND));
        assert_eq!(lessor.grant(2, 10, SECOND), Err(Failure::LeaseExists));
        let beyond = MAX_TTL_SECONDS + 1;
        assert_eq!(lessor.grant(3, beyond, SECOND), Err(Failure::TtlTooLarge));
    }

    #[test]
    fn a_lease_that_ran_out_is_not_renewed() {
        let mut lessor = Lessor::default();
        lessor.grant(1, 2, Duration::ZERO).unwrap();
        let renewed = Renewal::Renewed { ttl: 2 * SECOND, left: SECOND };
        assert_eq!(lessor.renew(1, SECOND), renewed);
        assert!(lessor.expired(2 * SECOND).is_empty());
        assert_eq!(lessor.renew(1, 3 * SECOND), Renewal::Expiring);
        assert_eq!(lessor.expired(3 * SECOND), [1]);
        lessor.remove(1);
        assert_eq!(lessor.renew(1, 3 * SECOND), Renewal::Unknown);
    }

    #[test]
    fn a_new_leader_gives_the_full_ttl() {
        let mut lessor = Lessor::default();
        lessor.grant(1, 2, Duration::ZERO).unwrap();
        lessor.promote(2 * SECOND);
        assert_eq!(lessor.get(1).unwrap().left(2 * SECOND), 3 * SECOND);
    }
}
