//! Health of etcd: the status of each endpoint, and the alarms of the cluster.

use crate::etcd::error::Unavailable;

/// Health of etcd; see [`Registrar::health`](crate::Registrar::health).
#[derive(Debug, Clone)]
pub struct Health {
    /// Status of the configured endpoints, in their order.
    pub endpoints: Vec<(String, Result<Member, Unavailable>)>,
    /// Alarms of the cluster; `None` if this user has no permission to read them.
    pub alarms: Option<Vec<Alarm>>,
}

/// Status of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Set while the member knows a leader. Without one it serves no writes and few reads.
    pub has_leader: bool,
    /// Size of its database, in bytes.
    pub database: u64,
    /// Largest size of its database, in bytes; `None` before etcd 3.6.
    pub quota: Option<u64>,
    /// Its release, such as `3.6.14`; empty while it knows no leader.
    pub version: String,
}

/// An alarm, which makes etcd refuse requests until an operator disarms it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// A database is full: etcd refuses writes.
    NoSpace,
    /// The data of members differs.
    Corrupt,
}
