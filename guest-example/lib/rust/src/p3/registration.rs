//! Registrations whose functions wait while the instance serves its other requests.

use crate::{
    error::Error,
    p3::bindings::leasehold::registry::async_registrar,
    registration::{self, Node, Status},
};

/// A node that the host keeps in etcd. Dropping it does not end the registration; [`stop`](Self::stop) does, and so does the
/// end of the service.
#[derive(Debug)]
pub struct Registration(registration::Registration);

impl Registration {
    /// Registers a node, and returns when it is in etcd. The key outlives a dead host by the time to live; 0 is the host's.
    pub(crate) async fn of(node: &Node, ttl_seconds: u32) -> Result<Self, Error> {
        let registered = async_registrar::register(node.clone(), ttl_seconds).await;
        let registered = registered.map_err(|error| Error::of(format!("register {}", node.name), error))?;
        Ok(Self(registration::Registration(registered)))
    }

    /// The key in etcd.
    pub fn key(&self) -> String {
        self.0.key()
    }

    /// The published node, with its current weight.
    pub fn node(&self) -> Node {
        self.0.node()
    }

    /// The status. Never waits.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Publishes this weight, 1 to 100, instead of the weight that the host computes.
    pub async fn set_weight(&self, weight: u32) -> Result<(), Error> {
        let set = async_registrar::set_weight(&self.0.0, weight).await;
        set.map_err(|error| Error::of("set the weight", error))
    }

    /// Deletes the node from etcd. After an error the host goes on until the key is gone.
    pub async fn stop(&self) -> Result<(), Error> {
        async_registrar::stop(&self.0.0).await.map_err(|error| Error::of("stop", error))
    }
}

/// The registrations of this component that have not ended, whichever of its instances made them.
pub fn current() -> Vec<Registration> {
    registration::current().into_iter().map(Registration).collect()
}
