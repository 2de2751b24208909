//! Recent processor use of an instance, and the decision that it computes for long. Time comes as an argument.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{interrupt::InterruptHandle, tuning::TUNING};
use crate::telemetry::service_metrics::CpuTime;

/// Credit added for a slice spent computing; a slice spent waiting subtracts one. So a request that waits time and again, and
/// happens to compute during a tick now and then, never computes for long, whereas a request that computes and gets a processor
/// half of the time does.
const WHOLE: u32 = 2;
/// Largest credit of a short request: two whole slices, of which the first may have been cut short.
const SHORT: u32 = 2 * WHOLE;
/// Largest credit.
const MOST: u32 = 4 * WHOLE;

/// Recent processor use of an instance, and its interrupt handle.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    credit: u32,
    /// The instance gets a dedicated thread before it computes.
    at_once: bool,
    strides: Strides,
    cpu: CpuTime,
    pub(crate) interrupt: Arc<InterruptHandle>,
}

/// Memory of a service that its component computes in long strides, between which alone it can be interrupted. All instances
/// of the service share it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Strides {
    /// Tick until which requests begin on a dedicated thread.
    until: Arc<AtomicU64>,
}

/// The slice of an instance that was interrupted at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    /// Tick in which the slice began.
    pub(super) begun: u64,
    /// Tick at which the slice ended.
    pub(super) ended: u64,
    /// Time from that tick to the interruption.
    pub(super) late: Duration,
    /// Processor time of the slice; `None` for an instance that gave back its thread meanwhile.
    pub(super) computed: Option<Duration>,
}

impl Usage {
    /// For an instance of the service that shares these strides, and whose processor time is counted there.
    pub(crate) fn new(strides: Strides, cpu: CpuTime) -> Self {
        Self { strides, cpu, ..Self::default() }
    }

    /// Counter of the processor time of the service.
    pub(super) fn cpu(&self) -> &CpuTime {
        &self.cpu
    }

    /// Forgets what an earlier request computed.
    pub(crate) fn reset(&mut self) {
        (self.credit, self.at_once) = (0, false);
    }

    /// A request begins. Returns true if the instance gets a dedicated thread at once.
    pub(super) fn on_request(&mut self, tick: u64) -> bool {
        self.reset();
        self.at_once = self.strides.until.load(Relaxed) > tick;
        self.at_once
    }

    /// Returns true, once a request, for an instance that gets a dedicated thread before it computes.
    pub(super) fn take_at_once(&mut self) -> bool {
        let at_once = mem::take(&mut self.at_once);
        if at_once {
            self.credit = MOST;
        }
        at_once
    }

    /// A slice has ended.
    pub(super) fn on_slice(&mut self, slice: Slice) {
        let is_whole = slice.computed.is_some() || slice.late <= TUNING.tick_tolerance;
        self.credit = match is_whole {
            true => MOST.min(self.credit + WHOLE),
            false => self.credit.saturating_sub(1),
        };
        // An instance that can be interrupted is interrupted at the first tick, however late the ticker is.
        let missed_a_tick = slice.ended > slice.begun + 1;
        if is_whole {
            // Sampled: the shorter an instance computes, the less often a tick meets it.
            let sampled = slice.computed.filter(|_| missed_a_tick).unwrap_or(TUNING.slice);
            self.cpu.inc_by(sampled.as_secs_f64());
        }
        if missed_a_tick && slice.computed.is_some_and(|computed| computed >= TUNING.stride) {
            self.credit = MOST;
            self.strides.until.store(slice.ended + TUNING.stride_memory, Relaxed);
        }
    }

    /// Returns true for an instance that is to compute on a dedicated thread.
    pub(super) fn is_long(&self) -> bool {
        self.credit > SHORT
    }
}

#[cfg(test)]
impl Strides {
    /// Requests begin on a dedicated thread from now on.
    pub(super) fn set_for_test(&self) {
        self.until.store(u64::MAX, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tuning::TUNING, CpuTime, Slice, Strides, Usage};

    /// A slice that ended in time, or one whose instance was interrupted late and gave back nothing.
    fn slice(is_whole: bool) -> Slice {
        match is_whole {
            true => Slice { begun: 0, ended: 1, late: Duration::ZERO, computed: Some(TUNING.slice) },
            false => Slice { begun: 0, ended: 1, late: 2 * TUNING.tick_tolerance, computed: None },
        }
    }

    /// Number of these slices after which the instance computes for long.
    fn long(slices: impl IntoIterator<Item = bool>) -> usize {
        let mut usage = Usage::default();
        let mut is_long = |is_whole| {
            usage.on_slice(slice(is_whole));
            usage.is_long()
        };
        slices.into_iter().filter(|is_whole| is_long(*is_whole)).count()
    }

    #[test]
    fn a_request_that_waits_time_and_again_never_computes_for_long() {
        assert_eq!(long((0..1000).map(|turn| turn % 3 == 0)), 0);
    }

    #[test]
    fn a_request_that_gets_a_processor_half_of_the_time_computes_for_long() {
        assert_eq!(long([true; 1000]), 998);
        assert!(long((0..1000).map(|turn| turn % 2 == 0)) > 980);
        // And no longer once it waits.
        assert_eq!(long([[true; 10], [false; 10], [false; 10]].concat()), 8 + 3);
    }

    #[test]
    fn an_instance_that_waited_but_is_interrupted_at_the_tick_was_computing() {
        let mut usage = Usage::default();
        for late in [Duration::ZERO, TUNING.tick_tolerance, TUNING.tick_tolerance] {
            usage.on_slice(Slice { begun: 0, ended: 1, late, computed: None });
        }
        assert!(usage.is_long());
    }

    #[test]
    fn processor_time_is_sampled_at_the_ticks() {
        let mut usage = Usage::default();
        let slice = Slice { begun: 0, ended: 1, late: Duration::ZERO, computed: Some(TUNING.slice / 10) };
        usage.on_slice(slice);
        assert_eq!(usage.cpu().get(), TUNING.slice.as_secs_f64());
        // It was waiting when the tick came.
        usage.on_slice(Slice { late: TUNING.slice, computed: None, ..slice });
        assert_eq!(usage.cpu().get(), TUNING.slice.as_secs_f64());
        usage.on_slice(Slice { ended: 4, computed: Some(3 * TUNING.slice), ..slice });
        assert_eq!(usage.cpu().get(), 4.0 * TUNING.slice.as_secs_f64());
    }

    #[test]
    fn one_long_stride_gives_all_requests_of_the_service_a_dedicated_thread_for_a_while() {
        let strides = Strides::default();
        let (mut first, mut second) =
            (Usage::new(strides.clone(), CpuTime::default()), Usage::new(strides, CpuTime::default()));
        assert!(!first.on_request(7) && !first.take_at_once());
        let late_ticker = Slice { begun: 6, ended: 7, late: Duration::ZERO, computed: Some(TUNING.stride) };
        first.on_slice(late_ticker);
        assert!(!first.is_long() && !second.on_request(7), "it was interrupted at the first tick");
        first.on_slice(Slice { begun: 7, ended: 9, ..late_ticker });
        assert!(first.is_long());
        let last = 9 + TUNING.stride_memory - 1;
        assert!(second.on_request(last) && second.take_at_once());
        assert!(second.is_long() && !second.take_at_once(), "once a request");
        assert!(!second.on_request(last + 1) && !second.is_long());
    }
}
