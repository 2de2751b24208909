//! The handle of one registration.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::{join_all, select_all};
use smallvec::SmallVec;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    error::Error,
    faults::Fault,
    layout::Layout,
    lease::core::messages::{Command, Reply},
    lease_id::LeaseId,
    node::{ServerNode, Weight},
    status::{SharedKey, State, Status},
    timers::Timers,
};

/// Guard that all handles of a registrar share: the registrar runs until the last one is dropped.
#[derive(Debug)]
pub(crate) struct RegistrarGuard {
    _requests: Box<dyn fmt::Debug + Send + Sync>,
    stop_timeout: Duration,
    timers: Arc<Timers>,
}

impl RegistrarGuard {
    /// A guard that holds the channel of requests open.
    pub(crate) fn new(
        requests: impl fmt::Debug + Send + Sync + 'static,
        stop_timeout: Duration,
        timers: Arc<Timers>,
    ) -> Self {
        Self { _requests: Box::new(requests), stop_timeout, timers }
    }

    /// Deadlines of calls to the registrar.
    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }
}

/// A node that is kept in etcd until [`Registration::stop`].
///
/// Dropping the handle deregisters the node in the background, without waiting.
#[derive(Debug)]
pub struct Registration {
    node: Arc<ServerNode>,
    /// One key for each layout, one at least.
    parts: Parts,
    /// Present once the keys are confirmed.
    registrar: Arc<RegistrarGuard>,
}

/// Keys with the layouts that write them: one, as a rule.
pub(crate) type Parts = SmallVec<[(KeyHandle, Layout); 1]>;

/// An owner's handle of one key. Several registrations that succeed one another may own a key; the key is deregistered with
/// the last of them.
#[derive(Debug)]
pub(crate) struct KeyHandle {
    shared: Arc<SharedKey>,
    commands: mpsc::Sender<Command>,
    /// Set by `stop`: a key that another registration has, too, is that one's alone.
    is_released: AtomicBool,
}

impl KeyHandle {
    /// The handle of the first owner.
    pub(crate) fn new(shared: Arc<SharedKey>, commands: mpsc::Sender<Command>) -> Self {
        Self { shared, commands, is_released: AtomicBool::new(false) }
    }

    /// The handle of another owner.
    pub(crate) fn share(&self) -> Self {
        self.shared.add_owner();
        Self::new(self.shared.clone(), self.commands.clone())
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        self.shared.key()
    }

    /// Waits for the reply to a command about the key.
    pub(crate) async fn send(&self, command: impl FnOnce(Arc<SharedKey>, Reply) -> Command) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.commands.send(command(self.shared.clone(), reply)).await.map_err(|_| Error::Ended)?;
        done.await.map_err(|_| Error::Ended)?
    }

    /// Publishes another node under the key, as `layout` writes it.
    pub(crate) async fn replace(&self, node: Arc<ServerNode>, layout: Layout) -> Result<(), Error> {
        self.send(|key, reply| Command::Replace { key, node, layout, reply }).await
    }

    /// Deletes the key, unless another registration owns it. A lease that has ended has deleted its keys.
    async fn stop(&self) -> Result<(), Error> {
        self.release();
        if self.shared.is_owned() {
            return Ok(());
        }
        let (reply, done) = oneshot::channel();
        match self.commands.try_send(Command::Stop { key: self.shared.clone(), reply }) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Ok(()),
            Err(TrySendError::Full(command)) => {
                // The caller may give up before there is room.
                self.shared.metrics().dropped.notify_one();
                if self.commands.send(command).await.is_err() {
                    return Ok(());
                }
            }
        }
        done.await.unwrap_or(Ok(()))
    }

    /// Gives up the part in the key, once.
    fn release(&self) {
        if !self.is_released.swap(true, SeqCst) {
            self.shared.remove_owner();
        }
    }

    /// Returns true once the key is left to another registration.
    fn is_given_up(&self) -> bool {
        self.is_released.load(SeqCst) && self.shared.is_owned()
    }
}

impl Drop for KeyHandle {
    fn drop(&mut self) {
        self.release();
        if !self.shared.is_owned() {
            self.shared.metrics().dropped.notify_one();
        }
    }
}

impl Registration {
    pub(crate) fn new(node: Arc<ServerNode>, parts: Parts, registrar: Arc<RegistrarGuard>) -> Self {
        Self { node, parts, registrar }
    }

    /// Returns true if one of its values has a place for metadata.
    pub fn publishes_metadata(&self) -> bool {
        self.parts.iter().any(|(_, layout)| layout.carries_metadata())
    }

    /// The key in etcd; with several layouts, that of the first.
    pub fn key(&self) -> &Arc<str> {
        self.parts[0].0.key()
    }

    /// All keys in etcd: one per layout, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().map(KeyHandle::key)
    }

    /// The lease of each of the [`keys`](Self::keys) in etcd, in their order: keys of several layouts are under leases of their own.
    /// `None` for a key that is under no lease of this host: not written yet, held by another host, or gone.
    pub fn leases(&self) -> impl Iterator<Item = Option<LeaseId>> {
        self.parts().map(|part| part.shared.lease().filter(|_| !part.is_given_up()))
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &KeyHandle> {
        self.parts.iter().map(|(part, _)| part)
    }

    /// The node as registered, without later changes by [`replace`](Self::replace); [`status`](Self::status) has the current
    /// weight.
    pub fn node(&self) -> &ServerNode {
        &self.node
    }

    /// The current status. Never waits.
    ///
    /// With several layouts, the worst state, the shortest remaining time and the fewest renewals of their keys. Stopped, if
    /// another registration has taken the keys over.
    pub fn status(&self) -> Status {
        let mut keys = self.parts().map(|part| part.shared.status());
        let first = keys.next().expect("one at least");
        let status = keys.fold(first, Status::with);
        match self.has_given_up() {
            true => {
                Status { state: State::Stopped, ttl_remaining: Duration::ZERO, lease_age: Duration::ZERO, ..status }
            }
            false => status,
        }
    }

    /// Returns true once a stopped registration has left keys to another one.
    fn has_given_up(&self) -> bool {
        self.parts().any(KeyHandle::is_given_up)
    }

    /// Reason why the registration is not as it should be, or cannot be taken out of etcd: an unresolved refusal, a missing
    /// response, or the holder of the key; `None` while all is well. With several layouts the first that there is.
    pub fn fault(&self) -> Option<Fault> {
        self.parts().find_map(|part| part.shared.metrics().fault(part.key()))
    }

    /// Waits until the status satisfies `is_met`. Fails with [`Error::Ended`] once the registration has stopped, unless
    /// `is_met` accepts that status.
    pub async fn wait_for(&self, mut is_met: impl FnMut(&Status) -> bool) -> Result<Status, Error> {
        loop {
            let mut changes: Vec<_> =
                self.parts().map(|part| Box::pin(part.shared.metrics().changed.notified())).collect();
            for change in &mut changes {
                change.as_mut().enable();
            }
            let status = self.status();
            if is_met(&status) {
                return Ok(status);
            }
            if status.state == State::Stopped {
                return Err(Error::Ended);
            }
            select_all(changes).await;
        }
    }

    /// Publishes this weight from now on, instead of the computed one.
    ///
    /// Returns once the change is accepted. It is written at least one second after the change before it; an equal weight is
    /// not written. Fails with [`Error::Ended`] when the registration has ended.
    pub async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        self.check_owned()?;
        let set = self.parts().map(|part| part.send(|key, reply| Command::SetWeight { key, weight, reply }));
        join_all(set).await.into_iter().collect()
    }

    /// Publishes another node under the same keys from now on: other metadata, another weight, and another version under
    /// layouts whose keys have no version. Without a weight in `node`, a computed weight stays as published until the host
    /// computes another, and a weight that was set is replaced by the computed one.
    ///
    /// Returns once the change is accepted. It is written in place at least one second after the change before it. Fails with
    /// [`Error::Invalid`] for a node that has another key under one of the layouts, in which case keys of other layouts may
    /// have been replaced, and with [`Error::Ended`] when the registration has ended.
    pub async fn replace(&self, node: ServerNode) -> Result<(), Error> {
        self.check_owned()?;
        self.replace_where(&Arc::new(node), |_| true).await
    }

    /// Publishes another node under some of the keys.
    pub(crate) async fn replace_where(
        &self,
        node: &Arc<ServerNode>,
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let meant = self.parts.iter().filter(|(part, _)| is_meant(part.key()));
        let replaced = meant.map(|(part, layout)| part.replace(node.clone(), layout.clone()));
        join_all(replaced).await.into_iter().collect()
    }

    fn check_owned(&self) -> Result<(), Error> {
        if self.has_given_up() { Err(Error::Ended) } else { Ok(()) }
    }

    /// Deregisters the node. Returns once its keys are deleted, or held by another lease, and nothing of this host can bring
    /// them back. Keys that a later registration has taken over stay.
    ///
    /// Idempotent. After [`Error::Timeout`], and when this future is dropped, the deletion continues in the background.
    pub async fn stop(&self) -> Result<(), Error> {
        // All at once: a part of the keys is no registration.
        self.parts().for_each(KeyHandle::release);
        let after = self.registrar.stop_timeout;
        let stopped = pin!(async {
            match &*self.parts {
                [(part, _)] => part.stop().await,
                // Boxed, so that the usual case does not pay for it.
                parts => {
                    let all = Box::pin(join_all(parts.iter().map(|(part, _)| part.stop())));
                    all.await.into_iter().collect()
                }
            }
        });
        self.registrar.timers().timeout(after, stopped).await.unwrap_or_else(|| {
            let why = match self.fault().map(|fault| fault.why) {
                Some(Error::Unavailable(why)) => Some(why),
                _ => None,
            };
            Err(Error::Timeout { what: "stop", after, why })
        })
    }
}
