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

use super::{
    dedicated::Dedicated,
    signal::{Signal, thread_cpu},
};

/// Outcome of an interruption for the dedicated thread of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resumed {
    /// The instance has none, or computes on another thread.
    NotDedicated,
    /// The instance goes on on it.
    GoesOn,
    /// The instance gave it back.
    GaveBack,
}

/// Interrupt handle of an instance. Waking it interrupts the instance, because its task has something else to do: the
/// request's time is up, say.
#[derive(Debug, Default)]
pub(crate) struct InterruptHandle {
    pub(super) signal: Signal,
    /// Tick in which the slice began, and the processor time of its thread then, in nanoseconds.
    begun_tick: AtomicU64,
    begun_cpu: AtomicU64,
    /// The slice is measured, and the instance has kept its thread since it began.
    is_held: AtomicBool,
    task: AtomicWaker,
    /// Mirror of `dedicated`, which spares the lock.
    is_dedicated: AtomicBool,
    dedicated: Mutex<Option<Dedicated>>,
}

impl InterruptHandle {
    /// For a task that drives only this instance.
    pub(crate) fn exclusive(self: Arc<Self>) -> Arc<Self> {
        self.signal.set_exclusive();
        self
    }

    /// A slice begins in this tick, on this thread.
    pub(super) fn begin(&self, tick: u64) {
        self.begun_tick.store(tick, Relaxed);
        self.begun_cpu.store(thread_cpu(), Relaxed);
        self.is_held.store(true, Relaxed);
    }

    /// A slice begins in this tick, without its processor time, which takes a system call.
    pub(super) fn begin_unmeasured(&self, tick: u64) {
        self.begun_tick.store(tick, Relaxed);
        self.is_held.store(false, Relaxed);
    }

    /// Tick in which the slice began.
    pub(super) fn begun_tick(&self) -> u64 {
        self.begun_tick.load(Relaxed)
    }

    /// Processor time of the slice so far; `None` if it is not measured, or the instance gave back its thread since it began.
    pub(super) fn computed(&self) -> Option<Duration> {
        let computed = || thread_cpu().saturating_sub(self.begun_cpu.load(Relaxed));
        self.is_held.load(Relaxed).then(|| Duration::from_nanos(computed()))
    }

    /// Keeps the dedicated thread until [`Self::release`]. A driver may poll the instance once more after [`Self::poll`];
    /// waking the task ensures another poll, which releases the thread.
    pub(super) fn dedicate(&self, dedicated: Dedicated) {
        *self.dedicated() = Some(dedicated);
        self.is_dedicated.store(true, Relaxed);
        self.task.wake();
    }

    /// Goes on with an instance that was interrupted, if it may keep its dedicated thread.
    pub(super) fn resume(&self) -> Resumed {
        if !self.is_dedicated.swap(false, Relaxed) {
            return Resumed::NotDedicated;
        }
        // Without the lock, since it may wait for a processor.
        let Some(dedicated) = self.dedicated().take().filter(Dedicated::is_here) else { return Resumed::NotDedicated };
        let kept = dedicated.resume(&self.signal);
        let resumed = if kept.is_some() { Resumed::GoesOn } else { Resumed::GaveBack };
        self.is_dedicated.store(kept.is_some(), Relaxed);
        *self.dedicated() = kept;
        resumed
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
        self.signal.clear();
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
    pub(super) fn slice_begun_at(&self) -> Option<std::time::Instant> {
        self.dedicated().as_ref().map(Dedicated::slice_begun_at)
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
        self.signal.request();
        self.task.wake();
    }
}
