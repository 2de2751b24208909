//! Commands: registrations come, change and leave.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    error::Error,
    faults::{FaultChange, Source},
    layout::Layout,
    lease::core::{
        LeaseCore,
        key::{Gone, Key},
        messages::{Action, RegisterRequest, Reply},
    },
    node::{ServerNode, Weight},
    status::{EventKind, SharedKey},
};

impl LeaseCore {
    /// Has a lease granted for a key that is about to come.
    pub(super) fn grant_ahead(&mut self, until: Instant) {
        self.pregranted_until = Some(until).filter(|_| !self.is_ending);
    }

    /// Adds a key, to be written with the next group commit.
    pub(super) fn register(&mut self, request: RegisterRequest, shared: Arc<SharedKey>, reply: Reply, now: Instant) {
        if self.is_ending {
            self.actions.push_back(Action::Reply(reply, Err(Error::Ended)));
            return;
        }
        let (key, deadline) = (request.key.clone(), request.deadline);
        if !shared.is_owned() {
            // The caller has given up by now, and nothing was written.
            self.actions.push_back(Action::Release(key));
            return;
        }
        let place = self.pending.partition_point(|(other, _)| *other <= deadline);
        self.pending.insert(place, (deadline, key.clone()));
        let long_ago = now.checked_sub(self.config.damping.min_interval);
        // A measured weight replaces an estimate as soon as there is one.
        let changed_at = long_ago.filter(|_| self.computed.is_estimate).unwrap_or(now);
        let entry = Key::new(request, shared, reply, self.computed.weight, changed_at);
        self.keys.insert(key.clone(), entry);
        self.pregranted_until = None;
        self.keys.enqueue(&key, now);
    }

    pub(super) fn set_weight(&mut self, key: &Arc<SharedKey>, weight: Weight, reply: Reply, now: Instant) {
        self.change(key, reply, now, |entry| {
            entry.set_weight(weight);
            Ok(())
        });
    }

    pub(super) fn replace(
        &mut self,
        key: &Arc<SharedKey>,
        node: Arc<ServerNode>,
        layout: Layout,
        reply: Reply,
        now: Instant,
    ) {
        let computed = self.computed.weight;
        self.change(key, reply, now, |entry| entry.replace(key.key(), node, layout, computed));
    }

    fn change(
        &mut self,
        key: &Arc<SharedKey>,
        reply: Reply,
        now: Instant,
        change: impl FnOnce(&mut Key) -> Result<(), Error>,
    ) {
        let outcome = match self.keys.get_mut(key.key()).filter(|entry| entry.is_of(key) && entry.is_kept()) {
            Some(entry) => {
                let changed = change(entry);
                entry.show(self.health);
                changed
            }
            None => Err(Error::Ended),
        };
        self.keys.enqueue(key.key(), now);
        self.actions.push_back(Action::Reply(reply, outcome));
    }

    /// Stops a key; the reply follows once it is gone for good.
    pub(super) fn stop(&mut self, key: &Arc<SharedKey>, reply: Reply, now: Instant) {
        match self.keys.get_mut(key.key()).filter(|entry| entry.is_of(key)) {
            // It was shared before the command came.
            Some(_) if key.is_owned() => self.actions.push_back(Action::Reply(reply, Ok(()))),
            Some(entry) => {
                entry.owe(reply);
                self.discard(key.key(), Error::Ended, now);
            }
            None => self.actions.push_back(Action::Reply(reply, Ok(()))),
        }
    }

    pub(super) fn stop_abandoned(&mut self, now: Instant) {
        for key in self.keys.names(Key::is_abandoned) {
            self.discard(&key, Error::Ended, now);
        }
    }

    pub(super) fn end(&mut self, now: Instant) {
        (self.is_ending, self.pregranted_until) = (true, None);
        for key in self.keys.names(|_| true) {
            self.discard(&key, Error::Ended, now);
        }
    }

    /// Fails registrations that were not confirmed in time, with the reason if it is known.
    pub(super) fn expire_pending(&mut self, now: Instant) {
        while let Some((deadline, key)) = self.pending.front().cloned() {
            let waiting = self.keys.get(&key).filter(|entry| entry.is_pending_until(deadline));
            if waiting.is_some() && deadline > now {
                return;
            }
            self.pending.pop_front();
            let Some(entry) = waiting else { continue };
            let error = match (entry.conflicting_lease(), self.registration_failure()) {
                (Some(holder), _) => Error::Conflict { key: key.clone(), lease: Some(holder) },
                (None, Some(failure)) => Error::unavailable(failure.clone()),
                (None, None) => Error::Timeout { what: "register", after: self.config.register_timeout, why: None },
            };
            self.discard(&key, error, now);
        }
    }

    /// Deletes the key from now on: no recovery writes it again. A registration that is pending fails with the error.
    pub(super) fn discard(&mut self, key: &Arc<str>, error: Error, now: Instant) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        if let Some(reply) = entry.take_pending() {
            self.actions.push_back(Action::Reply(reply, Err(error)));
        }
        if !entry.is_kept() {
            return;
        }
        self.keys.stop(key);
        let Some(entry) = self.keys.get(key) else { return };
        entry.show(self.health);
        if entry.was_never_written() {
            self.on_key_gone(key, Gone::Deleted);
        } else {
            self.keys.enqueue(key, now);
        }
    }

    /// Notes that a key that was to be deleted is not in etcd.
    pub(super) fn on_key_gone(&mut self, key: &Arc<str>, gone: Gone) {
        if let Some(entry) = self.keys.get_mut(key).filter(|entry| entry.is_deleting()) {
            entry.on_gone(gone);
            self.gone.push(key.clone());
        }
    }

    /// Releases the keys that are gone, unless a late write may bring one of them back.
    pub(super) fn release_gone_keys(&mut self, now: Instant) {
        let nothing_in_etcd = self.has_nothing_in_etcd();
        if nothing_in_etcd && self.keys.kept() == 0 {
            self.forget_failing(now);
            self.keys.clear_queue();
            self.gone = self.keys.names(|_| true);
        }
        if nothing_in_etcd || !self.leases.have_unanswered_writes() {
            for key in std::mem::take(&mut self.gone) {
                self.release(&key, now);
            }
        }
    }

    fn release(&mut self, key: &Arc<str>, now: Instant) {
        let Some(mut entry) = self.keys.remove(key) else { return };
        if entry.was_confirmed() {
            let why = match entry.gone() {
                Gone::Deleted => "etcd has confirmed that the key is gone".to_owned(),
                Gone::WithLease => "its lease is revoked".to_owned(),
                Gone::Held(holder) => format!("the key stays, since lease {holder} has it"),
            };
            self.report(EventKind::Stopped, Some((key, entry.service().clone())), why, now);
        }
        if entry.has_fault() {
            self.metrics.faults().apply(FaultChange::Forgotten(Source::Key(key.clone())), now);
        }
        self.actions.push_back(Action::Release(key.clone()));
        entry.show_stopped();
        if let Some(reply) = entry.take_pending() {
            self.actions.push_back(Action::Reply(reply, Err(Error::Ended)));
        }
        for reply in entry.take_stop_replies() {
            self.actions.push_back(Action::Reply(reply, Ok(())));
        }
    }
}
