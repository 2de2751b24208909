//! A service as its component declares it: published at the start, deleted at the end.

use std::fmt;

use crate::{
    declared::{Declared, declares},
    error::Error,
    registration::{Registration, current},
};

/// A service, with what it is published as and what it does at its start and its end.
pub struct Service {
    declared: Declared,
    on_start: Vec<Start>,
    on_stop: Vec<Box<dyn FnOnce()>>,
}

type Start = Box<dyn FnOnce(&Registration) -> Result<(), Box<dyn std::error::Error>>>;

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("declared", &self.declared).finish_non_exhaustive()
    }
}

declares!(Service);

impl Service {
    /// A service at the address at which the host serves this component, with a weight that the host computes.
    pub fn new(name: impl Into<String>) -> Self {
        Self { declared: Declared::new(name.into()), on_start: Vec::new(), on_stop: Vec::new() }
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
        Registration::of(&self.declared.node, self.declared.ttl_seconds)
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
        let (node, ttl_seconds) = (service.declared.node, service.declared.ttl_seconds);
        assert_eq!((node.name.as_str(), node.version.as_str()), ("user", "v1"));
        assert_eq!((node.weight, ttl_seconds), (Some(50), 10));
        assert_eq!(node.metadata, [("zone".to_owned(), "a".to_owned())]);
        assert!(node.addr.is_empty());
    }

    #[test]
    fn a_time_to_live_is_whole_seconds_and_never_that_of_the_host() {
        for (ttl, seconds) in [(Duration::ZERO, 1), (Duration::from_millis(1500), 2), (Duration::MAX, u32::MAX)] {
            assert_eq!(Service::new("user").ttl(ttl).declared.ttl_seconds, seconds, "{ttl:?}");
        }
    }
}
