//! A wasmtime engine, its instance pool with the room of each service, and the views of a store for WASI.

use std::sync::Arc;

use anyhow::Context;
use leasehold_wasmtime::{RegistryCtxView, RegistryView};
use parking_lot::Mutex;
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

/// An engine with its linker. Each service has a clone of its own, with room in the pool as long as any part of the service
/// has one.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) linker: Linker<StoreState>,
    /// Reason for which instances have no pool although they would fit into one.
    pub(crate) unpooled: Option<String>,
    scheduler: Arc<Scheduler>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) compiler: Arc<Compiler>,
    pool: Arc<Pool>,
    /// The room of a service.
    _room: Option<Arc<Room>>,
}

/// The instance pool of an engine.
struct Pool {
    /// Largest linear memory.
    memory: usize,
    /// Instances in all, and those without a service.
    slots: u64,
    free: Mutex<u64>,
    /// Instances are limited by the pool; without one, by memory alone.
    is_limited: bool,
}

/// Slots of a pool that one service has.
struct Room {
    pool: Arc<Pool>,
    slots: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.pool.free.lock() += self.slots;
    }
}

impl Engine {
    /// An engine with room for these services; without services, for inspection.
    pub(crate) fn new(services: &[Spec]) -> anyhow::Result<Self> {
        Self::with_scheduler(services, Scheduler::new(cpus::available()))
    }

    /// An engine whose components this scheduler interrupts.
    pub(crate) fn with_scheduler(services: &[Spec], scheduler: Arc<Scheduler>) -> anyhow::Result<Self> {
        let pooled = pool(services).map(|pool| {
            let mut pooled = config();
            pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
            wasmtime::Engine::new(&pooled)
        });
        let is_pooled = matches!(&pooled, Some(Ok(_)));
        let unpooled =
            pooled.as_ref().and_then(|pooled| pooled.as_ref().err()).map(|error| one_line(&format!("{error:#}")));
        let wasmtime = pooled.and_then(Result::ok).map_or_else(|| wasmtime::Engine::new(&config()), Ok);
        let wasmtime = wasmtime.map_err(into_anyhow).context("cannot start the component engine")?;
        let linker = linker(&wasmtime).map_err(into_anyhow).context("cannot link the host's interfaces")?;
        let cache = Cache::open().map(Arc::new);
        scheduler.start(&wasmtime.weak()).context("cannot start the thread that interrupts components")?;
        let slots = Demand::of(services).instances;
        let pool = Pool {
            memory: services.iter().map(|spec| spec.limits.memory).max().unwrap_or_default(),
            slots,
            free: Mutex::new(slots),
            is_limited: is_pooled,
        };
        let compiler = Arc::new(Compiler::new());
        Ok(Self { wasmtime, linker, unpooled, scheduler, cache, compiler, pool: Arc::new(pool), _room: None })
    }

    /// A further engine for these services, with the scheduler, the cache and the compiler of this one.
    fn further(&self, services: &[Spec]) -> anyhow::Result<Self> {
        let engine = Self::with_scheduler(services, self.scheduler())?;
        Ok(Self { cache: self.cache.clone(), compiler: Arc::clone(&self.compiler), ..engine })
    }

    /// A clone for a service, if its instances fit into what is free of the pool.
    fn with_room(&self, spec: &Spec) -> Option<Self> {
        let slots = Demand::slots(spec);
        let mut free = self.pool.free.lock();
        if self.pool.is_limited && (slots > *free || spec.limits.memory > self.pool.memory) {
            return None;
        }
        // Without a pool there is no limit, and no more than there was is given back.
        let slots = slots.min(*free);
        *free -= slots;
        let room = Room { pool: Arc::clone(&self.pool), slots };
        drop(free);
        Some(Self { _room: Some(Arc::new(room)), ..self.clone() })
    }

    /// True if no service has room in the pool.
    fn is_unused(&self) -> bool {
        *self.pool.free.lock() == self.pool.slots
    }

    /// True for two clones of one engine.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
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
        let instances = services.iter().map(Self::slots).sum();
        let memory = services.iter().map(|spec| Self::slots(spec).saturating_mul(spec.limits.memory as u64));
        Self {
            instances,
            memory: memory.fold(0, u64::saturating_add),
            pooled: (1..=MAX_POOLED_SLOTS).contains(&instances),
            files: services.iter().map(|spec| files(&spec.limits)).sum(),
        }
    }

    /// Instances of one service at a time. Two more than serve requests live as long as a revision; during a reload there
    /// are two revisions.
    fn slots(spec: &Spec) -> u64 {
        u64::from(ServiceContext::slots(&spec.limits)) + 2
    }
}

/// The engines of the process: that of its start, and further ones for services that a reload of the configuration adds or
/// enlarges beyond what is free of their pools. A pool does not grow.
pub(crate) struct Engines {
    first: Engine,
    further: Vec<Engine>,
}

impl Engines {
    pub(crate) fn new(first: Engine) -> Self {
        Self { first, further: Vec::new() }
    }

    /// An engine with room for each of these services, in their order. Builds a further one for those that fit into none.
    pub(crate) fn place(&mut self, services: &[Arc<Spec>]) -> anyhow::Result<Vec<Engine>> {
        self.further.retain(|engine| !engine.is_unused());
        let engines = || [&self.first].into_iter().chain(&self.further);
        let mut placed: Vec<_> =
            services.iter().map(|spec| engines().find_map(|engine| engine.with_room(spec))).collect();
        let unplaced: Vec<Spec> = services
            .iter()
            .zip(&placed)
            .filter(|(_, place)| place.is_none())
            .map(|(spec, _)| (**spec).clone())
            .collect();
        if !unplaced.is_empty() {
            let engine = self.first.further(&unplaced)?;
            for (spec, place) in services.iter().zip(&mut placed).filter(|(_, place)| place.is_none()) {
                *place = Some(engine.with_room(spec).unwrap_or_else(|| engine.clone()));
            }
            self.further.push(engine);
        }
        Ok(placed.into_iter().flatten().collect())
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

impl RegistryView for StoreState {
    fn registry(&mut self) -> RegistryCtxView<'_> {
        RegistryCtxView::new(&self.registry, &mut self.table)
    }
}

impl WasiHttpView for StoreState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let ctx: &mut WasiHttpCtx = &mut self.http;
        WasiHttpCtxView { ctx, table: &mut self.table, hooks: &mut self.outbound }
    }
}
