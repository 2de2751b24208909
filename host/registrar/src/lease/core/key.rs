//! One key of a lease: the content that it should have, what etcd is known to have, and the replies that are owed.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    error::Error,
    etcd::Op,
    layout::Layout,
    lease::core::{
        health::LeaseHealth,
        messages::{RegisterRequest, Reply},
    },
    lease_id::LeaseId,
    node::{Invalid, ServerNode, ServiceName, Version, Weight},
    options::Ownership,
    status::{EventKind, KeyStatus, SharedKey, State},
};

/// Shortest time between two writes of a key that is in etcd already. The last of several changes is written then, so that
/// a loop that sets weights does not keep etcd busy.
const MIN_REWRITE: Duration = Duration::from_secs(1);

/// Stage in the life of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The key should be in etcd.
    Kept,
    /// The key is to be deleted.
    Deleting,
    /// The key is not in etcd, or is not this host's. It is released once no late write can bring it back.
    Gone,
    /// Gone with its lease.
    GoneWithLease,
}

/// Way in which a key has left etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// It was never written, or etcd has confirmed its deletion.
    Deleted,
    /// Its lease is revoked.
    WithLease,
    /// It stays, since this lease of another process has it.
    Held(LeaseId),
}

/// Last known state of the key in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyState {
    /// No write is confirmed.
    New {
        /// Set once a write had no response.
        may_exist: bool,
        /// Conflicting lease of another host: the one to take the key over from, or to wait for, by the ownership.
        holder: Option<LeaseId>,
    },
    /// Confirmed under the current lease.
    Published { content: Content, revision: i64 },
    /// Confirmed before; about to be written under the current lease.
    Missing {
        /// Set after another client has written or deleted it.
        altered: bool,
    },
    /// Confirmed before; the lease of another host holds the key now.
    Conflict { holder: LeaseId },
}

/// Kind of transaction that has the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In one transaction with other keys.
    Batched,
    /// In a transaction of its own, after etcd has refused a batch with it.
    Isolated,
    /// With the next audit or the next change of its content, after etcd has refused the key alone; in a transaction of its own if it was isolated before.
    Deferred { is_isolated: bool },
}

/// Published part of a node that can change under the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    weight: Weight,
    /// Number of the node among those that the registration has had.
    edition: u16,
}

/// Answer to a put that met another lease, by the state of the key and its ownership.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OnConflict {
    /// Waits until the key is free; `is_news` unless it waited before.
    Wait { is_news: bool },
    /// Writes again, naming the lease to take over from.
    TakeOver,
    /// Fails the registration.
    Refuse,
}

/// A registration's key, from its first write to its release.
#[derive(Debug)]
pub(super) struct Key {
    node: Arc<ServerNode>,
    layout: Layout,
    ownership: Ownership,
    stage: Stage,
    state: KeyState,
    /// The lease of this task under which the key is believed to be. etcd corrects it.
    lease: Option<LeaseId>,
    weight: Weight,
    edition: u16,
    /// Time of the last change to the published content, or of its request.
    changed_at: Instant,
    /// Content of the put in progress.
    in_flight: Option<Content>,
    delivery: Delivery,
    pub(super) is_queued: bool,
    recoveries: u32,
    /// Deadline and reply of a registration that is not confirmed.
    pending: Option<(Instant, Reply)>,
    /// Present while there is something in it.
    rare: Option<Box<Rare>>,
    shared: Arc<SharedKey>,
}

/// Owner of the lease under which a key was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This task, or nothing held the key.
    Own,
    /// The former process of this host.
    Former,
    Another,
}

/// Part of a key that is empty as a rule.
#[derive(Debug, Default)]
struct Rare {
    /// Other leases of this task under which the key is if a put without a response has taken effect.
    doubtful: Vec<LeaseId>,
    stop_replies: Vec<Reply>,
    /// The lease of another process that has the key, which is not deleted therefore.
    holder: Option<LeaseId>,
}

// Its content, as the owner wants it.
impl Key {
    pub(super) fn new(
        request: RegisterRequest,
        shared: Arc<SharedKey>,
        reply: Reply,
        computed: Weight,
        changed_at: Instant,
    ) -> Self {
        Self {
            weight: request.node.weight.unwrap_or(computed),
            node: request.node,
            layout: request.layout,
            ownership: request.ownership,
            stage: Stage::Kept,
            state: KeyState::New { may_exist: false, holder: None },
            lease: None,
            edition: 0,
            changed_at,
            in_flight: None,
            delivery: Delivery::Batched,
            is_queued: false,
            recoveries: 0,
            pending: Some((request.deadline, reply)),
            rare: None,
            shared,
        }
    }

    /// Prefix of the keys of its service.
    pub(super) fn prefix(&self) -> String {
        self.layout.prefix(&self.node.name, &Version::default())
    }

    /// Name of its service.
    pub(super) fn service(&self) -> &ServiceName {
        &self.node.name
    }

    /// Publishes this weight from now on, instead of the computed one.
    pub(super) fn set_weight(&mut self, weight: Weight) {
        let node = ServerNode { weight: Some(weight), ..(*self.node).clone() };
        self.node = Arc::new(node);
        self.weight = weight;
    }

    /// Publishes another node under the same key from now on, as `layout` writes it; if the node gives up a weight of its own,
    /// with the computed one.
    pub(super) fn replace(
        &mut self,
        key: &str,
        node: Arc<ServerNode>,
        layout: Layout,
        computed: Weight,
    ) -> Result<(), Error> {
        layout.accept(&node)?;
        let other = layout.key(&node);
        if other != key {
            return Err(Invalid::new("node", format!("must have the key {key}, not {other}")).into());
        }
        let otherwise = if self.node.weight.is_some() { computed } else { self.weight };
        self.weight = node.weight.unwrap_or(otherwise);
        (self.node, self.layout) = (node, layout);
        self.edition = self.edition.wrapping_add(1);
        Ok(())
    }

    /// Publishes the computed weight from now on if the node brings none, and `is_due` for the published weight of that age.
    pub(super) fn follow_load(
        &mut self,
        computed: Weight,
        now: Instant,
        is_due: impl Fn(Weight, Duration) -> bool,
    ) -> bool {
        let follows = self.is_kept() && self.node.weight.is_none() && is_due(self.weight, now - self.changed_at);
        if follows {
            self.weight = computed;
        }
        follows
    }

    fn content(&self) -> Content {
        Content { weight: self.weight, edition: self.edition }
    }
}

// Its life.
impl Key {
    pub(super) fn is_kept(&self) -> bool {
        self.stage == Stage::Kept
    }

    pub(super) fn is_deleting(&self) -> bool {
        self.stage == Stage::Deleting
    }

    /// Returns true for the key that those handles share.
    pub(super) fn is_of(&self, shared: &Arc<SharedKey>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Detects a key whose last owner has dropped its handle.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_kept() && !self.shared.is_owned()
    }

    /// Returns true while the registration waits for its confirmation until that time.
    pub(super) fn is_pending_until(&self, deadline: Instant) -> bool {
        self.pending.as_ref().is_some_and(|(until, _)| *until == deadline)
    }

    /// Reply to the registration, if one is owed. A caller that has given up has dropped the handle, which stops the key.
    pub(super) fn take_pending(&mut self) -> Option<Reply> {
        self.pending.take().map(|(_, reply)| reply)
    }

    pub(super) fn owe(&mut self, stop_reply: Reply) {
        self.rare.get_or_insert_default().stop_replies.push(stop_reply);
    }

    pub(super) fn take_stop_replies(&mut self) -> Vec<Reply> {
        self.rare.take().map(|rare| rare.stop_replies).unwrap_or_default()
    }

    /// Starts the deletion.
    pub(super) fn stop(&mut self) {
        self.stage = Stage::Deleting;
    }

    /// Notes that the key is not in etcd, or is not this host's.
    pub(super) fn on_gone(&mut self, gone: Gone) {
        self.stage = if gone == Gone::WithLease { Stage::GoneWithLease } else { Stage::Gone };
        if let Gone::Held(holder) = gone {
            self.rare.get_or_insert_default().holder = Some(holder);
        }
    }

    /// The way in which it has left etcd. A key that is still to be deleted has gone with the last lease.
    pub(super) fn gone(&self) -> Gone {
        match (self.rare.as_ref().and_then(|rare| rare.holder), self.stage, self.state) {
            (Some(holder), ..) | (None, _, KeyState::Conflict { holder }) => Gone::Held(holder),
            (None, Stage::Gone, _) => Gone::Deleted,
            (None, ..) => Gone::WithLease,
        }
    }

    /// Returns true once etcd has confirmed a write.
    pub(super) fn was_confirmed(&self) -> bool {
        !matches!(self.state, KeyState::New { .. })
    }

    /// Returns true if the key cannot be in etcd: every write that was sent has been refused.
    pub(super) fn was_never_written(&self) -> bool {
        matches!(self.state, KeyState::New { may_exist: false, .. }) && self.in_flight.is_none()
    }

    /// Returns true if a fault of this key is recorded.
    pub(super) fn has_fault(&self) -> bool {
        self.is_deferred() || self.conflicting_lease().is_some()
    }

    /// The lease of another host that the registration waits for.
    pub(super) fn conflicting_lease(&self) -> Option<LeaseId> {
        match self.state {
            KeyState::Conflict { holder } => Some(holder),
            KeyState::New { holder, .. } if self.ownership == Ownership::Wait => holder,
            _ => None,
        }
    }

    fn take_over_target(&self) -> Option<LeaseId> {
        match self.state {
            KeyState::New { holder, .. } if self.ownership == Ownership::TakeOver => holder,
            _ => None,
        }
    }
}

// Its writes.
impl Key {
    /// Returns true if the next write only changes content in etcd that the owner may change more often than it is written.
    pub(super) fn is_rewrite(&self) -> bool {
        matches!(self.state, KeyState::Published { .. }) && !self.is_deferred()
    }

    /// Returns true while a write is needed.
    pub(super) fn is_dirty(&self) -> bool {
        match (self.stage, self.state) {
            (Stage::Kept, KeyState::Published { content, .. }) => content != self.content(),
            (Stage::Kept | Stage::Deleting, _) => true,
            (Stage::Gone | Stage::GoneWithLease, _) => false,
        }
    }

    /// Earliest time for the next write; in the past unless the key is in etcd and only its content changes.
    pub(super) fn write_at(&self) -> Instant {
        match (self.stage, self.state) {
            (Stage::Kept, KeyState::Published { .. }) => self.changed_at + MIN_REWRITE,
            _ => self.changed_at,
        }
    }

    pub(super) fn is_batched(&self) -> bool {
        matches!(self.delivery, Delivery::Batched | Delivery::Deferred { is_isolated: false })
    }

    /// Returns true if the key may be written in one transaction with others, of which `first` is one. While etcd refuses
    /// writes, puts and deletes are apart.
    pub(super) fn joins(&self, first: &Op, is_refused: bool) -> bool {
        self.is_batched() && (!is_refused || first.is_put() == self.is_kept())
    }

    pub(super) fn is_deferred(&self) -> bool {
        matches!(self.delivery, Delivery::Deferred { .. })
    }

    /// Its next write, in a transaction that puts keys under `lease`.
    pub(super) fn op(&mut self, key: &Arc<str>, lease: LeaseId, now: Instant) -> Op {
        let key = key.clone();
        if !self.is_kept() {
            // Never the target of a take-over: the key belongs to that host until the take-over is confirmed.
            return Op::Delete { key, held: self.lease.unwrap_or(lease) };
        }
        if let KeyState::Published { .. } = self.state {
            self.changed_at = now;
        }
        self.in_flight = Some(self.content());
        let held = self.take_over_target().or(self.lease);
        Op::Put { key, value: self.layout.value(&self.node, self.weight), held }
    }

    /// Notes a confirmed put under `lease`, where lease `over` held the key before. Returns what that is news of.
    pub(super) fn on_written(
        &mut self,
        lease: LeaseId,
        over: Option<LeaseId>,
        origin: Origin,
        revision: i64,
        is_recovering: bool,
    ) -> Option<(EventKind, String)> {
        let content = self.in_flight.take()?;
        self.forget_doubtful();
        let before = std::mem::replace(&mut self.state, KeyState::Published { content, revision });
        self.lease = Some(lease);
        self.delivery = Delivery::Batched;
        let was_lost = over.is_none();
        let was_altered = before == KeyState::Missing { altered: true } && over == Some(lease);
        if !matches!(before, KeyState::New { .. }) && (was_lost || was_altered) {
            self.recoveries += 1;
        }
        let (kind, why) = match (before, over) {
            (KeyState::New { .. }, Some(over)) if origin == Origin::Another => {
                (EventKind::TookOver, format!("it was held by lease {over}"))
            }
            (KeyState::New { .. }, Some(_)) if origin == Origin::Former => {
                (EventKind::Registered, "it was that of the former process of this host".to_owned())
            }
            (KeyState::New { .. }, _) => (EventKind::Registered, "etcd has confirmed it".to_owned()),
            (KeyState::Conflict { .. }, _) => (EventKind::Healed, "the key was free again".to_owned()),
            _ if was_lost && !is_recovering => {
                (EventKind::Healed, "the key was missing or had lost its lease".to_owned())
            }
            _ if was_altered => (EventKind::Healed, "another client had written over its value".to_owned()),
            (KeyState::Published { content: before, .. }, _) if before.edition != content.edition => {
                (EventKind::Updated, "the node behind the key is another one".to_owned())
            }
            (KeyState::Published { .. }, _) => (EventKind::Weighed, format!("weight {}", self.weight)),
            (KeyState::Missing { .. }, _) => return None,
        };
        Some((kind, why))
    }

    /// Notes a put that met a lease of this task: a write before it, without a response, has taken effect.
    pub(super) fn on_held_by_us(&mut self, lease: LeaseId) {
        self.in_flight = None;
        self.forget_doubtful();
        self.lease = Some(lease);
        if self.ownership == Ownership::TakeOver
            && let KeyState::New { holder, .. } = &mut self.state
        {
            *holder = None;
        }
    }

    /// Notes a put that met a lease of another host.
    pub(super) fn on_conflict(&mut self, lease: LeaseId) -> OnConflict {
        self.in_flight = None;
        self.forget_doubtful();
        let before = self.conflicting_lease();
        match &mut self.state {
            KeyState::New { holder, .. } => match self.ownership {
                Ownership::TakeOver => {
                    *holder = Some(lease);
                    return OnConflict::TakeOver;
                }
                Ownership::Refuse => return OnConflict::Refuse,
                Ownership::Wait => *holder = Some(lease),
            },
            state => *state = KeyState::Conflict { holder: lease },
        }
        self.lease = None;
        OnConflict::Wait { is_news: before.is_none() }
    }

    /// Notes a delete that met another lease of this task.
    pub(super) fn on_not_deleted(&mut self, lease: LeaseId) {
        self.lease = Some(lease);
    }

    /// Notes a failed write. `in_doubt` is the lease under which it put the key if it has taken effect all the same.
    pub(super) fn on_failed(&mut self, in_doubt: Option<LeaseId>) {
        let was_put = self.in_flight.take().is_some();
        let Some(lease) = in_doubt.filter(|_| was_put) else { return };
        if !self.doubtful().contains(&lease) {
            self.rare.get_or_insert_default().doubtful.push(lease);
        }
        if let KeyState::New { may_exist, .. } = &mut self.state {
            *may_exist = true;
        }
    }

    /// Notes a batch that etcd refused: one of its keys is to blame.
    pub(super) fn isolate(&mut self) {
        self.delivery = match self.delivery {
            Delivery::Batched | Delivery::Isolated => Delivery::Isolated,
            Delivery::Deferred { .. } => Delivery::Deferred { is_isolated: true },
        };
    }

    /// Notes that etcd refused this key alone.
    pub(super) fn defer(&mut self) {
        self.delivery = Delivery::Deferred { is_isolated: !self.is_batched() };
    }

    /// Notes that the refused write is not needed any more.
    pub(super) fn resume(&mut self) {
        self.delivery = if self.is_batched() { Delivery::Batched } else { Delivery::Isolated };
    }
}

// News of its lease.
impl Key {
    /// Leases under which a put without a response may have left the key.
    pub(super) fn doubtful(&self) -> &[LeaseId] {
        self.rare.as_ref().map_or(&[], |rare| &rare.doubtful)
    }

    fn forget_doubtful(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.doubtful.clear();
        }
        self.rare.take_if(|rare| rare.stop_replies.is_empty() && rare.holder.is_none());
    }

    /// Returns true if the key was believed to be under the lease.
    pub(super) fn is_under(&self, lease: LeaseId) -> bool {
        self.lease == Some(lease)
    }

    /// Returns true if the key is under the lease, as believed or if a put without a response has taken effect.
    pub(super) fn may_be_under(&self, lease: LeaseId) -> bool {
        self.is_under(lease) || self.doubtful().contains(&lease)
    }

    /// Revision with which etcd should have the key under the lease.
    pub(super) fn revision_under(&self, lease: LeaseId) -> Option<i64> {
        match self.state {
            KeyState::Published { revision, .. } if self.is_kept() && self.is_under(lease) => Some(revision),
            _ => None,
        }
    }

    /// Notes that the key has to be written again.
    pub(super) fn unpublish(&mut self) {
        if let KeyState::Published { .. } = self.state {
            self.state = KeyState::Missing { altered: false };
        }
    }

    /// Notes that another client has written or deleted the key.
    pub(super) fn on_altered(&mut self) {
        self.state = KeyState::Missing { altered: true };
    }

    /// Notes that the lease does not exist any more, and the key with it if it was there.
    pub(super) fn on_lease_gone(&mut self, lease: LeaseId) {
        if let Some(rare) = &mut self.rare {
            rare.doubtful.retain(|doubtful| *doubtful != lease);
        }
        if self.is_under(lease) {
            self.lease = None;
            self.unpublish();
        }
    }
}

// Its status, as the handle sees it.
impl Key {
    pub(super) fn show(&self, health: LeaseHealth) {
        self.show_state(match (self.stage, self.state) {
            (Stage::Deleting | Stage::Gone | Stage::GoneWithLease, _) => State::Draining,
            (Stage::Kept, KeyState::New { .. }) => State::Pending,
            (Stage::Kept, KeyState::Conflict { .. }) => State::Conflict,
            (Stage::Kept, KeyState::Missing { .. }) => State::Recovering,
            (Stage::Kept, KeyState::Published { .. }) => match health {
                LeaseHealth::Recovering => State::Recovering,
                LeaseHealth::Suspect => State::Suspect,
                LeaseHealth::Steady if self.is_deferred() => State::Suspect,
                LeaseHealth::Steady => State::Registered,
            },
        });
    }

    pub(super) fn show_stopped(&self) {
        self.show_state(State::Stopped);
    }

    fn show_state(&self, state: State) {
        self.shared.write(KeyStatus { state, weight: self.weight, recoveries: self.recoveries });
    }
}
