//! A picked node, and what is known of its address.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{discovery::node_set::Known, node::ServerNode};

/// A node that failed once is left out for this long; twice as long each further time.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest time that a node is left out.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// How much of the mean a new latency is: the mean of about the last ten.
const LATENCY_SHARE: f64 = 0.2;

/// A picked node. Tell it what became of the call, unless that says nothing about the node.
#[derive(Debug)]
pub struct Pick {
    pub(super) known: Arc<Known>,
    pub(super) peer: Arc<Peer>,
}

/// What is known of an address, over all generations in which it is there.
#[derive(Debug)]
pub(super) struct Peer {
    born: Instant,
    failures: AtomicU32,
    /// Left out until then, in milliseconds since `born`.
    out_until: AtomicU64,
    pub(super) calls: AtomicU32,
    /// In nanoseconds; 0 before the first call.
    pub(super) latency: AtomicU64,
}

impl Pick {
    /// The node.
    pub fn node(&self) -> &ServerNode {
        self.known.node().expect("nodes are all that is picked from")
    }

    /// It answered, after `latency`.
    pub fn succeeded(&self, latency: Duration) {
        self.peer.failures.store(0, Ordering::Relaxed);
        self.peer.out_until.store(0, Ordering::Relaxed);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        // Two at a time may lose one of them, which a mean can bear.
        let before = self.peer.latency.load(Ordering::Relaxed);
        let mean =
            if before == 0 { latency as f64 } else { before as f64 + LATENCY_SHARE * (latency as f64 - before as f64) };
        self.peer.latency.store(mean as u64, Ordering::Relaxed);
    }

    /// It could not be reached, or broke off: it is left out for a while.
    pub fn failed(&self) {
        let failures = self.peer.failures.fetch_add(1, Ordering::Relaxed);
        let out = FIRST_EJECTION.saturating_mul(1 << failures.min(16)).min(LONGEST_EJECTION);
        let until = self.peer.born.elapsed() + out;
        self.peer.out_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.peer.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    pub(super) fn new() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            born: Instant::now(),
            failures: zero(),
            out_until: AtomicU64::new(0),
            calls: zero(),
            latency: AtomicU64::new(0),
        }
    }

    pub(super) fn is_out(&self) -> bool {
        let until = self.out_until.load(Ordering::Relaxed);
        // A look at the clock costs as much as half of a pick, and few nodes are left out.
        until != 0 && self.born.elapsed().as_millis() < u128::from(until)
    }
}
