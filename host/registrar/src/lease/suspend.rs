//! Detection of a suspended machine: CLOCK_BOOTTIME goes on meanwhile, and CLOCK_MONOTONIC, which timers go by, does not.
//! The time of day is not used, since it may be set.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// Interval between comparisons of the two clocks, and so the longest time until a suspension is detected.
const INTERVAL: Duration = Duration::from_millis(500);
/// Shortest suspension that counts.
const MIN_SUSPENSION: Duration = Duration::from_secs(1);

/// Adds up in `suspended_for` the time that timers did not see, without end.
pub(crate) async fn detect(suspended_for: watch::Sender<Duration>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        ticks.tick().await;
        if let Some(by) = unaccounted(&mut known, clocks::suspended()) {
            suspended_for.send_modify(|total| *total += by);
        }
    }
}

/// Part of the time that the machine was suspended that is not in `known` yet. A failed reading counts as none.
fn unaccounted(known: &mut Option<Duration>, suspended: Option<Duration>) -> Option<Duration> {
    let suspended = suspended?;
    let before = *known.get_or_insert(suspended);
    let by = suspended.checked_sub(before).filter(|by| *by >= MIN_SUSPENSION)?;
    *known = Some(suspended);
    Some(by)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod clocks {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    /// Longest time that reading both clocks may take. A thread that waits for a processor in between reads two moments.
    const MOMENT: Duration = Duration::from_millis(100);
    const TRIES: usize = 3;

    /// Time that this machine was suspended since it started: what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, which timers
    /// go by.
    pub(super) fn suspended() -> Option<Duration> {
        (0..TRIES).find_map(|_| {
            let [before, boot, after] = [ClockId::Monotonic, ClockId::Boottime, ClockId::Monotonic].map(read);
            let (before, boot, after) = (before?, boot?, after?);
            (after.checked_sub(before)? < MOMENT).then(|| boot.saturating_sub(after))
        })
    }

    fn read(clock: ClockId) -> Option<Duration> {
        Duration::try_from(clock_gettime(clock)).ok()
    }
}

/// Elsewhere the timers' clock goes on in a suspended machine, or nothing tells that it did not.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod clocks {
    pub(super) fn suspended() -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{clocks, unaccounted};

    #[test]
    fn only_time_that_timers_did_not_see_counts_once() {
        let millis = |millis| Some(Duration::from_millis(millis));
        let mut known = None;
        // Time before the first reading does not count.
        assert_eq!(unaccounted(&mut known, millis(3_600_000)), None);
        assert_eq!(unaccounted(&mut known, millis(3_600_400)), None);
        assert_eq!(unaccounted(&mut known, None), None);
        assert_eq!(unaccounted(&mut known, millis(3_630_000)), millis(30_000));
        assert_eq!(unaccounted(&mut known, millis(3_629_999)), None);
        assert_eq!(unaccounted(&mut known, millis(3_630_500)), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_machine_that_runs_is_not_suspended() {
        let before = clocks::suspended().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let growth = clocks::suspended().unwrap().abs_diff(before);
        assert!(growth < Duration::from_millis(100), "{growth:?}");
    }
}
