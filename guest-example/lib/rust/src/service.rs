//! A service as its component declares it: published at the start, deleted at the end.

use std::{fmt, time::Duration};

use crate::{
    error::Error,
    registration::{Node, Registration, current},
};

/// A service, with what it is published as and what it does at its start and its end.
pub struct Service {
    node: Node,
    ttl_seconds: u32,
    on_start: Vec<Start>,
    on_stop: Vec<Box<dyn FnOnce()>>,
}

type Start = Box<dyn FnOnce(&Registration) -> Result<(), Box<dyn std::error::Error>>>;

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Service {
    /// A service at the address at which the host serves this component, with a weight that the host computes.
    pub fn new(name: impl Into<String>) -> Self {
        let (name, addr, version) = (name.into(), String::new(), String::new());
        let node = Node { name, addr, version, weight: None, metadata: Vec::new() };
        Self { node, ttl_seconds: 0, on_start: Vec::new(), on_stop: Vec::new() }
    }

    /// Sets the version, part of the key where the layout has a place for it.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.node.version = version.into();
        self
    }

    /// Sets another address of this component, `host:port`.
    #[must_use]
    pub fn addr(mut self, addr: impl Into<String>) -> Self {
        self.node.addr = addr.into();
        self
    }

    /// Sets a weight, 1 to 100, in place of the weight that the host computes from the load of the machine.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.node.weight = Some(weight);
        self
    }

    /// Adds a pair of metadata. A layout without a place for metadata does not publish it.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.node.metadata.push((key.into(), value.into()));
        self
    }

    /// Sets the time that the key outlives a dead host, in whole seconds, rounded up; without it, that of the host applies.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        self.ttl_seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
        self
    }

    /// Adds an action after the registration. An error fails the start, and the registration is undone.
    #[must_use]
    pub fn on_start<E: Into<Box<dyn std::error::Error>>>(
        mut self,
        action: impl FnOnce(&Registration) -> Result<(), E> + 'static,
    ) -> Self {
        self.on_start.push(Box::new(|registration| action(registration).map_err(Into::into)));
        self
    }

    /// Adds an action after the last request, when the node is deleted.
    #[must_use]
    pub fn on_stop(mut self, action: impl FnOnce() + 'static) -> Self {
        self.on_stop.push(Box::new(action));
        self
    }

    /// Registers the service, for a component that does not use [`service!`](crate::service!), and returns when it is in
    /// etcd. A second call updates the node of the same key.
    pub fn register(&self) -> Result<Registration, Error> {
        Registration::of(&self.node, self.ttl_seconds)
    }

    /// The start of a component.
    #[doc(hidden)]
    pub fn start(mut self) -> Result<(), Box<dyn std::error::Error>> {
        let registration = self.register()?;
        std::mem::take(&mut self.on_start).into_iter().try_for_each(|action| action(&registration))
    }

    /// The end of a component: all of its registrations are stopped.
    #[doc(hidden)]
    pub fn stop(self) {
        for registration in current() {
            let _ = registration.stop(); // After an error the host goes on until the key is gone.
        }
        self.on_stop.into_iter().for_each(|action| action());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Service;

    #[test]
    fn a_builder_sets_what_is_published() {
        let service = Service::new("user").version("v1").weight(50).metadata("zone", "a").ttl(Duration::from_secs(10));
        assert_eq!((service.node.name.as_str(), service.node.version.as_str()), ("user", "v1"));
        assert_eq!((service.node.weight, service.ttl_seconds), (Some(50), 10));
        assert_eq!(service.node.metadata, [("zone".to_owned(), "a".to_owned())]);
        assert!(service.node.addr.is_empty());
    }
}
