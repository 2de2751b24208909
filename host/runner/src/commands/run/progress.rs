//! Output of `run --dev`: each renewal and weight, and the content of etcd.

use std::sync::Arc;

use leasehold::{Event, EventKind, Registrar};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{error::shown, service::handle::ServiceHandle};

/// Logs renewals and weights, which the registrar does not log by itself, until it ends or `done`.
pub(crate) async fn log_events(mut events: Receiver<Event>, done: CancellationToken) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = done.cancelled() => return,
        };
        match event {
            Ok(event) => log(&event),
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "events went by too fast to be logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn log(event: &Event) {
    let (name, sentence) = (event.kind.name(), event.kind.sentence());
    match event.kind {
        EventKind::Renewed => {
            let lease = event.lease.map(tracing::field::display);
            tracing::info!(event = name, lease, "{sentence}: {}", event.why);
        }
        EventKind::Weighed | EventKind::Updated => {
            let service = event.service.as_ref().map(tracing::field::display);
            tracing::info!(event = name, service, key = event.key.as_deref(), "{sentence}: {}", event.why);
        }
        _ => {}
    }
}

/// Shows the keys and values of these services, read back from etcd.
pub(crate) async fn show(registrar: &Registrar, services: &[Arc<ServiceHandle>]) {
    for handle in services {
        let url = Arc::clone(&handle.snapshot().status.url);
        if url.is_empty() {
            continue;
        }
        tracing::info!(service = %handle.name, "open {url}");
        match registrar.list(Some(&handle.name)).await {
            Ok(listed) => {
                for found in listed {
                    let value = String::from_utf8_lossy(&found.value);
                    tracing::info!("in etcd: {} = {}", shown(&found.key), shown(&value));
                }
            }
            Err(error) => tracing::warn!("etcd cannot be read: {error}"),
        }
    }
}

/// Shows that etcd has no keys of these services any more.
pub(crate) async fn show_gone(registrar: &Registrar, services: &[Arc<ServiceHandle>]) {
    for ServiceHandle { name, .. } in services.iter().map(|handle| &**handle) {
        match registrar.list(Some(name)).await {
            Ok(listed) if listed.is_empty() => tracing::info!("in etcd: no key of {name}"),
            Ok(listed) => tracing::warn!("in etcd: still {} of {name}", listed.len()),
            Err(error) => tracing::warn!("etcd cannot be read: {error}"),
        }
    }
}
