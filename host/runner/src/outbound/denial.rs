//! Denied destinations of a component in the log: each once, with the line of the policy that would permit it.

use std::{collections::HashSet, fmt, time::Duration};

use leasehold::ServiceName;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::request_id::RequestId;

/// Targets that are reported within [`WINDOW`], at most.
const MAX_TARGETS: usize = 32;
/// The time after which a target is reported again.
const WINDOW: Duration = Duration::from_secs(3600);
/// Bytes of a target that are shown and remembered. A component may make up long ones.
const MAX_SHOWN: usize = 280;

/// The denials of one service.
#[derive(Debug)]
pub(crate) struct Denials {
    service: ServiceName,
    reported: Mutex<Reported>,
}

#[derive(Debug)]
struct Reported {
    since: Instant,
    targets: HashSet<String>,
}

/// Prominence of a denial in the log.
#[derive(Debug, PartialEq, Eq)]
enum Level {
    /// A warning with the cure.
    First,
    /// A warning that further targets are left out.
    Last,
    Debug,
}

impl Denials {
    pub(crate) fn new(service: ServiceName) -> Self {
        Self { service, reported: Mutex::new(Reported { since: Instant::now(), targets: HashSet::new() }) }
    }

    /// Reports a denied target: the reason, and the entry of `allow` that would permit it, if there is one.
    pub(crate) fn report(&self, target: &str, why: impl fmt::Display, cure: Option<&str>) {
        self.report_request(target, why, cure, None);
    }

    /// The same with the identifier of the denied request.
    pub(crate) fn report_request(
        &self,
        target: &str,
        why: impl fmt::Display,
        cure: Option<&str>,
        id: Option<&RequestId>,
    ) {
        let shown = target.get(..MAX_SHOWN).unwrap_or(target);
        let level = self.reported.lock().level(shown, Instant::now());
        let (service, request_id) = (&self.service, id.map(RequestId::as_str));
        match level {
            Level::First => match cure {
                Some(cure) if shown == target => {
                    tracing::warn!(%service, request_id, "denied a request to {shown}: {why}; to permit it: allow: {{ {cure} }}");
                }
                _ => tracing::warn!(%service, request_id, "denied a request to {shown}: {why}"),
            },
            Level::Last => {
                tracing::warn!(%service, "requests to more than {MAX_TARGETS} targets were denied; the log at debug level has the rest");
            }
            Level::Debug => tracing::debug!(%service, request_id, "denied a request to {shown}: {why}"),
        }
    }
}

impl Reported {
    fn level(&mut self, target: &str, now: Instant) -> Level {
        if now.saturating_duration_since(self.since) >= WINDOW {
            *self = Self { since: now, targets: HashSet::new() };
        }
        if self.targets.len() > MAX_TARGETS || !self.targets.insert(target.to_owned()) {
            return Level::Debug;
        }
        if self.targets.len() > MAX_TARGETS { Level::Last } else { Level::First }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::time::Instant;

    use super::{Level, MAX_TARGETS, Reported, WINDOW};

    #[test]
    fn each_target_is_reported_once_and_their_number_is_bounded() {
        let now = Instant::now();
        let mut reported = Reported { since: now, targets: HashSet::new() };
        for number in 0..MAX_TARGETS {
            assert_eq!(reported.level(&number.to_string(), now), Level::First);
            assert_eq!(reported.level(&number.to_string(), now), Level::Debug);
        }
        assert_eq!(reported.level("one more", now), Level::Last);
        assert_eq!(reported.level("and another", now), Level::Debug);
        assert_eq!(reported.targets.len(), MAX_TARGETS + 1);
        assert_eq!(reported.level("0", now + WINDOW), Level::First);
    }
}
