//! The public face: one thread that owns every lease, and the handles to it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::{join_all, select_all, try_join_all};
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "simulation")]
use crate::suspension::Suspension;
use crate::{
    config::{LoadSource, Options, Ownership, Terms, Ttl},
    discovery::{self, Picture, View},
    entry::Wish,
    error::Error,
    etcd::{Etcd, Failure, LeaseView},
    health::Health,
    latency::{Latencies, Latency, Verb},
    layout::Layout,
    leaps,
    lease::{Command, Lease, Surroundings},
    listed::{self, Following, Listed, Ranges, TimeLeft},
    load,
    node::{Invalid, ServerNode, ServiceName, Version, Weight},
    status::{Board, Event, Standing, State, Status, Vitals},
};

/// Keys on one lease, at most: what is lost with it, and what an audit reads, stays bounded.
const MAX_KEYS: usize = 1000;
/// Requests that wait for the registrar, at most; a caller beyond waits in line.
const MAX_REQUESTS: usize = 1024;
/// Commands that wait for a lease, at most; a caller beyond waits in line.
const MAX_COMMANDS: usize = 1024;
/// Calls of `register` that wait for one key to be out of etcd, at most.
const MAX_WAITING: usize = 64;
/// How long a lease that was granted ahead waits for its first key, at most.
const MAX_AHEAD: Duration = Duration::from_secs(3600);
/// Views at a time, at most.
const MAX_VIEWS: usize = 10_000;
/// Answers of etcd that wait for one who follows; then etcd waits.
const MAX_UNTOLD: usize = 16;
/// Events that a slow listener may fall behind before it loses the oldest.
const MAX_EVENTS: usize = 4096;

/// Keeps registrations in etcd, on a thread of its own, until it is shut down.
///
/// Cloning clones the handle. When the last handle and the last [`Registration`] are dropped, every key is taken back in
/// the background; only [`Registrar::shutdown`] waits for it.
#[derive(Debug, Clone)]
pub struct Registrar {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Event>,
    ended: watch::Receiver<bool>,
    options: Arc<Options>,
    latencies: Arc<Latencies>,
    #[cfg(feature = "simulation")]
    suspension: Suspension,
    #[cfg(feature = "simulation")]
    leaps: watch::Sender<Duration>,
}

/// A lease, as etcd has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseStatus {
    /// How long it lasts from a renewal on.
    pub ttl: Duration,
    /// How long it lasts if it is not renewed, in whole seconds.
    pub ttl_remaining: Duration,
    /// How many keys stand under it.
    pub keys: usize,
}

/// What etcd says of itself.
#[derive(Debug, Clone)]
pub struct EtcdStatus {
    /// The endpoint that answered.
    pub endpoint: String,
    /// Its version.
    pub version: String,
}

#[derive(Debug)]
enum Request {
    Register(Application),
    GrantAhead { until: Instant },
    Status(oneshot::Sender<Result<EtcdStatus, Error>>),
    List { what: Which, reply: oneshot::Sender<Result<Vec<Listed>, Error>> },
    Follow { what: Which, reply: oneshot::Sender<Following> },
    Leases(oneshot::Sender<Result<Vec<i64>, Error>>),
    Lease { lease: i64, reply: oneshot::Sender<Result<Option<LeaseStatus>, Error>> },
    TimesLeft { leases: HashSet<i64>, within: Duration, reply: oneshot::Sender<HashMap<i64, TimeLeft>> },
    Health(oneshot::Sender<Health>),
    Watch { name: ServiceName, version: Version, reply: oneshot::Sender<Result<View, Error>> },
    End,
}

/// Which keys of the layouts are read: all, or those of one service, or of one version of it.
type Which = Option<(ServiceName, Version)>;

#[derive(Debug)]
struct Application {
    node: Arc<ServerNode>,
    layout: Layout,
    ttl: Ttl,
    ownership: Ownership,
    deadline: Instant,
    reply: oneshot::Sender<Result<Placement, Error>>,
}

/// A registration that has its place on a lease, and the news whether it is in etcd.
type Placement = (Registration, oneshot::Receiver<Result<(), Error>>);

impl Registrar {
    /// Starts the registrar's thread.
    ///
    /// Does not wait for etcd: one that is down is tried again for ever. Fails for options that break a rule, and when
    /// the system gives no thread.
    pub fn start(options: Options) -> Result<Self, Error> {
        check(&options)?;
        let no_thread = |_| Error::Quota { what: "the number of threads of this process", limit: 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let (handle, keeper) = Self::halves(options);
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("leasehold".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let etcd = Etcd::prepare(&keeper.options, keeper.latencies.clone()).await;
                    let etcd = match etcd {
                        Ok(etcd) => etcd,
                        Err(error) => return drop(started.send(Err(error))),
                    };
                    drop(started.send(Ok(())));
                    let (leaps, ending) = (leaps::follow(keeper.leaps.clone()), keeper.ending.clone());
                    keeper.spawn(async move {
                        ending.run_until_cancelled(leaps).await;
                    });
                    keeper.live(etcd).await;
                });
            })
            .map_err(no_thread)?;
        outcome.recv().map_err(|_| Error::Ended)??;
        Ok(handle)
    }

    /// Starts on the current runtime, over given channels instead of sockets: how a simulated etcd stands behind it.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub async fn start_over(options: Options, channels: Vec<(Arc<str>, crate::etcd::Channel)>) -> Result<Self, Error> {
        check(&options)?;
        let (handle, keeper) = Self::halves(options);
        let etcd = Etcd::over(&keeper.options, channels, keeper.latencies.clone()).await?;
        TaskTracker::new().spawn(handle.suspension.clone().hold(keeper.live(etcd))); // Waited for through `ended`.
        Ok(handle)
    }

    /// Stops everything that goes on in this registrar, while time goes on, or lets it go on.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn suspend(&self, suspended: bool) {
        self.suspension.set(suspended);
    }

    /// Lets the registrar believe that this machine was suspended for so long.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn leap(&self, by: Duration) {
        self.leaps.send_modify(|total| *total += by);
    }

    fn halves(options: Options) -> (Self, Keeper) {
        let options = Arc::new(options);
        let (requests, inbox) = mpsc::channel(MAX_REQUESTS);
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let (ended, has_ended) = watch::channel(false);
        let (leaps, latencies) = (watch::Sender::new(Duration::ZERO), Arc::default());
        #[cfg(feature = "simulation")]
        let suspension = Suspension::default();
        let keeper = Keeper {
            options: options.clone(),
            inbox,
            events: events.clone(),
            ended,
            slots: Vec::new(),
            next_slot: 0,
            keys: HashMap::new(),
            waiting: HashMap::new(),
            views: HashMap::new(),
            ending: CancellationToken::new(),
            tracker: TaskTracker::new(),
            leaps: leaps.clone(),
            latencies: Arc::clone(&latencies),
            #[cfg(feature = "simulation")]
            suspension: suspension.clone(),
            rng: options.jitter_seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
        };
        let handle = Self {
            requests,
            events,
            ended: has_ended,
            options,
            latencies,
            #[cfg(feature = "simulation")]
            suspension,
            #[cfg(feature = "simulation")]
            leaps,
        };
        (handle, keeper)
    }

    /// Asks etcd for its version: one round trip within the request timeout.
    pub async fn reach(&self) -> Result<EtcdStatus, Error> {
        self.ask(Request::Status).await?
    }

    /// Has a lease granted for a node that is about to be registered on the TTL of the [`Options`], which then waits for one
    /// answer of etcd instead of two.
    ///
    /// Does not wait. A lease that nobody registers on `within` that time, an hour at most, is revoked.
    pub fn grant_ahead(&self, within: Duration) {
        let until = Instant::now() + within.min(MAX_AHEAD);
        // Where requests wait in line, or nobody takes them any more, there is nothing to be ahead of.
        let _ = self.requests.try_send(Request::GrantAhead { until });
    }

    /// Registers `node` on the terms of the [`Options`].
    pub async fn register(&self, node: ServerNode) -> Result<Registration, Error> {
        self.register_all(Arc::new(node), Terms::default()).await
    }

    /// Registers `node` and keeps it registered until its handle is stopped or dropped.
    ///
    /// Ok: its key is in etcd, bound to a live lease, or its keys with several layouts. An error: nothing stays
    /// registered. So it is when this future is dropped. A key that this registrar is taking back at the moment is waited
    /// for.
    pub async fn register_on(&self, node: ServerNode, terms: Terms) -> Result<Registration, Error> {
        self.register_all(Arc::new(node), terms).await
    }

    async fn register_all(&self, node: Arc<ServerNode>, terms: Terms) -> Result<Registration, Error> {
        let layouts = terms.layouts.as_ref().unwrap_or(&self.options.layouts);
        Layout::check_together(layouts)?;
        for layout in layouts {
            layout.accept_beside(&node, layouts.iter().chain(&self.options.layouts))?;
        }
        match layouts.as_slice() {
            [layout] => self.register_key(node, layout, &terms).await,
            // Boxed, so that the usual case does not pay for it.
            layouts => Box::pin(self.register_keys(node, layouts, &terms)).await,
        }
    }

    async fn register_keys(
        &self,
        node: Arc<ServerNode>,
        layouts: &[Layout],
        terms: &Terms,
    ) -> Result<Registration, Error> {
        let all = layouts.iter().map(|layout| self.register_key(node.clone(), layout, terms));
        let mut all = try_join_all(all).await?.into_iter();
        let mut registration = all.next().ok_or(Error::Ended)?;
        registration.others = all.collect();
        Ok(registration)
    }

    async fn register_key(&self, node: Arc<ServerNode>, layout: &Layout, terms: &Terms) -> Result<Registration, Error> {
        let patience = self.options.register_timeout;
        let deadline = Instant::now() + patience;
        let placing = self.ask(|reply| {
            Request::Register(Application {
                node,
                layout: layout.clone(),
                ttl: terms.ttl.unwrap_or(self.options.ttl),
                ownership: terms.ownership.unwrap_or(self.options.ownership),
                deadline,
                reply,
            })
        });
        let placed = timeout_at(deadline, placing).await;
        let (mut registration, confirmed) =
            placed.map_err(|_| Error::Timeout { what: "register", after: patience })???;
        // The lease answers by the same deadline, and says why it could not.
        confirmed.await.map_err(|_| Error::Ended)??;
        registration.keeper = Some(self.requests.clone());
        Ok(registration)
    }

    /// The keys that `node` has on these terms, one for each layout, in their order. Two nodes with the same keys are one
    /// instance, whatever else they say.
    pub fn keys(&self, node: &ServerNode, terms: &Terms) -> Vec<String> {
        terms.layouts.as_ref().unwrap_or(&self.options.layouts).iter().map(|layout| layout.key(node)).collect()
    }

    /// The nodes that stand in etcd for `name`, and for `version` unless it is empty; none is a success.
    ///
    /// What is not a node under one of this registrar's layouts is left out. An instance that stands under several of
    /// them is one node, as the first of them has it.
    pub async fn resolve(&self, name: &ServiceName, version: &Version) -> Result<Vec<ServerNode>, Error> {
        let what = Some((name.clone(), version.clone()));
        let found = self.ask(|reply| Request::List { what, reply }).await??;
        let mut seen = HashSet::new();
        let mut nodes: Vec<_> = found.into_iter().filter_map(|listed| listed.node.ok()).collect();
        // Not every layout has a name's keys, or a version's, to themselves under their prefix.
        nodes.retain(|node| node.name == *name && (version.as_str().is_empty() || node.version == *version));
        let is_one = self.options.layouts.len() + self.options.also_read.len() == 1;
        nodes.retain(|node| is_one || seen.insert((node.version.clone(), node.addr.clone())));
        Ok(nodes)
    }

    /// A view of the nodes of `name`, and of `version` unless it is empty, that follows etcd in the background until the last
    /// of its handles is dropped. Views of the same are one.
    ///
    /// Does not wait for etcd: [`View::ready`] does. Fails with [`Error::Quota`] when there are 10,000 already.
    pub async fn watch(&self, name: &ServiceName, version: &Version) -> Result<View, Error> {
        let (name, version) = (name.clone(), version.clone());
        self.ask(|reply| Request::Watch { name, version, reply }).await?
    }

    /// Every key of one service, or of all, under each layout of this registrar, with its lease, in the order of the keys;
    /// garbage included.
    pub async fn list(&self, name: Option<&ServiceName>) -> Result<Vec<Listed>, Error> {
        let what = name.map(|name| (name.clone(), Version::default()));
        let mut listed = self.ask(|reply| Request::List { what, reply }).await??;
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// The same keys, and what happens to them from now on, through outages of etcd. Does not wait for etcd.
    pub async fn follow(&self, name: Option<&ServiceName>) -> Result<Following, Error> {
        let what = name.map(|name| (name.clone(), Version::default()));
        self.ask(|reply| Request::Follow { what, reply }).await
    }

    /// Every lease in etcd, whoever's it is.
    pub async fn leases(&self) -> Result<Vec<i64>, Error> {
        self.ask(Request::Leases).await?
    }

    /// A lease, whoever's it is; `None` when it does not exist, or not any more.
    pub async fn lease(&self, lease: i64) -> Result<Option<LeaseStatus>, Error> {
        self.ask(|reply| Request::Lease { lease, reply }).await?
    }

    /// How long leases last without a renewal, as far as etcd tells `within` that time; zero for those that are gone.
    pub async fn times_left(&self, leases: HashSet<i64>, within: Duration) -> Result<HashMap<i64, TimeLeft>, Error> {
        self.ask(|reply| Request::TimesLeft { leases, within, reply }).await
    }

    /// How etcd is: each of the endpoints by itself, and its alarms.
    pub async fn health(&self) -> Result<Health, Error> {
        self.ask(Request::Health).await
    }

    /// What happens from now on. A listener that falls 4096 events behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// How long etcd has taken to do what this registrar asked of it, by what that was. Never waits.
    ///
    /// A request that was broken off is not in it, nor is what [`health`](Self::health) asks each endpoint.
    pub fn latencies(&self) -> [Latency; Verb::ALL.len()] {
        self.latencies.read()
    }

    /// Whether it has ended, by `shutdown` or by a failure of its own. Nothing is renewed any more then.
    pub fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    /// Revokes every lease, and with them every key, and ends. Idempotent.
    ///
    /// After an error of [`Error::Timeout`] it goes on in the background; the keys end with their TTL in any case.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Error> {
        let _ = self.requests.try_send(Request::End); // A full inbox is told below; a closed one has ended already.
        let mut ended = self.ended.clone();
        let all = async {
            let _ = self.requests.send(Request::End).await; // Closed: it is ending already.
            let _ = ended.wait_for(|ended| *ended).await; // Dropped: it has ended.
        };
        timeout(deadline, all).await.map_err(|_| Error::Timeout { what: "shutdown", after: deadline })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)
    }
}

fn check(options: &Options) -> Result<(), Invalid> {
    for (field, duration) in [
        ("dial_timeout", options.dial_timeout),
        ("request_timeout", options.request_timeout),
        ("register_timeout", options.register_timeout),
        ("stop_timeout", options.stop_timeout),
    ] {
        if duration < Duration::from_millis(1) || duration > Duration::from_secs(3600) {
            return Err(Invalid::new(field, format!("must be 1 ms to 1 h, not {duration:?}")));
        }
    }
    Layout::check_together(&options.layouts)
}

/// The task behind the handles: it places registrations on leases.
struct Keeper {
    options: Arc<Options>,
    inbox: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
    ended: watch::Sender<bool>,
    slots: Vec<Slot>,
    next_slot: u64,
    keys: HashMap<Arc<str>, Place>,
    /// Applications for keys that are being taken back.
    waiting: HashMap<Arc<str>, Vec<Application>>,
    /// Views that somebody holds, or did until lately.
    views: HashMap<(ServiceName, Version), Arc<Picture>>,
    /// Ends the views.
    ending: CancellationToken,
    tracker: TaskTracker,
    /// How much time went by, all in all, that timers did not see.
    leaps: watch::Sender<Duration>,
    latencies: Arc<Latencies>,
    #[cfg(feature = "simulation")]
    suspension: Suspension,
    rng: fastrand::Rng,
}

/// A lease with room on it.
struct Slot {
    id: u64,
    ttl: Ttl,
    /// No lease carries two instances of one service: losing it must not take the whole service away, and a reader of
    /// the seed layout freezes on two events of one service in one response.
    names: HashSet<ServiceName>,
    commands: mpsc::Sender<Command>,
    vitals: Arc<Vitals>,
    nudge: Arc<Notify>,
}

struct Place {
    slot: u64,
    name: ServiceName,
    board: Weak<Board>,
}

impl Place {
    /// Whether the key is being taken back, or about to be since its handle was dropped.
    fn is_leaving(&self) -> bool {
        self.board.upgrade().is_none_or(|board| matches!(board.read().state, State::Draining | State::Stopped))
    }
}

impl Keeper {
    async fn live(mut self, etcd: Etcd) {
        let load = self.load();
        let (freed, mut free) = mpsc::unbounded_channel(); // One message per registration, so they bound it.
        loop {
            tokio::select! {
                biased;
                Some(key) = free.recv() => {
                    for application in self.release(&key) {
                        self.place(application, &etcd, &load, &freed).await;
                    }
                }
                request = self.inbox.recv() => match request {
                    Some(Request::Register(application)) => self.place(application, &etcd, &load, &freed).await,
                    Some(Request::GrantAhead { until }) => {
                        let slot = self.slot(self.options.ttl, None, &etcd, &load, &freed);
                        // One that has more to do than it can take has a lease, or cannot get one.
                        let _ = self.slots[slot].commands.try_send(Command::Await(until));
                    }
                    Some(Request::Status(reply)) => self.status(etcd.clone(), reply),
                    Some(Request::List { what, reply }) => self.list(etcd.clone(), what.as_ref(), reply),
                    Some(Request::Follow { what, reply }) => {
                        let _ = reply.send(self.follow(&etcd, what.as_ref())); // The caller may have given up.
                    }
                    Some(Request::Leases(reply)) => self.leases(etcd.clone(), reply),
                    Some(Request::Lease { lease, reply }) => self.lease(etcd.clone(), lease, reply),
                    Some(Request::TimesLeft { leases, within, reply }) => {
                        self.times_left(etcd.clone(), leases, within, reply);
                    }
                    Some(Request::Health(reply)) => self.health(etcd.clone(), reply),
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
        for slot in self.slots.drain(..) {
            let _ = slot.commands.send(Command::End).await; // One that has ended needs no telling.
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
                self.tracker.spawn(load::sample(weight));
                load
            }
        }
    }

    async fn place(
        &mut self,
        application: Application,
        etcd: &Etcd,
        load: &watch::Receiver<Weight>,
        freed: &mpsc::UnboundedSender<Arc<str>>,
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
        let slot = self.slot(ttl, Some(&node.name), etcd, load, freed);
        let weight = node.weight.unwrap_or(*load.borrow());
        let board = Arc::new(Board::new(Standing { state: State::Pending, weight, recoveries: 0 }));
        let (confirm, confirmed) = oneshot::channel();
        let wish = Wish {
            key: key.clone(),
            node: node.clone(),
            layout,
            ownership,
            board: Arc::downgrade(&board),
            deadline,
            reply: confirm,
        };
        let slot = &mut self.slots[slot];
        let registration = Registration {
            key: key.clone(),
            node: node.clone(),
            renewals_before: slot.vitals.renewals(),
            vitals: slot.vitals.clone(),
            commands: slot.commands.clone(),
            stop_timeout: self.options.stop_timeout,
            board: Some(board),
            nudge: slot.nudge.clone(),
            keeper: None,
            others: Vec::new(),
        };
        slot.names.insert(node.name.clone());
        let place = Place { slot: slot.id, name: node.name.clone(), board: wish.board.clone() };
        self.keys.insert(key, place);
        let _ = slot.commands.send(Command::Keep(Box::new(wish))).await; // A lease ends only when it is told to.
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

    /// The index of a slot that has room for another key: of a service it does not carry yet, or of one to be named later.
    fn slot(
        &mut self,
        ttl: Ttl,
        name: Option<&ServiceName>,
        etcd: &Etcd,
        load: &watch::Receiver<Weight>,
        freed: &mpsc::UnboundedSender<Arc<str>>,
    ) -> usize {
        let carries = |slot: &Slot| name.is_some_and(|name| slot.names.contains(name));
        let has_room = |slot: &Slot| slot.ttl == ttl && slot.names.len() < MAX_KEYS && !carries(slot);
        if let Some(index) = self.slots.iter().position(has_room) {
            return index;
        }
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let nudge = Arc::new(Notify::new());
        let lease = Lease::new(Surroundings {
            etcd: etcd.clone(),
            ttl,
            request_timeout: self.options.request_timeout,
            register_timeout: self.options.register_timeout,
            damping: self.options.damping,
            load: load.clone(),
            vitals: vitals.clone(),
            events: self.events.clone(),
            freed: freed.clone(),
            nudge: nudge.clone(),
            leaps: self.leaps.subscribe(),
            rng: self.rng.fork(),
        });
        self.spawn(lease.live(inbox));
        self.next_slot += 1;
        self.slots.push(Slot { id: self.next_slot, ttl, names: HashSet::new(), commands, vitals, nudge });
        self.slots.len() - 1
    }

    /// Frees a key's place; gives the applications that waited for it.
    fn release(&mut self, key: &Arc<str>) -> Vec<Application> {
        if let Some(place) = self.keys.remove(key)
            && let Some(index) = self.slots.iter().position(|slot| slot.id == place.slot)
        {
            let slot = &mut self.slots[index];
            slot.names.remove(&place.name);
            if slot.names.is_empty() && slot.commands.try_send(Command::End).is_ok() {
                self.slots.swap_remove(index);
            }
        }
        self.waiting.remove(key).unwrap_or_default()
    }

    fn view(&mut self, etcd: &Etcd, name: ServiceName, version: Version) -> Result<View, Error> {
        let what = (name, version);
        if let Some(view) = self.views.get(&what).and_then(|picture| picture.view()) {
            return Ok(view);
        }
        if self.views.len() >= MAX_VIEWS {
            self.views.retain(|_, picture| !picture.is_over());
        }
        if self.views.len() >= MAX_VIEWS {
            return Err(Error::Quota { what: "the number of views", limit: MAX_VIEWS });
        }
        let layouts = self.options.read_layouts();
        let patience = self.options.request_timeout;
        let picture = Arc::new(Picture::new(what.0.clone(), what.1.clone(), &layouts, patience));
        let view = picture.view().ok_or(Error::Ended)?;
        for index in 0..layouts.len() {
            let (picture, ending) = (picture.clone(), self.ending.clone());
            let following = discovery::follow(picture.clone(), index, etcd.clone(), self.rng.fork());
            let following = Box::pin(following);
            self.spawn(async move {
                ending.run_until_cancelled(following).await;
                picture.end();
            });
        }
        self.views.insert(what, picture);
        Ok(view)
    }

    fn status(&self, etcd: Etcd, reply: oneshot::Sender<Result<EtcdStatus, Error>>) {
        self.tracker.spawn(async move {
            let answer = etcd.status().await.map(|(url, version)| EtcdStatus { endpoint: url.to_string(), version });
            let _ = reply.send(answer.map_err(Error::unavailable)); // The caller may have given up.
        });
    }

    fn list(
        &self,
        etcd: Etcd,
        what: Option<&(ServiceName, Version)>,
        reply: oneshot::Sender<Result<Vec<Listed>, Error>>,
    ) {
        let ranges = Ranges::new(&self.options.read_layouts(), what);
        self.tracker.spawn(async move {
            let listed = listed::list(&etcd, &ranges).await;
            let _ = reply.send(listed.map_err(Error::unavailable)); // The caller may have given up.
        });
    }

    fn follow(&mut self, etcd: &Etcd, what: Option<&(ServiceName, Version)>) -> Following {
        let (tell, told) = mpsc::channel(MAX_UNTOLD);
        let ranges = Ranges::new(&self.options.read_layouts(), what);
        let telling = listed::tell(etcd.clone(), ranges, self.options.request_timeout, self.rng.fork(), tell);
        let (telling, ending) = (Box::pin(telling), self.ending.clone());
        self.tracker.spawn(async move {
            ending.run_until_cancelled(telling).await;
        });
        Following { told }
    }

    fn leases(&self, etcd: Etcd, reply: oneshot::Sender<Result<Vec<i64>, Error>>) {
        self.tracker.spawn(async move {
            let _ = reply.send(etcd.leases().await.map_err(Error::unavailable)); // The caller may have given up.
        });
    }

    fn lease(&self, etcd: Etcd, lease: i64, reply: oneshot::Sender<Result<Option<LeaseStatus>, Error>>) {
        let patience = self.options.request_timeout;
        self.tracker.spawn(async move {
            let answer = match etcd.look_at(lease, true, patience).await {
                Ok(LeaseView { ttl, remaining, keys }) => {
                    Ok(Some(LeaseStatus { ttl, ttl_remaining: remaining, keys: keys.len() }))
                }
                Err(Failure::LeaseGone) => Ok(None),
                Err(failure) => Err(Error::unavailable(failure)),
            };
            let _ = reply.send(answer); // The caller may have given up.
        });
    }

    fn times_left(
        &self,
        etcd: Etcd,
        leases: HashSet<i64>,
        within: Duration,
        reply: oneshot::Sender<HashMap<i64, TimeLeft>>,
    ) {
        self.tracker.spawn(async move {
            let _ = reply.send(listed::times_left(&etcd, leases, within).await); // The caller may have given up.
        });
    }

    fn health(&self, etcd: Etcd, reply: oneshot::Sender<Health>) {
        self.tracker.spawn(async move {
            let _ = reply.send(etcd.health().await); // The caller may have given up.
        });
    }
}

/// A node that is kept in etcd until [`Registration::stop`].
///
/// Dropping it takes the node back too, in the background: it signals and does not wait.
#[derive(Debug)]
pub struct Registration {
    key: Arc<str>,
    node: Arc<ServerNode>,
    /// Present until the drop; the lease watches whether it is alive.
    board: Option<Arc<Board>>,
    vitals: Arc<Vitals>,
    renewals_before: u64,
    commands: mpsc::Sender<Command>,
    stop_timeout: Duration,
    nudge: Arc<Notify>,
    /// Keeps the registrar alive, whose other handles may all be gone.
    keeper: Option<mpsc::Sender<Request>>,
    /// The same node under further layouts.
    others: Vec<Registration>,
}

impl Registration {
    /// The key in etcd; with several layouts that of the first.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Every key in etcd: one for each layout, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.parts().map(|part| &part.key)
    }

    fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The node as it was registered, whatever [`replace`](Self::replace) made of it since; [`status`](Self::status) has
    /// the present weight.
    pub fn node(&self) -> &ServerNode {
        &self.node
    }

    /// Where it stands now. Never waits.
    ///
    /// With several layouts the state is that of the key which is worst off, and so are time left and renewals.
    pub fn status(&self) -> Status {
        self.others.iter().map(Self::status_of_key).fold(self.status_of_key(), Status::with)
    }

    fn status_of_key(&self) -> Status {
        let Standing { state, weight, recoveries } = self.board.as_ref().expect("present until the drop").read();
        let is_over = matches!(state, State::Stopped | State::Pending);
        let now = Instant::now();
        let (ttl_remaining, lease_age) = match is_over {
            true => (Duration::ZERO, Duration::ZERO),
            false => (self.vitals.remaining(now), self.vitals.age(now)),
        };
        // A process that was suspended finds out before it trusts.
        let state = if state == State::Registered && ttl_remaining.is_zero() { State::Suspect } else { state };
        let renewals = self.vitals.renewals() - self.renewals_before;
        Status { state, weight, ttl_remaining, lease_age, renewals, recoveries: recoveries.into() }
    }

    /// Returns when the status satisfies `is_met`, at once if it does already. A stopped registration fails with
    /// [`Error::Ended`] unless that is what is waited for.
    pub async fn wait_for(&self, mut is_met: impl FnMut(&Status) -> bool) -> Result<Status, Error> {
        loop {
            let mut changes: Vec<_> = self.parts().map(|part| Box::pin(part.vitals.changed.notified())).collect();
            for change in &mut changes {
                change.as_mut().enable();
            }
            let status = self.status();
            if is_met(&status) {
                return Ok(status);
            }
            if status.state == State::Stopped {
                return Err(Error::Ended);
            }
            select_all(changes).await;
        }
    }

    /// Publishes this weight from now on, instead of the computed one.
    ///
    /// Ok: it is taken over and will be written, a second after the change before it at the earliest; an equal weight
    /// writes nothing. Fails with [`Error::Ended`] after the end.
    pub async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        self.tell(|key, reply| Command::Weigh { key, weight, reply }).await
    }

    /// Publishes another node under the same keys from now on: other metadata, another weight, and another version where
    /// the layouts have none in their keys. Without a weight in `node` the published one stays until the host computes
    /// another.
    ///
    /// Ok: it is taken over and will be written in place, a second after the change before it at the earliest. Fails with
    /// [`Error::Invalid`] for a node that has another key under a layout, of which some may have been replaced then, and
    /// with [`Error::Ended`] after the end.
    pub async fn replace(&self, node: ServerNode) -> Result<(), Error> {
        let node = Arc::new(node);
        self.tell(|key, reply| Command::Replace { key, node: node.clone(), reply }).await
    }

    async fn tell(
        &self,
        command: impl Fn(Arc<str>, oneshot::Sender<Result<(), Error>>) -> Command,
    ) -> Result<(), Error> {
        let told = self.parts().map(|part| {
            let (reply, done) = oneshot::channel();
            let command = command(part.key.clone(), reply);
            async {
                part.commands.send(command).await.map_err(|_| Error::Ended)?;
                done.await.map_err(|_| Error::Ended)?
            }
        });
        join_all(told).await.into_iter().collect()
    }

    /// Takes the node out of etcd. Ok: its keys are gone, or somebody else's by now, and nothing brings them back.
    ///
    /// Idempotent. After [`Error::Timeout`], and when this future is dropped, the deletion goes on until it is done.
    pub async fn stop(&self) -> Result<(), Error> {
        let stopped = self.parts().map(|part| async {
            let (reply, done) = oneshot::channel();
            let command = Command::Stop { key: part.key.clone(), reply };
            match part.commands.send(command).await {
                // A lease that has ended has taken its keys back.
                Err(_) => Ok(()),
                Ok(()) => done.await.unwrap_or(Ok(())),
            }
        });
        let after = self.stop_timeout;
        let all = timeout(after, join_all(stopped)).await;
        all.map_err(|_| Error::Timeout { what: "stop", after })?.into_iter().collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.board = None;
        self.nudge.notify_one();
    }
}
