//! Failures of requests, and what they mean for the status of the keys.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{debug, field::display, info, warn};

use crate::{
    error::Error,
    etcd::{Failure, latency::Verb},
    faults::FaultChange,
    lease::core::{LeaseCore, health::LeaseHealth, messages::Action},
    node::ServiceName,
    status::{Event, EventKind},
};

impl LeaseCore {
    /// Notes a failed request, which will be repeated.
    pub(super) fn on_failed(&mut self, verb: Verb, failure: &Failure, now: Instant) {
        self.failing.insert(verb, failure.clone());
        // An expired token costs one renewal, and is replaced.
        let is_first_renewal = verb == Verb::Renew && self.leases.current().is_some_and(|held| held.failures < 2);
        let fault = FaultChange::Refused {
            source: self.metrics.source(verb),
            why: Error::unavailable(failure.clone()),
            prefix: self.keys.iter().next().map(|(_, key)| key.prefix()),
            is_logged: !is_first_renewal,
        };
        self.metrics.faults().apply(fault, now);
        if self.is_refused() && self.health == LeaseHealth::Steady && self.keys.kept() > 0 {
            let why = format!("etcd refuses to {verb}: {failure}");
            self.change_health(LeaseHealth::Suspect, EventKind::Refused, why, now);
        }
    }

    /// Notes a successful request.
    pub(super) fn on_succeeded(&mut self, verb: Verb, now: Instant) {
        if !self.resolve(verb, now) {
            return;
        }
        let is_renewed = self.leases.current().is_some_and(|held| held.failures == 0);
        if self.health == LeaseHealth::Suspect && is_renewed && !self.is_refused() {
            let why = "etcd no longer refuses the requests of this lease".to_owned();
            self.change_health(LeaseHealth::Steady, EventKind::Confirmed, why, now);
        }
    }

    /// Resolves the fault of failed requests of a kind. Returns false if there was none.
    pub(super) fn resolve(&mut self, verb: Verb, now: Instant) -> bool {
        let was_failing = self.failing.remove(&verb).is_some();
        if was_failing {
            self.metrics.faults().apply(FaultChange::Resolved(self.metrics.source(verb)), now);
        }
        was_failing
    }

    /// Drops the faults of failed requests that are not repeated, since nothing is left to do.
    pub(super) fn forget_failing(&mut self, now: Instant) {
        for verb in std::mem::take(&mut self.failing).into_keys() {
            self.metrics.faults().apply(FaultChange::Forgotten(self.metrics.source(verb)), now);
        }
    }

    /// Returns true if etcd refuses requests that a new term would need. Renewals do not count: a refused one costs no key
    /// before the lease expires.
    pub(super) fn is_refused(&self) -> bool {
        let counts = |verb: Verb| matches!(verb, Verb::Grant | Verb::Write | Verb::Look);
        self.failing.iter().any(|(verb, failure)| failure.refusal().is_some() && counts(*verb))
    }

    /// Reason why registrations are not confirmed, if requests that they need fail.
    pub(super) fn registration_failure(&self) -> Option<&Failure> {
        [Verb::Write, Verb::Grant, Verb::Renew].iter().find_map(|verb| self.failing.get(verb))
    }

    /// Notes that every key is under the new lease, apart from those that etcd refuses to write.
    pub(super) fn note_recovery(&mut self, now: Instant) {
        let is_sound = self.leases.current().is_some_and(|held| held.is_sound());
        let is_committing = self.in_flight.is_some_and(|(verb, _)| verb == Verb::Write);
        if self.keys.kept() == 0 {
            (self.health, self.health_since) = (LeaseHealth::Steady, now);
        } else if self.health == LeaseHealth::Recovering && is_sound && self.keys.is_queue_empty() && !is_committing {
            let some_refused = self.keys.iter().any(|(_, key)| key.is_kept() && key.is_deferred());
            let which = if some_refused { "every key that etcd accepts" } else { "every key" };
            let why = format!("{which} stands under the new lease");
            self.change_health(LeaseHealth::Steady, EventKind::Recovered, why, now);
        }
    }

    pub(super) fn change_health(&mut self, health: LeaseHealth, kind: EventKind, why: String, now: Instant) {
        // Without a kept key there is no status to follow the lease, and nothing to recover.
        if self.health == health || self.keys.kept() == 0 {
            return;
        }
        self.health = health;
        for (_, key) in self.keys.iter() {
            key.show(health);
        }
        self.report(kind, None, why, now);
        self.health_since = now;
    }

    /// Logs and publishes an event of a key of a service, or of the lease with all its keys.
    pub(super) fn report(&mut self, kind: EventKind, on: Option<(&Arc<str>, ServiceName)>, why: String, now: Instant) {
        let current = self.leases.current();
        let lease = current.map(|held| held.id);
        let lease_age = current.map_or(Duration::ZERO, |held| now - held.granted_at);
        let since = now - self.health_since;
        let (key, service) = on.unzip();
        let event = Event { kind, key: key.cloned(), service, why, lease, lease_age, since };
        self.log(&event);
        self.actions.push_back(Action::Report(event));
    }

    fn log(&self, event: &Event) {
        let Event { kind, why, since, .. } = event;
        let (name, sentence) = (kind.name(), kind.sentence());
        let (key, lease) = (event.key.as_deref(), event.lease.map(display));
        // An event of the lease concerns every service with a key on it. Called for lines that are logged.
        let service = || event.service.as_ref().map(ToString::to_string).or_else(|| self.keys.services());
        let keys = event.key.is_none().then(|| self.keys.kept());
        let lasted = matches!(kind, EventKind::Confirmed | EventKind::Recovered).then(|| since.as_secs_f64());
        match kind {
            // A refusal is logged once for all leases that meet it.
            EventKind::Renewed | EventKind::Weighed | EventKind::Updated | EventKind::Refused => {
                debug!(event = name, service = service(), key, keys, lease, "{sentence}: {why}");
            }
            EventKind::Registered | EventKind::Stopped | EventKind::Recovered | EventKind::Confirmed => {
                info!(event = name, service = service(), key, keys, lease, lasted, "{sentence}: {why}");
            }
            EventKind::TookOver
            | EventKind::Suspect
            | EventKind::Recovering
            | EventKind::Healed
            | EventKind::Conflict => {
                warn!(event = name, service = service(), key, keys, lease, "{sentence}: {why}");
            }
        }
    }
}
