//! A node as a service declares it, with the methods of a builder for it.

use std::time::Duration;

use crate::registration::Node;

/// The node to register, and the time that its key outlives a dead host; 0 is the host's.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) node: Node,
    pub(crate) ttl_seconds: u32,
}

impl Declared {
    pub(crate) fn new(name: String) -> Self {
        let (addr, version) = (String::new(), String::new());
        Self { node: Node { name, addr, version, weight: None, metadata: Vec::new() }, ttl_seconds: 0 }
    }

    pub(crate) fn set_ttl(&mut self, ttl: Duration) {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
        self.ttl_seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
    }
}

/// The methods of a service's builder that say what is published; the builder has a field `declared`.
macro_rules! declares {
    ($service:ident) => {
        impl $service {
            /// Sets the version, part of the key where the layout has a place for it.
            #[must_use]
            pub fn version(mut self, version: impl Into<String>) -> Self {
                self.declared.node.version = version.into();
                self
            }

            /// Sets another address of this component, `host:port`.
            #[must_use]
            pub fn addr(mut self, addr: impl Into<String>) -> Self {
                self.declared.node.addr = addr.into();
                self
            }

            /// Sets a weight, 1 to 100, in place of the weight that the host computes from the load of the machine.
            #[must_use]
            pub fn weight(mut self, weight: u32) -> Self {
                self.declared.node.weight = Some(weight);
                self
            }

            /// Adds a pair of metadata. A layout without a place for metadata does not publish it.
            #[must_use]
            pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
                self.declared.node.metadata.push((key.into(), value.into()));
                self
            }

            /// Sets the time that the key outlives a dead host, in whole seconds, rounded up; without it, that of the host
            /// applies.
            #[must_use]
            pub fn ttl(mut self, ttl: std::time::Duration) -> Self {
                self.declared.set_ttl(ttl);
                self
            }
        }
    };
}
pub(crate) use declares;
