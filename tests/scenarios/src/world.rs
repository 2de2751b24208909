//! One etcd for a scenario, simulated or real, behind the same few functions, so that the two cannot drift apart.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, GetOptions, PutOptions};
use leasehold::{LoadSource, Options, Registrar, Weight};

use crate::{real::Etcd, sim::SimEtcd, wait_for};

/// Timeout for a state that should be reached soon. The real etcd shares its machine with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// State of a key, as a scenario reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The value, as text.
    pub value: String,
    /// The lease of the key; 0 means none.
    pub lease: i64,
    /// The revision that created the key.
    pub created: i64,
    /// The revision of the last write.
    pub modified: i64,
}

/// The etcd of one scenario.
#[derive(Debug)]
pub enum World {
    /// In this process, in virtual time.
    Simulated(SimEtcd),
    /// A process of its own, in real time.
    Real(Box<Etcd>),
}

impl World {
    /// A simulated etcd; needs a paused clock.
    pub fn simulated() -> Self {
        Self::Simulated(SimEtcd::new(1))
    }

    /// A real etcd.
    pub async fn real() -> Self {
        Self::Real(Box::new(Etcd::start().await))
    }

    /// Default options of scenarios: a short TTL and a fixed weight.
    pub fn options(&self) -> Options {
        let endpoint = match self {
            Self::Simulated(_) => "sim".to_owned(),
            Self::Real(etcd) => etcd.endpoint(),
        };
        Options {
            ttl: 3.try_into().expect("a TTL"),
            load: LoadSource::Fixed(Weight::try_from(73).expect("a weight")),
            ..Options::new([endpoint])
        }
    }

    /// A registrar with the default options.
    pub async fn registrar(&self, host: &str) -> Registrar {
        self.registrar_with(host, self.options()).await
    }

    /// A registrar with other options.
    pub async fn registrar_with(&self, host: &str, options: Options) -> Registrar {
        match self {
            Self::Simulated(etcd) => {
                Registrar::start_over(options, vec![(Arc::from("sim"), etcd.dial(host))]).await.expect("good options")
            }
            Self::Real(_) => Registrar::start(options).expect("good options"),
        }
    }

    /// A client for foreign writes and for reads.
    pub async fn client(&self) -> Client {
        match self {
            Self::Simulated(etcd) => etcd.client("stranger").await,
            Self::Real(etcd) => etcd.client().await,
        }
    }

    /// Reads a key.
    pub async fn get(&self, key: &str) -> Option<Standing> {
        let found = self.client().await.get(key, None).await.expect("etcd answers");
        found.kvs().first().map(|found| Standing {
            value: String::from_utf8_lossy(found.value()).into_owned(),
            lease: found.lease(),
            created: found.create_revision(),
            modified: found.mod_revision(),
        })
    }

    /// Number of keys.
    pub async fn count(&self) -> i64 {
        let all = Some(GetOptions::new().with_prefix().with_count_only());
        self.client().await.get("/", all).await.expect("etcd answers").count()
    }

    /// The store's current revision.
    pub async fn revision(&self) -> i64 {
        let answer = self.client().await.get("/", None).await.expect("etcd answers");
        answer.header().expect("an answer has a header").revision()
    }

    /// Writes a key as a foreign client, under a lease or none (0).
    pub async fn put(&self, key: &str, value: &str, lease: i64) {
        let options = Some(PutOptions::new().with_lease(lease));
        self.client().await.put(key, value, options).await.expect("etcd answers");
    }

    /// Deletes a key as a foreign client.
    pub async fn delete(&self, key: &str) {
        self.client().await.delete(key, None).await.expect("etcd answers");
    }

    /// Grants a foreign lease.
    pub async fn grant(&self, seconds: i64) -> i64 {
        self.client().await.lease_grant(seconds, None).await.expect("etcd answers").id()
    }

    /// Revokes a lease as a foreign client.
    pub async fn revoke(&self, lease: i64) {
        self.client().await.lease_revoke(lease).await.expect("etcd answers");
    }

    /// The live leases.
    pub async fn leases(&self) -> Vec<i64> {
        let answer = self.client().await.leases().await.expect("etcd answers");
        answer.leases().iter().map(|lease| lease.id()).collect()
    }

    /// Kills and restarts etcd.
    pub async fn restart(&mut self, keep_data: bool) {
        match self {
            Self::Simulated(etcd) => etcd.restart(keep_data),
            Self::Real(etcd) => etcd.restart(keep_data).await,
        }
    }

    /// Kills etcd.
    pub fn kill(&mut self) {
        match self {
            Self::Simulated(etcd) => etcd.stop(),
            Self::Real(etcd) => etcd.kill(),
        }
    }

    /// Waits until the key is under a lease, and returns it.
    pub async fn stands(&self, key: &str) -> Standing {
        self.key_is(key, "in etcd under a lease", |found| found.is_some_and(|found| found.lease != 0)).await;
        self.get(key).await.expect("it was there")
    }

    /// Waits until the key is as it should be.
    pub async fn key_is(&self, key: &str, what: &str, is: impl Fn(Option<&Standing>) -> bool) {
        wait_for(&format!("{key} is {what}"), SOON, async || is(self.get(key).await.as_ref())).await;
    }
}
