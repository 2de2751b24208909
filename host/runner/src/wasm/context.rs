//! What one service's component is given: nothing but what its policy says.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use leasehold::{Addr, Registrar, ServiceName, Terms};
use leasehold_wasmtime::{Policy, RegistryCtx};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder};
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::WasiHttpCtx;

use crate::{
    config::{Limits, Spec},
    outbound::{Outbound, denial::Denials, reserved::Reserved, service::ServiceClient},
    telemetry::{
        service_metrics::{Incident, Stats},
        span::Tracer,
    },
    wasm::{
        admission::Admission,
        in_flight::InFlightRequests,
        scheduler::{Strides, Usage},
        sockets::{ConnectionPermits, Sockets},
        stdin::Input,
        stdout::{Output, OutputBudget},
    },
};

/// The most registrations of one component.
const MAX_REGISTRATIONS: usize = 100;
/// The longest time to live that a component may ask for.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// The most elements in one table of a component.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// What the host keeps for one component at a time: requests, answers, headers, streams. One more traps.
const RESOURCES: usize = 2048;
/// More of them for each request that an instance answers where the configuration says how many: languages that collect
/// garbage give things back late.
const RESOURCES_PER_REQUEST: usize = 8;
const MAX_RESOURCES: usize = 16_384;
/// The most random bytes that a component gets at once; the host makes them in its own memory.
const MAX_RANDOM: u64 = 4 << 20;

/// What a connection takes of a program's table of resources: itself, its two streams, and who waits for each of them; and
/// what all else takes. One more traps.
const RESOURCES_PER_CONNECTION: usize = 6;
const OTHER_RESOURCES: usize = 64;

/// What a program and its host tell each other.
#[derive(Default)]
pub(crate) struct ProgramSignals {
    /// By the program: it is about to listen.
    pub(crate) listens: CancellationToken,
    /// By the host: it is to end.
    pub(crate) end: CancellationToken,
}

/// What all instances of one service share.
pub(crate) struct ServiceContext {
    name: ServiceName,
    /// The service's name first, as a program's is its own.
    args: Vec<String>,
    env: Vec<(String, String)>,
    config: Arc<WasiConfigVariables>,
    outbound: Outbound,
    reserved: Reserved,
    denials: Arc<Denials>,
    memory: usize,
    http: WasiHttpCtx,
    /// The registrations of the service, which outlive its instances.
    pub(crate) registry: RegistryCtx,
    /// Cancelled when the service has ended: what instances that are left over say is of no interest any more.
    pub(crate) ended: CancellationToken,
    pub(crate) stats: Arc<Stats>,
    pub(crate) output: Arc<OutputBudget>,
    pub(crate) tracer: Option<Tracer>,
    pub(crate) admission: Admission,
    /// Cancelled when requests go to a later version: an instance that idles is of no more use.
    pub(crate) replaced: CancellationToken,
    slots: Arc<Semaphore>,
    max_instances: u32,
    resources: usize,
    strides: Strides,
}

/// What the store of one instance carries.
pub(crate) struct StoreState {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) http: WasiHttpCtx,
    pub(crate) outbound: Outbound,
    pub(crate) config: Arc<WasiConfigVariables>,
    pub(crate) registry: RegistryCtx,
    pub(crate) limits: Limiter,
    /// Recent processor use of the request at hand.
    pub(crate) usage: Usage,
    /// The requests that it answers.
    pub(crate) requests: Arc<InFlightRequests>,
    /// The sockets of a program. Its processor use is counted from one host call to the next, since it has no requests.
    pub(crate) connections: Option<ConnectionPermits>,
    /// Given back when the store is dropped.
    _slot: Option<OwnedSemaphorePermit>,
}

/// The limits of one instance, and where it is counted that it ran into them.
pub(crate) struct Limiter {
    limits: StoreLimits,
    stats: Arc<Stats>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grows = self.limits.memory_growing(current, desired, maximum)?;
        if !grows {
            self.stats.incident(Incident::MemoryLimit);
        }
        Ok(grows)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }
}

/// What an instance may have of the host's at a time.
fn resources(limits: &Limits) -> usize {
    let requests = limits.instance_requests.map_or(0, |requests| requests as usize);
    (RESOURCES + RESOURCES_PER_REQUEST * requests).min(MAX_RESOURCES)
}

impl ServiceContext {
    /// `published` is the address under which clients find the service.
    pub(crate) fn new(
        spec: &Spec,
        published: &[Addr],
        registrar: Registrar,
        tracer: Option<Tracer>,
        reserved: Reserved,
        stats: Arc<Stats>,
    ) -> Self {
        let policy = Policy {
            names: spec.allow.names.clone(),
            discover: spec.allow.discover.clone(),
            addr: published.first().cloned(),
            addrs: published.to_vec(),
            max_registrations: MAX_REGISTRATIONS,
            max_nodes: spec.limits.nodes as usize,
            terms: Terms { layouts: spec.layouts.clone(), ..Terms::default() },
            max_ttl: MAX_TTL,
            ..Policy::default()
        };
        let registry = RegistryCtx::new(registrar, policy);
        let services =
            ServiceClient::new(registry.clone(), spec.allow.discover.clone(), &spec.suffix, &spec.prefer, reserved);
        let denials = Arc::new(Denials::new(spec.name.clone()));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(spec.limits.header_size);
        let pairs = |variables: &crate::config::Variables| variables.0.clone().into_iter().collect::<Vec<_>>();
        Self {
            name: spec.name.clone(),
            args: [spec.name.to_string()].into_iter().chain(spec.args.iter().cloned()).collect(),
            env: pairs(&spec.env),
            config: Arc::new(pairs(&spec.config).into_iter().collect()),
            outbound: Outbound::new(
                &spec.allow,
                &spec.limits,
                services,
                (reserved, Arc::clone(&denials)),
                Arc::clone(&stats),
                tracer.clone(),
            ),
            reserved,
            denials,
            memory: spec.limits.memory,
            http,
            registry,
            ended: CancellationToken::new(),
            output: OutputBudget::new(Arc::clone(&stats), spec.limits.output_lines),
            stats,
            tracer,
            admission: Admission::new(spec.limits.concurrency),
            replaced: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(Self::slots(&spec.limits) as usize)),
            max_instances: Self::slots(&spec.limits),
            resources: resources(&spec.limits),
            strides: Strides::default(),
        }
    }

    /// The same for the component's next version. Both share the admission of requests, so that the limit on these is one of
    /// the service, and the slots for instances: they suffice for so many requests, whichever version answers.
    pub(crate) fn successor(&self) -> Self {
        Self {
            name: self.name.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            config: Arc::clone(&self.config),
            outbound: self.outbound.clone(),
            reserved: self.reserved,
            denials: Arc::clone(&self.denials),
            memory: self.memory,
            http: self.http.clone(),
            registry: self.registry.successor(),
            ended: CancellationToken::new(),
            output: Arc::clone(&self.output),
            stats: Arc::clone(&self.stats),
            tracer: self.tracer.clone(),
            admission: self.admission.clone(),
            replaced: CancellationToken::new(),
            slots: Arc::clone(&self.slots),
            max_instances: self.max_instances,
            resources: self.resources,
            strides: self.strides.clone(),
        }
    }

    /// How many instances answer requests at a time. More than requests at a time, since an instance may outlive the
    /// request whose client went away.
    pub(crate) fn slots(limits: &Limits) -> u32 {
        limits.concurrency.saturating_add(limits.concurrency / 4).saturating_add(1)
    }

    /// How many there may be, and how many there are, idle ones included.
    pub(crate) fn max_instances(&self) -> u32 {
        self.max_instances
    }

    pub(crate) fn instances(&self) -> usize {
        (self.max_instances as usize).saturating_sub(self.slots.available_permits())
    }

    /// The host side of an instance that answers requests, once there is a slot for it.
    pub(crate) async fn store_for_requests(&self) -> StoreState {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the slots are never closed");
        self.store(self.wasi().build(), Some(slot))
    }

    /// The host side of the one instance that lives as long as the service.
    pub(crate) fn store_for_lifecycle(&self) -> StoreState {
        self.store(self.wasi().build(), None)
    }

    /// The host side of a program, which listens where `spec` says.
    pub(crate) fn store_for_program(&self, spec: &Spec, signals: &ProgramSignals) -> StoreState {
        let connections = spec.limits.connections as usize;
        let permits = ConnectionPermits::new(connections);
        let sockets = Arc::new(Sockets {
            service: self.name.clone(),
            listen: spec.listen,
            outbound: spec.allow.outbound.clone().into(),
            local: spec.allow.local,
            reserved: self.reserved,
            denials: Arc::clone(&self.denials),
            listens: signals.listens.clone(),
            ending: signals.end.clone(),
            connections: permits.clone(),
            refused: AtomicBool::new(false),
        });
        let mut wasi = self.wasi();
        wasi.stdin(Input(signals.end.clone())).allow_tcp(true).socket_addr_check(move |addr, purpose| {
            let sockets = Arc::clone(&sockets);
            Box::pin(async move { sockets.decide(addr, purpose).await })
        });
        let mut state = self.store(wasi.build(), None);
        state.connections = Some(permits);
        state.table.set_max_capacity(RESOURCES_PER_CONNECTION * connections + OTHER_RESOURCES);
        state
    }

    fn wasi(&self) -> WasiCtxBuilder {
        let mut wasi = WasiCtx::builder();
        wasi.args(&self.args);
        wasi.envs(&self.env);
        wasi.max_random_size(MAX_RANDOM);
        wasi.stdout(Output::stdout(Arc::clone(&self.output)));
        wasi.stderr(Output::stderr(Arc::clone(&self.output)));
        wasi
    }

    fn store(&self, wasi: WasiCtx, slot: Option<OwnedSemaphorePermit>) -> StoreState {
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.resources);
        StoreState {
            wasi,
            table,
            http: self.http.clone(),
            outbound: self.outbound.clone(),
            config: Arc::clone(&self.config),
            registry: self.registry.clone(),
            limits: Limiter {
                limits: StoreLimitsBuilder::new().memory_size(self.memory).table_elements(MAX_TABLE_ELEMENTS).build(),
                stats: Arc::clone(&self.stats),
            },
            usage: Usage::new(self.strides.clone()),
            requests: Arc::default(),
            connections: None,
            _slot: slot,
        }
    }
}
