//! State of a context that its other files share: look-ups, and the permits of watches and of calls.

#[cfg(feature = "p3")]
use std::sync::Arc;
#[cfg(feature = "discovery")]
use std::sync::atomic::AtomicBool;

#[cfg(feature = "p3")]
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[cfg(feature = "discovery")]
use crate::lookups::{Lookups, WatchedService};
#[cfg(all(feature = "discovery", feature = "p3"))]
use crate::watch::Pace;

/// Asynchronous calls of one component in progress, at most: an instance can begin any number of them.
#[cfg(feature = "p3")]
pub(super) const MAX_CALLS: usize = 256;

/// The services that a component looks up.
#[cfg(feature = "discovery")]
#[derive(Debug)]
pub(super) struct Discovery {
    pub(super) lookups: Lookups<WatchedService>,
    /// True while a task sweeps `lookups`.
    pub(super) sweeps: AtomicBool,
    /// Offset of the nodes that `resolve` returns, in a service with more than the policy allows.
    pub(super) subset_offset: u32,
}

#[cfg(feature = "discovery")]
impl Discovery {
    pub(super) fn new() -> Self {
        Self { lookups: Lookups::new(), sweeps: AtomicBool::new(false), subset_offset: fastrand::u32(..) }
    }
}

/// Permits of further watches, and the pace of those that are open.
#[cfg(all(feature = "discovery", feature = "p3"))]
#[derive(Debug, Clone)]
pub(super) struct Watches {
    pub(super) permits: Arc<Semaphore>,
    pub(super) pace: Arc<Pace>,
}

#[cfg(all(feature = "discovery", feature = "p3"))]
impl Watches {
    pub(super) fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))), pace: Arc::default() }
    }

    /// Watches that are open, of that many at most.
    pub(super) fn open(&self, max: usize) -> usize {
        max.min(Semaphore::MAX_PERMITS).saturating_sub(self.permits.available_permits())
    }
}

/// A place among the asynchronous calls in progress, given back when it is dropped.
#[cfg(feature = "p3")]
pub(crate) type RunningCall = OwnedSemaphorePermit;

/// Permits of further calls.
#[cfg(feature = "p3")]
#[derive(Debug, Clone)]
pub(super) struct RunningCalls(pub(super) Arc<Semaphore>);

#[cfg(feature = "p3")]
impl RunningCalls {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}
