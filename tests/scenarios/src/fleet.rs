//! Registrations on several leases, and checks of etcd's keys and watch events for them.

use std::time::Duration;

use etcd_client::{Client, GetOptions};
use leasehold::{Event, EventKind, LoadSource, Options, Registrar, Registration, ServerNode, State, Weight};
use tokio::{sync::broadcast, time::Instant};

use crate::{
    real::{Change, changes, revision},
    wait_for,
    world::SOON,
};

/// The services of a fleet; each has three instances.
pub const SERVICES: [&str; 3] = ["order", "stock", "user"];

/// Default options of the fault scenarios: a short TTL and a fixed weight.
pub fn options<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Options {
    Options {
        ttl: 3.try_into().expect("a TTL"),
        load: LoadSource::Fixed(Weight::try_from(73).expect("a weight")),
        ..Options::new(endpoints)
    }
}

/// Nine registrations on three leases of one registrar, with a client that bypasses any proxy.
pub struct Fleet {
    /// The registrar of all nine.
    pub registrar: Registrar,
    /// The nine registrations.
    pub registrations: Vec<Registration>,
    client: Client,
    since: i64,
    events: broadcast::Receiver<Event>,
}

impl Fleet {
    /// Registers all nine.
    ///
    /// # Panics
    /// If a registration fails.
    pub async fn start(options: Options, mut client: Client) -> Self {
        let registrar = Registrar::start(options).expect("good options");
        let mut registrations = Vec::new();
        for port in 1..=3 {
            for name in SERVICES {
                let node = ServerNode::new(name, &format!("127.0.0.1:{port}")).expect("a good node");
                registrations.push(registrar.register(node).await.expect("etcd is there"));
            }
        }
        let since = revision(&mut client).await;
        let events = registrar.events();
        Self { registrar, registrations, client, since, events }
    }

    /// Uses another client from now on.
    pub fn look_through(&mut self, client: Client) {
        self.client = client;
    }

    /// Waits until all are registered and every key is under a live lease; returns the time that this took.
    pub async fn stands(&mut self) -> Duration {
        let begun = Instant::now();
        wait_for("every key stands under a live lease", SOON, async || {
            let registered = |one: &Registration| one.status().state == State::Registered;
            self.registrations.iter().all(registered) && {
                let leases = self.leases().await;
                let live = self.client.leases().await.map(|answer| answer.leases().to_vec()).unwrap_or_default();
                leases.len() == self.registrations.len()
                    && leases.iter().all(|lease| live.iter().any(|live| live.id() == *lease))
            }
        })
        .await;
        begun.elapsed()
    }

    /// Waits until etcd has none of the keys.
    pub async fn is_gone(&mut self, within: Duration) {
        wait_for("every key is gone", within, async || {
            let all = Some(GetOptions::new().with_prefix().with_count_only());
            self.client.get("/", all).await.is_ok_and(|found| found.count() == 0)
        })
        .await;
    }

    /// Waits until every registration is in this state.
    pub async fn is(&self, state: State) {
        wait_for(&format!("all are {state}"), SOON, async || {
            self.registrations.iter().all(|one| one.status().state == state)
        })
        .await;
    }

    /// Waits until etcd has confirmed that many further renewals of every lease.
    pub async fn is_renewed(&self, times: u64) {
        let before: Vec<u64> = self.registrations.iter().map(|one| one.status().renewals).collect();
        wait_for("every lease is renewed", SOON, async || {
            self.registrations.iter().zip(&before).all(|(one, before)| one.status().renewals >= before + times)
        })
        .await;
    }

    /// Waits until no lease has been confirmed for a TTL.
    pub async fn outlasts_its_leases(&self) {
        wait_for("the leases run out", SOON, async || {
            self.registrations.iter().all(|one| one.status().ttl_remaining.is_zero())
        })
        .await;
    }

    /// The lease of every existing key.
    pub async fn leases(&mut self) -> Vec<i64> {
        let all = Some(GetOptions::new().with_prefix());
        let Ok(found) = self.client.get("/", all).await else { return Vec::new() };
        let ours = |key: &[u8]| self.registrations.iter().any(|one| one.key().as_bytes() == key);
        found.kvs().iter().filter(|found| ours(found.key())).map(|found| found.lease()).collect()
    }

    /// Watch events since all were registered.
    pub async fn changes(&mut self) -> Vec<Change> {
        changes(&mut self.client, self.since).await
    }

    /// Panics if watchers got a DELETE.
    pub async fn saw_no_delete(&mut self) {
        let deletes: Vec<_> = self.changes().await.into_iter().filter(|change| change.is_delete).collect();
        assert_eq!(deletes, [], "watchers were told of these");
    }

    /// Events since the last call, without renewals.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(event) if event.kind == EventKind::Renewed => {}
                Ok(event) => events.push(event),
                Err(broadcast::error::TryRecvError::Lagged(lost)) => panic!("{lost} events were lost"),
                Err(_) => return events,
            }
        }
    }

    /// Panics if an event of these kinds happened since the last call.
    pub fn heard_none_of(&mut self, kinds: &[EventKind]) {
        let heard: Vec<_> = self.events().into_iter().filter(|event| kinds.contains(&event.kind)).collect();
        assert!(heard.is_empty(), "{heard:#?}");
    }
}
