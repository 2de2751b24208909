//! One service, in the order it is lived: bound, started, served, drained.

use std::{convert::Infallible, fmt::Display, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use leasehold::{Registrar, ServerNode};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    cli::url,
    component::Loaded,
    config::{Health, Register, Spec},
    door::Door,
    engine::Engine,
    failure::Failure,
    guest::Guest,
    health::{self, Checkup, Verdict},
    http::{self, Server},
    roster::{Command, Drained, Face, MAX_COMMANDS, Phase, Present},
    stats::Stats,
    tls::Tls,
    version::Version,
    watched::Watched,
};

/// How long the keys of a service may take to leave etcd. Those that do not go with their lease.
const DELETE_TIMEOUT: Duration = Duration::from_secs(6);
/// The pause between two questions to a new version.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// A service whose listener is bound.
pub(crate) struct Service {
    spec: Spec,
    /// What others see of it.
    present: watch::Sender<Present>,
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    engine: Engine,
    loaded: Loaded,
    guest: Arc<Guest>,
    node: Option<ServerNode>,
    listener: Option<TcpListener>,
    bound: SocketAddr,
    tls: Option<Arc<Tls>>,
    /// The version that requests go to.
    version: Option<Version>,
    /// Where requests find it.
    doors: Option<watch::Sender<Arc<Door>>>,
    /// Former versions that still answer.
    retiring: TaskTracker,
    server: Option<Server>,
    checkup: Option<Checkup>,
    watched: Option<Watched>,
    /// Whether clients may have found it in etcd.
    announced: bool,
}

impl Service {
    /// Binds the listener. Nothing of the component runs yet.
    pub(crate) fn bind(spec: Spec, loaded: Loaded, engine: &Engine, registrar: &Registrar) -> Result<Self, Failure> {
        let tls = spec.tls.clone().map(Tls::open).transpose();
        let tls = tls.map_err(|said| Failure::usage(format!("{}: tls: {said}", spec.name)))?.map(Arc::new);
        let failed = |error| Failure::other(format!("{}: cannot listen on {}: {error}", spec.name, spec.listen));
        let listener = http::bind(spec.listen).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let advertised = spec.advertised(bound);
        let mut own: Vec<_> = advertised.iter().cloned().collect();
        // Where it listens is its address, too, unless that is a wildcard.
        own.extend(bound.to_string().parse().ok());
        let node = advertised.map(|addr| ServerNode {
            name: spec.name.clone(),
            addr,
            version: spec.version.clone(),
            weight: None,
            metadata: spec.metadata.clone(),
        });
        let guest = Arc::new(Guest::new(&spec, &own, registrar.clone(), Arc::new(Stats::new())));
        let present = Present { phase: Phase::Starting, why: None, guest: Arc::clone(&guest) };
        Ok(Self {
            spec,
            present: watch::Sender::new(present),
            commands: mpsc::channel(MAX_COMMANDS),
            engine: engine.clone(),
            loaded,
            guest,
            node,
            listener: Some(listener),
            bound,
            tls,
            version: None,
            doors: None,
            retiring: TaskTracker::new(),
            server: None,
            checkup: None,
            watched: None,
            announced: false,
        })
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn url(&self) -> String {
        url(self.bound, self.tls.is_some())
    }

    /// The service as others see it, for as long as it is there.
    pub(crate) fn face(&self) -> Face {
        Face {
            name: self.spec.name.clone(),
            version: self.spec.version.clone(),
            listen: self.bound.to_string(),
            url: self.url(),
            component: self.spec.component.display().to_string(),
            register: self.spec.register,
            stats: Arc::clone(&self.guest.stats),
            present: self.present.subscribe(),
            commands: self.commands.0.clone(),
        }
    }

    fn enter(&self, phase: Phase, why: Option<&str>) {
        self.present.send_modify(|present| (present.phase, present.why) = (phase, why.map(Arc::from)));
    }

    fn phase(&self) -> Phase {
        self.present.borrow().phase
    }

    /// Starts the component, serves it, and registers it where that is the host's task.
    ///
    /// After a failure the caller owes a `drain`, which takes back what was registered.
    pub(crate) async fn start(&mut self) -> Result<(), Failure> {
        let version = Version::start(&self.spec, &self.engine, &self.loaded, Arc::clone(&self.guest)).await?;
        let doors = watch::Sender::new(Arc::clone(&version.door));
        let tls = self.tls.clone();
        self.server =
            self.listener.take().map(|listener| Server::start(listener, doors.subscribe(), tls, &self.spec.limits));
        self.checkup = self.checked(&doors);
        (self.version, self.doors) = (Some(version), Some(doors));
        if self.spec.follow {
            self.watched = Some(Watched::new(&self.spec.component).await);
        }
        let is_well = match (self.spec.register, &self.spec.health, &mut self.checkup) {
            // Announced once it answers, and until then not.
            (Register::Host, Some(_), Some(checkup)) => {
                matches!(timeout(self.spec.limits.start_timeout, checkup.next()).await, Ok(Verdict::Well))
            }
            _ => true,
        };
        if !is_well {
            let why = "its health check was not answered well yet";
            self.enter(Phase::Withdrawn, Some(why));
            tracing::warn!(service = %self.spec.name, url = self.url(), "not announced: {why}");
            return Ok(());
        }
        if self.spec.register == Register::Host {
            self.register().await?;
        }
        self.enter(Phase::Serving, None);
        tracing::info!(service = %self.spec.name, url = self.url(), "serving");
        Ok(())
    }

    /// What is not in etcd cannot be taken out of it.
    fn checked(&self, doors: &watch::Sender<Arc<Door>>) -> Option<Checkup> {
        let trusted = self.spec.register == Register::Component;
        let (health, stats) = (self.spec.health.clone(), Arc::clone(&self.guest.stats));
        let checkup = || Checkup::new(health, self.bound.to_string(), doors.subscribe(), stats, trusted);
        (self.spec.register != Register::Off).then(checkup)
    }

    async fn register(&self) -> Result<(), Failure> {
        let node = self.node.clone().ok_or_else(|| self.failed("there is no address to publish"))?;
        let deadline = self.spec.limits.start_timeout;
        match timeout(deadline, self.guest.registry.register_node(node)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(format!("cannot be registered: {error}"))),
            Err(_) => Err(self.failed(format!("could not be registered within {deadline:?}"))),
        }
    }

    fn failed(&self, said: impl Display) -> Failure {
        Failure::other(format!("{}: {said}", self.spec.name))
    }

    /// Does what it is told and what its health asks for while it is served, for ever. When this is dropped halfway the
    /// caller's `drain` goes on.
    pub(crate) async fn live(&mut self) -> Infallible {
        loop {
            let verdict = async {
                match &mut self.checkup {
                    Some(checkup) => checkup.next().await,
                    None => pending().await,
                }
            };
            let changed = async {
                match &mut self.watched {
                    Some(watched) => watched.changed().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                command = self.commands.1.recv() => match command.expect("it holds a sender itself") {
                    // Whoever asked may have gone away.
                    Command::Drain(reply) => {
                        tracing::info!(service = %self.spec.name, "draining, as asked");
                        let _ = reply.send(self.drain().await);
                    }
                    Command::Reload(reply) => {
                        let _ = reply.send(self.reload().await);
                    }
                },
                verdict = verdict => match verdict {
                    Verdict::Ill(why) => self.withdraw(&why).await,
                    Verdict::Well => self.announce().await,
                },
                () = changed => {
                    let _ = self.reload().await; // The log has it.
                }
            }
        }
    }

    /// Takes it out of etcd, until it is well again. Who comes all the same is answered.
    async fn withdraw(&self, why: &str) {
        tracing::warn!(service = %self.spec.name, "withdrawn: {why}");
        self.enter(Phase::Withdrawn, Some(why));
        match timeout(DELETE_TIMEOUT, self.guest.registry.withdraw()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(service = %self.spec.name, "a key may stay for a while: {error}"),
            Err(_) => tracing::warn!(service = %self.spec.name, "a key may stay for a while: etcd does not answer"),
        }
    }

    /// Brings back what was withdrawn, or registers for the first time what was not well until now.
    async fn announce(&mut self) {
        let deadline = self.spec.limits.start_timeout;
        let restored = async {
            let registry = &self.guest.registry;
            registry.restore().await.map_err(|error| error.to_string())?;
            match self.spec.register == Register::Host && registry.registrations().is_empty() {
                true => self.register().await.map_err(|failure| failure.sentence()),
                false => Ok(()),
            }
        };
        let restored = timeout(deadline, restored).await;
        match restored.unwrap_or_else(|_| Err(format!("etcd does not answer within {deadline:?}"))) {
            Ok(()) => {
                self.enter(Phase::Serving, None);
                tracing::info!(service = %self.spec.name, url = self.url(), "announced");
            }
            Err(said) => {
                tracing::warn!(service = %self.spec.name, "cannot be announced yet: {said}");
                if let Some(checkup) = &mut self.checkup {
                    checkup.again();
                }
            }
        }
    }

    /// Reads the component's file again, starts what is in it beside what is served, and moves the requests there. The
    /// keys stay. Whatever goes wrong before the move leaves everything as it was.
    async fn reload(&mut self) -> Result<(), Failure> {
        let outcome = self.replace().await;
        match &outcome {
            Ok(()) => tracing::info!(service = %self.spec.name, "reloaded"),
            Err(failure) => {
                tracing::error!(service = %self.spec.name, "not reloaded, the former version serves on: {}", failure.sentence());
            }
        }
        outcome
    }

    async fn replace(&mut self) -> Result<(), Failure> {
        if !matches!(self.phase(), Phase::Serving | Phase::Withdrawn) {
            return Err(self.failed(format!("it is {}", self.phase())));
        }
        // One at a time: each holds instances.
        self.retiring.close();
        self.retiring.wait().await;
        self.retiring.reopen();

        let (engine, path) = (self.engine.clone(), self.spec.component.clone());
        let precompiled = self.spec.precompiled;
        let compiling = self.retiring.spawn_blocking(move || Loaded::load(&engine, &path, precompiled));
        let loaded = compiling.await.map_err(|_| self.failed("the new version could not be compiled"))??;
        loaded.check_register(&self.spec.component, self.spec.register)?;
        let guest = Arc::new(self.guest.successor());
        let started = Version::start(&self.spec, &self.engine, &loaded, Arc::clone(&guest)).await;
        let proven = match started {
            Ok(version) => self.proven(version).await,
            Err(failure) => Err(failure),
        };
        let version = match proven {
            Ok(version) => version,
            Err(failure) => {
                self.give_back(&guest).await;
                return Err(failure);
            }
        };
        self.loaded = loaded;
        self.guest = guest;
        if let Some(doors) = &self.doors {
            doors.send_replace(Arc::clone(&version.door));
        }
        self.present.send_modify(|present| present.guest = Arc::clone(&self.guest));
        if let Some(former) = self.version.replace(version) {
            self.retiring.spawn(former.retire(self.spec.clone()));
        }
        if self.spec.register == Register::Host {
            self.guest.registry.inherit();
        }
        match timeout(DELETE_TIMEOUT, self.guest.registry.take_over()).await {
            Ok(Ok(())) => {}
            _ => tracing::warn!(service = %self.spec.name, "a key of the former version may stay for a while"),
        }
        if let Some(checkup) = &mut self.checkup {
            checkup.afresh();
        }
        Ok(())
    }

    /// A version that is asked how it is before requests go to it, where that can be asked.
    async fn proven(&self, mut version: Version) -> Result<Version, Failure> {
        let Some(health) = &self.spec.health else { return Ok(version) };
        let answered = self.answers(&version, health).await;
        match answered {
            Ok(()) => Ok(version),
            Err(said) => {
                version.stop(&self.spec).await;
                Err(self.failed(format!("the new version's health check fails: {said}")))
            }
        }
    }

    async fn answers(&self, version: &Version, health: &Health) -> Result<(), String> {
        let (until, authority) = (Instant::now() + self.spec.limits.start_timeout, self.bound.to_string());
        loop {
            match health::probe(&version.door, Some(health), &authority).await {
                Err(_) if Instant::now() < until => sleep(PROBE_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// Undoes what a version registered that is not served.
    async fn give_back(&self, guest: &Guest) {
        guest.ended.cancel();
        let undone = timeout(DELETE_TIMEOUT, guest.registry.give_back(&self.guest.registry)).await;
        if !matches!(undone, Ok(Ok(()))) {
            tracing::warn!(service = %self.spec.name, "a key of the new version may stay for a while");
        }
        if self.guest.registry.is_withdrawn() {
            // What the new version had brought back goes again.
            drop(timeout(DELETE_TIMEOUT, self.guest.registry.withdraw()).await);
        }
    }

    /// Ends the service in order, from whatever point it had reached, an earlier `drain` included. Every step has a
    /// deadline, and none of them keeps the next one from happening.
    pub(crate) async fn drain(&mut self) -> Drained {
        let name = self.spec.name.clone();
        let mut drained = Drained { keys_gone: true, all_answered: true };
        if self.phase() == Phase::Drained {
            return drained;
        }
        self.enter(Phase::Draining, None);
        (self.checkup, self.watched) = (None, None);
        self.announced |= !self.guest.registry.registrations().is_empty();
        let deleted = timeout(DELETE_TIMEOUT, self.guest.registry.stop_all()).await;
        drained.keys_gone = matches!(deleted, Ok(Ok(())));
        match deleted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(service = %name, "a key may stay until its lease ends: {error}"),
            Err(_) => tracing::warn!(service = %name, "a key may stay until its lease ends: etcd does not answer"),
        }
        // Let go of where nobody was served yet.
        self.listener = None;
        if let Some(server) = &self.server {
            if self.announced {
                // Who watches etcd hears of it now, and until then is answered as ever.
                server.leave();
                sleep(self.spec.limits.settle_time).await;
            }
            let deadline = self.spec.limits.drain_timeout;
            drained.all_answered = server.close(deadline).await;
            if !drained.all_answered {
                tracing::warn!(service = %name, "requests were cut off after {deadline:?}");
            }
        }
        self.retiring.close();
        // Its requests were those of the server, so what is left is the component's own end.
        let _ = timeout(self.spec.limits.stop_timeout, self.retiring.wait()).await;
        match &mut self.version {
            Some(version) => version.stop(&self.spec).await,
            None => self.guest.ended.cancel(),
        }
        if self.server.take().is_some() {
            tracing::info!(service = %name, "ended");
        }
        self.enter(Phase::Drained, None);
        drained
    }
}
