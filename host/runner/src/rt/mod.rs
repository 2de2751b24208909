//! Additions to the tokio runtime: backoff, a tracked executor and pooled timers.

pub(crate) mod backoff;
pub(crate) mod executor;
pub(crate) mod timers;
