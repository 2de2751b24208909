//! One service, in the order it is lived: bound, started, served, reloaded, drained.
//!
//! | layer | file | has |
//! |---|---|---|
//! | `Supervisor`, with its attempts | `supervisor` | the commands of a service, from the first attempt to start it to its end |
//! | `Service` | `mod`, `serving`, `keys` | one attempt that could be bound: its state, its events, its keys in etcd |
//! | `Handler` or `Program` | `http`, `program` | the listener of the host, or the component that listens itself |
//! | `Revision` or `Run` | `revision`, `process` | one version of the component file that serves; one run of a program |
//! | `LifecycleInstance` | `lifecycle` | the instance in which the component's `start` ran, until its `stop` |
//!
//! Beside them: `handle` (commands and status, as others see the service), `reload` (a revision that is being built),
//! `health` (probes and outliers), `component_watcher`.

pub(crate) mod component_watcher;
pub(crate) mod handle;
pub(crate) mod health;
pub(crate) mod http;
mod identity;
mod keys;
pub(crate) mod lifecycle;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod reload;
pub(crate) mod revision;
mod serving;
pub(crate) mod supervisor;

use std::{fmt::Display, net::SocketAddr, sync::Arc, time::SystemTime};

use leasehold::{Registrar, Weight};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Register, Spec},
    error::Failure,
    outbound::reserved::Reserved,
    process::handover::Inheritance,
    service::{
        component_watcher::ComponentWatcher,
        handle::{Drained, Phase, ReloadCommand, Reply, RevisionInfo, ServiceStatus},
        health::{HealthMonitor, ProbeTarget, Verdict, panic_threshold::PanicThreshold},
        http::Handler,
        identity::Identity,
        program::Program,
        reload::Reload,
    },
    telemetry::{otlp::Traces, service_metrics::Stats},
    wasm::{
        component::{ComponentKind, Loaded},
        context::ServiceContext,
        engine::Engine,
    },
};

/// A service whose address is known to be free for it.
pub(crate) struct Service {
    spec: Spec,
    engine: Engine,
    registrar: Registrar,
    traces: Option<Traces>,
    /// Cancelled once this process is the host.
    is_host: CancellationToken,
    identity: Identity,
    bound: SocketAddr,
    state: State,
    /// The state as others see it.
    status: watch::Sender<ServiceStatus>,
    /// Weight that an operator has set.
    weight: watch::Receiver<Option<Weight>>,
    /// The component and the context of the current revision.
    loaded: Loaded,
    context: Arc<ServiceContext>,
    workload: Workload,
    monitor: Option<HealthMonitor>,
    file: Option<ComponentWatcher>,
    /// The reload that is in progress.
    reload: Option<Reload>,
    /// Time at which the keys were last withdrawn: clients may use them for a while.
    withdrawn_at: Option<Instant>,
}

/// State of a service between its bind and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The component is not served yet.
    Bound,
    /// It accepts connections, and is not in etcd. The component's `lifecycle` is not started before the health check passes.
    AwaitingHealth,
    /// It accepts connections, and is in etcd where it is registered at all.
    Serving,
    /// Out of etcd until the health check passes, or until the program that has ended runs again.
    Withdrawn,
    /// On its way out.
    Ending {
        was_served: bool,
        was_announced: bool,
    },
    Drained,
}

/// Acceptor of the connections.
enum Workload {
    /// The host, which calls the component with each request.
    Handler(Handler),
    /// The component itself.
    Program(Program),
}

/// Queues of commands to one service.
pub(crate) struct Commands {
    pub(crate) drains: mpsc::Receiver<Reply<Drained>>,
    pub(crate) resumes: mpsc::Receiver<Reply<Result<(), Failure>>>,
    pub(crate) reloads: mpsc::Receiver<ReloadCommand>,
}

/// State of a service that outlives each attempt to start it: its status, its metrics, and the operator's weight.
#[derive(Clone)]
pub(crate) struct StatusCell {
    pub(crate) status: watch::Sender<ServiceStatus>,
    pub(crate) weight: watch::Receiver<Option<Weight>>,
    pub(crate) stats: Arc<Stats>,
}

impl Service {
    /// Binds the listener, or checks that the component can. Nothing of the component runs yet.
    pub(crate) fn bind(
        spec: Spec,
        loaded: Loaded,
        engine: &Engine,
        registrar: &Registrar,
        traces: Option<&Traces>,
        (reserved, inheritance): (Reserved, Option<&Inheritance>),
        cell: StatusCell,
    ) -> Result<Self, Failure> {
        let (workload, bound) = match loaded.kind(&spec.component)? {
            ComponentKind::Handler(_) => {
                let handler = Handler::bind(&spec, inheritance)?;
                let bound = handler.bound();
                (Workload::Handler(handler), bound)
            }
            ComponentKind::Program(_) => (Workload::Program(Program::bind(&spec)?), spec.listen),
        };
        let identity = Identity::new(&spec, bound, traces);
        let Identity { own, tracer, .. } = identity.clone();
        let context = Arc::new(ServiceContext::new(&spec, &own, registrar.clone(), tracer, reserved, cell.stats));
        let service = Self {
            spec,
            engine: engine.clone(),
            registrar: registrar.clone(),
            traces: traces.cloned(),
            is_host: http::is_host(inheritance),
            identity,
            bound,
            state: State::Bound,
            status: cell.status,
            weight: cell.weight,
            loaded,
            context,
            workload,
            monitor: None,
            file: None,
            reload: None,
            withdrawn_at: None,
        };
        let (listen, url) = (Arc::from(bound.to_string()), Arc::from(service.url()));
        let revision = RevisionInfo { digest: Arc::clone(&service.loaded.digest), since: SystemTime::now() };
        let listener = match &service.workload {
            Workload::Handler(handler) => handler.listener(),
            Workload::Program(_) => None,
        };
        service.status.send_modify(|status| {
            (status.listen, status.url, status.listener) = (listen, url, listener);
            (status.context, status.revision) = (Some(Arc::clone(&service.context)), Some(revision));
        });
        Ok(service)
    }

    /// The URL at which the listener answers. Only the component knows the protocol of a program.
    fn url(&self) -> String {
        let scheme = match self.workload {
            Workload::Handler(_) if self.spec.tls.is_some() => "https",
            Workload::Handler(_) => "http",
            Workload::Program(_) => "tcp",
        };
        format!("{scheme}://{}/", self.bound)
    }

    /// Starts the component, serves it, and registers it where that is the host's task.
    ///
    /// After a failure the caller owes an [`end`](Self::end), which takes back what was registered.
    pub(crate) async fn start(&mut self) -> Result<(), Failure> {
        let (spec, engine, loaded, context) = (&self.spec, &self.engine, &self.loaded, &self.context);
        // Nothing is registered yet: only the weight of later registrations is set.
        drop(handle::apply_weight(&self.weight, &context.registry).await);
        match &mut self.workload {
            Workload::Handler(handler) => handler.start(spec, engine, loaded, context).await?,
            Workload::Program(program) => program.start(spec, engine, loaded, context).await?,
        }
        self.monitor = self.monitor();
        // The service is announced once its health check passes, and not before.
        if let Err(why) = self.first_health().await {
            self.enter(
                if self.is_probed_before_start() { State::AwaitingHealth } else { State::Withdrawn },
                Some(&why),
            );
            tracing::warn!(event = "not_announced", service = %self.spec.name, url = self.url(), "not announced: {why}");
            return Ok(());
        }
        match &mut self.workload {
            Workload::Handler(handler) if self.spec.is_probed_before_start() => {
                handler.start_lifecycle(&self.spec, &self.engine, &self.loaded).await?;
            }
            _ => {}
        }
        if self.spec.register == Register::Host {
            keys::register(&self.spec, self.identity.node.clone(), &self.context.registry).await?;
        }
        self.enter(State::Serving, None);
        tracing::info!(event = "serving", service = %self.spec.name, url = self.url(), "the service is served");
        Ok(())
    }

    /// Returns true if the component has to pass its health check before it is started. A program cannot: it registers
    /// what it likes once it runs.
    fn is_probed_before_start(&self) -> bool {
        matches!(self.workload, Workload::Handler(_)) && self.spec.is_probed_before_start()
    }

    /// The health monitor of a service that can be in etcd.
    fn monitor(&self) -> Option<HealthMonitor> {
        let target = match &self.workload {
            Workload::Handler(handler) => ProbeTarget::Dispatcher(handler.dispatcher()?, self.bound.to_string()),
            Workload::Program(_) => ProbeTarget::Address(self.spec.reachable()),
        };
        let trusted = self.spec.register == Register::Component && !self.is_probed_before_start();
        let registry = self.context.registry.clone();
        let threshold = PanicThreshold::new(self.spec.quarantine, self.registrar.clone(), registry);
        let stats = Arc::clone(self.context.stats());
        let monitor = || HealthMonitor::new(self.spec.health.clone(), target, stats, threshold, trusted);
        (self.spec.register != Register::Off).then(monitor)
    }

    /// Waits until the health check passes for the first time, for as long as a start may take. The error says why it
    /// does not.
    async fn first_health(&mut self) -> Result<(), String> {
        let Some(monitor) = self.monitor.as_mut().filter(|monitor| !monitor.is_healthy()) else { return Ok(()) };
        match timeout(self.spec.limits.start_timeout, monitor.next()).await {
            Ok(Verdict::Healthy) => Ok(()),
            _ => {
                let last = monitor.last_failure.as_deref().map_or_else(String::new, |last| format!(": {last}"));
                Err(format!("its health check has not passed yet{last}"))
            }
        }
    }

    /// Ends the service in order, from whatever point it had reached, an earlier `drain` included. Every step has a
    /// deadline, and none of them keeps the next one from happening.
    pub(crate) async fn drain(&mut self) -> Drained {
        if self.state == State::Drained {
            return Drained { keys_gone: true, all_answered: true };
        }
        self.publish(Phase::Draining, None);
        let was_served = !matches!(self.state, State::Bound | State::Ending { was_served: false, .. });
        let drained = self.end().await;
        self.context.output.report_rest();
        if was_served {
            tracing::info!(event = "ended", service = %self.spec.name, "the service has ended");
        }
        self.enter(State::Drained, None);
        drained
    }

    /// Deletes the keys of the service and ends it, from whatever point it had reached.
    pub(crate) async fn end(&mut self) -> Drained {
        (self.monitor, self.file) = (None, None);
        if let Some(reload) = self.reload.take() {
            reload.end(Err(self.failed("it is drained")));
        }
        // An end that was broken off, or a withdrawal just now, has deleted keys that clients may still know.
        let settle_time = self.spec.limits.settle_time;
        let was_withdrawn = self.withdrawn_at.is_some_and(|at| at.elapsed() < settle_time);
        let (was_served, was_announced) = match self.state {
            State::Ending { was_served, was_announced } => (was_served, was_announced),
            state => (state != State::Bound, was_withdrawn),
        };
        let was_announced = was_announced || !self.context.registry.registrations().is_empty();
        self.state = State::Ending { was_served, was_announced };
        let keys_gone = keys::delete(&self.spec, &self.context.registry).await;
        let all_answered = self.workload.stop(&self.spec, was_announced).await;
        self.context.ended.cancel();
        Drained { keys_gone, all_answered }
    }

    /// Configuration and engine of the service, which a reload may have changed.
    pub(crate) fn configuration(&self) -> (Spec, Engine) {
        (self.spec.clone(), self.engine.clone())
    }

    fn enter(&mut self, state: State, why: Option<&str>) {
        self.state = state;
        self.publish(self.phase(), why);
    }

    fn publish(&self, phase: Phase, why: Option<&str>) {
        self.status.send_modify(|status| status.enter(phase, why));
    }

    fn phase(&self) -> Phase {
        match self.state {
            State::Bound => Phase::Starting,
            State::AwaitingHealth | State::Withdrawn => Phase::Withdrawn,
            State::Serving => Phase::Serving,
            State::Ending { .. } => Phase::Draining,
            State::Drained => Phase::Drained,
        }
    }

    fn failed(&self, message: impl Display) -> Failure {
        Failure::other(format!("{}: {message}", self.spec.name))
    }
}

impl Workload {
    /// Ends it in order. Returns true if nothing was cut off.
    async fn stop(&mut self, spec: &Spec, was_announced: bool) -> bool {
        match self {
            Self::Handler(handler) => handler.stop(spec, was_announced).await,
            Self::Program(program) => program.stop(spec, was_announced).await,
        }
    }
}
