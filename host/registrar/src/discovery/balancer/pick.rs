//! A picked node, and the statistics of its endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{discovery::node_set::Entry, node::ServerNode};

/// Ejection time after the first failure; it doubles with each further one.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// Longest ejection time.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
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
        self.stats.failed();
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
    /// Failures since the last success.
    failures: AtomicU32,
    /// End of the ejection, in milliseconds since `created`; 0 for none.
    ejected_until: AtomicU64,
    /// Calls in progress.
    calls: AtomicU32,
    /// Moving average in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
}

impl EndpointStats {
    pub(super) fn new() -> Self {
        Self {
            created: Instant::now(),
            failures: AtomicU32::new(0),
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

    fn succeeded(&self, latency: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        self.ejected_until.store(0, Ordering::Relaxed);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two reports at a time may lose one, which an average can bear.
        let before = self.latency.load(Ordering::Relaxed);
        let average =
            if before == 0 { latency as f64 } else { before as f64 + LATENCY_SHARE * (latency as f64 - before as f64) };
        self.latency.store(average as u64, Ordering::Relaxed);
    }

    fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let ejection = FIRST_EJECTION.saturating_mul(1 << failures.min(16)).min(LONGEST_EJECTION);
        let until = self.created.elapsed() + ejection;
        self.ejected_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
