//! Upgrade of a running host: a new process of its binary takes over its listeners and its keys, and the former one drains.
//!
//! The keys are written anew under the leases of the successor, and none is deleted: a lease fences the writes of one process,
//! so that it is not handed over. Where the successor does not serve what this host serves, it is killed, and this host takes
//! its keys back.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use leasehold::{LeaseId, Ownership, Registrar, State};
use leasehold_wasmtime::RegistryCtx;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::server::{Admin, AdminStart},
    config::Config,
    error::Failure,
    process::{
        activation,
        handover::{Inheritance, Manifest, Place, SUCCEEDS, ServiceState, ShownState, Successor, Tried},
        systemd,
    },
    service::handle::{Phase, ServiceHandle, Services},
};

/// Longest wait for the successor: a component may have to be compiled anew.
const START_TIMEOUT: Duration = Duration::from_secs(9 * 60);
/// Longest wait for the keys of a service, and the services that are listed at a time.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_LISTS: usize = 16;
/// Longest time in which a service takes its keys back before it is tried again, and the pause before that.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(10);
const TAKE_BACK_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the configuration to be read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the exit of a successor that has closed its socket.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Listeners of the admin endpoint, which a successor has only once it is the host.
pub(super) type AdminListeners = Arc<OnceLock<Vec<(Place, OwnedFd)>>>;

/// Everything that an upgrade needs besides the services.
pub(super) struct Upgrader {
    /// Path of the binary, as it was at the start.
    pub(super) binary: io::Result<PathBuf>,
    pub(super) ownership: Ownership,
    pub(super) is_trial: bool,
    /// The configuration file, if the host has one.
    pub(super) configuration: Option<PathBuf>,
    pub(super) reads_standard_input: bool,
    pub(super) registrar: Registrar,
    /// Listeners of the admin endpoint, once there is one.
    pub(super) listeners: AdminListeners,
    pub(super) tasks: TaskTracker,
    /// Requests the end of this host.
    pub(super) ending: CancellationToken,
}

/// A service of this host, as it is handed over.
struct Handed {
    handle: Arc<ServiceHandle>,
    state: ServiceState,
    is_served: bool,
}

impl Upgrader {
    /// Hands the host over. Returns the number of the process that serves from now on; this one drains. After a failure this
    /// host goes on.
    pub(super) async fn upgrade(&self, services: &Services) -> Result<u32, Failure> {
        let _upgrading = Upgrading::begin(&services.is_upgrading);
        let handed: Vec<_> = services.all().iter().map(Handed::new).collect();
        self.check(&handed)?;
        let Some(holders) = self.holders(&handed).await else {
            return Err(Failure::other("etcd does not answer, and a new process could not register anything"));
        };
        let (manifest, descriptors) = self.manifest(&handed, &holders)?;
        let failed = |error: io::Error| Failure::other(format!("the new process cannot be started: {error}"));
        let (successor, stdin) = Successor::connect().map_err(failed)?;
        let mut child = KilledOnDrop(Some(self.spawn(stdin).map_err(failed)?));
        let pid = child.id();
        tracing::info!(event = "upgrading", pid, "a new process takes over");
        let successor = Arc::new(successor);
        let handing = {
            let successor = Arc::clone(&successor);
            self.tasks.spawn_blocking(move || successor.hand_over(&manifest, &descriptors, START_TIMEOUT))
        };
        let reported = handing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let outcome = match reported {
            Ok(tried) => missing(&handed, &tried),
            Err(error) => Err(child.ended(&error, self.mistakes()).await),
        };
        let committed = outcome.and_then(|()| successor.commit().map_err(failed));
        if let Err(failure) = committed {
            child.kill().await;
            self.take_back(&handed, &holders).await;
            tracing::error!(event = "not_upgraded", "not upgraded, this process serves on: {}", failure.sentence());
            return Err(failure);
        }
        child.0 = None;
        services.succeeded.cancel();
        systemd::main_process(&self.tasks, pid).await;
        tracing::info!(event = "upgraded", pid, "another process serves from now on, and this one ends");
        self.ending.cancel();
        Ok(pid)
    }

    /// Mistakes in the configuration as it is now.
    async fn mistakes(&self) -> Option<String> {
        let file = self.configuration.clone()?;
        let read = self.tasks.spawn_blocking(move || Config::load(&file).err().map(|failure| failure.sentence()));
        timeout(READ_TIMEOUT, read).await.ok()?.ok()?
    }

    /// Refuses what cannot be handed over.
    fn check(&self, handed: &[Handed]) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::usage(message));
        if self.is_trial {
            return refused("a host of run --dev cannot be upgraded: its etcd ends with it");
        }
        if self.reads_standard_input {
            return refused("the configuration came from standard input, which a new process cannot read again");
        }
        if self.ownership != Ownership::TakeOver {
            return refused(
                "with registry.ownership refuse or wait, a new process cannot take the keys of this one over",
            );
        }
        let program = handed.iter().find(|one| one.is_served && one.descriptor().is_none());
        match program {
            Some(one) => Err(Failure::usage(format!(
                "{name}: a program holds its own listener, which cannot be handed over; leasehold drain {name} ends it before, \
                 and leasehold resume {name} starts it after",
                name = one.state.name
            ))),
            None => Ok(()),
        }
    }

    /// The manifest of the hand-over, and the descriptors of the listeners.
    fn manifest(&self, handed: &[Handed], holders: &Holders) -> Result<(Manifest, Vec<OwnedFd>), Failure> {
        let (mut manifest, mut descriptors) = (Manifest::default(), Vec::new());
        let failed = |error: io::Error| Failure::other(format!("a listener cannot be handed over: {error}"));
        for (place, listener) in self.listeners.get().into_iter().flatten() {
            manifest.listeners.push(place.clone());
            descriptors.push(listener.try_clone().map_err(failed)?);
        }
        for (number, socket) in activation::duplicates().map_err(failed)?.into_iter().enumerate() {
            manifest.listeners.push(Place::Activated(number));
            descriptors.push(socket);
        }
        for one in handed {
            if let Some(descriptor) = one.descriptor() {
                manifest.listeners.push(Place::Service(one.state.name.clone(), one.state.listen));
                descriptors.push(descriptor);
            }
            manifest.services.push(one.state.clone());
        }
        manifest.leases.extend(leases(handed, holders));
        Ok((manifest, descriptors))
    }

    /// Starts a process of the binary that stands at the path now, with the arguments of this one.
    fn spawn(&self, stdin: OwnedFd) -> io::Result<Child> {
        let binary = self.binary.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        let arguments: Vec<OsString> = env::args_os().skip(1).collect();
        Command::new(binary)
            .args(arguments)
            .env(SUCCEEDS, std::process::id().to_string())
            // systemd's watchdog is that of the unit, whatever its main process.
            .env_remove("WATCHDOG_PID")
            // The sockets of systemd are handed over as well.
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::from(stdin))
            .spawn()
    }
}

/// The leases of this host that hold its keys. Leases of other hosts are not among them.
fn leases(handed: &[Handed], holders: &Holders) -> BTreeSet<i64> {
    let registrations = handed.iter().flat_map(|one| one.handle.snapshot().registrations());
    let own = registrations.filter(|registration| registration.status().state != State::Conflict);
    let keys = own.flat_map(|registration| registration.keys().map(|key| key.to_string()).collect::<Vec<_>>());
    keys.filter_map(|key| holders.get(&key)).map(|lease| lease.get()).collect()
}

/// The lease of each key.
type Holders = HashMap<String, LeaseId>;

impl Upgrader {
    /// The leases that hold the keys of these services; `None` where etcd does not answer for all.
    async fn holders(&self, handed: &[Handed]) -> Option<Holders> {
        let served = handed.iter().filter(|one| one.is_served);
        let registrations = served.flat_map(|one| one.handle.snapshot().registrations());
        // A component may have registered other names than that of its service.
        let names: BTreeSet<_> = registrations.map(|registration| registration.node().name.clone()).collect();
        let listed = names.into_iter().map(|name| async move {
            timeout(LIST_TIMEOUT, self.registrar.list(Some(&name))).await.ok().and_then(Result::ok)
        });
        let listed = stream::iter(listed).buffer_unordered(MAX_LISTS).collect::<Vec<_>>().await;
        let listed = listed.into_iter().collect::<Option<Vec<_>>>()?;
        Some(listed.into_iter().flatten().filter_map(|entry| Some((entry.key, entry.lease?))).collect())
    }

    /// Writes the keys of each service again of which the successor has taken one over. What it holds is not deleted.
    async fn take_back(&self, handed: &[Handed], before: &Holders) {
        let now = self.holders(handed).await;
        // Where etcd does not answer, every key is written again.
        let is_taken = |key: &str| match &now {
            Some(now) => before.get(key).is_some_and(|before| now.get(key) != Some(before)),
            None => true,
        };
        let taken = handed.iter().filter_map(|one| {
            let context = one.handle.snapshot().status.context.filter(|_| one.is_served)?;
            let registrations = context.registry.registrations();
            let is_taken = registrations.iter().flat_map(|one| one.keys()).any(|key| is_taken(key));
            is_taken.then(|| (Arc::clone(&one.handle), context))
        });
        for (service, context) in taken {
            let ending = self.ending.clone();
            self.tasks.spawn(async move {
                ending.run_until_cancelled(take_back(&service, &context.registry)).await;
            });
        }
    }
}

/// Writes the keys of a service again, until that has succeeded. A service that is drained or withdrawn meanwhile has its keys
/// out of etcd for that reason.
async fn take_back(service: &ServiceHandle, registry: &RegistryCtx) {
    while service.phase() == Phase::Serving {
        let again = async {
            // Keys that another lease holds are not deleted; what cannot be withdrawn is restored all the same.
            drop(registry.withdraw().await);
            registry.restore().await.map_err(|error| error.to_string())
        };
        let outcome = timeout(TAKE_BACK_TIMEOUT, again).await;
        let Err(why) = outcome.unwrap_or_else(|_| Err("etcd does not answer".to_owned())) else { return };
        tracing::warn!(service = %service.name, "its keys are not taken back yet: {why}");
        sleep(TAKE_BACK_PAUSE).await;
    }
}

impl Handed {
    fn new(handle: &Arc<ServiceHandle>) -> Self {
        let (snapshot, spec) = (handle.snapshot(), handle.spec());
        let weight = handle.weight.borrow().map(leasehold::Weight::value);
        let (name, listen, status) = (spec.name.to_string(), spec.listen, &snapshot.status);
        let shown = Some(ShownState {
            listen: status.listen.to_string(),
            url: status.url.to_string(),
            since: status.since,
            component: status.revision.as_ref().map(|revision| (revision.digest.to_string(), revision.since)),
        });
        Self {
            handle: Arc::clone(handle),
            state: ServiceState { name, listen, is_drained: snapshot.is_out(), weight, shown },
            is_served: snapshot.status.phase == Phase::Serving,
        }
    }

    fn descriptor(&self) -> Option<OwnedFd> {
        let listener = self.handle.snapshot().status.listener?.upgrade()?;
        listener.as_fd().try_clone_to_owned().ok()
    }
}

/// Fails if the successor does not serve a service that this host serves, at its address or at another one. A service that is not
/// configured any more is not missed.
fn missing(handed: &[Handed], tried: &[Tried]) -> Result<(), Failure> {
    let served = handed.iter().filter(|one| one.is_served).map(|one| &one.state);
    let missing = served.filter_map(|state| {
        let mut named: Vec<_> = tried.iter().filter(|tried| tried.name == state.name).collect();
        if let Some(same) = named.iter().find(|tried| tried.listen == state.listen) {
            named = vec![*same];
        }
        let failure = named.iter().map(|tried| tried.failure.as_deref()).reduce(|one, other| one.and(other))??;
        Some(format!("{}: {failure}", state.name))
    });
    match missing.collect::<Vec<_>>() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Failure::other(format!("the new process does not serve {}", missing.join("; ")))),
    }
}

/// The time in which a successor starts.
struct Upgrading<'a>(&'a AtomicBool);

impl<'a> Upgrading<'a> {
    fn begin(is_upgrading: &'a AtomicBool) -> Self {
        is_upgrading.store(true, Relaxed);
        Self(is_upgrading)
    }
}

impl Drop for Upgrading<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A successor that is not the host yet: it does not outlive the upgrade.
struct KilledOnDrop(Option<Child>);

impl KilledOnDrop {
    fn id(&self) -> u32 {
        self.0.as_ref().and_then(Child::id).unwrap_or_default()
    }

    async fn kill(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill().await); // It may have ended already.
        }
    }

    /// The reason for which it has reported nothing; the mistakes of the configuration, if it has some.
    async fn ended(&mut self, error: &io::Error, mistakes: impl Future<Output = Option<String>>) -> Failure {
        let exit = async {
            match &mut self.0 {
                Some(child) => timeout(EXIT_TIMEOUT, child.wait()).await.ok()?.ok(),
                None => None,
            }
        };
        let why = match exit.await {
            None => error.to_string(),
            Some(status) => mistakes.await.unwrap_or_else(|| format!("it has ended ({status}), and its log says why")),
        };
        Failure::other(format!("the new process does not come up: {why}"))
    }
}

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.start_kill()); // It may have ended already.
        }
    }
}

/// Waits until every service has been tried once, reports to the former host, and waits until this process is the host.
pub(super) async fn succeed(
    inheritance: &Arc<Inheritance>,
    tried: &CancellationToken,
    services: &Services,
    tasks: &TaskTracker,
) {
    tried.cancelled().await;
    let all = services.all();
    let tried = all.iter().map(|handle| {
        let (status, spec) = (handle.snapshot().status, handle.spec());
        let why = status.why.map_or_else(|| format!("it is {}", status.phase), |why| why.to_string());
        let failure = (status.phase != Phase::Serving).then_some(why);
        Tried { name: spec.name.to_string(), listen: spec.listen, failure }
    });
    let services: Vec<_> = tried.collect();
    let reporting = Arc::clone(inheritance);
    drop(tasks.spawn_blocking(move || reporting.report(&services)).await);
    tracing::info!(event = "succeeded", "this process is the host from now on");
}

/// Begins the admin endpoint of a successor, which serves without one if that fails.
pub(super) fn start_admin(start: AdminStart, inheritance: &Inheritance) -> Option<Admin> {
    let admin = start.start(Some(inheritance));
    inheritance.close_rest();
    admin.map_err(|failure| tracing::error!("{}", failure.sentence())).ok()
}

/// Ends a successor that is not the host yet, at once: the keys that it has written are those of the former host, which takes
/// them back, and an end in order would delete them.
pub(super) fn give_up(outcome: &Result<(), Failure>) -> ! {
    let code = match outcome {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!("{}", failure.sentence());
            failure.code()
        }
    };
    std::process::exit(code.into())
}
