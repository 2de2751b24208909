//! A component's side of discovery: the services that it looks up, picks from and watches.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use leasehold::{Balancer, Error, Nodes, Pick, ServerNode, ServiceName, Version, View};
use tokio::time::{Instant, sleep};

use super::{RegistryCtx, Shared, within};
#[cfg(feature = "p3")]
use crate::watch::Watch;
use crate::{
    error::CallRefusal,
    lookups::{Full, MAX_VIEWS, Service, WatchedService},
};

/// Pause between two sweeps of the services that the component watches.
const SWEEP: Duration = Duration::from_secs(15);

/// Reason why a service cannot be watched.
#[derive(Debug)]
enum WatchError {
    TooMany,
    TooOften,
    Registrar(Error),
}

/// Discovery, with the feature of that name.
impl RegistryCtx {
    /// Services that the component watches, in order, those that were not read yet included.
    pub fn views(&self) -> Vec<View> {
        self.shared.discovery.lookups.all().into_iter().map(|watched| watched.view).collect()
    }

    /// Watches that this revision of the component has open, those of all its instances together: at most
    /// [`max_watches`](crate::Policy::max_watches). Needs the feature `p3`.
    #[cfg(feature = "p3")]
    pub fn open_watches(&self) -> usize {
        self.watches.open(self.policy.max_watches)
    }

    /// The nodes that a component gets of all of these, as `resolve` returns them.
    pub(crate) fn subset<'a>(&self, nodes: &'a Nodes) -> impl Iterator<Item = &'a ServerNode> {
        nodes.subset(self.policy.max_nodes, self.shared.discovery.subset_offset)
    }

    /// The component's `watch`.
    #[cfg(feature = "p3")]
    pub(crate) async fn open_watch(&self, name: &str, version: &str) -> Result<Watch, CallRefusal> {
        let service = self.policy.admit_lookup(name, version)?;
        if self.watches_end.is_cancelled() {
            return Err(CallRefusal::Ending);
        }
        let permit = Arc::clone(&self.watches.permits).try_acquire_owned();
        let permit = permit.map_err(|_| CallRefusal::TooManyWatches { max: self.policy.max_watches })?;
        let view = self.looked_up(self.ready_view(&service)).await?;
        let subset = (self.policy.max_nodes, self.shared.discovery.subset_offset);
        Ok(Watch::new(view, subset, self.watches_end.clone().cancelled_owned(), permit, Arc::clone(&self.watches.pace)))
    }

    /// The component's `resolve`.
    pub(crate) async fn resolve(&self, name: &str, version: &str) -> Result<Nodes, CallRefusal> {
        let service = self.policy.admit_lookup(name, version)?;
        Ok(self.looked_up(self.ready_view(&service)).await?.nodes())
    }

    /// The component's `pick`.
    pub(crate) async fn pick(&self, name: &str, version: &str) -> Result<Option<Pick>, CallRefusal> {
        let service = self.policy.admit_lookup(name, version)?;
        Ok(self.looked_up(self.balancer_of(&service)).await?.pick(&[]))
    }

    /// Waits for a look-up of the component, as long as its policy allows.
    async fn looked_up<T>(&self, found: impl Future<Output = Result<T, WatchError>>) -> Result<T, CallRefusal> {
        let budget = &self.shared.discovery.lookups.budget;
        within(self.policy.deadline, found).await?.map_err(|error| match error {
            WatchError::TooMany => CallRefusal::TooManyViews { max: MAX_VIEWS },
            WatchError::TooOften => CallRefusal::LookupRate { burst: budget.burst, interval: budget.interval },
            WatchError::Registrar(Error::Ended) => self.ending(),
            WatchError::Registrar(Error::Quota { .. }) => CallRefusal::HostViewsFull,
            WatchError::Registrar(error) => CallRefusal::Registrar(error),
        })
    }

    /// The view of a service, once etcd has been read.
    async fn ready_view(&self, service: &Service) -> Result<View, WatchError> {
        let view = self.watched(service).await?.view;
        view.ready().await.map_err(WatchError::Registrar)?;
        Ok(view)
    }

    /// The component's view of a service. The service is watched from the first call until the component ends; a service
    /// without nodes, until it is no longer used.
    ///
    /// Errors: those of [`Registrar::watch`](leasehold::Registrar::watch) and of [`View::ready`]; `Quota` beyond 1000 services with nodes of one
    /// component, and for a component that looks up further services faster than ten a second. The caller checks the policy.
    pub async fn view(&self, name: ServiceName, version: Version) -> Result<View, Error> {
        Ok(self.ready_view(&(name, version)).await?)
    }

    /// The component's balancer over its view of a service: by weight, preferring the nodes that the policy prefers, and
    /// without nodes that use TLS; [`Balancer::pick_by`] picks by other rules. The component's `pick` is a pick of this balancer.
    ///
    /// Errors: those of [`view`](Self::view). The caller checks the policy.
    pub async fn balancer(&self, name: ServiceName, version: Version) -> Result<Arc<Balancer>, Error> {
        Ok(self.balancer_of(&(name, version)).await?)
    }

    async fn balancer_of(&self, service: &Service) -> Result<Arc<Balancer>, WatchError> {
        let WatchedService { view, balancer } = self.watched(service).await?;
        if let Some(balancer) = balancer {
            return Ok(balancer);
        }
        view.ready().await.map_err(WatchError::Registrar)?;
        let preferred = self.policy.prefer.pairs().to_vec();
        let made = Arc::new(Balancer::new(view).without_tls().with_preferred(preferred));
        let set = |watched: &mut WatchedService| {
            watched.balancer.get_or_insert_with(|| Arc::clone(&made));
        };
        let balancer = self.shared.discovery.lookups.change(service, set).and_then(|watched| watched.balancer);
        Ok(balancer.unwrap_or(made))
    }

    async fn watched(&self, service: &Service) -> Result<WatchedService, WatchError> {
        let lookups = &self.shared.discovery.lookups;
        if let Some(watched) = lookups.get(service, Instant::now()) {
            return Ok(watched);
        }
        if !lookups.budget.spend(Instant::now()) {
            return Err(WatchError::TooOften);
        }
        let view = self.shared.registrar.watch(&service.0, &service.1).await.map_err(WatchError::Registrar)?;
        if let Some(watched) = lookups.get(service, Instant::now()) {
            // Another call has looked it up meanwhile.
            lookups.budget.refund();
            return Ok(watched);
        }
        let watched = WatchedService { view, balancer: None };
        let kept = lookups.keep(service.clone(), watched, Instant::now());
        if !self.shared.discovery.sweeps.swap(true, Ordering::SeqCst) {
            let (shared, stopped) = (Arc::downgrade(&self.shared), self.shared.stopped.clone());
            self.shared.tasks.spawn(async move { stopped.run_until_cancelled(sweep(shared)).await });
        }
        kept.map_err(|Full| WatchError::TooMany)
    }
}

impl From<WatchError> for Error {
    fn from(error: WatchError) -> Self {
        let what = match error {
            WatchError::TooMany => "the number of services that a component follows",
            WatchError::TooOften => "the number of further services that a component looks up at once",
            WatchError::Registrar(error) => return error,
        };
        Self::Quota { what, limit: MAX_VIEWS }
    }
}

/// Drops unused services without nodes, as long as the component watches any.
async fn sweep(shared: Weak<Shared>) {
    loop {
        sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        // A look-up from here on starts another sweep.
        shared.discovery.sweeps.store(false, Ordering::SeqCst);
        if !shared.discovery.lookups.sweep(Instant::now()) || shared.discovery.sweeps.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}
