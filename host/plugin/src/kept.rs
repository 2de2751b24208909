//! One registration of a component, in the order it is lived: it stands, it may be withdrawn by its host and restored,
//! it may pass to the component's next version, it is over.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use leasehold::{Error, Registrar, Registration, ServerNode, State, Status, Terms, Weight};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::slots::Occupant;

/// What the component asked for, and what the registrar has of it at the moment.
#[derive(Debug)]
pub(crate) struct Kept {
    node: ServerNode,
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
    /// What the component wants to be published; `None` for what the host computes.
    weight: Option<Weight>,
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
        let place = Place {
            registration: Arc::new(registration),
            standing: Standing::Stands,
            weight: node.weight,
            maker,
            owner: maker,
        };
        Self { node, terms, place: Mutex::new(place), turn: Semaphore::new(1) }
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

    /// Publishes this weight from now on, or once it is restored.
    pub(crate) async fn set_weight(&self, weight: Weight) -> Result<(), Error> {
        let registration = {
            let mut place = self.place();
            place.weight = Some(weight);
            if place.standing == Standing::Withdrawn {
                return Ok(());
            }
            Arc::clone(&place.registration)
        };
        registration.set_weight(weight).await
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
        let weight = {
            let place = self.place();
            if place.standing != Standing::Withdrawn {
                return Ok(());
            }
            place.weight
        };
        let node = ServerNode { weight, ..self.node.clone() };
        let registration = Arc::new(registrar.register_on(node, self.terms.clone()).await?);
        let mut place = self.place();
        place.registration = registration;
        place.standing = Standing::Stands;
        Ok(())
    }

    /// A version of the component has registered it.
    pub(crate) fn claim(&self, version: u64) {
        let mut place = self.place();
        place.owner = place.owner.max(version);
    }

    /// The latest version that has registered it: whose business it is.
    pub(crate) fn owner(&self) -> u64 {
        self.place().owner
    }

    /// Gives it to an earlier version again. Says whether it has it, because the later one did not make it.
    pub(crate) fn give_back(&self, from: u64, to: u64) -> bool {
        let mut place = self.place();
        if place.owner == from && place.maker != from {
            place.owner = to;
        }
        place.owner <= to
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
