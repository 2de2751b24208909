//! A service whose listener is the host's, in the order it is lived: bound, started, replaced, drained.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    component::Loaded,
    config::{Health, Spec},
    door::{Door, Places},
    engine::Engine,
    failure::Failure,
    guest::Guest,
    health,
    http::{self, Server},
    tls::Tls,
    version::Version,
};

/// The pause between two questions to a new version.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// The component, and the way of requests to it.
pub(crate) struct Handler {
    bound: SocketAddr,
    listener: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
    /// The version that requests go to.
    version: Option<Version>,
    /// Where requests find it.
    doors: Option<watch::Sender<Arc<Door>>>,
    /// Former versions that still answer.
    retiring: TaskTracker,
    server: Option<Server>,
}

impl Handler {
    /// Binds the listener. Nothing of the component runs yet.
    pub(crate) fn bind(spec: &Spec) -> Result<Self, Failure> {
        let tls = spec.tls.clone().map(Tls::open).transpose();
        let tls = tls.map_err(|said| Failure::usage(format!("{}: tls: {said}", spec.name)))?.map(Arc::new);
        let failed = |error| Failure::other(format!("{}: cannot listen on {}: {error}", spec.name, spec.listen));
        let listener = http::bind(spec.listen).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Self {
            bound,
            listener: Some(listener),
            tls,
            version: None,
            doors: None,
            retiring: TaskTracker::new(),
            server: None,
        })
    }

    /// Where it listens.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Starts the component, and serves it.
    pub(crate) async fn start(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        guest: &Arc<Guest>,
    ) -> Result<(), Failure> {
        let version = Self::version(spec, engine, loaded, guest).await?;
        let doors = watch::Sender::new(Arc::clone(&version.door));
        let tls = self.tls.clone();
        self.server =
            self.listener.take().map(|listener| Server::start(listener, doors.subscribe(), tls, &spec.limits));
        (self.version, self.doors) = (Some(version), Some(doors));
        Ok(())
    }

    async fn version(spec: &Spec, engine: &Engine, loaded: &Loaded, guest: &Arc<Guest>) -> Result<Version, Failure> {
        let pre = loaded.handler(&spec.component)?;
        Version::start(spec, engine, loaded, pre, Arc::clone(guest)).await
    }

    /// Where requests go, once it is started.
    pub(crate) fn doors(&self) -> Option<watch::Receiver<Arc<Door>>> {
        self.doors.as_ref().map(watch::Sender::subscribe)
    }

    /// Starts another version beside the one that is served, and moves the requests there. Whatever goes wrong before the
    /// move leaves everything as it was.
    pub(crate) async fn replace(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        guest: &Arc<Guest>,
    ) -> Result<(), Failure> {
        // One at a time: each holds instances.
        self.retiring.close();
        self.retiring.wait().await;
        self.retiring.reopen();
        let version = Self::version(spec, engine, loaded, guest).await?;
        let version = self.proven(version, spec).await?;
        if let Some(doors) = &self.doors {
            doors.send_replace(Arc::clone(&version.door));
        }
        if let Some(former) = self.version.replace(version) {
            self.retiring.spawn(former.retire(spec.clone()));
        }
        Ok(())
    }

    /// A version that is asked how it is before requests go to it, where that can be asked.
    async fn proven(&self, mut version: Version, spec: &Spec) -> Result<Version, Failure> {
        let Some(health) = &spec.health else { return Ok(version) };
        let answered = self.answers(&version, health, spec).await;
        match answered {
            Ok(()) => Ok(version),
            Err(said) => {
                version.stop(spec).await;
                Err(Failure::other(format!("{}: the new version's health check fails: {said}", spec.name)))
            }
        }
    }

    async fn answers(&self, version: &Version, health: &Health, spec: &Spec) -> Result<(), String> {
        let (until, authority) = (Instant::now() + spec.limits.start_timeout, self.bound.to_string());
        // It does not wait for the requests that the former version has.
        let places = Places::new(1);
        loop {
            match health::probe(&version.door, &places, Some(health), &authority).await {
                Err(_) if Instant::now() < until => sleep(PROBE_PAUSE).await,
                outcome => return outcome,
            }
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
        if let Some(version) = &mut self.version {
            version.stop(spec).await;
        }
        self.server = None;
        all_answered
    }
}
