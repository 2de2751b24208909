//! Imports of a component: each function parses its arguments, makes one call, and converts its result.

use std::sync::Arc;

use leasehold::Weight;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::{
    bindings::leasehold::registry::{discovery, registrar, types},
    context::RegistryCtx,
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

/// Adds the interfaces `types`, `registrar` and `discovery` of `leasehold:registry` to a linker.
///
/// `view` borrows the [`RegistryCtx`] and the table of a store. The store must be used with async calls.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryView<'_>,
) -> wasmtime::Result<()> {
    types::add_to_linker::<T, HasRegistry>(linker, view)?;
    registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
    discovery::add_to_linker::<T, HasRegistry>(linker, view)
}

struct HasRegistry;

impl HasData for HasRegistry {
    type Data<'a> = RegistryView<'a>;
}

impl RegistryView<'_> {
    fn registration(&self, handle: &Resource<Handle>) -> Result<Arc<ComponentRegistration>, CallError> {
        Ok(Arc::clone(&self.table.get(handle)?.0))
    }

    /// The registration, for functions without an error in the WIT: an unknown handle traps.
    fn known(&self, handle: &Resource<Handle>) -> wasmtime::Result<&ComponentRegistration> {
        Ok(&self.table.get(handle)?.0)
    }
}

impl types::Host for RegistryView<'_> {
    fn convert_error(&mut self, error: CallError) -> wasmtime::Result<types::Error> {
        Ok(error.into_refusal()?.into())
    }
}

impl registrar::Host for RegistryView<'_> {
    async fn register(&mut self, node: types::ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
        let registration = self.ctx.register(node, ttl_seconds).await?;
        Ok(self.table.push(Handle(registration))?)
    }

    fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
        let registrations = self.ctx.component_registrations().into_iter();
        registrations.map(|registration| Ok(self.table.push(Handle(registration))?)).collect()
    }
}

impl registrar::HostRegistration for RegistryView<'_> {
    fn key(&mut self, handle: Resource<Handle>) -> wasmtime::Result<String> {
        Ok(self.known(&handle)?.registration().key().to_string())
    }

    fn node(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::ServerNode> {
        let registration = self.known(&handle)?;
        Ok(types::ServerNode { weight: Some(registration.status().weight.value()), ..(&registration.node()).into() })
    }

    fn status(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::Status> {
        Ok(self.known(&handle)?.status().into())
    }

    async fn set_weight(&mut self, handle: Resource<Handle>, weight: u32) -> Result<(), CallError> {
        let registration = self.registration(&handle)?;
        let weight = Weight::try_from(weight).map_err(CallRefusal::from)?;
        Ok(self.ctx.bounded(registration.set_weight(weight)).await?)
    }

    async fn stop(&mut self, handle: Resource<Handle>) -> Result<(), CallError> {
        let registration = self.registration(&handle)?;
        Ok(self.ctx.bounded(self.ctx.stop(&registration)).await?)
    }

    fn drop(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

impl discovery::Host for RegistryView<'_> {
    async fn resolve(&mut self, name: String, version: String) -> Result<Vec<types::ServerNode>, CallError> {
        let nodes = self.ctx.resolve(&name, &version).await?;
        Ok(nodes.subset(self.ctx.policy().max_nodes, self.ctx.subset_offset()).map(Into::into).collect())
    }
}
