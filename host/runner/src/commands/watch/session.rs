//! A running watch: its connection to etcd, and the signals that end it.

use leasehold::{Error, Options, Registrar};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::known::Known;
use crate::{commands::filter::Names, connect, error::Failure};

/// A watch that has reached etcd.
pub(super) struct Watch {
    pub(super) registrar: Registrar,
    pub(super) options: Options,
    pub(super) names: Names,
}

impl Watch {
    /// Checks that etcd responds and accepts this user: the arguments may be wrong.
    pub(super) async fn reach(&self) -> Result<(), Failure> {
        let reached = connect::attempt(&self.registrar, &self.options, Vec::new()).await;
        reached.map(drop).map_err(|error| self.failure(&error))
    }

    pub(super) fn failure(&self, error: &Error) -> Failure {
        let prefix = connect::prefix(&self.options, self.names.scope());
        connect::failure(error, &self.options, prefix.as_deref())
    }

    pub(super) fn known(&self) -> Known {
        Known::new(self.options.read_layouts())
    }
}

/// Signals that end the watch: Ctrl-C, SIGTERM and SIGHUP.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::other(format!("cannot wait for signals: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Waits for one of them. Cancel safe.
    pub(super) async fn end(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
