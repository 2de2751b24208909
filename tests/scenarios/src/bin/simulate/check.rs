//! The promises as predicates over the ledger and etcd's complete history.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use leasehold_scenarios::sim::{Cause, Event, EventKind};

use crate::ledger::{Act, Request};

/// Latest time after the end of its call that a take-over may be applied: the simulated network holds no request longer.
const LATE: Duration = Duration::from_secs(60);

/// Returns one sentence per promise that the history breaks.
pub(crate) fn violations(acts: &[Act], history: &[Event], unhealthy: &Unhealthy) -> Vec<String> {
    let mut owners: BTreeMap<i64, String> = BTreeMap::new();
    for event in history {
        if let (EventKind::Granted { lease, .. }, Some(host)) = (&event.kind, event.host()) {
            owners.insert(*lease, host.to_owned());
        }
    }
    let view = View { acts, history, owners, unhealthy };
    let mut found = Vec::new();
    view.visible(&mut found);
    view.gone(&mut found);
    view.no_clobber_and_no_gap(&mut found);
    found
}

/// Times in which a host cannot be expected to keep its leases.
#[derive(Debug, Default)]
pub(crate) struct Unhealthy(Vec<(Option<String>, Duration, Duration)>);

impl Unhealthy {
    /// Adds a time for one host, or for every host if `host` is `None`.
    pub(crate) fn add(&mut self, host: Option<&str>, from: Duration, to: Duration) {
        self.0.push((host.map(str::to_owned), from, to));
    }

    fn covers(&self, host: &str, from: Duration, to: Duration) -> bool {
        self.0
            .iter()
            .any(|(who, start, end)| who.as_deref().is_none_or(|who| who == host) && *start <= to && from <= *end)
    }
}

struct View<'a> {
    acts: &'a [Act],
    history: &'a [Event],
    owners: BTreeMap<i64, String>,
    unhealthy: &'a Unhealthy,
}

impl View<'_> {
    fn owner(&self, lease: i64) -> Option<&str> {
        self.owners.get(&lease).map(String::as_str)
    }

    /// Promise 1: when register returns ok, the key is in etcd under a live lease of that host.
    fn visible(&self, found: &mut Vec<String>) {
        for act in self.acts {
            let (Request::Register { .. }, Some((at, true))) = (&act.request, act.outcome) else { continue };
            let before: Vec<&Event> = self.history.iter().take_while(|event| event.at <= at).collect();
            let disturbed = before.iter().rev().take_while(|event| event.at >= act.from).any(|event| {
                event.host() != Some(&act.host) && (event.key() == Some(&act.key) || event.key().is_none())
            });
            let last = before.iter().rev().find(|event| event.key() == Some(&act.key));
            let stands = match last.map(|event| &event.kind) {
                Some(EventKind::Put { lease, .. }) => self.owner(*lease) == Some(&act.host),
                _ => false,
            };
            if !stands && !disturbed {
                found.push(format!("visible: {} registered {} at {at:?}, and it is not there", act.host, act.key));
            }
        }
    }

    /// Promise 2: after a stop returned ok, that host does not write the key again until its next `register`.
    fn gone(&self, found: &mut Vec<String>) {
        for (index, act) in self.acts.iter().enumerate() {
            let (Request::Stop, Some((at, true))) = (&act.request, act.outcome) else { continue };
            let again = self.acts[index..].iter().find(|later| {
                later.host == act.host && later.key == act.key && matches!(later.request, Request::Register { .. })
            });
            let until = again.map_or(Duration::MAX, |later| later.from);
            let of_it = self.history.iter().filter(|event| event.key() == Some(&act.key));
            let last_before = of_it.clone().take_while(|event| event.at <= at).last();
            if let Some(EventKind::Put { lease, .. }) = last_before.map(|event| &event.kind)
                && self.owner(*lease) == Some(&act.host)
                && until > at
            {
                found.push(format!("gone: {} stopped {} at {at:?}, and it is still there", act.host, act.key));
            }
            for event in of_it.filter(|event| event.at > at && event.at < until && event.host() == Some(&act.host)) {
                if matches!(event.kind, EventKind::Put { .. }) {
                    found.push(format!(
                        "gone: {} wrote {} at {:?} after its stop at {at:?}",
                        act.host, act.key, event.at
                    ));
                }
            }
        }
    }

    /// Promises 5 and 6; also, no healthy host loses a lease.
    fn no_clobber_and_no_gap(&self, found: &mut Vec<String>) {
        for event in self.history {
            let Some(key) = event.key() else { continue };
            match (&event.kind, event.host()) {
                (EventKind::Put { previous_lease: Some(previous), .. }, Some(host)) if *previous != 0 => {
                    let stranger = self.owner(*previous) != Some(host);
                    if stranger && !self.may_take_over(host, key, event.at) {
                        found.push(format!(
                            "no clobber: {host} wrote over {key} of lease {previous:x} at {:?}",
                            event.at
                        ));
                    }
                }
                (EventKind::Delete { previous_lease, .. }, Some(host)) => {
                    if self.owner(*previous_lease) != Some(host) {
                        found.push(format!(
                            "no clobber: {host} deleted {key} of lease {previous_lease:x} at {:?}",
                            event.at
                        ));
                    } else if self.desires(host, key, event.at) && !self.landed_late(key, event.at) {
                        found.push(format!("no gap: {host} deleted {key} at {:?}, which it should keep", event.at));
                    }
                }
                (EventKind::Delete { previous_lease, .. }, None) if event.cause == Cause::Expiry => {
                    let Some(host) = self.owner(*previous_lease) else { continue };
                    let window = event.at.saturating_sub(Duration::from_secs(40));
                    if self.desires(host, key, event.at) && !self.unhealthy.covers(host, window, event.at) {
                        found.push(format!("kept: healthy {host} let the lease of {key} expire at {:?}", event.at));
                    }
                }
                _ => {}
            }
        }
    }

    /// True if the key was last put by a late write, after its caller had given up. Readers cannot distinguish its end from
    /// that of a key that never existed, and the fencing lease removes it.
    fn landed_late(&self, key: &str, at: Duration) -> bool {
        let puts = self.history.iter().take_while(|event| event.at < at);
        let last = puts.filter(|event| event.key() == Some(key) && matches!(event.kind, EventKind::Put { .. })).last();
        last.is_some_and(|event| matches!(event.cause, Cause::Call { late: true, .. }))
    }

    fn may_take_over(&self, host: &str, key: &str, at: Duration) -> bool {
        self.acts.iter().any(|act| {
            let ended = act.outcome.map_or(Duration::MAX, |(end, _)| end.saturating_add(LATE));
            act.host == host
                && act.key == key
                && act.request == Request::Register { may_take_over: true }
                && (act.from..=ended).contains(&at)
        })
    }

    /// True if the host returned ok for the key's `register`, and had no `stop` since.
    fn desires(&self, host: &str, key: &str, at: Duration) -> bool {
        let mut desires = false;
        let mut crashed = BTreeSet::new();
        for act in self.acts.iter().filter(|act| act.host == host && (act.key == key || act.request == Request::Crash))
        {
            match act.request {
                Request::Register { .. } if act.outcome.is_some_and(|(end, ok)| ok && end <= at) => desires = true,
                Request::Stop | Request::Drop if act.from <= at => desires = false,
                Request::Crash if act.from <= at => {
                    crashed.insert(&act.host);
                }
                _ => {}
            }
        }
        desires && crashed.is_empty()
    }
}
