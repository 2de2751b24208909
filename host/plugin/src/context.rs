//! A component's side of the registrar: its policy and its registrations, shared by all of its instances.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use leasehold::{Balancer, Error, Nodes, Registrar, Registration, ServerNode, ServiceName, Terms, Version, View};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bindings::leasehold::registry::types,
    budget::Budget,
    error::Refusal,
    lookups::{Followed, Full, Lookups, MAX_VIEWS, Service},
    once_map::{Occupied, Slots, Vacant},
    policy::Policy,
    registration::Kept,
};

/// Pause between two sweeps of the services that the component follows.
const SWEEP: Duration = Duration::from_secs(15);

/// What one component has in the registry. Clones share it; give one to every store that runs the component.
///
/// Registrations belong to the component: they outlive the handle, the instance and the store that made them, and end
/// with `stop`, with [`stop_all`](Self::stop_all), or when the last clone of this is dropped, which only signals the end.
///
/// A call of a guest is async on the host's side and needs tokio's timer.
#[derive(Debug, Clone)]
pub struct RegistryCtx {
    shared: Arc<Shared>,
    /// Which version of the component this is for, from 0.
    version: u64,
}

#[derive(Debug)]
struct Shared {
    registrar: Registrar,
    policy: Policy,
    registrations: Slots<Keys, Arc<Kept>>,
    /// Registrations that it may make within a time.
    budget: Budget,
    lookups: Lookups<Followed>,
    /// True while a task sweeps `lookups`.
    sweeps: AtomicBool,
    /// Cancelled when everything was stopped: nothing is swept any more.
    stopped: CancellationToken,
    tasks: TaskTracker,
    /// Where among very many nodes those begin that the component is told.
    place: u32,
    /// Versions below this one register nothing until they are restored.
    withdrawn: AtomicU64,
    /// The earliest version that may still register, and the latest that there is.
    earliest: AtomicU64,
    latest: AtomicU64,
}

/// Reason why a service cannot be followed.
#[derive(Debug)]
enum Unfollowed {
    TooMany,
    TooOften,
    Registrar(Error),
}

/// Reason why a registration was not made.
#[derive(Debug)]
enum Unmade {
    TooOften,
    Registrar(Error),
}

impl From<Error> for Unmade {
    fn from(error: Error) -> Self {
        Self::Registrar(error)
    }
}

/// What makes two nodes one registration: the keys that the layouts make of them.
type Keys = Vec<String>;

impl RegistryCtx {
    /// A component without registrations, under `policy`.
    pub fn new(registrar: Registrar, policy: Policy) -> Self {
        let registrations = Slots::new(policy.max_registrations);
        let burst = u32::try_from(policy.max_registrations.saturating_mul(2)).unwrap_or(u32::MAX);
        let budget = Budget::new(burst, policy.registration_interval);
        let shared = Shared {
            registrar,
            policy,
            registrations,
            budget,
            lookups: Lookups::new(),
            sweeps: AtomicBool::new(false),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            place: fastrand::u32(..),
            withdrawn: AtomicU64::new(0),
            earliest: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), version: 0 }
    }

    /// What the component may do.
    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    /// The component's registrations that have not ended and are not withdrawn, in no particular order.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        self.kept().iter().filter(|kept| !kept.is_withdrawn()).map(|kept| kept.registration()).collect()
    }

    /// The services that the component follows, in order, whether they were read yet or not.
    pub fn views(&self) -> Vec<View> {
        self.shared.lookups.all().into_iter().map(|followed| followed.view).collect()
    }

    /// A guest's `current`.
    pub(crate) fn kept(&self) -> Vec<Arc<Kept>> {
        self.shared.registrations.present()
    }

    /// Registers `node` on the component's behalf, for a component that does not do so itself.
    ///
    /// The node is the host's word, so the policy's names and addresses do not bind it; its terms and its limit do.
    /// A node with the same keys as one that is registered is that registration, and is published in its place: its
    /// metadata, its weight if it has one, and its version where the layouts have none in their keys.
    ///
    /// To set its weight for good, register it again with that weight: one that is set on the registration itself is
    /// forgotten by [`withdraw`](Self::withdraw).
    ///
    /// Errors: those of [`Registrar::register_on`]; `Quota` beyond the policy's limit; `Ended` after
    /// [`stop_all`](Self::stop_all). In each case nothing is registered that was not before.
    pub async fn register_node(&self, node: ServerNode) -> Result<Arc<Registration>, Error> {
        let most = self.shared.policy.max_registrations;
        match self.keep(node, self.shared.policy.terms.clone(), None).await {
            Ok(kept) => Ok(kept.registration()),
            Err(Vacant::Full | Vacant::Failed(Unmade::TooOften)) => {
                Err(Error::Quota { what: "the number of a component's registrations", limit: most })
            }
            Err(Vacant::Closed) => Err(Error::Ended),
            Err(Vacant::Failed(Unmade::Registrar(error))) => Err(error),
        }
    }

    /// Takes every registration of the component out of etcd, all at the same time, and lets it make no more.
    ///
    /// A `register` that is under way is waited for and undone. Ok: all keys are gone and stay gone. Otherwise the first
    /// error; the registrar goes on with the rest. Idempotent.
    pub async fn stop_all(&self) -> Result<(), Error> {
        let stops = self.shared.registrations.close().into_iter().map(|kept| async move {
            match kept.await {
                Some(kept) => kept.stop().await,
                None => Ok(()),
            }
        });
        let stopped = join_all(stops).await.into_iter().collect();
        self.shared.stopped.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        stopped
    }

    /// Takes every registration of the component out of etcd until [`restore`](Self::restore), for a component that
    /// does not work. Its handles stay good; a guest that registers meanwhile is answered `unavailable`.
    ///
    /// Ok: all keys are gone. Otherwise the first error; the registrar goes on with the rest. Idempotent.
    pub async fn withdraw(&self) -> Result<(), Error> {
        self.shared.withdrawn.fetch_max(self.version + 1, Ordering::SeqCst);
        let all = self.kept();
        join_all(all.iter().map(|kept| kept.withdraw())).await.into_iter().collect()
    }

    /// Registers again what was withdrawn and not stopped by the component meanwhile: the same nodes on the same terms.
    ///
    /// Ok: all of it is in etcd. Otherwise the first error, and the rest stays withdrawn until the next call. Idempotent.
    pub async fn restore(&self) -> Result<(), Error> {
        let all = self.kept();
        let restored = all.iter().map(|kept| kept.restore(&self.shared.registrar));
        join_all(restored).await.into_iter().collect::<Result<(), Error>>()?;
        self.shared.withdrawn.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Whether the registrations of this version are withdrawn. A successor may register what they were.
    pub fn is_withdrawn(&self) -> bool {
        self.version < self.shared.withdrawn.load(Ordering::SeqCst)
    }

    /// The same registrations for the component's next version, which is started beside this one.
    ///
    /// What both register is one registration: its key stays as it is, and from then on this version's `stop` leaves it
    /// alone. Ends with [`take_over`](Self::take_over) or [`give_back`](Self::give_back) on the successor; one at a time.
    #[must_use]
    pub fn successor(&self) -> Self {
        let version = self.shared.latest.fetch_add(1, Ordering::SeqCst) + 1;
        Self { shared: Arc::clone(&self.shared), version }
    }

    /// Makes everything that is registered this version's, for an embedder that registers in the component's place.
    pub fn inherit(&self) {
        self.kept().iter().for_each(|kept| kept.claim(self.version));
    }

    /// Earlier versions are over: they register no more, and what they registered and this one did not leaves etcd.
    ///
    /// Ok: it is gone. Otherwise the first error; the registrar goes on with the rest.
    pub async fn take_over(&self) -> Result<(), Error> {
        self.shared.earliest.store(self.version, Ordering::SeqCst);
        let all = self.kept();
        all.iter().for_each(|kept| kept.settle());
        let over = all.iter().filter(|kept| kept.owner() < self.version).map(|kept| kept.stop());
        join_all(over).await.into_iter().collect()
    }

    /// This version is over before it began: what it alone registered leaves etcd, the rest is its predecessor's again, as
    /// that had it.
    ///
    /// Ok: it is gone. Otherwise the first error; the registrar goes on with the rest.
    pub async fn give_back(&self, predecessor: &Self) -> Result<(), Error> {
        let all = self.kept();
        let given = all.iter().map(|kept| kept.give_back(self.version, predecessor.version));
        join_all(given).await.into_iter().collect()
    }

    /// A guest's `register`.
    pub(crate) async fn register(&self, node: types::ServerNode, ttl_seconds: u32) -> Result<Arc<Kept>, Refusal> {
        let node = self.shared.policy.admit(node)?;
        let terms = self.shared.policy.terms_for(ttl_seconds)?;
        if self.is_withdrawn() {
            return Err(Refusal::Withdrawn);
        }
        let budget = &self.shared.budget;
        let kept = within(self.shared.policy.deadline, self.keep(node, terms, Some(budget))).await?;
        let kept = kept.map_err(|vacant| match vacant {
            Vacant::Full => Refusal::TooMany { most: self.shared.policy.max_registrations },
            Vacant::Closed | Vacant::Failed(Unmade::Registrar(Error::Ended)) => Refusal::Ending,
            Vacant::Failed(Unmade::Registrar(error)) => Refusal::Registrar(error),
            Vacant::Failed(Unmade::TooOften) => {
                Refusal::RegistersTooOften { burst: budget.burst, interval: budget.interval }
            }
        })?;
        if self.is_withdrawn() { Err(Refusal::Withdrawn) } else { Ok(kept) }
    }

    /// A guest's `stop`. One that a later version of the component has registered, too, is that one's.
    pub(crate) async fn stop(&self, kept: &Kept) -> Result<(), Error> {
        if kept.owner() <= self.version { kept.stop().await } else { Ok(()) }
    }

    pub(crate) fn place(&self) -> u32 {
        self.shared.place
    }

    /// A guest's `resolve`.
    pub(crate) async fn resolve(&self, name: &str, version: &str) -> Result<Nodes, Refusal> {
        let (name, version) = self.shared.policy.admit_lookup(name, version)?;
        let service = (name, version);
        let found = async {
            let view = self.followed(&service).await?.view;
            view.ready().await.map_err(Unfollowed::Registrar)?;
            Ok::<_, Unfollowed>(view.nodes())
        };
        let budget = &self.shared.lookups.budget;
        within(self.shared.policy.deadline, found).await?.map_err(|unfollowed| match unfollowed {
            Unfollowed::TooMany => Refusal::FollowsTooMany { most: MAX_VIEWS },
            Unfollowed::TooOften => Refusal::LooksUpTooOften { burst: budget.burst, interval: budget.interval },
            Unfollowed::Registrar(Error::Ended) => Refusal::Ending,
            Unfollowed::Registrar(Error::Quota { .. }) => Refusal::NoRoomToFollow,
            Unfollowed::Registrar(error) => Refusal::Registrar(error),
        })
    }

    /// The component's view of a service. It is followed from the first look on until the component ends; while it has no
    /// node, as long as it is looked at.
    ///
    /// Errors: those of [`Registrar::watch`] and of [`View::ready`]; `Quota` beyond 1000 services of one component that have
    /// nodes, and for a component that looks up ever others faster than ten a second. The policy is the caller's to ask.
    pub async fn view(&self, name: ServiceName, version: Version) -> Result<View, Error> {
        let view = self.followed(&(name, version)).await.map_err(Error::from)?.view;
        view.ready().await?;
        Ok(view)
    }

    /// The component's balancer over its view of a service, made by `make` when it has none.
    ///
    /// Errors: those of [`view`](Self::view).
    pub async fn balancer(
        &self,
        name: ServiceName,
        version: Version,
        make: impl FnOnce(View) -> Balancer,
    ) -> Result<Arc<Balancer>, Error> {
        let service = (name, version);
        let Followed { view, balancer } = self.followed(&service).await.map_err(Error::from)?;
        if let Some(balancer) = balancer {
            return Ok(balancer);
        }
        view.ready().await?;
        let made = Arc::new(make(view));
        let set = |followed: &mut Followed| {
            followed.balancer.get_or_insert_with(|| Arc::clone(&made));
        };
        let kept = self.shared.lookups.change(&service, set).and_then(|followed| followed.balancer);
        Ok(kept.unwrap_or(made))
    }

    async fn followed(&self, service: &Service) -> Result<Followed, Unfollowed> {
        let lookups = &self.shared.lookups;
        if let Some(followed) = lookups.get(service, Instant::now()) {
            return Ok(followed);
        }
        if !lookups.budget.spend(Instant::now()) {
            return Err(Unfollowed::TooOften);
        }
        let view = self.shared.registrar.watch(&service.0, &service.1).await.map_err(Unfollowed::Registrar)?;
        let followed = Followed { view, balancer: None };
        let kept = lookups.keep(service.clone(), followed, Instant::now());
        if !self.shared.sweeps.swap(true, Ordering::SeqCst) {
            let (shared, stopped) = (Arc::downgrade(&self.shared), self.shared.stopped.clone());
            self.shared.tasks.spawn(async move { stopped.run_until_cancelled(sweep(shared)).await });
        }
        kept.map_err(|Full| Unfollowed::TooMany)
    }

    /// Waits for what a guest asked of one of its registrations, as long as its policy allows.
    pub(crate) async fn bounded<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Refusal> {
        Ok(within(self.shared.policy.deadline, call).await??)
    }

    /// Without a budget, as many as there is room for.
    async fn keep(&self, node: ServerNode, terms: Terms, budget: Option<&Budget>) -> Result<Arc<Kept>, Vacant<Unmade>> {
        let Shared { registrar, registrations, .. } = &*self.shared;
        let keys = registrar.keys(&node, &terms);
        let make = || async {
            if budget.is_some_and(|budget| !budget.spend(Instant::now())) {
                return Err(Unmade::TooOften);
            }
            let registration = registrar.register_on(node.clone(), terms.clone()).await.inspect_err(|_| {
                if let Some(budget) = budget {
                    budget.refund();
                }
            })?;
            Ok(Arc::new(Kept::new(node.clone(), terms, registration, self.version)))
        };
        let failed = |error: Error| Vacant::Failed(error.into());
        self.check_version()?;
        let kept = match registrations.occupy(&keys, make).await? {
            Occupied::Made(kept) if self.is_withdrawn() => {
                // The withdrawal has not seen it, and whoever asked is refused.
                kept.stop().await.map_err(failed)?;
                kept
            }
            Occupied::Made(kept) => kept,
            Occupied::Found(kept) => {
                kept.claim(self.version);
                kept.replace(node).await.map_err(failed)?;
                if !self.is_withdrawn() {
                    kept.restore(registrar).await.map_err(failed)?;
                    let after = self.shared.policy.deadline;
                    let stands = timeout(after, kept.stands()).await;
                    stands.unwrap_or(Err(Error::Timeout { what: "register", after, why: None })).map_err(failed)?;
                }
                kept
            }
        };
        // What changed while it was made has not seen it.
        if let Err(over) = self.check_version() {
            if kept.owner() <= self.version {
                kept.stop().await.map_err(failed)?;
            }
            return Err(over);
        }
        Ok(kept)
    }

    /// An earlier version registers nothing once a later one has taken over.
    fn check_version(&self) -> Result<(), Vacant<Unmade>> {
        match self.version < self.shared.earliest.load(Ordering::SeqCst) {
            true => Err(Vacant::Closed),
            false => Ok(()),
        }
    }
}

async fn within<T>(deadline: Duration, call: impl Future<Output = T>) -> Result<T, Refusal> {
    timeout(deadline, call).await.map_err(|_| Refusal::Deadline)
}

impl From<Unfollowed> for Error {
    fn from(unfollowed: Unfollowed) -> Self {
        let what = match unfollowed {
            Unfollowed::TooMany => "the number of services that a component follows",
            Unfollowed::TooOften => "the number of further services that a component looks up at once",
            Unfollowed::Registrar(error) => return error,
        };
        Self::Quota { what, limit: MAX_VIEWS }
    }
}

/// Drops unused services without nodes, for as long as the component follows any.
async fn sweep(shared: Weak<Shared>) {
    loop {
        sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        // A look-up from here on starts another sweep.
        shared.sweeps.store(false, Ordering::SeqCst);
        if !shared.lookups.sweep(Instant::now()) || shared.sweeps.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}
