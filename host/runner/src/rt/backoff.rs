//! Pauses between attempts that fail. The registrar draws its own from the generator of a lease, so that a seed of the simulation
//! repeats.

use std::time::Duration;

/// Exponential backoff with jitter: the pause doubles with each failure, up to a longest one. Half of it is jitter, so that
/// what failed at the same time is not tried again at the same time.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause after one more failure.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Begins anew after a success, or after a change that may have mended the cause.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Backoff;

    #[test]
    fn the_pause_doubles_up_to_the_longest_and_at_most_half_of_it_is_jitter() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(6));
        for ceiling in [1, 2, 4, 6, 6].map(Duration::from_secs) {
            let pause = backoff.next_pause();
            assert!(pause >= ceiling / 2 && pause <= ceiling, "{pause:?} of {ceiling:?}");
        }
        assert_eq!(backoff.failures(), 5);
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_secs(1));
    }

    #[test]
    fn no_number_of_failures_is_too_large() {
        let mut backoff =
            Backoff { failures: u32::MAX, ..Backoff::new(Duration::from_secs(1), Duration::from_secs(60)) };
        assert!(backoff.next_pause() >= Duration::from_secs(30));
    }
}
