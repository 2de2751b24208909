//! Everything that one service's component gets: no more than its policy allows.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use leasehold::{Addr, Registrar, ServiceName, Terms};
use leasehold_wasmtime::{Policy, RegistryCtx};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder};
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::WasiHttpCtx;

use crate::{
    config::{Limits, Spec},
    outbound::{Outbound, denial::Denials, reserved::Reserved, service::ServiceClient},
    telemetry::{
        access_log::AccessLog,
        service_metrics::{Incident, Stats},
        span::Tracer,
    },
    wasm::{
        admission::{Admission, Permits},
        error::cause,
        in_flight::InFlightRequests,
        scheduler::{Strides, Usage},
        sockets::{ConnectionPermits, Sockets},
        stdin::Input,
        stdout::{Output, OutputBudget, Panic},
    },
};

/// Registrations of one component, at most.
const MAX_REGISTRATIONS: usize = 100;
/// Longest time to live that a component may request.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// Elements in one table of a component, at most.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Resources that the host keeps for one component at a time: requests, responses, headers, streams. One more traps.
const RESOURCES: usize = 2048;
/// Further resources for each request of an instance whose number of requests is configured: languages with garbage
/// collection release resources late.
const RESOURCES_PER_REQUEST: usize = 8;
const MAX_RESOURCES: usize = 16_384;
/// Random bytes of one call, at most; the host makes them in its own memory.
const MAX_RANDOM: u64 = 4 << 20;

/// Resources of a program per connection: the connection, its two streams, and a pollable for each of them; and resources
/// for all else. One more traps.
const RESOURCES_PER_CONNECTION: usize = 6;
const OTHER_RESOURCES: usize = 64;

/// Signals between a program and its host.
#[derive(Default)]
pub(crate) struct ProgramSignals {
    /// Cancelled by the program: it is about to listen.
    pub(crate) listens: CancellationToken,
    /// Cancelled by the host: the program is to end.
    pub(crate) end: CancellationToken,
}

/// State that all instances of one revision share.
pub(crate) struct ServiceContext {
    name: ServiceName,
    /// Arguments, the service's name first in the place of a program's name.
    args: Vec<String>,
    env: Vec<(String, String)>,
    config: Arc<WasiConfigVariables>,
    outbound: Outbound,
    memory: usize,
    http: WasiHttpCtx,
    /// The registrations of the service, which outlive its instances.
    pub(crate) registry: RegistryCtx,
    /// Cancelled at the end of the service: failures of remaining instances are not logged.
    pub(crate) ended: CancellationToken,
    pub(crate) output: Arc<OutputBudget>,
    pub(crate) tracer: Option<Tracer>,
    pub(crate) access_log: Arc<AccessLog>,
    /// Names in certificates of the clients that may send requests.
    pub(crate) callers: Option<Arc<[String]>>,
    /// Cancelled when a later revision serves the requests: idle instances end.
    pub(crate) replaced: CancellationToken,
    resources: usize,
    shared: Shared,
}

/// State that all revisions of a service share.
#[derive(Clone)]
struct Shared {
    admission: Admission,
    slots: Permits,
    strides: Strides,
    reserved: Reserved,
    denials: Arc<Denials>,
    stats: Arc<Stats>,
}

/// State of the store of one instance.
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
    /// Requests in flight of this instance.
    pub(crate) requests: Arc<InFlightRequests>,
    /// Text of its panic, for the line about its end.
    panic: Panic,
    /// The sockets of a program. Its processor use is counted from one host call to the next, since it has no requests.
    pub(crate) connections: Option<ConnectionPermits>,
    /// Given back when the store is dropped.
    _slot: Option<OwnedSemaphorePermit>,
}

impl StoreState {
    /// Root cause of an error that ended the instance, with the text of its panic; on one line.
    pub(crate) fn cause(&self, error: &wasmtime::Error) -> String {
        match self.panic.take() {
            Some(panic) => format!("{}; it {panic}", cause(error)),
            None => cause(error),
        }
    }
}

/// Limits of one instance, with the metrics that count its memory and violations of the limits.
pub(crate) struct Limiter {
    limits: StoreLimits,
    stats: Arc<Stats>,
    /// Bytes of the instance's linear memories.
    memory: i64,
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.stats.memory.dec_by(self.memory);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grows = self.limits.memory_growing(current, desired, maximum)?;
        if grows {
            let growth = i64::try_from(desired.saturating_sub(current)).unwrap_or(i64::MAX);
            self.memory = self.memory.saturating_add(growth);
            self.stats.memory.inc_by(growth);
        } else {
            self.stats.incident(Incident::MemoryLimit);
        }
        Ok(grows)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }
}

/// Resources that an instance may have at a time.
fn resources(limits: &Limits) -> usize {
    let requests = limits.instance_requests.map_or(0, |requests| requests as usize);
    (RESOURCES + RESOURCES_PER_REQUEST * requests).min(MAX_RESOURCES)
}

/// Rights and limits of a component's registrations and look-ups.
fn policy(spec: &Spec, published: &[Addr]) -> Policy {
    Policy {
        names: spec.allow.names.clone(),
        discover: spec.allow.discover.clone(),
        addr: published.first().cloned(),
        addrs: published.to_vec(),
        max_registrations: MAX_REGISTRATIONS,
        max_nodes: spec.limits.nodes as usize,
        prefer: spec.prefer.clone(),
        terms: Terms { layouts: spec.layouts.clone(), ..Terms::default() },
        max_ttl: MAX_TTL,
        ..Policy::default()
    }
}

impl ServiceContext {
    /// Makes the context of a service that clients find under the addresses `published`.
    pub(crate) fn new(
        spec: &Spec,
        published: &[Addr],
        registrar: Registrar,
        tracer: Option<Tracer>,
        reserved: Reserved,
        stats: Arc<Stats>,
    ) -> Self {
        let registry = RegistryCtx::new(registrar, policy(spec, published)).named(spec.name.as_str());
        let denials = Arc::new(Denials::new(spec.name.clone()));
        let shared = Shared {
            admission: Admission::new(spec.limits.concurrency),
            slots: Permits::new(Self::slots(&spec.limits)),
            strides: Strides::default(),
            reserved,
            denials,
            stats,
        };
        Self::assemble(spec, registry, tracer, shared)
    }

    /// The context of the component's next revision. Both share the admission of requests and the slots for instances, so
    /// that the limits hold for the service as a whole.
    pub(crate) fn successor(&self) -> Self {
        Self {
            name: self.name.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            config: Arc::clone(&self.config),
            outbound: self.outbound.clone(),
            memory: self.memory,
            http: self.http.clone(),
            registry: self.registry.successor(),
            ended: CancellationToken::new(),
            output: Arc::clone(&self.output),
            tracer: self.tracer.clone(),
            access_log: Arc::clone(&self.access_log),
            callers: self.callers.clone(),
            replaced: CancellationToken::new(),
            resources: self.resources,
            shared: self.shared.clone(),
        }
    }

    /// The same under another configuration, of the same name. The limits of requests and instances stay as they are until
    /// [`resize`](Self::resize).
    pub(crate) fn successor_under(&self, spec: &Spec, published: &[Addr], tracer: Option<Tracer>) -> Self {
        let registry = self.registry.successor_under(policy(spec, published));
        Self::assemble(spec, registry, tracer, self.shared.clone())
    }

    /// Applies the limits of requests and instances, once the revision is served.
    pub(crate) fn resize(&self, limits: &Limits) {
        self.shared.admission.resize(limits.concurrency);
        self.shared.slots.resize(Self::slots(limits));
    }

    fn assemble(spec: &Spec, registry: RegistryCtx, tracer: Option<Tracer>, shared: Shared) -> Self {
        let (reserved, stats) = (shared.reserved, &shared.stats);
        let discover = spec.allow.discover.clone();
        let services = ServiceClient::new(
            registry.clone(),
            discover,
            &spec.suffix,
            (spec.calls.clone(), Arc::clone(stats)),
            reserved,
        );
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(spec.limits.header_size);
        Self {
            name: spec.name.clone(),
            args: [spec.name.to_string()].into_iter().chain(spec.args.iter().cloned()).collect(),
            env: spec.env.0.clone().into_iter().collect(),
            config: Arc::new(spec.store().into_iter().collect()),
            outbound: Outbound::new(
                &spec.allow,
                &spec.limits,
                services,
                (reserved, Arc::clone(&shared.denials)),
                Arc::clone(stats),
                tracer.clone(),
            ),
            memory: spec.limits.memory,
            http,
            registry,
            ended: CancellationToken::new(),
            output: OutputBudget::new(Arc::clone(stats), spec.limits.output_lines),
            tracer,
            access_log: Arc::new(AccessLog::new(spec.name.clone(), spec.access_log)),
            callers: spec.allow.callers.clone(),
            replaced: CancellationToken::new(),
            resources: resources(&spec.limits),
            shared,
        }
    }

    /// Number of instances that serve requests at a time. It exceeds `concurrency`, since an instance may outlive a request
    /// whose client has left.
    pub(crate) fn slots(limits: &Limits) -> u32 {
        limits.concurrency.saturating_add(limits.concurrency / 4).saturating_add(1)
    }

    /// Metrics of the service.
    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Admission of requests.
    pub(crate) fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    /// Limit of instances.
    pub(crate) fn max_instances(&self) -> u32 {
        self.shared.slots.total()
    }

    pub(crate) fn instances(&self) -> usize {
        self.shared.slots.used()
    }

    /// Store state of an instance that serves requests, once there is a slot for it.
    pub(crate) async fn store_for_requests(&self) -> StoreState {
        let slot = self.shared.slots.get().acquire_owned().await.expect("the slots are never closed");
        self.store(Some(slot), |_| ())
    }

    /// Store state of the one instance that lives as long as the service.
    pub(crate) fn store_for_lifecycle(&self) -> StoreState {
        self.store(None, |_| ())
    }

    /// Store state of a program, which listens where `spec` says.
    pub(crate) fn store_for_program(&self, spec: &Spec, signals: &ProgramSignals) -> StoreState {
        let connections = spec.limits.connections as usize;
        let permits = ConnectionPermits::new(connections);
        let sockets = Arc::new(Sockets {
            service: self.name.clone(),
            listen: spec.listen,
            outbound: spec.allow.outbound.clone().into(),
            local: spec.allow.local,
            reserved: self.shared.reserved,
            denials: Arc::clone(&self.shared.denials),
            listens: signals.listens.clone(),
            ending: signals.end.clone(),
            connections: permits.clone(),
            refused: AtomicBool::new(false),
        });
        let mut state = self.store(None, |wasi| {
            wasi.stdin(Input(signals.end.clone())).allow_tcp(true).socket_addr_check(move |addr, purpose| {
                let sockets = Arc::clone(&sockets);
                Box::pin(async move { sockets.decide(addr, purpose).await })
            });
        });
        state.connections = Some(permits);
        state.table.set_max_capacity(RESOURCES_PER_CONNECTION * connections + OTHER_RESOURCES);
        state
    }

    fn store(&self, slot: Option<OwnedSemaphorePermit>, extend: impl FnOnce(&mut WasiCtxBuilder)) -> StoreState {
        let (requests, panic) = (Arc::<InFlightRequests>::default(), Panic::default());
        let mut wasi = WasiCtx::builder();
        wasi.args(&self.args);
        wasi.envs(&self.env);
        wasi.max_random_size(MAX_RANDOM);
        wasi.stdout(Output::stdout(Arc::clone(&self.output), Arc::clone(&requests)));
        wasi.stderr(Output::stderr(Arc::clone(&self.output), Arc::clone(&requests), panic.clone()));
        extend(&mut wasi);
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.resources);
        StoreState {
            wasi: wasi.build(),
            table,
            http: self.http.clone(),
            outbound: self.outbound.clone(),
            config: Arc::clone(&self.config),
            registry: self.registry.clone(),
            limits: Limiter {
                limits: StoreLimitsBuilder::new().memory_size(self.memory).table_elements(MAX_TABLE_ELEMENTS).build(),
                stats: Arc::clone(self.stats()),
                memory: 0,
            },
            usage: Usage::new(self.shared.strides.clone(), self.stats().cpu.clone()),
            requests,
            panic,
            connections: None,
            _slot: slot,
        }
    }
}
