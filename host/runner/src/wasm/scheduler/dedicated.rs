//! A dedicated thread: an instance that computes for long computes on it, and no other task waits for it.

use std::{
    fmt, mem,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use futures::{
    executor::block_on,
    future::{Either, select},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{block_in_place, spawn_blocking},
};

use super::{
    signal::{Signal, thread_cpu},
    tuning::TUNING,
};
use crate::telemetry::service_metrics::CpuTime;

/// Processors and threads for instances that compute for long.
pub(super) struct Capacity {
    /// Permits for each processor but one, at least one: dedicated threads that compute.
    pub(super) processors: Arc<Semaphore>,
    /// Permits for dedicated threads, whether they compute or wait for a processor.
    pub(super) threads: Arc<Semaphore>,
    /// Number of instances on dedicated threads.
    long: AtomicUsize,
}

impl Capacity {
    /// For that many processors.
    pub(super) fn new(processors: usize) -> Self {
        let most = processors.saturating_sub(1).max(1);
        let (processors, threads) = (Semaphore::new(most), Semaphore::new(most + TUNING.waiting_threads));
        Self { processors: Arc::new(processors), threads: Arc::new(threads), long: AtomicUsize::new(0) }
    }

    /// Returns true if an instance is on a dedicated thread.
    pub(super) fn is_used(&self) -> bool {
        self.long.load(Relaxed) > 0
    }
}

/// The dedicated thread of an instance, and its processor.
pub(super) struct Dedicated {
    capacity: Arc<Capacity>,
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
/// network, timers), and this one waits for a processor. `None` where no other thread comes, or the instance is interrupted.
pub(super) fn dedicate(
    capacity: &Arc<Capacity>,
    signal: &Signal,
    cpu: CpuTime,
    permit: OwnedSemaphorePermit,
) -> Option<Dedicated> {
    block_in_place(|| {
        // At the end of this block tokio takes the duties back if no thread has them. A blocking task that has begun shows that
        // the thread which takes them over, and was woken before it, has begun too.
        let (begun, begins) = mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "it ends at once, and is waited for below")]
        drop(spawn_blocking(move || begun.send(())));
        // Without another thread this one has to look after the others soon.
        begins.recv_timeout(TUNING.hand_over).ok()?;
        let processor = processor(capacity, signal)?;
        capacity.long.fetch_add(1, Relaxed);
        let (capacity, thread, now) = (Arc::clone(capacity), thread::current().id(), Instant::now());
        Some(Dedicated {
            capacity,
            thread,
            thread_since: now,
            slice_begun_at: now,
            processor: Some(processor),
            counted: thread_cpu(),
            cpu,
            _permit: permit,
        })
    })
}

/// Waits on this thread for a processor; `None` where the instance is interrupted first.
fn processor(capacity: &Capacity, signal: &Signal) -> Option<OwnedSemaphorePermit> {
    let processor = pin!(Arc::clone(&capacity.processors).acquire_owned());
    match block_on(select(signal.requested(), processor)) {
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
    pub(super) fn resume(mut self, signal: &Signal) -> Option<Self> {
        let before = mem::replace(&mut self.counted, thread_cpu());
        self.cpu.inc_by(Duration::from_nanos(self.counted.saturating_sub(before)).as_secs_f64());
        let others_wait = self.capacity.threads.available_permits() == 0;
        let most = match signal.is_exclusive() {
            false => TUNING.slice,
            true if others_wait => TUNING.thread_share,
            true => Duration::MAX,
        };
        if signal.is_requested() || self.thread_since.elapsed() >= most {
            return None;
        }
        // In a block, in which the duties of the thread are handed over again if they have come back.
        block_in_place(|| {
            if self.slice_begun_at.elapsed() < TUNING.long_slice {
                thread::yield_now();
            } else {
                drop(self.processor.take());
                self.processor = processor(&self.capacity, signal);
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
        self.capacity.long.fetch_sub(1, Relaxed);
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
