//! One seed of the randomized simulation: several hosts, one etcd, and an hour of random requests and faults.
//!
//! The run keeps a ledger of requests and outcomes; `check` then compares the promises with the ledger and with etcd's
//! complete history.

use std::fmt;

use crate::run;

/// Result of one seed.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// One sentence per broken promise.
    pub(crate) violations: Vec<String>,
    /// Numbers of the run.
    pub(crate) tally: Tally,
}

/// Numbers of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    /// Virtual seconds.
    pub(crate) seconds: u64,
    /// Calls to the registrar: registers, stops, weights.
    pub(crate) acts: u64,
    /// Faults of etcd, the network, or foreign writers.
    pub(crate) faults: u64,
    /// Events in etcd's history.
    pub(crate) events: u64,
    /// Leases granted.
    pub(crate) leases: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, acts, faults, events, leases } = self;
        write!(f, "{seconds} s, {acts} acts, {faults} faults, {events} events, {leases} leases")
    }
}

/// Runs one seed to its end, in virtual time.
///
/// # Panics
/// When the runtime cannot be built.
pub(crate) fn simulate(seed: u64) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime without threads cannot fail");
    let verdict = runtime.block_on(run::run(seed));
    runtime.shutdown_background();
    verdict
}
