//! The task behind the handles: which lease a registration is placed on, and when there is another one.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "simulation")]
use crate::sim::Suspension;
#[cfg(feature = "load")]
use crate::weight::load;
#[cfg(feature = "discovery")]
use crate::{
    discovery::{
        key_watch::{self, KeyWatch},
        list::Ranges,
        view::{self, View, ViewState},
    },
    node::Version,
};
use crate::{
    error::Error,
    etcd::{Etcd, latency::Latencies},
    faults::Faults,
    lease::{
        core::{
            Config,
            messages::{Command, RegisterRequest},
        },
        suspend,
        task::{LeaseTask, Load, Surroundings},
    },
    node::ServiceName,
    options::{LoadSource, Options, Ttl},
    registration::KeyHandle,
    status::{Event, KeyStatus, LeaseMetrics, SharedKey, State},
    timers::Timers,
};

/// Keys on one lease, at most: what is lost with it, and what an audit reads, stays bounded.
const MAX_KEYS: usize = 1000;
/// Requests that wait for the registrar, at most; a caller beyond waits in line.
const MAX_REQUESTS: usize = 1024;
/// Commands that wait for a lease, at most; a caller beyond waits in line.
const MAX_COMMANDS: usize = 1024;
/// Calls of `register` that wait for one key to be out of etcd, at most.
const MAX_WAITING: usize = 64;
/// Views at a time, at most.
#[cfg(feature = "discovery")]
const MAX_VIEWS: usize = 10_000;
/// Largest number of events that wait for the reader of a key watch; then etcd waits.
#[cfg(feature = "discovery")]
const MAX_QUEUED_EVENTS: usize = 16;
/// Number of views below which those without a handle are not pruned: fewer are not worth it.
#[cfg(feature = "discovery")]
const MIN_VIEWS: usize = 256;
/// Events that a slow listener may fall behind before it loses the oldest. Each has its room from the start.
const MAX_EVENTS: usize = 1024;

/// Channels between the handles of a registrar and its task.
#[derive(Debug, Clone)]
pub(crate) struct Channels {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) ended: watch::Receiver<bool>,
    pub(crate) latencies: Arc<Latencies>,
    pub(crate) faults: Arc<Faults>,
    #[cfg(feature = "simulation")]
    pub(crate) suspension: Suspension,
    pub(crate) suspended_for: watch::Sender<Duration>,
}

/// Request of a handle.
pub(crate) enum Request {
    Register {
        request: Box<RegisterRequest>,
        reply: PlacementReply,
    },
    GrantAhead {
        until: Instant,
    },
    /// A call to etcd that sends its own reply.
    Call(EtcdCall),
    #[cfg(feature = "discovery")]
    WatchKeys {
        scope: Scope,
        reply: oneshot::Sender<KeyWatch>,
    },
    #[cfg(feature = "discovery")]
    Watch {
        name: ServiceName,
        version: Version,
        reply: oneshot::Sender<Result<View, Error>>,
    },
    End,
}

/// Call to etcd beside the task's own work.
pub(crate) type EtcdCall = Box<dyn FnOnce(Etcd) -> BoxFuture<'static, ()> + Send>;

/// Scope of a read of the layouts' keys: all, or those of one service and version.
#[cfg(feature = "discovery")]
pub(crate) type Scope = Option<(ServiceName, Version)>;

/// A registration that is placed on a lease, and its confirmation by etcd.
pub(crate) type Placement = (KeyHandle, oneshot::Receiver<Result<(), Error>>);

type PlacementReply = oneshot::Sender<Result<Placement, Error>>;

/// The task behind the handles: it places registrations on leases, and answers what the handles ask.
pub(crate) struct RegistrarTask {
    options: Arc<Options>,
    inbox: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
    ended: watch::Sender<bool>,
    leases: Vec<LeaseHandle>,
    next_lease: u64,
    keys: HashSet<PlacedKey>,
    /// Requests for keys that are being deleted.
    waiting: HashMap<Arc<str>, Vec<(Box<RegisterRequest>, PlacementReply)>>,
    /// Views that have a handle, or had one until recently.
    #[cfg(feature = "discovery")]
    views: HashMap<(ServiceName, Version), Arc<ViewState>>,
    /// Number of views at which those without a handle are pruned.
    #[cfg(feature = "discovery")]
    views_until_pruning: usize,
    /// Ends the views.
    ending: CancellationToken,
    tracker: TaskTracker,
    faults: Arc<Faults>,
    /// Total time that the machine was suspended, which timers did not see.
    suspended_for: watch::Sender<Duration>,
    #[cfg(feature = "simulation")]
    suspension: Suspension,
    rng: fastrand::Rng,
}

/// A lease with room on it.
struct LeaseHandle {
    ttl: Ttl,
    /// No lease carries two instances of one service: losing it must not take the whole service away, and a reader of
    /// the seed layout freezes on two events of one service in one response.
    names: HashSet<ServiceName>,
    commands: mpsc::Sender<Command>,
    metrics: Arc<LeaseMetrics>,
}

/// Handles of which each lease gets a clone.
struct Shared {
    etcd: Etcd,
    load: Load,
    /// Keys that are out of etcd for good.
    released: mpsc::UnboundedSender<Arc<str>>,
    /// Deadlines of calls to views.
    #[cfg_attr(not(feature = "discovery"), expect(dead_code, reason = "there are no views"))]
    timers: Arc<Timers>,
}

/// A key that is placed on a lease, found by its name.
struct PlacedKey(Arc<SharedKey>);

impl PlacedKey {
    /// Returns true if the key is being deleted, or is about to be since its handle was dropped.
    fn is_leaving(&self) -> bool {
        !self.0.is_owned() || matches!(self.0.read().state, State::Draining | State::Stopped)
    }
}

impl Borrow<str> for PlacedKey {
    fn borrow(&self) -> &str {
        self.0.key()
    }
}

impl PartialEq for PlacedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for PlacedKey {}

impl Hash for PlacedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self.0.key()).hash(state);
    }
}

impl RegistrarTask {
    /// Creates a task to [`run`](Self::run), and the channels for its handles.
    pub(crate) fn new(options: Arc<Options>) -> (Self, Channels) {
        let (requests, inbox) = mpsc::channel(MAX_REQUESTS);
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let (ended, has_ended) = watch::channel(false);
        let channels = Channels {
            requests,
            events,
            ended: has_ended,
            latencies: Arc::default(),
            faults: Arc::default(),
            #[cfg(feature = "simulation")]
            suspension: Suspension::default(),
            suspended_for: watch::Sender::new(Duration::ZERO),
        };
        let task = Self {
            rng: options.jitter_seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            options,
            inbox,
            events: channels.events.clone(),
            ended,
            leases: Vec::new(),
            next_lease: 0,
            keys: HashSet::new(),
            waiting: HashMap::new(),
            #[cfg(feature = "discovery")]
            views: HashMap::new(),
            #[cfg(feature = "discovery")]
            views_until_pruning: MIN_VIEWS,
            ending: CancellationToken::new(),
            tracker: TaskTracker::new(),
            faults: channels.faults.clone(),
            suspended_for: channels.suspended_for.clone(),
            #[cfg(feature = "simulation")]
            suspension: channels.suspension.clone(),
        };
        (task, channels)
    }

    /// Compares this machine's clocks, for as long as it runs.
    pub(crate) fn detect_suspension(&self) {
        let (detecting, ending) = (suspend::detect(self.suspended_for.clone()), self.ending.clone());
        self.spawn(async move {
            ending.run_until_cancelled(detecting).await;
        });
    }

    /// Runs until the last handle is dropped or the registrar is shut down, and every lease is revoked.
    pub(crate) async fn run(mut self, etcd: Etcd, timers: Arc<Timers>) {
        // One message per registration, so they bound it.
        let (released, mut keys_released) = mpsc::unbounded_channel();
        let shared = Shared { etcd, load: self.load(), released, timers };
        loop {
            tokio::select! {
                biased;
                Some(key) = keys_released.recv() => {
                    for (request, reply) in self.release(&key) {
                        self.place(request, reply, &shared).await;
                    }
                }
                request = self.inbox.recv() => match request {
                    Some(Request::Register { request, reply }) => self.place(request, reply, &shared).await,
                    Some(Request::GrantAhead { until }) => {
                        let index = self.lease_with_room(self.options.ttl, None, &shared);
                        // A lease with more commands than it can take is granted, or cannot be.
                        let _ = self.leases[index].commands.try_send(Command::GrantAhead(until));
                    }
                    Some(Request::Call(call)) => {
                        self.tracker.spawn(call(shared.etcd.clone()));
                    }
                    #[cfg(feature = "discovery")]
                    Some(Request::WatchKeys { scope, reply }) => {
                        let _ = reply.send(self.watch_keys(&shared.etcd, scope.as_ref())); // The caller may have given up.
                    }
                    #[cfg(feature = "discovery")]
                    Some(Request::Watch { name, version, reply }) => {
                        let _ = reply.send(self.view(&shared, name, version)); // The caller may have given up.
                    }
                    Some(Request::End) | None => break,
                },
            }
        }
        self.inbox.close();
        self.ending.cancel();
        // Callers that wait get their errors at once: leases may take long to end.
        while self.inbox.try_recv().is_ok() {}
        self.waiting.clear();
        for lease in self.leases.drain(..) {
            let _ = lease.commands.send(Command::End).await; // It may have ended already.
        }
        drop(shared);
        let Self { tracker, ended, .. } = self;
        tracker.close();
        tracker.wait().await;
        let _ = ended.send(true); // There may be no waiter.
    }

    /// Spawns a task that runs until the registrar ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "simulation")]
        let task = self.suspension.clone().hold(task);
        self.tracker.spawn(task);
    }

    fn load(&self) -> Load {
        let is_estimate = Arc::new(AtomicBool::new(false));
        let weight = match &self.options.load {
            LoadSource::Given(weight) => weight.clone(),
            LoadSource::Fixed(weight) => watch::channel(*weight).1,
            #[cfg(feature = "load")]
            LoadSource::Machine => {
                use std::sync::atomic::Ordering;

                let (sender, weight) = watch::channel(load::first_look());
                is_estimate.store(true, Ordering::Relaxed);
                self.tracker.spawn(load::sample(sender, is_estimate.clone()));
                weight
            }
        };
        Load { weight, is_estimate }
    }

    async fn place(&mut self, request: Box<RegisterRequest>, reply: PlacementReply, shared: &Shared) {
        if reply.is_closed() {
            return;
        }
        let key = request.key.clone();
        if self.keys.get(&*key).is_some_and(PlacedKey::is_leaving) {
            return self.wait(request, reply);
        }
        let refusal = match request.layout.accept(&request.node) {
            Err(invalid) => Some(invalid.into()),
            Ok(()) if self.keys.contains(&*key) => Some(Error::Duplicate(key.clone())),
            Ok(()) if self.keys.len() >= self.options.max_registrations => {
                Some(Error::Quota { what: "the number of registrations", limit: self.options.max_registrations })
            }
            Ok(()) => None,
        };
        if let Some(error) = refusal {
            let _ = reply.send(Err(error)); // The caller may have given up.
            return;
        }
        let node = request.node.clone();
        let index = self.lease_with_room(request.ttl, Some(&node.name), shared);
        let weight = node.weight.unwrap_or(*shared.load.weight.borrow());
        let status = KeyStatus { state: State::Pending, weight, recoveries: 0 };
        let (confirm, confirmed) = oneshot::channel();
        let lease = &mut self.leases[index];
        let shared = Arc::new(SharedKey::new(key, node, status, lease.metrics.clone()));
        let handle = KeyHandle::new(shared.clone(), lease.commands.clone());
        lease.names.insert(shared.service().clone());
        self.keys.insert(PlacedKey(shared.clone()));
        // A lease ends only by a command.
        let _ = lease.commands.send(Command::Register { request, shared, reply: confirm }).await;
        let _ = reply.send(Ok((handle, confirmed))); // Given up: the handle is dropped, which stops the key.
    }

    /// Lets a request wait until its key is out of etcd. Requests that were given up make room for others.
    fn wait(&mut self, request: Box<RegisterRequest>, reply: PlacementReply) {
        let waiting = self.waiting.entry(request.key.clone()).or_default();
        waiting.retain(|(_, reply)| !reply.is_closed());
        if waiting.len() < MAX_WAITING {
            return waiting.push((request, reply));
        }
        let what = "the number of calls that wait for one key";
        let _ = reply.send(Err(Error::Quota { what, limit: MAX_WAITING })); // The caller may have given up, too.
    }

    /// The index of a lease that has room for another key: of a service that it does not carry yet, or of a service to be
    /// named later.
    fn lease_with_room(&mut self, ttl: Ttl, name: Option<&ServiceName>, shared: &Shared) -> usize {
        let carries = |lease: &LeaseHandle| name.is_some_and(|name| lease.names.contains(name));
        let has_room = |lease: &LeaseHandle| lease.ttl == ttl && lease.names.len() < MAX_KEYS && !carries(lease);
        if let Some(index) = self.leases.iter().position(has_room) {
            return index;
        }
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let metrics = Arc::new(LeaseMetrics::new(Instant::now(), self.next_lease, self.faults.clone()));
        let Options { request_timeout, register_timeout, damping, .. } = *self.options;
        let former_leases = self.options.former_leases.as_slice().into();
        let config = Config { ttl, request_timeout, register_timeout, damping, former_leases };
        let task = LeaseTask::new(
            config,
            self.rng.fork(),
            Surroundings {
                etcd: shared.etcd.clone(),
                load: shared.load.clone(),
                metrics: metrics.clone(),
                events: self.events.clone(),
                released: shared.released.clone(),
                suspended_for: self.suspended_for.subscribe(),
            },
        );
        self.spawn(task.run(inbox));
        self.next_lease += 1;
        self.leases.push(LeaseHandle { ttl, names: HashSet::new(), commands, metrics });
        self.leases.len() - 1
    }

    /// Frees a key for others. Returns the requests that waited for it.
    fn release(&mut self, key: &Arc<str>) -> Vec<(Box<RegisterRequest>, PlacementReply)> {
        if let Some(PlacedKey(placed)) = self.keys.take(&**key)
            && let Some(index) = self.leases.iter().position(|lease| lease.metrics.id() == placed.metrics().id())
        {
            let lease = &mut self.leases[index];
            lease.names.remove(placed.service());
            if lease.names.is_empty() && lease.commands.try_send(Command::End).is_ok() {
                self.leases.swap_remove(index);
            }
        }
        self.waiting.remove(key).unwrap_or_default()
    }

    #[cfg(feature = "discovery")]
    fn view(&mut self, shared: &Shared, name: ServiceName, version: Version) -> Result<View, Error> {
        let what = (name, version);
        if let Some(view) = self.views.get(&what).and_then(View::new) {
            return Ok(view);
        }
        if self.views.len() >= self.views_until_pruning {
            self.views.retain(|_, state| !state.has_ended());
            self.views_until_pruning = (2 * self.views.len()).clamp(MIN_VIEWS, MAX_VIEWS);
        }
        if self.views.len() >= MAX_VIEWS {
            return Err(Error::Quota { what: "the number of views", limit: MAX_VIEWS });
        }
        let layouts = self.options.read_layouts();
        let patience = self.options.request_timeout;
        let state = Arc::new(ViewState::new(what.0.clone(), what.1.clone(), &layouts, patience, shared.timers.clone()));
        let view = View::new(&state).ok_or(Error::Ended)?;
        for index in 0..layouts.len() {
            let (state, ending) = (state.clone(), self.ending.clone());
            let watching = view::watch(state.clone(), index, shared.etcd.clone(), self.rng.fork());
            let watching = Box::pin(watching);
            self.spawn(async move {
                ending.run_until_cancelled(watching).await;
                state.end();
            });
        }
        self.views.insert(what, state);
        Ok(view)
    }

    #[cfg(feature = "discovery")]
    fn watch_keys(&mut self, etcd: &Etcd, scope: Option<&(ServiceName, Version)>) -> KeyWatch {
        let (sender, events) = mpsc::channel(MAX_QUEUED_EVENTS);
        let ranges = Ranges::new(&self.options.read_layouts(), scope);
        let watching = key_watch::watch(etcd.clone(), ranges, self.options.request_timeout, self.rng.fork(), sender);
        let (watching, ending) = (Box::pin(watching), self.ending.clone());
        self.tracker.spawn(async move {
            ending.run_until_cancelled(watching).await;
        });
        KeyWatch { events }
    }
}
