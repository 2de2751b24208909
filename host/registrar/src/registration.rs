//! The handle of one registration.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::{join_all, select_all};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    error::Error,
    faults::Fault,
    layout::Layout,
    lease::core::messages::{Command, Reply},
    node::{ServerNode, Weight},
    status::{KeyStatus, LeaseMetrics, State, Status, StatusCell},
};

/// Guard that all handles of a registrar share: the registrar runs until the last one is dropped.
pub(crate) type RegistrarGuard = Arc<dyn fmt::Debug + Send + Sync>;

/// A node that is kept in etcd until [`Registration::stop`].
///
/// Dropping the handle deregisters the node in the background, without waiting.
#[derive(Debug)]
pub struct Registration {
    node: Arc<ServerNode>,
    /// One key for each layout, one at least.
    parts: Vec<(Arc<KeyHandle>, Layout)>,
    /// Set by `stop`: keys that another registration has, too, are that one's alone.
    is_released: AtomicBool,
    /// Present once the keys are confirmed.
    _registrar: RegistrarGuard,
}

/// One key of a registration, or of several that succeed one another.
#[derive(Debug)]
pub(crate) struct KeyHandle {
    key: Arc<str>,
    /// Registrations that have not released the key.
    owners: AtomicUsize,
    /// Present until the last owner drops it, which the lease notices by its weak reference.
    status: Mutex<Option<Arc<StatusCell>>>,
    metrics: Arc<LeaseMetrics>,
    renewals_before: u64,
    commands: mpsc::Sender<Command>,
    stop_timeout: Duration,
    dropped: Arc<Notify>,
}

impl KeyHandle {
    pub(crate) fn new(
        key: Arc<str>,
        status: Arc<StatusCell>,
        metrics: Arc<LeaseMetrics>,
        commands: mpsc::Sender<Command>,
        dropped: Arc<Notify>,
        stop_timeout: Duration,
    ) -> Self {
        let (owners, renewals_before) = (AtomicUsize::new(0), metrics.renewals());
        Self {
            key,
            owners,
            status: Mutex::new(Some(status)),
            metrics,
            renewals_before,
            commands,
            stop_timeout,
            dropped,
        }
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Waits for the reply to a command about the key.
    pub(crate) async fn send(&self, command: impl FnOnce(Arc<str>, Reply) -> Command) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.commands.send(command(self.key.clone(), reply)).await.map_err(|_| Error::Ended)?;
        done.await.map_err(|_| Error::Ended)?
    }

    /// Publishes another node under the key, as `layout` writes it.
    pub(crate) async fn replace(&self, node: Arc<ServerNode>, layout: Layout) -> Result<(), Error> {
        self.send(|key, reply| Command::Replace { key, node, layout, reply }).await
    }

    fn is_owned(&self) -> bool {
        self.owners.load(SeqCst) > 0
    }

    fn status(&self) -> Status {
        let read = self.status.lock().as_ref().map(|status| status.read());
        let over = KeyStatus { state: State::Stopped, weight: Weight::MIN, recoveries: 0 };
        let KeyStatus { state, weight, recoveries } = read.unwrap_or(over);
        let is_over = matches!(state, State::Stopped | State::Pending);
        let now = Instant::now();
        let (ttl_remaining, lease_age) = match is_over {
            true => (Duration::ZERO, Duration::ZERO),
            false => (self.metrics.remaining(now), self.metrics.age(now)),
        };
        // After a suspension of the process, the lease may have expired unnoticed.
        let state = if state == State::Registered && ttl_remaining.is_zero() { State::Suspect } else { state };
        let renewals = self.metrics.renewals() - self.renewals_before;
        Status { state, weight, ttl_remaining, lease_age, renewals, recoveries: recoveries.into() }
    }

    fn abandon(&self) {
        drop(self.status.lock().take());
        self.dropped.notify_one();
    }
}

impl Drop for KeyHandle {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Registration {
    pub(crate) fn new(node: Arc<ServerNode>, parts: Vec<(Arc<KeyHandle>, Layout)>, registrar: RegistrarGuard) -> Self {
        for (part, _) in &parts {
            part.owners.fetch_add(1, SeqCst);
        }
        Self { node, parts, is_released: AtomicBool::new(false), _registrar: registrar }
    }

    /// Returns true if one of its values has a place for metadata.
    pub fn publishes_metadata(&self) -> bool {
        self.parts.iter().any(|(_, layout)| layout.carries_metadata())
    }

    /// The key in etcd; with several layouts, that of the first.
    pub fn key(&self) -> &Arc<str> {
        &self.parts[0].0.key
    }

    /// All keys in etcd: one per layout, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().map(|part| &part.key)
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &Arc<KeyHandle>> {
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
        let (first, others) = (self.parts[0].0.status(), self.parts().skip(1).map(|part| part.status()));
        let status = others.fold(first, Status::with);
        match self.has_given_up() {
            true => {
                Status { state: State::Stopped, ttl_remaining: Duration::ZERO, lease_age: Duration::ZERO, ..status }
            }
            false => status,
        }
    }

    /// Returns true once a stopped registration has left keys to another one.
    fn has_given_up(&self) -> bool {
        self.is_released.load(SeqCst) && self.parts().any(|part| part.is_owned())
    }

    /// Reason why the registration is not as it should be, or cannot be taken out of etcd: an unresolved refusal, a missing
    /// response, or the holder of the key; `None` while all is well. With several layouts the first that there is.
    pub fn fault(&self) -> Option<Fault> {
        self.parts().find_map(|part| part.metrics.fault(&part.key))
    }

    /// Waits until the status satisfies `is_met`. Fails with [`Error::Ended`] once the registration has stopped, unless
    /// `is_met` accepts that status.
    pub async fn wait_for(&self, mut is_met: impl FnMut(&Status) -> bool) -> Result<Status, Error> {
        loop {
            let mut changes: Vec<_> = self.parts().map(|part| Box::pin(part.metrics.changed.notified())).collect();
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
        let meant = self.parts.iter().filter(|(part, _)| is_meant(&part.key));
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
        self.release();
        let stopped = self.parts().filter(|part| !part.is_owned()).map(|part| async {
            let (reply, done) = oneshot::channel();
            let command = Command::Stop { key: part.key.clone(), reply };
            match part.commands.send(command).await {
                // A lease that has ended has deleted its keys.
                Err(_) => Ok(()),
                Ok(()) => done.await.unwrap_or(Ok(())),
            }
        });
        let after = self.parts[0].0.stop_timeout;
        let all = timeout(after, join_all(stopped)).await;
        let because = || match self.fault().map(|fault| fault.why) {
            Some(Error::Unavailable(why)) => Some(why),
            _ => None,
        };
        all.map_err(|_| Error::Timeout { what: "stop", after, why: because() })?.into_iter().collect()
    }

    /// Gives up its part in the keys, once.
    fn release(&self) {
        if !self.is_released.swap(true, SeqCst) {
            for part in self.parts() {
                part.owners.fetch_sub(1, SeqCst);
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.release();
        self.parts().filter(|part| !part.is_owned()).for_each(|part| part.abandon());
    }
}
