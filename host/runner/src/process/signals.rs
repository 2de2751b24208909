//! Signals: SIGTERM, SIGQUIT and Ctrl-C request the end, SIGHUP a reload, SIGUSR2 an upgrade, SIGUSR1 another level of the log.
//! Only a second Ctrl-C ends the process at once.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Exit code that a shell reports for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// One Ctrl-C may arrive twice: from the terminal, and from a parent that passes it on.
pub(crate) const ECHO: Duration = Duration::from_millis(50);

/// Requests that arrive as signals.
pub(crate) struct Signals {
    /// Cancelled by a signal that requests the end.
    pub(crate) ending: CancellationToken,
    /// One message for each SIGHUP; several at a time are one.
    pub(crate) reloads: mpsc::Receiver<()>,
    /// One message for each SIGUSR2; several at a time are one.
    pub(crate) upgrades: mpsc::Receiver<()>,
    /// One message for each SIGUSR1.
    pub(crate) verbosity: mpsc::Receiver<()>,
}

/// Senders of the requests.
struct Requests {
    ending: CancellationToken,
    reloads: mpsc::Sender<()>,
    upgrades: mpsc::Sender<()>,
    verbosity: mpsc::Sender<()>,
}

/// One listener for each signal that would end the process by default and that operators send by habit.
struct Listeners {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

/// Listens for signals until the process ends.
pub(crate) fn listen(tasks: &TaskTracker) -> anyhow::Result<Signals> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let listeners = Listeners {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        quit: listen(SignalKind::quit())?,
        hangup: listen(SignalKind::hangup())?,
        user1: listen(SignalKind::user_defined1())?,
        user2: listen(SignalKind::user_defined2())?,
    };
    let (reload, reloads) = mpsc::channel(1);
    let (upgrade, upgrades) = mpsc::channel(1);
    let (change_level, verbosity) = mpsc::channel(1);
    let ending = CancellationToken::new();
    let requests = Requests { ending: ending.clone(), reloads: reload, upgrades: upgrade, verbosity: change_level };
    tasks.spawn(watch(listeners, requests));
    Ok(Signals { ending, reloads, upgrades, verbosity })
}

/// Cancelled by the first signal that requests the end, for a process that has nothing to end in order.
pub(crate) fn ending(tasks: &TaskTracker) -> anyhow::Result<CancellationToken> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut quit = listen(SignalKind::quit())?;
    let ending = CancellationToken::new();
    let cancelled = ending.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(ending)
}

async fn watch(mut signals: Listeners, requests: Requests) {
    let Requests { ending, reloads, upgrades, verbosity } = requests;
    let mut interrupted: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => {
                if interrupted.is_some_and(|first| first.elapsed() > ECHO) {
                    std::process::exit(INTERRUPTED);
                }
                interrupted.get_or_insert_with(Instant::now);
            }
            _ = signals.terminate.recv() => {}
            _ = signals.quit.recv() => {}
            _ = signals.hangup.recv() => {
                let _ = reloads.try_send(()); // Full: the next reload has yet to begin.
                continue;
            }
            _ = signals.user1.recv() => {
                let _ = verbosity.try_send(()); // Full: two at a time are one.
                continue;
            }
            _ = signals.user2.recv() => {
                let _ = upgrades.try_send(()); // Full: the next upgrade has yet to begin.
                continue;
            }
        }
        if !ending.is_cancelled() {
            tracing::info!("ending; Ctrl-C quits at once");
            ending.cancel();
        }
    }
}
