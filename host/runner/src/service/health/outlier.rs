//! Outlier detection: failures of a service within a window, and the length of its quarantine.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::telemetry::service_metrics::Tally;

/// Failed requests within the window from which on a component counts as broken, if they are no fewer than half of all.
const MIN_FAILURES: u64 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// Pause before a component in quarantine is probed; it doubles with each failed probe, and with each relapse.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Time without a relapse after which a component has recovered.
const PROBATION: Duration = Duration::from_secs(60);

/// Detects a component that fails most of its requests.
#[derive(Debug)]
pub(super) struct OutlierDetector {
    /// Samples of the counters within the window, the oldest first.
    samples: VecDeque<(Instant, Tally)>,
    /// Pause before the next probe of a component in quarantine.
    pub(super) pause: Duration,
    released_at: Option<Instant>,
    /// Until then no failure counts.
    excused_until: Option<Instant>,
}

impl OutlierDetector {
    /// A detector for which earlier failures do not count.
    pub(super) fn new(now: Instant, tally: Tally) -> Self {
        Self { samples: VecDeque::from([(now, tally)]), pause: FIRST_PAUSE, released_at: None, excused_until: None }
    }

    /// Adds a sample of the counters. Returns the requests of the window.
    pub(super) fn sample(&mut self, now: Instant, tally: Tally) -> Tally {
        while self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
        if self.released_at.is_some_and(|at| now.duration_since(at) > PROBATION) {
            (self.released_at, self.pause) = (None, FIRST_PAUSE);
        }
        let (_, before) = *self.samples.front().unwrap_or(&(now, tally));
        self.samples.push_back((now, tally));
        tally.since(before)
    }

    /// Returns true if a component with these requests is broken.
    pub(super) fn is_outlier(&self, now: Instant, Tally { failed, all, .. }: Tally) -> bool {
        let is_excused = self.excused_until.is_some_and(|until| now < until);
        !is_excused && failed >= MIN_FAILURES && failed.saturating_mul(2) >= all
    }

    /// Begins a quarantine, a longer one after a relapse.
    pub(super) fn quarantine(&mut self) {
        if self.released_at.take().is_some() {
            self.extend_pause();
        }
        self.samples.clear();
    }

    /// Doubles the pause, and returns it.
    pub(super) fn extend_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.pause
    }

    /// Ends a quarantine. Failures during it do not count.
    pub(super) fn release(&mut self, now: Instant, tally: Tally) {
        self.released_at = Some(now);
        self.samples = VecDeque::from([(now, tally)]);
    }

    /// Lets no failure count for a while: the component is needed.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.excused_until = Some(now + PROBATION);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{FIRST_PAUSE, OutlierDetector, PROBATION, Tally, WINDOW};

    #[test]
    fn a_few_failures_among_many_responses_are_tolerated() {
        let begun = Instant::now();
        let mut detector = OutlierDetector::new(begun, tally(0, 0));
        assert!(!is_outlier(&mut detector, begun + Duration::from_secs(1), 5, 11));
        let mut detector = OutlierDetector::new(begun, tally(0, 0));
        assert!(!is_outlier(&mut detector, begun + Duration::from_secs(2), 4, 4));
    }

    #[test]
    fn failures_before_the_window_do_not_count() {
        let begun = Instant::now();
        let mut detector = OutlierDetector::new(begun, tally(0, 0));
        assert!(!is_outlier(&mut detector, begun + Duration::from_secs(1), 4, 4));
        assert!(!is_outlier(&mut detector, begun + WINDOW + Duration::from_secs(2), 5, 5));
    }

    #[test]
    fn a_relapse_extends_the_pause_and_a_recovery_resets_it() {
        let begun = Instant::now();
        let mut detector = OutlierDetector::new(begun, tally(0, 0));
        assert!(is_outlier(&mut detector, begun, 5, 10));
        detector.quarantine();
        assert_eq!(detector.pause, FIRST_PAUSE);
        detector.release(begun, tally(6, 12));
        assert!(is_outlier(&mut detector, begun, 11, 17));
        detector.quarantine();
        assert_eq!(detector.pause, FIRST_PAUSE * 2);
        detector.release(begun, tally(11, 17));
        assert!(!is_outlier(&mut detector, begun + PROBATION + Duration::from_secs(1), 11, 17));
        assert_eq!(detector.pause, FIRST_PAUSE);
    }

    #[test]
    fn a_service_that_is_needed_is_excused_for_a_while() {
        let begun = Instant::now();
        let mut detector = OutlierDetector::new(begun, tally(0, 0));
        detector.excuse(begun);
        assert!(!is_outlier(&mut detector, begun + PROBATION - Duration::from_secs(1), 5, 5));
        assert!(is_outlier(&mut detector, begun + PROBATION, 10, 10));
    }

    fn tally(failed: u64, all: u64) -> Tally {
        Tally { failed, all, ..Tally::default() }
    }

    fn is_outlier(detector: &mut OutlierDetector, at: Instant, failed: u64, all: u64) -> bool {
        let requests = detector.sample(at, tally(failed, all));
        detector.is_outlier(at, requests)
    }
}
