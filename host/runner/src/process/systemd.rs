//! Notifications to systemd: ready, reloading, stopping, the status in words, and the watchdog.

use std::{env, time::Duration};

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

/// Reports that another process is the main one of the unit.
pub(crate) async fn main_process(tasks: &TaskTracker, pid: u32) {
    let _ = timeout(NOTIFY_TIMEOUT, notify(tasks, NotifyState::MainPid(pid))).await; // As for `reloading`.
}

/// Returns true if systemd listens.
pub(crate) fn is_there() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Reports the state of the host in words, which `systemctl status` shows.
pub(crate) fn status(tasks: &TaskTracker, text: String) {
    drop(tasks.spawn_blocking(move || send(&[NotifyState::Status(&text)])));
}

/// Requests more time for the end, from now on.
pub(crate) fn extend(tasks: &TaskTracker, time: Duration) {
    let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    drop(notify(tasks, NotifyState::ExtendTimeoutUsec(microseconds)));
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
        send(&states);
    })
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be notified");
    }
}
