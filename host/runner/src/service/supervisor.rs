//! One service from the first attempt to start it to its end: loaded, started, tried again after a failure, served,
//! drained. Services know nothing of each other.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use leasehold::Registrar;
use tokio::{
    sync::{Barrier, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Register, Spec},
    error::Failure,
    outbound::reserved::Reserved,
    service::{
        Commands, Service, StatusCell,
        file_watcher::FileWatcher,
        handle::{Drained, MAX_PENDING_COMMANDS, Phase, Reply, ServiceHandle, ServiceStatus},
    },
    telemetry::{otlp::Traces, service_metrics::Stats},
    wasm::{component::Loaded, engine::Engine, initial_memory, loader::PendingComponent},
};

/// Backoff before a start is tried again; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Everything that all services are started with.
pub(crate) struct StartContext {
    pub(crate) engine: Engine,
    pub(crate) registrar: Registrar,
    pub(crate) traces: Option<Traces>,
    /// Addresses that no component reaches.
    pub(crate) reserved: Reserved,
    /// True once etcd has answered.
    pub(crate) etcd: watch::Receiver<bool>,
    /// Barrier in front of the first component that runs, where one failure ends all services.
    pub(crate) barrier: Option<Barrier>,
    /// The host has more than one service.
    pub(crate) several: bool,
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
    context: Arc<StartContext>,
    cell: StatusCell,
    /// The component as the start of the host loads it.
    pending_component: Option<PendingComponent>,
    /// Result of the current attempt so far.
    service: Option<Service>,
    /// Failures in a row.
    failures: u32,
    /// The barrier counts this service.
    arrived: bool,
}

impl Supervisor {
    /// Prepares a service. Returns it with the handle through which others see and command it.
    pub(crate) fn new(
        spec: Spec,
        pending_component: Option<PendingComponent>,
        context: Arc<StartContext>,
        reports: Reports,
    ) -> (Self, ServiceHandle) {
        let (drain, drains) = mpsc::channel(MAX_PENDING_COMMANDS);
        let (reload, reloads) = mpsc::channel(MAX_PENDING_COMMANDS);
        let status = ServiceStatus {
            phase: Phase::Starting,
            why: None,
            listen: spec.listen.to_string().into(),
            url: "".into(),
            context: None,
        };
        let cell = StatusCell { status: watch::Sender::new(status), stats: Arc::new(Stats::new(spec.name.clone())) };
        let handle = ServiceHandle {
            name: spec.name.clone(),
            version: spec.version.clone(),
            component: spec.component.display().to_string(),
            register: spec.register,
            stats: Arc::clone(&cell.stats),
            status: cell.status.subscribe(),
            drains: drain,
            reloads: reload,
        };
        let attempts = Attempts { spec, context, cell, pending_component, service: None, failures: 0, arrived: false };
        (Self { attempts, commands: Commands { drains, reloads }, reports }, handle)
    }

    /// Starts the service and serves it until the host ends; then drains it.
    pub(crate) async fn run(mut self, ending: CancellationToken) {
        tokio::select! {
            biased;
            () = ending.cancelled() => {}
            never = self.live() => match never {},
        }
        self.attempts.drain().await;
    }

    async fn live(&mut self) -> Infallible {
        let Self { attempts, commands, reports } = self;
        // Reply to the reload command that caused the current attempt.
        let mut reload: Option<Reply<Result<(), Failure>>> = None;
        let reply = loop {
            let outcome = tokio::select! {
                Some(reply) = commands.drains.recv() => break reply,
                outcome = attempts.attempt() => outcome,
            };
            if let Some(reply) = reload.take() {
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
            attempts.undo().await;
            match attempts.next(commands, pause).await {
                Next::Drain(reply) => break reply,
                Next::Attempt(reply) => reload = reply,
            }
        };
        let _ = reply.send(attempts.drain().await); // As above.
        reports.send(Report::Drained).await;
        attempts.stay_drained(commands).await
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
        let StartContext { engine, registrar, traces, reserved, etcd, barrier, .. } = &*self.context;
        let spec = &self.spec;
        initial_memory::check_aside(engine, spec).await?;
        let loaded = match self.pending_component.take() {
            Some(pending_component) => pending_component.await.map_err(|failure| Failure::clone(&failure))?,
            None => Loaded::load_aside(engine.clone(), spec.component.clone(), spec.precompiled).await?,
        };
        loaded.check(spec)?;
        let (traces, cell) = (traces.as_ref(), self.cell.clone());
        let service = Service::bind(spec.clone(), loaded, engine, registrar, traces, *reserved, cell)?;
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
        self.failures = 0;
        Ok(())
    }

    /// Publishes and logs a failure. Returns the pause before the next attempt.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let ceiling = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        // Half of it is jitter: services that failed at the same time are tried again at different times.
        let pause = ceiling.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.failures += 1;
        self.cell.stats.start_failures.inc();
        let (name, sentence) = (&self.spec.name, failure.sentence());
        let why = sentence.strip_prefix(&format!("{name}: ")).unwrap_or(&sentence);
        if self.context.several {
            tracing::error!(event = "not_started", service = %name, "not started: {why}; next attempt in {pause:.1?}");
        }
        self.enter(Phase::Failed, Some(&format!("{why}; attempts so far: {}", self.failures)));
        pause
    }

    /// Ends the remains of a failed attempt, registrations included.
    async fn undo(&mut self) {
        if let Some(service) = &mut self.service {
            service.end().await;
        }
        self.service = None;
        let listen = self.spec.listen.to_string().into();
        self.cell.status.send_modify(|status| {
            (status.listen, status.url, status.context) = (listen, "".into(), None);
        });
    }

    /// Waits until the service is to be started again, or drained.
    async fn next(&mut self, commands: &mut Commands, pause: Duration) -> Next {
        let changed = async {
            match self.spec.follow {
                true => FileWatcher::new(&self.spec.component).await.changed().await,
                false => pending().await,
            }
        };
        let reload = tokio::select! {
            Some(reply) = commands.drains.recv() => return Next::Drain(reply),
            Some(reply) = commands.reloads.recv() => Some(reply),
            () = changed => None,
            () = sleep(pause) => return Next::Attempt(None),
        };
        // The operator has changed something: the backoff begins anew.
        self.failures = 0;
        Next::Attempt(reload)
    }

    async fn drain(&mut self) -> Drained {
        let drained = match &mut self.service {
            Some(service) => service.drain().await,
            None => ALREADY_DRAINED,
        };
        self.enter(Phase::Drained, None);
        drained
    }

    /// Answers for a service that was drained before it was started.
    async fn stay_drained(&mut self, commands: &mut Commands) -> Infallible {
        if let Some(barrier) = &self.context.barrier
            && !self.arrived
        {
            // The other services must not wait for it.
            drop(tokio::time::timeout(Duration::ZERO, barrier.wait()).await);
        }
        loop {
            tokio::select! {
                Some(reply) = commands.drains.recv() => drop(reply.send(ALREADY_DRAINED)),
                Some(reply) = commands.reloads.recv() => {
                    drop(reply.send(Err(Failure::other(format!("{}: it is drained", self.spec.name)))));
                }
                else => return pending().await,
            }
        }
    }

    fn enter(&self, phase: Phase, why: Option<&str>) {
        enter(&self.cell, phase, why);
    }
}

const ALREADY_DRAINED: Drained = Drained { keys_gone: true, all_answered: true };

fn enter(cell: &StatusCell, phase: Phase, why: Option<&str>) {
    cell.status.send_modify(|status| (status.phase, status.why) = (phase, why.map(Arc::from)));
}

/// Channel of one service for its reports.
pub(crate) struct Reports {
    /// Index of the service among all.
    pub(crate) index: usize,
    pub(crate) to: mpsc::Sender<(usize, Report)>,
}

impl Reports {
    async fn send(&self, report: Report) {
        let _ = self.to.send((self.index, report)).await; // The host may be ending.
    }
}
