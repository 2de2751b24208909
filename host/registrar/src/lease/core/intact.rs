//! Memory of audits in a row that found everything as it should be, so that the next one may read less.

use tokio::time::Instant;

/// Revision of etcd at which audits in a row have found keys as they should be. A change of any key in etcd ends it, so that
/// little more than the revision is read from an etcd in which nothing is written.
#[derive(Debug, Default)]
pub(super) struct Intact {
    pub(super) revision: i64,
    /// Keys whose revisions were compared. They are different ones, as long as nothing is written and no audit fails.
    pub(super) compared: usize,
    /// Time from which all keys are compared again.
    pub(super) until: Option<Instant>,
}
