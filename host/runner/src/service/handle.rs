//! Handles to the services of this process: their status, and the commands that they accept.

use std::{
    sync::{Arc, Weak, atomic::AtomicBool},
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use leasehold::{Error, Registration, ServiceName, State, Verb, View, Weight};
use leasehold_wasmtime::RegistryCtx;
use serde::Serialize;
use strum::{Display, EnumIter};
use tokio::{
    net::TcpListener,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Register, Spec, plan::Change, written::KeyChange},
    error::Failure,
    process::handover::ShownState,
    telemetry::service_metrics::Stats,
    wasm::{component::Loaded, context::ServiceContext, engine::Engine},
};

/// Commands that wait for one service, at most; of each kind.
pub(crate) const MAX_PENDING_COMMANDS: usize = 4;

/// Recipient of the outcome of a command.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// Handles to all services.
pub(crate) type ServiceList = Vec<Arc<ServiceHandle>>;

/// All services, once there is an engine to run them.
pub(crate) struct Services {
    services: ArcSwapOption<ServiceList>,
    /// Commands to the host as a whole.
    pub(crate) commands: mpsc::Sender<HostCommand>,
    /// Cancelled once another process is the host: its listeners are no longer accepted from here.
    pub(crate) succeeded: CancellationToken,
    /// True while a successor starts: it has the state of the services as it was before.
    pub(crate) is_upgrading: AtomicBool,
    /// Cancelled when the whole process ends.
    pub(crate) ending: CancellationToken,
    /// Reason for which the start waits for etcd.
    pub(crate) etcd: watch::Sender<Option<Arc<str>>>,
}

/// Handle to one service.
pub(crate) struct ServiceHandle {
    pub(crate) name: ServiceName,
    pub(crate) stats: Arc<Stats>,
    pub(crate) status: watch::Receiver<ServiceStatus>,
    /// Drain commands: the service ends, and the others go on.
    pub(crate) drains: mpsc::Sender<Reply<Drained>>,
    /// Resume commands: a drained service starts again.
    pub(crate) resumes: mpsc::Sender<Reply<Result<(), Failure>>>,
    /// Reload commands.
    pub(crate) reloads: mpsc::Sender<ReloadCommand>,
    /// Weight that an operator has set; `None` for the weight as configured.
    pub(crate) weight: watch::Sender<Option<Weight>>,
    /// Cancelled to end the service for good.
    pub(crate) ending: CancellationToken,
}

/// A command to go on with another revision.
pub(crate) struct ReloadCommand {
    /// The revision; `None` for the present configuration and the present content of the component file.
    pub(crate) next: Option<Box<NextRevision>>,
    pub(crate) reply: Reply<Result<(), Failure>>,
}

/// A revision that is prepared: its component is loaded and fits its configuration.
pub(crate) struct NextRevision {
    pub(crate) spec: Spec,
    pub(crate) engine: Engine,
    pub(crate) loaded: Loaded,
}

/// A command to the host as a whole.
pub(crate) enum HostCommand {
    /// Reads the configuration again, and goes on with what it says.
    Reconfigure {
        /// Changes nothing: the reply is the plan.
        dry_run: bool,
        reply: Reply<Result<Reconfigured, Failure>>,
    },
    /// Hands the host over to a new process of its binary, with that process's number as the reply.
    Upgrade(Reply<Result<u32, Failure>>),
}

/// Outcome of a reload of the configuration, or its plan.
#[derive(Debug, Serialize)]
pub(crate) struct Reconfigured {
    pub(crate) dry_run: bool,
    pub(crate) services: Vec<ServiceChange>,
    /// Keys that differ and take effect with the next start of the host.
    pub(crate) needs_restart: Vec<KeyChange>,
}

/// Effect of a reload of the configuration on one service.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceChange {
    pub(crate) service: String,
    pub(crate) listen: String,
    pub(crate) change: Change,
    pub(crate) keys: Vec<KeyChange>,
    /// The content of its component file has changed.
    pub(crate) has_new_component: bool,
    /// It is drained, and stays so: what has changed takes effect once it is resumed.
    pub(crate) is_drained: bool,
    /// Reason for which it is not as it should be.
    pub(crate) why: Option<String>,
}

/// Reason for which a command was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotAccepted {
    /// Another one is in progress.
    Busy,
    Ending,
}

impl<T> From<TrySendError<T>> for NotAccepted {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Self::Busy,
            TrySendError::Closed(_) => Self::Ending,
        }
    }
}

/// Status of a service at one moment.
#[derive(Clone)]
pub(crate) struct ServiceStatus {
    pub(crate) phase: Phase,
    /// Reason for the phase, if it is not the usual course.
    pub(crate) why: Option<Arc<str>>,
    /// Begin of the phase.
    pub(crate) since: SystemTime,
    /// Its configuration.
    pub(crate) spec: Arc<Spec>,
    /// Address of the listener, as configured until it is bound.
    pub(crate) listen: Arc<str>,
    /// URL of the service; empty before it listens.
    pub(crate) url: Arc<str>,
    /// The listener, where it is the host's.
    pub(crate) listener: Option<Weak<TcpListener>>,
    /// Context of the current revision; none before the service listens.
    pub(crate) context: Option<Arc<ServiceContext>>,
    /// The component of that revision.
    pub(crate) revision: Option<RevisionInfo>,
}

/// The component that a service runs.
#[derive(Clone)]
pub(crate) struct RevisionInfo {
    /// SHA-256 of the component file as it was loaded, in hexadecimal.
    pub(crate) digest: Arc<str>,
    /// Begin of its service.
    pub(crate) since: SystemTime,
}

/// Phase in the life of a service, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumIter)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Phase {
    Starting,
    /// The start failed, and is tried again.
    Failed,
    Serving,
    /// Served, but out of etcd until it is healthy.
    Withdrawn,
    Draining,
    /// Out of service until it is resumed, or the process starts again.
    Drained,
}

/// Outcome of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drained {
    /// etcd confirmed that the keys are gone; otherwise they go with their lease.
    pub(crate) keys_gone: bool,
    /// Every request in flight was answered.
    pub(crate) all_answered: bool,
}

/// Readiness of a service: clients find it and are answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Ready as far as is known; etcd has not confirmed the lease lately.
    Unknown(String),
    NotReady(String),
}

impl Services {
    /// No services yet. The other end of `commands` receives those to the host as a whole.
    pub(crate) fn new(ending: CancellationToken, commands: mpsc::Sender<HostCommand>) -> Self {
        Self {
            services: ArcSwapOption::empty(),
            commands,
            succeeded: CancellationToken::new(),
            is_upgrading: AtomicBool::new(false),
            ending,
            etcd: watch::Sender::default(),
        }
    }

    /// Replaces the list of services.
    pub(crate) fn set(&self, services: ServiceList) {
        self.services.store(Some(Arc::new(services)));
    }

    /// Empty until there is an engine to run them.
    pub(crate) fn all(&self) -> Arc<ServiceList> {
        self.services.load_full().unwrap_or_default()
    }

    /// Reads the configuration again, and waits until every service is as it says. With `dry_run`, only makes the plan.
    pub(crate) async fn reconfigure(&self, dry_run: bool) -> Result<Reconfigured, Failure> {
        self.command(|reply| HostCommand::Reconfigure { dry_run, reply }).await
    }

    /// Hands the host over to a new process. Returns the number of that process, which serves.
    pub(crate) async fn upgrade(&self) -> Result<u32, Failure> {
        self.command(HostCommand::Upgrade).await
    }

    async fn command<T>(&self, command: impl FnOnce(Reply<Result<T, Failure>>) -> HostCommand) -> Result<T, Failure> {
        let (reply, outcome) = oneshot::channel();
        match self.commands.try_send(command(reply)).map_err(NotAccepted::from) {
            Ok(()) => outcome.await.unwrap_or_else(|_| Err(Failure::other("the host is ending"))),
            Err(NotAccepted::Busy) => Err(Failure::other("a reload or an upgrade of the host is in progress")),
            Err(NotAccepted::Ending) => Err(Failure::other("the host is ending")),
        }
    }

    pub(crate) fn are_known(&self) -> bool {
        self.services.load().is_some()
    }
}

impl ServiceStatus {
    /// Status before the first attempt to start.
    pub(crate) fn new(spec: Arc<Spec>) -> Self {
        Self {
            phase: Phase::Starting,
            why: None,
            since: SystemTime::now(),
            listen: spec.listen.to_string().into(),
            spec,
            url: "".into(),
            listener: None,
            context: None,
            revision: None,
        }
    }

    /// Enters a phase, or gives another reason for the current one.
    pub(crate) fn enter(&mut self, phase: Phase, why: Option<&str>) {
        if self.phase != phase {
            self.since = SystemTime::now();
        }
        (self.phase, self.why) = (phase, why.map(Arc::from));
    }

    /// Shows a drained service as the former host did.
    pub(crate) fn resemble(&mut self, former: ShownState) {
        let ShownState { listen, url, since, component } = former;
        (self.listen, self.url, self.since) = (listen.into(), url.into(), since);
        self.revision = component.map(|(digest, since)| RevisionInfo { digest: digest.into(), since });
    }
}

/// Publishes the registrations of a service with the weight that an operator has set, or as configured.
pub(crate) async fn apply_weight(
    weight: &watch::Receiver<Option<Weight>>,
    registry: &RegistryCtx,
) -> Result<(), Error> {
    loop {
        let current = *weight.borrow();
        registry.override_weight(current).await?;
        // Of several operators at once the last one wins.
        if *weight.borrow() == current {
            return Ok(());
        }
    }
}

impl ServiceHandle {
    /// Sets the weight of the service's registrations, now and later; `None` for the weight as configured.
    pub(crate) async fn set_weight(&self, weight: Option<Weight>) -> Result<(), Error> {
        // In this order: a service that starts reads the weight after it has published its context.
        self.weight.send_replace(weight);
        let context = self.status.borrow().context.clone();
        match context {
            Some(context) => apply_weight(&self.weight.subscribe(), &context.registry).await,
            None => Ok(()),
        }
    }

    /// State of the service at this moment.
    pub(crate) fn snapshot(self: &Arc<Self>) -> Snapshot {
        Snapshot { handle: Arc::clone(self), status: self.status.borrow().clone() }
    }

    /// Commands the service to go on with another revision.
    pub(crate) fn reload(
        &self,
        next: Option<Box<NextRevision>>,
    ) -> Result<oneshot::Receiver<Result<(), Failure>>, NotAccepted> {
        let (reply, outcome) = oneshot::channel();
        self.reloads.try_send(ReloadCommand { next, reply })?;
        Ok(outcome)
    }

    /// The present configuration of the service.
    pub(crate) fn spec(&self) -> Arc<Spec> {
        Arc::clone(&self.status.borrow().spec)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.status.borrow().phase
    }
}

/// One service at one moment.
pub(crate) struct Snapshot {
    pub(crate) handle: Arc<ServiceHandle>,
    pub(crate) status: ServiceStatus,
}

impl Snapshot {
    /// Returns true if the service was drained by command, on purpose.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self.status.phase, Phase::Draining | Phase::Drained)
    }

    /// Number of instances, and its limit.
    pub(crate) fn instances(&self) -> (usize, u32) {
        self.status.context.as_ref().map_or((0, 0), |context| (context.instances(), context.max_instances()))
    }

    pub(crate) fn registrations(&self) -> Vec<Arc<Registration>> {
        self.status.context.as_ref().map_or_else(Vec::new, |context| context.registry.registrations())
    }

    pub(crate) fn views(&self) -> Vec<View> {
        self.status.context.as_ref().map_or_else(Vec::new, |context| context.registry.views())
    }

    /// Number of watches that the component has open, and its limit.
    pub(crate) fn watches(&self) -> (usize, usize) {
        let registry = self.status.context.as_ref().map(|context| &context.registry);
        registry.map_or((0, 0), |registry| (registry.open_watches(), registry.policy().max_watches))
    }

    pub(crate) fn readiness(&self) -> Readiness {
        let ServiceStatus { phase, why, .. } = &self.status;
        if *phase != Phase::Serving {
            let why = why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            return Readiness::NotReady(match phase {
                Phase::Failed => format!("it does not start{why}"),
                phase => format!("it is {phase}{why}"),
            });
        }
        if self.status.spec.register == Register::Off {
            return Readiness::Ready;
        }
        let registrations = self.registrations();
        if registrations.is_empty() {
            return Readiness::NotReady("nothing is registered".to_owned());
        }
        registrations.iter().fold(Readiness::Ready, |so_far, registration| match (so_far, of(registration)) {
            (Readiness::NotReady(message), _) | (_, Readiness::NotReady(message)) => Readiness::NotReady(message),
            (Readiness::Unknown(message), _) | (_, Readiness::Unknown(message)) => Readiness::Unknown(message),
            (Readiness::Ready, Readiness::Ready) => Readiness::Ready,
        })
    }

    /// Returns true if the service is in phase serving, whatever the state of its keys.
    pub(crate) fn is_served(&self) -> bool {
        self.status.phase == Phase::Serving
    }
}

fn of(registration: &Registration) -> Readiness {
    let (status, key, fault) = (registration.status(), registration.key(), registration.fault());
    let why = fault.as_ref().map_or_else(String::new, |fault| format!(": {fault}"));
    // A key stays as long as its lease, even if one renewal fails.
    let is_refused = fault.is_some_and(|fault| fault.refusal().is_some() && fault.verb != Some(Verb::Renew));
    match status.state {
        State::Registered => Readiness::Ready,
        State::Suspect if status.ttl_remaining.is_zero() => {
            Readiness::NotReady(format!("the lease of {key} has run out as far as is known{why}"))
        }
        State::Suspect if is_refused => Readiness::NotReady(format!("{key} cannot be written{why}")),
        State::Suspect => Readiness::Unknown(format!("etcd has not confirmed the lease of {key}{why}")),
        state => Readiness::NotReady(format!("{key} is {state}{why}")),
    }
}
