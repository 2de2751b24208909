//! The instance on which a component's `lifecycle` is called, in the order it is lived: started, kept, stopped.

use std::sync::Arc;

use leasehold_wasmtime::Lifecycle;
use tokio::time::sleep;
use wasmtime::{Store, component::Instance};

use crate::{
    config::Spec,
    error::{Failure, one_line},
    service::keys,
    wasm::{
        component::Loaded,
        context::{ServiceContext, StoreState},
        engine::Engine,
        error::cause,
    },
};

/// A started instance.
pub(crate) struct LifecycleInstance {
    store: Store<StoreState>,
    instance: Instance,
    lifecycle: Lifecycle,
}

impl LifecycleInstance {
    /// Starts the component within its deadline; `None` for a component without `lifecycle`. Registrations that it made
    /// before a failure stay.
    pub(crate) async fn start(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: &ServiceContext,
    ) -> Result<Option<Self>, Failure> {
        let found = Lifecycle::of(&loaded.pre);
        let found =
            found.map_err(|error| Failure::usage(format!("{}: {}", spec.component.display(), cause(&error))))?;
        let Some(lifecycle) = found else { return Ok(None) };
        let deadline = spec.limits.start_timeout;
        let store = engine.store(context.store_for_lifecycle());
        let interrupt = Arc::clone(&store.data().usage.interrupt);
        // A component in an endless loop is interrupted, and dropped here.
        let started = interrupt.until(sleep(deadline), Self::attempt(store, loaded, lifecycle)).await;
        let outcome = started.unwrap_or_else(|_| Err(format!("lifecycle.start took longer than {deadline:?}")));
        outcome
            .map(Some)
            .map_err(|message| keys::explained(Failure::other(format!("{}: {message}", spec.name)), &context.registry))
    }

    async fn attempt(mut store: Store<StoreState>, loaded: &Loaded, lifecycle: Lifecycle) -> Result<Self, String> {
        let instance = loaded.pre.instantiate_async(&mut store).await;
        let instance = instance.map_err(|error| format!("the component cannot be instantiated: {}", cause(&error)))?;
        match lifecycle.start(&mut store, &instance).await {
            Ok(Ok(())) => Ok(Self { store, instance, lifecycle }),
            Ok(Err(message)) => Err(format!("lifecycle.start failed: {}", one_line(&message))),
            Err(error) => Err(format!("lifecycle.start trapped: {}", store.data().cause(&error))),
        }
    }

    /// Stops the component within its deadline.
    pub(crate) async fn stop(mut self, spec: &Spec) {
        let deadline = spec.limits.stop_timeout;
        let interrupt = Arc::clone(&self.store.data().usage.interrupt);
        match interrupt.until(sleep(deadline), self.lifecycle.stop(&mut self.store, &self.instance)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let cause = self.store.data().cause(&error);
                tracing::warn!(service = %spec.name, "lifecycle.stop trapped: {cause}");
            }
            Err(_) => tracing::warn!(service = %spec.name, "lifecycle.stop took longer than {deadline:?}"),
        }
    }
}
