//! Leases without keys. A lease that is renewed without keys likely belongs to a service that lost its key and does not
//! notice.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use leasehold::{Error, LeaseId, LeaseStatus, Registrar};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::finding::Finding;

/// Leases that are examined, at most.
const MAX_EXAMINED: usize = 10_000;
/// Leases that are examined at a time.
const EXAMINED_AT_A_TIME: usize = 32;
/// Leases without keys that are observed, at most.
const MAX_WATCHED: usize = 256;
/// Time of observation: clients renew after a third of the TTL, so that TTLs of up to 30 s are covered.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two observations.
const PAUSE: Duration = Duration::from_millis(500);
/// Leases that are listed one by one, at most.
const MAX_NAMED: usize = 20;
/// Resolution of the remaining time in etcd.
const SECOND: Duration = Duration::from_secs(1);

/// Numbers of leases in this etcd.
#[derive(Debug, Default, Serialize)]
pub(super) struct Leases {
    all: usize,
    /// Leases without a key that are renewed.
    pub(super) renewed_without_keys: usize,
    /// Leases without a key whose renewal was not observed.
    pub(super) unrenewed_without_keys: usize,
    /// Leases beyond the number that is examined.
    pub(super) left_out: usize,
}

/// A lease without keys, and the time of etcd's response: between these two.
#[derive(Clone, Copy)]
struct Look {
    requested_at: Instant,
    answered_at: Instant,
    status: LeaseStatus,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Renewed,
    /// The lease was not renewed, although more than half of its time is over.
    RunsOut,
    Unclear,
}

/// Examines every lease but those with `keys`; `None` without the right to list them.
pub(super) async fn examine(
    registrar: &Registrar,
    keys: &HashSet<LeaseId>,
) -> Result<Option<(Leases, Vec<Finding>)>, Error> {
    let all = match registrar.leases().await {
        Err(Error::Unavailable(why)) if why.is_denied() => return Ok(None),
        all => all?,
    };
    let mut counts = Leases { all: all.len(), ..Leases::default() };
    let unknown: Vec<_> = all.into_iter().filter(|lease| !keys.contains(lease)).collect();
    counts.left_out = unknown.len().saturating_sub(MAX_EXAMINED);
    let first = without_keys(registrar, unknown.into_iter().take(MAX_EXAMINED)).await?;
    counts.left_out += first.len().saturating_sub(MAX_WATCHED);
    let mut watched: HashMap<_, _> = first.into_iter().take(MAX_WATCHED).collect();
    if !watched.is_empty() {
        tracing::info!("leases without keys: {}; observing them for up to {} s", watched.len(), PATIENCE.as_secs());
    }
    let mut renewed = Vec::new();
    let until = Instant::now() + PATIENCE;
    while !watched.is_empty() && Instant::now() < until {
        sleep(PAUSE).await;
        let now = without_keys(registrar, watched.keys().copied()).await?;
        // Leases that are missing now are gone, or have a key.
        watched.retain(|lease, first| {
            let verdict = now.get(lease).map(|now| verdict(first, now));
            match verdict {
                Some(Verdict::Renewed) => renewed.push((*lease, first.status.ttl)),
                Some(Verdict::RunsOut) => counts.unrenewed_without_keys += 1,
                Some(Verdict::Unclear) | None => {}
            }
            verdict == Some(Verdict::Unclear)
        });
    }
    counts.unrenewed_without_keys += watched.len();
    counts.renewed_without_keys = renewed.len();
    renewed.sort_unstable();
    let notes = renewed.iter().take(MAX_NAMED).map(|(lease, ttl)| Finding {
        kind: "lease-without-keys",
        key: None,
        found: format!("lease {lease} holds no key and is still renewed, with a TTL of {} s", ttl.as_secs()),
        cure:
            "a service whose key was deleted renews for nothing: find and restart it; an idle session of a lock or an \
               election is as it should be"
                .to_owned(),
        ..Finding::default()
    });
    Ok(Some((counts, notes.collect())))
}

/// Returns the leases that hold no key.
async fn without_keys(
    registrar: &Registrar,
    leases: impl Iterator<Item = LeaseId>,
) -> Result<HashMap<LeaseId, Look>, Error> {
    let looks = leases.map(|lease| async move {
        let requested_at = Instant::now();
        match registrar.lease(lease).await {
            Ok(Some(status)) if status.keys == 0 => {
                Ok(Some((lease, Look { requested_at, answered_at: Instant::now(), status })))
            }
            Ok(_) => Ok(None),
            // The lease has keys that this user may not read.
            Err(Error::Unavailable(why)) if why.is_denied() => Ok(None),
            Err(error) => Err(error),
        }
    });
    let looks = stream::iter(looks).buffer_unordered(EXAMINED_AT_A_TIME);
    looks.try_filter_map(|look| std::future::ready(Ok(look))).try_collect().await
}

/// Verdict from two observations.
fn verdict(first: &Look, now: &Look) -> Verdict {
    // Smallest time that passed for etcd, which had less than one second more than it reported at first.
    let passed = now.requested_at.saturating_duration_since(first.answered_at);
    let left = now.status.ttl_remaining;
    if left >= SECOND && left + passed >= first.status.ttl_remaining + SECOND {
        Verdict::Renewed
    } else if left + SECOND < now.status.ttl / 2 {
        Verdict::RunsOut
    } else {
        Verdict::Unclear
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::LeaseStatus;
    use tokio::time::Instant;

    use super::{Look, Verdict, verdict};

    #[test]
    fn only_a_renewal_leaves_more_time_than_has_passed() {
        let begun = Instant::now();
        let verdict_of = |ttl, first, millis, now| {
            let look = |at, left| {
                let status =
                    LeaseStatus { ttl: Duration::from_secs(ttl), ttl_remaining: Duration::from_secs(left), keys: 0 };
                Look { requested_at: at, answered_at: at, status }
            };
            verdict(&look(begun, first), &look(begun + Duration::from_millis(millis), now))
        };
        assert_eq!(verdict_of(10, 9, 3400, 9), Verdict::Renewed);
        // Reported as 9 twice, with 9.9 s left at first.
        assert_eq!(verdict_of(10, 9, 800, 9), Verdict::Unclear);
        assert_eq!(verdict_of(10, 9, 3400, 6), Verdict::Unclear);
        assert_eq!(verdict_of(10, 9, 6000, 3), Verdict::RunsOut);
        // etcd's shortest lease never has more than one whole second left, and may stay for a moment with none.
        assert_eq!(verdict_of(2, 1, 1000, 1), Verdict::Renewed);
        assert_eq!(verdict_of(2, 1, 2500, 0), Verdict::Unclear);
        // A change of the leader gives every lease its whole time again.
        assert_eq!(verdict_of(60, 5, 500, 59), Verdict::Renewed);
    }
}
