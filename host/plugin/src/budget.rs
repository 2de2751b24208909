//! A budget of actions: a number of them at once, and one more each interval after that.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Budget of one component (generic cell rate algorithm: one time, no count, no timer).
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) burst: u32,
    pub(crate) interval: Duration,
    /// Time at which the whole budget is available again.
    whole_at: Mutex<Option<Instant>>,
}

impl Budget {
    pub(crate) fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, whole_at: Mutex::new(None) }
    }

    /// Spends one action; false when there is none left.
    pub(crate) fn spend(&self, now: Instant) -> bool {
        let mut whole_at = self.whole_at();
        let debt = whole_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let all = self.interval.saturating_mul(self.burst);
        let after = debt.saturating_add(self.interval);
        let has_room = after <= all;
        if has_room {
            *whole_at = now.checked_add(after);
        }
        has_room
    }

    /// Takes back an action that failed.
    pub(crate) fn refund(&self) {
        let mut whole_at = self.whole_at();
        *whole_at = whole_at.and_then(|at| at.checked_sub(self.interval));
    }

    fn whole_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.whole_at.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Budget;

    #[test]
    fn a_budget_is_spent_at_once_and_comes_back_one_by_one() {
        let (second, begun) = (Duration::from_secs(1), Instant::now());
        let budget = Budget::new(3, second);
        let spent = |after: Duration| (0..10).filter(|_| budget.spend(begun + after)).count();
        assert_eq!(spent(Duration::ZERO), 3);
        assert_eq!(spent(second / 2), 0);
        assert_eq!(spent(second), 1);
        assert_eq!(spent(3 * second), 2);
        assert_eq!(spent(100 * second), 3);
    }

    #[test]
    fn a_failed_action_costs_nothing() {
        let (budget, now) = (Budget::new(1, Duration::from_secs(60)), Instant::now());
        budget.refund();
        assert!(budget.spend(now));
        assert!(!budget.spend(now));
        budget.refund();
        assert!(budget.spend(now));
        assert!(!budget.spend(now));
    }

    #[test]
    fn a_budget_of_nothing_permits_nothing_and_one_without_an_interval_everything() {
        let now = Instant::now();
        assert!(!Budget::new(0, Duration::from_secs(1)).spend(now));
        assert!((0..1000).all(|_| Budget::new(1, Duration::ZERO).spend(now)));
    }
}
