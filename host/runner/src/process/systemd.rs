//! What systemd is told where it started the process: that it is ready, that it ends, and that it is alive.

use leasehold::Registrar;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Says that all services are served and registered.
pub(crate) fn ready(tasks: &TaskTracker) {
    tell(tasks, NotifyState::Ready);
}

/// Says that the end has begun.
pub(crate) fn stopping(tasks: &TaskTracker) {
    tell(tasks, NotifyState::Stopping);
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
        tell(&tasks, NotifyState::Watchdog);
    }
}

/// Without systemd this does nothing. One that does not read must not hold up anything else.
fn tell(tasks: &TaskTracker, state: NotifyState<'static>) {
    tasks.spawn_blocking(move || {
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "systemd could not be told");
        }
    });
}
