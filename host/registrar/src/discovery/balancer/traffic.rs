//! Traffic of a balancer: its calls in flight, and the budget of their retries.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU32, Ordering},
};

/// Retries that a balancer may make before it has earned any, so that the first failures of a rarely called service are retried.
const RESERVE: i64 = 10;
/// Retries that are saved up, at most.
const MOST_SAVED: i64 = 100;
/// Parts of a retry in which the budget is counted.
const PARTS: i64 = 1000;

/// Traffic of a balancer. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    in_flight: AtomicU32,
    /// Saved retries, in parts of one.
    saved: AtomicI64,
}

impl Default for Inner {
    fn default() -> Self {
        Self { in_flight: AtomicU32::new(0), saved: AtomicI64::new(RESERVE * PARTS) }
    }
}

/// A call in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Traffic);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Begins a call, which earns `share` of a retry. Returns `None` if `max` calls are in flight already.
    pub fn begin(&self, max: u32, share: f64) -> Option<InFlight> {
        let inner = &self.0;
        let one_more = |count: u32| (count < max).then(|| count + 1);
        if inner.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return None;
        }
        let earned = (share * PARTS as f64) as i64;
        let saved = |saved: i64| Some((saved + earned).min(MOST_SAVED * PARTS));
        let _ = inner.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, saved); // Always `Some`.
        Some(InFlight(self.clone()))
    }

    /// Spends one retry. Returns false if none is left.
    #[must_use]
    pub fn spend_retry(&self) -> bool {
        let spent = |saved: i64| (saved >= PARTS).then(|| saved - PARTS);
        self.0.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent).is_ok()
    }

    /// Number of calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::{RESERVE, Traffic};

    #[test]
    fn retries_are_a_share_of_the_calls() {
        let traffic = Traffic::default();
        let mut sent = 0;
        for _ in 0..10_000 {
            let _call = traffic.begin(1, 0.2).unwrap();
            sent += 1;
            // Each call fails, and is retried as often as the budget permits.
            while traffic.spend_retry() {
                sent += 1;
            }
        }
        assert_eq!(sent, 12_000 + RESERVE);
    }

    #[test]
    fn calls_in_flight_are_limited() {
        let traffic = Traffic::default();
        let first = traffic.begin(2, 0.0).unwrap();
        let second = traffic.begin(2, 0.0).unwrap();
        assert!(traffic.begin(2, 0.0).is_none());
        assert_eq!(traffic.in_flight(), 2);
        drop((first, second));
        assert_eq!(traffic.in_flight(), 0);
        assert!(traffic.begin(2, 0.0).is_some());
    }
}
