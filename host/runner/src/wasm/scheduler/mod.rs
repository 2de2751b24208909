//! Scheduler of components that compute for long. They take time slices in turn on all processors but one, each on a
//! dedicated thread, so that requests which are answered at once do not wait behind them.
//!
//! A ticker ends slices: it interrupts every component at its next look at wasmtime's epoch. An instance whose slice is over
//! yields to the other tasks of its thread. From its third whole slice on it computes for long and gets a dedicated thread,
//! which its task gets back through the interrupt handle.
//!
//! To the kernel a dedicated thread is one among others. Linux lets a thread that has just begun run until its next tick, up
//! to 4 ms, whichever thread is woken on the same processor meanwhile, and also where another processor is idle. So a
//! dedicated thread offers its processor to others whenever a thread of the runtime parks or unparks, and every half
//! millisecond from the first tick of the ticker after the thread was dedicated.
//!
//! | file | part |
//! |---|---|
//! | `usage` | recent processor use of an instance, and the decision that it computes for long |
//! | `dedicated` | the dedicated thread, and the processors that such threads use in turn |
//! | `interrupt` | how the task of an instance gets the thread back |
//! | `signal` | the request for it, which the dedicated thread receives |
//! | `tuning` | durations and limits |

mod dedicated;
mod interrupt;
mod signal;
#[cfg(test)]
mod tests;
mod tuning;
mod usage;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::task::yield_now;
use wasmtime::EngineWeak;

use self::{
    dedicated::{Capacity, dedicate},
    interrupt::Resumed,
    tuning::TUNING,
    usage::Slice,
};
pub(crate) use self::{
    interrupt::InterruptHandle,
    usage::{Strides, Usage},
};

/// The scheduler of all engines: its ticks, and the processors and threads for components that compute for long.
pub(crate) struct Scheduler {
    begun: Instant,
    ticks: AtomicU64,
    /// Time of the latest tick, in nanoseconds since the beginning.
    latest: AtomicU64,
    capacity: Arc<Capacity>,
    /// Engines whose components it interrupts.
    engines: ArcSwap<Vec<EngineWeak>>,
    is_ticking: AtomicBool,
}

impl Scheduler {
    /// For that many processors.
    pub(crate) fn new(processors: usize) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            ticks: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            capacity: Arc::new(Capacity::new(processors)),
            engines: ArcSwap::default(),
            is_ticking: AtomicBool::new(false),
        })
    }

    /// Interrupts the components of this engine, too, until the engine is dropped. The ticker runs from the first engine to the
    /// end of the last one; a scheduler without engines is started no more.
    pub(crate) fn start(self: &Arc<Self>, engine: &EngineWeak) -> io::Result<()> {
        self.engines.rcu(|engines| engines.iter().chain([engine]).cloned().collect::<Vec<_>>());
        if self.is_ticking.swap(true, Relaxed) {
            return Ok(());
        }
        let scheduler = Arc::clone(self);
        let ticker = move || {
            while scheduler.increment_epochs(Self::tick) {
                scheduler.sleep();
            }
        };
        thread::Builder::new().name("epoch".to_owned()).spawn(ticker).map(drop)
    }

    /// Interrupts the components of every engine, after `before` if there is one. Forgets engines that were dropped. Returns
    /// false if none is left.
    fn increment_epochs(&self, before: impl FnOnce(&Self)) -> bool {
        let engines = self.engines.load();
        let (mut alive, mut before) = (0, Some(before));
        for engine in engines.iter().filter_map(EngineWeak::upgrade) {
            if let Some(before) = before.take() {
                before(self);
            }
            engine.increment_epoch();
            alive += 1;
        }
        if alive < engines.len() {
            let is_alive = |engine: &&EngineWeak| engine.upgrade().is_some();
            self.engines.rcu(|engines| engines.iter().filter(is_alive).cloned().collect::<Vec<_>>());
        }
        alive > 0
    }

    fn tick(&self) {
        self.latest.store(self.elapsed(), Relaxed);
        self.ticks.fetch_add(1, Relaxed);
    }

    /// Until the next tick.
    fn sleep(&self) {
        let next = Instant::now() + TUNING.slice;
        while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let pause = if self.capacity.is_used() { TUNING.preemption.min(left) } else { left };
            thread::sleep(pause);
            self.preempt();
        }
    }

    /// Makes dedicated threads offer their processors to other threads.
    pub(crate) fn preempt(&self) {
        if self.capacity.is_used() {
            self.increment_epochs(|_| ());
        }
    }

    /// An instance is about to be made. Its first request soon begins another slice, so this one is not measured.
    pub(crate) fn on_instance(&self, usage: &mut Usage) {
        usage.reset();
        usage.interrupt.begin_unmeasured(self.ticks.load(Relaxed));
    }

    /// A request begins: it gets a whole slice, and what the instance computed before was another's. Returns true if the
    /// instance is to be interrupted at once, for a dedicated thread.
    pub(crate) fn on_request(&self, usage: &mut Usage) -> bool {
        let tick = self.ticks.load(Relaxed);
        usage.interrupt.begin(tick);
        usage.on_request(tick)
    }

    /// An instance was interrupted by the epoch. Returns what it waits for before it goes on; `None` where it goes on at once.
    pub(crate) fn on_epoch(self: &Arc<Self>, usage: &mut Usage) -> Option<impl Future<Output = ()> + Send + use<>> {
        let interrupt = Arc::clone(&usage.interrupt);
        match interrupt.resume() {
            Resumed::GoesOn => return None,
            Resumed::GaveBack => {}
            Resumed::NotDedicated if usage.take_at_once() => {}
            Resumed::NotDedicated => {
                let (begun, ended) = (interrupt.begun_tick(), self.ticks.load(Relaxed));
                if begun == ended {
                    // Not a tick, but `preempt`: the slice goes on.
                    return None;
                }
                let late = Duration::from_nanos(self.elapsed().saturating_sub(self.latest.load(Relaxed)));
                usage.on_slice(Slice { begun, ended, late, computed: interrupt.computed() });
            }
        }
        let (scheduler, is_long, cpu) = (Arc::clone(self), usage.is_long(), usage.cpu().clone());
        Some(async move {
            // For other tasks of this thread, and for what may end the instance's work.
            yield_now().await;
            if is_long
                && let Ok(permit) = Arc::clone(&scheduler.capacity.threads).acquire_owned().await
                && let Some(dedicated) = dedicate(&scheduler.capacity, &interrupt.signal, cpu, permit)
            {
                interrupt.dedicate(dedicated);
            }
            interrupt.begin(scheduler.ticks.load(Relaxed));
        })
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
