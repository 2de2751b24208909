//! A component's side of the registrar: its policy and its registrations, shared by all of its instances.

#[cfg(feature = "discovery")]
mod discovery;
#[cfg(feature = "p3")]
mod running;
mod state;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use leasehold::{Error, Registrar, Registration, ServerNode, Terms, Unavailable, Weight};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

#[cfg(feature = "discovery")]
use self::state::Discovery;
#[cfg(feature = "p3")]
pub(crate) use self::state::RunningCall;
#[cfg(feature = "p3")]
use self::state::RunningCalls;
#[cfg(all(feature = "discovery", feature = "p3"))]
use self::state::Watches;
use crate::{
    bindings::v0_2::leasehold::registry::registry_types as types,
    budget::Budget,
    error::{CallError, CallRefusal},
    failures::{Failures, Kind},
    once_map::{GetError, OnceMap, Outcome},
    policy::{Names, Policy},
    registration::{ComponentRegistration, with_weight},
};

/// Registrations and views of one component. Clones share them; give one to every store that runs the component.
///
/// Registrations belong to the component: they outlive the handle, the instance and the store that made them, and end
/// with `stop`, with [`stop_all`](Self::stop_all), or when the last clone of this context is dropped, which only signals
/// the end.
///
/// A component's call is async on the host's side and needs tokio's timer.
#[derive(Debug, Clone)]
pub struct RegistryCtx {
    shared: Arc<Shared>,
    /// Name in the log.
    name: Arc<str>,
    /// Policy of this revision.
    policy: Arc<Policy>,
    /// Revision of the component that this context is for, from 0.
    revision: u64,
    /// Cancelled when the watches of this revision end.
    watches_end: CancellationToken,
    /// Refusal of etcd that the last registration of this revision met, with the first of its keys.
    refused: Arc<Mutex<Option<(String, Unavailable)>>>,
    /// Open watches, and asynchronous calls in progress. Of this revision, so that an earlier one with as many as it may have can
    /// be replaced.
    #[cfg(all(feature = "discovery", feature = "p3"))]
    watches: Watches,
    #[cfg(feature = "p3")]
    calls: RunningCalls,
}

#[derive(Debug)]
struct Shared {
    registrar: Registrar,
    registrations: OnceMap<Keys, Arc<ComponentRegistration>>,
    /// Weight in place of each registration's own, set by the embedder.
    weight: Mutex<Option<Weight>>,
    /// Registrations that the component may make within a time.
    budget: Budget,
    failures: Failures,
    #[cfg(feature = "discovery")]
    discovery: Discovery,
    /// Cancelled by `stop_all`: sweeps of the services that are looked up end.
    stopped: CancellationToken,
    tasks: TaskTracker,
    /// Revisions below this one register nothing until they are restored.
    withdrawn: AtomicU64,
    /// The earliest revision that may still register, and the latest one.
    earliest: AtomicU64,
    latest: AtomicU64,
}

/// Reason why a registration was not made.
#[derive(Debug)]
enum RegisterError {
    TooOften,
    Registrar(Error),
}

impl From<Error> for RegisterError {
    fn from(error: Error) -> Self {
        Self::Registrar(error)
    }
}

/// Identity of a registration: the keys that the layouts make of its node.
type Keys = Vec<String>;

impl RegistryCtx {
    /// A component without registrations, under `policy`.
    pub fn new(registrar: Registrar, policy: Policy) -> Self {
        let registrations = OnceMap::new(policy.max_registrations);
        let burst = u32::try_from(policy.max_registrations.saturating_mul(2)).unwrap_or(u32::MAX);
        let budget = Budget::new(burst, policy.registration_interval);
        let shared = Shared {
            registrar,
            registrations,
            weight: Mutex::default(),
            budget,
            failures: Failures::default(),
            #[cfg(feature = "discovery")]
            discovery: Discovery::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
            withdrawn: AtomicU64::new(0),
            earliest: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        };
        let name = match &policy.names {
            Names::Only(names) => names.first().map(|name| name.as_str().into()),
            Names::Any => None,
        };
        Self::revision(Arc::new(shared), name.unwrap_or_else(|| "unnamed".into()), Arc::new(policy), 0)
    }

    /// The same component under this name in log lines and spans, in its field `component`. By default it is the first name
    /// that the policy lets it register, and `unnamed` without one.
    ///
    /// Calls that fail for the host's reasons (etcd, a deadline, a limit of the host, another component's key) are warnings
    /// with their cause: each kind once, with reminders at growing intervals. Others are logged at the level `DEBUG`.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Name of the component in the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Policy of the component.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The component's registrations that have not ended and are not withdrawn, in no particular order.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        self.component_registrations()
            .iter()
            .filter(|registration| !registration.is_withdrawn())
            .map(|registration| registration.registration())
            .collect()
    }

    /// The component's `current`.
    pub(crate) fn component_registrations(&self) -> Vec<Arc<ComponentRegistration>> {
        self.shared.registrations.present()
    }

    /// Registers `node` on the component's behalf, for a component that does not do so itself.
    ///
    /// The node is chosen by the host, so the policy's names and addresses do not bind it; its terms and its limit do.
    /// A node with the same keys as a registered node replaces it: its metadata, its weight if it has one, and its
    /// version where the layouts have none in their keys.
    ///
    /// To set the weight for good, register the node again with that weight: a weight that is set on the registration
    /// itself is forgotten by [`withdraw`](Self::withdraw).
    ///
    /// Errors: those of [`Registrar::register_on`]; `Quota` beyond the policy's limit; `Ended` after
    /// [`stop_all`](Self::stop_all). In each case nothing is registered that was not before.
    pub async fn register_node(&self, node: ServerNode) -> Result<Arc<Registration>, Error> {
        let limit = self.policy.max_registrations;
        match self.register_once(node, self.policy.terms.clone(), None).await {
            Ok(registration) => Ok(registration.registration()),
            Err(GetError::Full | GetError::Failed(RegisterError::TooOften)) => {
                Err(Error::Quota { what: "the number of a component's registrations", limit })
            }
            Err(GetError::Closed) => Err(Error::Ended),
            Err(GetError::Failed(RegisterError::Registrar(error))) => Err(error),
        }
    }

    /// Refusal of etcd for which the last registration of this revision failed, with the first of its keys: the reason behind a
    /// failed start that the component knows in general words only.
    pub fn refused(&self) -> Option<(String, Unavailable)> {
        self.refused.lock().clone()
    }

    /// Publishes every registration of the component with this weight, in place of its own or of the computed one, further
    /// registrations and those of later revisions included. `None` ends that.
    ///
    /// The component's `set-weight` meanwhile takes effect once this ends. Returns once the change is accepted, with the first
    /// error of a registration that has ended meanwhile.
    pub async fn override_weight(&self, weight: Option<Weight>) -> Result<(), Error> {
        *self.shared.weight.lock() = weight;
        let all = self.component_registrations();
        let set = all.iter().map(|registration| registration.override_weight(weight));
        join_all(set).await.into_iter().collect()
    }

    /// Takes every registration of the component out of etcd, all at the same time, and refuses further ones.
    ///
    /// A `register` that is in progress is waited for and undone. Ok: all keys are gone and stay gone. Otherwise the first
    /// error; the registrar goes on with the rest. Idempotent.
    ///
    /// Final: `register` returns `unavailable` from then on. A component that is started again, also after a start that
    /// failed, has a new context.
    pub async fn stop_all(&self) -> Result<(), Error> {
        let stops = self.shared.registrations.close().into_iter().map(|registration| async move {
            match registration.await {
                Some(registration) => registration.stop().await,
                None => Ok(()),
            }
        });
        let stopped = join_all(stops).await.into_iter().collect();
        self.shared.stopped.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        stopped
    }

    /// Ends the watches that this revision has open, and refuses further ones, so that requests which follow them end.
    ///
    /// Belongs where the revision is to complete its requests: when the service accepts none any more, or when its successor
    /// serves. Idempotent.
    pub fn end_watches(&self) {
        self.watches_end.cancel();
    }

    /// Takes every registration of the component out of etcd until [`restore`](Self::restore), for a component that
    /// does not work, or whose route is about to go. Its handles stay valid; `register` meanwhile returns `unavailable`.
    ///
    /// Ok: all keys are gone. Otherwise the first error; the registrar goes on with the rest. Idempotent.
    pub async fn withdraw(&self) -> Result<(), Error> {
        self.shared.withdrawn.fetch_max(self.revision + 1, Ordering::SeqCst);
        let all = self.component_registrations();
        join_all(all.iter().map(|registration| registration.withdraw())).await.into_iter().collect()
    }

    /// Registers again every registration that was withdrawn, except for those that the component stopped meanwhile: the
    /// same nodes on the same terms. Belongs where the component's route stands.
    ///
    /// Ok: all of them are in etcd. Otherwise the first error, and the rest stays withdrawn until the next call. Idempotent.
    pub async fn restore(&self) -> Result<(), Error> {
        let all = self.component_registrations();
        let restored = all.iter().map(|registration| registration.restore(&self.shared.registrar));
        join_all(restored).await.into_iter().collect::<Result<(), Error>>()?;
        self.shared.withdrawn.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Returns true if the registrations of this revision are withdrawn. A successor may register the same nodes.
    pub fn is_withdrawn(&self) -> bool {
        self.revision < self.shared.withdrawn.load(Ordering::SeqCst)
    }

    /// The same registrations for the component's next revision, which is started beside this one.
    ///
    /// A node that both register is one registration: its key stays as it is, and from then on this revision's `stop` leaves
    /// it alone. Ends with [`take_over`](Self::take_over) or [`give_back`](Self::give_back) on the successor; one at a time.
    #[must_use]
    pub fn successor(&self) -> Self {
        self.succeeded_by(Arc::clone(&self.policy))
    }

    /// The same, where the next revision has another policy. `max_registrations` and `registration_interval` stay those of the
    /// first revision, and `prefer` holds for services that are picked from for the first time. Under other layouts, a key that
    /// both revisions have stays in etcd.
    #[must_use]
    pub fn successor_under(&self, policy: Policy) -> Self {
        self.succeeded_by(Arc::new(policy))
    }

    fn revision(shared: Arc<Shared>, name: Arc<str>, policy: Arc<Policy>, revision: u64) -> Self {
        Self {
            #[cfg(all(feature = "discovery", feature = "p3"))]
            watches: Watches::new(policy.max_watches),
            #[cfg(feature = "p3")]
            calls: RunningCalls::new(),
            watches_end: CancellationToken::new(),
            refused: Arc::default(),
            shared,
            name,
            policy,
            revision,
        }
    }

    fn succeeded_by(&self, policy: Arc<Policy>) -> Self {
        let revision = self.shared.latest.fetch_add(1, Ordering::SeqCst) + 1;
        Self::revision(Arc::clone(&self.shared), Arc::clone(&self.name), policy, revision)
    }

    /// Moves every registration to this revision, for an embedder that registers in the component's place.
    pub fn inherit(&self) {
        self.component_registrations().iter().for_each(|registration| registration.claim(self.revision));
    }

    /// Ends earlier revisions: they register no more, and registrations that this revision did not make leave etcd.
    ///
    /// Ok: they are gone. Otherwise the first error; the registrar goes on with the rest.
    pub async fn take_over(&self) -> Result<(), Error> {
        self.shared.earliest.store(self.revision, Ordering::SeqCst);
        let all = self.component_registrations();
        all.iter().for_each(|registration| registration.settle());
        let former = all
            .iter()
            .filter(|registration| registration.owner() < self.revision)
            .map(|registration| registration.stop());
        join_all(former).await.into_iter().collect()
    }

    /// Undoes this revision, which is not served after all: registrations that it alone made leave etcd, the others belong to
    /// its predecessor again, as they were.
    ///
    /// Ok: they are gone. Otherwise the first error; the registrar goes on with the rest.
    pub async fn give_back(&self, predecessor: &Self) -> Result<(), Error> {
        let all = self.component_registrations();
        let given = all
            .iter()
            .map(|registration| registration.give_back(self.revision, predecessor.revision, &self.shared.registrar));
        join_all(given).await.into_iter().collect()
    }

    /// Drives one call of the component: in a span of its own, and with a refusal in the log.
    pub(crate) fn observed<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> impl Future<Output = Result<T, CallError>> {
        let span = tracing::debug_span!("registry", component = &*self.name, call);
        work.instrument(span).inspect(move |outcome| {
            if let Some(refusal) = outcome.as_ref().err().and_then(CallError::refusal) {
                self.report(call, refusal);
            }
        })
    }

    fn report(&self, call: &str, refusal: &CallRefusal) {
        let (registrar, component) = (&self.shared.registrar, &*self.name);
        let kind = Kind::of(refusal, registrar.has_ended());
        let Some(unlogged) = kind.and_then(|kind| self.shared.failures.count(kind, Instant::now())) else {
            return tracing::debug!(component, call, "the registry refused a call: {}", refusal.detail());
        };
        // A deadline that passed says nothing about the cause.
        let fault = (kind == Some(Kind::Late)).then(|| registrar.faults().into_iter().next()).flatten();
        let cause = fault.map_or_else(String::new, |fault| format!("; {fault}"));
        let unlogged = Some(unlogged).filter(|number| *number > 0);
        tracing::warn!(component, call, unlogged, "the registry failed a call: {}{cause}", refusal.detail());
    }

    /// Reason for a call that found its registrations, or the registrar, at their end.
    fn ending(&self) -> CallRefusal {
        if self.shared.registrar.has_ended() { CallRefusal::HostEnded } else { CallRefusal::Ending }
    }

    /// The component's `register`.
    pub(crate) async fn register(
        &self,
        node: types::ServerNode,
        ttl_seconds: u32,
    ) -> Result<Arc<ComponentRegistration>, CallRefusal> {
        let node = self.policy.admit(node)?;
        let terms = self.policy.terms_for(ttl_seconds)?;
        if self.is_withdrawn() {
            return Err(CallRefusal::Withdrawn);
        }
        let budget = &self.shared.budget;
        let registration = within(self.policy.deadline, self.register_once(node, terms, Some(budget))).await?;
        let registration = registration.map_err(|error| match error {
            GetError::Full => CallRefusal::TooMany { max: self.policy.max_registrations },
            GetError::Closed => CallRefusal::Ending,
            GetError::Failed(RegisterError::Registrar(Error::Ended)) => self.ending(),
            GetError::Failed(RegisterError::Registrar(error)) => CallRefusal::Registrar(error),
            GetError::Failed(RegisterError::TooOften) => {
                CallRefusal::RegisterRate { burst: budget.burst, interval: budget.interval }
            }
        })?;
        if self.is_withdrawn() { Err(CallRefusal::Withdrawn) } else { Ok(registration) }
    }

    /// The component's `stop`. A registration that a later revision has made, too, belongs to that revision.
    pub(crate) async fn stop(&self, registration: &ComponentRegistration) -> Result<(), Error> {
        if registration.owner() <= self.revision { registration.stop().await } else { Ok(()) }
    }

    /// Waits for a call on one of the component's registrations, as long as its policy allows.
    pub(crate) async fn bounded<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, CallRefusal> {
        Ok(within(self.policy.deadline, call).await??)
    }

    /// Returns the registration of the node's keys, and makes it if there is none. Without a budget, at any rate.
    async fn register_once(
        &self,
        node: ServerNode,
        terms: Terms,
        budget: Option<&Budget>,
    ) -> Result<Arc<ComponentRegistration>, GetError<RegisterError>> {
        let Shared { registrar, registrations, .. } = &*self.shared;
        let (keys, layouts) = (registrar.keys(&node, &terms), terms.layouts.clone());
        let make = || async {
            if budget.is_some_and(|budget| !budget.spend(Instant::now())) {
                return Err(RegisterError::TooOften);
            }
            let weight = *self.shared.weight.lock();
            let published = with_weight(node.clone(), weight);
            let former = self.former(&keys);
            let registered = match former.is_empty() {
                true => registrar.register_on(published, terms.clone()).await,
                // Other layouts, some of which write the same keys.
                false => register_beside(registrar, published, &terms, &former).await,
            };
            let registration = registered.inspect_err(|_| {
                if let Some(budget) = budget {
                    budget.refund();
                }
            })?;
            let (node, maker) = (node.clone(), self.revision);
            Ok(Arc::new(ComponentRegistration::new(node, weight, terms, registration, maker, former)))
        };
        let failed = |error: Error| GetError::Failed(error.into());
        self.check_revision()?;
        let made = registrations.get_or_create(&keys, make).await;
        *self.refused.lock() =
            made.as_ref().err().and_then(refusal).zip(keys.first().cloned()).map(|(why, key)| (key, why));
        let registration = match made? {
            Outcome::Created(registration) if self.is_withdrawn() => {
                // The withdrawal has not seen it, and the caller is refused.
                registration.stop().await.map_err(failed)?;
                registration
            }
            Outcome::Created(registration) if registrations.is_closed() => {
                // `stop_all` may not have waited for it.
                registration.stop().await.map_err(failed)?;
                return Err(GetError::Closed);
            }
            Outcome::Created(registration) => registration,
            Outcome::Existing(registration) => {
                registration.claim(self.revision);
                registration.replace(node, layouts, registrar).await.map_err(failed)?;
                if !self.is_withdrawn() {
                    registration.restore(registrar).await.map_err(failed)?;
                    let after = self.policy.deadline;
                    let published = timeout(after, registration.published()).await;
                    published.unwrap_or(Err(Error::Timeout { what: "register", after, why: None })).map_err(failed)?;
                }
                registration
            }
        };
        // A weight that was set meanwhile has not seen it.
        let weight = *self.shared.weight.lock();
        registration.override_weight(weight).await.map_err(failed)?;
        // A later revision that took over meanwhile has not seen it.
        if let Err(error) = self.check_revision() {
            if registration.owner() <= self.revision {
                registration.stop().await.map_err(failed)?;
            }
            return Err(error);
        }
        Ok(registration)
    }

    /// Published registrations with some of these keys, but not with all of them.
    fn former(&self, keys: &Keys) -> Vec<Arc<ComponentRegistration>> {
        let mut former = self.component_registrations();
        former.retain(|one| {
            !one.is_withdrawn() && one.registration().keys().any(|key| keys.iter().any(|own| **own == **key))
        });
        former
    }

    /// Refuses an earlier revision once a later one has taken over.
    fn check_revision(&self) -> Result<(), GetError<RegisterError>> {
        match self.revision < self.shared.earliest.load(Ordering::SeqCst) {
            true => Err(GetError::Closed),
            false => Ok(()),
        }
    }
}

/// The refusal of etcd behind an error; `None` for any other reason.
fn refusal(error: &GetError<RegisterError>) -> Option<Unavailable> {
    match error {
        GetError::Failed(RegisterError::Registrar(Error::Unavailable(why))) if why.refusal().is_some() => {
            Some(why.clone())
        }
        _ => None,
    }
}

/// Registers a node in place of former registrations with some of its keys, which are written again if that fails.
async fn register_beside(
    registrar: &Registrar,
    node: ServerNode,
    terms: &Terms,
    former: &[Arc<ComponentRegistration>],
) -> Result<Registration, Error> {
    let registrations: Vec<_> = former.iter().map(|former| former.registration()).collect();
    let registered = registrar.register_beside(node, terms.clone(), &registrations).await;
    if registered.is_err() {
        // The first error is the reason.
        drop(join_all(former.iter().map(|former| former.republish())).await);
    }
    registered
}

async fn within<T>(deadline: Duration, call: impl Future<Output = T>) -> Result<T, CallRefusal> {
    timeout(deadline, call).await.map_err(|_| CallRefusal::Deadline)
}
