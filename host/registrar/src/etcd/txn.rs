//! One conditional write: its request to etcd, and the outcome in the response.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use etcd_client::{Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use crate::lease_id::LeaseId;

/// One conditional write. It names the lease that is believed to hold the key, so that a write which arrives late, or meets
/// a key of another lease, does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Puts the key if lease `held` or no lease holds it, or it does not exist.
    Put { key: Arc<str>, value: Vec<u8>, held: Option<LeaseId> },
    /// Deletes the key if lease `held` holds it.
    Delete { key: Arc<str>, held: LeaseId },
}

/// Outcome of an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The lease holds the key now, written at `revision`; before, lease `over` did (`None`: no lease, or the key did not
    /// exist).
    Written { over: Option<LeaseId>, revision: i64 },
    /// Lease `held` held the key, which is deleted.
    Deleted,
    /// The key did not exist.
    Absent,
    /// Nothing was written: another lease holds the key (`None`: a delete met a key without a lease), with that value.
    HeldBy { lease: Option<LeaseId>, value: Vec<u8> },
}

impl Op {
    pub(crate) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn is_put(&self) -> bool {
        matches!(self, Self::Put { .. })
    }

    /// Size in a request, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => 5 * key.len() + 2 * value.len(),
            Self::Delete { key, .. } => 4 * key.len(),
        }
    }

    /// The request: a transaction within the transaction of a group commit.
    pub(super) fn conditional(&self, lease: LeaseId) -> TxnOp {
        let held_by = |key: &Arc<str>, lease: Option<LeaseId>| {
            Compare::lease(key.as_bytes(), CompareOp::Equal, lease.map_or(0, LeaseId::get))
        };
        // With its value: etcd 3.7 leaves the lease out of a response with keys only.
        let read = |key: &Arc<str>| TxnOp::get(key.as_bytes(), None);
        TxnOp::txn(match self {
            Self::Put { key, value, held } => {
                let put = || TxnOp::put(key.as_bytes(), value.clone(), Some(PutOptions::new().with_lease(lease.get())));
                // A missing key compares as one without a lease.
                let free = Txn::new().when([held_by(key, None)]).and_then([put()]).or_else([read(key)]);
                match held {
                    None => free,
                    held => Txn::new().when([held_by(key, *held)]).and_then([put()]).or_else([TxnOp::txn(free)]),
                }
            }
            Self::Delete { key, held } => Txn::new()
                .when([held_by(key, Some(*held))])
                .and_then([TxnOp::delete(key.as_bytes(), Some(DeleteOptions::new()))])
                .or_else([read(key)]),
        })
    }

    /// The outcome in a response whose writes have that revision; `None` if it does not fit the request.
    pub(super) fn outcome(&self, response: &TxnOpResponse, revision: i64) -> Option<Outcome> {
        let TxnOpResponse::Txn(response) = response else { return None };
        match self {
            Self::Put { held, .. } => written(response, *held, revision),
            Self::Delete { .. } => match responses(response)?.first()? {
                TxnOpResponse::Delete(delete) => {
                    Some(if delete.deleted() > 0 { Outcome::Deleted } else { Outcome::Absent })
                }
                found => holder(found),
            },
        }
    }
}

/// Operation for a branch that never runs: etcd checks the rights to read and to write the key for it. Inside
/// a nested transaction etcd 3.4 checks no rights, and lets a user put keys that the user cannot delete again. A
/// delete costs nothing of etcd's quota.
pub(super) fn authorized(key: &str) -> TxnOp {
    TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()))
}

/// The responses to the operations of a transaction; `None` if one of them is empty, as a bit that flipped on the wire leaves it.
pub(super) fn responses(response: &TxnResponse) -> Option<Vec<TxnOpResponse>> {
    // The client panics at an empty one, and has no other way to it.
    catch_unwind(AssertUnwindSafe(|| response.op_responses())).ok()
}

fn written(response: &TxnResponse, held: Option<LeaseId>, revision: i64) -> Option<Outcome> {
    match responses(response)?.first()? {
        TxnOpResponse::Put(_) => Some(Outcome::Written { over: held, revision }),
        TxnOpResponse::Txn(free) => written(free, None, revision),
        found => holder(found),
    }
}

fn holder(response: &TxnOpResponse) -> Option<Outcome> {
    let TxnOpResponse::Get(found) = response else { return None };
    let held = |found: &KeyValue| Outcome::HeldBy { lease: LeaseId::new(found.lease()), value: found.value().to_vec() };
    Some(found.kvs().first().map_or(Outcome::Absent, held))
}
