//! A service whose listener is the host's, in the order it is lived: bound, started, replaced, drained.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::Spec,
    error::Failure,
    inbound::{
        dispatch::CurrentDispatcher,
        server::{self, Server},
        tls::Tls,
    },
    service::revision::Revision,
    wasm::{component::Loaded, context::ServiceContext, engine::Engine},
};

/// The component, and the way of requests to it.
pub(crate) struct Handler {
    bound: SocketAddr,
    listener: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
    /// The revision that requests go to.
    revision: Option<Revision>,
    /// Where requests find it.
    dispatcher: Option<CurrentDispatcher>,
    /// Former revisions that still answer.
    retiring: TaskTracker,
    server: Option<Server>,
}

impl Handler {
    /// Binds the listener. Nothing of the component runs yet.
    pub(crate) fn bind(spec: &Spec) -> Result<Self, Failure> {
        let tls = spec.tls.clone().map(Tls::open).transpose();
        let tls = tls.map_err(|said| Failure::usage(format!("{}: tls: {said}", spec.name)))?.map(Arc::new);
        let failed = |error| Failure::other(format!("{}: cannot listen on {}: {error}", spec.name, spec.listen));
        let listener = server::bind(spec.listen).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Self {
            bound,
            listener: Some(listener),
            tls,
            revision: None,
            dispatcher: None,
            retiring: TaskTracker::new(),
            server: None,
        })
    }

    /// Where it listens.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Serves the component, which is started before that, unless it is to answer first.
    pub(crate) async fn start(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: &Arc<ServiceContext>,
    ) -> Result<(), Failure> {
        let mut revision = Revision::open(spec, engine, loaded, Arc::clone(context))?;
        if !spec.answers_first() {
            revision.begin(spec, engine, loaded).await?;
        }
        let dispatcher = Arc::new(ArcSwap::new(Arc::clone(&revision.dispatcher)));
        let tls = self.tls.clone();
        self.server =
            self.listener.take().map(|listener| Server::start(listener, Arc::clone(&dispatcher), tls, &spec.limits));
        (self.revision, self.dispatcher) = (Some(revision), Some(dispatcher));
        Ok(())
    }

    /// Starts the component that has answered.
    pub(crate) async fn begin(&mut self, spec: &Spec, engine: &Engine, loaded: &Loaded) -> Result<(), Failure> {
        match &mut self.revision {
            Some(revision) => revision.begin(spec, engine, loaded).await,
            None => Ok(()),
        }
    }

    /// Where requests go, once it is started.
    pub(crate) fn dispatcher(&self) -> Option<CurrentDispatcher> {
        self.dispatcher.clone()
    }

    /// Former revisions that still answer.
    pub(crate) fn retiring(&self) -> TaskTracker {
        self.retiring.clone()
    }

    /// Moves the requests to another revision, which has been started beside the one that is served.
    pub(crate) fn replace(&mut self, revision: Revision, spec: &Spec) {
        if let Some(dispatcher) = &self.dispatcher {
            dispatcher.store(Arc::clone(&revision.dispatcher));
        }
        if let Some(former) = self.revision.replace(revision) {
            self.retiring.spawn(former.retire(spec.clone()));
        }
    }

    /// Ends it: clients that have yet to hear of it are served for a while, if there may be some; then requests in flight
    /// have `drain_timeout`. Says whether all were answered.
    ///
    /// May be asked for again when it was broken off.
    pub(crate) async fn stop(&mut self, spec: &Spec, announced: bool) -> bool {
        let mut all_answered = true;
        // Let go of where nobody was served yet.
        self.listener = None;
        if let Some(server) = &self.server {
            if announced {
                // Who watches etcd hears of it now, and until then is answered as ever.
                server.leave();
                sleep(spec.limits.settle_time).await;
            }
            let deadline = spec.limits.drain_timeout;
            all_answered = server.close(deadline).await;
            if !all_answered {
                tracing::warn!(service = %spec.name, "requests were cut off after {deadline:?}");
            }
        }
        self.retiring.close();
        // Its requests were those of the server, so what is left is the component's own end.
        let _ = timeout(spec.limits.stop_timeout, self.retiring.wait()).await;
        if let Some(revision) = &mut self.revision {
            revision.stop(spec).await;
        }
        self.server = None;
        all_answered
    }
}
