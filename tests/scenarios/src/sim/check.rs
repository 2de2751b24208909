//! Checks before a request is applied: malformed requests, too large and contradictory transactions.

use std::collections::BTreeSet;

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbRangeRequest, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp};
use tonic_prost::prost::Message;

use super::failure::{Failure, MESSAGE_LIMIT};
use super::history::TransactionSize;
use super::store::Range;

/// etcd's default for `--max-txn-ops`.
pub(crate) const MAX_OPERATIONS: usize = 128;
/// etcd's default for `--max-request-bytes`.
const MAX_REQUEST: usize = 3 * 512 * 1024;
/// Size of the envelope (ids and a tag) that etcd adds before it measures a request, to within a few bytes.
const ENVELOPE: usize = 16;
/// Overhead of each put in etcd's quota.
const PUT_OVERHEAD: usize = 256;

/// Checks the size of a request that changes data.
pub(crate) fn size(request: &impl Message) -> Result<(), Failure> {
    let size = request.encoded_len();
    if size > MESSAGE_LIMIT {
        Err(Failure::MessageTooLarge(size))
    } else if size + ENVELOPE > MAX_REQUEST {
        Err(Failure::TooLarge)
    } else {
        Ok(())
    }
}

pub(crate) fn range(request: &PbRangeRequest) -> Result<(), Failure> {
    if request.key.is_empty() {
        Err(Failure::EmptyKey)
    } else if !(0..=2).contains(&request.sort_order) || !(0..=4).contains(&request.sort_target) {
        Err(Failure::InvalidSort)
    } else {
        Ok(())
    }
}

pub(crate) fn put(request: &PbPutRequest) -> Result<(), Failure> {
    if request.key.is_empty() {
        Err(Failure::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Failure::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(Failure::LeaseProvided)
    } else {
        Ok(())
    }
}

pub(crate) fn delete(request: &PbDeleteRequest) -> Result<(), Failure> {
    if request.key.is_empty() { Err(Failure::EmptyKey) } else { Ok(()) }
}

/// Measures a transaction.
pub(crate) fn measure(request: &PbTxnRequest) -> TransactionSize {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    TransactionSize { operations, bytes: request.encoded_len() }
}

/// Checks a transaction completely, as etcd's `kvServer.Txn` does.
pub(crate) fn txn(request: &PbTxnRequest) -> Result<(), Failure> {
    operations(request, MAX_OPERATIONS)?;
    touched(&request.success)?;
    touched(&request.failure)?;
    Ok(())
}

/// Checks the number of operations; a nested transaction gets the rest of its parent's budget.
fn operations(request: &PbTxnRequest, budget: usize) -> Result<(), Failure> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = budget.checked_sub(count) else {
        return Err(Failure::TooManyOperations);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Failure::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(PbTxnOpRequest::RequestRange(nested)) => range(nested)?,
            Some(PbTxnOpRequest::RequestPut(nested)) => put(nested)?,
            Some(PbTxnOpRequest::RequestDeleteRange(nested)) => delete(nested)?,
            Some(PbTxnOpRequest::RequestTxn(nested)) => operations(nested, left)?,
            None => return Err(Failure::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a list of operations can put, and the ranges that it can delete.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Vec<u8>>,
    deletes: Vec<Range>,
}

impl Touched {
    fn put(&mut self, key: &[u8], allowed: &BTreeSet<Vec<u8>>) -> Result<(), Failure> {
        let twice = self.puts.contains(key) && !allowed.contains(key);
        if twice || self.deletes.iter().any(|range| range.contains(key)) {
            return Err(Failure::DuplicateKey);
        }
        self.puts.insert(key.to_vec());
        Ok(())
    }
}

/// Fails if one key is put twice, or put and deleted. The two branches of a transaction do not conflict.
fn touched(operations: &[PbTxnRequestOp]) -> Result<Touched, Failure> {
    let none = BTreeSet::new();
    let mut all = Touched::default();
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestDeleteRange(delete)) = &operation.request {
            all.deletes.push(Range::new(&delete.key, &delete.range_end));
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestTxn(nested)) = &operation.request {
            let then = touched(&nested.success)?;
            let otherwise = touched(&nested.failure)?;
            for key in &then.puts {
                all.put(key, &none)?;
            }
            for key in &otherwise.puts {
                all.put(key, &then.puts)?;
            }
            all.deletes.extend(then.deletes);
            all.deletes.extend(otherwise.deletes);
        }
    }
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestPut(put)) = &operation.request {
            all.put(&put.key, &none)?;
        }
    }
    Ok(all)
}

/// Returns true if a transaction may write, as etcd sees it: it has a put or a delete on some path.
pub(crate) fn writes(request: &PbTxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) => true,
        Some(PbTxnOpRequest::RequestTxn(nested)) => writes(nested),
        _ => false,
    })
}

/// Cost of a transaction in the quota: only puts count, so that a full etcd can still be emptied.
pub(crate) fn cost(request: &PbTxnRequest) -> usize {
    let sum = |operations: &[PbTxnRequestOp]| -> usize {
        operations
            .iter()
            .map(|operation| match &operation.request {
                Some(PbTxnOpRequest::RequestPut(put)) => PUT_OVERHEAD + put.key.len() + put.value.len(),
                Some(PbTxnOpRequest::RequestTxn(nested)) => cost(nested),
                _ => 0,
            })
            .sum()
    };
    sum(&request.success).max(sum(&request.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_of(key: &str) -> PbTxnRequestOp {
        let request = PbTxnOpRequest::RequestPut(PbPutRequest { key: key.into(), ..PbPutRequest::default() });
        PbTxnRequestOp { request: Some(request) }
    }

    fn delete_of(key: &str, end: &str) -> PbTxnRequestOp {
        let request = PbTxnOpRequest::RequestDeleteRange(PbDeleteRequest {
            key: key.into(),
            range_end: end.into(),
            prev_kv: false,
        });
        PbTxnRequestOp { request: Some(request) }
    }

    fn then(operations: Vec<PbTxnRequestOp>) -> PbTxnRequest {
        PbTxnRequest { success: operations, ..PbTxnRequest::default() }
    }

    fn nested(request: PbTxnRequest) -> PbTxnRequestOp {
        PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestTxn(request)) }
    }

    #[test]
    fn nested_transactions_share_the_budget() {
        let keys = |count: usize| (0..count).map(|n| put_of(&format!("k{n}"))).collect();
        assert_eq!(txn(&then(keys(128))), Ok(()));
        assert_eq!(txn(&then(keys(129))), Err(Failure::TooManyOperations));
        assert_eq!(txn(&then(vec![nested(then(keys(127)))])), Ok(()));
        assert_eq!(txn(&then(vec![nested(then(keys(128)))])), Err(Failure::TooManyOperations));
    }

    #[test]
    fn a_key_is_touched_once() {
        let twice = then(vec![put_of("a"), put_of("a")]);
        assert_eq!(txn(&twice), Err(Failure::DuplicateKey));
        let covered = then(vec![put_of("b"), delete_of("a", "c")]);
        assert_eq!(txn(&covered), Err(Failure::DuplicateKey));
        let beside = then(vec![put_of("c"), delete_of("a", "c")]);
        assert_eq!(txn(&beside), Ok(()));
        let below = then(vec![put_of("a"), nested(then(vec![put_of("a")]))]);
        assert_eq!(txn(&below), Err(Failure::DuplicateKey));
        let branches =
            PbTxnRequest { success: vec![put_of("a")], failure: vec![put_of("a")], ..PbTxnRequest::default() };
        assert_eq!(txn(&then(vec![nested(branches)])), Ok(()));
    }
}
