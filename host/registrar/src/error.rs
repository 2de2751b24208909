//! Errors of this crate: each variant is something that a caller can act on.

use std::{sync::Arc, time::Duration};

use crate::{
    etcd::{Failure, Unavailable},
    lease_id::LeaseId,
    node::Invalid,
};

/// Error of a call to a [`Registrar`](crate::Registrar) or a [`Registration`](crate::Registration) failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument breaks its rule; repeating the call does not help.
    #[error(transparent)]
    Invalid(#[from] Invalid),

    /// A limit of this registrar is reached.
    #[error("{what} is limited to {limit}")]
    Quota {
        /// Name of the limit.
        what: &'static str,
        /// The limit.
        limit: usize,
    },

    /// The key belongs to a live lease of another host, and the ownership policy leaves it there.
    #[error("{key} is held by {} of another host", holder(.lease))]
    Conflict {
        /// The key.
        key: Arc<str>,
        /// The lease that holds it, if it is known.
        lease: Option<LeaseId>,
    },

    /// This registrar already keeps that key.
    #[error("{0} is registered here already")]
    Duplicate(Arc<str>),

    /// etcd could not be reached, or refused.
    #[error("etcd: {0}")]
    Unavailable(#[source] Unavailable),

    /// The answer did not come in time. After `register` nothing stays registered; after `stop` the deletion goes on.
    #[error("{what} took longer than {after:?}{}", because(.why))]
    Timeout {
        /// Operation that took too long.
        what: &'static str,
        /// The deadline that passed.
        after: Duration,
        /// Last response of etcd, if there was one.
        why: Option<Unavailable>,
    },

    /// The registration, or the whole registrar, has ended.
    #[error("the registration, or its registrar, has ended")]
    Ended,
}

impl Error {
    pub(crate) fn unavailable(failure: Failure) -> Self {
        Self::Unavailable(failure.into())
    }
}

fn holder(lease: &Option<LeaseId>) -> String {
    lease.map_or_else(|| "a lease".to_owned(), |lease| format!("lease {lease}"))
}

fn because(why: &Option<Unavailable>) -> String {
    why.as_ref().map_or_else(String::new, |why| format!(": etcd: {why}"))
}
