//! A watched view of the nodes of one service: read once, watched from there, read again after a failure.
//!
//! An outage of etcd takes no node out of a view. Only two things do: etcd's word that a key was deleted, and a read after
//! a failure in which the key is missing. If etcd lost its data, services are about to come back, so the earlier nodes stay
//! in the view for a while beside those that etcd has.

mod state;
mod task;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::watch::Receiver;

pub(crate) use self::{state::ViewState, task::watch};
use crate::{
    discovery::nodes::{NodeEvent, Nodes},
    error::Error,
    etcd::Unavailable,
    layout::Layout,
    node::{ServiceName, Version},
};

/// The nodes of one service as etcd has them, kept up to date in the background as long as a handle exists.
///
/// Cloning clones the handle; each has its own [`changed`](Self::changed).
#[derive(Debug, Clone)]
pub struct View {
    state: Arc<ViewState>,
    changes: Receiver<()>,
}

impl View {
    /// Creates a handle; `None` once the view has ended.
    pub(crate) fn new(state: &Arc<ViewState>) -> Option<Self> {
        let changes = state.subscribe()?;
        Some(Self { state: state.clone(), changes })
    }

    /// A handle of the same view for which nothing has changed yet.
    pub fn fresh(&self) -> Self {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Self { state: Arc::clone(&self.state), changes }
    }

    /// The name of the service.
    pub fn name(&self) -> &ServiceName {
        &self.state.name
    }

    /// The version; empty for all versions.
    pub fn version(&self) -> &Version {
        &self.state.version
    }

    /// The layouts under which nodes are looked for, each with the beginning of its keys.
    pub fn prefixes(&self) -> &[(Layout, String)] {
        &self.state.prefixes
    }

    /// Waits until etcd has been read for the first time.
    ///
    /// Fails with [`Error::Unavailable`] when etcd refuses the user or cannot be read within the request timeout, and with
    /// [`Error::Ended`] when the registrar has ended. The view keeps trying in either case.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut changes = self.changes.clone();
        let first_read = pin!(async {
            loop {
                changes.borrow_and_update();
                if let Some(outcome) = self.state.first_read() {
                    return outcome;
                }
                if changes.changed().await.is_err() {
                    return Err(Error::Ended);
                }
            }
        });
        let after = self.state.request_timeout;
        self.state.timers.timeout(after, first_read).await.unwrap_or_else(|| {
            Err(self.error().map_or(Error::Timeout { what: "resolve", after, why: None }, Error::Unavailable))
        })
    }

    /// The last known nodes in the order of their keys; none before the view is ready. Never waits.
    ///
    /// An instance under several layouts is one node, as the first of them has it.
    pub fn nodes(&self) -> Nodes {
        self.state.nodes()
    }

    /// Waits until the nodes have changed, or the view has failed or recovered, since this handle was created or this last
    /// returned. Fails with [`Error::Ended`] when the registrar has ended.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if self.state.has_ended() {
            return Err(Error::Ended);
        }
        self.changes.changed().await.map_err(|_| Error::Ended)?;
        if self.state.has_ended() { Err(Error::Ended) } else { Ok(()) }
    }

    /// Differences from earlier nodes: those that left, then those that joined or changed.
    pub fn events_since(&self, before: &Nodes) -> Vec<NodeEvent> {
        self.nodes().events_since(before)
    }

    /// Time since etcd last confirmed the nodes, up to about 5 s without failures; `None` before the view is ready.
    pub fn age(&self) -> Option<Duration> {
        Some(self.state.confirmed_at()?.elapsed())
    }

    /// The error that keeps the view from being up to date; `None` while it is.
    pub fn error(&self) -> Option<Unavailable> {
        self.state.error()
    }

    /// Number of keys under the prefixes that are not nodes of their layout.
    pub fn invalid_keys(&self) -> usize {
        self.state.invalid_keys()
    }

    /// A number that differs after every change of the nodes.
    pub(crate) fn generation(&self) -> u64 {
        self.state.generation()
    }
}
