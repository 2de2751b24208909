//! The one wasmtime engine of the process, its instance pool, and what an instance's store gives to WASI.

use std::sync::Arc;

use anyhow::Context;
use wasmtime::{
    Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Store, UpdateDeadline,
    component::{Component, Linker, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{
    config::{Limits, Spec},
    error::one_line,
    process::cpus,
    wasm::{
        cache::Cache,
        compiler::{Compiler, config},
        context::{ServiceContext, StoreState},
        error::into_anyhow,
        linker::linker,
        scheduler::Scheduler,
    },
};

/// More slots than this do not fit into the address space; memory is then reserved per instance.
pub(crate) const MAX_POOLED_SLOTS: u64 = 4096;

/// Memory of an instance that is cleared for the next one rather than given back, which would interrupt all threads. What
/// it did not write is not touched where the kernel can tell.
const KEPT_RESIDENT: usize = 2 << 20;
/// The same of a table and of a stack.
const KEPT_RESIDENT_SMALL: usize = 64 << 10;

/// Core instances and tables of one component instance: the module, the adapter, two shims, and room for composition.
const CORES_PER_COMPONENT: u32 = 8;

/// What a component may hand over in one call of the host's, in bytes; the host makes a copy.
const MAX_HOSTCALL_BYTES: usize = 16 << 20;

/// The engine with its linker.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) linker: Linker<StoreState>,
    /// Why instances have no pool although there is room for them in one.
    pub(crate) unpooled: Option<String>,
    scheduler: Arc<Scheduler>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) compiler: Arc<Compiler>,
}

impl Engine {
    /// An engine with room for these services, none for a look at components only.
    pub(crate) fn new(services: &[Spec]) -> anyhow::Result<Self> {
        Self::with_scheduler(services, Scheduler::new(cpus::available()))
    }

    /// An engine whose components this scheduler interrupts. A scheduler serves one engine.
    pub(crate) fn with_scheduler(services: &[Spec], scheduler: Arc<Scheduler>) -> anyhow::Result<Self> {
        let pooled = pool(services).map(|pool| {
            let mut pooled = config();
            pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
            wasmtime::Engine::new(&pooled)
        });
        let unpooled =
            pooled.as_ref().and_then(|pooled| pooled.as_ref().err()).map(|error| one_line(&format!("{error:#}")));
        let wasmtime = pooled.and_then(Result::ok).map_or_else(|| wasmtime::Engine::new(&config()), Ok);
        let wasmtime = wasmtime.map_err(into_anyhow).context("cannot start the component engine")?;
        let linker = linker(&wasmtime).map_err(into_anyhow).context("cannot link the host's interfaces")?;
        let cache = Cache::open().map(Arc::new);
        scheduler.start(wasmtime.weak()).context("cannot start the thread that interrupts components")?;
        Ok(Self { wasmtime, linker, unpooled, scheduler, cache, compiler: Arc::new(Compiler::new()) })
    }

    /// The component in these bytes, compiled in this process unless the cache has it.
    pub(crate) fn component(&self, bytes: &[u8]) -> wasmtime::Result<Component> {
        match &self.cache {
            Some(cache) => cache.component(&self.wasmtime, bytes),
            None => Component::new(&self.wasmtime, bytes),
        }
    }

    /// How many components were compiled so far, and how many were found in the cache; none where there is none.
    pub(crate) fn compiled(&self) -> Option<(usize, usize)> {
        self.cache.as_ref().map(|cache| cache.counts())
    }

    /// A store for one instance, which yields to others at the end of each time slice.
    pub(crate) fn store(&self, state: StoreState) -> Store<StoreState> {
        let resources = state.table.max_capacity();
        let mut store = Store::new(&self.wasmtime, state);
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(MAX_HOSTCALL_BYTES);
        store.set_max_component_handles(store.max_component_handles().max(2 * resources));
        let scheduler = Arc::clone(&self.scheduler);
        store.epoch_deadline_callback(move |mut store| {
            Ok(match scheduler.on_epoch(&mut store.data_mut().usage) {
                Some(next) => UpdateDeadline::YieldCustom(1, Box::pin(next)),
                None => UpdateDeadline::Continue(1),
            })
        });
        store.set_epoch_deadline(1);
        self.scheduler.on_instance(&mut store.data_mut().usage);
        store
    }

    /// The scheduler of the engine's instances.
    pub(crate) fn scheduler(&self) -> Arc<Scheduler> {
        Arc::clone(&self.scheduler)
    }
}

/// What the instances of all services may come to.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Demand {
    /// How many at a time.
    pub(crate) instances: u64,
    /// Their linear memory, in bytes, if all of it is used.
    pub(crate) memory: u64,
    /// Whether there is room for them in a pool. Otherwise each one reserves its memory by itself, which takes longer.
    pub(crate) pooled: bool,
    /// File descriptors, if all connections and requests of the components' own are there.
    pub(crate) files: u64,
}

impl Demand {
    pub(crate) fn of(services: &[Spec]) -> Self {
        // Beside those for requests, two that live as long as a version: while it is replaced there are two versions.
        let slots = |spec: &Spec| u64::from(ServiceContext::slots(&spec.limits)) + 2;
        let instances = services.iter().map(slots).sum();
        let memory = services.iter().map(|spec| slots(spec).saturating_mul(spec.limits.memory as u64));
        Self {
            instances,
            memory: memory.fold(0, u64::saturating_add),
            pooled: (1..=MAX_POOLED_SLOTS).contains(&instances),
            files: services.iter().map(|spec| files(&spec.limits)).sum(),
        }
    }
}

fn files(limits: &Limits) -> u64 {
    u64::from(limits.connections) + u64::from(limits.outgoing)
}

/// A pool with a slot for every instance that the services may have at a time; `None` when it would not fit.
fn pool(services: &[Spec]) -> Option<PoolingAllocationConfig> {
    let demand = Demand::of(services);
    let slots = u32::try_from(demand.instances).ok().filter(|_| demand.pooled)?;
    let memory = services.iter().map(|spec| spec.limits.memory).max()?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * CORES_PER_COMPONENT)
        .total_tables(slots * CORES_PER_COMPONENT)
        .total_memories(slots * 2)
        .total_stacks(slots * 2)
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(KEPT_RESIDENT)
        .table_keep_resident(KEPT_RESIDENT_SMALL)
        .async_stack_keep_resident(KEPT_RESIDENT_SMALL)
        .max_memory_size(memory);
    Some(pool)
}

impl WasiView for StoreState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if let Some(connections) = &self.connections {
            connections.replenish(&mut self.table);
            self.usage.reset();
        }
        let (ctx, table): (&mut WasiCtx, &mut ResourceTable) = (&mut self.wasi, &mut self.table);
        WasiCtxView { ctx, table }
    }
}

impl WasiHttpView for StoreState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let ctx: &mut WasiHttpCtx = &mut self.http;
        WasiHttpCtxView { ctx, table: &mut self.table, hooks: &mut self.outbound }
    }
}
