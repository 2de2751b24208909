//! One registration of a component, in the order it is lived: it stands, it may be withdrawn by its host and restored,
//! it may pass to the component's next version, it is over.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use leasehold::{Error, Registrar, Registration, ServerNode, State, Status, Terms, Weight};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::once_map::Occupant;

/// What the component asked for, and what the registrar has of it at the moment.
#[derive(Debug)]
pub(crate) struct Kept {
    terms: Terms,
    place: Mutex<Place>,
    /// Who changes where it stands waits for who does so already: a `stop` must not overtake a `restore`.
    turn: Semaphore,
}

#[derive(Debug)]
struct Place {
    /// The registrar's; the last one while there is none.
    registration: Arc<Registration>,
    standing: Standing,
    /// What the component wants to be published, without a weight where the host computes it.
    node: ServerNode,
    /// What it was before the latest version registered it, while that is not served yet.
    former: Option<ServerNode>,
    /// The version of the component that made it.
    maker: u64,
    /// The latest version that registered it.
    owner: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Stands,
    Withdrawn,
    Over,
}

impl Occupant for Arc<Kept> {
    fn has_ended(&self) -> bool {
        let place = self.place();
        match place.standing {
            Standing::Stands => has_ended(place.registration.status().state),
            Standing::Withdrawn => false,
            Standing::Over => true,
        }
    }
}

/// A registration on its way out cannot be had back; whoever registers its key again gets a new one.
fn has_ended(state: State) -> bool {
    matches!(state, State::Draining | State::Stopped)
}

impl Kept {
    pub(crate) fn new(node: ServerNode, terms: Terms, registration: Registration, maker: u64) -> Self {
        let registration = Arc::new(registration);
        let place = Place { registration, standing: Standing::Stands, node, former: None, maker, owner: maker };
        Self { terms, place: Mutex::new(place), turn: Semaphore::new(1) }
    }

    pub(crate) fn registration(&self) -> Arc<Registration> {
        Arc::clone(&self.place().registration)
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.place().standing == Standing::Withdrawn
    }

    /// Where it stands. One that is withdrawn is on its way back.
    pub(crate) fn status(&self) -> Status {
        let place = self.place();
        let status = place.registration.status();
        match place.standing {
            Standing::Withdrawn => {
                Status { state: State::Recovering, ttl_remaining: Duration::ZERO, lease_age: Duration::ZERO, ..status }
            }
            Standing::Stands | Standing::Over => status,
        }
    }

    /// What is published, but for a weight that the host computes.
    pub(crate) fn node(&self) -> ServerNode {
        self.place().node.clone()
    }

    /// Publishes this weight from now on, or once it is restored.
    pub(crate) async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        let registration = {
            let mut place = self.place();
            place.node.weight = Some(weight);
            match place.standing {
                Standing::Withdrawn => return Ok(()),
                Standing::Stands | Standing::Over => Arc::clone(&place.registration),
            }
        };
        registration.set_weight(weight).await
    }

    /// Publishes what `node` says beside its key from now on, or once it is restored. A weight that was set stays where
    /// `node` has none.
    pub(crate) async fn replace(&self, node: ServerNode) -> Result<(), Error> {
        let weight = node.weight.or(self.place().node.weight);
        self.publish(ServerNode { weight, ..node }).await
    }

    async fn publish(&self, node: ServerNode) -> Result<(), Error> {
        let registration = {
            let mut place = self.place();
            if mem::replace(&mut place.node, node.clone()) == node || place.standing == Standing::Withdrawn {
                return Ok(());
            }
            Arc::clone(&place.registration)
        };
        registration.replace(node).await
    }

    /// Returns once it is in etcd under a live lease; fails when somebody else has taken its key.
    pub(crate) async fn stands(&self) -> Result<(), Error> {
        let registration = self.registration();
        let found = registration.wait_for(|status| matches!(status.state, State::Registered | State::Conflict)).await?;
        match found.state {
            State::Conflict => Err(Error::Conflict { key: Arc::clone(registration.key()), lease: 0 }),
            _ => Ok(()),
        }
    }

    /// Takes it out of etcd until it is restored.
    pub(crate) async fn withdraw(&self) -> Result<(), Error> {
        let _turn = self.turn().await;
        let registration = {
            let mut place = self.place();
            if place.standing == Standing::Over {
                return Ok(());
            }
            place.standing = Standing::Withdrawn;
            Arc::clone(&place.registration)
        };
        registration.stop().await
    }

    /// Brings it back, unless it is over by now.
    pub(crate) async fn restore(&self, registrar: &Registrar) -> Result<(), Error> {
        let _turn = self.turn().await;
        let node = {
            let place = self.place();
            if place.standing != Standing::Withdrawn {
                return Ok(());
            }
            place.node.clone()
        };
        let registration = Arc::new(registrar.register_on(node.clone(), self.terms.clone()).await?);
        let changed = {
            let mut place = self.place();
            place.registration = Arc::clone(&registration);
            place.standing = Standing::Stands;
            (place.node != node).then(|| place.node.clone())
        };
        match changed {
            // Meanwhile.
            Some(node) => registration.replace(node).await,
            None => Ok(()),
        }
    }

    /// A version of the component has registered it.
    pub(crate) fn claim(&self, version: u64) {
        let mut place = self.place();
        if version > place.owner {
            place.former = Some(place.node.clone());
            place.owner = version;
        }
    }

    /// The latest version that has registered it: whose business it is.
    pub(crate) fn owner(&self) -> u64 {
        self.place().owner
    }

    /// The latest version is served: what the one before published is not wanted back any more.
    pub(crate) fn settle(&self) {
        self.place().former = None;
    }

    /// Gives it to an earlier version again, as that had it. Ends it where the later one made it.
    pub(crate) async fn give_back(&self, from: u64, to: u64) -> Result<(), Error> {
        let former = {
            let mut place = self.place();
            if place.owner == from && place.maker != from {
                place.owner = to;
            }
            if place.owner <= to { Ok(place.former.take()) } else { Err(()) }
        };
        match former {
            Ok(None) => Ok(()),
            Ok(Some(former)) => self.publish(former).await,
            Err(()) => self.stop().await,
        }
    }

    /// Ends it. Ok: its keys are gone, and nothing brings them back.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        let _turn = self.turn().await;
        let registration = {
            let mut place = self.place();
            place.standing = Standing::Over;
            Arc::clone(&place.registration)
        };
        registration.stop().await
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turn.acquire().await.expect("it is never closed")
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().expect("nothing panics while it holds the place")
    }
}
