//! Unresolved faults: what etcd refuses or does not answer, and keys that others hold. Each kind of refusal is logged once,
//! with reminders at growing intervals, however many leases and keys meet it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    error::Error,
    etcd::{Refusal, latency::Verb},
    lease_id::LeaseId,
    reminder::Reminder,
};

/// Longest part of a foreign value that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// A reason why registrations are not in etcd as they should be, or cannot be taken out of it. It is tried again until it
/// is over.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fault {
    /// The key that it concerns; `None` when it concerns a whole lease.
    pub key: Option<Arc<str>>,
    /// Kind of the calls that fail, where it concerns a whole lease.
    pub verb: Option<Verb>,
    /// Message of etcd or of the connection to it, or the holder of the key.
    pub why: Error,
    /// The value that the holder of the key has published, cut and without control characters.
    pub held_value: Option<Arc<str>>,
    /// Cure, if an operator has to act.
    pub cure: Option<Arc<str>>,
    /// Time since it began.
    pub lasting: Duration,
}

impl Fault {
    /// Kind of the refusal; `None` if etcd does not answer, or if another host holds the key.
    pub fn refusal(&self) -> Option<Refusal> {
        match &self.why {
            Error::Unavailable(why) => why.refusal(),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        if let Some(value) = &self.held_value {
            write!(f, ", with the value {value}")?;
        }
        if let Some(cure) = &self.cure {
            write!(f, "; {cure}")?;
        }
        match self.lasting.as_secs() {
            0 => Ok(()),
            seconds => write!(f, " (for {seconds}s)"),
        }
    }
}

/// Origin of a fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The calls of one kind that are made for a lease.
    Calls {
        lease: u64,
        verb: Verb,
    },
    Key(Arc<str>),
}

/// Change to the faults of a registrar.
#[derive(Debug, Clone)]
pub(crate) enum FaultChange {
    /// A request failed, or etcd refused a key whose service has that prefix.
    Refused { source: Source, why: Error, prefix: Option<String>, is_logged: bool },
    /// The lease of another host holds a key, with that value.
    Held { key: Arc<str>, holder: LeaseId, value: Vec<u8>, is_logged: bool },
    /// The request succeeded after all.
    Resolved(Source),
    /// The request is not repeated.
    Forgotten(Source),
}

/// Key under which faults are counted and logged together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Refused(Refusal),
    Held(Arc<str>),
}

/// The faults of one registrar.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ongoing: BTreeMap<Source, Ongoing>,
    logged: BTreeMap<Kind, Logged>,
    /// Changes so far, in order.
    #[cfg(test)]
    changes: Vec<FaultChange>,
}

#[derive(Debug)]
struct Ongoing {
    why: Error,
    held_value: Option<Arc<str>>,
    cure: Option<Arc<str>>,
    since: Instant,
    /// Counted under; `None` for what is logged elsewhere.
    kind: Option<Kind>,
}

#[derive(Debug)]
struct Logged {
    /// Ongoing faults of this kind.
    count: usize,
    since: Instant,
    /// True once the fault was logged, until it is resolved.
    was_logged: bool,
    /// None before the first line.
    reminder: Option<Reminder>,
}

impl Faults {
    /// Applies a change. A lease does so before it shows the status that follows from it, so that a reader of the status finds
    /// its reason.
    pub(crate) fn apply(&self, change: FaultChange, now: Instant) {
        #[cfg(test)]
        self.0.lock().changes.push(change.clone());
        match change {
            FaultChange::Refused { source, why, prefix, is_logged } => {
                let refusal = match &why {
                    Error::Unavailable(why) => why.refusal(),
                    _ => None,
                };
                let cure = refusal.map(|refusal| refusal.cure("readwrite", prefix.as_deref()).into());
                let kind = refusal.filter(|_| is_logged).map(Kind::Refused);
                self.record(source, why, None, cure, kind, now);
            }
            FaultChange::Held { key, holder, value, is_logged } => {
                let why = Error::Conflict { key: key.clone(), lease: Some(holder) };
                let kind = is_logged.then(|| Kind::Held(key.clone()));
                self.record(Source::Key(key), why, Some(shown(&value).into()), None, kind, now);
            }
            FaultChange::Resolved(source) => self.remove(&source, true),
            FaultChange::Forgotten(source) => self.remove(&source, false),
        }
    }

    fn record(
        &self,
        source: Source,
        why: Error,
        held_value: Option<Arc<str>>,
        cure: Option<Arc<str>>,
        kind: Option<Kind>,
        now: Instant,
    ) {
        let mut inner = self.0.lock();
        let before = inner.ongoing.remove(&source);
        let since = before.as_ref().map_or(now, |before| before.since);
        if let Some(before) = before.and_then(|before| before.kind) {
            if kind.as_ref() != Some(&before) {
                inner.count_down(&before, false);
            } else if let Some(logged) = inner.logged.get_mut(&before) {
                // Counted again below.
                logged.count -= 1;
            }
        }
        let ongoing = Ongoing { why, held_value, cure, since, kind };
        if let Some(kind) = ongoing.kind.clone() {
            inner.log(kind, &source, &ongoing, now);
        }
        inner.ongoing.insert(source, ongoing);
    }

    fn remove(&self, source: &Source, succeeded: bool) {
        let mut inner = self.0.lock();
        if let Some(kind) = inner.ongoing.remove(source).and_then(|over| over.kind) {
            inner.count_down(&kind, succeeded);
        }
    }

    /// The fault of a source, if there is one.
    pub(crate) fn of(&self, source: &Source) -> Option<Fault> {
        self.0.lock().ongoing.get(source).map(|ongoing| ongoing.fault(source))
    }

    #[cfg(test)]
    pub(crate) fn changes(&self) -> Vec<FaultChange> {
        self.0.lock().changes.clone()
    }

    /// Every fault, those of leases first.
    pub(crate) fn all(&self) -> Vec<Fault> {
        self.0.lock().ongoing.iter().map(|(source, ongoing)| ongoing.fault(source)).collect()
    }
}

impl Ongoing {
    fn fault(&self, source: &Source) -> Fault {
        let (key, verb) = match source {
            Source::Key(key) => (Some(key.clone()), None),
            Source::Calls { verb, .. } => (None, Some(*verb)),
        };
        Fault {
            key,
            verb,
            why: self.why.clone(),
            held_value: self.held_value.clone(),
            cure: self.cure.clone(),
            lasting: self.since.elapsed(),
        }
    }
}

impl Inner {
    fn log(&mut self, kind: Kind, source: &Source, ongoing: &Ongoing, now: Instant) {
        let fresh = || Logged { count: 0, since: now, was_logged: false, reminder: None };
        let waits = matches!(kind, Kind::Held(_));
        let logged = self.logged.entry(kind).or_insert_with(fresh);
        logged.count += 1;
        match &mut logged.reminder {
            Some(reminder) if !reminder.is_due(now) => return,
            Some(reminder) if logged.was_logged => reminder.advance(now),
            _ => (logged.since, logged.reminder) = (now, Some(Reminder::new(Reminder::FIRST, now))),
        }
        let fault = ongoing.fault(source);
        match (waits, !std::mem::replace(&mut logged.was_logged, true)) {
            (true, true) => warn!(event = "key_awaited", key = fault.key.as_deref(), "waiting for a key: {fault}"),
            (true, false) => {
                warn!(event = "key_awaited", key = fault.key.as_deref(), "still waiting for a key: {fault}");
            }
            (false, true) => {
                warn!(event = "refused", key = fault.key.as_deref(), "refused by etcd, and tried again: {fault}");
            }
            (false, false) => warn!(event = "refused", key = fault.key.as_deref(), "still refused by etcd: {fault}"),
        }
    }

    /// One fault of the kind is over.
    fn count_down(&mut self, kind: &Kind, succeeded: bool) {
        let Some(logged) = self.logged.get_mut(kind) else { return };
        logged.count -= 1;
        if logged.count > 0 {
            return;
        }
        let was_logged = std::mem::take(&mut logged.was_logged);
        match kind {
            Kind::Refused(refusal) if was_logged && succeeded => {
                info!(
                    event = "accepted",
                    "no longer refused by etcd ({refusal}), after {:.1?}",
                    logged.since.elapsed()
                );
            }
            Kind::Refused(_) => {}
            // Logged as what came of it.
            Kind::Held(_) => drop(self.logged.remove(kind)),
        }
    }
}

/// Foreign text for people: cut, and without what could confuse a terminal.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(&value[..value.len().min(4 * MAX_SHOWN)]);
    let plain: String = text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if plain.len() < value.len() { format!("{plain}…") } else { plain }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{FaultChange, Faults, Kind, Source, shown};
    use crate::{
        error::Error,
        etcd::{Failure, Refusal, latency::Verb},
    };

    fn denied() -> Error {
        let (endpoint, message) = (Arc::from("http://e:1"), "etcdserver: permission denied".to_owned());
        Error::unavailable(Failure::Forbidden { endpoint, message })
    }

    fn calls(lease: u64) -> Source {
        Source::Calls { lease, verb: Verb::Write }
    }

    /// Time of the next reminder, from the first line on.
    fn next(faults: &Faults) -> Duration {
        let inner = faults.0.lock();
        let logged = &inner.logged[&Kind::Refused(Refusal::Permission)];
        logged.reminder.unwrap().next() - logged.since
    }

    #[test]
    fn a_kind_is_logged_once_for_all_that_meet_it_with_reminders_at_growing_intervals() {
        let faults = Faults::default();
        let begun = Instant::now();
        let refused = |lease, seconds| {
            let kind = Some(Kind::Refused(Refusal::Permission));
            faults.record(calls(lease), denied(), None, None, kind, begun + Duration::from_secs(seconds));
        };
        let mut reminders = Vec::new();
        for seconds in 0..600 {
            (0..100).for_each(|lease| refused(lease, seconds));
            reminders.push(next(&faults).as_secs());
        }
        reminders.dedup();
        assert_eq!(reminders, [30, 90, 210, 450, 930]);
        assert_eq!(faults.all().len(), 100);
        (0..100).for_each(|lease| faults.apply(FaultChange::Resolved(calls(lease)), begun));
        assert!(faults.all().is_empty());
        // A fault that comes and goes is not logged each time.
        refused(0, 600);
        assert_eq!(next(&faults).as_secs(), 930);
    }

    #[test]
    fn a_refusal_is_shown_with_its_cure() {
        let faults = Faults::default();
        let (source, prefix) = (calls(0), Some("/user/".to_owned()));
        faults.apply(FaultChange::Refused { source, why: denied(), prefix, is_logged: true }, Instant::now());
        let fault = faults.of(&calls(0)).unwrap();
        assert_eq!((fault.verb, fault.refusal()), (Some(Verb::Write), Some(Refusal::Permission)));
        let text = fault.to_string();
        assert!(text.contains("permission denied") && text.ends_with("--prefix=true readwrite /user/"), "{text}");
    }

    #[test]
    fn a_foreign_value_is_cut_and_harms_no_terminal() {
        assert_eq!(shown(b"a\x1b[31m"), "a\u{fffd}[31m");
        let long = shown("ä".repeat(500).as_bytes());
        assert_eq!(long.chars().count(), 201);
        assert!(long.ends_with('…'));
    }
}
