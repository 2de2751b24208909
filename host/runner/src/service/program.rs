//! A service whose component runs by itself and opens its own listener: run, and run again whenever it ends.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use crate::{
    config::Spec,
    error::Failure,
    inbound::server,
    process::activation,
    rt::backoff::Backoff,
    service::process::Run,
    wasm::{component::Loaded, context::ServiceContext, engine::Engine},
};

/// Pauses before a program is run again after a short run.
const RESTART_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
/// Shortest run that resets the pause.
const LASTING: Duration = Duration::from_secs(60);

/// The program, from one run to the next.
pub(crate) struct Program {
    run: Option<Run>,
    begun: Instant,
    backoff: Backoff,
    /// Time at which it is run again.
    due: Option<Instant>,
    /// Runs of this program.
    tasks: TaskTracker,
}

/// A change in the life of a program.
pub(crate) enum ProgramEvent {
    /// It has ended by itself, for this reason, and is run again after this pause.
    Exited(String, Duration),
    /// It is to be run again.
    RestartDue,
}

impl Program {
    /// Checks that the address is free, so that the error is a clear one. Nothing of the component runs yet.
    pub(crate) fn bind(spec: &Spec) -> Result<Self, Failure> {
        if activation::listener(spec.listen).is_some() {
            return Err(Failure::usage(format!(
                "{}: systemd has opened {}, and a program opens its own listener: the socket unit must not have it",
                spec.name, spec.listen
            )));
        }
        server::bind(spec.listen)
            .map_err(|error| Failure::other(format!("{}: cannot listen on {}: {error}", spec.name, spec.listen)))?;
        let (backoff, tasks) = (RESTART_BACKOFF, TaskTracker::new());
        Ok(Self { run: None, begun: Instant::now(), backoff, due: None, tasks })
    }

    /// Runs the program until it listens. After a failure it is due again after a pause.
    pub(crate) async fn start(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: &Arc<ServiceContext>,
    ) -> Result<(), Failure> {
        let pre = loaded.program(&spec.component)?;
        if let Some(mut former) = self.run.take() {
            former.stop(spec).await;
        }
        (self.begun, self.due) = (Instant::now(), None);
        match Run::start(spec, engine, loaded, pre, Arc::clone(context), &self.tasks).await {
            Ok(run) => {
                self.run = Some(run);
                Ok(())
            }
            Err(failure) => {
                self.pause();
                Err(failure)
            }
        }
    }

    /// Returns true if the program may serve requests.
    pub(crate) fn is_up(&self) -> bool {
        self.run.is_some() && self.due.is_none()
    }

    /// Waits for the next event. Dropped halfway, it loses none.
    pub(crate) async fn next(&mut self) -> ProgramEvent {
        match (self.due, &mut self.run) {
            (Some(due), _) => {
                sleep_until(due).await;
                ProgramEvent::RestartDue
            }
            (None, Some(run)) => {
                let why = run.ended().await;
                ProgramEvent::Exited(why, self.pause())
            }
            (None, None) => pending().await,
        }
    }

    fn pause(&mut self) -> Duration {
        if self.begun.elapsed() >= LASTING {
            self.backoff.reset();
        }
        let pause = self.backoff.next_pause();
        self.due = Some(Instant::now() + pause);
        pause
    }

    /// Ends the program: if clients may have found it, they are served for `settle_time`; then the program is signalled, and
    /// has `drain_timeout`. Returns true if it ended by itself.
    ///
    /// May be called again if it was broken off.
    pub(crate) async fn stop(&mut self, spec: &Spec, announced: bool) -> bool {
        self.due = None;
        let mut by_itself = true;
        if let Some(run) = &mut self.run {
            if announced {
                sleep(spec.limits.settle_time).await;
            }
            by_itself = run.stop(spec).await;
            self.run = None;
        }
        // A run that did not get as far as to listen ends by itself, once it is interrupted.
        self.tasks.close();
        let _ = timeout(spec.limits.stop_timeout, self.tasks.wait()).await;
        by_itself
    }
}
