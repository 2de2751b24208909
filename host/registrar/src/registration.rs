//! The handle to one node that is kept in etcd.

use std::{sync::Arc, time::Duration};

use futures::future::{join_all, select_all};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    error::Error,
    lease::task::Command,
    node::{ServerNode, Weight},
    placement::Request,
    status::{Board, Standing, State, Status, Vitals},
};

/// A node that is kept in etcd until [`Registration::stop`].
///
/// Dropping it takes the node back too, in the background: it signals and does not wait.
#[derive(Debug)]
pub struct Registration {
    pub(crate) key: Arc<str>,
    pub(crate) node: Arc<ServerNode>,
    /// Present until the drop; the lease watches whether it is alive.
    pub(crate) board: Option<Arc<Board>>,
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) renewals_before: u64,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) stop_timeout: Duration,
    pub(crate) nudge: Arc<Notify>,
    /// Keeps the registrar alive, whose other handles may all be gone.
    pub(crate) keeper: Option<mpsc::Sender<Request>>,
    /// The same node under further layouts.
    pub(crate) others: Vec<Registration>,
}

impl Registration {
    /// The key in etcd; with several layouts that of the first.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Every key in etcd: one for each layout, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().map(|part| &part.key)
    }

    fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The node as it was registered, whatever [`replace`](Self::replace) made of it since; [`status`](Self::status) has
    /// the present weight.
    pub fn node(&self) -> &ServerNode {
        &self.node
    }

    /// Where it stands now. Never waits.
    ///
    /// With several layouts the state is that of the key which is worst off, and so are time left and renewals.
    pub fn status(&self) -> Status {
        self.others.iter().map(Self::status_of_key).fold(self.status_of_key(), Status::with)
    }

    fn status_of_key(&self) -> Status {
        let Standing { state, weight, recoveries } = self.board.as_ref().expect("present until the drop").read();
        let is_over = matches!(state, State::Stopped | State::Pending);
        let now = Instant::now();
        let (ttl_remaining, lease_age) = match is_over {
            true => (Duration::ZERO, Duration::ZERO),
            false => (self.vitals.remaining(now), self.vitals.age(now)),
        };
        // A process that was suspended finds out before it trusts.
        let state = if state == State::Registered && ttl_remaining.is_zero() { State::Suspect } else { state };
        let renewals = self.vitals.renewals() - self.renewals_before;
        Status { state, weight, ttl_remaining, lease_age, renewals, recoveries: recoveries.into() }
    }

    /// Returns when the status satisfies `is_met`, at once if it does already. A stopped registration fails with
    /// [`Error::Ended`] unless that is what is waited for.
    pub async fn wait_for(&self, mut is_met: impl FnMut(&Status) -> bool) -> Result<Status, Error> {
        loop {
            let mut changes: Vec<_> = self.parts().map(|part| Box::pin(part.vitals.changed.notified())).collect();
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
    /// Ok: it is taken over and will be written, a second after the change before it at the earliest; an equal weight
    /// writes nothing. Fails with [`Error::Ended`] after the end.
    pub async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        self.tell(|key, reply| Command::Weigh { key, weight, reply }).await
    }

    /// Publishes another node under the same keys from now on: other metadata, another weight, and another version where
    /// the layouts have none in their keys. Without a weight in `node` the published one stays until the host computes
    /// another.
    ///
    /// Ok: it is taken over and will be written in place, a second after the change before it at the earliest. Fails with
    /// [`Error::Invalid`] for a node that has another key under a layout, of which some may have been replaced then, and
    /// with [`Error::Ended`] after the end.
    pub async fn replace(&self, node: ServerNode) -> Result<(), Error> {
        let node = Arc::new(node);
        self.tell(|key, reply| Command::Replace { key, node: node.clone(), reply }).await
    }

    async fn tell(
        &self,
        command: impl Fn(Arc<str>, oneshot::Sender<Result<(), Error>>) -> Command,
    ) -> Result<(), Error> {
        let told = self.parts().map(|part| {
            let (reply, done) = oneshot::channel();
            let command = command(part.key.clone(), reply);
            async {
                part.commands.send(command).await.map_err(|_| Error::Ended)?;
                done.await.map_err(|_| Error::Ended)?
            }
        });
        join_all(told).await.into_iter().collect()
    }

    /// Takes the node out of etcd. Ok: its keys are gone, or somebody else's by now, and nothing brings them back.
    ///
    /// Idempotent. After [`Error::Timeout`], and when this future is dropped, the deletion goes on until it is done.
    pub async fn stop(&self) -> Result<(), Error> {
        let stopped = self.parts().map(|part| async {
            let (reply, done) = oneshot::channel();
            let command = Command::Stop { key: part.key.clone(), reply };
            match part.commands.send(command).await {
                // A lease that has ended has taken its keys back.
                Err(_) => Ok(()),
                Ok(()) => done.await.unwrap_or(Ok(())),
            }
        });
        let after = self.stop_timeout;
        let all = timeout(after, join_all(stopped)).await;
        all.map_err(|_| Error::Timeout { what: "stop", after })?.into_iter().collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.board = None;
        self.nudge.notify_one();
    }
}
