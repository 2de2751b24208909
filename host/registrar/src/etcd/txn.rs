//! One conditional write: what it says to etcd, and what etcd answers.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

/// One conditional write. Every write of a key names the lease under which the key is believed to stand, so that a
/// write which lands late, or meets somebody else's key, does nothing.
#[derive(Debug)]
pub(crate) enum Op {
    /// Puts the key if it stands under `held`, or under no lease, or not at all.
    Put { key: Arc<str>, value: Vec<u8>, held: i64 },
    /// Deletes the key if it stands under `held`.
    Delete { key: Arc<str>, held: i64 },
}

/// What became of an [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The key stands under the lease now; before, it stood under `over` (0: under none, or it did not exist).
    Written { over: i64 },
    /// The key did stand under `held` and is gone.
    Deleted,
    /// The key did not exist.
    Absent,
    /// Nothing was done: the key stands under another lease (0: a delete met a key without a lease).
    HeldBy(i64),
}

impl Op {
    pub(crate) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => 4 * key.len() + 2 * value.len(),
            Self::Delete { key, .. } => 3 * key.len(),
        }
    }

    pub(super) fn conditional(&self, lease: i64) -> TxnOp {
        let held_by = |key: &Arc<str>, lease| Compare::lease(key.as_bytes(), CompareOp::Equal, lease);
        // With its value: etcd 3.7 leaves the lease out of an answer that has keys only.
        let look = |key: &Arc<str>| TxnOp::get(key.as_bytes(), None);
        TxnOp::txn(match self {
            Self::Put { key, value, held } => {
                let put = || TxnOp::put(key.as_bytes(), value.clone(), Some(PutOptions::new().with_lease(lease)));
                // A missing key compares as one without a lease.
                let free = Txn::new().when([held_by(key, 0)]).and_then([put()]).or_else([look(key)]);
                match held {
                    0 => free,
                    held => Txn::new().when([held_by(key, *held)]).and_then([put()]).or_else([TxnOp::txn(free)]),
                }
            }
            Self::Delete { key, held } => Txn::new()
                .when([held_by(key, *held)])
                .and_then([TxnOp::delete(key.as_bytes(), Some(DeleteOptions::new()))])
                .or_else([look(key)]),
        })
    }

    pub(super) fn outcome(&self, answer: &TxnOpResponse) -> Option<Outcome> {
        let TxnOpResponse::Txn(answer) = answer else { return None };
        match self {
            Self::Put { held, .. } => written(answer, *held),
            Self::Delete { .. } => match answer.op_responses().first()? {
                TxnOpResponse::Delete(gone) => {
                    Some(if gone.deleted() > 0 { Outcome::Deleted } else { Outcome::Absent })
                }
                found => holder(found),
            },
        }
    }
}

fn written(answer: &TxnResponse, held: i64) -> Option<Outcome> {
    match answer.op_responses().first()? {
        TxnOpResponse::Put(_) => Some(Outcome::Written { over: held }),
        TxnOpResponse::Txn(free) => written(free, 0),
        found => holder(found),
    }
}

fn holder(answer: &TxnOpResponse) -> Option<Outcome> {
    let TxnOpResponse::Get(found) = answer else { return None };
    Some(found.kvs().first().map_or(Outcome::Absent, |found| Outcome::HeldBy(found.lease())))
}
