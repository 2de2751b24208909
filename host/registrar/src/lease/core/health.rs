//! The health of a lease.

/// Health of a lease as a whole, which the status of each of its keys follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseHealth {
    Steady,
    /// The last renewal is not confirmed, or etcd refuses grants, writes or audits.
    Suspect,
    /// The lease is lost or given up; its keys are about to be written under a new one.
    Recovering,
}
