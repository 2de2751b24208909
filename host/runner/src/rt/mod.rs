//! Additions to the tokio runtime: a tracked executor and pooled timers.

pub(crate) mod executor;
pub(crate) mod timers;
