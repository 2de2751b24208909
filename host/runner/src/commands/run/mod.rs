//! `leasehold run`: from the configuration to the last revoked lease.

pub(crate) mod private_etcd;
pub(crate) mod progress;
mod reconfigure;
mod status;
mod upgrade;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::pending,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::{join, try_join3};
use leasehold::{LeaseId, Registrar};
use tokio::sync::{Barrier, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{
        handlers::AdminState,
        metrics::Events,
        server::{Admin, AdminStart},
        status::HostInfo,
    },
    cli::RunArgs,
    config::{self, Config, Register, Spec},
    connect,
    error::Failure,
    outbound::reserved::Reserved,
    process::{
        activation,
        handover::{Inheritance, Place},
        rlimit,
        signals::{self, Signals},
        systemd,
    },
    service::{
        handle::{HostCommand, Phase, Reconfigured, ServiceChange, ServiceHandle, ServiceList, Services},
        supervisor::{Report, Reports, StartContext, Supervisor},
    },
    telemetry::{log_level::Levels, otlp::Traces},
    wasm::{
        engine::{Engine, Engines},
        loader::Loading,
        scheduler::Scheduler,
    },
};
use private_etcd::PrivateEtcd;
use reconfigure::Reconfigurer;
use upgrade::{AdminListeners, Upgrader};

/// Unread reports of services, at most.
const MAX_REPORTS: usize = 64;
/// Services that one log line names.
const MAX_NAMED: usize = 5;
/// Longest wait for the revocation of leases at the end; the others end with their time to live.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything from the configuration to the last revoked lease. Each message of `reloads` has the configuration and the component
/// files read again, like SIGHUP.
pub(crate) async fn run(
    args: RunArgs,
    reloads: Option<mpsc::Receiver<()>>,
    scheduler: Arc<Scheduler>,
    levels: Levels,
) -> Result<(), Failure> {
    rlimit::raise();
    // Before anything else can replace it.
    let binary = std::env::current_exe();
    let (inheritance, unfit) = receive_sockets()?;
    let (file, path) =
        (args.configuration_file(), std::path::absolute(&args.file).unwrap_or_else(|_| args.file.clone()));
    let reads_standard_input = config::is_standard_input(&args.file);
    let mut config = configure(&args, &path, unfit)?;
    if let Some(inheritance) = &inheritance {
        config.registrar.former_leases = inheritance.leases.iter().copied().filter_map(LeaseId::new).collect();
    }
    let tasks = TaskTracker::new();
    let signals = signals::listen(&tasks)?;
    let ending = signals.ending.clone();
    // Slow steps run concurrently: a start takes as long as the slowest one.
    let loading = Loading::begin(&config.services, scheduler, &tasks);

    let mut etcd = if config.dev { Some(start_private_etcd(file.clone(), &mut config)?) } else { None };
    let registrar = connect::start(&config.registrar)?;
    let done = CancellationToken::new();
    if config.dev {
        tasks.spawn(progress::log_events(registrar.events(), done.clone()));
    }
    let (reconfigure, commands) = mpsc::channel(1);
    let services = Arc::new(Services::new(ending.clone(), reconfigure));
    let background = Background {
        registrar: registrar.clone(),
        services: Arc::clone(&services),
        tasks: tasks.clone(),
        levels,
        done: done.clone(),
    };
    let start = background.admin(&config, &path);
    // A successor has the admin endpoint once it is the host.
    let (mut admin, start) = match inheritance {
        None => (Some(start.start(None)?), None),
        Some(_) => (None, Some(start)),
    };
    let listeners = AdminListeners::default();
    keep_listeners(&mut admin, &listeners);
    note_chosen_ports(&mut config, admin.as_ref(), inheritance.as_deref());
    let traces = config.traces.take().map(Traces::start).transpose().map_err(Failure::Usage)?;
    background.spawn(signals, reloads);

    let running = TaskTracker::new();
    let host = Host {
        args,
        loading,
        registrar: registrar.clone(),
        traces: traces.clone(),
        tasks: tasks.clone(),
        services: Arc::clone(&services),
        running: running.clone(),
        commands,
        upgrader: Upgrader {
            binary,
            ownership: config.registrar.ownership,
            is_trial: config.dev,
            configuration: file,
            reads_standard_input,
            registrar: registrar.clone(),
            listeners: Arc::clone(&listeners),
            tasks: tasks.clone(),
            ending: ending.clone(),
        },
        inheritance: inheritance.clone(),
        tried: CancellationToken::new(),
    };
    let tried = host.tried.clone();
    let mut is_host = inheritance.is_none();
    let succeeded = async {
        if let (Some(inheritance), Some(start)) = (&inheritance, start) {
            upgrade::succeed(inheritance, &tried, &services, &tasks).await;
            is_host = true;
            admin = upgrade::start_admin(start, inheritance);
            keep_listeners(&mut admin, &listeners);
        }
        pending::<Infallible>().await
    };
    let outcome = tokio::select! {
        biased;
        failure = ended(etcd.as_mut()) => Err(failure),
        () = ending.cancelled() => Ok(()),
        failure = live(&config, host) => Err(failure),
        never = succeeded => match never {},
    };

    if !is_host {
        upgrade::give_up(&outcome);
    }
    // The reason of the end does not matter from here on.
    services.ending.cancel();
    if !services.succeeded.is_cancelled() {
        systemd::stopping(&tasks);
    }
    running.close();
    running.wait().await;
    if config.dev && outcome.is_ok() {
        progress::show_gone(&registrar, &services.all()).await;
    }
    revoke(&registrar, traces).await;
    done.cancel();
    if let Some(admin) = admin {
        admin.close().await;
    }
    if let Some(etcd) = etcd {
        etcd.stop().await;
    }
    outcome
}

/// Receives the sockets of a former host, or those of systemd. Returns remarks about sockets that cannot be used, too.
fn receive_sockets() -> Result<(Option<Arc<Inheritance>>, Vec<String>), Failure> {
    let inheritance = Inheritance::receive().map_err(Failure::other)?.map(Arc::new);
    let unfit = match &inheritance {
        Some(inheritance) => {
            activation::inherit(inheritance.take_activated());
            Vec::new()
        }
        None => activation::receive(),
    };
    Ok((inheritance, unfit))
}

/// Reads the configuration, and logs the start with all remarks.
fn configure(args: &RunArgs, path: &Path, unfit: Vec<String>) -> Result<Config, Failure> {
    let config = args.config()?;
    log_start(path, &config);
    let listens = config.services.iter().map(|spec| spec.listen);
    let listens: Vec<_> = listens.chain(config.admin.addr()).chain(config.metrics).collect();
    let remarks = config.notes.iter().cloned().chain(unfit).chain(activation::unused(&listens));
    remarks.for_each(|remark| tracing::warn!("{remark}"));
    Ok(config)
}

/// Starts the etcd of `run --dev`, and lets the configuration use it.
fn start_private_etcd(file: Option<PathBuf>, config: &mut Config) -> Result<PrivateEtcd, Failure> {
    let etcd = PrivateEtcd::start(file)?;
    etcd.introduce();
    config.registrar.endpoints = vec![etcd.endpoint().to_owned()];
    Ok(etcd)
}

/// Notes the addresses at which the admin endpoint listens: the system may have chosen the ports.
fn note_chosen_ports(config: &mut Config, admin: Option<&Admin>, inheritance: Option<&Inheritance>) {
    let inherited = |place: &Place| inheritance.and_then(|inheritance| inheritance.addr(place));
    let (addr, metrics) = match admin {
        Some(admin) => (admin.addr, admin.metrics_addr),
        None => (
            config.admin.addr().and_then(|addr| inherited(&Place::Admin(addr))),
            config.metrics.and_then(|addr| inherited(&Place::Metrics(addr))).or(config.metrics),
        ),
    };
    if let (config::Admin::Tcp(address), Some(bound)) = (&mut config.admin, addr) {
        address.listen = bound;
    }
    config.metrics = metrics;
}

/// Revokes the leases, and sends the last spans meanwhile.
async fn revoke(registrar: &Registrar, traces: Option<Traces>) {
    let flushed = async {
        if let Some(traces) = traces {
            traces.flush().await;
        }
    };
    let (revoked, ()) = join(registrar.shutdown(REVOKE_TIMEOUT), flushed).await;
    if let Err(error) = revoked {
        tracing::warn!("leases were not revoked and end with their time to live: {error}");
    }
}

/// Parts of the host that the tasks beside its services need.
struct Background {
    registrar: Registrar,
    services: Arc<Services>,
    tasks: TaskTracker,
    levels: Levels,
    /// Cancelled when the host has ended.
    done: CancellationToken,
}

impl Background {
    /// Prepares the admin endpoint, and counts events for it from now on.
    fn admin(&self, config: &Config, path: &Path) -> AdminStart {
        let events = Arc::<Events>::default();
        self.tasks.spawn(Arc::clone(&events).count(self.registrar.events(), self.done.clone()));
        let state = AdminState {
            services: Arc::clone(&self.services),
            events,
            registrar: self.registrar.clone(),
            host: HostInfo::new(path.display().to_string(), config.registrar.endpoints.clone()),
            levels: self.levels.clone(),
        };
        AdminStart { admin: config.admin.clone(), metrics: config.metrics, state }
    }

    /// Spawns the tasks that report to systemd and follow signals.
    fn spawn(self, signals: Signals, reloads: Option<mpsc::Receiver<()>>) {
        let Self { registrar, services, tasks, levels, done } = self;
        let Signals { ending: _, reloads: hangups, upgrades, verbosity } = signals;
        tasks.spawn(systemd::alive(registrar, tasks.clone(), done.clone()));
        tasks.spawn(status::report(Arc::clone(&services), tasks.clone(), done.clone()));
        tasks.spawn(levels.clone().follow(done));
        tasks.spawn(change_level_on_signal(verbosity, levels));
        tasks.spawn(reload_on_request("SIGHUP", hangups, Arc::clone(&services), tasks.clone()));
        if let Some(reloads) = reloads {
            tasks.spawn(reload_on_request("reload", reloads, Arc::clone(&services), tasks.clone()));
        }
        tasks.spawn(upgrade_on_signal(upgrades, services));
    }
}

/// Keeps the listeners of the admin endpoint for a successor.
fn keep_listeners(admin: &mut Option<Admin>, listeners: &AdminListeners) {
    if let Some(admin) = admin {
        let _ = listeners.set(std::mem::take(&mut admin.listeners)); // There is one endpoint.
    }
}

/// Everything that services are started with, and started by.
struct Host {
    args: RunArgs,
    loading: Loading,
    registrar: Registrar,
    traces: Option<Traces>,
    tasks: TaskTracker,
    services: Arc<Services>,
    /// Tasks of the services.
    running: TaskTracker,
    /// Commands to the host as a whole.
    commands: mpsc::Receiver<HostCommand>,
    upgrader: Upgrader,
    inheritance: Option<Arc<Inheritance>>,
    /// Cancelled once every service has been tried.
    tried: CancellationToken,
}

/// Starts the services and serves them until the host ends, as its configuration says, which may be read again. Returns the
/// failure that ends the host.
async fn live(config: &Config, host: Host) -> Failure {
    let Host { args, loading, registrar, traces, tasks, services, running, commands, upgrader, inheritance, tried } =
        host;
    let registers = config.services.iter().any(|spec| spec.register != Register::Off);
    // A component chooses the TTL when it registers itself.
    let registered_here = config.services.iter().filter(|spec| spec.register == Register::Host);
    if let Some(longest) = registered_here.map(|spec| spec.limits.start_timeout).max() {
        registrar.grant_ahead(longest);
    }
    let (answers, etcd) = watch::channel(false);
    let reached = async {
        if registers || config.etcd_required {
            connect::etcd(&registrar, config, &services.etcd).await?;
        }
        answers.send_replace(true);
        Ok(())
    };
    let (reporting, reports) = mpsc::channel(MAX_REPORTS);
    let started = async {
        let (engine, components) = loading.engine().await?;
        let mut engines = Engines::new(engine);
        let specs: Vec<_> = config.services.iter().cloned().map(Arc::new).collect();
        let places = engines.place(&specs)?;
        let logs_failed_starts = config.services.len() > 1;
        let barrier = config.strict.then(|| Arc::new(Barrier::new(config.services.len())));
        let reserved = Reserved::new([config.admin.addr(), config.metrics]);
        let (registrar, traces) = (registrar.clone(), traces.clone());
        let context = StartContext { registrar, traces, reserved, etcd, barrier, inheritance, logs_failed_starts };
        let shared = Arc::new(context.clone());
        let new = |((index, spec), engine): ((usize, &Arc<Spec>), Engine)| {
            let (reports, ending) = (Reports::new(index, reporting.clone()), services.ending.child_token());
            let component = components.of(spec);
            Supervisor::new((**spec).clone(), engine, component, Arc::clone(&shared), reports, ending)
        };
        let (supervisors, handles): (Vec<_>, Vec<_>) = specs.iter().enumerate().zip(places).map(new).unzip();
        let handles: ServiceList = handles.into_iter().map(Arc::new).collect();
        let endings: Vec<_> = handles.iter().map(|handle| handle.ending.clone()).collect();
        services.set(handles);
        for (supervisor, ending) in supervisors.into_iter().zip(endings) {
            running.spawn(supervisor.run(ending));
        }
        let context = StartContext { barrier: None, inheritance: None, logs_failed_starts: true, ..context };
        let context = Arc::new(context);
        let (services, running, host) = (Arc::clone(&services), running.clone(), config.written.clone());
        let own_listens = config.admin.addr().into_iter().chain(config.metrics).collect();
        Ok(Reconfigurer { args, services, context, engines, running, host, own_listens, upgrader }.run(commands).await)
    };
    let watched = watch_starts(config, reports, &registrar, &tasks, &services, &tried);
    let outcome: Result<((), Infallible, Infallible), Failure> = try_join3(reached, started, watched).await;
    match outcome {
        Ok((.., never)) => match never {},
        Err(failure) => failure,
    }
}

/// Logs that the host is ready once every service has been started, or tried once. Returns the failure of a required service,
/// or the first one where no service starts.
async fn watch_starts(
    config: &Config,
    mut reports: mpsc::Receiver<(usize, Report)>,
    registrar: &Registrar,
    tasks: &TaskTracker,
    services: &Services,
    tried: &CancellationToken,
) -> Result<Infallible, Failure> {
    let mut untried: BTreeSet<usize> = (0..config.services.len()).collect();
    let (mut first, mut none_is_up) = (None, true);
    while let Some((index, report)) = reports.recv().await {
        match report {
            Report::Failed(failure) if config.services[index].required => return Err(failure),
            Report::Failed(failure) => drop(first.get_or_insert(failure)),
            Report::Started | Report::Drained => none_is_up = false,
        }
        if !untried.remove(&index) || !untried.is_empty() {
            continue;
        }
        match first.take() {
            Some(failure) if none_is_up => return Err(failure),
            _ => {}
        }
        if config.dev {
            progress::show(registrar, &services.all()).await;
        }
        ready(services);
        systemd::ready(tasks);
        tried.cancel();
    }
    pending().await
}

/// Logs that the host is ready, and the services that are not.
fn ready(services: &Services) {
    let services = services.all();
    let is_down = |handle: &&Arc<ServiceHandle>| handle.phase() != Phase::Serving;
    let down: Vec<_> = services.iter().filter(is_down).map(|handle| handle.name.as_str()).collect();
    match down.len() {
        0 => tracing::info!(event = "ready", services = services.len(), "the host is ready"),
        many => tracing::warn!(
            event = "ready",
            services = services.len() - many,
            "the host is ready, without {}{}",
            down[..many.min(MAX_NAMED)].join(", "),
            if many > MAX_NAMED { ", and more" } else { "" }
        ),
    }
}

/// Logs what starts, and where: the line that a reader of the log looks for first.
fn log_start(path: &Path, config: &Config) {
    let recorded = env!("LEASEHOLD_COMMIT");
    let etcd = if config.dev { "private".to_owned() } else { config.registrar.endpoints.join(",") };
    tracing::info!(
        event = "start",
        version = env!("CARGO_PKG_VERSION"),
        commit = (recorded != "not recorded").then_some(recorded),
        config = %path.display(),
        etcd,
        services = config.services.len(),
        pid = std::process::id(),
        "leasehold starts"
    );
}

/// Changes the level of the log at each SIGUSR1.
async fn change_level_on_signal(mut verbosity: mpsc::Receiver<()>, levels: Levels) {
    while verbosity.recv().await.is_some() {
        levels.toggle();
    }
}

/// Reads the configuration again at each request, whose name stands in the log.
async fn reload_on_request(
    name: &'static str,
    mut reloads: mpsc::Receiver<()>,
    services: Arc<Services>,
    tasks: TaskTracker,
) {
    while reloads.recv().await.is_some() {
        if !services.are_known() {
            tracing::info!(
                "{name}: the host is starting, with its configuration and its component files as they are now"
            );
            continue;
        }
        tracing::info!("{name}: the configuration and the component files are read again");
        systemd::reloading(&tasks).await;
        let outcome = tokio::select! {
            outcome = services.reconfigure(false) => outcome,
            () = services.ending.cancelled() => return,
        };
        systemd::ready(&tasks);
        let failed = |change: &&ServiceChange| change.why.is_some();
        match outcome {
            Err(failure) => tracing::error!(event = "not_reconfigured", "{name}: {}", failure.sentence()),
            Ok(Reconfigured { services, .. }) => {
                for ServiceChange { service, why, .. } in services.iter().filter(failed).take(MAX_NAMED) {
                    tracing::warn!(%service, "{name}: {}", why.as_deref().unwrap_or_default());
                }
            }
        }
    }
}

/// Hands the host over at each SIGUSR2.
async fn upgrade_on_signal(mut upgrades: mpsc::Receiver<()>, services: Arc<Services>) {
    while upgrades.recv().await.is_some() {
        // Its outcome is logged, except for what is refused at once.
        if let Err(failure) = services.upgrade().await {
            tracing::warn!("SIGUSR2: {}", failure.sentence());
        }
    }
}

async fn ended(etcd: Option<&mut PrivateEtcd>) -> Failure {
    match etcd {
        Some(etcd) => etcd.ended().await,
        None => pending().await,
    }
}
