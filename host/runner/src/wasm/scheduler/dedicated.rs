//! A dedicated thread: an instance that computes for long computes on it, and no other task waits for it.

use std::{
    fmt,
    future::poll_fn,
    mem,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    task::Poll,
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use futures::{
    executor::block_on,
    future::{Either, select},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    task::{block_in_place, spawn_blocking},
};

use super::{InterruptHandle, Scheduler, interrupt::thread_cpu, tuning::TUNING};
use crate::telemetry::service_metrics::CpuTime;

/// The dedicated thread of an instance, and its processor.
pub(super) struct Dedicated {
    scheduler: Arc<Scheduler>,
    thread: ThreadId,
    /// Time at which the instance got the thread.
    thread_since: Instant,
    /// Time at which it got the processor.
    slice_begun_at: Instant,
    processor: Option<OwnedSemaphorePermit>,
    /// Processor time of the thread that is counted already, in nanoseconds, and the counter.
    counted: u64,
    cpu: CpuTime,
    _permit: OwnedSemaphorePermit,
}

/// Makes this thread the instance's: another thread takes over what this one has to do besides (tasks that are ready, the
/// network, timers), and this one waits for a processor. Without effect where no other thread comes, or the instance is
/// interrupted.
pub(super) fn dedicate(
    scheduler: &Arc<Scheduler>,
    interrupt: &InterruptHandle,
    cpu: CpuTime,
    permit: OwnedSemaphorePermit,
) {
    block_in_place(|| {
        // At the end of this block tokio takes the duties back if no thread has them. A blocking task that has begun shows that
        // the thread which takes them over, and was woken before it, has begun too.
        let (begun, begins) = mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "it ends at once, and is waited for below")]
        drop(spawn_blocking(move || begun.send(())));
        if begins.recv_timeout(TUNING.hand_over).is_err() {
            // Without another thread this one has to look after the others soon.
            return;
        }
        let Some(processor) = processor(scheduler, interrupt) else { return };
        scheduler.long.fetch_add(1, Relaxed);
        let (scheduler, thread, now) = (Arc::clone(scheduler), thread::current().id(), Instant::now());
        let processor = Some(processor);
        interrupt.dedicate(Dedicated {
            scheduler,
            thread,
            thread_since: now,
            slice_begun_at: now,
            processor,
            counted: thread_cpu(),
            cpu,
            _permit: permit,
        });
    });
}

/// Waits on this thread for a processor; `None` where the instance is interrupted first.
fn processor(scheduler: &Scheduler, interrupt: &InterruptHandle) -> Option<OwnedSemaphorePermit> {
    let interrupted = poll_fn(|cx| {
        interrupt.thread.register(cx.waker());
        if interrupt.is_requested() { Poll::Ready(()) } else { Poll::Pending }
    });
    let processor = pin!(Arc::clone(&scheduler.processors).acquire_owned());
    match block_on(select(interrupted, processor)) {
        Either::Left(_) => None,
        Either::Right((processor, _)) => {
            // Lets threads that are queued on this processor run first.
            thread::yield_now();
            processor.ok()
        }
    }
}

impl Dedicated {
    /// Returns true on this very thread. After the last poll of a driver another thread may drive the instance.
    pub(super) fn is_here(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// Goes on with the instance, after other instances had their slices if its own is over. `None`, and all is given back,
    /// where its time on the thread is up, or it is interrupted.
    pub(super) fn resume(mut self, interrupt: &InterruptHandle) -> Option<Self> {
        let before = mem::replace(&mut self.counted, thread_cpu());
        self.cpu.inc_by(Duration::from_nanos(self.counted.saturating_sub(before)).as_secs_f64());
        let others_wait = self.scheduler.threads.available_permits() == 0;
        let most = match interrupt.is_exclusive.load(Relaxed) {
            false => TUNING.slice,
            true if others_wait => TUNING.thread_share,
            true => Duration::MAX,
        };
        if interrupt.is_requested() || self.thread_since.elapsed() >= most {
            return None;
        }
        // In a block, in which the duties of the thread are handed over again if they have come back.
        block_in_place(|| {
            if self.slice_begun_at.elapsed() < TUNING.long_slice {
                thread::yield_now();
            } else {
                drop(self.processor.take());
                self.processor = processor(&self.scheduler, interrupt);
                self.slice_begun_at = Instant::now();
            }
        });
        self.processor.is_some().then_some(self)
    }

    #[cfg(test)]
    pub(super) fn slice_begun_at(&self) -> Instant {
        self.slice_begun_at
    }
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        self.scheduler.long.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Dedicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedicated")
            .field("thread", &self.thread)
            .field("since", &self.thread_since)
            .finish_non_exhaustive()
    }
}
