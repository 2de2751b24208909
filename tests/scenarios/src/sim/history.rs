//! History of the simulated etcd for the tests: every event, and every call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// One event of a key or of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Virtual time since the simulation began.
    pub at: Duration,
    /// Number of earlier wipes of the data; revisions compare only within one era.
    pub era: u32,
    /// The store's revision after the event; a lease event by itself creates no revision.
    pub revision: i64,
    /// The cause of the event.
    pub cause: Cause,
    /// The kind of the event.
    pub kind: EventKind,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A key was written.
    Put {
        /// The key, as text.
        key: String,
        /// The value, byte for byte.
        value: Bytes,
        /// The lease of the key from now on; 0 means none.
        lease: i64,
        /// The lease of the key before; none if the key did not exist.
        previous_lease: Option<i64>,
    },
    /// A key was removed.
    Delete {
        /// The key, as text.
        key: String,
        /// The lease of the key; 0 means none.
        previous_lease: i64,
    },
    /// A lease was granted.
    Granted {
        /// The lease.
        lease: i64,
        /// The granted time to live.
        ttl: Duration,
    },
    /// A lease was renewed.
    Renewed {
        /// The lease.
        lease: i64,
        /// The time to live from now on.
        ttl: Duration,
        /// The time that was left before the renewal; a small value means a late renewal.
        left: Duration,
    },
    /// A lease expired; its keys are deleted at the same revision.
    Expired {
        /// The lease.
        lease: i64,
    },
    /// A lease was revoked; its keys are deleted at the same revision.
    Revoked {
        /// The lease.
        lease: i64,
    },
    /// A lease was lost with the data of a wiped etcd.
    Wiped {
        /// The lease.
        lease: i64,
    },
}

impl Event {
    /// The key of a put or a delete.
    pub fn key(&self) -> Option<&str> {
        match &self.kind {
            EventKind::Put { key, .. } | EventKind::Delete { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The host whose call caused it.
    pub fn host(&self) -> Option<&str> {
        match &self.cause {
            Cause::Call { host, .. } => Some(host),
            _ => None,
        }
    }
}

/// Cause of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A call of a host.
    Call {
        /// The host, by the name its channel was made with.
        host: Arc<str>,
        /// The call.
        call: Call,
        /// True if its caller had given up before: a late write.
        late: bool,
    },
    /// A lease expired.
    Expiry,
    /// The test itself, by a method of `SimEtcd`.
    Foreign,
    /// A restart without data.
    Wipe,
}

/// The kinds of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `KV.Range`.
    Range,
    /// `KV.Put`.
    Put,
    /// `KV.DeleteRange`.
    Delete,
    /// `KV.Txn`.
    Txn,
    /// `KV.Compact`.
    Compact,
    /// `Lease.LeaseGrant`.
    Grant,
    /// `Lease.LeaseRevoke`.
    Revoke,
    /// `Lease.LeaseTimeToLive`.
    TimeToLive,
    /// `Lease.LeaseLeases`.
    Leases,
    /// `Lease.LeaseKeepAlive`: one stream opened.
    KeepAlive,
    /// One renewal on such a stream.
    Renew,
    /// `Watch.Watch`: one stream opened.
    Watch,
    /// `Auth.Authenticate`.
    Authenticate,
    /// `Maintenance.Status`.
    Status,
    /// Any other call.
    Other,
}

impl Call {
    /// Every kind, for sums over all.
    pub const ALL: [Call; 15] = [
        Call::Range,
        Call::Put,
        Call::Delete,
        Call::Txn,
        Call::Compact,
        Call::Grant,
        Call::Revoke,
        Call::TimeToLive,
        Call::Leases,
        Call::KeepAlive,
        Call::Renew,
        Call::Watch,
        Call::Authenticate,
        Call::Status,
        Call::Other,
    ];

    /// True if the call can change keys.
    pub fn writes(self) -> bool {
        matches!(self, Call::Put | Call::Delete | Call::Txn)
    }

    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Call::KeepAlive | Call::Watch)
    }

    pub(crate) fn of_path(path: &str) -> Self {
        match path {
            "/etcdserverpb.KV/Range" => Call::Range,
            "/etcdserverpb.KV/Put" => Call::Put,
            "/etcdserverpb.KV/DeleteRange" => Call::Delete,
            "/etcdserverpb.KV/Txn" => Call::Txn,
            "/etcdserverpb.KV/Compact" => Call::Compact,
            "/etcdserverpb.Lease/LeaseGrant" => Call::Grant,
            "/etcdserverpb.Lease/LeaseRevoke" => Call::Revoke,
            "/etcdserverpb.Lease/LeaseTimeToLive" => Call::TimeToLive,
            "/etcdserverpb.Lease/LeaseLeases" => Call::Leases,
            "/etcdserverpb.Lease/LeaseKeepAlive" => Call::KeepAlive,
            "/etcdserverpb.Watch/Watch" => Call::Watch,
            "/etcdserverpb.Auth/Authenticate" => Call::Authenticate,
            "/etcdserverpb.Maintenance/Status" => Call::Status,
            _ => Call::Other,
        }
    }
}

/// One call as the network saw it leave its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Virtual time since the simulation began.
    pub at: Duration,
    /// The host, by the name its channel was made with.
    pub host: Arc<str>,
    /// The call.
    pub call: Call,
}

/// Size of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionSize {
    /// Number of its operations or, if that is more, of its comparisons; those of nested transactions are not counted.
    pub operations: usize,
    /// Its length on the wire.
    pub bytes: usize,
}

impl TransactionSize {
    /// The larger value of each field.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { operations: self.operations.max(other.operations), bytes: self.bytes.max(other.bytes) }
    }
}

/// Recorder of events and calls.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    pub(crate) calls: Vec<CallRecord>,
    pub(crate) largest_transaction: TransactionSize,
    counts: BTreeMap<(Arc<str>, Call), u64>,
}

impl History {
    /// Records a call. Renewals are counted, not listed: their events have the times.
    pub(crate) fn record(&mut self, at: Duration, host: &Arc<str>, call: Call) {
        *self.counts.entry((Arc::clone(host), call)).or_default() += 1;
        if call != Call::Renew {
            let host = Arc::clone(host);
            self.calls.push(CallRecord { at, host, call });
        }
    }

    pub(crate) fn count(&self, host: &str, call: Call) -> u64 {
        let key = (Arc::from(host), call);
        self.counts.get(&key).copied().unwrap_or_default()
    }
}
