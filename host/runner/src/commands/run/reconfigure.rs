//! Reload of the configuration of a running host, in the order it happens: read, compared, prepared, applied.
//!
//! Mistakes of a file are found before the first change, and then nothing changes. What fails later, such as a component
//! that does not start, concerns its service alone, whose former version serves on.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::{pending, ready},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::join_all, stream};
use leasehold_artifacts::Former;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::{
    cli::RunArgs,
    commands::run::upgrade::Upgrader,
    config::{
        self, Spec,
        plan::{Change, Next, Plan, Planned},
        written::Written,
    },
    error::Failure,
    inbound::server,
    process::{activation, rlimit},
    service::{
        handle::{
            HostCommand, NextRevision, NotAccepted, Phase, Reconfigured, ServiceChange, ServiceHandle, ServiceList,
            Services,
        },
        http::open_tls,
        supervisor::{Report, Reports, StartContext, Supervisor},
    },
    wasm::{
        artifact,
        cache::digest,
        component::Loaded,
        engine::{Demand, Engine, Engines},
        initial_memory,
    },
};

/// Services that go on with another revision at a time: each starts an instance.
const MAX_CHANGES: usize = 32;
/// Longest time for the read of the configuration, and of one component file.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Mistakes that one failure lists.
const MAX_MISTAKES: usize = 20;

/// Everything that a reload of the configuration needs.
pub(super) struct Reconfigurer {
    pub(super) args: RunArgs,
    pub(super) services: Arc<Services>,
    /// Context of further services.
    pub(super) context: Arc<StartContext>,
    pub(super) engines: Engines,
    /// Tasks of the services.
    pub(super) running: TaskTracker,
    /// Keys of the configuration beside the services, as they hold since the start.
    pub(super) host: Written,
    /// Addresses of the admin endpoint and of the metrics.
    pub(super) own_listens: Vec<SocketAddr>,
    /// Everything that an upgrade hands over besides the services.
    pub(super) upgrader: Upgrader,
}

/// A service of the plan, ready for its change.
struct Prepared {
    planned: Planned,
    present: Option<Arc<ServiceHandle>>,
    /// Revision to go on with; `None` for a service that goes, or whose configuration stays as it is.
    next: Option<NextRevision>,
    has_new_component: bool,
    /// It is drained before the change.
    is_drained: bool,
}

/// A service that is there once its change is made, if there is one, and what became of it.
type Outcome = (Option<Arc<ServiceHandle>>, ServiceChange);

impl Reconfigurer {
    /// Executes one command after the other.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<HostCommand>) -> Infallible {
        while let Some(command) = commands.recv().await {
            // The clients may have gone away.
            match command {
                HostCommand::Reconfigure { dry_run, reply } => drop(reply.send(self.reconfigure(dry_run).await)),
                HostCommand::Upgrade(reply) => drop(reply.send(self.upgrader.upgrade(&self.services).await)),
            }
        }
        pending().await
    }

    async fn reconfigure(&mut self, dry_run: bool) -> Result<Reconfigured, Failure> {
        let begun = Instant::now();
        let present = self.services.all();
        let specs: Vec<_> = present.iter().map(|handle| handle.spec()).collect();
        let next = self.read(&specs).await?;
        let Plan { services, needs_restart } = Plan::new(&specs, &self.host, &next);
        let prepared = self.prepare(services, &present).await?;
        if dry_run {
            let services = prepared.iter().map(|prepared| prepared.report(None)).collect();
            return Ok(Reconfigured { dry_run, services, needs_restart });
        }
        next.notes.iter().for_each(|note| tracing::warn!("{note}"));
        if !needs_restart.is_empty() {
            let keys: Vec<_> = needs_restart.iter().map(|key| &*key.key).collect();
            tracing::warn!("these keys take effect with the next start of the host: {}", keys.join(", "));
        }
        let services = self.apply(prepared).await;
        let all = self.services.all();
        let listens = all.iter().map(|handle| handle.spec().listen).chain(self.own_listens.iter().copied());
        activation::unused(&listens.collect::<Vec<_>>()).iter().for_each(|remark| tracing::warn!("{remark}"));
        let count = |change| services.iter().filter(|service| service.change == change).count();
        tracing::info!(
            event = "reconfigured",
            added = count(Change::Added),
            changed = count(Change::Changed) + count(Change::Moved),
            removed = count(Change::Removed),
            failed = services.iter().filter(|service| service.why.is_some()).count(),
            seconds = begun.elapsed().as_secs_f64(),
            "the configuration is reloaded"
        );
        Ok(Reconfigured { dry_run, services, needs_restart })
    }

    /// Reads the configuration once more, with the arguments of the command line. What came from standard input stays as
    /// it is.
    async fn read(&self, present: &[Arc<Spec>]) -> Result<Next, Failure> {
        if config::is_standard_input(&self.args.file) {
            let services = present.iter().map(|spec| (**spec).clone()).collect();
            return Ok(Next { services, host: self.host.clone(), notes: Vec::new() });
        }
        let args = self.args.clone();
        // Nothing waits for this task at the end: a file system may hang.
        let reading = self.upgrader.tasks.spawn_blocking(move || args.config());
        match timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(config)) => config.map(Next::from),
            Ok(Err(_)) => Err(Failure::other("the configuration could not be read")),
            Err(_) => Err(Failure::other(format!("the configuration could not be read within {READ_TIMEOUT:?}"))),
        }
    }

    /// Loads the components of what is new, and looks for everything that can be wrong. Nothing has changed yet.
    async fn prepare(&mut self, planned: Vec<Planned>, present: &ServiceList) -> Result<Vec<Prepared>, Failure> {
        let new: Vec<_> = planned.iter().filter(|one| one.is_new()).map(|one| Arc::clone(&one.spec)).collect();
        let mut engines = self.engines.place(&new)?.into_iter();
        let (mut loader, mut digests) = (Loader::default(), Digests::default());
        let (mut prepared, mut mistakes) = (Vec::with_capacity(planned.len()), Vec::new());
        for planned in planned {
            let spec = Arc::clone(&planned.spec);
            let present = planned.present.map(|index| Arc::clone(&present[index]));
            let engine = if planned.is_new() { engines.next() } else { None };
            let next = match engine {
                Some(engine) => loader.load(engine, &planned.spec).await.map(Some),
                None => Ok(None),
            };
            let digest = match &next {
                Ok(Some(next)) => Some(Arc::clone(&next.loaded.digest)),
                _ if planned.change == Change::Unchanged => digests.of(&planned.spec).await,
                _ => None,
            };
            let former = present.as_ref().and_then(|handle| handle.snapshot().status.revision);
            let has_new_component = matches!((former, digest), (Some(former), Some(now)) if former.digest != now);
            match next {
                Ok(next) => prepared.push(Prepared::new(planned, present, next, has_new_component)),
                Err(failure) => {
                    mistakes.push(failure.map(|sentence| spec.located(&format!("{}: {sentence}", spec.name))));
                }
            }
        }
        mistakes.extend(occupied(&prepared, present));
        if mistakes.is_empty() {
            return Ok(prepared);
        }
        let sentences: Vec<_> = mistakes.iter().take(MAX_MISTAKES).map(Failure::sentence).collect();
        let more = mistakes.len() - sentences.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Failure::usage(format!("nothing is changed: {}{more}", sentences.join("; "))))
    }

    /// Carries the plan out. Returns what became of each service.
    async fn apply(&mut self, prepared: Vec<Prepared>) -> Vec<ServiceChange> {
        let specs: Vec<Spec> = prepared.iter().filter_map(|one| Some(one.next.as_ref()?.spec.clone())).collect();
        if let Some(lack) = rlimit::lacking(Demand::of(&specs).files) {
            tracing::warn!("{lack}");
        }
        let taken: HashSet<SocketAddr> =
            prepared.iter().filter(|one| one.begins_anew()).map(|one| one.planned.spec.listen).collect();
        let (mut list, mut first, mut then) = (ServiceList::new(), Vec::new(), Vec::new());
        for (index, prepared) in prepared.into_iter().enumerate() {
            // Those whose address another one takes go first.
            let goes_first =
                prepared.planned.change == Change::Removed && taken.contains(&prepared.planned.spec.listen);
            let new = prepared.begins_anew().then(|| self.supervisor(&prepared)).flatten();
            list.extend(new.iter().map(|new| Arc::clone(&new.handle)));
            list.extend(prepared.present.clone());
            let change = async move { (index, prepared.change(new).await) };
            if goes_first { first.push(change) } else { then.push(change) }
        }
        self.services.set(list);
        let mut outcomes = join_all(first).await;
        outcomes.extend(stream::iter(then).buffer_unordered(MAX_CHANGES).collect::<Vec<_>>().await);
        outcomes.sort_by_key(|(index, _)| *index);
        let (list, reports): (Vec<_>, Vec<_>) = outcomes.into_iter().map(|(_, outcome)| outcome).unzip();
        self.services.set(list.into_iter().flatten().collect());
        reports
    }

    /// A supervisor for a service that begins anew. The task that runs it is not spawned yet.
    fn supervisor(&self, prepared: &Prepared) -> Option<NewService> {
        let NextRevision { spec, engine, loaded } = prepared.next.as_ref()?;
        let (reporting, reports) = mpsc::channel(1);
        let component = ready(Ok(loaded.clone())).boxed().shared();
        let ending = self.services.ending.child_token();
        let (supervisor, handle) = Supervisor::new(
            spec.clone(),
            engine.clone(),
            Some(component),
            Arc::clone(&self.context),
            Reports::new(0, reporting),
            ending.clone(),
        );
        if let Some(former) = &prepared.present {
            handle.weight.send_replace(*former.weight.borrow());
        }
        let running = self.running.clone();
        let run = Box::new(move || drop(running.spawn(supervisor.run(ending))));
        // Until etcd has answered for the first time, no service is started.
        let reports = self.context.etcd.borrow().then_some(reports);
        Some(NewService { run, handle: Arc::new(handle), reports })
    }
}

/// A service that begins anew.
struct NewService {
    /// Spawns its task.
    run: Box<dyn FnOnce() + Send>,
    handle: Arc<ServiceHandle>,
    /// Its reports, where its start is waited for.
    reports: Option<mpsc::Receiver<(usize, Report)>>,
}

impl Prepared {
    fn new(
        planned: Planned,
        present: Option<Arc<ServiceHandle>>,
        next: Option<NextRevision>,
        has_new_component: bool,
    ) -> Self {
        let is_drained = present.as_ref().is_some_and(|present| present.snapshot().is_out());
        Self { planned, present, next, has_new_component, is_drained }
    }

    /// True for a service that binds an address, since it comes, or moves while it is served.
    fn begins_anew(&self) -> bool {
        match (self.planned.change, &self.present) {
            (Change::Added, _) => true,
            (Change::Moved, Some(present)) => matches!(present.phase(), Phase::Serving | Phase::Withdrawn),
            _ => false,
        }
    }

    /// Makes the change.
    async fn change(mut self, new: Option<NewService>) -> Outcome {
        let (next, present) = (self.next.take(), self.present.clone());
        match (self.planned.change, present, new) {
            (Change::Removed, Some(present), _) => {
                let why = end(&present).await;
                (None, self.report(why))
            }
            (_, former, Some(NewService { run, handle, reports })) => {
                run();
                match (started(reports).await, former) {
                    (Ok(()), Some(former)) => {
                        let why = end(&former).await;
                        (Some(handle), self.report(why))
                    }
                    (Ok(()), None) => (Some(handle), self.report(None)),
                    // Its start is tried again.
                    (Err(why), None) => (Some(handle), self.report(Some(why))),
                    (Err(why), Some(former)) => {
                        handle.ending.cancel();
                        (Some(former), self.report(Some(format!("{why}; it stays at its former address"))))
                    }
                }
            }
            (Change::Unchanged, Some(present), _) if !self.has_new_component && !is_in_doubt(&present) => {
                (Some(present), self.report(None))
            }
            (Change::Unchanged, Some(present), _) if self.is_drained => (Some(present), self.report(None)),
            (_, Some(present), None) => {
                let why = reload(&present, next).await;
                (Some(present), self.report(why))
            }
            (_, None, None) => (None, self.report(Some("there is no such service".to_owned()))),
        }
    }

    fn report(&self, why: Option<String>) -> ServiceChange {
        let Planned { change, spec, keys, .. } = &self.planned;
        let bound = self.present.as_ref().filter(|_| *change != Change::Moved);
        ServiceChange {
            service: spec.name.to_string(),
            // The system may have chosen the port.
            listen: bound.map_or_else(|| spec.listen.to_string(), |bound| bound.snapshot().status.listen.to_string()),
            change: *change,
            keys: keys.clone(),
            has_new_component: self.has_new_component,
            is_drained: *change != Change::Removed && self.is_drained,
            why,
        }
    }
}

/// True for a service whose start has failed, or is still loading the component: from a file that may have changed since.
fn is_in_doubt(present: &Arc<ServiceHandle>) -> bool {
    match present.phase() {
        Phase::Failed => true,
        Phase::Starting => present.snapshot().status.revision.is_none(),
        _ => false,
    }
}

/// Ends a service for good, in order. Returns what is not as it should be.
async fn end(service: &ServiceHandle) -> Option<String> {
    let (reply, drained) = oneshot::channel();
    let drained = match service.drains.try_send(reply).map_err(NotAccepted::from) {
        Ok(()) => drained.await.ok(),
        Err(_) => None,
    };
    service.ending.cancel();
    let drained = drained?;
    let cut = (!drained.all_answered).then_some("requests were cut off");
    let stays = (!drained.keys_gone).then_some("a key may stay until its lease ends");
    let why: Vec<_> = cut.into_iter().chain(stays).collect();
    (!why.is_empty()).then(|| why.join("; "))
}

/// Waits for the first attempt to start a service.
async fn started(reports: Option<mpsc::Receiver<(usize, Report)>>) -> Result<(), String> {
    let Some(mut reports) = reports else { return Ok(()) };
    match reports.recv().await {
        Some((_, Report::Failed(failure))) => Err(failure.sentence()),
        Some((_, Report::Started | Report::Drained)) => Ok(()),
        None => Err("the host is ending".to_owned()),
    }
}

/// Lets a service go on with another revision. Returns the reason for which it does not.
async fn reload(service: &ServiceHandle, next: Option<NextRevision>) -> Option<String> {
    match service.reload(next.map(Box::new)) {
        Ok(outcome) => outcome.await.map_or_else(
            |_| Some("the host is ending".to_owned()),
            |outcome| outcome.err().map(|failure| failure.sentence()),
        ),
        Err(NotAccepted::Busy) => Some("another command is in progress".to_owned()),
        Err(NotAccepted::Ending) => Some("the host is ending".to_owned()),
    }
}

/// Addresses of services that begin, as far as another process has them.
fn occupied(prepared: &[Prepared], present: &ServiceList) -> Vec<Failure> {
    // A wildcard of this host's own may have the port as well.
    let own: HashSet<_> = present.iter().map(|handle| handle.spec().listen.port()).collect();
    let binds = prepared.iter().filter(|one| one.begins_anew() && !own.contains(&one.planned.spec.listen.port()));
    let failures = binds.filter_map(|one| {
        let Spec { name, listen, .. } = &*one.planned.spec;
        let error = server::bind(*listen).err()?;
        Some(Failure::other(format!("{name}: cannot listen on {listen}: {error}")))
    });
    failures.collect()
}

/// Loads each component once for each engine.
#[derive(Default)]
struct Loader {
    loaded: Vec<(Engine, PathBuf, bool, Loaded)>,
}

impl Loader {
    /// Loads the component of a service, and checks that it fits the configuration.
    async fn load(&mut self, engine: Engine, spec: &Spec) -> Result<NextRevision, Failure> {
        open_tls(spec)?;
        let (path, precompiled) = (&spec.component, spec.precompiled);
        // A tag may lead elsewhere by now, and keys are those of a service.
        let known = self.loaded.iter().filter(|_| spec.artifact.is_none()).find(|(other, file, is_precompiled, _)| {
            other.is_same(&engine) && file == path && *is_precompiled == precompiled
        });
        let loaded = match known {
            Some((.., loaded)) => {
                initial_memory::check_aside(&engine, spec, path.clone()).await?;
                loaded.clone()
            }
            None => {
                let loaded = artifact::load(&engine, spec, Former::StandsIn).await?;
                self.loaded.push((engine.clone(), path.clone(), precompiled, loaded.clone()));
                loaded
            }
        };
        loaded.check(spec)?;
        Ok(NextRevision { spec: spec.clone(), engine, loaded })
    }
}

/// Digest of each component file, which is read once.
#[derive(Default)]
struct Digests(HashMap<PathBuf, Option<Arc<str>>>);

impl Digests {
    /// None for a file that cannot be read.
    async fn of(&mut self, spec: &Spec) -> Option<Arc<str>> {
        if !self.0.contains_key(&spec.component) {
            let located = artifact::locate(spec, Former::Refused).await;
            let warn =
                |failure: &Failure| tracing::warn!(service = %spec.name, "not looked up: {}", failure.sentence());
            let (file, _) = located.inspect_err(warn).ok()?;
            let bytes = timeout(READ_TIMEOUT, tokio::fs::read(file)).await.ok().and_then(Result::ok);
            self.0.insert(spec.component.clone(), bytes.map(|bytes| digest(&bytes)));
        }
        self.0.get(&spec.component).cloned().flatten()
    }
}
