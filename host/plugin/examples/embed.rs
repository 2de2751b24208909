//! A minimal plugin platform: runs one component, and lets it register itself.
//!
//! `cargo run --release -p leasehold-wasmtime --example embed -- COMPONENT ETCD ADDR`, for instance
//! `target/components/greeter.wasm http://127.0.0.1:2379 127.0.0.1:10002`.

use std::{env, time::Duration};

use leasehold::{Addr, Options, Registrar};
use leasehold_wasmtime::{Lifecycle, Names, Policy, RegistryCtx, RegistryCtxView, RegistryView};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use wasmtime::{
    Config, Engine, Result, Store,
    component::{Component, Instance, Linker, ResourceTable},
    error::Context,
    format_err,
};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{
    WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::bindings::{LinkOptions, http::types},
};

/// Interval at which a component hands the thread back, so that the deadlines below hold for a component that loops.
const TICK: Duration = Duration::from_millis(10);
/// Deadline of `lifecycle.start` and `lifecycle.stop`, and of etcd at the end;
/// longer than the registrar tries, so that a component has its answer first.
const DEADLINE: Duration = Duration::from_secs(15);

/// State of one store of this platform.
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
async fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let mut next = |what: &str| args.next().with_context(|| format!("usage: embed COMPONENT ETCD ADDR; no {what}"));
    let (component, etcd, addr) = (next("COMPONENT")?, next("ETCD")?, next("ADDR")?.parse::<Addr>()?);

    tracing_subscriber::fmt().init();
    let registrar = Registrar::start(Options::new([etcd]))?;
    // This platform lets a component choose its name, but not its address.
    let policy = Policy { names: Names::Any, addr: Some(addr), ..Policy::default() };
    let registry = RegistryCtx::new(registrar.clone(), policy).named(&*component);

    let outcome = serve(&component, registry.clone()).await;

    // Whatever happened, nothing stays behind.
    let gone = registry.stop_all().await;
    registrar.shutdown(DEADLINE).await?;
    outcome?;
    Ok(gone?)
}

/// The component's life, from its file to its `stop`.
async fn serve(path: &str, registry: RegistryCtx) -> Result<()> {
    let engine = engine()?;
    let component = Component::from_file(&engine, path)?;
    let pre = linker(&engine)?.instantiate_pre(&component)?;
    let lifecycle = Lifecycle::of(&pre)?.with_context(|| format!("{path} exports no lifecycle"))?;

    // A signal that comes while the component starts ends it in order, too.
    let ended = ended()?;
    let mut store = Store::new(&engine, state(registry.clone()));
    store.epoch_deadline_async_yield_and_update(1);
    let instance = pre.instantiate_async(&mut store).await?;
    start(&lifecycle, &mut store, &instance).await?;
    for registration in registry.registrations() {
        tracing::info!(key = %registration.key(), "the node is registered");
    }

    // A platform with a network serves the component here, in instances of their own, with clones of `registry`.
    ended.await;

    registry.stop_all().await?;
    timeout(DEADLINE, lifecycle.stop(&mut store, &instance)).await.context("lifecycle.stop does not return")??;
    Ok(())
}

async fn start(lifecycle: &Lifecycle, store: &mut Store<State>, instance: &Instance) -> Result<()> {
    let started = timeout(DEADLINE, lifecycle.start(store, instance)).await;
    started.context("lifecycle.start does not return")??.map_err(|why| format_err!("lifecycle.start: {why}"))
}

fn engine() -> Result<Engine> {
    let engine = Engine::new(Config::new().epoch_interruption(true))?;
    let ticker = engine.weak();
    std::thread::spawn(move || {
        while let Some(engine) = ticker.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    });
    Ok(engine)
}

fn linker(engine: &Engine) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| WasiConfig::from(&state.config))?;
    leasehold_wasmtime::add_to_linker(&mut linker)?;
    // What a component needs to serve HTTP. Without `outgoing-handler` it cannot send any.
    types::add_to_linker::<_, WasiHttp>(&mut linker, &LinkOptions::default().into(), State::http)?;
    Ok(linker)
}

/// A component of this platform has a terminal to write to, its configuration and the registry, and nothing else.
fn state(registry: RegistryCtx) -> State {
    State {
        table: ResourceTable::new(),
        wasi: WasiCtxBuilder::new().inherit_stdout().inherit_stderr().build(),
        http: WasiHttpCtx::new(),
        config: WasiConfigVariables::from_iter([("name", "greeter"), ("version", "v1")]),
        registry,
    }
}

/// Listens from now on, and returns on Ctrl-C or SIGTERM.
fn ended() -> Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
