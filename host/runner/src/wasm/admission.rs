//! Admission of requests: concurrency permits and the queue in front of them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Admission of requests to one service, shared by all revisions of its component.
#[derive(Clone)]
pub(crate) struct Admission {
    /// Permits of requests that run or are queued.
    pub(crate) queue: Permits,
    /// Permits of requests that run.
    pub(crate) slots: Permits,
}

/// Permits whose number may change.
#[derive(Clone)]
pub(crate) struct Permits {
    permits: Arc<Semaphore>,
    total: Arc<AtomicU32>,
    /// Permits that are taken away once they are given back.
    leaving: TaskTracker,
}

impl Admission {
    /// Admits `concurrency` requests, and as many to the queue.
    pub(crate) fn new(concurrency: u32) -> Self {
        Self { queue: Permits::new(concurrency.saturating_mul(2)), slots: Permits::new(concurrency) }
    }

    /// Admits another number from now on. Requests that are admitted stay so.
    pub(crate) fn resize(&self, concurrency: u32) {
        self.queue.resize(concurrency.saturating_mul(2));
        self.slots.resize(concurrency);
    }
}

impl Permits {
    pub(crate) fn new(total: u32) -> Self {
        let (permits, total) = (Arc::new(Semaphore::new(total as usize)), Arc::new(AtomicU32::new(total)));
        Self { permits, total, leaving: TaskTracker::new() }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total.load(Relaxed)
    }

    /// The permits, to acquire one.
    pub(crate) fn get(&self) -> Arc<Semaphore> {
        Arc::clone(&self.permits)
    }

    /// Number of permits in use.
    pub(crate) fn used(&self) -> usize {
        (self.total() as usize).saturating_sub(self.permits.available_permits())
    }

    /// Changes the number of permits. Those that are in use stay so, and leave once they are given back.
    pub(crate) fn resize(&self, total: u32) {
        let before = self.total.swap(total, Relaxed);
        match (total.checked_sub(before), before.saturating_sub(total)) {
            (Some(more), _) => self.permits.add_permits(more as usize),
            (None, fewer) => {
                let left = fewer as usize - self.permits.forget_permits(fewer as usize);
                let permits = self.get();
                self.leaving.spawn(async move {
                    for _ in 0..left {
                        // The permits are never closed.
                        let Ok(permit) = permits.acquire().await else { return };
                        permit.forget();
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Permits;

    #[tokio::test]
    async fn permits_in_use_leave_once_they_are_given_back() {
        let permits = Permits::new(3);
        let held: Vec<_> = (0..3).map(|_| permits.get().try_acquire_owned().unwrap()).collect();
        permits.resize(1);
        assert_eq!((permits.total(), permits.used()), (1, 1));
        tokio::task::yield_now().await;
        drop(held);
        tokio::task::yield_now().await;
        assert_eq!((permits.get().available_permits(), permits.used()), (1, 0));
        permits.resize(4);
        assert_eq!((permits.get().available_permits(), permits.total()), (4, 4));
    }
}
