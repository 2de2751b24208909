//! A component's side of the registrar: its policy and its registrations, shared by all of its instances.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use leasehold::{Error, Registrar, Registration, ServerNode, ServiceName, State, Terms, Version, View};

use crate::{
    bindings::leasehold::registry::types,
    error::Refusal,
    policy::Policy,
    slots::{Occupant, Occupied, Slots, Vacant},
};

/// The most services that one component watches at a time.
const MAX_VIEWS: usize = 1000;

/// What one component has in the registry. Clones share it; give one to every store that runs the component.
///
/// Registrations belong to the component: they outlive the handle, the instance and the store that made them, and end
/// with `stop`, with [`stop_all`](Self::stop_all), or when the last clone of this is dropped, which only signals the end.
///
/// A call of a guest is async on the host's side and needs tokio's timer.
#[derive(Debug, Clone)]
pub struct RegistryCtx {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registrar: Registrar,
    policy: Policy,
    registrations: Slots<Identity, Arc<Registration>>,
    views: Mutex<HashMap<(ServiceName, Version), View>>,
}

impl Shared {
    fn views(&self) -> MutexGuard<'_, HashMap<(ServiceName, Version), View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What makes two nodes one registration: layouts make their keys of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    name: String,
    version: String,
    addr: String,
}

impl Identity {
    fn of(node: &ServerNode) -> Self {
        Self { name: node.name.to_string(), version: node.version.to_string(), addr: node.addr.to_string() }
    }
}

impl Occupant for Arc<Registration> {
    fn has_ended(&self) -> bool {
        has_ended(self.status().state)
    }
}

/// A registration on its way out cannot be had back; whoever registers its key again gets a new one.
fn has_ended(state: State) -> bool {
    matches!(state, State::Draining | State::Stopped)
}

impl RegistryCtx {
    /// A component without registrations, under `policy`.
    pub fn new(registrar: Registrar, policy: Policy) -> Self {
        let registrations = Slots::new(policy.max_registrations);
        Self { shared: Arc::new(Shared { registrar, policy, registrations, views: Mutex::default() }) }
    }

    /// What the component may do.
    pub fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    /// The component's registrations that have not ended, in no particular order.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        self.shared.registrations.present()
    }

    /// Registers `node` on the component's behalf, for a component that does not do so itself.
    ///
    /// The node is the host's word, so the policy's names and addresses do not bind it; its terms and its limit do.
    /// A node with the same name, version and address as one that is registered is that registration, with this
    /// weight if it has one.
    ///
    /// Errors: those of [`Registrar::register_on`]; `Quota` beyond the policy's limit; `Ended` after
    /// [`stop_all`](Self::stop_all). In each case nothing is registered.
    pub async fn register_node(&self, node: ServerNode) -> Result<Arc<Registration>, Error> {
        let most = self.shared.policy.max_registrations;
        match self.keep(node, self.shared.policy.terms.clone()).await {
            Ok(registration) => Ok(registration),
            Err(Vacant::Full) => Err(Error::Quota { what: "the number of a component's registrations", limit: most }),
            Err(Vacant::Closed) => Err(Error::Ended),
            Err(Vacant::Failed(error)) => Err(error),
        }
    }

    /// Takes every registration of the component out of etcd, all at the same time, and lets it make no more.
    ///
    /// A `register` that is under way is waited for and undone. Ok: all keys are gone and stay gone. Otherwise the first
    /// error; the registrar goes on with the rest. Idempotent.
    pub async fn stop_all(&self) -> Result<(), Error> {
        let stops = self.shared.registrations.close().into_iter().map(|kept| async move {
            match kept.await {
                Some(registration) => registration.stop().await,
                None => Ok(()),
            }
        });
        join_all(stops).await.into_iter().collect()
    }

    /// A guest's `register`.
    pub(crate) async fn register(
        &self,
        node: types::ServerNode,
        ttl_seconds: u32,
    ) -> Result<Arc<Registration>, Refusal> {
        let node = self.shared.policy.admit(node)?;
        let terms = self.shared.policy.terms_for(ttl_seconds)?;
        let kept = within(self.shared.policy.deadline, self.keep(node, terms)).await?;
        kept.map_err(|vacant| match vacant {
            Vacant::Full => Refusal::TooMany { most: self.shared.policy.max_registrations },
            Vacant::Closed | Vacant::Failed(Error::Ended) => Refusal::Ending,
            Vacant::Failed(error) => Refusal::Registrar(error),
        })
    }

    /// A guest's `resolve`.
    pub(crate) async fn resolve(&self, name: &str, version: &str) -> Result<Vec<ServerNode>, Refusal> {
        let (name, version) = self.shared.policy.admit_lookup(name, version)?;
        let view = within(self.shared.policy.deadline, self.view(name, version)).await?;
        match view {
            Err(Error::Ended) => Err(Refusal::Ending),
            view => Ok(view?.nodes().iter().map(|node| ServerNode::clone(node)).collect()),
        }
    }

    /// The component's view of a service, followed from the first look on until the component ends.
    ///
    /// Errors: those of [`Registrar::watch`] and of [`View::ready`]; `Quota` beyond 1000 views of one component. The policy
    /// is the caller's to ask.
    pub async fn view(&self, name: ServiceName, version: Version) -> Result<View, Error> {
        let place = (name, version);
        let known = self.shared.views().get(&place).cloned();
        let view = match known {
            Some(view) => view,
            None => {
                let view = self.shared.registrar.watch(&place.0, &place.1).await?;
                let mut views = self.shared.views();
                if views.len() >= MAX_VIEWS && !views.contains_key(&place) {
                    return Err(Error::Quota {
                        what: "the number of services that a component watches",
                        limit: MAX_VIEWS,
                    });
                }
                views.entry(place).or_insert(view).clone()
            }
        };
        view.ready().await?;
        Ok(view)
    }

    /// Waits for what a guest asked of one of its registrations, as long as its policy allows.
    pub(crate) async fn bounded<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Refusal> {
        Ok(within(self.shared.policy.deadline, call).await??)
    }

    async fn keep(&self, node: ServerNode, terms: Terms) -> Result<Arc<Registration>, Vacant<Error>> {
        let Shared { registrar, registrations, .. } = &*self.shared;
        let (identity, weight) = (Identity::of(&node), node.weight);
        let make = || async { registrar.register_on(node, terms).await.map(Arc::new) };
        match registrations.occupy(&identity, make).await? {
            Occupied::Made(registration) => Ok(registration),
            Occupied::Found(registration) => {
                if let Some(weight) = weight {
                    registration.set_weight(weight).await.map_err(Vacant::Failed)?;
                }
                Ok(registration)
            }
        }
    }
}

async fn within<T>(deadline: Duration, call: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::time::timeout(deadline, call).await.map_err(|_| Refusal::Deadline)
}
