//! Look-ups of other services.

use crate::{bindings::leasehold::registry::discovery, error::Error, registration::Node};

/// The nodes of a service, and of one version unless it is empty; at most 1000, or the limit that the host configures.
pub fn resolve(name: &str, version: &str) -> Result<Vec<Node>, Error> {
    discovery::resolve(name, version).map_err(|error| Error::of(format!("resolve {name}"), error))
}

/// One node of a service, by the host's balancer; `None` if there is no node.
pub fn pick(name: &str, version: &str) -> Result<Option<Node>, Error> {
    discovery::pick(name, version).map_err(|error| Error::of(format!("pick {name}"), error))
}
