//! A service as its component declares it, with a start and an end that may wait.

use std::{error, fmt, pin::Pin, rc::Rc};

use crate::{
    declared::{Declared, declares},
    error::Error,
    p3::registration::{Registration, current},
};

/// A service, with what it is published as and what it does at its start and its end.
pub struct Service {
    declared: Declared,
    on_start: Vec<Start>,
    on_stop: Vec<Stop>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;
type Start = Box<dyn FnOnce(Rc<Registration>) -> BoxFuture<Result<(), Box<dyn error::Error>>>>;
type Stop = Box<dyn FnOnce() -> BoxFuture<()>>;

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
    ///
    /// All actions have the host's deadline for a start. A watch belongs into a request: the host reads nothing of this instance
    /// between its start and its end.
    #[must_use]
    pub fn on_start<E: Into<Box<dyn error::Error>>>(
        mut self,
        action: impl AsyncFnOnce(&Registration) -> Result<(), E> + 'static,
    ) -> Self {
        let boxed = |registration: Rc<Registration>| -> BoxFuture<_> {
            Box::pin(async move { action(&registration).await.map_err(Into::into) })
        };
        self.on_start.push(Box::new(boxed));
        self
    }

    /// Adds an action after the last request, when the node is deleted. It has the host's deadline for an end.
    #[must_use]
    pub fn on_stop(mut self, action: impl AsyncFnOnce() + 'static) -> Self {
        self.on_stop.push(Box::new(|| Box::pin(async move { action().await })));
        self
    }

    /// Registers the service, for a component that does not use [`async_service!`](crate::async_service!), and returns when it
    /// is in etcd. A second call updates the node of the same key. A call that is dropped leaves nothing registered that was
    /// not in etcd.
    pub async fn register(&self) -> Result<Registration, Error> {
        Registration::of(&self.declared.node, self.declared.ttl_seconds).await
    }

    /// The start of a component.
    #[doc(hidden)]
    pub async fn start(self) -> Result<(), Box<dyn error::Error>> {
        let registration = Rc::new(self.register().await?);
        for action in self.on_start {
            action(Rc::clone(&registration)).await?;
        }
        Ok(())
    }

    /// The end of a component: all of its registrations are stopped.
    #[doc(hidden)]
    pub async fn stop(self) {
        for registration in current() {
            let _ = registration.stop().await; // After an error the host goes on until the key is gone.
        }
        for action in self.on_stop {
            action().await;
        }
    }
}
