//! Skeleton.

/// Why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// d
    #[error("{0}")]
    Denied(String),
    /// n
    #[error("{0}")]
    NotEtcd(String),
}
