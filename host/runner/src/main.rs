//! The binary `leasehold`: the whole story of the process.

mod admin;
mod answer;
mod ask;
mod asked;
mod cache;
mod call;
mod cli;
mod commands;
mod component;
mod config;
mod dev;
mod door;
mod engine;
mod exit;
mod failure;
mod files;
mod grpc;
mod guest;
mod handler;
mod health;
mod http;
mod input;
mod instances;
mod life;
mod linger;
mod loading;
mod log;
mod mesh;
mod metrics;
mod outbound;
mod output;
mod program;
mod reach;
mod reload;
mod rest;
mod roster;
mod run;
mod service;
mod shutdown;
mod sockets;
mod span;
mod stats;
mod story;
mod systemd;
mod timers;
mod tls;
mod traces;
mod tracked;
mod turns;
mod units;
mod version;
mod watched;
mod yaml;

use std::{io::stderr, num::NonZero, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context;
use clap::{Parser, error::ErrorKind};
use futures::future::{join, join_all, select_all, try_join, try_join_all};
use leasehold::Registrar;
use mimalloc::MiMalloc;
use tokio::runtime::Runtime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, Desk},
    cli::{Cli, Command, LogFormat, RunArgs},
    config::{Config, Register},
    dev::PrivateEtcd,
    failure::Failure,
    loading::Loading,
    metrics::Events,
    roster::Roster,
    service::Service,
    traces::Traces,
    turns::Turns,
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How long leases may take to be revoked at the end; what is left ends with its time to live.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);
/// One thread answers while another computes.
const MIN_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return no_command(&error),
    };
    let log = log::init(&cli.log);
    let turns = Turns::new(cores());
    let outcome = runtime(&turns).and_then(|runtime| {
        let outcome = runtime.block_on(dispatch(cli.command, turns));
        // A component that computes for ever ends here.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log.last_words(&failure);
            ExitCode::from(failure.code())
        }
    }
}

/// Help, the version, or what is wrong with the arguments.
fn no_command(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody reads it when stdout is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = match error.kind() {
        // clap would show all of its help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "say what to do: run, ls, watch, doctor, check, explain, inspect, compile, drain or reload".to_owned()
        }
        _ => error.to_string(),
    };
    let said = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
    let said = said.split("\n\nFor more").next().unwrap_or_default();
    let failure = Failure::usage(format!("{said}; see leasehold --help"));
    log::last_words(&failure, LogFormat::Text, &mut stderr());
    ExitCode::from(failure.code())
}

/// The processors that this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn runtime(turns: &Arc<Turns>) -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(cores().max(MIN_THREADS)).thread_name("leasehold").enable_all();
    let (parks, wakes) = (Arc::clone(turns), Arc::clone(turns));
    builder.on_thread_park(move || parks.look_up()).on_thread_unpark(move || wakes.look_up());
    Ok(builder.build().context("cannot start the runtime")?)
}

async fn dispatch(command: Command, turns: Arc<Turns>) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run(args, turns).await,
        Command::Ls(args) => commands::ls(args).await,
        Command::Watch(args) => commands::watch(args).await,
        Command::Doctor(args) => commands::doctor(args).await,
        Command::Check(args) => commands::check(args).await,
        Command::Explain(args) => commands::explain(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Compile(args) => commands::compile(&args),
        Command::Drain(args) => commands::drain(args).await,
        Command::Reload(args) => commands::reload(args).await,
    }
}

/// Everything from the configuration to the last revoked lease.
async fn run(args: RunArgs, turns: Arc<Turns>) -> Result<(), Failure> {
    files::raise();
    let mut config = args.config()?;
    let tasks = TaskTracker::new();
    let ending = shutdown::on_signal(&tasks)?;
    // What takes long goes on side by side, and a start is as long as the longest of it.
    let loading = Loading::begin(&config.services, turns, &tasks);

    let mut etcd = if config.dev { Some(PrivateEtcd::start()?) } else { None };
    if let Some(etcd) = &etcd {
        config.registrar.endpoints = vec![etcd.endpoint().to_owned()];
    }
    let registrar = reach::start(&config.registrar)?;
    let told = CancellationToken::new();
    if config.dev {
        tasks.spawn(story::tell(registrar.events(), told.clone()));
    }
    let roster = Arc::new(Roster::new(ending.clone()));
    let admin = config.admin.as_ref().map(|admin| {
        let events = Arc::<Events>::default();
        tasks.spawn(Arc::clone(&events).count(registrar.events(), told.clone()));
        let roster = Arc::clone(&roster);
        Admin::start(admin, Desk { roster, events, registrar: registrar.clone(), remote: admin.remote })
    });
    let admin = admin.transpose()?;
    let traces = config.traces.take().map(Traces::start).transpose().map_err(Failure::Usage)?;
    tasks.spawn(systemd::alive(registrar.clone(), tasks.clone(), told.clone()));

    let mut services = Vec::new();
    let outcome = tokio::select! {
        biased;
        failure = ended(etcd.as_mut()) => Err(failure),
        () = ending.cancelled() => Ok(()),
        outcome = live(&config, loading, &registrar, traces.as_ref(), &tasks, &roster, &mut services) => outcome,
    };

    // Whatever it was that ended.
    roster.ending.cancel();
    systemd::stopping(&tasks);
    join_all(services.iter_mut().map(Service::drain)).await;
    if config.dev && outcome.is_ok() {
        story::show_gone(&registrar, &config.services).await;
    }
    let flushed = async {
        if let Some(traces) = traces {
            traces.flush().await;
        }
    };
    let (revoked, ()) = join(registrar.shutdown(REVOKE_TIMEOUT), flushed).await;
    if let Err(error) = revoked {
        tracing::warn!("leases were not revoked and end with their time to live: {error}");
    }
    told.cancel();
    if let Some(admin) = admin {
        admin.close().await;
    }
    if let Some(etcd) = etcd {
        etcd.stop().await;
    }
    outcome
}

/// Starts the services and serves them for ever. What is in `services` at the end, however it comes, is to be drained.
async fn live(
    config: &Config,
    loading: Loading,
    registrar: &Registrar,
    traces: Option<&Traces>,
    tasks: &TaskTracker,
    roster: &Roster,
    services: &mut Vec<Service>,
) -> Result<(), Failure> {
    let registers = config.services.iter().any(|spec| spec.register != Register::Off);
    // On which TTL a component registers itself it says when it does.
    let registered_here = config.services.iter().filter(|spec| spec.register == Register::Host);
    if let Some(longest) = registered_here.map(|spec| spec.limits.start_timeout).max() {
        registrar.grant_ahead(longest);
    }
    let etcd = async {
        match registers || config.etcd_required {
            true => reach::etcd(registrar, &config.registrar, config.etcd_required, config.dev).await,
            false => Ok(()),
        }
    };
    let bound = async {
        for (spec, loaded, engine) in loading.end().await? {
            services.push(Service::bind(spec, loaded, &engine, registrar, traces)?);
        }
        roster.fill(services.iter().map(Service::face).collect());
        Ok(())
    };
    try_join(bound, etcd).await?;
    try_join_all(services.iter_mut().map(Service::start)).await?;
    if config.dev {
        story::show(registrar, services).await;
    }
    tracing::info!(services = services.len(), "ready");
    systemd::ready(tasks);
    let (never, ..) = select_all(services.iter_mut().map(|service| Box::pin(service.live()))).await;
    match never {}
}

async fn ended(etcd: Option<&mut PrivateEtcd>) -> Failure {
    match etcd {
        Some(etcd) => etcd.ended().await,
        None => std::future::pending().await,
    }
}
