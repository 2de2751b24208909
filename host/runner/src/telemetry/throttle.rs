//! Throttle of repeated log lines: one in an interval, with the number of suppressed ones.

use std::{
    fmt,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Gate of one kind of log line.
#[derive(Debug)]
pub(crate) struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

/// Number of occurrences that were not logged since the last line. Shown behind a line, empty where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suppressed(u64);

impl Throttle {
    pub(crate) const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { last: None, suppressed: 0 }) }
    }

    /// Counts an occurrence, and admits the first of an interval.
    pub(crate) fn admit(&self, now: Instant) -> Option<Suppressed> {
        let mut state = self.state.lock();
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(Suppressed(std::mem::take(&mut state.suppressed)))
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            suppressed => write!(f, " ({suppressed} more since the last such line)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Throttle;

    #[test]
    fn one_line_in_an_interval_has_the_number_of_suppressed_ones() {
        let (throttle, begun) = (Throttle::new(Duration::from_secs(10)), Instant::now());
        let admit = |after| throttle.admit(begun + Duration::from_secs(after)).map(|suppressed| suppressed.to_string());
        assert_eq!(admit(0).as_deref(), Some(""));
        assert_eq!([admit(1), admit(9)], [None, None]);
        assert_eq!(admit(10).as_deref(), Some(" (2 more since the last such line)"));
        assert_eq!(admit(20).as_deref(), Some(""));
    }
}
