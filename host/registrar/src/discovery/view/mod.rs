//! A watched view of the nodes of one service: read once, followed from there, read again after a break.
//!
//! Whatever happens to etcd, a view keeps what it knows: an outage takes no node out of it. Two things do: etcd's word
//! that a key was deleted, and a reading after a break that lacks it. To an etcd that lost its data services are about to
//! return: what was known stays in the view beside what it has for a [`GRACE`].

mod state;
mod watch;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch::Receiver, time::timeout};

pub(crate) use self::{state::Picture, watch::follow};
use crate::{
    discovery::nodes::Nodes,
    error::{Error, Unavailable},
    layout::Layout,
    node::{Addr, ServerNode, ServiceName, Version},
};

/// The nodes of one service as etcd has them, followed in the background for as long as a handle lives.
///
/// Cloning clones the handle; each has its own [`changed`](Self::changed).
#[derive(Debug, Clone)]
pub struct View {
    picture: Arc<Picture>,
    generations: Receiver<()>,
}

/// One difference between two looks at a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// A node came.
    Joined(ServerNode),
    /// It changed: its weight, its metadata.
    Changed(ServerNode),
    /// It went.
    Left(ServerNode),
}

impl View {
    /// A handle; `None` when the tasks behind it have ended, or are about to.
    pub(crate) fn of(picture: &Arc<Picture>) -> Option<Self> {
        let generations = picture.subscribe()?;
        Some(Self { picture: picture.clone(), generations })
    }

    /// The service.
    pub fn name(&self) -> &ServiceName {
        &self.picture.name
    }

    /// The version; empty for all.
    pub fn version(&self) -> &Version {
        &self.picture.version
    }

    /// Returns once etcd was read for the first time; at once if it was.
    ///
    /// Fails with [`Error::Unavailable`] when etcd refuses the user, or when it was not read within the request timeout,
    /// and with [`Error::Ended`] when the registrar has ended before. The view goes on trying.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut told = self.generations.clone();
        let reading = async {
            loop {
                told.borrow_and_update();
                if let Some(outcome) = self.picture.reading() {
                    return outcome;
                }
                if told.changed().await.is_err() {
                    return Err(Error::Ended);
                }
            }
        };
        let after = self.picture.patience;
        match timeout(after, reading).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.trouble().map_or(Error::Timeout { what: "resolve", after }, Error::Unavailable)),
        }
    }

    /// The nodes as last known, in the order of their keys; none before the view is ready. Never waits.
    ///
    /// A node that stands under several layouts is there once, as the first of them has it.
    pub fn nodes(&self) -> Nodes {
        self.picture.nodes()
    }

    /// How long ago etcd confirmed what is known; `None` before the view is ready. Up to about 5 s while all is well.
    pub fn age(&self) -> Option<Duration> {
        Some(self.picture.heard()?.elapsed())
    }

    /// Why the view is not kept up to date at the moment; `None` when it is.
    pub fn trouble(&self) -> Option<Unavailable> {
        self.picture.trouble()
    }

    /// Where its nodes are looked for: the layouts, each with what their keys begin with.
    pub fn places(&self) -> &[(Layout, String)] {
        &self.picture.places
    }

    /// How many keys stand where the nodes do and are not ones.
    pub fn garbage(&self) -> usize {
        self.picture.garbage()
    }

    /// Returns when something has changed since this handle was made, or since this last returned: the nodes, or whether
    /// they are up to date. Fails with [`Error::Ended`] when the registrar has.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if self.picture.is_over() {
            return Err(Error::Ended);
        }
        self.generations.changed().await.map_err(|_| Error::Ended)?;
        if self.picture.is_over() { Err(Error::Ended) } else { Ok(()) }
    }

    /// What differs from an earlier look at the nodes: those that went, then those that came or changed.
    pub fn events_since(&self, before: &Nodes) -> Vec<NodeEvent> {
        let now = self.nodes();
        let place = |node: &ServerNode| (node.version.clone(), node.addr.clone());
        // A node may have moved to another key, so that what is where it was is looked at, too.
        let places: HashSet<_> = now.0.unshared(&before.0).filter_map(|known| known.node()).map(place).collect();
        let by_place = |nodes: &Nodes| -> BTreeMap<(Version, Addr), ServerNode> {
            let all = nodes.iter().map(|node| (place(node), node));
            all.filter(|(place, _)| places.contains(place)).map(|(place, node)| (place, node.clone())).collect()
        };
        let (was, is) = (by_place(before), by_place(&now));
        let left = was.iter().filter(|(place, _)| !is.contains_key(place));
        let left = left.map(|(_, node)| NodeEvent::Left(node.clone()));
        let came = is.iter().filter_map(|(place, node)| match was.get(place) {
            None => Some(NodeEvent::Joined(node.clone())),
            Some(old) if old != node => Some(NodeEvent::Changed(node.clone())),
            Some(_) => None,
        });
        left.chain(came).collect()
    }

    /// Differs after every change of the nodes.
    pub(crate) fn generation(&self) -> u64 {
        self.picture.generation()
    }
}
