//! Registrations of this component: handles of them, and what they look like at one moment.

use crate::{
    bindings::leasehold::registry::{registrar, registry_types},
    error::Error,
};

pub use registry_types::{ServerNode as Node, State, Status};

/// A node that the host keeps in etcd. Dropping it does not end the registration; [`stop`](Self::stop) does, and so does the
/// end of the service.
#[derive(Debug)]
pub struct Registration(pub(crate) registrar::Registration);

/// A registration at one moment, without a handle.
#[derive(Debug, Clone)]
pub struct Described {
    /// The key in etcd.
    pub key: String,
    /// The published node, with its current weight.
    pub node: Node,
    /// The status.
    pub status: Status,
    /// False if no layout of the host has a place for metadata: clients of the node do not see it then.
    pub publishes_metadata: bool,
}

impl State {
    /// Name of the state, as the contract has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Registered => "registered",
            Self::Suspect => "suspect",
            Self::Recovering => "recovering",
            Self::Conflict => "conflict",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

impl Registration {
    /// Registers a node, and returns when it is in etcd. The key outlives a dead host by the time to live; 0 is the host's.
    pub(crate) fn of(node: &Node, ttl_seconds: u32) -> Result<Self, Error> {
        let registered = registrar::register(node, ttl_seconds);
        registered.map(Self).map_err(|error| Error::of(format!("register {}", node.name), error))
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
    pub fn set_weight(&self, weight: u32) -> Result<(), Error> {
        self.0.set_weight(weight).map_err(|error| Error::of("set the weight", error))
    }

    /// Deletes the node from etcd. After an error the host goes on until the key is gone.
    pub fn stop(&self) -> Result<(), Error> {
        self.0.stop().map_err(|error| Error::of("stop", error))
    }
}

/// The registrations of this component that have not ended, whichever of its instances made them.
pub fn current() -> Vec<Registration> {
    registrar::current().into_iter().map(Registration).collect()
}

/// The same registrations as data.
pub fn describe() -> Vec<Described> {
    let one = |info: registrar::RegistrationInfo| Described {
        key: info.key,
        node: info.node,
        status: info.status,
        publishes_metadata: info.publishes_metadata,
    };
    registrar::describe().into_iter().map(one).collect()
}
