//! Evaluation and application of reads, writes and transactions, as in etcd.

use std::cmp::Ordering;

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest,
    PbTxnRequestOp, PbTxnResponse,
};

use super::failure::Failure;
use super::lessor::Lessor;
use super::store::{Item, Range, Store, Writer};

/// The numbers of `Compare.CompareTarget`.
mod target {
    pub(super) const VERSION: i32 = 0;
    pub(super) const CREATE: i32 = 1;
    pub(super) const MODIFIED: i32 = 2;
    pub(super) const VALUE: i32 = 3;
    pub(super) const LEASE: i32 = 4;
}

/// Response header inside a transaction, where etcd sets only the revision.
fn header(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision, ..PbResponseHeader::default() })
}

/// Evaluates a read; `revision` is the revision in the response's header.
pub(crate) fn range(store: &Store, request: &PbRangeRequest, revision: i64) -> Result<PbRangeResponse, Failure> {
    let range = Range::new(&request.key, &request.range_end);
    let found = store.range_at(&range, request.revision)?;
    let count = i64::try_from(found.len()).expect("fewer keys than i64 counts");
    let mut response = PbRangeResponse { header: header(revision), count, ..PbRangeResponse::default() };
    if request.count_only {
        return Ok(response);
    }
    let within = |value: i64, least: i64, most: i64| (least == 0 || value >= least) && (most == 0 || value <= most);
    let mut items: Vec<&Item> = found
        .into_iter()
        .filter(|item| {
            let r = request;
            within(item.modified, r.min_mod_revision, r.max_mod_revision)
                && within(item.created, r.min_create_revision, r.max_create_revision)
        })
        .collect();
    sort(&mut items, request);
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && items.len() > limit
    {
        items.truncate(limit);
        response.more = true;
    }
    response.kvs = items.into_iter().map(Item::to_proto).collect();
    if request.keys_only {
        for kv in &mut response.kvs {
            kv.value.clear();
        }
    }
    Ok(response)
}

fn sort(items: &mut [&Item], request: &PbRangeRequest) {
    const DESCEND: i32 = 2;
    items.sort_by(|a, b| match request.sort_target {
        1 => a.version.cmp(&b.version),
        2 => a.created.cmp(&b.created),
        3 => a.modified.cmp(&b.modified),
        4 => a.value.cmp(&b.value),
        _ => Ordering::Equal,
    });
    if request.sort_order == DESCEND {
        items.reverse();
    }
}

/// Checks a put: its lease must exist, and an `ignore_` flag needs an existing key.
pub(crate) fn check_put(store: &Store, lessor: &Lessor, request: &PbPutRequest) -> Result<(), Failure> {
    if request.lease != 0 && lessor.get(request.lease).is_none() {
        return Err(Failure::LeaseNotFound);
    }
    let ignores = request.ignore_value || request.ignore_lease;
    if ignores && store.get(&request.key).is_none() {
        return Err(Failure::KeyNotFound);
    }
    Ok(())
}

/// Applies a put after `check_put`.
pub(crate) fn put(writer: &mut Writer<'_>, request: &PbPutRequest) -> PbPutResponse {
    let previous = writer.store().get(&request.key).cloned();
    let value = match &previous {
        Some(item) if request.ignore_value => item.value.clone(),
        _ => Bytes::copy_from_slice(&request.value),
    };
    let lease = match &previous {
        Some(item) if request.ignore_lease => item.lease,
        _ => request.lease,
    };
    writer.put(&Bytes::copy_from_slice(&request.key), value, lease);
    let shown = previous.filter(|_| request.prev_kv);
    PbPutResponse { header: header(writer.revision()), prev_kv: shown.as_ref().map(Item::to_proto) }
}

/// Applies a delete.
pub(crate) fn delete(writer: &mut Writer<'_>, request: &PbDeleteRequest) -> PbDeleteResponse {
    let range = Range::new(&request.key, &request.range_end);
    let prev_kvs: Vec<PbKeyValue> =
        if request.prev_kv { writer.store().range(&range).map(Item::to_proto).collect() } else { Vec::new() };
    let deleted = writer.delete(&range);
    PbDeleteResponse { header: header(writer.revision()), deleted, prev_kvs }
}

/// The branch that a transaction takes, and the branches of its nested transactions.
/// etcd decides all of them before it applies an operation.
#[derive(Debug)]
pub(crate) struct Branches {
    succeeded: bool,
    nested: Vec<Branches>,
}

/// Evaluates the comparisons and checks the operations that will run.
pub(crate) fn decide(store: &Store, lessor: &Lessor, request: &PbTxnRequest) -> Result<Branches, Failure> {
    let branches = compare_all(store, request);
    check(store, lessor, request, &branches)?;
    Ok(branches)
}

fn compare_all(store: &Store, request: &PbTxnRequest) -> Branches {
    let succeeded = request.compare.iter().all(|one| holds(store, one));
    let nested = nested_of(branch(request, succeeded)).map(|txn| compare_all(store, txn)).collect();
    Branches { succeeded, nested }
}

fn branch(request: &PbTxnRequest, succeeded: bool) -> &[PbTxnRequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn nested_of(operations: &[PbTxnRequestOp]) -> impl Iterator<Item = &PbTxnRequest> {
    operations.iter().filter_map(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestTxn(nested)) => Some(nested),
        _ => None,
    })
}

fn check(store: &Store, lessor: &Lessor, request: &PbTxnRequest, branches: &Branches) -> Result<(), Failure> {
    let mut nested = branches.nested.iter();
    for operation in branch(request, branches.succeeded) {
        match &operation.request {
            Some(PbTxnOpRequest::RequestRange(range)) => store.check_revision(range.revision)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check_put(store, lessor, put)?,
            Some(PbTxnOpRequest::RequestTxn(txn)) => {
                let branches = nested.next().expect("every nested transaction was decided");
                check(store, lessor, txn, branches)?;
            }
            Some(PbTxnOpRequest::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Evaluates one comparison. A missing key compares as zeros, except by value, which always fails.
fn holds(store: &Store, compare: &PbCompare) -> bool {
    let range = Range::new(&compare.key, &compare.range_end);
    let mut found = store.range(&range).peekable();
    if found.peek().is_none() {
        return compare.target != target::VALUE && holds_for(None, compare);
    }
    found.all(|item| holds_for(Some(item), compare))
}

fn holds_for(item: Option<&Item>, compare: &PbCompare) -> bool {
    let union = compare.target_union.as_ref();
    let number = |of: fn(&Item) -> i64| item.map_or(0, of);
    let ordering = match compare.target {
        target::VERSION => number(|item| item.version).cmp(&match union {
            Some(PbTargetUnion::Version(wanted)) => *wanted,
            _ => 0,
        }),
        target::CREATE => number(|item| item.created).cmp(&match union {
            Some(PbTargetUnion::CreateRevision(wanted)) => *wanted,
            _ => 0,
        }),
        target::MODIFIED => number(|item| item.modified).cmp(&match union {
            Some(PbTargetUnion::ModRevision(wanted)) => *wanted,
            _ => 0,
        }),
        target::LEASE => number(|item| item.lease).cmp(&match union {
            Some(PbTargetUnion::Lease(wanted)) => *wanted,
            _ => 0,
        }),
        target::VALUE => {
            let value: &[u8] = item.map_or(b"", |item| &item.value);
            value.cmp(match union {
                Some(PbTargetUnion::Value(wanted)) => wanted,
                _ => b"",
            })
        }
        _ => Ordering::Equal,
    };
    match compare.result {
        0 => ordering.is_eq(),
        1 => ordering.is_gt(),
        2 => ordering.is_lt(),
        3 => ordering.is_ne(),
        _ => true,
    }
}

/// Applies a transaction after `decide`.
pub(crate) fn txn(
    writer: &mut Writer<'_>,
    request: &PbTxnRequest,
    branches: &Branches,
) -> Result<PbTxnResponse, Failure> {
    let mut nested = branches.nested.iter();
    let mut responses = Vec::new();
    for operation in branch(request, branches.succeeded) {
        let response = match &operation.request {
            Some(PbTxnOpRequest::RequestRange(request)) => {
                let revision = writer.revision();
                let response = range(writer.store(), request, revision)?;
                Some(PbTxnOpResponse::ResponseRange(response))
            }
            Some(PbTxnOpRequest::RequestPut(request)) => Some(PbTxnOpResponse::ResponsePut(put(writer, request))),
            Some(PbTxnOpRequest::RequestDeleteRange(request)) => {
                Some(PbTxnOpResponse::ResponseDeleteRange(delete(writer, request)))
            }
            Some(PbTxnOpRequest::RequestTxn(request)) => {
                let branches = nested.next().expect("every nested transaction was decided");
                let mut response = txn(writer, request, branches)?;
                response.header = Some(PbResponseHeader::default());
                Some(PbTxnOpResponse::ResponseTxn(response))
            }
            None => None,
        };
        responses.push(PbResponseOp { response });
    }
    Ok(PbTxnResponse { header: header(writer.revision()), succeeded: branches.succeeded, responses })
}
