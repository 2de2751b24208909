//! `leasehold dev`: the folder of a service, built whenever its sources change, and run on a private etcd.

mod build;
mod sources;

use std::{convert::Infallible, future::pending, path::Path, sync::Arc};

use futures::{FutureExt, pin_mut};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{build::Build, sources::Sources};
use super::run::run;
use crate::{
    cli::{DevArgs, RunArgs},
    error::Failure,
    process::signals,
    telemetry::log_level::Levels,
    wasm::scheduler::Scheduler,
};

/// Builds in a row because of what a build itself has written among the sources.
const MAX_REPEATS: usize = 5;

/// Builds and runs until Ctrl-C. A build that fails, and a service that does not start, wait for the next change.
pub(crate) async fn dev(args: DevArgs, scheduler: Arc<Scheduler>, levels: Levels) -> Result<(), Failure> {
    let file = args.folder.join(&args.services);
    if !file.is_file() {
        return Err(Failure::usage(format!(
            "there is no {}; `leasehold new NAME --lang rust` makes a folder with one, and --services names another",
            file.display()
        )));
    }
    let tasks = TaskTracker::new();
    let build = Build::of(&args.folder, args.build.as_deref())?;
    let sources = Sources::read(args.folder, &args.ignore, &tasks).await?;
    let ending = signals::ending(&tasks)?;
    let mut workshop = Workshop { build, sources, ending };
    while let Some(()) = workshop.build_until_it_succeeds().await {
        let Err(failure) = workshop.run(&file, &scheduler, &levels).await else { return Ok(()) };
        tracing::error!(event = "not_running", "{}; the next change starts it again", failure.sentence());
        if workshop.change().await.is_none() {
            break;
        }
    }
    Ok(())
}

/// A folder with sources, and their build.
struct Workshop {
    build: Build,
    sources: Sources,
    /// Cancelled by a signal that requests the end.
    ending: CancellationToken,
}

impl Workshop {
    /// Runs the services, and has them reloaded after each build, until a signal ends them. Fails where none starts.
    async fn run(&mut self, file: &Path, scheduler: &Arc<Scheduler>, levels: &Levels) -> Result<(), Failure> {
        let (built, reloads) = mpsc::channel(1);
        let run = run(RunArgs::dev(file), Some(reloads), Arc::clone(scheduler), levels.clone()).fuse();
        let ending = self.ending.clone();
        // The end of the services may take a while, and a second Ctrl-C ends it without a word.
        let rebuild = async {
            ending.run_until_cancelled(self.rebuild(built)).await;
            pending::<Infallible>().await
        };
        let rebuild = rebuild.fuse();
        pin_mut!(run, rebuild);
        futures::select_biased! {
            outcome = run => outcome,
            never = rebuild => match never {},
        }
    }

    /// Builds after each change. A build that succeeds is reported.
    async fn rebuild(&mut self, built: mpsc::Sender<()>) -> Infallible {
        loop {
            self.log_change().await;
            if self.build_once().await {
                let _ = built.try_send(()); // Full: the next reload has yet to begin.
            }
        }
    }

    /// Builds, after a failure again with each change. `None` if the end is requested meanwhile.
    async fn build_until_it_succeeds(&mut self) -> Option<()> {
        let ending = self.ending.clone();
        let built = async {
            while !self.build_once().await {
                self.log_change().await;
            }
        };
        ending.run_until_cancelled(built).await
    }

    /// Waits for a change. `None` if the end is requested meanwhile.
    async fn change(&mut self) -> Option<()> {
        let ending = self.ending.clone();
        ending.run_until_cancelled(self.log_change()).await
    }

    async fn log_change(&mut self) {
        let changed = self.sources.changed().await;
        tracing::info!(event = "changed", "{changed} has changed");
    }

    /// Builds the sources as they are, and once more if they change meanwhile: by their author, who may have mended what fails, or
    /// by the build, which may write a file such as a lock file.
    async fn build_once(&mut self) -> bool {
        let (mut built, mut is_latest) = (Ok(()), false);
        for _ in 0..MAX_REPEATS {
            built = self.build.run().await;
            is_latest = self.sources.look().await.is_none();
            if is_latest {
                break;
            }
        }
        if !is_latest {
            tracing::warn!("the build changes the sources each time; --ignore leaves out what it writes");
        }
        if let Err(why) = &built {
            tracing::error!(event = "not_built", "{why}; the next change builds again");
        }
        built.is_ok()
    }
}
