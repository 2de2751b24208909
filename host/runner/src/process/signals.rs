//! SIGTERM and Ctrl-C: the first asks for the end, a second Ctrl-C does not wait for it.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// One Ctrl-C may arrive twice: from the terminal, and from a parent that passes it on.
const ECHO: Duration = Duration::from_millis(50);

/// Returns the token that a signal cancels. Listens from now on.
pub(crate) fn on_signal(tasks: &TaskTracker) -> anyhow::Result<CancellationToken> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let ending = CancellationToken::new();
    tasks.spawn(watch(interrupt, terminate, ending.clone()));
    Ok(ending)
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, ending: CancellationToken) {
    let mut interrupted: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {
                if interrupted.is_some_and(|first| first.elapsed() > ECHO) {
                    std::process::exit(INTERRUPTED);
                }
                interrupted.get_or_insert_with(Instant::now);
            }
            _ = terminate.recv() => {}
        }
        if !ending.is_cancelled() {
            tracing::info!("ending; Ctrl-C quits at once");
            ending.cancel();
        }
    }
}
