//! One registration of a component, in the order it is lived: published, perhaps withdrawn by its host and restored, perhaps
//! passed to the component's next revision, ended.

use std::{mem, sync::Arc, time::Duration};

use futures::future::join_all;
use leasehold::{Error, Layout, Registrar, Registration, ServerNode, State, Status, Terms, Weight};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::once_map::Ends;

/// The node that the component has registered, and the registrar's registration of it.
#[derive(Debug)]
pub(crate) struct ComponentRegistration {
    state: Mutex<Inner>,
    /// Held during a change of presence: a `stop` must not overtake a `restore`.
    change: Semaphore,
    /// Registrations of earlier revisions with which it shares keys, until its revision is served.
    former: Mutex<Vec<Arc<ComponentRegistration>>>,
}

#[derive(Debug)]
struct Inner {
    /// The registrar's registration; the last one while the node is withdrawn.
    registration: Arc<Registration>,
    presence: Presence,
    terms: Terms,
    /// The node as the component registered it, without a weight where the host computes it.
    node: ServerNode,
    /// Weight in place of the node's own, set by the embedder.
    weight: Option<Weight>,
    /// The node and its layouts before the latest revision registered it, while that revision is not served yet.
    former: Option<(ServerNode, Option<Vec<Layout>>)>,
    /// The revision of the component that made it.
    maker: u64,
    /// The latest revision that registered it.
    owner: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Published,
    Withdrawn,
    Ended,
}

impl Inner {
    /// The node to publish.
    fn published(&self) -> ServerNode {
        with_weight(self.node.clone(), self.weight)
    }
}

/// A node with this weight in place of its own, if there is one.
pub(crate) fn with_weight(node: ServerNode, weight: Option<Weight>) -> ServerNode {
    ServerNode { weight: weight.or(node.weight), ..node }
}

impl Ends for Arc<ComponentRegistration> {
    fn has_ended(&self) -> bool {
        let state = self.state();
        match state.presence {
            Presence::Published => has_ended(state.registration.status().state),
            Presence::Withdrawn => false,
            Presence::Ended => true,
        }
    }
}

/// Detects a registration on its way out, which cannot be revived: its key is registered anew.
fn has_ended(state: State) -> bool {
    matches!(state, State::Draining | State::Stopped)
}

impl ComponentRegistration {
    /// A registration of `node`, with `weight` in place of the node's own if there is one.
    pub(crate) fn new(
        node: ServerNode,
        weight: Option<Weight>,
        terms: Terms,
        registration: Registration,
        maker: u64,
        former: Vec<Arc<Self>>,
    ) -> Self {
        let registration = Arc::new(registration);
        let presence = Presence::Published;
        let state = Inner { registration, presence, terms, node, weight, former: None, maker, owner: maker };
        Self { state: Mutex::new(state), change: Semaphore::new(1), former: Mutex::new(former) }
    }

    pub(crate) fn registration(&self) -> Arc<Registration> {
        Arc::clone(&self.state().registration)
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.state().presence == Presence::Withdrawn
    }

    /// Status of the registration. A withdrawn registration is `recovering`.
    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        let mut status = state.registration.status();
        if state.presence == Presence::Withdrawn {
            status.state = State::Recovering;
            (status.ttl_remaining, status.lease_age) = (Duration::ZERO, Duration::ZERO);
        }
        status
    }

    /// The published node, except for a weight that the host computes.
    pub(crate) fn node(&self) -> ServerNode {
        self.state().node.clone()
    }

    /// Publishes this weight from now on, or once it is restored, or once the embedder sets no weight any more.
    pub(crate) async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        let registration = {
            let mut state = self.state();
            state.node.weight = Some(weight);
            match state.presence {
                Presence::Withdrawn => return Ok(()),
                Presence::Published if state.weight.is_some() => return Ok(()),
                Presence::Published | Presence::Ended => Arc::clone(&state.registration),
            }
        };
        registration.set_weight(weight).await
    }

    /// Publishes this weight in place of the component's own from now on, or once it is restored; `None` ends that.
    pub(crate) async fn override_weight(&self, weight: Option<Weight>) -> Result<(), Error> {
        let (registration, node) = {
            let mut state = self.state();
            if mem::replace(&mut state.weight, weight) == weight || state.presence != Presence::Published {
                return Ok(());
            }
            (Arc::clone(&state.registration), state.published())
        };
        registration.replace(node).await
    }

    /// Publishes the data of `node` under the same keys from now on, or once it is restored, as these layouts write it. A
    /// weight that was set stays where `node` has none.
    pub(crate) async fn replace(
        &self,
        node: ServerNode,
        layouts: Option<Vec<Layout>>,
        registrar: &Registrar,
    ) -> Result<(), Error> {
        let weight = node.weight.or(self.state().node.weight);
        self.publish(ServerNode { weight, ..node }, layouts, registrar).await
    }

    async fn publish(
        &self,
        node: ServerNode,
        layouts: Option<Vec<Layout>>,
        registrar: &Registrar,
    ) -> Result<(), Error> {
        let (has_same_layouts, registration, node) = {
            let mut state = self.state();
            let is_same_node = mem::replace(&mut state.node, node.clone()) == node;
            let has_same_layouts = mem::replace(&mut state.terms.layouts, layouts.clone()) == layouts;
            if state.presence == Presence::Withdrawn || (has_same_layouts && is_same_node) {
                return Ok(());
            }
            (has_same_layouts, Arc::clone(&state.registration), state.published())
        };
        match has_same_layouts {
            true => registration.replace(node).await,
            false => self.rewrite(registrar).await,
        }
    }

    /// Writes its keys by its layouts, which have changed.
    async fn rewrite(&self, registrar: &Registrar) -> Result<(), Error> {
        let _permit = self.change().await;
        let (former, node, terms) = {
            let state = self.state();
            if state.presence != Presence::Published {
                return Ok(());
            }
            (Arc::clone(&state.registration), state.published(), state.terms.clone())
        };
        let next = registrar.register_beside(node, terms, std::slice::from_ref(&former)).await?;
        self.state().registration = Arc::new(next);
        former.stop().await
    }

    /// Publishes its node again, after another registration has written it for a node of its own.
    pub(crate) async fn republish(&self) -> Result<(), Error> {
        let (registration, node) = {
            let state = self.state();
            if state.presence != Presence::Published {
                return Ok(());
            }
            (Arc::clone(&state.registration), state.published())
        };
        registration.replace(node).await
    }

    /// Waits until it is in etcd under a live lease; fails if another lease holds its key.
    pub(crate) async fn published(&self) -> Result<(), Error> {
        let registration = self.registration();
        let found = registration.wait_for(|status| matches!(status.state, State::Registered | State::Conflict)).await?;
        match found.state {
            State::Conflict => Err(Error::Conflict { key: Arc::clone(registration.key()), lease: None }),
            _ => Ok(()),
        }
    }

    /// Takes it out of etcd until it is restored.
    pub(crate) async fn withdraw(&self) -> Result<(), Error> {
        let _permit = self.change().await;
        let registration = {
            let mut state = self.state();
            if state.presence == Presence::Ended {
                return Ok(());
            }
            state.presence = Presence::Withdrawn;
            Arc::clone(&state.registration)
        };
        registration.stop().await
    }

    /// Brings it back, unless it has ended meanwhile.
    pub(crate) async fn restore(&self, registrar: &Registrar) -> Result<(), Error> {
        let _permit = self.change().await;
        let (node, terms) = {
            let state = self.state();
            if state.presence != Presence::Withdrawn {
                return Ok(());
            }
            (state.published(), state.terms.clone())
        };
        let registration = Arc::new(registrar.register_on(node.clone(), terms).await?);
        let changed = {
            let mut state = self.state();
            state.registration = Arc::clone(&registration);
            state.presence = Presence::Published;
            Some(state.published()).filter(|latest| *latest != node)
        };
        match changed {
            Some(node) => registration.replace(node).await,
            None => Ok(()),
        }
    }

    /// Notes that a revision of the component has registered it.
    pub(crate) fn claim(&self, revision: u64) {
        let mut state = self.state();
        if revision > state.owner {
            state.former = Some((state.node.clone(), state.terms.layouts.clone()));
            state.owner = revision;
        }
    }

    /// The latest revision that has registered it, and may stop it.
    pub(crate) fn owner(&self) -> u64 {
        self.state().owner
    }

    /// Forgets what was before the latest revision, which is served.
    pub(crate) fn settle(&self) {
        self.state().former = None;
        self.former.lock().clear();
    }

    /// Gives it back to an earlier revision, as it was. Ends it if the later revision made it.
    pub(crate) async fn give_back(&self, from: u64, to: u64, registrar: &Registrar) -> Result<(), Error> {
        let former = {
            let mut state = self.state();
            if state.owner == from && state.maker != from {
                state.owner = to;
            }
            if state.owner <= to { Ok(state.former.take()) } else { Err(()) }
        };
        match former {
            Ok(None) => Ok(()),
            Ok(Some((node, layouts))) => self.publish(node, layouts, registrar).await,
            Err(()) => {
                let stopped = self.stop().await;
                let former = mem::take(&mut *self.former.lock());
                let republished = join_all(former.iter().map(|former| former.republish())).await;
                republished.into_iter().fold(stopped, Result::and)
            }
        }
    }

    /// Ends it. Ok: its keys are gone, and nothing brings them back.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        let _permit = self.change().await;
        let registration = {
            let mut state = self.state();
            state.presence = Presence::Ended;
            Arc::clone(&state.registration)
        };
        registration.stop().await
    }

    async fn change(&self) -> SemaphorePermit<'_> {
        self.change.acquire().await.expect("it is never closed")
    }

    fn state(&self) -> MutexGuard<'_, Inner> {
        self.state.lock()
    }
}
