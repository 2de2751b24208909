//! The one wasmtime engine of the process, its instance pool, and the views of a store for WASI.

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

/// Memory of an instance that is cleared for the next one rather than unmapped, which would interrupt all threads. Pages
/// without writes are not touched where the kernel knows them.
const KEPT_RESIDENT: usize = 2 << 20;
/// Memory of a table and of a stack that is cleared rather than unmapped.
const KEPT_RESIDENT_SMALL: usize = 64 << 10;

/// Core instances and tables of one component instance: the module, the adapter, two shims, and room for composition.
const CORES_PER_COMPONENT: u32 = 8;

/// Bytes that a component may pass in one call of the host, at most; the host makes a copy.
const MAX_HOSTCALL_BYTES: usize = 16 << 20;

/// The engine with its linker.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) linker: Linker<StoreState>,
    /// Reason for which instances have no pool although they would fit into one.
    pub(crate) unpooled: Option<String>,
    scheduler: Arc<Scheduler>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) compiler: Arc<Compiler>,
}

impl Engine {
    /// An engine with room for these services; without services, for inspection.
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

    /// Number of components that were compiled, and number of cache hits; none without a cache.
    pub(crate) fn compiled(&self) -> Option<(usize, usize)> {
        self.cache.as_ref().map(|cache| cache.counts())
    }

    /// A store for one instance, which yields at the end of its time slices.
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

/// Demand of all services at a time.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Demand {
    /// Instances.
    pub(crate) instances: u64,
    /// Linear memory of the instances in bytes, if all of it is used.
    pub(crate) memory: u64,
    /// The instances fit into a pool. Otherwise each one reserves its own memory, which takes longer.
    pub(crate) pooled: bool,
    /// File descriptors, with all connections and all requests of components.
    pub(crate) files: u64,
}

impl Demand {
    pub(crate) fn of(services: &[Spec]) -> Self {
        // Two more instances live as long as a revision; during a reload there are two revisions.
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
