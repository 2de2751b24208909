//! A service while it is served: everything that can happen to it, and the handler of each event.

use std::{
    convert::Infallible,
    future::pending,
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    config::{Register, Spec},
    error::Failure,
    service::{
        Commands, Service, State, Workload,
        component_watcher::ComponentWatcher,
        handle::{Drained, NextRevision, ReloadCommand, Reply, RevisionInfo},
        health::Verdict,
        http,
        identity::Identity,
        keys,
        program::ProgramEvent,
        reload::{Built, Reconfiguration, Reload, RevisionBuilder},
        revision::Revision,
    },
    telemetry::service_metrics::Incident,
    wasm::{component::Loaded, context::ServiceContext, engine::Engine},
};

/// Queue of resume commands.
type Resumes = mpsc::Receiver<Reply<Result<(), Failure>>>;
/// Queue of reload commands.
type Reloads = mpsc::Receiver<ReloadCommand>;

/// Everything that can happen to a service while it is served.
enum Event {
    /// A resume command, of a service that is served already.
    ResumeRequested(Reply<Result<(), Failure>>),
    /// A reload command; `None` for a change of the component file.
    ReloadRequested(Option<ReloadCommand>),
    ReloadReady(Result<Box<Built>, Failure>),
    Healthy,
    Unhealthy(String),
    /// The program has ended by itself, with this reason, and runs again after this pause.
    Exited(String, Duration),
    RestartDue,
}

impl Service {
    /// Serves until a drain command, or until the future is dropped, which may happen at any time; the caller's
    /// [`drain`](Self::drain) goes on from there.
    pub(crate) async fn live(&mut self, commands: &mut Commands) -> Reply<Drained> {
        let Commands { drains, resumes, reloads } = commands;
        // A drain interrupts whatever is in progress.
        tokio::select! {
            Some(reply) = drains.recv() => reply,
            never = self.serve(resumes, reloads) => match never {},
        }
    }

    async fn serve(&mut self, resumes: &mut Resumes, reloads: &mut Reloads) -> Infallible {
        loop {
            match self.next(resumes, reloads).await {
                Event::ResumeRequested(reply) => drop(reply.send(Ok(()))), // The client may have gone away.
                Event::ReloadRequested(command) => self.on_reload_requested(command),
                Event::ReloadReady(built) => self.on_reload_ready(built.map(|built| *built)).await,
                Event::Healthy => self.on_healthy().await,
                // The keys are those of a former host, which serves until this process is the host.
                Event::Unhealthy(_) if !self.is_host.is_cancelled() => self.probe_again(),
                Event::Unhealthy(why) => self.withdraw(&why).await,
                Event::Exited(why, pause) => self.on_exit(&why, pause).await,
                Event::RestartDue => self.on_restart_due().await,
            }
        }
    }

    /// Waits for the next event. Dropped halfway, it loses none.
    async fn next(&mut self, resumes: &mut Resumes, reloads: &mut Reloads) -> Event {
        // A program that is down is not probed: another process may answer at its address.
        let is_up = !matches!(&self.workload, Workload::Program(program) if !program.is_up());
        let is_free = self.reload.is_none();
        let verdict = async {
            match &mut self.monitor {
                Some(monitor) if is_up => monitor.next().await,
                _ => pending().await,
            }
        };
        let program = async {
            match &mut self.workload {
                Workload::Handler(_) => pending().await,
                Workload::Program(program) => program.next().await,
            }
        };
        let changed = async {
            match &mut self.file {
                Some(file) if is_free => file.changed(self.loaded.manifest.as_deref()).await,
                _ => pending().await,
            }
        };
        let built = async {
            match &mut self.reload {
                Some(reload) => reload.built().await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(reply) = resumes.recv() => Event::ResumeRequested(reply),
            Some(command) = reloads.recv(), if is_free => Event::ReloadRequested(Some(command)),
            () = changed => Event::ReloadRequested(None),
            built = built => Event::ReloadReady(built.map(Box::new)),
            verdict = verdict => match verdict {
                Verdict::Unhealthy(why) => Event::Unhealthy(why),
                Verdict::Healthy => Event::Healthy,
            },
            event = program => match event {
                ProgramEvent::Exited(why, pause) => Event::Exited(why, pause),
                ProgramEvent::RestartDue => Event::RestartDue,
            },
        }
    }

    /// Takes the service out of etcd, until it is healthy. A listener of the host goes on serving requests.
    async fn withdraw(&mut self, why: &str) {
        tracing::warn!(event = "withdrawn", service = %self.spec.name, "withdrawn: {why}");
        let state = if self.state == State::AwaitingHealth { self.state } else { State::Withdrawn };
        self.enter(state, Some(why));
        if !self.context.registry.registrations().is_empty() {
            self.withdrawn_at = Some(Instant::now());
        }
        keys::withdraw(&self.spec, &self.context.registry).await;
    }

    /// The health check passes, or passes again.
    async fn on_healthy(&mut self) {
        if self.state != State::AwaitingHealth {
            self.announce().await;
        } else if self.reload.is_none() {
            // The component is started like a next revision, beside the answering one.
            self.reload =
                Some(Reload::begin(None, RevisionBuilder { loaded: Some(self.loaded.clone()), ..self.builder() }));
        }
    }

    /// Brings back the keys that were withdrawn, or registers for the first time.
    async fn announce(&mut self) {
        match keys::restore(&self.spec, self.identity.node.clone(), &self.context.registry).await {
            Ok(()) => {
                self.enter(State::Serving, None);
                tracing::info!(event = "announced", service = %self.spec.name, url = self.url(), "the service is announced in etcd");
            }
            Err(message) => {
                tracing::warn!(service = %self.spec.name, "cannot be announced yet: {message}");
                self.probe_again();
            }
        }
    }

    fn probe_again(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            monitor.again();
        }
    }

    /// The program has ended by itself. Its keys leave etcd before anything else happens.
    async fn on_exit(&mut self, why: &str, pause: Duration) {
        self.context.stats().incident(Incident::ProgramExit);
        self.withdraw(&format!("{why}; it is run again in {pause:.1?}")).await;
        self.probe_again();
    }

    /// The pause after the program's end is over.
    async fn on_restart_due(&mut self) {
        let loaded = self.loaded.clone();
        match self.run(&loaded, false).await {
            Ok(()) => tracing::info!(service = %self.spec.name, "the program runs again"),
            Err(failure) => tracing::warn!("{}; it is tried again", failure.sentence()),
        }
    }

    /// Runs a program as its own next revision. What the program registered itself ended with its former run, and so did
    /// what the host registered under another configuration.
    async fn run(&mut self, loaded: &Loaded, is_changed: bool) -> Result<(), Failure> {
        let Identity { own, tracer, .. } = &self.identity;
        let context = Arc::new(match is_changed {
            false => self.context.successor(),
            true => self.context.successor_under(&self.spec, own, tracer.clone()),
        });
        if self.spec.register == Register::Host && !is_changed {
            context.registry.inherit();
        }
        keys::take_over(&self.spec, &context.registry).await;
        if let Workload::Program(program) = &mut self.workload
            && let Err(failure) = program.start(&self.spec, &self.engine, loaded, &context).await
        {
            context.ended.cancel();
            keys::give_back(&self.spec, &context.registry, &self.context.registry).await;
            return Err(failure);
        }
        self.adopt(&context, &loaded.digest, false);
        if self.monitor.is_none() && !is_changed {
            self.announce().await;
        }
        Ok(())
    }

    /// Begins to build the next revision, beside the served one.
    fn on_reload_requested(&mut self, command: Option<ReloadCommand>) {
        let (next, reply) = command.map_or((None, None), |command| (command.next, Some(command.reply)));
        if !matches!(self.state, State::AwaitingHealth | State::Serving | State::Withdrawn) {
            let refused = self.failed(format!("it is {}", self.phase()));
            reply.map(|reply| reply.send(Err(refused))); // The client may have gone away.
            return;
        }
        match next.map_or_else(|| Ok(self.builder()), |next| self.builder_of(*next)) {
            Ok(builder) => self.reload = Some(Reload::begin(reply, builder)),
            Err(failure) => drop(reply.map(|reply| reply.send(Err(failure)))),
        }
    }

    /// Everything for a revision of the present configuration, with the content of the component file.
    fn builder(&self) -> RevisionBuilder {
        let handler = match &self.workload {
            Workload::Handler(handler) => Some((self.bound.to_string(), handler.retiring())),
            Workload::Program(_) => None,
        };
        RevisionBuilder {
            spec: self.spec.clone(),
            engine: self.engine.clone(),
            loaded: None,
            former: Arc::clone(&self.context),
            reconfigured: None,
            handler,
        }
    }

    /// Everything for a revision that is prepared.
    fn builder_of(&self, next: NextRevision) -> Result<RevisionBuilder, Failure> {
        let NextRevision { spec, engine, loaded } = next;
        if spec.listen != self.spec.listen {
            return Err(self.failed("it has begun to serve meanwhile, at its former address"));
        }
        let reconfigured = match self.spec.written.changes(&spec.written).is_empty() {
            true => None,
            false => Some(Reconfiguration {
                identity: Identity::new(&spec, self.bound, self.traces.as_ref()),
                tls: http::open_tls(&spec)?,
            }),
        };
        Ok(RevisionBuilder { spec, engine, loaded: Some(loaded), reconfigured, ..self.builder() })
    }

    /// A new revision can be served, or could not be built.
    async fn on_reload_ready(&mut self, built: Result<Built, Failure>) {
        let outcome = match built {
            Ok(Built { spec, engine, reconfigured, loaded, revision: Some(revision) }) => {
                self.switch_to(spec, engine, reconfigured, loaded, revision).await;
                Ok(())
            }
            Ok(Built { spec, engine, reconfigured, loaded, revision: None }) => {
                self.replace(spec, engine, reconfigured.map(|reconfigured| reconfigured.identity), loaded).await
            }
            Err(failure) => Err(failure),
        };
        match &outcome {
            Ok(()) => tracing::info!(event = "reloaded", service = %self.spec.name, "the service is reloaded"),
            Err(failure) if matches!(&self.workload, Workload::Program(program) if !program.is_up()) => {
                tracing::error!(event = "not_reloaded", service = %self.spec.name, "not reloaded, the former version is run again: {}", failure.sentence());
            }
            Err(failure) if self.state != State::AwaitingHealth => {
                tracing::error!(event = "not_reloaded", service = %self.spec.name, "not reloaded, the former version serves on: {}", failure.sentence());
            }
            Err(failure) => {
                tracing::warn!(service = %self.spec.name, "not started yet: {}", failure.sentence());
                self.probe_again();
            }
        }
        if let Some(reload) = self.reload.take() {
            reload.end(outcome);
        }
    }

    /// Moves the requests to a new revision. The keys that it has stay.
    async fn switch_to(
        &mut self,
        spec: Spec,
        engine: Engine,
        reconfigured: Option<Reconfiguration>,
        loaded: Loaded,
        revision: Revision,
    ) {
        let context = Arc::clone(&revision.context);
        let former = mem::replace(&mut self.spec, spec);
        (self.engine, self.loaded) = (engine, loaded);
        if let Workload::Handler(handler) = &mut self.workload {
            if let Some(Reconfiguration { tls, .. }) = &reconfigured {
                handler.change(&self.spec, tls.clone());
            }
            handler.replace(revision, &former);
        }
        if self.state == State::AwaitingHealth {
            self.state = State::Withdrawn;
        }
        let (has_check, digest) = (self.spec.health.is_some(), Arc::clone(&self.loaded.digest));
        let is_changed = reconfigured.is_some();
        if let Some(Reconfiguration { identity, .. }) = reconfigured {
            self.identity = identity;
            self.on_changed().await;
        }
        self.adopt(&context, &digest, has_check);
        if self.spec.register == Register::Host && !is_changed {
            context.registry.inherit();
        }
        keys::take_over(&self.spec, &context.registry).await;
        if (has_check || is_changed) && self.state == State::Withdrawn {
            self.announce().await;
        }
    }

    /// Ends a program, out of etcd, and runs its new revision in its place: two cannot listen at one address. If the new
    /// revision does not start, the former one is run again.
    async fn replace(
        &mut self,
        spec: Spec,
        engine: Engine,
        reconfigured: Option<Identity>,
        loaded: Loaded,
    ) -> Result<(), Failure> {
        let was_announced = !self.context.registry.registrations().is_empty();
        self.withdraw("it is replaced").await;
        self.probe_again();
        self.workload.stop(&self.spec, was_announced).await;
        let former =
            (mem::replace(&mut self.spec, spec), mem::replace(&mut self.engine, engine), self.identity.clone());
        let is_changed = reconfigured.is_some();
        self.identity = reconfigured.unwrap_or_else(|| self.identity.clone());
        if let Err(failure) = self.run(&loaded, is_changed).await {
            (self.spec, self.engine, self.identity) = former;
            return Err(failure);
        }
        self.loaded = loaded;
        if is_changed {
            self.on_changed().await;
            match &mut self.monitor {
                Some(monitor) => monitor.again(),
                None => self.announce().await,
            }
        }
        Ok(())
    }

    /// Applies a changed configuration to what is not of one revision.
    async fn on_changed(&mut self) {
        self.context.resize(&self.spec.limits);
        self.file = if self.spec.follow { Some(ComponentWatcher::new(&self.spec).await) } else { None };
        self.monitor = self.monitor();
        let (spec, url) = (Arc::new(self.spec.clone()), Arc::from(self.url()));
        self.status.send_modify(|status| (status.spec, status.url) = (spec, url));
    }

    /// Makes a revision the current one.
    fn adopt(&mut self, context: &Arc<ServiceContext>, digest: &Arc<str>, is_proven: bool) {
        self.context = Arc::clone(context);
        let revision = RevisionInfo { digest: Arc::clone(digest), since: SystemTime::now() };
        self.status.send_modify(|status| {
            (status.context, status.revision) = (Some(Arc::clone(context)), Some(revision));
        });
        if let Some(monitor) = &mut self.monitor {
            monitor.reset(is_proven);
        }
    }
}
