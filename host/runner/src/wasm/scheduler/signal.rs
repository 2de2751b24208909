//! The signal by which the task of an instance requests its thread back. The task's side sends it, the dedicated thread
//! receives it.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use futures::task::AtomicWaker;
use rustix::time::{ClockId, clock_gettime};

/// Signal of one instance.
#[derive(Debug, Default)]
pub(super) struct Signal {
    is_requested: AtomicBool,
    /// Set if the task drives only this instance. A task that drives more gets its thread back after every slice.
    is_exclusive: AtomicBool,
    /// The dedicated thread on which the instance waits for a processor.
    thread: AtomicWaker,
}

impl Signal {
    /// Requests the thread, also where the instance waits for a processor on it.
    pub(super) fn request(&self) {
        self.is_requested.store(true, Relaxed);
        self.thread.wake();
    }

    /// Withdraws the request: the task has its thread.
    pub(super) fn clear(&self) {
        self.is_requested.store(false, Relaxed);
    }

    /// Returns true while the instance is to give its thread back.
    pub(super) fn is_requested(&self) -> bool {
        self.is_requested.load(Relaxed)
    }

    /// Waits until the thread is requested.
    pub(super) fn requested(&self) -> impl Future<Output = ()> + Unpin {
        poll_fn(|cx| {
            self.thread.register(cx.waker());
            if self.is_requested() { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Notes that the task drives only this instance.
    pub(super) fn set_exclusive(&self) {
        self.is_exclusive.store(true, Relaxed);
    }

    /// Returns true if the task drives only this instance.
    pub(super) fn is_exclusive(&self) -> bool {
        self.is_exclusive.load(Relaxed)
    }
}

/// Processor time of this thread, in nanoseconds.
pub(super) fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(Duration::try_from(time).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
