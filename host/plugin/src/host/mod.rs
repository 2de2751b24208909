//! Imports of a component: each function parses its arguments, makes one call, and converts its result. The versions of the
//! contract share what is behind their traits.

mod asynchronous;
mod v0_1;
mod v0_2;

use std::sync::Arc;

use leasehold::Weight;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::{
    bindings::{v0_1 as bindings_0_1, v0_2 as bindings_0_2, v0_2::leasehold::registry::registry_types as types},
    context::RegistryCtx,
    convert,
    error::{CallError, CallRefusal},
    handle::Handle,
    registration::ComponentRegistration,
};

/// One store's access to its component's registry, made anew for every call.
pub struct RegistryView<'a> {
    /// The component's registrations and policy.
    pub ctx: &'a RegistryCtx,
    /// The store's table, which holds the component's handles.
    pub table: &'a mut ResourceTable,
}

/// Adds both versions of `leasehold:registry` to a linker, 0.1 and 0.2, the asynchronous interfaces included.
///
/// `view` borrows the [`RegistryCtx`] and the table of a store. The store must be used with async calls. The engine must have
/// the component model's concurrency, as it has by default.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryView<'_>,
) -> wasmtime::Result<()> {
    {
        use bindings_0_1::leasehold::registry::{discovery, registrar};

        // Its types are those of 0.2, so that nothing is generated for it.
        linker.instance("leasehold:registry/types@0.1.0")?;
        registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
    }
    {
        use bindings_0_2::leasehold::registry::{
            async_discovery, async_registrar, discovery, registrar, registry_types,
        };

        registry_types::add_to_linker::<T, HasRegistry>(linker, view)?;
        registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
        async_registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        async_discovery::add_to_linker::<T, HasRegistry>(linker, view)
    }
}

struct HasRegistry;

impl HasData for HasRegistry {
    type Data<'a> = RegistryView<'a>;
}

impl types::Host for RegistryView<'_> {
    fn convert_error(&mut self, error: CallError) -> wasmtime::Result<types::Error> {
        Ok(error.into_refusal()?.into())
    }
}

/// The calls of all versions, by the names that they have there.
impl RegistryView<'_> {
    async fn register(&mut self, node: types::ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
        let registration = self.ctx.register(node, ttl_seconds).await?;
        self.handle(registration)
    }

    fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
        let registrations = self.ctx.component_registrations().into_iter();
        registrations.map(|registration| Ok(self.table.push(Handle(registration))?)).collect()
    }

    fn key(&self, handle: &Resource<Handle>) -> wasmtime::Result<String> {
        Ok(self.known(handle)?.registration().key().to_string())
    }

    fn node(&self, handle: &Resource<Handle>) -> wasmtime::Result<types::ServerNode> {
        Ok(convert::published(self.known(handle)?))
    }

    fn status(&self, handle: &Resource<Handle>) -> wasmtime::Result<types::Status> {
        Ok(self.known(handle)?.status().into())
    }

    async fn set_weight(&mut self, handle: &Resource<Handle>, weight: u32) -> Result<(), CallError> {
        set_weight(self.ctx, &*self.registration(handle)?, weight).await
    }

    async fn stop(&mut self, handle: &Resource<Handle>) -> Result<(), CallError> {
        stop(self.ctx, &*self.registration(handle)?).await
    }

    async fn resolve(&mut self, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
        resolve(self.ctx, name, version).await
    }

    async fn pick(&mut self, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
        pick(self.ctx, name, version).await
    }

    fn drop_handle(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }

    fn handle(&mut self, registration: Arc<ComponentRegistration>) -> Result<Resource<Handle>, CallError> {
        Ok(self.table.push(Handle(registration))?)
    }

    fn registration(&self, handle: &Resource<Handle>) -> Result<Arc<ComponentRegistration>, CallError> {
        Ok(Arc::clone(&self.table.get(handle)?.0))
    }

    /// The registration, for functions without an error in the WIT: an unknown handle traps.
    fn known(&self, handle: &Resource<Handle>) -> wasmtime::Result<&ComponentRegistration> {
        Ok(&self.table.get(handle)?.0)
    }
}

async fn set_weight(ctx: &RegistryCtx, registration: &ComponentRegistration, weight: u32) -> Result<(), CallError> {
    let weight = Weight::try_from(weight).map_err(CallRefusal::from)?;
    Ok(ctx.bounded(registration.set_weight(weight)).await?)
}

async fn stop(ctx: &RegistryCtx, registration: &ComponentRegistration) -> Result<(), CallError> {
    Ok(ctx.bounded(ctx.stop(registration)).await?)
}

async fn resolve(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
    let nodes = ctx.resolve(name, version).await?;
    Ok(ctx.subset(&nodes).map(Into::into).collect())
}

async fn pick(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
    Ok(ctx.pick(name, version).await?.map(|pick| pick.node().into()))
}
