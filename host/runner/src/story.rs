//! What happens to registrations, told in the log; in full detail with `run --dev`.

use leasehold::{Event, Layout, Registrar, What};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{config::Spec, service::Service};

/// Tells every event until the registrar ends or `done`. With `dev` each renewal is told, too.
pub(crate) async fn tell(mut events: Receiver<Event>, dev: bool, done: CancellationToken) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = done.cancelled() => return,
        };
        match event {
            Ok(event) => tell_one(&event, dev),
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "events went by too fast to be told"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn tell_one(event: &Event, dev: bool) {
    let lease = format!("{:x}", event.lease);
    let key = event.key.as_deref().unwrap_or("all keys of the lease");
    let why = event.why.as_str();
    match event.what {
        What::Registered => tracing::info!(key, lease, "registered"),
        What::TookOver => tracing::warn!(key, lease, why, "taken over"),
        What::Renewed if dev => tracing::info!(lease, why, "renewed"),
        What::Renewed => tracing::debug!(lease, why, "renewed"),
        What::Confirmed => tracing::info!(lease, why, "renewed after all"),
        What::Suspect => tracing::warn!(lease, why, "not renewed"),
        What::Recovering => tracing::warn!(lease, why, "lost; registering again"),
        What::Recovered => tracing::info!(lease, why, "registered again"),
        What::Healed => tracing::warn!(key, lease, why, "put back"),
        What::Conflict => tracing::warn!(key, lease, why, "taken by somebody else"),
        What::Weighed => tracing::info!(key, why, "weight changed"),
        What::Stopped => tracing::info!(key, "gone from etcd"),
        _ => tracing::info!(key, lease, why, what = ?event.what),
    }
}

/// Shows what etcd holds of these services, read back from it.
pub(crate) async fn show(registrar: &Registrar, layout: Layout, services: &[Service]) {
    for service in services {
        tracing::info!(service = %service.spec().name, "open {}", service.url());
        match registrar.list(Some(&service.spec().name)).await {
            Ok(listed) => {
                for found in listed {
                    let Ok(node) = found.node else { continue };
                    let Some(weight) = node.weight else { continue };
                    let value = String::from_utf8_lossy(&layout.value(&node, weight)).into_owned();
                    tracing::info!("in etcd: {} = {value}", found.key);
                }
            }
            Err(error) => tracing::warn!("etcd cannot be read: {error}"),
        }
    }
}

/// Shows that etcd holds nothing of these services any more.
pub(crate) async fn show_gone(registrar: &Registrar, specs: &[Spec]) {
    for spec in specs {
        match registrar.list(Some(&spec.name)).await {
            Ok(listed) if listed.is_empty() => tracing::info!("in etcd: no key of {}", spec.name),
            Ok(listed) => tracing::warn!("in etcd: still {} of {}", listed.len(), spec.name),
            Err(error) => tracing::warn!("etcd cannot be read: {error}"),
        }
    }
}
