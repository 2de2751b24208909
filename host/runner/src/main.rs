//! The binary `leasehold`: command line, runtime, dispatch to a command. A library, so that fuzzing reaches its parsers.

mod admin;
mod certificate;
mod cli;
mod commands;
mod config;
mod connect;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grpc;
mod inbound;
mod outbound;
mod process;
mod rejection;
mod rt;
mod service;
mod telemetry;
mod wasm;

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use mimalloc::MiMalloc;
use tokio::runtime::Runtime;

use crate::{
    cli::{Cli, Command, help::usage},
    error::Failure,
    process::cpus,
    telemetry::{access_log, log, log_level::Levels},
    wasm::{compiler, scheduler::Scheduler},
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Threads of the runtime, at least: one serves while another computes.
const MIN_THREADS: usize = 2;

/// Runs the command of the arguments; the exit code is that of the process.
pub fn main() -> ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if matches!(cli.command, Command::CompileForParent) {
        return compiler::child();
    }
    if matches!(&cli.command, Command::Watch(args) if commands::watch::hides_log(args)) {
        cli.log.quiet = true;
    }
    let log = log::init(&cli.log);
    let scheduler = Scheduler::new(cpus::available());
    let outcome = runtime(&scheduler).and_then(|runtime| {
        let outcome = runtime.block_on(dispatch(cli.command, scheduler, log.levels()));
        // A component in an endless loop ends here.
        runtime.shutdown_background();
        access_log::close();
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

fn runtime(scheduler: &Arc<Scheduler>) -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(cpus::available().max(MIN_THREADS)).thread_name("leasehold").enable_all();
    let (parks, wakes) = (Arc::clone(scheduler), Arc::clone(scheduler));
    builder.on_thread_park(move || parks.preempt()).on_thread_unpark(move || wakes.preempt());
    Ok(builder.build().context("cannot start the runtime")?)
}

async fn dispatch(command: Command, scheduler: Arc<Scheduler>, levels: Levels) -> Result<(), Failure> {
    match command {
        Command::Run(args) => commands::run(args, None, scheduler, levels).await,
        Command::Dev(args) => Box::pin(commands::dev(args, scheduler, levels)).await,
        Command::Keep(args) => Box::pin(commands::keep(args)).await,
        Command::Ls(args) => commands::ls(args).await,
        Command::Watch(args) => commands::watch::watch(args).await,
        Command::Doctor(args) => Box::pin(commands::doctor(args)).await,
        Command::EtcdUser(args) => commands::etcd_user(args).await,
        Command::Check(args) => commands::check(args).await,
        Command::Explain(args) => commands::explain(&args).await,
        Command::Init(args) => commands::init(&args),
        Command::Schema(args) => commands::schema(&args),
        Command::Inspect(args) => commands::inspect(&args).await,
        Command::Pull(args) => Box::pin(commands::pull(args)).await,
        Command::Push(args) => Box::pin(commands::push(args)).await,
        Command::Compile(args) => commands::compile(args).await,
        Command::New(args) => commands::new(&args),
        Command::Wit(args) => commands::wit(&args),
        Command::Componentize(args) => commands::componentize(&args),
        Command::Completions(args) => commands::completions(&args),
        Command::Man(args) => commands::man(&args),
        Command::CompileForParent => Err(Failure::usage("this is for the host alone")),
        Command::Drain(args) => commands::drain(args).await,
        Command::Resume(args) => commands::resume(args).await,
        Command::Weight(args) => commands::weight(args).await,
        Command::Status(args) => commands::status(args).await,
        Command::Reload(args) => commands::reload(args).await,
        Command::Upgrade(args) => commands::upgrade(args).await,
    }
}
