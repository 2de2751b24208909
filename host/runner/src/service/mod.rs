//! One service, in the order it is lived: bound, started, served, drained.

pub(crate) mod file_watcher;
pub(crate) mod handle;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod lifecycle;
pub(crate) mod panic_threshold;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod reload;
pub(crate) mod revision;
pub(crate) mod supervisor;

use std::{convert::Infallible, fmt::Display, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use leasehold::{Registrar, ServerNode};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    config::{DELETE_TIMEOUT, Register, Spec},
    error::Failure,
    outbound::reserved::Reserved,
    service::{
        file_watcher::Watched,
        handle::{Asker, Drained, Phase, Present},
        health::{Asked, Checkup, Verdict},
        http::Handler,
        panic_threshold::PanicThreshold,
        program::{Event, Program},
        reload::{Aside, Made, Reload, give_back},
        revision::Version,
    },
    telemetry::{
        otlp::Traces,
        service_metrics::{Hit, Stats},
    },
    wasm::{
        component::{Loaded, Way},
        context::Guest,
        engine::Engine,
    },
};

/// A service whose address is known to be free for it.
pub(crate) struct Service {
    spec: Spec,
    /// What others see of it.
    present: watch::Sender<Present>,
    /// The reload that is under way.
    reload: Option<Reload>,
    engine: Engine,
    loaded: Loaded,
    guest: Arc<Guest>,
    registrar: Registrar,
    node: Option<ServerNode>,
    bound: SocketAddr,
    work: Work,
    checkup: Option<Checkup>,
    watched: Option<Watched>,
    /// Whether clients may have found it in etcd.
    announced: bool,
    /// Whether the component's `lifecycle` has been started, where it is.
    begun: bool,
}

/// Queues of commands to one service.
pub(crate) struct Commands {
    pub(crate) drains: mpsc::Receiver<Asker<Drained>>,
    pub(crate) reloads: mpsc::Receiver<Asker<Result<(), Failure>>>,
}

/// Status and metrics of a service, which outlive each attempt to start it.
#[derive(Clone)]
pub(crate) struct StatusCell {
    pub(crate) present: watch::Sender<Present>,
    pub(crate) stats: Arc<Stats>,
}

/// Who accepts the connections.
enum Work {
    /// The host, and calls the component with each request.
    Handler(Handler),
    /// The component.
    Program(Program),
}

impl Service {
    /// Binds the listener, or looks whether the component can. Nothing of the component runs yet.
    pub(crate) fn bind(
        spec: Spec,
        loaded: Loaded,
        engine: &Engine,
        registrar: &Registrar,
        traces: Option<&Traces>,
        reserved: Reserved,
        status: StatusCell,
    ) -> Result<Self, Failure> {
        let (work, bound) = match loaded.way(&spec.component)? {
            Way::Handler(_) => {
                let handler = Handler::bind(&spec)?;
                let bound = handler.bound();
                (Work::Handler(handler), bound)
            }
            Way::Program(_) => (Work::Program(Program::bind(&spec)?), spec.listen),
        };
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
        let tracer = traces.map(|traces| traces.tracer(&spec, bound));
        let guest = Arc::new(Guest::new(&spec, &own, registrar.clone(), tracer, reserved, status.stats));
        let service = Self {
            spec,
            present: status.present,
            reload: None,
            engine: engine.clone(),
            loaded,
            guest,
            registrar: registrar.clone(),
            node,
            bound,
            work,
            checkup: None,
            watched: None,
            announced: false,
            begun: false,
        };
        let (listen, url) = (Arc::from(bound.to_string()), Arc::from(service.url()));
        service.present.send_modify(|present| {
            (present.listen, present.url, present.guest) = (listen, url, Some(Arc::clone(&service.guest)));
        });
        Ok(service)
    }

    fn url(&self) -> String {
        match self.work {
            Work::Handler(_) => url(self.bound, self.spec.tls.is_some()),
            // What it speaks only the component knows.
            Work::Program(_) => format!("tcp://{}/", self.bound),
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
        let (spec, engine, loaded, guest) = (&self.spec, &self.engine, &self.loaded, &self.guest);
        match &mut self.work {
            Work::Handler(handler) => handler.start(spec, engine, loaded, guest).await?,
            Work::Program(program) => program.start(spec, engine, loaded, guest).await?,
        }
        self.checkup = self.checked();
        if self.spec.follow {
            self.watched = Some(Watched::new(&self.spec.component).await);
        }
        self.begun = !self.answers_first();
        // Announced once it answers, and until then not.
        let is_well = match &mut self.checkup {
            Some(checkup) if !checkup.is_well() => {
                matches!(timeout(self.spec.limits.start_timeout, checkup.next()).await, Ok(Verdict::Well))
            }
            _ => true,
        };
        if !is_well {
            let last = self.checkup.as_ref().and_then(|checkup| checkup.last_failure.as_deref());
            let last = last.map_or_else(String::new, |last| format!(": {last}"));
            let why = format!("its health check was not answered well yet{last}");
            self.enter(Phase::Withdrawn, Some(&why));
            tracing::warn!(service = %self.spec.name, url = self.url(), "not announced: {why}");
            return Ok(());
        }
        match &mut self.work {
            Work::Handler(handler) if !self.begun => handler.begin(&self.spec, &self.engine, &self.loaded).await?,
            _ => {}
        }
        self.begun = true;
        if self.spec.register == Register::Host {
            register(&self.spec, self.node.clone(), &self.guest).await?;
        }
        self.enter(Phase::Serving, None);
        tracing::info!(service = %self.spec.name, url = self.url(), "serving");
        Ok(())
    }

    /// Whether the component is to answer its health check before it is started. A program cannot: it registers what it
    /// likes once it runs.
    fn answers_first(&self) -> bool {
        matches!(self.work, Work::Handler(_)) && self.spec.answers_first()
    }

    /// What is not in etcd cannot be taken out of it.
    fn checked(&self) -> Option<Checkup> {
        let asked = match &self.work {
            Work::Handler(handler) => Asked::Door(handler.doors()?, self.bound.to_string()),
            Work::Program(_) => Asked::Address(self.spec.reachable()),
        };
        let trusted = self.spec.register == Register::Component && !self.answers_first();
        let registry = self.guest.registry.clone();
        let threshold = PanicThreshold::new(self.spec.quarantine, self.registrar.clone(), registry);
        let stats = Arc::clone(&self.guest.stats);
        let checkup = || Checkup::new(self.spec.health.clone(), asked, stats, threshold, trusted);
        (self.spec.register != Register::Off).then(checkup)
    }

    fn failed(&self, said: impl Display) -> Failure {
        Failure::other(format!("{}: {said}", self.spec.name))
    }

    /// Does what it is told and what its health asks for while it is served, for ever. When this is dropped halfway the
    /// caller's `drain` goes on.
    pub(crate) async fn live(&mut self, commands: &mut Commands) -> Infallible {
        let Commands { drains, reloads } = commands;
        loop {
            // Whatever it does at the moment gives way.
            let reply = tokio::select! {
                Some(reply) = drains.recv() => reply,
                never = self.serve(reloads) => match never {},
            };
            tracing::info!(service = %self.spec.name, "draining, as asked");
            let _ = reply.send(self.drain().await); // Whoever asked may have gone away.
        }
    }

    async fn serve(&mut self, reloads: &mut mpsc::Receiver<Asker<Result<(), Failure>>>) -> Infallible {
        loop {
            // Whoever else may answer at the address of a program that is down is not asked.
            let is_up = !matches!(&self.work, Work::Program(program) if !program.is_up());
            let is_free = self.reload.is_none();
            let verdict = async {
                match &mut self.checkup {
                    Some(checkup) if is_up => checkup.next().await,
                    _ => pending().await,
                }
            };
            let event = async {
                match &mut self.work {
                    Work::Handler(_) => pending().await,
                    Work::Program(program) => program.next().await,
                }
            };
            let changed = async {
                match &mut self.watched {
                    Some(watched) if is_free => watched.changed().await,
                    _ => pending().await,
                }
            };
            let made = async {
                match &mut self.reload {
                    Some(reload) => reload.made().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                asker = reloads.recv(), if is_free => self.reload(asker),
                () = changed => self.reload(None),
                made = made => self.go_on(made).await,
                verdict = verdict => match verdict {
                    Verdict::Ill(why) => self.withdraw(&why).await,
                    Verdict::Well => self.announce().await,
                },
                event = event => match event {
                    Event::Fell(why, pause) => self.fell(&why, pause).await,
                    Event::Due => self.rise().await,
                },
            }
        }
    }

    /// Takes it out of etcd, until it is well again. Who comes all the same is answered.
    async fn withdraw(&mut self, why: &str) {
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
        if !self.begun {
            // Started like a next version, beside what answers.
            let loaded = Some(self.loaded.clone());
            if self.reload.is_none() {
                self.reload = Some(Reload::begin(None, self.aside(), loaded));
            }
            return;
        }
        let deadline = self.spec.limits.start_timeout;
        let (spec, node, guest) = (&self.spec, self.node.clone(), &self.guest);
        let restored = async {
            guest.registry.restore().await.map_err(|error| error.to_string())?;
            match spec.register == Register::Host && guest.registry.registrations().is_empty() {
                true => register(spec, node, guest).await.map_err(|failure| failure.sentence()),
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
                self.ask_again();
            }
        }
    }

    /// The program has ended by itself. What is registered leaves etcd before anything else happens.
    async fn fell(&mut self, why: &str, pause: Duration) {
        self.guest.stats.hit(Hit::Fell);
        self.part(&format!("{why}; it is run again in {pause:.1?}")).await;
    }

    /// The pause of a program that fell is over.
    async fn rise(&mut self) {
        let loaded = self.loaded.clone();
        match self.run(&loaded).await {
            Ok(()) => tracing::info!(service = %self.spec.name, "runs again"),
            Err(failure) => tracing::warn!("{}; it is tried again", failure.sentence()),
        }
    }

    /// Out of etcd until it has been asked, and answers well.
    async fn part(&mut self, why: &str) {
        self.withdraw(why).await;
        self.ask_again();
    }

    fn ask_again(&mut self) {
        if let Some(checkup) = &mut self.checkup {
            checkup.again();
        }
    }

    /// Runs a program as its own successor. What it registered itself ended with the run that did so.
    async fn run(&mut self, loaded: &Loaded) -> Result<(), Failure> {
        let guest = Arc::new(self.guest.successor());
        if self.spec.register == Register::Host {
            guest.registry.inherit();
        }
        take_over(&self.spec, &guest).await;
        if let Work::Program(program) = &mut self.work
            && let Err(failure) = program.start(&self.spec, &self.engine, loaded, &guest).await
        {
            give_back(&self.spec, &guest, &self.guest).await;
            return Err(failure);
        }
        self.adopt(&guest, false);
        if self.checkup.is_none() {
            self.announce().await;
        }
        Ok(())
    }

    /// Reads the component's file again, to go on with what is in it.
    fn reload(&mut self, asker: Option<Asker<Result<(), Failure>>>) {
        let phase = self.phase();
        let reload = Reload::begin(asker, self.aside(), None);
        match phase {
            Phase::Serving | Phase::Withdrawn => self.reload = Some(reload),
            _ => reload.end(Err(self.failed(format!("it is {phase}")))),
        }
    }

    fn aside(&self) -> Aside {
        let handler = match &self.work {
            Work::Handler(handler) => Some((self.bound.to_string(), handler.retiring())),
            Work::Program(_) => None,
        };
        Aside { spec: self.spec.clone(), engine: self.engine.clone(), former: Arc::clone(&self.guest), handler }
    }

    /// A version is there to go on with, or is not.
    async fn go_on(&mut self, made: Result<Made, Failure>) {
        let outcome = match made {
            Ok(Made { loaded, version: Some(version) }) => {
                self.succeed(loaded, version).await;
                Ok(())
            }
            Ok(Made { loaded, version: None }) => self.swap(loaded).await,
            Err(failure) => Err(failure),
        };
        match &outcome {
            Ok(()) => tracing::info!(service = %self.spec.name, "reloaded"),
            Err(failure) if self.begun => {
                tracing::error!(service = %self.spec.name, "not reloaded, the former version serves on: {}", failure.sentence());
            }
            Err(failure) => {
                tracing::warn!(service = %self.spec.name, "not started yet: {}", failure.sentence());
                self.ask_again();
            }
        }
        if let Some(reload) = self.reload.take() {
            reload.end(outcome);
        }
    }

    /// Moves the requests to a new version. The keys stay.
    async fn succeed(&mut self, loaded: Loaded, version: Version) {
        let guest = Arc::clone(&version.guest);
        if let Work::Handler(handler) = &mut self.work {
            handler.replace(version, &self.spec);
        }
        (self.loaded, self.begun) = (loaded, true);
        let proven = self.spec.health.is_some();
        self.adopt(&guest, proven);
        if self.spec.register == Register::Host {
            guest.registry.inherit();
        }
        take_over(&self.spec, &guest).await;
        if proven && self.phase() == Phase::Withdrawn {
            self.announce().await;
        }
    }

    /// Ends a program, out of etcd, and runs its new version in its place: two cannot listen at one address. One that does
    /// not start is followed by the former one.
    async fn swap(&mut self, loaded: Loaded) -> Result<(), Failure> {
        let found = !self.guest.registry.registrations().is_empty();
        self.part("it is replaced").await;
        self.work.stop(&self.spec, found).await;
        self.run(&loaded).await?;
        self.loaded = loaded;
        Ok(())
    }

    /// What is served from now on.
    fn adopt(&mut self, guest: &Arc<Guest>, proven: bool) {
        self.guest = Arc::clone(guest);
        self.present.send_modify(|present| present.guest = Some(Arc::clone(guest)));
        if let Some(checkup) = &mut self.checkup {
            checkup.afresh(proven);
        }
    }

    /// Ends the service in order, from whatever point it had reached, an earlier `drain` included. Every step has a
    /// deadline, and none of them keeps the next one from happening.
    pub(crate) async fn drain(&mut self) -> Drained {
        if self.phase() == Phase::Drained {
            return Drained { keys_gone: true, all_answered: true };
        }
        let begun = !matches!(self.phase(), Phase::Starting | Phase::Failed);
        self.enter(Phase::Draining, None);
        let drained = self.end().await;
        self.guest.output.report_rest();
        if begun {
            tracing::info!(service = %self.spec.name, "ended");
        }
        self.enter(Phase::Drained, None);
        drained
    }

    /// Takes back what the service has registered, and ends it, from whatever point it had reached.
    pub(crate) async fn end(&mut self) -> Drained {
        let name = self.spec.name.clone();
        (self.checkup, self.watched) = (None, None);
        if let Some(reload) = self.reload.take() {
            reload.end(Err(self.failed("it is drained")));
        }
        self.announced |= !self.guest.registry.registrations().is_empty();
        let deleted = timeout(DELETE_TIMEOUT, self.guest.registry.stop_all()).await;
        let keys_gone = matches!(deleted, Ok(Ok(())));
        match deleted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(service = %name, "a key may stay until its lease ends: {error}"),
            Err(_) => tracing::warn!(service = %name, "a key may stay until its lease ends: etcd does not answer"),
        }
        let all_answered = self.work.stop(&self.spec, self.announced).await;
        self.guest.ended.cancel();
        Drained { keys_gone, all_answered }
    }
}

/// Registers a node on behalf of a component that does not.
async fn register(spec: &Spec, node: Option<ServerNode>, guest: &Guest) -> Result<(), Failure> {
    let failed = |said: String| Failure::other(format!("{}: {said}", spec.name));
    let node = node.ok_or_else(|| failed("there is no address to publish".to_owned()))?;
    let deadline = spec.limits.start_timeout;
    match timeout(deadline, guest.registry.register_node(node)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(format!("cannot be registered: {error}"))),
        Err(_) => Err(failed(format!("could not be registered within {deadline:?}"))),
    }
}

/// Deletes the keys of former revisions that this one did not register.
async fn take_over(spec: &Spec, guest: &Guest) {
    if !matches!(timeout(DELETE_TIMEOUT, guest.registry.take_over()).await, Ok(Ok(()))) {
        tracing::warn!(service = %spec.name, "a key of the former version may stay for a while");
    }
}

impl Work {
    /// Ends it in order. Says whether nothing was cut off.
    async fn stop(&mut self, spec: &Spec, announced: bool) -> bool {
        match self {
            Self::Handler(handler) => handler.stop(spec, announced).await,
            Self::Program(program) => program.stop(spec, announced).await,
        }
    }
}

/// The URL at which a listener answers.
fn url(bound: SocketAddr, secured: bool) -> String {
    let scheme = if secured { "https" } else { "http" };
    format!("{scheme}://{bound}/")
}
