//! A problem in etcd, and its cure.

use serde::Serialize;

/// A problem.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct Finding {
    /// Kind of the problem, for scripts.
    pub(super) kind: &'static str,
    /// The key in etcd; none for a problem of etcd itself.
    pub(super) key: Option<String>,
    /// Description of the problem.
    pub(super) found: String,
    /// Cure.
    pub(super) cure: String,
    /// Shell command of the cure; null if there is none.
    pub(super) command: Option<String>,
    /// The deletion that `--fix` offers.
    #[serde(skip)]
    pub(super) fix: Option<Fix>,
}

/// A key that may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fix {
    pub(super) key: String,
    /// The revision that wrote it, as it was examined.
    pub(super) revision: i64,
    /// Reason for which this key is deleted only after a question.
    pub(super) caution: Option<&'static str>,
}
