//! Budget of log lines: a rate with a burst, and reports of the lines beyond it.

use std::time::{Duration, Instant};

/// Burst, in seconds of the rate.
const BURST: f64 = 10.0;
/// Interval between two reports of dropped lines, at least.
const REPORT: Duration = Duration::from_secs(1);

/// Token bucket of lines.
#[derive(Debug)]
pub(crate) struct LineBudget {
    lines: f64,
    filled: Instant,
    dropped: u64,
    reported: Option<Instant>,
}

/// Fate of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineFate {
    /// The line is logged, after a report of this many dropped lines, if any.
    Logged(Option<u64>),
    /// The line is dropped, with a report.
    FirstDropped,
    Dropped,
}

impl LineBudget {
    pub(crate) fn new(now: Instant, lines_per_second: u32) -> Self {
        Self { lines: f64::from(lines_per_second) * BURST, filled: now, dropped: 0, reported: None }
    }

    /// Takes a line out of the budget, if there is one.
    pub(crate) fn take(&mut self, now: Instant, lines_per_second: u32) -> LineFate {
        let rate = f64::from(lines_per_second);
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        (self.lines, self.filled) = ((self.lines + filled).min(rate * BURST), now);
        if self.lines >= 1.0 {
            self.lines -= 1.0;
            return LineFate::Logged(self.due(now));
        }
        self.dropped += 1;
        if self.dropped == 1 && self.may_report(now) {
            self.reported = Some(now);
            return LineFate::FirstDropped;
        }
        LineFate::Dropped
    }

    /// Number of dropped lines to report, once a while.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.dropped == 0 || !self.may_report(now) {
            return None;
        }
        self.reported = Some(now);
        Some(self.take_dropped())
    }

    /// Number of dropped lines that were not reported.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn may_report(&self, now: Instant) -> bool {
        self.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LineBudget, LineFate};

    #[test]
    fn lines_beyond_the_rate_are_dropped_and_counted() {
        let begun = Instant::now();
        let mut budget = LineBudget::new(begun, 10);
        let mut take = |millis| budget.take(begun + Duration::from_millis(millis), 10);
        assert!((0..100).all(|_| take(0) == LineFate::Logged(None)));
        assert_eq!([take(0), take(0), take(50)], [LineFate::FirstDropped, LineFate::Dropped, LineFate::Dropped]);
        assert_eq!([take(100), take(100)], [LineFate::Logged(None), LineFate::Dropped]);
        assert_eq!([take(1100), take(1100)], [LineFate::Logged(Some(4)), LineFate::Logged(None)]);
    }
}
