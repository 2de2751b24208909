//! One service from the first attempt to start it to its end: loaded, started, tried again after a failure, served,
//! drained, perhaps resumed. Services know nothing of each other.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use leasehold::{Registrar, Weight};
use leasehold_artifacts::Former;
use tokio::{
    sync::{Barrier, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Register, Spec},
    error::Failure,
    outbound::reserved::Reserved,
    process::handover::{Inheritance, ServiceState},
    rt::backoff::Backoff,
    service::{
        Commands, Service, StatusCell,
        component_watcher::ComponentWatcher,
        handle::{
            Drained, MAX_PENDING_COMMANDS, NextRevision, Phase, ReloadCommand, Reply, ServiceHandle, ServiceStatus,
        },
        http,
    },
    telemetry::{otlp::Traces, service_metrics::Stats},
    wasm::{artifact, engine::Engine, initial_memory, loader::PendingComponent},
};

/// Pauses before a start is tried again.
const START_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// Everything that all services are started with.
#[derive(Clone)]
pub(crate) struct StartContext {
    pub(crate) registrar: Registrar,
    pub(crate) traces: Option<Traces>,
    /// Addresses that no component reaches.
    pub(crate) reserved: Reserved,
    /// True once etcd has answered.
    pub(crate) etcd: watch::Receiver<bool>,
    /// Barrier in front of the first component that runs, where one failure ends all services.
    pub(crate) barrier: Option<Arc<Barrier>>,
    /// Listeners and states that a former host has handed over.
    pub(crate) inheritance: Option<Arc<Inheritance>>,
    /// Set where failed starts are logged here: the host has several services, and goes on without the failed one.
    pub(crate) logs_failed_starts: bool,
}

/// Report of a service to the host.
pub(crate) enum Report {
    /// It is started.
    Started,
    /// An attempt to start it has failed.
    Failed(Failure),
    /// It was drained before it was started.
    Drained,
}

/// A service and the attempts to start it.
pub(crate) struct Supervisor {
    attempts: Attempts,
    commands: Commands,
    /// Reports, with the index of the service.
    reports: Reports,
}

/// The attempts to start one service.
struct Attempts {
    spec: Spec,
    engine: Engine,
    context: Arc<StartContext>,
    cell: StatusCell,
    /// The component as the start of the host loads it.
    pending_component: Option<PendingComponent>,
    /// Result of the current attempt so far.
    service: Option<Service>,
    backoff: Backoff,
    /// The barrier counts this service.
    arrived: bool,
}

impl Supervisor {
    /// Prepares a service. Returns it with the handle through which others see and command it.
    pub(crate) fn new(
        spec: Spec,
        engine: Engine,
        pending_component: Option<PendingComponent>,
        context: Arc<StartContext>,
        reports: Reports,
        ending: CancellationToken,
    ) -> (Self, ServiceHandle) {
        let (drain, drains) = mpsc::channel(MAX_PENDING_COMMANDS);
        let (resume, resumes) = mpsc::channel(MAX_PENDING_COMMANDS);
        let (reload, reloads) = mpsc::channel(MAX_PENDING_COMMANDS);
        let former = context.inheritance.as_ref().and_then(|former| former.service(spec.name.as_str(), spec.listen));
        let weight = former.and_then(|former| former.weight).and_then(|weight| Weight::try_from(weight).ok());
        let weight = watch::Sender::new(weight);
        let cell = StatusCell {
            status: watch::Sender::new(ServiceStatus::new(Arc::new(spec.clone()))),
            weight: weight.subscribe(),
            stats: Arc::new(Stats::new(spec.name.clone())),
        };
        let handle = ServiceHandle {
            name: spec.name.clone(),
            stats: Arc::clone(&cell.stats),
            status: cell.status.subscribe(),
            drains: drain,
            resumes: resume,
            reloads: reload,
            weight,
            ending,
        };
        let attempts = Attempts {
            spec,
            engine,
            context,
            cell,
            pending_component,
            service: None,
            backoff: START_BACKOFF,
            arrived: false,
        };
        (Self { attempts, commands: Commands { drains, resumes, reloads }, reports }, handle)
    }

    /// Starts the service and serves it until it is to end for good; then drains it.
    pub(crate) async fn run(mut self, ending: CancellationToken) {
        tokio::select! {
            biased;
            () = ending.cancelled() => {}
            never = self.live() => match never {},
        }
        self.attempts.drain().await;
    }

    async fn live(&mut self) -> Infallible {
        // Reply to the command that caused the current attempt.
        let mut cause = None;
        if let Some(former) = self.attempts.drained_before() {
            // It is resumed with the content of its file then.
            self.attempts.pending_component = None;
            self.attempts.enter(Phase::Drained, None);
            if let Some(shown) = former.shown {
                self.attempts.cell.status.send_modify(|status| status.resemble(shown));
            }
            self.reports.send(Report::Drained).await;
            cause = Some(self.attempts.stay_drained(&mut self.commands).await);
            tracing::info!(event = "resumed", service = %self.attempts.spec.name, "the service is resumed on request");
            self.attempts.forget();
        }
        loop {
            let reply = self.until_drain(cause).await;
            tracing::info!(event = "draining", service = %self.attempts.spec.name, "the service is drained on request");
            let _ = reply.send(self.attempts.drain().await); // Its client may have gone away.
            self.reports.send(Report::Drained).await;
            cause = Some(self.attempts.stay_drained(&mut self.commands).await);
            tracing::info!(event = "resumed", service = %self.attempts.spec.name, "the service is resumed on request");
            self.attempts.forget();
        }
    }

    /// Starts the service and serves it until a drain command.
    async fn until_drain(&mut self, mut cause: Option<Reply<Result<(), Failure>>>) -> Reply<Drained> {
        let Self { attempts, commands, reports } = self;
        loop {
            let outcome = tokio::select! {
                Some(reply) = commands.drains.recv() => {
                    if let Some(cause) = cause {
                        drop(cause.send(Err(attempts.is_drained()))); // Its client may have gone away.
                    }
                    return reply;
                }
                // What is to be started has changed. Etcd may be awaited, so that the outcome is not.
                Some(ReloadCommand { next, reply }) = commands.reloads.recv() => {
                    attempts.undo().await;
                    attempts.prepare(next);
                    let _ = reply.send(Ok(())); // Its client may have gone away.
                    continue;
                }
                outcome = attempts.attempt() => outcome,
            };
            if let Some(reply) = cause.take() {
                let _ = reply.send(outcome.clone()); // Its client may have gone away.
            }
            let Err(failure) = outcome else {
                reports.send(Report::Started).await;
                match &mut attempts.service {
                    Some(service) => return service.live(commands).await,
                    None => return pending().await,
                }
            };
            let pause = attempts.failed(&failure);
            reports.send(Report::Failed(failure)).await;
            // A key that it has written is a former host's, until this process is the host.
            http::is_host(attempts.context.inheritance.as_deref()).cancelled().await;
            attempts.undo().await;
            match attempts.next(commands, pause).await {
                Next::Drain(reply) => return reply,
                Next::Attempt(reply) => cause = reply,
            }
        }
    }
}

/// Next step after a failed attempt.
enum Next {
    Attempt(Option<Reply<Result<(), Failure>>>),
    Drain(Reply<Drained>),
}

impl Attempts {
    async fn attempt(&mut self) -> Result<(), Failure> {
        self.enter(Phase::Starting, Some("its component is being loaded"));
        let StartContext { registrar, traces, reserved, inheritance, etcd, barrier, .. } = &*self.context;
        let (spec, engine) = (&self.spec, &self.engine);
        // Before the file is read, so that no later change of it goes unnoticed.
        let file = if spec.follow { Some(ComponentWatcher::new(spec).await) } else { None };
        let loaded = match self.pending_component.take() {
            Some(pending_component) => {
                initial_memory::check_aside(engine, spec, spec.component.clone()).await?;
                pending_component.await.map_err(|failure| Failure::clone(&failure))?
            }
            None => artifact::load(engine, spec, Former::StandsIn).await?,
        };
        loaded.check(spec)?;
        let (traces, cell) = (traces.as_ref(), self.cell.clone());
        let mut service =
            Service::bind(spec.clone(), loaded, engine, registrar, traces, (*reserved, inheritance.as_deref()), cell)?;
        service.file = file;
        let service = self.service.insert(service);
        enter(&self.cell, Phase::Starting, None);
        if let Some(barrier) = barrier
            && !std::mem::replace(&mut self.arrived, true)
        {
            barrier.wait().await;
        }
        if spec.register != Register::Off && etcd.clone().wait_for(|is_there| *is_there).await.is_err() {
            // The host is ending.
            pending::<()>().await;
        }
        Box::pin(service.start()).await?;
        self.backoff.reset();
        Ok(())
    }

    /// State of a service that was drained when a former host handed it over.
    fn drained_before(&self) -> Option<ServiceState> {
        let Spec { name, listen, .. } = &self.spec;
        let former = self.context.inheritance.as_ref().and_then(|former| former.service(name.as_str(), *listen));
        former.filter(|former| former.is_drained).cloned()
    }

    /// Publishes and logs a failure. Returns the pause before the next attempt.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let pause = self.backoff.next_pause();
        self.cell.stats.start_failures.inc();
        let (name, sentence) = (&self.spec.name, failure.sentence());
        let why = sentence.strip_prefix(&format!("{name}: ")).unwrap_or(&sentence);
        if self.context.logs_failed_starts {
            tracing::error!(event = "not_started", service = %name, "not started: {why}; next attempt in {pause:.1?}");
        }
        self.enter(Phase::Failed, Some(&format!("{why}; attempts so far: {}", self.backoff.failures())));
        pause
    }

    /// Ends the remains of a failed attempt, registrations included.
    async fn undo(&mut self) {
        if let Some(service) = &mut self.service {
            service.end().await;
        }
        self.forget();
    }

    /// Takes over the configuration of a prepared revision, if there is one, for the next attempt.
    fn prepare(&mut self, next: Option<Box<NextRevision>>) {
        // The attempt may be much later, and goes by the component file.
        self.pending_component = None;
        let Some(NextRevision { spec, engine, .. }) = next.map(|next| *next) else { return };
        let (status, listen) = (Arc::new(spec.clone()), spec.listen.to_string().into());
        (self.spec, self.engine) = (spec, engine);
        self.cell.status.send_modify(|cell| (cell.spec, cell.listen) = (status, listen));
    }

    /// Drops a service that has ended. The next attempt begins anew.
    fn forget(&mut self) {
        self.service = None;
        let listen = self.spec.listen.to_string().into();
        self.cell.status.send_modify(|status| {
            (status.listen, status.url) = (listen, "".into());
            (status.context, status.revision) = (None, None);
        });
    }

    /// Waits until the service is to be started again, or drained.
    async fn next(&mut self, commands: &mut Commands, pause: Duration) -> Next {
        let changed = async {
            match self.spec.follow {
                true => ComponentWatcher::new(&self.spec).await.changed(None).await,
                false => pending().await,
            }
        };
        let command = tokio::select! {
            Some(reply) = commands.drains.recv() => return Next::Drain(reply),
            Some(reply) = commands.resumes.recv() => Some(reply),
            Some(ReloadCommand { next, reply }) = commands.reloads.recv() => {
                self.prepare(next);
                Some(reply)
            }
            () = changed => None,
            () = sleep(pause) => return Next::Attempt(None),
        };
        // The operator has changed something: the backoff begins anew.
        self.backoff.reset();
        Next::Attempt(command)
    }

    async fn drain(&mut self) -> Drained {
        let drained = match &mut self.service {
            Some(service) => {
                let drained = service.drain().await;
                // A reload may have changed its configuration.
                (self.spec, self.engine) = service.configuration();
                self.service = None;
                drained
            }
            None => ALREADY_DRAINED,
        };
        self.enter(Phase::Drained, None);
        drained
    }

    /// Answers for a drained service, until a resume command.
    async fn stay_drained(&mut self, commands: &mut Commands) -> Reply<Result<(), Failure>> {
        self.backoff.reset();
        if let Some(barrier) = &self.context.barrier
            && !std::mem::replace(&mut self.arrived, true)
        {
            // A cancelled wait counts as arrived: the other services must not wait for this one.
            drop(tokio::time::timeout(Duration::ZERO, barrier.wait()).await);
        }
        loop {
            tokio::select! {
                Some(reply) = commands.resumes.recv() => return reply,
                Some(reply) = commands.drains.recv() => drop(reply.send(ALREADY_DRAINED)),
                Some(ReloadCommand { next, reply }) = commands.reloads.recv() => {
                    let outcome = if next.is_some() { Ok(()) } else { Err(self.is_drained()) };
                    self.prepare(next);
                    drop(reply.send(outcome));
                }
                else => return pending().await,
            }
        }
    }

    fn is_drained(&self) -> Failure {
        Failure::other(format!("{}: it is drained", self.spec.name))
    }

    fn enter(&self, phase: Phase, why: Option<&str>) {
        enter(&self.cell, phase, why);
    }
}

const ALREADY_DRAINED: Drained = Drained { keys_gone: true, all_answered: true };

fn enter(cell: &StatusCell, phase: Phase, why: Option<&str>) {
    cell.status.send_modify(|status| status.enter(phase, why));
}

/// Channel of one service for its reports. The host is interested in the first start alone: what follows a resume command is
/// no reason to end.
pub(crate) struct Reports {
    /// Number of the service.
    index: usize,
    /// None once the service was started or drained.
    to: Option<mpsc::Sender<(usize, Report)>>,
}

impl Reports {
    /// The channel of the service with that index among all.
    pub(crate) fn new(index: usize, to: mpsc::Sender<(usize, Report)>) -> Self {
        Self { index, to: Some(to) }
    }

    async fn send(&mut self, report: Report) {
        let is_last = matches!(report, Report::Started | Report::Drained);
        if let Some(to) = &self.to {
            let _ = to.send((self.index, report)).await; // The host may be ending.
        }
        if is_last {
            self.to = None;
        }
    }
}
