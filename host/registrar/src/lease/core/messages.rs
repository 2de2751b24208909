//! Messages of the lease core: inputs, the requests to etcd that it has made, and its other actions.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::Error,
    etcd::{Comparison, Failure, Granted, LeaseView, Op, Outcome},
    layout::Layout,
    lease_id::LeaseId,
    node::{ServerNode, Weight},
    options::{Ownership, Ttl},
    status::{Event, SharedKey},
};

/// Sender of a command's outcome.
pub(crate) type Reply = oneshot::Sender<Result<(), Error>>;

/// Request to keep a node in etcd under one key.
#[derive(Debug)]
pub(crate) struct RegisterRequest {
    pub(crate) key: Arc<str>,
    pub(crate) node: Arc<ServerNode>,
    pub(crate) layout: Layout,
    pub(crate) ttl: Ttl,
    pub(crate) ownership: Ownership,
    /// Time until which etcd is to confirm it.
    pub(crate) deadline: Instant,
}

/// Command of the registrar or of a registration's handle. A key is the one of that handle: a later registration of the same
/// name has another, which the command does not concern.
#[derive(Debug)]
pub(crate) enum Command {
    Register {
        request: Box<RegisterRequest>,
        shared: Arc<SharedKey>,
        reply: Reply,
    },
    /// Grants a lease for a key that is about to be registered, and keeps it until that time.
    GrantAhead(Instant),
    SetWeight {
        key: Arc<SharedKey>,
        weight: Weight,
        reply: Reply,
    },
    Replace {
        key: Arc<SharedKey>,
        node: Arc<ServerNode>,
        /// The layout that writes it.
        layout: Layout,
        reply: Reply,
    },
    /// Deletes the key, unless a registration owns it by now.
    Stop {
        key: Arc<SharedKey>,
        reply: Reply,
    },
    /// Stops every key and revokes every lease.
    End,
}

/// Everything that the core reacts to, besides time.
#[derive(Debug)]
pub(crate) enum Input {
    Command(Command),
    Response(Response),
    Renewal(Renewal),
    /// The handle of a registration was dropped.
    HandleDropped,
    /// The machine was suspended for so long, which timers did not see.
    Suspended(Duration),
    /// etcd is reachable again, as another task of this host found out.
    EtcdIsBack,
}

/// Request to etcd. The core makes one at a time; renewals are apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Grant {
        ttl: Ttl,
    },
    Commit {
        lease: LeaseId,
        ops: Vec<Op>,
    },
    Revoke {
        lease: LeaseId,
    },
    /// Reads the keys under a lease, and compares the revisions of some of them.
    Audit {
        lease: LeaseId,
        revisions: Vec<(Arc<str>, i64)>,
        /// Revision of etcd at which all keys were as they should be: while it is the latest one, they still are.
        intact_at: Option<i64>,
    },
}

/// Outcome of a [`Request`].
#[derive(Debug)]
pub(crate) enum Response {
    Granted(Result<Granted, Failure>),
    Committed {
        lease: LeaseId,
        ops: Vec<Op>,
        outcome: Result<Vec<Outcome>, Failure>,
    },
    Revoked {
        lease: LeaseId,
        outcome: Result<(), Failure>,
    },
    Audited {
        lease: LeaseId,
        /// `None` if nothing was written in etcd since `intact_at`.
        keys: Result<Option<LeaseView>, Failure>,
        revisions: Result<Comparison, Failure>,
    },
}

/// Outcome of one renewal, or the end of a stream of renewals between two of them.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) lease: LeaseId,
    pub(crate) requested_at: Instant,
    /// The TTL from then on.
    pub(crate) outcome: Result<Duration, Failure>,
}

/// Work for the task around the core, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Makes a request, whose response is an input.
    Request { request: Request, deadline: Duration },
    /// Renews a lease that has that TTL; the outcome is an input.
    Renew { lease: LeaseId, ttl: Duration, deadline: Duration },
    /// Drops the stream of renewals of a lease, and the renewal in progress.
    Disconnect(LeaseId),
    /// Sends the outcome of a command.
    Reply(Reply, Result<(), Error>),
    /// Publishes an event.
    Report(Event),
    /// Releases a key that is out of etcd for good.
    Release(Arc<str>),
}
