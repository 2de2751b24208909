//! The linker, which defines the imports of components.

use wasmtime::{
    AsContextMut,
    component::{Accessor, HasData, Linker, Resource},
};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi_config::WasiConfig;
use wasmtime_wasi_http::{
    WasiHttp, WasiHttpCtxView, WasiHttpView,
    p3::bindings::http::{
        client::{self, HostWithStore},
        types::{ErrorCode, Request, Response},
    },
};

use crate::wasm::context::StoreState;

/// Links every interface that a component can import. Its service context restricts their use.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<StoreState>> {
    let mut linker = Linker::new(engine);
    // All of WASI, since a plain Rust component imports most of it.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    add_client(&mut linker)?;
    wasmtime_wasi_http::p3::bindings::http::types::add_to_linker::<_, WasiHttp>(&mut linker, StoreState::http)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut StoreState| WasiConfig::from(state.config.as_ref()))?;
    leasehold_wasmtime::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Links `wasi:http/client` 0.3 with a note of the sending task.
fn add_client(linker: &mut Linker<StoreState>) -> wasmtime::Result<()> {
    client::add_to_linker::<_, Client>(linker, StoreState::http)
}

struct Client;

impl HasData for Client {
    type Data<'a> = WasiHttpCtxView<'a>;
}

impl HostWithStore<StoreState> for Client {
    async fn send(
        store: &Accessor<StoreState, Self>,
        request: Resource<Request>,
    ) -> Result<Resource<Response>, TrappableError<ErrorCode>> {
        store.with(|mut access| {
            let mut store = access.as_context_mut();
            if store.data().outbound.callers.are_known() {
                return;
            }
            let tasks: Vec<_> = store.async_call_stack().into_iter().flatten().collect();
            store.data_mut().outbound.callers.sending(&tasks);
        });
        // `send` takes the note before it waits for anything.
        WasiHttp::send(&store.with_getter::<WasiHttp>(StoreState::http), request).await
    }
}
