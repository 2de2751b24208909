//! The traits of `leasehold:registry@0.1.0`.

use wasmtime::component::Resource;

use crate::{
    bindings::{
        v0_1::leasehold::registry::registrar,
        v0_2::leasehold::registry::registry_types::{ServerNode, Status},
    },
    error::CallError,
    handle::Handle,
    host::RegistryCtxView,
};

impl registrar::Host for RegistryCtxView<'_> {
    async fn register(&mut self, node: ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
        self.register(node, ttl_seconds).await
    }

    fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
        self.current()
    }
}

impl registrar::HostRegistration for RegistryCtxView<'_> {
    fn key(&mut self, handle: Resource<Handle>) -> wasmtime::Result<String> {
        RegistryCtxView::key(self, &handle)
    }

    fn node(&mut self, handle: Resource<Handle>) -> wasmtime::Result<ServerNode> {
        RegistryCtxView::node(self, &handle)
    }

    fn status(&mut self, handle: Resource<Handle>) -> wasmtime::Result<Status> {
        RegistryCtxView::status(self, &handle)
    }

    async fn set_weight(&mut self, handle: Resource<Handle>, weight: u32) -> Result<(), CallError> {
        RegistryCtxView::set_weight(self, &handle, weight).await
    }

    async fn stop(&mut self, handle: Resource<Handle>) -> Result<(), CallError> {
        RegistryCtxView::stop(self, &handle).await
    }

    fn drop(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
        self.drop_handle(handle)
    }
}

#[cfg(feature = "discovery")]
impl crate::bindings::v0_1::leasehold::registry::discovery::Host for RegistryCtxView<'_> {
    async fn resolve(&mut self, name: String, version: String) -> Result<Vec<ServerNode>, CallError> {
        RegistryCtxView::resolve(self, &name, &version).await
    }
}
