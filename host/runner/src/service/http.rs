//! A service whose listener is the host's, in the order it is lived: bound, started, replaced, drained.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Spec,
    error::Failure,
    inbound::{
        dispatch::CurrentDispatcher,
        server::{self, Server},
        tls::Tls,
    },
    process::handover::{Inheritance, Place},
    service::revision::Revision,
    wasm::{component::Loaded, context::ServiceContext, engine::Engine},
};

/// The component of a service, its listener and its dispatcher.
pub(crate) struct Handler {
    bound: SocketAddr,
    /// The listener until its end, also while the server accepts its connections.
    listener: Option<Arc<TcpListener>>,
    tls: Option<Arc<Tls>>,
    /// Cancelled once connections may be accepted.
    open: CancellationToken,
    /// The revision that serves requests.
    revision: Option<Revision>,
    /// The dispatcher of that revision, as the connections share it.
    dispatcher: Option<CurrentDispatcher>,
    /// Former revisions that still answer.
    retiring: TaskTracker,
    server: Option<Server>,
}

impl Handler {
    /// Binds the listener, or takes the listener that a former host has handed over. Nothing of the component runs yet.
    pub(crate) fn bind(spec: &Spec, inheritance: Option<&Inheritance>) -> Result<Self, Failure> {
        let tls = open_tls(spec)?;
        let failed = |error| Failure::other(format!("{}: cannot listen on {}: {error}", spec.name, spec.listen));
        let place = Place::Service(spec.name.to_string(), spec.listen);
        let listener = match inheritance.and_then(|inheritance| inheritance.take(&place)) {
            Some(listener) => TcpListener::from_std(listener),
            None => server::bind(spec.listen),
        };
        let listener = listener.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Self {
            bound,
            listener: Some(Arc::new(listener)),
            tls,
            open: is_host(inheritance),
            revision: None,
            dispatcher: None,
            retiring: TaskTracker::new(),
            server: None,
        })
    }

    /// The listener.
    pub(crate) fn listener(&self) -> Option<Weak<TcpListener>> {
        self.listener.as_ref().map(Arc::downgrade)
    }

    /// Address of the listener.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Starts the component and serves it. A component that has to pass its health check first is served before it is
    /// started.
    pub(crate) async fn start(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: &Arc<ServiceContext>,
    ) -> Result<(), Failure> {
        let mut revision = Revision::open(spec, engine, loaded, Arc::clone(context))?;
        if !spec.is_probed_before_start() {
            revision.start_lifecycle(spec, engine, loaded).await?;
        }
        let dispatcher = Arc::new(ArcSwap::new(Arc::clone(&revision.dispatcher)));
        let tls = self.tls.clone();
        let serve = |listener: &Arc<TcpListener>| {
            Server::start(Arc::clone(listener), Arc::clone(&dispatcher), tls, &spec.limits, self.open.clone())
        };
        self.server = self.listener.as_ref().map(serve);
        (self.revision, self.dispatcher) = (Some(revision), Some(dispatcher));
        Ok(())
    }

    /// Calls `lifecycle.start` of a component that has passed its health check.
    pub(crate) async fn start_lifecycle(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
    ) -> Result<(), Failure> {
        match &mut self.revision {
            Some(revision) => revision.start_lifecycle(spec, engine, loaded).await,
            None => Ok(()),
        }
    }

    /// The current dispatcher, once the service is started.
    pub(crate) fn dispatcher(&self) -> Option<CurrentDispatcher> {
        self.dispatcher.clone()
    }

    /// Former revisions that still answer.
    pub(crate) fn retiring(&self) -> TaskTracker {
        self.retiring.clone()
    }

    /// Serves connections from now on under another configuration, with this certificate.
    pub(crate) fn change(&self, spec: &Spec, tls: Option<Arc<Tls>>) {
        if let Some(server) = &self.server {
            server.change(spec.name.clone(), tls, &spec.limits);
        }
    }

    /// Moves the requests to another revision, which has been started beside the served one.
    pub(crate) fn replace(&mut self, revision: Revision, spec: &Spec) {
        if let Some(dispatcher) = &self.dispatcher {
            dispatcher.store(Arc::clone(&revision.dispatcher));
        }
        if let Some(former) = self.revision.replace(revision) {
            self.retiring.spawn(former.retire(spec.clone()));
        }
    }

    /// Ends the service: if clients may have found it, they are served for `settle_time`; then requests in flight have
    /// `drain_timeout`. Returns true if all were answered.
    ///
    /// May be called again if it was broken off.
    pub(crate) async fn stop(&mut self, spec: &Spec, announced: bool) -> bool {
        let mut all_answered = true;
        if let Some(server) = &self.server {
            if announced {
                // Clients that watch etcd learn of the end now, and are answered until then.
                server.leave();
                sleep(spec.limits.settle_time).await;
            }
            self.listener = None;
            // Responses that follow a watch end now.
            if let Some(revision) = &self.revision {
                revision.context.registry.end_watches();
            }
            let deadline = spec.limits.drain_timeout;
            all_answered = server.close(deadline).await;
            if !all_answered {
                tracing::warn!(service = %spec.name, "requests were cut off after {deadline:?}");
            }
        }
        // Without a server it was not closed yet.
        self.listener = None;
        self.retiring.close();
        // Requests of retiring revisions ended with the server; only `lifecycle.stop` is left.
        let _ = timeout(spec.limits.stop_timeout, self.retiring.wait()).await;
        if let Some(revision) = &mut self.revision {
            revision.stop(spec).await;
        }
        self.server = None;
        all_answered
    }
}

/// Token that is cancelled once this process is the host: at once, unless it succeeds another process.
pub(crate) fn is_host(inheritance: Option<&Inheritance>) -> CancellationToken {
    inheritance.map_or_else(
        || {
            let token = CancellationToken::new();
            token.cancel();
            token
        },
        |inheritance| inheritance.is_host.clone(),
    )
}

/// The certificate of a listener, if it has one.
pub(crate) fn open_tls(spec: &Spec) -> Result<Option<Arc<Tls>>, Failure> {
    let tls = spec.tls.clone().map(Tls::open).transpose();
    Ok(tls.map_err(|message| Failure::usage(format!("{}: tls: {message}", spec.name)))?.map(Arc::new))
}
