//! A picked node, and the statistics of its endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{discovery::node_set::Entry, node::ServerNode};

/// Ejection time after the first failure; it doubles with each further one.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// Longest ejection time.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// Share of its weight that a node begins with.
const COLDEST: f64 = 0.1;
/// Share of a new latency in the moving average, which covers about the last ten.
const LATENCY_SHARE: f64 = 0.2;

/// A picked node. Report the outcome of the call, unless it says nothing about the node.
#[derive(Debug)]
pub struct Pick {
    entry: Arc<Entry>,
    stats: Arc<EndpointStats>,
}

impl Pick {
    pub(super) fn new(entry: Arc<Entry>, stats: Arc<EndpointStats>) -> Self {
        stats.calls.fetch_add(1, Ordering::Relaxed);
        Self { entry, stats }
    }

    /// The node.
    pub fn node(&self) -> &ServerNode {
        self.entry.node().expect("only nodes are picked")
    }

    /// Reports that the node answered, after `latency`.
    pub fn succeeded(&self, latency: Duration) {
        self.stats.succeeded(latency);
    }

    /// Reports that the node could not be reached, or broke off: it is ejected for a while.
    pub fn failed(&self) {
        self.stats.eject();
    }

    pub(super) fn stats(&self) -> &Arc<EndpointStats> {
        &self.stats
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.stats.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Statistics of an endpoint, kept over all generations in which it exists.
#[derive(Debug)]
pub(super) struct EndpointStats {
    created: Instant,
    /// Set for a node that came while others were known already.
    is_fresh: bool,
    /// Ejections since the last success, or of an outlier, in the last [`LONGEST_EJECTION`].
    ejections: AtomicU32,
    /// Ejected for its responses: a good one among them does not end that.
    is_outlier: AtomicBool,
    /// Bad responses since the last good one, or the last ejection.
    bad_in_a_row: AtomicU32,
    /// Good and bad responses of the interval.
    good: AtomicU32,
    bad: AtomicU32,
    /// End of the ejection, in milliseconds since `created`; 0 for none.
    ejected_until: AtomicU64,
    /// Calls in progress.
    calls: AtomicU32,
    /// Moving average in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
}

impl EndpointStats {
    pub(super) fn new(is_fresh: bool) -> Self {
        Self {
            created: Instant::now(),
            is_fresh,
            ejections: AtomicU32::new(0),
            is_outlier: AtomicBool::new(false),
            bad_in_a_row: AtomicU32::new(0),
            good: AtomicU32::new(0),
            bad: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            latency: AtomicU64::new(0),
        }
    }

    pub(super) fn calls_and_latency(&self) -> (u32, u64) {
        (self.calls.load(Ordering::Relaxed), self.latency.load(Ordering::Relaxed))
    }

    pub(super) fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        // Reading the clock costs as much as half of a pick, and few nodes are ejected.
        until != 0 && self.created.elapsed().as_millis() < u128::from(until)
    }

    /// Time at which the endpoint came; `None` if it was there at first.
    pub(super) fn fresh_since(&self) -> Option<Instant> {
        self.is_fresh.then_some(self.created)
    }

    /// Share of its weight that a fresh node gets, 0.0 to 1.0: it rises over `slow_start`.
    pub(super) fn warmth(&self, slow_start: Duration) -> f64 {
        if !self.is_fresh || slow_start.is_zero() {
            return 1.0;
        }
        (self.created.elapsed().as_secs_f64() / slow_start.as_secs_f64()).clamp(COLDEST, 1.0)
    }

    fn succeeded(&self, latency: Duration) {
        if !self.is_outlier.load(Ordering::Relaxed) || self.is_long_past_ejection() {
            self.is_outlier.store(false, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
        self.bad_in_a_row.store(0, Ordering::Relaxed);
        self.good.fetch_add(1, Ordering::Relaxed);
        self.took(latency);
    }

    fn is_long_past_ejection(&self) -> bool {
        let until = Duration::from_millis(self.ejected_until.load(Ordering::Relaxed));
        self.created.elapsed() > until + LONGEST_EJECTION
    }

    /// Notes a bad response. Returns the number of those in a row.
    pub(super) fn responded_badly(&self, latency: Duration) -> u32 {
        self.bad.fetch_add(1, Ordering::Relaxed);
        self.took(latency);
        self.bad_in_a_row.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Success rate of the interval, which ends here; `None` with fewer than `volume` responses.
    pub(super) fn take_success_rate(&self, volume: u32) -> Option<f64> {
        let [good, bad] = [&self.good, &self.bad].map(|count| count.swap(0, Ordering::Relaxed));
        let all = good.saturating_add(bad);
        (all >= volume).then(|| f64::from(good) / f64::from(all))
    }

    fn took(&self, latency: Duration) {
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two reports at a time may lose one, which an average can bear.
        let before = self.latency.load(Ordering::Relaxed);
        let average =
            if before == 0 { latency as f64 } else { before as f64 + LATENCY_SHARE * (latency as f64 - before as f64) };
        self.latency.store(average as u64, Ordering::Relaxed);
    }

    /// Ejects an endpoint whose responses are bad.
    pub(super) fn eject_outlier(&self) {
        self.is_outlier.store(true, Ordering::Relaxed);
        self.eject();
    }

    /// Ejects the endpoint for a while, which doubles with each time until it is well.
    pub(super) fn eject(&self) {
        let ejections = self.ejections.fetch_add(1, Ordering::Relaxed);
        let ejection = FIRST_EJECTION.saturating_mul(1 << ejections.min(16)).min(LONGEST_EJECTION);
        let until = self.created.elapsed() + ejection;
        self.ejected_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.bad_in_a_row.store(0, Ordering::Relaxed);
    }
}
