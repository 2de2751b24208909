//! The admin endpoint for operators, supervisors and scrapers: its listeners, from their start to their end.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{
        connection::{Shared, accept},
        handlers::AdminState,
        listener::Listener,
        routes::Rights,
    },
    config::{self, AdminAddress, SocketFile},
    error::Failure,
    inbound::{server::bind, tls::Tls},
    process::{
        handover::{Inheritance, Place},
        runtime_folder,
    },
};

/// Line of the log about the admin endpoint, with its URL.
const ADMIN_LISTENS: &str = "the admin endpoint listens";

/// The endpoint, until it is closed. Its connections have a tracker of their own: `close` waits for them alone.
pub(crate) struct Admin {
    closing: CancellationToken,
    tasks: TaskTracker,
    /// The address at which it listens, if it is at one.
    pub(crate) addr: Option<SocketAddr>,
    /// The address of the listener for health and metrics alone.
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Descriptors of the listeners at addresses, to hand them over.
    pub(crate) listeners: Vec<(Place, OwnedFd)>,
}

/// The endpoint before it listens.
pub(crate) struct AdminStart {
    pub(crate) admin: config::Admin,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) state: AdminState,
}

impl AdminStart {
    /// Listens and responds, also while services start and while they drain.
    pub(crate) fn start(self, inheritance: Option<&Inheritance>) -> Result<Admin, Failure> {
        Admin::start(&self.admin, self.metrics, self.state, inheritance)
    }
}

impl Admin {
    fn start(
        admin: &config::Admin,
        metrics: Option<SocketAddr>,
        state: AdminState,
        inheritance: Option<&Inheritance>,
    ) -> Result<Self, Failure> {
        let metrics_configured = metrics;
        let listener = listener(admin, inheritance, &state.services.succeeded)?;
        let metrics = metrics.map(|addr| metrics_listener(addr, inheritance)).transpose()?;
        let address = match admin {
            config::Admin::Tcp(address) => Some(address.clone()),
            _ => None,
        };
        let addr = listener.as_ref().and_then(Listener::addr);
        let metrics_addr = metrics.as_ref().and_then(Listener::addr);
        let descriptor = |listener: &Option<Listener>| listener.as_ref()?.descriptor();
        let admin_place = admin.addr().map(Place::Admin).zip(descriptor(&listener));
        let metrics_place = metrics_configured.map(Place::Metrics).zip(descriptor(&metrics));
        let listeners = admin_place.into_iter().chain(metrics_place).collect();
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let started = Self { closing, tasks, addr, metrics_addr, listeners };
        let shared = Arc::new(Shared::new(state, address));
        for (listener, name) in [(listener, "admin"), (metrics, "metrics")] {
            let Some(listener) = listener else { continue };
            match (admin, name) {
                // Commands find it without its name.
                (config::Admin::Suggested { .. }, "admin") => tracing::debug!(url = listener.url(), "{ADMIN_LISTENS}"),
                (_, "admin") => tracing::info!(url = listener.url(), "{ADMIN_LISTENS}"),
                _ => tracing::info!(url = listener.url(), "the endpoint for health and metrics listens"),
            }
            if let Some(tls) = listener.tls() {
                let closing = started.closing.clone();
                started.tasks.spawn(async move { closing.run_until_cancelled(tls.follow(name)).await });
            }
            let (closing, tasks) = (started.closing.clone(), started.tasks.clone());
            started.tasks.spawn(accept(listener, Arc::clone(&shared), closing, tasks));
        }
        Ok(started)
    }

    /// Closes the listeners and cuts the remaining connections: their commands have ended.
    pub(crate) async fn close(self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The listener of the endpoint, as configured.
fn listener(
    admin: &config::Admin,
    inheritance: Option<&Inheritance>,
    succeeded: &CancellationToken,
) -> Result<Option<Listener>, Failure> {
    let failed = |message: String| Failure::other(format!("admin: {message}"));
    match admin {
        config::Admin::Off => Ok(None),
        config::Admin::Unix(file) => {
            Listener::unix(file, inheritance.is_some(), succeeded.clone()).map(Some).map_err(failed)
        }
        config::Admin::Tcp(address) => address_listener(address, inheritance).map(Some),
        config::Admin::Suggested { mode, group } => {
            let listen = |path| {
                let file = SocketFile { path, mode: *mode, group: group.clone() };
                Listener::unix(&file, inheritance.is_some(), succeeded.clone())
            };
            let listener = runtime_folder::socket().and_then(listen);
            // The services do not need it.
            let listener = listener.inspect_err(|message| {
                tracing::warn!("no admin endpoint: {message}; admin.listen names another place, or says off");
            });
            Ok(listener.ok())
        }
    }
}

fn address_listener(address: &AdminAddress, inheritance: Option<&Inheritance>) -> Result<Listener, Failure> {
    let tls = address.tls.clone().map(Tls::open_http1).transpose();
    let tls = tls.map_err(|message| Failure::usage(format!("admin: tls: {message}")))?;
    let rights = if address.token.is_some() { Rights::Token } else { Rights::Read };
    let bound = bind_or_take(address.listen, &Place::Admin(address.listen), inheritance)
        .and_then(|listener| Listener::tcp(listener, rights, tls.map(Arc::new)));
    bound.map_err(|error| Failure::other(format!("admin: cannot listen on {}: {error}", address.listen)))
}

fn metrics_listener(addr: SocketAddr, inheritance: Option<&Inheritance>) -> Result<Listener, Failure> {
    let bound = bind_or_take(addr, &Place::Metrics(addr), inheritance)
        .and_then(|listener| Listener::tcp(listener, Rights::Probes, None));
    bound.map_err(|error| Failure::other(format!("metrics: cannot listen on {addr}: {error}")))
}

/// Binds a listener, or takes the listener that a former host has handed over.
fn bind_or_take(addr: SocketAddr, place: &Place, inheritance: Option<&Inheritance>) -> io::Result<TcpListener> {
    match inheritance.and_then(|inheritance| inheritance.take(place)) {
        Some(listener) => TcpListener::from_std(listener),
        None => bind(addr),
    }
}
