//! Admission of requests: concurrency permits and the queue in front of them.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Admission of requests to one service, shared by all revisions of its component.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) capacity: u32,
    /// Permits of requests that run or are queued.
    pub(crate) queue: Arc<Semaphore>,
    /// Permits of requests that run.
    pub(crate) slots: Arc<Semaphore>,
}

impl Admission {
    /// Admits `concurrency` requests, and as many to the queue.
    pub(crate) fn new(concurrency: u32) -> Self {
        let capacity = concurrency.saturating_mul(2);
        Self {
            capacity,
            queue: Arc::new(Semaphore::new(capacity as usize)),
            slots: Arc::new(Semaphore::new(concurrency as usize)),
        }
    }
}
