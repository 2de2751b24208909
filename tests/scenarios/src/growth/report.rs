//! The figures of a simulated fleet.

use std::{fmt, time::Duration};

use super::{Size, record::Traffic};
use crate::sim::TransactionSize;

/// Figures of one phase.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Name of the phase.
    pub name: &'static str,
    /// Virtual time.
    pub lasted: Duration,
    /// Time on the clock of the machine.
    pub took: Duration,
    /// Traffic at etcd.
    pub traffic: Traffic,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, lasted, took, traffic } = self;
        let seconds = lasted.as_secs_f64().max(0.001);
        let per_second = |count: u64| count as f64 / seconds;
        writeln!(f, "{name}: {seconds:.2} s of virtual time, {:.1} s on the clock", took.as_secs_f64())?;
        writeln!(
            f,
            "  {} transactions with {} operations, at most {} and {} in a second; {} keys went with a lease",
            traffic.transactions, traffic.operations, traffic.busiest[0], traffic.busiest[1], traffic.revoked_keys
        )?;
        write!(
            f,
            "  {} leases granted, {:.0} renewals, {:.0} reads of leases and {:.0} transactions of comparisons a second",
            traffic.grants,
            per_second(traffic.renewals),
            per_second(traffic.lease_reads),
            per_second(traffic.comparisons)
        )
    }
}

/// Figures of a run. Its text leaves out the phases, which are printed as they end.
#[derive(Clone, Debug)]
pub struct Report {
    /// Size of the fleet.
    pub size: Size,
    /// Number of leases.
    pub leases: usize,
    /// Bytes of all keys and of all values.
    pub bytes: [u64; 2],
    /// Largest number of operations and of bytes in a transaction.
    pub largest: TransactionSize,
    /// Time from the restart of etcd without data until the last key was back, in virtual time.
    pub back: Duration,
    /// Longest time that the promise allows for it.
    pub promised: Duration,
    /// Resident memory for each registration, that of the simulated etcd included; 0 if the system shows none.
    pub bytes_each: u64,
    /// Largest resident memory of the process at the end of a phase.
    pub memory: u64,
    /// The phases in order.
    pub phases: Vec<Phase>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.size.total().max(1) as u64;
        writeln!(f, "{}: {} leases", self.size, self.leases)?;
        writeln!(f, "a key has {} bytes, a value {}, on average", self.bytes[0] / total, self.bytes[1] / total)?;
        let TransactionSize { operations, bytes } = self.largest;
        writeln!(f, "largest transaction: {operations} operations, {bytes} bytes on the wire")?;
        let [back, promised] = [self.back, self.promised].map(|time| time.as_secs_f64());
        writeln!(f, "all keys back {back:.2} s after the restart without data; promised: {promised:.2} s")?;
        write!(
            f,
            "memory: {} bytes for each registration with the simulated etcd, {} MiB at most",
            self.bytes_each,
            self.memory >> 20
        )
    }
}
