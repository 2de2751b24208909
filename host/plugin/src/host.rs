//! The imports of a guest: each call is parsed, made and answered here, and nothing else happens.

use std::sync::Arc;

use leasehold::Weight;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::{
    bindings::leasehold::registry::{discovery, registrar, types},
    context::RegistryCtx,
    error::{CallError, Refusal},
    handle::Handle,
    registration::Kept,
};

/// One store's access to its component's registry: made anew for every call of a guest.
pub struct RegistryView<'a> {
    /// The component's registrations and policy.
    pub ctx: &'a RegistryCtx,
    /// The store's table, where the guest's handles live.
    pub table: &'a mut ResourceTable,
}

/// Adds the interfaces `types`, `registrar` and `discovery` of `leasehold:registry` to a linker.
///
/// `view` says where a store keeps its [`RegistryCtx`] and its table. The store must be used with async calls.
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
    fn registration(&self, handle: &Resource<Handle>) -> Result<Arc<Kept>, CallError> {
        Ok(Arc::clone(&self.table.get(handle)?.0))
    }

    /// For calls whose WIT has no error: a handle that is not there traps.
    fn kept(&self, handle: &Resource<Handle>) -> wasmtime::Result<&Kept> {
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
        let registrations = self.ctx.kept().into_iter();
        registrations.map(|registration| Ok(self.table.push(Handle(registration))?)).collect()
    }
}

impl registrar::HostRegistration for RegistryView<'_> {
    fn key(&mut self, handle: Resource<Handle>) -> wasmtime::Result<String> {
        Ok(self.kept(&handle)?.registration().key().to_string())
    }

    fn node(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::ServerNode> {
        let kept = self.kept(&handle)?;
        Ok(types::ServerNode { weight: Some(kept.status().weight.value()), ..(&kept.node()).into() })
    }

    fn status(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::Status> {
        Ok(self.kept(&handle)?.status().into())
    }

    async fn set_weight(&mut self, handle: Resource<Handle>, weight: u32) -> Result<(), CallError> {
        let registration = self.registration(&handle)?;
        let weight = Weight::try_from(weight).map_err(Refusal::from)?;
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
        Ok(nodes.subset(self.ctx.policy().max_nodes, self.ctx.place()).map(Into::into).collect())
    }
}
