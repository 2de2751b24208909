//! Keys and leases as etcd's events leave them, and each event held against the promises.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::sim::{Call, CallRecord, Cause, Event, EventKind};

/// Number of violations that are kept in full.
const MAX_VIOLATIONS: usize = 5;

/// Traffic of a time.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Transactions that changed keys.
    pub transactions: u64,
    /// Puts and deletes in transactions.
    pub operations: u64,
    /// Keys that went with a revoked lease.
    pub revoked_keys: u64,
    /// Largest number of transactions, and of their operations, within one second.
    pub busiest: [u64; 2],
    /// Leases granted.
    pub grants: u64,
    /// Renewals of leases.
    pub renewals: u64,
    /// Reads of leases, of which each audit has one or two.
    pub lease_reads: u64,
    /// Transactions that compare revisions and change nothing.
    pub comparisons: u64,
    /// Transactions of calls, with those that change nothing.
    called: u64,
    /// The second that is counted at the moment, with its transactions and operations.
    second: (u64, [u64; 2]),
    /// Era and revision of the last transaction.
    last: (u32, i64),
}

impl Traffic {
    fn operation(&mut self, event: &Event) {
        let second = event.at.as_secs();
        if self.second.0 != second {
            self.second = (second, [0, 0]);
        }
        let is_next = u64::from(self.last != (event.era, event.revision));
        self.last = (event.era, event.revision);
        self.transactions += is_next;
        self.operations += 1;
        self.second.1[0] += is_next;
        self.second.1[1] += 1;
        for (busiest, now) in self.busiest.iter_mut().zip(self.second.1) {
            *busiest = now.max(*busiest);
        }
    }

    fn call(&mut self, call: &CallRecord) {
        match call.call {
            Call::Txn => self.called += 1,
            Call::TimeToLive => self.lease_reads += 1,
            _ => {}
        }
    }
}

/// State of etcd as its events leave it.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The lease of every key.
    keys: HashMap<String, i64>,
    /// The host of every lease there was.
    owners: HashMap<i64, Arc<str>>,
    live: HashSet<i64>,
    /// The host that is being deployed: it alone may delete its keys.
    pub(super) deployed: Option<Arc<str>>,
    /// Time of the last put.
    pub(super) last_put: Duration,
    violations: Vec<String>,
    violated: usize,
    traffic: Traffic,
}

impl Record {
    /// Number of keys in etcd.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Number of live leases.
    pub(super) fn leases(&self) -> usize {
        self.live.len()
    }

    /// The lease of a key, if it is alive.
    pub(super) fn live_lease(&self, key: &str) -> Option<i64> {
        self.keys.get(key).copied().filter(|lease| self.live.contains(lease))
    }

    /// Takes the traffic since the last call.
    pub(super) fn take_traffic(&mut self) -> Traffic {
        let mut traffic = std::mem::take(&mut self.traffic);
        traffic.comparisons = traffic.called.saturating_sub(traffic.transactions);
        traffic
    }

    /// Broken promises: the number of all, and the first ones as sentences.
    pub(super) fn violations(&self) -> (usize, &[String]) {
        (self.violated, &self.violations)
    }

    /// Notes calls.
    pub(super) fn called(&mut self, calls: &[CallRecord]) {
        calls.iter().for_each(|call| self.traffic.call(call));
    }

    /// Notes an event.
    pub(super) fn apply(&mut self, event: Event) {
        let is_transaction = matches!(event.cause, Cause::Call { call: Call::Txn, .. });
        if is_transaction && event.key().is_some() {
            self.traffic.operation(&event);
        }
        let at = event.at;
        let host = match &event.cause {
            Cause::Call { host, .. } => Some(Arc::clone(host)),
            _ => None,
        };
        match event.kind {
            EventKind::Granted { lease, .. } => {
                self.traffic.grants += 1;
                self.live.insert(lease);
                self.owners.insert(lease, host.unwrap_or_default());
            }
            EventKind::Renewed { .. } => self.traffic.renewals += 1,
            EventKind::Expired { lease } => {
                self.live.remove(&lease);
                self.violates(|| format!("kept: lease {lease:x} expired at {at:?}, and its host is up"));
            }
            EventKind::Revoked { lease } | EventKind::Wiped { lease } => {
                self.live.remove(&lease);
            }
            EventKind::Put { key, lease, previous_lease, .. } => {
                self.last_put = at;
                if !self.live.contains(&lease) {
                    self.violates(|| format!("visible: {key} is under the dead lease {lease:x} at {at:?}"));
                }
                let owner = |lease: &i64| self.owners.get(lease).cloned();
                if previous_lease.is_some_and(|previous| owner(&previous) != owner(&lease)) {
                    self.violates(|| format!("no clobber: {key} of another host is written over at {at:?}"));
                }
                self.keys.insert(key, lease);
            }
            EventKind::Delete { key, previous_lease } => {
                self.keys.remove(&key);
                self.traffic.revoked_keys += u64::from(!is_transaction && event.cause != Cause::Wipe);
                let is_deployed = self.deployed.is_some() && self.owners.get(&previous_lease) == self.deployed.as_ref();
                if event.cause != Cause::Wipe && !is_deployed {
                    self.violates(|| format!("no gap: {key} is deleted at {at:?}, and its host is up"));
                }
            }
        }
    }

    fn violates(&mut self, sentence: impl FnOnce() -> String) {
        self.violated += 1;
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(sentence());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, revision: i64) -> Event {
        let cause = Cause::Call { host: "host-1".into(), call: Call::Txn, late: false };
        Event { at: Duration::from_secs(1), era: 0, revision, cause, kind }
    }

    fn put(key: &str, lease: i64, revision: i64) -> Event {
        event(EventKind::Put { key: key.to_owned(), value: "v".into(), lease, previous_lease: None }, revision)
    }

    fn delete(key: &str, previous_lease: i64) -> Event {
        event(EventKind::Delete { key: key.to_owned(), previous_lease }, 9)
    }

    fn granted(lease: i64) -> Event {
        event(EventKind::Granted { lease, ttl: Duration::from_secs(10) }, 1)
    }

    /// A record of one key under one lease of `host-1`.
    fn registered() -> Record {
        let mut record = Record::default();
        record.apply(granted(7));
        record.apply(put("/user/a", 7, 2));
        record
    }

    #[test]
    fn a_key_under_a_live_lease_is_no_violation() {
        let record = registered();
        assert_eq!((record.keys(), record.leases(), record.live_lease("/user/a")), (1, 1, Some(7)));
        assert_eq!(record.violations().0, 0);
    }

    #[test]
    fn a_key_that_goes_while_its_host_is_up_is_a_violation() {
        let mut record = registered();
        record.deployed = Some("host-2".into());
        record.apply(delete("/user/a", 7));
        assert_eq!(record.violations().0, 1);
        let mut record = registered();
        record.deployed = Some("host-1".into());
        record.apply(delete("/user/a", 7));
        assert_eq!((record.violations().0, record.keys()), (0, 0));
    }

    #[test]
    fn a_key_under_a_dead_lease_is_a_violation() {
        let mut record = registered();
        record.apply(event(EventKind::Revoked { lease: 7 }, 2));
        record.apply(put("/user/b", 7, 3));
        assert_eq!(record.violations().0, 1);
        assert_eq!(record.live_lease("/user/a"), None);
    }

    #[test]
    fn an_expiry_and_a_foreign_put_are_violations() {
        let mut record = registered();
        record.apply(event(
            EventKind::Put { key: "/user/a".to_owned(), value: "v".into(), lease: 7, previous_lease: Some(8) },
            3,
        ));
        record.apply(event(EventKind::Expired { lease: 7 }, 3));
        assert_eq!(record.violations().0, 2);
    }

    #[test]
    fn operations_of_one_revision_are_one_transaction() {
        let mut record = registered();
        record.apply(put("/user/b", 7, 3));
        record.apply(put("/user/c", 7, 3));
        let traffic = record.take_traffic();
        assert_eq!((traffic.transactions, traffic.operations, traffic.busiest), (2, 3, [2, 3]));
    }
}
