//! How long etcd takes to answer, told apart by what it is asked. Counted without a lock.

use std::{
    array, fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Times that are told apart, in microseconds; the last is for what takes longer.
const BOUNDS: [u64; 13] =
    [1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, u64::MAX];

/// What etcd is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// To grant a lease.
    Grant,
    /// To renew one.
    Renew,
    /// To write keys, or delete them, up to 126 at a time.
    Write,
    /// To tell of leases: of their keys, for the most part.
    Look,
    /// To revoke a lease.
    Revoke,
    /// To read keys: those of a service, or a page of them.
    Read,
    /// To begin to tell of changes.
    Watch,
    /// To tell of itself.
    Status,
}

impl Verb {
    /// All there are.
    pub const ALL: [Self; 8] =
        [Self::Grant, Self::Renew, Self::Write, Self::Look, Self::Revoke, Self::Read, Self::Watch, Self::Status];
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grant => "grant",
            Self::Renew => "renew",
            Self::Write => "write",
            Self::Look => "look",
            Self::Revoke => "revoke",
            Self::Read => "read",
            Self::Watch => "watch",
            Self::Status => "status",
        })
    }
}

/// What came of all requests of one kind since the registrar was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// What etcd was asked to do.
    pub verb: Verb,
    /// How many it answered within each of these times, and not within the one before; the last has no end.
    pub answered: [(Duration, u64); BOUNDS.len()],
    /// How long those took together.
    pub total: Duration,
    /// How many were not answered, or with anything but what was asked for. That a lease is gone is an answer.
    pub failed: u64,
}

/// The counters behind them.
#[derive(Debug, Default)]
pub(crate) struct Latencies([Counters; Verb::ALL.len()]);

#[derive(Debug, Default)]
struct Counters {
    within: [AtomicU64; BOUNDS.len()],
    micros: AtomicU64,
    failed: AtomicU64,
}

impl Latencies {
    pub(crate) fn answered(&self, verb: Verb, after: Duration) {
        let counters = &self.0[verb as usize];
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        counters.within[BOUNDS.partition_point(|bound| *bound < micros)].fetch_add(1, Relaxed);
        counters.micros.fetch_add(micros, Relaxed);
    }

    pub(crate) fn failed(&self, verb: Verb) {
        self.0[verb as usize].failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> [Latency; Verb::ALL.len()] {
        Verb::ALL.map(|verb| {
            let counters = &self.0[verb as usize];
            let bound =
                |at: usize| if BOUNDS[at] == u64::MAX { Duration::MAX } else { Duration::from_micros(BOUNDS[at]) };
            Latency {
                verb,
                answered: array::from_fn(|at| (bound(at), counters.within[at].load(Relaxed))),
                total: Duration::from_micros(counters.micros.load(Relaxed)),
                failed: counters.failed.load(Relaxed),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Latencies, Verb};

    #[test]
    fn a_request_is_counted_once_under_its_own_verb() {
        let counted = Latencies::default();
        for (number, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb as usize, number);
            for micros in [0, 1000, 1001, 6_000_000] {
                counted.answered(verb, Duration::from_micros(micros));
            }
            counted.failed(verb);
            let read = counted.read()[number];
            assert_eq!((read.verb, read.failed), (verb, 1));
            assert_eq!(read.total, Duration::from_micros(6_002_001));
            let within: Vec<_> = read.answered.into_iter().filter(|(_, count)| *count > 0).collect();
            let millis = Duration::from_millis;
            assert_eq!(within, [(millis(1), 2), (Duration::from_micros(2500), 1), (Duration::MAX, 1)]);
        }
    }
}
