//! Requests to etcd, each with a deadline.

pub(crate) mod auth;
#[cfg(feature = "discovery")]
pub(crate) mod changes;
mod connection;
mod endpoint;
mod error;
#[cfg(feature = "discovery")]
mod found;
pub(crate) mod health;
pub(crate) mod latency;
mod patience;
#[cfg(feature = "discovery")]
pub(crate) mod range;
pub(crate) mod renewals;
#[cfg_attr(not(feature = "tls"), path = "insecure.rs")]
mod secure;
mod transport;
mod txn;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use etcd_client::{
    AlarmAction, AlarmMember, AlarmType, Client, Compare, CompareOp, Error as ClientError, LeaseStatus,
    LeaseTimeToLiveOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};
use futures::future::join_all;
use tokio::time::Instant;

use self::endpoint::{Endpoint, Endpoints, Repeat, Route};
pub use self::error::{Refusal, Unavailable};
#[cfg(feature = "discovery")]
pub(crate) use self::found::Found;
#[cfg(feature = "simulation")]
use self::transport::Way;
pub(crate) use self::{
    error::Failure,
    txn::{Op, Outcome},
};
use crate::{
    etcd::{
        health::{Alarm, Health, Member},
        latency::{Latencies, Verb},
    },
    lease_id::LeaseId,
    node::Invalid,
    options::{Options, Ttl},
};

/// Makes a channel to one endpoint that nothing was sent on yet: how a simulated etcd stands behind a registrar.
#[cfg(feature = "simulation")]
pub type Dial = connection::Dial;

/// The most operations in one transaction of ours. etcd counts 128 along the deepest path, and one of ours is
/// a transaction within a transaction within the outer one.
pub(crate) const MAX_OPS: usize = 126;
/// The most bytes of keys and values in one transaction; etcd's default limit for a request is 1.5 MiB, and each key
/// stands in it five times.
pub(crate) const MAX_BYTES: usize = 256 * 1024;
/// The longest answer that is read. Others may have put large values where nodes are looked for: 1.5 MiB at most, unless
/// that etcd allows more.
#[cfg(feature = "discovery")]
const MAX_ANSWER: usize = 16 << 20;

/// The most keys that are named as forbidden.
const MAX_FORBIDDEN: usize = 16;

/// A granted lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) lease: LeaseId,
    /// TTL as etcd granted it, which may differ from the requested one.
    pub(crate) ttl: Duration,
}

/// State of a lease in etcd.
#[derive(Debug)]
pub(crate) struct LeaseView {
    pub(crate) ttl: Duration,
    pub(crate) remaining: Duration,
    /// Empty if they were not to be read.
    pub(crate) keys: Vec<Vec<u8>>,
    /// Revision of etcd; 0 if it is unknown.
    pub(crate) revision: i64,
}

/// Comparison of keys with the revisions that they should have.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Number of keys that were compared.
    pub(crate) compared: usize,
    /// Keys among them that were written over, or deleted.
    pub(crate) altered: Vec<Arc<str>>,
    /// Revision of etcd as the first of them was compared; `None` without any.
    pub(crate) revision: Option<i64>,
}

/// A cluster of etcd, spoken to through one endpoint at a time. Cloning clones the handle.
#[derive(Clone)]
pub(crate) struct Etcd {
    endpoints: Endpoints,
    request_timeout: Duration,
    latencies: Arc<Latencies>,
}

impl Etcd {
    /// Prepares the connections; makes none yet. Needs to run on the runtime that will drive them.
    pub(crate) async fn prepare(options: &Options, latencies: Arc<Latencies>) -> Result<Self, Invalid> {
        let endpoints = Endpoints::prepare(options).await?;
        Ok(Self { endpoints, request_timeout: options.request_timeout, latencies })
    }

    /// The same over given channels, each named as an endpoint would be.
    #[cfg(feature = "simulation")]
    pub(crate) async fn over(
        options: &Options,
        dials: Vec<(Arc<str>, Dial)>,
        latencies: Arc<Latencies>,
    ) -> Result<Self, Invalid> {
        let ways = dials.into_iter().map(|(url, dial)| Way { url, dial, secure: None });
        let endpoints = Endpoints::over(options, ways.collect()).await?;
        Ok(Self { endpoints, request_timeout: options.request_timeout, latencies })
    }

    /// Returns when an endpoint answers after none could be reached.
    pub(crate) async fn is_back(&self) {
        self.endpoints.is_back().await;
    }

    /// Endpoint that answers, and its version.
    pub(crate) async fn status(&self) -> Result<(Arc<str>, String), Failure> {
        let version = self.ask(Verb::Status, self.request_timeout, |mut client| async move {
            Ok(client.status().await?.version().to_owned())
        });
        version.await.map(|(route, version)| (self.url(route.index), version))
    }

    /// Reads the status of each endpoint, and the alarms of the cluster.
    pub(crate) async fn health(&self) -> Health {
        let endpoints = self.endpoints.iter().map(|endpoint| async {
            let standing = self.standing(endpoint).await.map_err(Into::into);
            (endpoint.url.to_string(), standing)
        });
        let alarms = self.call(Verb::Status, self.request_timeout, |mut client| async move {
            client.alarm(AlarmAction::Get, AlarmType::None, None).await
        });
        let kind = |alarm: &AlarmMember| match alarm.alarm() {
            AlarmType::None => None,
            AlarmType::Nospace => Some(Alarm::NoSpace),
            AlarmType::Corrupt => Some(Alarm::Corrupt),
        };
        let endpoints = join_all(endpoints).await;
        Health { endpoints, alarms: alarms.await.ok().map(|all| all.alarms().iter().filter_map(kind).collect()) }
    }

    async fn standing(&self, endpoint: &Endpoint) -> Result<Member, Failure> {
        let status = |mut client: Client| async move { client.status().await };
        match self.endpoints.ask_one(endpoint, self.request_timeout, status).await {
            Ok(status) => Ok(Member {
                has_leader: status.leader() != 0,
                database: u64::try_from(status.db_size()).unwrap_or_default(),
                quota: u64::try_from(status.db_size_quota()).ok().filter(|quota| *quota > 0),
                version: status.version().to_owned(),
            }),
            Err(failure) if failure.has_no_leader() => {
                Ok(Member { has_leader: false, database: 0, quota: None, version: String::new() })
            }
            Err(failure) => Err(failure),
        }
    }

    /// A new lease.
    pub(crate) async fn grant(&self, ttl: Ttl, deadline: Duration) -> Result<Granted, Failure> {
        // Within i64: a Ttl is bounded by etcd's maximum.
        let seconds = ttl.seconds() as i64;
        let (route, answer) = self
            .propose(Verb::Grant, deadline, |mut client| async move { client.lease_grant(seconds, None).await })
            .await?;
        let granted = u64::try_from(answer.ttl()).unwrap_or_default().max(1);
        let lease = LeaseId::new(answer.id()).ok_or_else(|| self.unanswered(&route, "it granted no lease"))?;
        Ok(Granted { lease, ttl: Duration::from_secs(granted) })
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is a success.
    pub(crate) async fn revoke(&self, lease: LeaseId, deadline: Duration) -> Result<(), Failure> {
        let revoke = |mut client: Client| async move { client.lease_revoke(lease.get()).await };
        match self.propose(Verb::Revoke, deadline, revoke).await {
            Ok(_) | Err(Failure::LeaseGone) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Every lease there is.
    pub(crate) async fn leases(&self) -> Result<Vec<LeaseId>, Failure> {
        let answer =
            self.call(Verb::Look, self.request_timeout, |mut client| async move { client.leases().await }).await?;
        Ok(answer.leases().iter().map(LeaseStatus::id).filter_map(LeaseId::new).collect())
    }

    /// Reads the state of a lease, with its keys if `keys` is set.
    pub(crate) async fn look_at(&self, lease: LeaseId, keys: bool, deadline: Duration) -> Result<LeaseView, Failure> {
        let mut options = LeaseTimeToLiveOptions::new();
        if keys {
            options = options.with_keys();
        }
        let answer = self
            .call(Verb::Look, deadline, |mut client| {
                let options = options.clone();
                async move { client.lease_time_to_live(lease.get(), Some(options)).await }
            })
            .await?;
        match u64::try_from(answer.ttl()) {
            Ok(seconds) => Ok(LeaseView {
                ttl: Duration::from_secs(u64::try_from(answer.granted_ttl()).unwrap_or_default()),
                remaining: Duration::from_secs(seconds),
                keys: answer.keys().to_vec(),
                revision: answer.header().map_or(0, ResponseHeader::revision),
            }),
            Err(_) => Err(Failure::LeaseGone),
        }
    }

    /// Does every operation whose condition holds, in one transaction, all puts under `lease`. Refused as a whole where this
    /// user may not read and write each of the keys, on every release of etcd.
    ///
    /// Takes at most [`MAX_OPS`] operations, no key twice; the outcomes stand in the order of the operations.
    pub(crate) async fn commit(&self, ops: &[Op], lease: LeaseId, deadline: Duration) -> Result<Vec<Outcome>, Failure> {
        let (route, answer) = self
            .propose(Verb::Write, deadline, |mut client| {
                // Without a condition, so the other branch never runs.
                let txn = Txn::new()
                    .and_then(ops.iter().map(|op| op.conditional(lease)).collect::<Vec<_>>())
                    .or_else(ops.iter().map(|op| txn::authorized(op.key())).collect::<Vec<_>>());
                async move { client.txn(txn).await }
            })
            .await?;
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        let outcome = |(op, answer): (&Op, TxnOpResponse)| op.outcome(&answer, revision);
        let outcomes: Option<Vec<_>> =
            txn::responses(&answer).and_then(|answers| ops.iter().zip(answers).map(outcome).collect());
        match outcomes {
            Some(outcomes) if outcomes.len() == ops.len() => Ok(outcomes),
            // It was applied, and we do not know how.
            _ => Err(self.unanswered(&route, "its answer does not fit the request")),
        }
    }

    /// Those of the keys that this user may not both read and write, a few at most. Fails for a user that may do nothing.
    pub(crate) async fn forbidden(&self, keys: &[String]) -> Result<Vec<String>, Failure> {
        let mut forbidden = Vec::new();
        for some in keys.chunks(MAX_OPS) {
            match self.authorized(some).await {
                Ok(()) => {}
                Err(Failure::Forbidden { .. }) => {
                    for key in some {
                        match self.authorized(std::slice::from_ref(key)).await {
                            Ok(()) => {}
                            Err(Failure::Forbidden { .. }) => forbidden.push(key.clone()),
                            Err(failure) => return Err(failure),
                        }
                        if forbidden.len() >= MAX_FORBIDDEN {
                            return Ok(forbidden);
                        }
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(forbidden)
    }

    /// A transaction that does nothing, and that etcd checks the rights for.
    async fn authorized(&self, keys: &[String]) -> Result<(), Failure> {
        let checked = self.call(Verb::Status, self.request_timeout, |mut client| {
            let never: Vec<_> = keys.iter().map(|key| txn::authorized(key)).collect();
            async move { client.txn(Txn::new().or_else(never)).await }
        });
        checked.await.map(drop)
    }

    /// Compares the revisions of the last writes of keys with those that they should have.
    ///
    /// Reads only, so that nothing goes through etcd's log, unless a key is found.
    pub(crate) async fn compare(
        &self,
        expected: &[(Arc<str>, i64)],
        deadline: Duration,
    ) -> Result<Comparison, Failure> {
        let stands =
            |(key, revision): &(Arc<str>, i64)| Compare::mod_revision(key.as_bytes(), CompareOp::Equal, *revision);
        let mut found = Comparison { compared: expected.len(), ..Comparison::default() };
        for some in expected.chunks(MAX_OPS) {
            let all = self.call(Verb::Look, deadline, |mut client| {
                let txn = Txn::new().when(some.iter().map(stands).collect::<Vec<_>>());
                async move { client.txn(txn).await }
            });
            let all = all.await?;
            // Those of other members may be behind.
            let revision = all.header().map_or(0, ResponseHeader::revision);
            found.revision = Some(found.revision.map_or(revision, |first| first.min(revision)));
            if all.succeeded() {
                continue;
            }
            let each = self.ask(Verb::Look, deadline, |mut client| {
                let each = some.iter().map(|one| TxnOp::txn(Txn::new().when([stands(one)])));
                let txn = Txn::new().and_then(each.collect::<Vec<_>>());
                async move { client.txn(txn).await }
            });
            let stood = |answer| matches!(answer, TxnOpResponse::Txn(answer) if answer.succeeded());
            let (route, answer) = each.await?;
            let each = txn::responses(&answer).filter(|each| each.len() == some.len());
            let each = each.ok_or_else(|| self.unanswered(&route, "its answer does not fit the request"))?;
            found.altered.extend(
                some.iter()
                    .zip(each.into_iter().map(stood))
                    .filter(|(_, stood)| !stood)
                    .map(|((key, _), _)| key.clone()),
            );
        }
        Ok(found)
    }

    fn url(&self, index: usize) -> Arc<str> {
        self.endpoints.url(index)
    }

    fn unanswered(&self, route: &Route, reason: &str) -> Failure {
        Failure::Unanswered { endpoint: self.url(route.index), reason: reason.to_owned() }
    }

    async fn call<T, F>(&self, verb: Verb, deadline: Duration, make: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        self.ask(verb, deadline, make).await.map(|(_, answer)| answer)
    }

    async fn ask<T, F>(&self, verb: Verb, deadline: Duration, make: impl Fn(Client) -> F) -> Result<(Route, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        self.counted(verb, self.endpoints.ask(repeat(verb), deadline, make)).await
    }

    /// Makes a request of a lease that goes through etcd's log. A slow etcd may take longer than `deadline`.
    async fn propose<T, F>(
        &self,
        verb: Verb,
        deadline: Duration,
        make: impl Fn(Client) -> F,
    ) -> Result<(Route, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        self.counted(verb, self.endpoints.propose(repeat(verb), deadline, make)).await
    }

    async fn counted<T>(&self, verb: Verb, request: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let begun = Instant::now();
        let answer = request.await;
        match &answer {
            Ok(_) | Err(Failure::LeaseGone) => self.latencies.succeeded(verb, begun.elapsed()),
            Err(_) => self.latencies.failed(verb),
        }
        answer
    }
}

fn repeat(verb: Verb) -> Repeat {
    match verb {
        // A lease too many; a value that was overwritten since; changes from a revision of another etcd, if this one has lost its
        // data meanwhile.
        Verb::Grant | Verb::Write | Verb::Watch => Repeat::Never,
        Verb::Renew | Verb::Look | Verb::Revoke | Verb::Read | Verb::Status => Repeat::Harmless,
    }
}

/// A boxed call under way.
pub(crate) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;
