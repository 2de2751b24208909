//! The smallest platform: it runs the greeter of `make guests`, from the workspace's root. The crate's documentation prints it.

use std::{env, error::Error, time::Duration};

use leasehold::{Options, Registrar};
use leasehold_wasmtime::{Lifecycle, Policy, RegistryCtx, RegistryCtxView, RegistryView};
use wasmtime::{
    Engine, Store,
    component::{Component, Linker, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    config: WasiConfigVariables,
    registry: RegistryCtx,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: Default::default() }
    }
}

impl RegistryView for State {
    fn registry(&mut self) -> RegistryCtxView<'_> {
        RegistryCtxView::new(&self.registry, &mut self.table)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let etcd = env::args().nth(1).unwrap_or("http://127.0.0.1:2379".to_owned());
    let registrar = Registrar::start(Options::new([etcd]))?;
    let policy = Policy::serving("greeter".parse()?, "127.0.0.1:10002".parse()?);
    let registry = RegistryCtx::new(registrar.clone(), policy);

    let engine = Engine::default();
    let mut linker = Linker::<State>::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| WasiConfig::from(&state.config))?;
    leasehold_wasmtime::add_to_linker(&mut linker)?;

    let greeter = Component::from_file(&engine, "target/components/greeter.wasm")?;
    let greeter = linker.instantiate_pre(&greeter)?;
    let lifecycle = Lifecycle::of(&greeter)?.ok_or("the greeter exports a lifecycle")?;
    let state = State {
        table: ResourceTable::new(),
        wasi: WasiCtx::default(),
        http: WasiHttpCtx::new(),
        config: WasiConfigVariables::from_iter([("name", "greeter"), ("version", "v1")]),
        registry: registry.clone(),
    };
    let mut store = Store::new(&engine, state);
    let instance = greeter.instantiate_async(&mut store).await?;
    // Requests are routed to it from here on, before it registers itself.
    lifecycle.start(&mut store, &instance).await??;
    assert_eq!(registry.registrations().len(), 1);

    // Serve until it is time to end; then the keys go first.
    registry.stop_all().await?;
    lifecycle.stop(&mut store, &instance).await?;
    Ok(registrar.shutdown(Duration::from_secs(5)).await?)
}
