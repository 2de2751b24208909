//! The public face: one thread that owns every lease, and the handles to it.

use std::{sync::Arc, time::Duration};

use tokio::sync::{broadcast, watch};

use crate::{
    config::{Options, Terms},
    error::Error,
    node::{Invalid, ServerNode, ServiceName, Version, Weight},
    status::{Event, State, Status},
};

/// Keeps registrations in etcd. Cloning it clones the handle.
#[derive(Debug, Clone)]
pub struct Registrar {}

/// One key in etcd, as `list` found it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// The node, or why the value is not one.
    pub node: Result<ServerNode, Invalid>,
    /// The lease, 0 for none: such a key outlives its host.
    pub lease: i64,
    /// How long the lease lasts if it is not renewed; `None` without a lease.
    pub ttl_remaining: Option<Duration>,
}

/// What etcd says of itself.
#[derive(Debug, Clone)]
pub struct EtcdStatus {
    /// The endpoint that answered.
    pub endpoint: String,
    /// Its version.
    pub version: String,
}

impl Registrar {
    /// Starts the registrar's thread. Does not wait for etcd: an etcd that is down is retried for ever.
    pub fn start(_options: Options) -> Result<Self, Error> {
        todo!()
    }
    /// Asks etcd for its version: one round trip within the request timeout.
    pub async fn reach(&self) -> Result<EtcdStatus, Error> {
        todo!()
    }
    /// Registers and keeps registered. Ok: the key is in etcd.
    pub async fn register(&self, _node: ServerNode) -> Result<Registration, Error> {
        todo!()
    }
    /// The same on other terms.
    pub async fn register_on(&self, _node: ServerNode, _terms: Terms) -> Result<Registration, Error> {
        todo!()
    }
    /// The nodes of a service now.
    pub async fn resolve(&self, _name: &ServiceName, _version: &Version) -> Result<Vec<ServerNode>, Error> {
        todo!()
    }
    /// All keys of one service, or of all (then only those that are nodes).
    pub async fn list(&self, _name: Option<&ServiceName>) -> Result<Vec<Listed>, Error> {
        todo!()
    }
    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }
    /// Revokes every lease and ends the thread, within `deadline`. Idempotent.
    pub async fn shutdown(&self, _deadline: Duration) -> Result<(), Error> {
        todo!()
    }
}

/// A node that is kept in etcd until `stop`. Dropping it signals the end without waiting.
#[derive(Debug)]
pub struct Registration {}

impl Registration {
    /// The key.
    pub fn key(&self) -> &Arc<str> {
        todo!()
    }
    /// The node as it was registered.
    pub fn node(&self) -> &ServerNode {
        todo!()
    }
    /// The status now.
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Each change of state.
    pub fn changes(&self) -> watch::Receiver<State> {
        todo!()
    }
    /// Publishes this weight instead of the computed one.
    pub async fn set_weight(&self, _weight: Weight) -> Result<(), Error> {
        todo!()
    }
    /// Takes it out of etcd; ok: gone and stays gone. Idempotent.
    pub async fn stop(&self) -> Result<(), Error> {
        todo!()
    }
}
