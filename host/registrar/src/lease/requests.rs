//! Requests of the core, as calls of etcd.

use std::{sync::Arc, time::Duration};

use futures::future::join;

use crate::{
    etcd::{Comparison, Etcd, LeaseView},
    lease::core::messages::{Request, Response},
    lease_id::LeaseId,
};

/// Sends a request, and waits for the response.
pub(super) async fn send(etcd: Etcd, request: Request, deadline: Duration) -> Response {
    match request {
        Request::Grant { ttl } => Response::Granted(etcd.grant(ttl, deadline).await),
        Request::Commit { lease, ops } => {
            let outcome = etcd.commit(&ops, lease, deadline).await;
            Response::Committed { lease, ops, outcome }
        }
        Request::Revoke { lease } => Response::Revoked { lease, outcome: etcd.revoke(lease, deadline).await },
        Request::Audit { lease, revisions, intact_at } => audit(&etcd, lease, &revisions, intact_at, deadline).await,
    }
}

/// Audits a lease. Reads only the revision of etcd if that is enough.
async fn audit(
    etcd: &Etcd,
    lease: LeaseId,
    revisions: &[(Arc<str>, i64)],
    intact_at: Option<i64>,
    deadline: Duration,
) -> Response {
    if intact_at.is_some() {
        let unchanged = |view: &LeaseView| Some(view.revision) == intact_at;
        match etcd.look_at(lease, false, deadline).await {
            Ok(view) if !unchanged(&view) => {}
            known => {
                let (keys, revisions) = (known.map(|_| None), Ok(Comparison::default()));
                return Response::Audited { lease, keys, revisions };
            }
        }
    }
    let keys = etcd.look_at(lease, true, deadline);
    let (keys, revisions) = join(keys, etcd.compare(revisions, deadline)).await;
    Response::Audited { lease, keys: keys.map(Some), revisions }
}
