//! What systemd is told where it started the process: that it is ready, that it ends, and that it is alive.

use std::time::Duration;

use leasehold::Registrar;
use sd_notify::NotifyState;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest wait for systemd to take what must precede something else.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Says that all services are served and registered.
pub(crate) fn ready(tasks: &TaskTracker) {
    drop(tell(tasks, NotifyState::Ready));
}

/// Says that services are reloaded, before `ready` says that this is done.
pub(crate) async fn reloading(tasks: &TaskTracker) {
    let _ = timeout(TELL_TIMEOUT, tell(tasks, NotifyState::Reloading)).await; // It is said later, or not.
}

/// Says that the end has begun.
pub(crate) fn stopping(tasks: &TaskTracker) {
    drop(tell(tasks, NotifyState::Stopping));
}

/// Says twice in each interval of the watchdog that this process works, until `done`: that its tasks are run and that
/// the registrar renews. Without either systemd starts it again.
pub(crate) async fn alive(registrar: Registrar, tasks: TaskTracker, done: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => return,
            () = sleep(interval / 2) => {}
        }
        if registrar.has_ended() {
            tracing::error!("the registrar has ended, and leases are not renewed any more");
            return;
        }
        drop(tell(&tasks, NotifyState::Watchdog));
    }
}

/// Without systemd this does nothing. One that does not read must not hold up anything else.
fn tell(tasks: &TaskTracker, state: NotifyState<'static>) -> JoinHandle<()> {
    tasks.spawn_blocking(move || {
        let mut states = vec![state];
        if let (NotifyState::Reloading, Ok(now)) = (&states[0], NotifyState::monotonic_usec_now()) {
            states.push(now);
        }
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "systemd could not be told");
        }
    })
}
