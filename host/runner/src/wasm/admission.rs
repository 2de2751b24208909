//! Admission of requests: concurrency permits and the queue in front of them.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Admission of requests to one service, shared by all revisions of its component.
#[derive(Clone)]
pub(crate) struct Places {
    pub(crate) most: u32,
    /// Permits of requests that run or wait.
    pub(crate) hall: Arc<Semaphore>,
    /// Permits of requests that run.
    pub(crate) room: Arc<Semaphore>,
}

impl Places {
    /// Lets `concurrency` requests run, and as many wait.
    pub(crate) fn new(concurrency: u32) -> Self {
        let most = concurrency.saturating_mul(2);
        Self {
            most,
            hall: Arc::new(Semaphore::new(most as usize)),
            room: Arc::new(Semaphore::new(concurrency as usize)),
        }
    }
}
