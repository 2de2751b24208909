//! Finds out that this machine was suspended: the clock that timers go by stood still meanwhile, and the one of the time since
//! the machine started did not. The time of day has no part in it: that may be set.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

/// How often the two clocks are compared; a suspended machine has found out so long after it woke, at the latest.
const LOOK: Duration = Duration::from_millis(500);
/// Shortest suspension that counts.
const LEAP: Duration = Duration::from_secs(1);

/// Adds up in `suspended` by how much time went by unnoticed, for ever.
pub(crate) async fn follow(suspended: watch::Sender<Duration>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        ticks.tick().await;
        if let Some(leap) = leap(&mut known, clocks::suspended()) {
            suspended.send_modify(|total| *total += leap);
        }
    }
}

/// What of the time that the machine was suspended is news. A reading that failed says nothing.
fn leap(known: &mut Option<Duration>, suspended: Option<Duration>) -> Option<Duration> {
    let suspended = suspended?;
    let before = *known.get_or_insert(suspended);
    let leap = suspended.checked_sub(before).filter(|leap| *leap >= LEAP)?;
    *known = Some(suspended);
    Some(leap)
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

    use super::{clocks, leap};

    #[test]
    fn only_time_that_timers_did_not_see_is_a_leap() {
        let millis = |millis| Some(Duration::from_millis(millis));
        let mut known = None;
        // How long the machine was suspended before is no news.
        assert_eq!(leap(&mut known, millis(3_600_000)), None);
        assert_eq!(leap(&mut known, millis(3_600_400)), None);
        assert_eq!(leap(&mut known, None), None);
        assert_eq!(leap(&mut known, millis(3_630_000)), millis(30_000));
        assert_eq!(leap(&mut known, millis(3_629_999)), None);
        assert_eq!(leap(&mut known, millis(3_630_500)), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_machine_that_is_not_suspended_does_not_leap() {
        let before = clocks::suspended().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let growth = clocks::suspended().unwrap().abs_diff(before);
        assert!(growth < Duration::from_millis(100), "{growth:?}");
    }
}
