//! Notifications to systemd: ready, reloading, stopping, and the watchdog.

use std::time::Duration;

use leasehold::Registrar;
use sd_notify::NotifyState;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest wait for systemd to take what must precede something else.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports that all services are served and registered.
pub(crate) fn ready(tasks: &TaskTracker) {
    drop(notify(tasks, NotifyState::Ready));
}

/// Reports that services are being reloaded, until `ready`.
pub(crate) async fn reloading(tasks: &TaskTracker) {
    let _ = timeout(NOTIFY_TIMEOUT, notify(tasks, NotifyState::Reloading)).await; // The notification may arrive later, or not at all.
}

/// Reports that the end has begun.
pub(crate) fn stopping(tasks: &TaskTracker) {
    drop(notify(tasks, NotifyState::Stopping));
}

/// Reports twice in each interval of the watchdog, until `done`, that the process works: its tasks run, and the registrar
/// renews leases. Otherwise systemd restarts the process.
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
        drop(notify(&tasks, NotifyState::Watchdog));
    }
}

/// Sends a notification; without systemd this does nothing. A systemd that does not read must not block the process.
fn notify(tasks: &TaskTracker, state: NotifyState<'static>) -> JoinHandle<()> {
    tasks.spawn_blocking(move || {
        let mut states = vec![state];
        if let (NotifyState::Reloading, Ok(now)) = (&states[0], NotifyState::monotonic_usec_now()) {
            states.push(now);
        }
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "systemd could not be notified");
        }
    })
}
