//! Reads the registry: watched views of services, lists and watches of keys, and the choice of a node.

pub(crate) mod balancer;
pub(crate) mod key_watch;
pub(crate) mod list;
pub(crate) mod node_set;
pub(crate) mod nodes;
pub(crate) mod view;
pub(crate) mod watcher;
