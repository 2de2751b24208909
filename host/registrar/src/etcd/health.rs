//! How an etcd is, as its members tell: each endpoint by itself, and what the cluster is alarmed about.

use crate::error::Unavailable;

/// What [`Registrar::health`](crate::Registrar::health) found.
#[derive(Debug, Clone)]
pub struct Health {
    /// The endpoints that are known here, in their order.
    pub endpoints: Vec<(String, Result<Member, Unavailable>)>,
    /// What the cluster is alarmed about; `None` where that is not this user's to see.
    pub alarms: Option<Vec<Alarm>>,
}

/// How one member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Whether it knows a leader. Without one it neither writes nor answers most questions.
    pub has_leader: bool,
    /// How large its database is, in bytes.
    pub database: u64,
    /// How large that may become; `None` where etcd does not tell, which it does from 3.6 on.
    pub quota: Option<u64>,
}

/// Why etcd refuses to do a part of its work until somebody has done something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// A database is full: nothing is written.
    NoSpace,
    /// The data of members differ.
    Corrupt,
}
