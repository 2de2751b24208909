//! One service, in the order it is lived: bound, started, served, drained.

use std::{convert::Infallible, fmt::Display, net::SocketAddr, sync::Arc, time::Duration};

use leasehold::{Registrar, ServerNode};
use leasehold_wasmtime::Lifecycle;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use wasmtime::{Store, component::Instance};

use crate::{
    cli::url,
    component::{Loaded, cause},
    config::{Register, Spec},
    door::Door,
    engine::Engine,
    failure::{Failure, one_line},
    guest::{Guest, Host},
    http::{self, Server},
    instances::Instances,
    roster::{Command, Drained, Face, MAX_COMMANDS, Phase, Present},
    stats::Stats,
};

/// How long the keys of a service may take to leave etcd. Those that do not go with their lease.
const DELETE_TIMEOUT: Duration = Duration::from_secs(6);

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
    /// The instance that lives as long as the service, if the component asks for one.
    life: Option<Life>,
    server: Option<Server>,
    /// Whether clients may have found it in etcd.
    announced: bool,
}

/// The long-lived instance.
struct Life {
    store: Store<Host>,
    instance: Instance,
    lifecycle: Lifecycle,
}

impl Service {
    /// Binds the listener. Nothing of the component runs yet.
    pub(crate) fn bind(spec: Spec, loaded: Loaded, engine: &Engine, registrar: &Registrar) -> Result<Self, Failure> {
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
        Ok(Self {
            spec,
            present: watch::Sender::new(Present { phase: Phase::Starting, guest: Arc::clone(&guest) }),
            commands: mpsc::channel(MAX_COMMANDS),
            engine: engine.clone(),
            loaded,
            guest,
            node,
            listener: Some(listener),
            bound,
            life: None,
            server: None,
            announced: false,
        })
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn url(&self) -> String {
        url(self.bound)
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

    fn enter(&self, phase: Phase) {
        self.present.send_modify(|present| present.phase = phase);
    }

    /// Starts the component, serves it, and registers it where that is the host's task.
    ///
    /// After a failure the caller owes a `drain`, which takes back what was registered.
    pub(crate) async fn start(&mut self) -> Result<(), Failure> {
        let path = self.spec.component.clone();
        let proxy = self.loaded.proxy(&path)?;
        let lifecycle = Lifecycle::of(&self.loaded.pre);
        if let Some(lifecycle) =
            lifecycle.map_err(|error| Failure::usage(format!("{}: {}", path.display(), cause(&error))))?
        {
            let deadline = self.spec.limits.start_timeout;
            // A component that computes for ever yields at every tick, and is dropped here.
            let started = timeout(deadline, Life::start(&self.engine, &self.guest, &self.loaded, lifecycle)).await;
            let outcome = started.map_err(|_| self.failed(format!("lifecycle.start took longer than {deadline:?}")))?;
            self.life = Some(outcome.map_err(|said| self.failed(said))?);
        }
        self.serve(proxy);
        if self.spec.register == Register::Host {
            self.register().await?;
        }
        self.enter(Phase::Serving);
        tracing::info!(service = %self.spec.name, url = self.url(), "serving");
        Ok(())
    }

    /// Does what it is told while it is served, for ever. When this is dropped halfway the caller's `drain` goes on.
    pub(crate) async fn live(&mut self) -> Infallible {
        loop {
            match self.commands.1.recv().await.expect("it holds a sender itself") {
                Command::Drain(reply) => {
                    tracing::info!(service = %self.spec.name, "draining, as asked");
                    let drained = self.drain().await;
                    // Whoever asked may have gone away.
                    let _ = reply.send(drained);
                }
            }
        }
    }

    fn serve(&mut self, pre: wasmtime_wasi_http::handler::ProxyPre<Host>) {
        let instances = Instances {
            name: self.spec.name.clone(),
            engine: self.engine.clone(),
            pre,
            guest: Arc::clone(&self.guest),
            request_timeout: self.spec.limits.request_timeout,
        };
        let door = Door::new(self.spec.name.clone(), instances, &self.spec.limits);
        self.server = self.listener.take().map(|listener| Server::start(listener, Arc::new(door)));
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

    /// Ends the service in order, from whatever point it had reached, an earlier `drain` included. Every step has a
    /// deadline, and none of them keeps the next one from happening.
    pub(crate) async fn drain(&mut self) -> Drained {
        let name = self.spec.name.clone();
        let mut drained = Drained { keys_gone: true, all_answered: true };
        if self.present.borrow().phase == Phase::Drained {
            return drained;
        }
        self.enter(Phase::Draining);
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
        if let Some(life) = self.life.take() {
            let deadline = self.spec.limits.stop_timeout;
            match timeout(deadline, life.stop()).await {
                Ok(Ok(())) => {}
                Ok(Err(said)) => tracing::warn!(service = %name, "{said}"),
                Err(_) => tracing::warn!(service = %name, "lifecycle.stop took longer than {deadline:?}"),
            }
        }
        self.guest.ended.cancel();
        if self.server.take().is_some() {
            tracing::info!(service = %name, "ended");
        }
        self.enter(Phase::Drained);
        drained
    }
}

impl Life {
    async fn start(engine: &Engine, guest: &Guest, loaded: &Loaded, lifecycle: Lifecycle) -> Result<Self, String> {
        let mut store = engine.store(guest.host_for_life());
        let instance = loaded.pre.instantiate_async(&mut store).await;
        let instance = instance.map_err(|error| format!("the component cannot be instantiated: {}", cause(&error)))?;
        match lifecycle.start(&mut store, &instance).await {
            Ok(Ok(())) => Ok(Self { store, instance, lifecycle }),
            Ok(Err(said)) => Err(format!("lifecycle.start failed: {}", one_line(&said))),
            Err(error) => Err(format!("lifecycle.start trapped: {}", cause(&error))),
        }
    }

    async fn stop(mut self) -> Result<(), String> {
        let stopped = self.lifecycle.stop(&mut self.store, &self.instance).await;
        stopped.map_err(|error| format!("lifecycle.stop trapped: {}", cause(&error)))
    }
}
