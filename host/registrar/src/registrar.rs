//! The registrar: the handle to the thread that owns every lease.

#[cfg(feature = "discovery")]
use std::collections::{HashMap, HashSet};
use std::{pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt, future::try_join_all};
use smallvec::smallvec;
use tokio::{
    sync::{broadcast, oneshot},
    time::Instant,
};

#[cfg(feature = "discovery")]
use crate::{
    discovery::{
        key_watch::KeyWatch,
        list::{self, LeaseTtl, Ranges, RawEntry},
        view::View,
    },
    node::{ServiceName, Version},
};
use crate::{
    error::Error,
    etcd::{
        Etcd, Failure, LeaseView, Unavailable,
        auth::{CreatedUser, NewUser},
        health::Health,
        latency::Latency,
    },
    faults::Fault,
    layout::Layout,
    lease::core::messages::RegisterRequest,
    lease_id::LeaseId,
    node::{Invalid, ServerNode},
    options::{Options, Terms},
    placement::{Channels, RegistrarTask, Request},
    registration::{KeyHandle, Parts, RegistrarGuard, Registration},
    status::Event,
    timers::Timers,
};

/// Longest time for which a lease that was granted ahead waits for its first key.
const MAX_AHEAD: Duration = Duration::from_secs(3600);

/// Keeps registrations in etcd, on a thread of its own, until it is shut down.
///
/// Cloning clones the handle. When the last handle and the last [`Registration`] are dropped, every key is taken back in
/// the background; only [`Registrar::shutdown`] waits for it.
///
/// Everything happens on that thread, deadlines included: its futures and those of its handles need no runtime of the caller,
/// and work in any.
#[derive(Debug, Clone)]
pub struct Registrar {
    channels: Channels,
    guard: Arc<RegistrarGuard>,
    options: Arc<Options>,
}

/// State of a lease in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Time to live from a renewal on.
    pub ttl: Duration,
    /// Time to live without a further renewal, in whole seconds.
    pub ttl_remaining: Duration,
    /// Number of keys under it.
    pub keys: usize,
}

/// Endpoint and version of an etcd.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EtcdStatus {
    /// The endpoint that answered.
    pub endpoint: String,
    /// Its version.
    pub version: String,
}

impl Registrar {
    /// Starts the registrar's thread.
    ///
    /// Does not wait for etcd, which is tried again without end. Fails for options that break a rule, and if the system has no
    /// thread.
    pub fn start(options: Options) -> Result<Self, Error> {
        check(&options)?;
        let no_thread = |_| Error::Quota { what: "the number of threads of this process", limit: 0 };
        let options = Arc::new(options);
        let (task, channels) = RegistrarTask::new(options.clone());
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("leasehold".to_owned())
            .spawn({
                let (options, latencies) = (options.clone(), channels.latencies.clone());
                move || {
                    // Made and dropped here: a runtime must not be dropped where the caller may have another.
                    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                        Ok(runtime) => runtime,
                        Err(error) => return drop(started.send(Err(no_thread(error)))),
                    };
                    let timers = runtime.block_on(async { Timers::current() });
                    let _running = timers.while_running();
                    runtime.block_on(async move {
                        let etcd = match Etcd::prepare(&options, latencies).await {
                            Ok(etcd) => etcd,
                            Err(invalid) => return drop(started.send(Err(Error::from(invalid)))),
                        };
                        drop(started.send(Ok(timers.clone())));
                        task.detect_suspension();
                        task.run(etcd, timers).await;
                    });
                }
            })
            .map_err(no_thread)?;
        let timers = outcome.recv().map_err(|_| Error::Ended)??;
        Ok(Self::over(channels, options, timers))
    }

    /// Starts on the current runtime, over given channels instead of sockets: how a simulated etcd stands behind it.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub async fn start_over(options: Options, dials: Vec<(Arc<str>, crate::etcd::Dial)>) -> Result<Self, Error> {
        check(&options)?;
        let options = Arc::new(options);
        let (task, channels) = RegistrarTask::new(options.clone());
        let etcd = Etcd::over(&options, dials, channels.latencies.clone()).await?;
        let timers = Timers::current();
        #[expect(clippy::disallowed_methods, reason = "it is waited for through `ended`")]
        tokio::spawn(channels.suspension.clone().hold(task.run(etcd, timers.clone())));
        Ok(Self::over(channels, options, timers))
    }

    fn over(channels: Channels, options: Arc<Options>, timers: Arc<Timers>) -> Self {
        let guard = Arc::new(RegistrarGuard::new(channels.requests.clone(), options.stop_timeout, timers));
        Self { channels, guard, options }
    }

    /// Stops everything that goes on in this registrar, while time goes on, or lets it go on.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn suspend(&self, suspended: bool) {
        self.channels.suspension.set(suspended);
    }

    /// Keeps the registrar's thread from doing anything for so long.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub async fn starve(&self, during: Duration) -> Result<(), Error> {
        self.call_etcd(move |_| async move { std::thread::sleep(during) }).await
    }

    /// Lets the registrar believe that this machine was suspended for so long.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn simulate_suspension(&self, by: Duration) {
        self.channels.suspended_for.send_modify(|total| *total += by);
    }

    /// Asks etcd for its version: one round trip within the request timeout.
    pub async fn reach(&self) -> Result<EtcdStatus, Error> {
        self.call_etcd(|etcd| async move {
            let (endpoint, version) = etcd.status().await.map_err(Error::unavailable)?;
            Ok(EtcdStatus { endpoint: endpoint.to_string(), version })
        })
        .await?
    }

    /// Has a lease granted for a node that is about to be registered on the TTL of the [`Options`], which then waits for one
    /// answer of etcd instead of two.
    ///
    /// Does not wait. A lease without a registration `within` that time, an hour at most, is revoked.
    pub fn grant_ahead(&self, within: Duration) {
        let until = Instant::now() + within.min(MAX_AHEAD);
        // If requests wait in line, or are not taken any more, there is nothing to be ahead of.
        let _ = self.channels.requests.try_send(Request::GrantAhead { until });
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

    /// Registers `node` like [`register_on`](Self::register_on), and shares the keys that it has in common with `former`, which
    /// are written in place: for a node whose layouts change. Shared keys go on under their lease, with its time to live and
    /// ownership.
    ///
    /// Ok: the next [`stop`](Registration::stop) or drop of the former registrations leaves shared keys alone. An error: no
    /// further key stays registered, and some shared keys may have been written for `node`;
    /// [`replace`](Registration::replace) on the former registrations undoes that.
    pub async fn register_beside(
        &self,
        node: ServerNode,
        terms: Terms,
        former: &[Arc<Registration>],
    ) -> Result<Registration, Error> {
        let (node, layouts) = (Arc::new(node), self.layouts(&terms).to_vec());
        self.check(&node, &layouts)?;
        let shared = |layout: &Layout| {
            let key = layout.key(&node);
            former.iter().flat_map(|former| former.parts()).find(|part| **part.key() == *key).map(KeyHandle::share)
        };
        let parts = layouts.into_iter().map(|layout| async {
            match shared(&layout) {
                Some(part) => Ok((part, layout)),
                None => self.register_key(node.clone(), &layout, &terms).await.map(|part| (part, layout)),
            }
        });
        let parts = try_join_all(parts).await?.into();
        let registration = Registration::new(node.clone(), parts, self.guard.clone());
        // In this order: a key is shared before anybody changes it.
        let is_shared = |key: &str| former.iter().flat_map(|former| former.keys()).any(|other| **other == *key);
        let replaced = registration.replace_where(&node, is_shared).await;
        replaced.map(|()| registration)
    }

    async fn register_all(&self, node: Arc<ServerNode>, terms: Terms) -> Result<Registration, Error> {
        let layouts = self.layouts(&terms);
        self.check(&node, layouts)?;
        let parts = match layouts {
            [layout] => smallvec![(self.register_key(node.clone(), layout, &terms).await?, layout.clone())],
            // Boxed, so that the usual case does not pay for it.
            layouts => Box::pin(self.register_keys(&node, layouts, &terms)).await?,
        };
        Ok(Registration::new(node, parts, self.guard.clone()))
    }

    async fn register_keys(&self, node: &Arc<ServerNode>, layouts: &[Layout], terms: &Terms) -> Result<Parts, Error> {
        let all = layouts.iter().map(|layout| async {
            let part = self.register_key(node.clone(), layout, terms).await?;
            Ok((part, layout.clone()))
        });
        try_join_all(all).await.map(Parts::from)
    }

    fn layouts<'a>(&'a self, terms: &'a Terms) -> &'a [Layout] {
        terms.layouts.as_ref().unwrap_or(&self.options.layouts)
    }

    /// Checks that a node can be registered under these layouts.
    fn check(&self, node: &ServerNode, layouts: &[Layout]) -> Result<(), Error> {
        Layout::check_together(layouts)?;
        for layout in layouts {
            layout.accept_beside(node, layouts.iter().chain(&self.options.layouts))?;
        }
        Ok(())
    }

    async fn register_key(&self, node: Arc<ServerNode>, layout: &Layout, terms: &Terms) -> Result<KeyHandle, Error> {
        let patience = self.options.register_timeout;
        let deadline = Instant::now() + patience;
        let placing = pin!(self.ask(|reply| {
            let request = RegisterRequest {
                key: layout.key(&node).into(),
                node,
                layout: layout.clone(),
                ttl: terms.ttl.unwrap_or(self.options.ttl),
                ownership: terms.ownership.unwrap_or(self.options.ownership),
                deadline,
            };
            Request::Register { request: Box::new(request), reply }
        }));
        let placed = self.guard.timers().timeout_at(deadline, placing).await;
        let (part, confirmed) = placed.ok_or(Error::Timeout { what: "register", after: patience, why: None })???;
        // The lease answers by the same deadline, and says why it could not.
        confirmed.await.map_err(|_| Error::Ended)??;
        Ok(part)
    }

    /// The keys that `node` has on these terms, one for each layout, in their order. Two nodes with the same keys are one
    /// instance, whatever else they say.
    pub fn keys(&self, node: &ServerNode, terms: &Terms) -> Vec<String> {
        self.layouts(terms).iter().map(|layout| layout.key(node)).collect()
    }

    /// Lists every lease in etcd, also of other clients.
    pub async fn leases(&self) -> Result<Vec<LeaseId>, Error> {
        self.call_etcd(|etcd| async move { etcd.leases().await.map_err(Error::unavailable) }).await?
    }

    /// Reads the state of any lease; `None` if it does not exist, or not any more.
    pub async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseStatus>, Error> {
        let patience = self.options.request_timeout;
        self.call_etcd(move |etcd| async move {
            match etcd.look_at(lease, true, patience).await {
                Ok(LeaseView { ttl, remaining, keys, .. }) => {
                    Ok(Some(LeaseStatus { ttl, ttl_remaining: remaining, keys: keys.len() }))
                }
                Err(Failure::LeaseGone) => Ok(None),
                Err(failure) => Err(Error::unavailable(failure)),
            }
        })
        .await?
    }

    /// Reads the status of each endpoint, and the alarms of the cluster.
    pub async fn health(&self) -> Result<Health, Error> {
        self.call_etcd(|etcd| async move { etcd.health().await }).await
    }

    /// Creates a user of etcd and its role as far as they are missing, and gives the role its rights and the user the role.
    /// The rights of this registrar's own user have to include that: it is etcd's `root`, as a rule.
    ///
    /// Fails with [`Error::Unavailable`] if etcd refuses a step or does not answer; the steps before it stay. Idempotent.
    pub async fn create_user(&self, new: NewUser) -> Result<CreatedUser, Error> {
        self.call_etcd(move |etcd| async move { etcd.create_user(&new).await.map_err(Error::unavailable) }).await?
    }

    /// Events from now on. A listener that falls 1024 events behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.channels.events.subscribe()
    }

    /// Unresolved faults: what etcd refuses or does not answer at the moment, and keys that other hosts hold. Never waits.
    pub fn faults(&self) -> Vec<Fault> {
        self.channels.faults.all()
    }

    /// Asks etcd whether this user may read and write these keys, and changes nothing. Gives those that it may not, 16 at
    /// most. Fails where the user, or its absence, is refused whatever the key, and when etcd does not answer.
    pub async fn forbidden(&self, keys: Vec<String>) -> Result<Vec<String>, Error> {
        self.call_etcd(|etcd| async move { etcd.forbidden(&keys).await.map_err(Error::unavailable) }).await?
    }

    /// Latency of this registrar's requests to etcd, by their kind. Never waits.
    ///
    /// Requests that were broken off do not count, nor do those of [`health`](Self::health) to each endpoint.
    pub fn latencies(&self) -> Vec<Latency> {
        self.channels.latencies.read()
    }

    /// Returns true once it has ended, by `shutdown` or by a failure of its own. Nothing is renewed any more then.
    pub fn has_ended(&self) -> bool {
        self.channels.requests.is_closed()
    }

    /// Revokes every lease, and with them every key, and ends. Idempotent.
    ///
    /// After an error of [`Error::Timeout`] it goes on in the background; the keys end with their TTL in any case.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Error> {
        let _ = self.channels.requests.try_send(Request::End); // A full inbox gets it below; a closed one has ended already.
        let mut ended = self.channels.ended.clone();
        let all = pin!(async {
            let _ = self.channels.requests.send(Request::End).await; // Closed: it is ending already.
            let _ = ended.wait_for(|ended| *ended).await; // Dropped: it has ended.
        });
        let end = self.guard.timers().timeout(deadline, all).await;
        end.ok_or_else(|| Error::Timeout { what: "shutdown", after: deadline, why: self.why() })
    }

    /// Message of an unresolved fault.
    fn why(&self) -> Option<Unavailable> {
        self.faults().into_iter().find_map(|fault| match fault.why {
            Error::Unavailable(why) => Some(why),
            _ => None,
        })
    }

    /// Makes a call to etcd on the registrar's thread.
    async fn call_etcd<T, F>(&self, call: impl FnOnce(Etcd) -> F + Send + 'static) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.ask(|reply| {
            Request::Call(Box::new(|etcd| {
                let response = call(etcd);
                async { drop(reply.send(response.await)) }.boxed() // The caller may have given up.
            }))
        })
        .await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.channels.requests.send(request(reply)).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)
    }
}

/// Reading, with the feature `discovery`.
#[cfg(feature = "discovery")]
impl Registrar {
    /// The nodes that stand in etcd for `name`, and for `version` unless it is empty; none is a success.
    ///
    /// Keys that are not nodes under one of this registrar's layouts are left out. An instance that stands under several of
    /// them is one node, as the first of them has it.
    pub async fn resolve(&self, name: &ServiceName, version: &Version) -> Result<Vec<ServerNode>, Error> {
        let found = self.entries(Some(&(name.clone(), version.clone()))).await?;
        let mut seen = HashSet::new();
        let mut nodes: Vec<_> = found.into_iter().filter_map(|entry| entry.node.ok()).collect();
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

    /// Lists every key of one service, or of all services, under each layout of this registrar, in the order of the keys,
    /// invalid ones included.
    pub async fn list(&self, name: Option<&ServiceName>) -> Result<Vec<RawEntry>, Error> {
        let scope = name.map(|name| (name.clone(), Version::default()));
        let mut entries = self.entries(scope.as_ref()).await?;
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    async fn entries(&self, scope: Option<&(ServiceName, Version)>) -> Result<Vec<RawEntry>, Error> {
        let ranges = Ranges::new(&self.options.read_layouts(), scope);
        self.call_etcd(|etcd| async move { list::list(&etcd, &ranges).await.map_err(Error::unavailable) }).await?
    }

    /// Deletes a key as [`list`](Self::list) found it. Returns false, and leaves it alone, when it was written after
    /// `revision` or is gone.
    pub async fn delete_unchanged(&self, key: &str, revision: i64) -> Result<bool, Error> {
        let key = key.to_owned();
        self.call_etcd(
            move |etcd| async move { etcd.delete_unchanged(&key, revision).await.map_err(Error::unavailable) },
        )
        .await?
    }

    /// Watches the same keys through outages of etcd, beginning with those that exist. Does not wait for etcd.
    pub async fn watch_keys(&self, name: Option<&ServiceName>) -> Result<KeyWatch, Error> {
        let scope = name.map(|name| (name.clone(), Version::default()));
        self.ask(|reply| Request::WatchKeys { scope, reply }).await
    }

    /// Reads the time to live of leases. Leases that etcd says nothing about `within` that time are missing in the result.
    pub async fn lease_ttls(
        &self,
        leases: HashSet<LeaseId>,
        within: Duration,
    ) -> Result<HashMap<LeaseId, LeaseTtl>, Error> {
        self.call_etcd(move |etcd| async move { list::lease_ttls(&etcd, leases, within).await }).await
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

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use futures::executor::block_on;

    use super::Registrar;
    use crate::{Error, Options, ServerNode};

    /// Everything that waits for an etcd that does not exist, each within its deadline.
    async fn waits() {
        let short = Duration::from_millis(50);
        let mut options = Options::new(["http://127.0.0.1:1"]);
        (options.register_timeout, options.request_timeout, options.stop_timeout) = (short, short, short);
        let registrar = Registrar::start(options).unwrap();
        let node = ServerNode::new("user", "127.0.0.1:80").unwrap();
        let late = registrar.register(node.clone()).await.unwrap_err();
        assert!(matches!(late, Error::Unavailable(_) | Error::Timeout { .. }), "{late}");
        assert!(matches!(registrar.reach().await, Err(Error::Unavailable(_))));
        let view = registrar.watch(&node.name, &node.version).await.unwrap();
        assert!(view.ready().await.is_err());
        registrar.shutdown(Duration::from_secs(5)).await.unwrap();
        assert!(matches!(registrar.register(node).await, Err(Error::Ended)));
        registrar.shutdown(Duration::ZERO).await.unwrap();
    }

    #[test]
    fn a_caller_needs_no_runtime() {
        let begun = Instant::now();
        block_on(waits());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_caller_needs_no_runtime_with_timers() {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(waits());
    }

    /// Of the handles that the thread leaves behind, none waits longer than its deadline.
    #[test]
    fn a_registrar_outlives_the_runtime_that_used_it() {
        let used = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { Registrar::start(Options::new(["127.0.0.1:1"])).unwrap() })
        });
        let registrar = used.join().unwrap();
        assert!(matches!(block_on(registrar.reach()), Err(Error::Unavailable(_))));
        block_on(registrar.shutdown(Duration::from_secs(5))).unwrap();
    }
}
