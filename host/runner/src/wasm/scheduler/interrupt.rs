//! Interrupt handle of an instance: how its task gets the thread back while the instance computes.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};

use super::dedicated::Dedicated;

/// Interrupt handle of an instance. Waking it interrupts the instance, because its task has something else to do: the
/// request's time is up, say.
#[derive(Debug, Default)]
pub(crate) struct InterruptHandle {
    is_requested: AtomicBool,
    /// The task drives this instance and nothing else. Other tasks get their thread back after every slice.
    pub(super) is_exclusive: AtomicBool,
    /// Tick in which the slice began, and the processor time of its thread then, in nanoseconds.
    since: AtomicU64,
    since_cpu: AtomicU64,
    /// The instance has had its thread since then.
    is_held: AtomicBool,
    task: AtomicWaker,
    /// The dedicated thread on which the instance waits for a processor.
    pub(super) thread: AtomicWaker,
    /// Mirror of `dedicated`, which spares the lock.
    is_dedicated: AtomicBool,
    dedicated: Mutex<Option<Dedicated>>,
}

impl InterruptHandle {
    /// The task drives this instance and nothing else.
    pub(crate) fn exclusive(self: Arc<Self>) -> Arc<Self> {
        self.is_exclusive.store(true, Relaxed);
        self
    }

    /// Returns true while the instance is to give its thread back.
    pub(super) fn is_requested(&self) -> bool {
        self.is_requested.load(Relaxed)
    }

    /// A slice begins in this tick, on this thread.
    pub(super) fn begin(&self, tick: u64) {
        self.since.store(tick, Relaxed);
        self.since_cpu.store(thread_cpu(), Relaxed);
        self.is_held.store(true, Relaxed);
    }

    /// Tick in which the slice began.
    pub(super) fn since(&self) -> u64 {
        self.since.load(Relaxed)
    }

    /// Processor time of the slice so far; `None` for an instance that gave back its thread since its slice began.
    pub(super) fn computed(&self) -> Option<Duration> {
        let computed = || thread_cpu().saturating_sub(self.since_cpu.load(Relaxed));
        self.is_held.load(Relaxed).then(|| Duration::from_nanos(computed()))
    }

    /// Keeps the dedicated thread until [`Self::release`], which the next poll of the task calls. That poll comes soon: it is
    /// the cure for a driver that polls the instance once more after [`Self::poll`], and leaves the thread then.
    pub(super) fn dedicate(&self, dedicated: Dedicated) {
        *self.dedicated() = Some(dedicated);
        self.is_dedicated.store(true, Relaxed);
        self.task.wake();
    }

    /// Goes on where the instance computes on its dedicated thread. Returns whether it may; `None` for an instance that
    /// computes on another thread.
    pub(super) fn resume(&self) -> Option<bool> {
        if !self.is_dedicated.swap(false, Relaxed) {
            return None;
        }
        // Without the lock, since it may wait for a processor.
        let dedicated = self.dedicated().take().filter(Dedicated::is_here)?;
        let resumed = dedicated.resume(self);
        let goes_on = resumed.is_some();
        *self.dedicated() = resumed;
        self.is_dedicated.store(goes_on, Relaxed);
        Some(goes_on)
    }

    /// Gives the dedicated thread and its processor back, if the instance has one.
    pub(crate) fn release(&self) {
        if self.is_dedicated.swap(false, Relaxed) {
            drop(self.dedicated().take());
        }
    }

    /// The instance has given back its thread. Polls `end`, which may end its work; the instance is interrupted once `end` is
    /// to be polled again.
    pub(crate) fn poll<T>(
        self: &Arc<Self>,
        cx: &Context<'_>,
        end: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.release();
        self.is_requested.store(false, Relaxed);
        self.is_held.store(false, Relaxed);
        self.task.register(cx.waker());
        end(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    /// Drives `work` of the instance until it is done, or until `ended` is, which is the error.
    pub(crate) async fn until<T, E>(
        self: Arc<Self>,
        ended: impl Future<Output = E>,
        work: impl Future<Output = T>,
    ) -> Result<T, E> {
        let (mut ended, mut work) = (pin!(ended), pin!(work));
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(worked) => {
                self.release();
                Poll::Ready(Ok(worked))
            }
            Poll::Pending => self.poll(cx, |cx| ended.as_mut().poll(cx)).map(Err),
        })
        .await
    }

    /// Beginning of the slice on a dedicated thread.
    #[cfg(test)]
    pub(super) fn slice(&self) -> Option<std::time::Instant> {
        self.dedicated().as_ref().map(Dedicated::slice)
    }

    fn dedicated(&self) -> MutexGuard<'_, Option<Dedicated>> {
        self.dedicated.lock()
    }
}

impl Wake for InterruptHandle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_requested.store(true, Relaxed);
        self.thread.wake();
        self.task.wake();
    }
}

/// Processor time of this thread, in nanoseconds.
pub(super) fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(Duration::try_from(time).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
