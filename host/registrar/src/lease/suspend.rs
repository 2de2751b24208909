//! Finds out that this machine was suspended: the time of day went on, and the clock that timers go by stood still.

use std::time::{Duration, SystemTime};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

/// How often the two clocks are compared; a suspended machine has found out so long after it woke, at the latest.
const LOOK: Duration = Duration::from_millis(500);
/// How far one may get ahead of the other before that is a leap. A clock that is set forward looks like one, too, which
/// costs each lease a renewal.
const LEAP: Duration = Duration::from_secs(1);

/// Adds up in `leaps` by how much time went by unnoticed, for ever.
pub(crate) async fn follow(leaps: watch::Sender<Duration>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = (Instant::now(), SystemTime::now());
    loop {
        ticks.tick().await;
        let now = (Instant::now(), SystemTime::now());
        if let Some(leap) = leap(now.0 - before.0, now.1.duration_since(before.1).ok()) {
            leaps.send_modify(|total| *total += leap);
        }
        before = now;
    }
}

/// What of the time of day the timers have not seen; `None` for a clock that was set back.
fn leap(timers: Duration, day: Option<Duration>) -> Option<Duration> {
    day?.checked_sub(timers).filter(|ahead| *ahead >= LEAP)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::leap;

    #[test]
    fn only_a_clock_that_is_far_ahead_has_leapt() {
        let millis = Duration::from_millis;
        assert_eq!(leap(millis(500), Some(millis(30_500))), Some(millis(30_000)));
        assert_eq!(leap(millis(500), Some(millis(1400))), None);
        // The process was suspended, and both clocks saw it.
        assert_eq!(leap(millis(30_000), Some(millis(30_001))), None);
        assert_eq!(leap(millis(500), None), None);
        assert_eq!(leap(millis(500), Some(millis(0))), None);
    }
}
