//! The traits of `async-discovery`.

use wasmtime::component::{Accessor, StreamReader};

use super::begin;
use crate::{
    bindings::v0_2::leasehold::registry::{
        async_discovery::{self, Snapshot},
        registry_types::ServerNode,
    },
    error::CallError,
    host::{HasRegistry, RegistryCtxView, pick, resolve, watch},
};

impl async_discovery::Host for RegistryCtxView<'_> {}

impl<T: 'static> async_discovery::HostWithStore<T> for HasRegistry {
    async fn resolve(store: &Accessor<T, Self>, name: String, version: String) -> Result<Vec<ServerNode>, CallError> {
        let (ctx, _call) = begin(store)?;
        resolve(&ctx, &name, &version).await
    }

    async fn pick(store: &Accessor<T, Self>, name: String, version: String) -> Result<Option<ServerNode>, CallError> {
        let (ctx, _call) = begin(store)?;
        pick(&ctx, &name, &version).await
    }

    async fn watch(
        store: &Accessor<T, Self>,
        name: String,
        version: String,
    ) -> Result<StreamReader<Snapshot>, CallError> {
        let (ctx, _call) = begin(store)?;
        let watch = watch(&ctx, &name, &version).await?;
        store.with(|access| StreamReader::new(access, watch)).map_err(CallError::from)
    }
}
