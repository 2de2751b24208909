//! Latency of requests to etcd, by their kind. Recorded without a lock.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the histogram buckets, in microseconds; the last bucket has none.
const BOUNDS: [u64; 13] =
    [1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, u64::MAX];

/// Kind of a request to etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Verb {
    /// Grants a lease.
    Grant,
    /// Renews a lease.
    Renew,
    /// Puts or deletes keys, up to 126 at a time.
    Write,
    /// Reads leases, mostly with their keys.
    Look,
    /// Revokes a lease.
    Revoke,
    /// Reads keys: those of a service, or a page of them.
    Read,
    /// Opens a watch.
    Watch,
    /// Reads the status of etcd itself.
    Status,
}

impl Verb {
    /// All kinds.
    pub const ALL: &'static [Self] =
        &[Self::Grant, Self::Renew, Self::Write, Self::Look, Self::Revoke, Self::Read, Self::Watch, Self::Status];
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

/// Latency of all requests of one kind since the registrar was started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// The kind of request.
    pub verb: Verb,
    /// Number of responses in each bucket of the histogram, with its upper bound; the last has none.
    pub buckets: Vec<(Duration, u64)>,
    /// Sum of the latencies of those responses.
    pub total: Duration,
    /// Number of failed requests. The response that a lease is gone is not a failure.
    pub failed: u64,
}

/// Counters of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Latencies([Counters; Verb::ALL.len()]);

#[derive(Debug, Default)]
struct Counters {
    buckets: [AtomicU64; BOUNDS.len()],
    micros: AtomicU64,
    failed: AtomicU64,
}

impl Latencies {
    pub(crate) fn succeeded(&self, verb: Verb, latency: Duration) {
        let counters = &self.0[verb as usize];
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        counters.buckets[BOUNDS.partition_point(|bound| *bound < micros)].fetch_add(1, Relaxed);
        counters.micros.fetch_add(micros, Relaxed);
    }

    pub(crate) fn failed(&self, verb: Verb) {
        self.0[verb as usize].failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Vec<Latency> {
        let latencies = Verb::ALL.iter().zip(&self.0).map(|(verb, counters)| {
            let bound =
                |at: usize| if BOUNDS[at] == u64::MAX { Duration::MAX } else { Duration::from_micros(BOUNDS[at]) };
            let buckets = counters.buckets.iter().enumerate();
            Latency {
                verb: *verb,
                buckets: buckets.map(|(at, count)| (bound(at), count.load(Relaxed))).collect(),
                total: Duration::from_micros(counters.micros.load(Relaxed)),
                failed: counters.failed.load(Relaxed),
            }
        });
        latencies.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Latencies, Verb};

    #[test]
    fn a_request_is_counted_once_under_its_own_verb() {
        let counted = Latencies::default();
        for (number, verb) in Verb::ALL.iter().copied().enumerate() {
            assert_eq!(verb as usize, number);
            for micros in [0, 1000, 1001, 6_000_000] {
                counted.succeeded(verb, Duration::from_micros(micros));
            }
            counted.failed(verb);
            let read = counted.read().swap_remove(number);
            assert_eq!((read.verb, read.failed), (verb, 1));
            assert_eq!(read.total, Duration::from_micros(6_002_001));
            let filled: Vec<_> = read.buckets.into_iter().filter(|(_, count)| *count > 0).collect();
            let millis = Duration::from_millis;
            assert_eq!(filled, [(millis(1), 2), (Duration::from_micros(2500), 1), (Duration::MAX, 1)]);
        }
    }
}
