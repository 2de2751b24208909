//! Durations and limits of the scheduler, in one place.

use std::time::Duration;

/// Durations and limits of the scheduler. They were chosen by measurement on two processors: `make bench-serving` has the p99
/// latency beside a component that computes, `make isolation` the renewals beside components that burn every processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// Length of a time slice on a thread of the runtime, and the interval between two ticks.
    pub(super) slice: Duration,
    /// Length of a time slice on a dedicated thread. Longer, since every change costs the task that wakes in that moment.
    pub(super) long_slice: Duration,
    /// Interval at which dedicated threads offer their processors to other threads.
    pub(super) preemption: Duration,
    /// An instance that gave its thread back in this slice counts as computing if it is interrupted within this time after the
    /// tick. An instance that was waiting at the tick notices the end of its slice at any later time.
    pub(super) tick_tolerance: Duration,
    /// Processor time of a slice from which an instance that missed a tick counts as uninterruptible: a single instruction
    /// that fills a large memory, or a call that requests very many random bytes. Ticks come twice as often.
    pub(super) stride: Duration,
    /// Ticks for which requests of such a component begin on a dedicated thread: ten seconds.
    pub(super) stride_memory: u64,
    /// Longest wait for another thread of the runtime to take over this thread's other duties. A thread is always free, but
    /// the machine may be busy.
    pub(super) hand_over: Duration,
    /// Dedicated threads beyond those that compute; instances wait for a processor on them. Further instances wait without one.
    pub(super) waiting_threads: usize,
    /// Longest time on a dedicated thread while other instances wait for one.
    pub(super) thread_share: Duration,
}

pub(super) const TUNING: Tuning = Tuning {
    slice: Duration::from_millis(5),
    long_slice: Duration::from_millis(20),
    preemption: Duration::from_micros(500),
    tick_tolerance: Duration::from_micros(250),
    stride: Duration::from_millis(10),
    stride_memory: 2000,
    hand_over: Duration::from_millis(20),
    waiting_threads: 16,
    thread_share: Duration::from_millis(100),
};
