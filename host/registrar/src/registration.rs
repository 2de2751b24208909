//! The handle of one registration.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::{join_all, select_all};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    error::Error,
    faults::Fault,
    lease::core::messages::Command,
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
    pub(crate) key: Arc<str>,
    pub(crate) node: Arc<ServerNode>,
    /// Present until the drop, which the lease notices by its weak reference.
    pub(crate) status: Option<Arc<StatusCell>>,
    pub(crate) metrics: Arc<LeaseMetrics>,
    pub(crate) renewals_before: u64,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) stop_timeout: Duration,
    pub(crate) dropped: Arc<Notify>,
    /// Present once the key is confirmed.
    pub(crate) registrar: Option<RegistrarGuard>,
    /// Registrations of the same node under further layouts.
    pub(crate) others: Vec<Registration>,
}

impl Registration {
    /// The key in etcd; with several layouts, that of the first.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// All keys in etcd: one per layout, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().map(|part| &part.key)
    }

    fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The node as registered, without later changes by [`replace`](Self::replace); [`status`](Self::status) has the current
    /// weight.
    pub fn node(&self) -> &ServerNode {
        &self.node
    }

    /// The current status. Never waits.
    ///
    /// With several layouts, the worst state, the shortest remaining time and the fewest renewals of their keys.
    pub fn status(&self) -> Status {
        self.others.iter().map(Self::status_of_key).fold(self.status_of_key(), Status::with)
    }

    fn status_of_key(&self) -> Status {
        let KeyStatus { state, weight, recoveries } = self.status.as_ref().expect("present until the drop").read();
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
        self.send(|key, reply| Command::SetWeight { key, weight, reply }).await
    }

    /// Publishes another node under the same keys from now on: other metadata, another weight, and another version under
    /// layouts whose keys have no version. Without a weight in `node`, a computed weight stays as published until the host
    /// computes another, and a weight that was set is replaced by the computed one.
    ///
    /// Returns once the change is accepted. It is written in place at least one second after the change before it. Fails with
    /// [`Error::Invalid`] for a node that has another key under one of the layouts, in which case keys of other layouts may
    /// have been replaced, and with [`Error::Ended`] when the registration has ended.
    pub async fn replace(&self, node: ServerNode) -> Result<(), Error> {
        let node = Arc::new(node);
        self.send(|key, reply| Command::Replace { key, node: node.clone(), reply }).await
    }

    async fn send(
        &self,
        command: impl Fn(Arc<str>, oneshot::Sender<Result<(), Error>>) -> Command,
    ) -> Result<(), Error> {
        let outcomes = self.parts().map(|part| {
            let (reply, done) = oneshot::channel();
            let command = command(part.key.clone(), reply);
            async {
                part.commands.send(command).await.map_err(|_| Error::Ended)?;
                done.await.map_err(|_| Error::Ended)?
            }
        });
        join_all(outcomes).await.into_iter().collect()
    }

    /// Deregisters the node. Returns once its keys are deleted, or held by another lease, and nothing of this host can bring
    /// them back.
    ///
    /// Idempotent. After [`Error::Timeout`], and when this future is dropped, the deletion continues in the background.
    pub async fn stop(&self) -> Result<(), Error> {
        let stopped = self.parts().map(|part| async {
            let (reply, done) = oneshot::channel();
            let command = Command::Stop { key: part.key.clone(), reply };
            match part.commands.send(command).await {
                // A lease that has ended has deleted its keys.
                Err(_) => Ok(()),
                Ok(()) => done.await.unwrap_or(Ok(())),
            }
        });
        let after = self.stop_timeout;
        let all = timeout(after, join_all(stopped)).await;
        let because = || match self.fault().map(|fault| fault.why) {
            Some(Error::Unavailable(why)) => Some(why),
            _ => None,
        };
        all.map_err(|_| Error::Timeout { what: "stop", after, why: because() })?.into_iter().collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.status = None;
        self.dropped.notify_one();
    }
}
