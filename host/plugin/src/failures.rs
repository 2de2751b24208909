//! Failures of the host in a component's calls: each kind is a warning once, with reminders at growing intervals, so that a
//! component that repeats a call in a loop does not fill the log.

use std::collections::BTreeMap;

use leasehold::{Error, Reminder};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::CallRefusal;

/// Kind of a failure that the component has no part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// etcd cannot be reached, or refuses.
    Unavailable,
    /// A deadline passed.
    Late,
    /// A limit of the host is reached.
    Full,
    /// Another component of this host has the key.
    Duplicate,
    /// The registrar has ended.
    Ended,
    Other,
}

/// The failures in the calls of one component.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<Kind, Logged>>);

#[derive(Debug)]
struct Logged {
    reminder: Reminder,
    /// Failures since the last warning.
    unlogged: u64,
}

impl Kind {
    /// Kind of the failure behind a refusal; `None` if the component's own arguments, rights or limits are the reason.
    pub(crate) fn of(refusal: &CallRefusal, registrar_has_ended: bool) -> Option<Self> {
        match refusal {
            CallRefusal::Deadline | CallRefusal::Registrar(Error::Timeout { .. }) => Some(Self::Late),
            CallRefusal::HostViewsFull | CallRefusal::Registrar(Error::Quota { .. }) => Some(Self::Full),
            CallRefusal::HostEnded => Some(Self::Ended),
            // The component uses a registration that it has stopped, unless nothing is registered any more.
            CallRefusal::Registrar(Error::Ended) => registrar_has_ended.then_some(Self::Ended),
            CallRefusal::Registrar(Error::Unavailable(_)) => Some(Self::Unavailable),
            CallRefusal::Registrar(Error::Duplicate(_)) => Some(Self::Duplicate),
            // Ownership of the key, which another host has, is a matter of the component's terms.
            CallRefusal::Registrar(Error::Invalid(_) | Error::Conflict { .. }) => None,
            CallRefusal::Registrar(_) => Some(Self::Other),
            _ => None,
        }
    }
}

impl Failures {
    /// Counts a failure. Returns the number of earlier failures without a warning if it is time for a warning.
    pub(crate) fn count(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut all = self.0.lock();
        let Some(logged) = all.get_mut(&kind) else {
            all.insert(kind, Logged { reminder: Reminder::new(Reminder::FIRST, now), unlogged: 0 });
            return Some(0);
        };
        if !logged.reminder.is_due(now) {
            logged.unlogged += 1;
            return None;
        }
        // A failure after a time without any is a new one.
        match logged.reminder.is_stale(now) {
            true => logged.reminder = Reminder::new(Reminder::FIRST, now),
            false => logged.reminder.advance(now),
        }
        Some(std::mem::take(&mut logged.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::{Error, Reminder};
    use tokio::time::Instant;

    use super::{Failures, Kind};
    use crate::error::CallRefusal;

    #[test]
    fn a_failure_in_a_loop_is_a_warning_at_growing_intervals() {
        let (failures, begun) = (Failures::default(), Instant::now());
        let warned = |from: u64, to: u64| {
            let at = |second| begun + Duration::from_secs(second);
            (from..to).filter_map(|second| Some((second, failures.count(Kind::Late, at(second))?))).collect::<Vec<_>>()
        };
        assert_eq!(warned(0, 300), [(0, 0), (30, 29), (90, 59), (210, 119)]);
        assert_eq!(failures.count(Kind::Full, begun), Some(0), "another kind is another failure");
        let day = 24 * 3600;
        let of_a_day = warned(300, day);
        assert!(of_a_day.len() < 30, "{of_a_day:?}");
        let gone = day + 3 * Reminder::LONGEST.as_secs();
        assert_eq!(warned(gone, gone + 31).iter().map(|(second, _)| second - gone).collect::<Vec<_>>(), [0, 30]);
    }

    #[test]
    fn a_mistake_of_the_component_is_no_failure_of_the_host() {
        let duplicate = || CallRefusal::Registrar(Error::Duplicate("/user/127.0.0.1:1".into()));
        let conflict = CallRefusal::Registrar(Error::Conflict { key: "/user/127.0.0.1:1".into(), lease: None });
        for own in [CallRefusal::ForeignName, CallRefusal::Ending, CallRefusal::TooMany { max: 1 }, conflict] {
            assert_eq!(Kind::of(&own, true), None, "{own}");
        }
        let quota = CallRefusal::Registrar(Error::Quota { what: "registrations", limit: 1 });
        let late = CallRefusal::Registrar(Error::Timeout { what: "register", after: Duration::ZERO, why: None });
        for (refusal, kind) in [
            (duplicate(), Kind::Duplicate),
            (quota, Kind::Full),
            (late, Kind::Late),
            (CallRefusal::Deadline, Kind::Late),
            (CallRefusal::HostEnded, Kind::Ended),
        ] {
            assert_eq!(Kind::of(&refusal, false), Some(kind));
        }
        let ended = CallRefusal::Registrar(Error::Ended);
        assert_eq!((Kind::of(&ended, false), Kind::of(&ended, true)), (None, Some(Kind::Ended)));
    }
}
