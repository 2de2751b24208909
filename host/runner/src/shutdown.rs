//! SIGTERM and Ctrl-C: the first asks for the end, a second Ctrl-C does not wait for it.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Returns the token that a signal cancels. Listens from now on.
pub(crate) fn on_signal(tasks: &TaskTracker) -> anyhow::Result<CancellationToken> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let ending = CancellationToken::new();
    tasks.spawn(watch(interrupt, terminate, ending.clone()));
    Ok(ending)
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, ending: CancellationToken) {
    let mut interrupts = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => interrupts += 1,
            _ = terminate.recv() => {}
        }
        if interrupts > 1 {
            std::process::exit(INTERRUPTED);
        }
        if !ending.is_cancelled() {
            tracing::info!("ending; Ctrl-C quits at once");
            ending.cancel();
        }
    }
}
