//! State of the lease that keeps a key in etcd, as `ls` and `watch` show it and filter by it.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// State of the lease that keeps a key in etcd, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LeaseState {
    /// A lease that is renewed
    Ok,
    /// A lease whose state etcd did not report in time
    Unknown,
    /// A lease whose renewal is overdue: less than a third of its time is left
    Expiring,
    /// No lease: the key outlives its host
    NoLease,
    /// A lease that etcd has ended; the key is about to go
    LeaseGone,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Unknown => "?",
            Self::Expiring => "expiring",
            Self::NoLease => "no-lease",
            Self::LeaseGone => "lease-gone",
        })
    }
}
