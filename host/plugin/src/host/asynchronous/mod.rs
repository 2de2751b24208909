//! The traits of the asynchronous functions of `leasehold:registry@0.2.0`: none of them holds the store while it waits.
//!
//! A component may leave a call behind and let its store stand still, by mistake or on purpose. What changes a registration is
//! therefore driven by the host, so that its deadline is kept, and reloads and drains do not wait for it.

#[cfg(feature = "discovery")]
mod discovery;

use std::sync::Arc;

use wasmtime::component::{Accessor, Resource};

use crate::{
    bindings::v0_2::leasehold::registry::{async_registrar, registry_types::ServerNode},
    context::{RegistryCtx, RunningCall},
    error::CallError,
    handle::Handle,
    host::{HasRegistry, RegistryCtxView, register, set_weight, stop},
    registration::ComponentRegistration,
};

impl async_registrar::Host for RegistryCtxView<'_> {}

/// Begins a call: the component's registry, and its place among the calls in progress.
fn begin<T: 'static>(store: &Accessor<T, HasRegistry>) -> Result<(RegistryCtx, RunningCall), CallError> {
    let ctx = store.with(|mut access| access.get().ctx().cloned())?;
    let call = ctx.begin_call()?;
    Ok((ctx, call))
}

fn registration<T: 'static>(
    store: &Accessor<T, HasRegistry>,
    handle: &Resource<Handle>,
) -> Result<Arc<ComponentRegistration>, CallError> {
    store.with(|mut access| access.get().registration(handle))
}

impl<T: 'static> async_registrar::HostWithStore<T> for HasRegistry {
    async fn register(
        store: &Accessor<T, Self>,
        node: ServerNode,
        ttl_seconds: u32,
    ) -> Result<Resource<Handle>, CallError> {
        let (ctx, _call) = begin(store)?;
        let registering = ctx.clone();
        let registration = ctx.driven(async move { register(&registering, node, ttl_seconds).await }).await?;
        store.with(|mut access| access.get().handle(registration))
    }

    async fn set_weight(store: &Accessor<T, Self>, handle: Resource<Handle>, weight: u32) -> Result<(), CallError> {
        let (ctx, _call) = begin(store)?;
        let (weighing, registration) = (ctx.clone(), registration(store, &handle)?);
        ctx.driven(async move { set_weight(&weighing, &registration, weight).await }).await
    }

    async fn stop(store: &Accessor<T, Self>, handle: Resource<Handle>) -> Result<(), CallError> {
        let (ctx, _call) = begin(store)?;
        let (stopping, registration) = (ctx.clone(), registration(store, &handle)?);
        ctx.driven(async move { stop(&stopping, &registration).await }).await
    }
}
