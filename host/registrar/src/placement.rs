//! The task behind the handles: which lease a registration is placed on, and when there is another one.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "simulation")]
use crate::sim::Suspension;
use crate::{
    discovery::{
        key_watch::{self, KeyWatch},
        list::Ranges,
        view::{self, View, ViewState},
    },
    error::Error,
    etcd::{Etcd, latency::Latencies},
    faults::Faults,
    layout::Layout,
    lease::{
        key::Wish,
        suspend,
        task::{Command, Lease, Surroundings},
    },
    node::{ServerNode, ServiceName, Version, Weight},
    options::{LoadSource, Options, Ownership, Ttl},
    registration::Registration,
    status::{Event, LeaseMetrics, Standing, State, StatusCell},
    weight::load,
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
const MAX_VIEWS: usize = 10_000;
/// Largest number of events that wait for the reader of a key watch; then etcd waits.
const MAX_QUEUED_EVENTS: usize = 16;
/// Number of views below which those without a handle are not pruned: fewer are not worth it.
const MIN_VIEWS: usize = 256;
/// Events that a slow listener may fall behind before it loses the oldest.
const MAX_EVENTS: usize = 4096;

/// What the handles of a registrar hold of its task.
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

/// What a handle asks.
pub(crate) enum Request {
    Register(Application),
    GrantAhead {
        until: Instant,
    },
    /// What only looks at etcd, and answers by itself.
    Look(Look),
    WatchKeys {
        what: Which,
        reply: oneshot::Sender<KeyWatch>,
    },
    Watch {
        name: ServiceName,
        version: Version,
        reply: oneshot::Sender<Result<View, Error>>,
    },
    End,
}

/// What is to be done with etcd, apart from the task's own work.
pub(crate) type Look = Box<dyn FnOnce(Etcd) -> BoxFuture<'static, ()> + Send>;

/// Which keys of the layouts are read: all, or those of one service, or of one version of it.
pub(crate) type Which = Option<(ServiceName, Version)>;

/// One key that is to be registered.
pub(crate) struct Application {
    pub(crate) node: Arc<ServerNode>,
    pub(crate) layout: Layout,
    pub(crate) ttl: Ttl,
    pub(crate) ownership: Ownership,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Placement, Error>>,
}

/// A registration that has its place on a lease, and the news whether it is in etcd.
pub(crate) type Placement = (Registration, oneshot::Receiver<Result<(), Error>>);

/// The task behind the handles: it places registrations on leases, and answers what the handles ask.
pub(crate) struct RegistrarTask {
    options: Arc<Options>,
    inbox: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
    ended: watch::Sender<bool>,
    leases: Vec<LeaseHandle>,
    next_lease: u64,
    keys: HashMap<Arc<str>, Place>,
    /// Applications for keys that are being taken back.
    waiting: HashMap<Arc<str>, Vec<Application>>,
    /// Views that somebody holds, or did until lately.
    views: HashMap<(ServiceName, Version), Arc<ViewState>>,
    /// Number of views at which those without a handle are pruned.
    views_until_pruning: usize,
    /// Ends the views.
    ending: CancellationToken,
    tracker: TaskTracker,
    faults: Arc<Faults>,
    /// Whether the load is an estimate yet.
    estimated: Arc<AtomicBool>,
    /// How much time went by, all in all, that timers did not see.
    suspended_for: watch::Sender<Duration>,
    #[cfg(feature = "simulation")]
    suspension: Suspension,
    rng: fastrand::Rng,
}

/// A lease with room on it.
struct LeaseHandle {
    id: u64,
    ttl: Ttl,
    /// No lease carries two instances of one service: losing it must not take the whole service away, and a reader of
    /// the seed layout freezes on two events of one service in one response.
    names: HashSet<ServiceName>,
    commands: mpsc::Sender<Command>,
    metrics: Arc<LeaseMetrics>,
    dropped: Arc<Notify>,
}

struct Place {
    lease: u64,
    name: ServiceName,
    status: Weak<StatusCell>,
}

impl Place {
    /// Whether the key is being taken back, or about to be since its handle was dropped.
    fn is_leaving(&self) -> bool {
        self.status.upgrade().is_none_or(|status| matches!(status.read().state, State::Draining | State::Stopped))
    }
}

impl RegistrarTask {
    /// One that lives once it is told to, and what its handles hold of it.
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
            keys: HashMap::new(),
            waiting: HashMap::new(),
            views: HashMap::new(),
            views_until_pruning: MIN_VIEWS,
            ending: CancellationToken::new(),
            tracker: TaskTracker::new(),
            faults: channels.faults.clone(),
            estimated: Arc::default(),
            suspended_for: channels.suspended_for.clone(),
            #[cfg(feature = "simulation")]
            suspension: channels.suspension.clone(),
        };
        (task, channels)
    }

    /// Follows this machine's clocks, for as long as it lives.
    pub(crate) fn detect_suspension(&self) {
        let (suspended, ending) = (suspend::follow(self.suspended_for.clone()), self.ending.clone());
        self.spawn(async move {
            ending.run_until_cancelled(suspended).await;
        });
    }

    pub(crate) async fn live(mut self, etcd: Etcd) {
        let load = self.load();
        let (released, mut free) = mpsc::unbounded_channel(); // One message per registration, so they bound it.
        loop {
            tokio::select! {
                biased;
                Some(key) = free.recv() => {
                    for application in self.release(&key) {
                        self.place(application, &etcd, &load, &released).await;
                    }
                }
                request = self.inbox.recv() => match request {
                    Some(Request::Register(application)) => self.place(application, &etcd, &load, &released).await,
                    Some(Request::GrantAhead { until }) => {
                        let lease = self.lease_with_room(self.options.ttl, None, &etcd, &load, &released);
                        // One that has more to do than it can take has a lease, or cannot get one.
                        let _ = self.leases[lease].commands.try_send(Command::Await(until));
                    }
                    Some(Request::Look(look)) => {
                        self.tracker.spawn(look(etcd.clone()));
                    }
                    Some(Request::WatchKeys { what, reply }) => {
                        let _ = reply.send(self.watch_keys(&etcd, what.as_ref())); // The caller may have given up.
                    }
                    Some(Request::Watch { name, version, reply }) => {
                        let _ = reply.send(self.view(&etcd, name, version)); // The caller may have given up.
                    }
                    Some(Request::End) | None => break,
                },
            }
        }
        self.inbox.close();
        self.ending.cancel();
        // Who still waits is told: leases may take long to end.
        while self.inbox.try_recv().is_ok() {}
        self.waiting.clear();
        for lease in self.leases.drain(..) {
            let _ = lease.commands.send(Command::End).await; // One that has ended needs no telling.
        }
        drop(load);
        let Self { tracker, ended, .. } = self;
        tracker.close();
        tracker.wait().await;
        let _ = ended.send(true); // Nobody may be waiting.
    }

    /// A task that goes on until the registrar ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        #[cfg(feature = "simulation")]
        let task = self.suspension.clone().hold(task);
        self.tracker.spawn(task);
    }

    fn load(&self) -> watch::Receiver<Weight> {
        match &self.options.load {
            LoadSource::Given(load) => load.clone(),
            LoadSource::Fixed(weight) => watch::channel(*weight).1,
            LoadSource::Machine => {
                let (weight, load) = watch::channel(load::first_look());
                self.estimated.store(true, Ordering::Relaxed);
                self.tracker.spawn(load::sample(weight, self.estimated.clone()));
                load
            }
        }
    }

    async fn place(
        &mut self,
        application: Application,
        etcd: &Etcd,
        load: &watch::Receiver<Weight>,
        released: &mpsc::UnboundedSender<Arc<str>>,
    ) {
        if application.reply.is_closed() {
            return;
        }
        let key: Arc<str> = application.layout.key(&application.node).into();
        if let Some(place) = self.keys.get(&key)
            && place.is_leaving()
        {
            return self.wait(key, application);
        }
        let Application { node, layout, ttl, ownership, deadline, reply } = application;
        let refusal = match layout.accept(&node) {
            Err(invalid) => Some(invalid.into()),
            Ok(()) if self.keys.contains_key(&key) => Some(Error::Duplicate(key.clone())),
            Ok(()) if self.keys.len() >= self.options.max_registrations => {
                Some(Error::Quota { what: "the number of registrations", limit: self.options.max_registrations })
            }
            Ok(()) => None,
        };
        if let Some(error) = refusal {
            let _ = reply.send(Err(error)); // The caller may have given up.
            return;
        }
        let lease = self.lease_with_room(ttl, Some(&node.name), etcd, load, released);
        let weight = node.weight.unwrap_or(*load.borrow());
        let status = Arc::new(StatusCell::new(Standing { state: State::Pending, weight, recoveries: 0 }));
        let (confirm, confirmed) = oneshot::channel();
        let wish = Wish {
            key: key.clone(),
            node: node.clone(),
            layout,
            ownership,
            status: Arc::downgrade(&status),
            deadline,
            reply: confirm,
        };
        let lease = &mut self.leases[lease];
        let registration = Registration {
            key: key.clone(),
            node: node.clone(),
            renewals_before: lease.metrics.renewals(),
            metrics: lease.metrics.clone(),
            commands: lease.commands.clone(),
            stop_timeout: self.options.stop_timeout,
            status: Some(status),
            dropped: lease.dropped.clone(),
            registrar: None,
            others: Vec::new(),
        };
        lease.names.insert(node.name.clone());
        let place = Place { lease: lease.id, name: node.name.clone(), status: wish.status.clone() };
        self.keys.insert(key, place);
        let _ = lease.commands.send(Command::Keep(Box::new(wish))).await; // A lease ends only when it is told to.
        let _ = reply.send(Ok((registration, confirmed))); // Given up: the handle is dropped, which takes the key back.
    }

    /// Until the key is out of etcd. Those that have given up make room for those that have not.
    fn wait(&mut self, key: Arc<str>, application: Application) {
        let waiting = self.waiting.entry(key).or_default();
        waiting.retain(|application| !application.reply.is_closed());
        if waiting.len() < MAX_WAITING {
            return waiting.push(application);
        }
        let what = "the number of calls that wait for one key";
        let _ = application.reply.send(Err(Error::Quota { what, limit: MAX_WAITING })); // It may have given up, too.
    }

    /// The index of a lease that has room for another key: of a service it does not carry yet, or of one to be named later.
    fn lease_with_room(
        &mut self,
        ttl: Ttl,
        name: Option<&ServiceName>,
        etcd: &Etcd,
        load: &watch::Receiver<Weight>,
        released: &mpsc::UnboundedSender<Arc<str>>,
    ) -> usize {
        let carries = |lease: &LeaseHandle| name.is_some_and(|name| lease.names.contains(name));
        let has_room = |lease: &LeaseHandle| lease.ttl == ttl && lease.names.len() < MAX_KEYS && !carries(lease);
        if let Some(index) = self.leases.iter().position(has_room) {
            return index;
        }
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let metrics = Arc::new(LeaseMetrics::new(Instant::now(), self.next_lease, self.faults.clone()));
        let dropped = Arc::new(Notify::new());
        let lease = Lease::new(Surroundings {
            etcd: etcd.clone(),
            ttl,
            request_timeout: self.options.request_timeout,
            register_timeout: self.options.register_timeout,
            damping: self.options.damping,
            load: load.clone(),
            estimated: self.estimated.clone(),
            metrics: metrics.clone(),
            events: self.events.clone(),
            released: released.clone(),
            dropped: dropped.clone(),
            suspended_for: self.suspended_for.subscribe(),
            rng: self.rng.fork(),
        });
        self.spawn(lease.live(inbox));
        self.next_lease += 1;
        self.leases.push(LeaseHandle { id: self.next_lease, ttl, names: HashSet::new(), commands, metrics, dropped });
        self.leases.len() - 1
    }

    /// Frees a key's place; gives the applications that waited for it.
    fn release(&mut self, key: &Arc<str>) -> Vec<Application> {
        if let Some(place) = self.keys.remove(key)
            && let Some(index) = self.leases.iter().position(|lease| lease.id == place.lease)
        {
            let lease = &mut self.leases[index];
            lease.names.remove(&place.name);
            if lease.names.is_empty() && lease.commands.try_send(Command::End).is_ok() {
                self.leases.swap_remove(index);
            }
        }
        self.waiting.remove(key).unwrap_or_default()
    }

    fn view(&mut self, etcd: &Etcd, name: ServiceName, version: Version) -> Result<View, Error> {
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
        let state = Arc::new(ViewState::new(what.0.clone(), what.1.clone(), &layouts, patience));
        let view = View::new(&state).ok_or(Error::Ended)?;
        for index in 0..layouts.len() {
            let (state, ending) = (state.clone(), self.ending.clone());
            let watching = view::watch(state.clone(), index, etcd.clone(), self.rng.fork());
            let watching = Box::pin(watching);
            self.spawn(async move {
                ending.run_until_cancelled(watching).await;
                state.end();
            });
        }
        self.views.insert(what, state);
        Ok(view)
    }

    fn watch_keys(&mut self, etcd: &Etcd, what: Option<&(ServiceName, Version)>) -> KeyWatch {
        let (sender, events) = mpsc::channel(MAX_QUEUED_EVENTS);
        let ranges = Ranges::new(&self.options.read_layouts(), what);
        let watching = key_watch::watch(etcd.clone(), ranges, self.options.request_timeout, self.rng.fork(), sender);
        let (watching, ending) = (Box::pin(watching), self.ending.clone());
        self.tracker.spawn(async move {
            ending.run_until_cancelled(watching).await;
        });
        KeyWatch { events }
    }
}
