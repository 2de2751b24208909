//! The verbs that etcd is spoken to with, each with a deadline; failures are classified here, once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

#[cfg(not(feature = "simulation"))]
use etcd_client::Channel;
#[cfg(feature = "simulation")]
pub use etcd_client::Channel;
use etcd_client::{
    AlarmAction, AlarmMember, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions,
    Error as ClientError, EventType, GetOptions, GetResponse, Identity, KeyValue, LeaseKeepAliveStream, LeaseKeeper,
    LeaseStatus, LeaseTimeToLiveOptions, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
    WatchStream,
};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either, Shared, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, timeout},
};
use tokio_stream::Stream;
use tonic::{Code, ConnectError, Status, transport::Endpoint as Transport};

use crate::{
    config::{Credentials, Options, Tls, Ttl},
    error::Error,
    health::{Alarm, Health, Member},
    node::Invalid,
};

/// The most operations in one transaction of ours. etcd counts 128 along the deepest path, and one of ours is
/// a transaction within a transaction within the outer one.
pub(crate) const MAX_OPS: usize = 126;
/// The most bytes of keys and values in one transaction; etcd's default limit for a request is 1.5 MiB, and each key
/// stands in it four times.
pub(crate) const MAX_BYTES: usize = 256 * 1024;
/// Keys to the first page when a prefix is read, and to one that had to be asked for again.
const FIRST_PAGE: i64 = 1000;
/// Keys to a page, at most.
const MAX_PAGE: i64 = 20_000;
/// What a page should come to, judged by those before it.
const PAGE_BYTES: usize = 2 << 20;
/// The longest answer that is read. Others may have put large values where nodes are looked for: 1.5 MiB at most, unless
/// that etcd allows more.
const MAX_ANSWER: usize = 16 << 20;
/// What stands for a value that is longer: not UTF-8, and so a node in no layout.
const UNREAD: u8 = 0xff;
/// What etcd says of a key beside it and its value, roughly, in bytes.
const KEY_OVERHEAD: usize = 40;
/// Pages that are read, or taken from, at a time.
const PAGES: usize = 3;
/// Where what follows a page is cut to be read side by side: before these characters, which part digits, the letters of
/// hexadecimal numbers, and others.
const CUTS: &[u8] = b"2468aceimqu";
/// Keys that are taken from a page before others have a turn on this thread.
const TURN: usize = 256;
/// How often an idle connection is probed, so that a dead one is noticed. etcd tolerates one ping in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a probe may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sign-in is trusted through calls without an answer. Hashing a password is dear for etcd, and an etcd that
/// is slow to answer must not be asked for it all the time.
const TRUST: Duration = Duration::from_secs(5);

/// Why etcd did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// No connection was made, so nothing was sent and nothing can have been applied.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable { endpoint: Arc<str>, reason: String },
    /// Sent, and not answered in time or at all: it may have been applied, or may yet be.
    #[error("{endpoint} did not answer: {reason}")]
    Unanswered { endpoint: Arc<str>, reason: String },
    /// Answered at more length than is read: what was asked for has to be less.
    #[error("{endpoint} answers with more than can be read: {message}")]
    TooLarge { endpoint: Arc<str>, message: String },
    /// etcd's own word that the lease does not exist.
    #[error("the lease does not exist any more")]
    LeaseGone,
    /// The user, the password or the client's certificate does not suffice for anything.
    #[error("{0}")]
    Denied(String),
    /// The user is known, but this key is not the user's to touch: not applied.
    #[error("{endpoint} denies access: {message}")]
    Forbidden { endpoint: Arc<str>, message: String },
    /// The endpoint speaks, but not etcd's protocol.
    #[error("{0} does not answer as an etcd does")]
    NotEtcd(Arc<str>),
    /// etcd cannot at the moment, and says so: not applied.
    #[error("{endpoint} is not able to: {message}")]
    Busy { endpoint: Arc<str>, message: String },
    /// Any other word of etcd's own: not applied.
    #[error("{endpoint} refuses: {message}")]
    Refused { endpoint: Arc<str>, message: String },
}

impl Failure {
    /// Whether the request may still take effect, now or later. What does not answer as an etcd does may stand in
    /// front of one.
    pub(crate) fn may_have_been_applied(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::TooLarge { .. } | Self::NotEtcd(_))
    }

    /// Whether etcd has refused what the request says, so that a part of it may be accepted.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Forbidden { .. })
    }

    /// Whether repeating the very same request may help without anybody doing something about it.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::TooLarge { .. } => true,
            Self::Busy { .. } | Self::LeaseGone => true,
            Self::Denied(_) | Self::Forbidden { .. } | Self::NotEtcd(_) | Self::Refused { .. } => false,
        }
    }
}

/// One conditional write. Every write of a key names the lease under which the key is believed to stand, so that a
/// write which lands late, or meets somebody else's key, does nothing.
#[derive(Debug)]
pub(crate) enum Op {
    /// Puts the key if it stands under `held`, or under no lease, or not at all.
    Put { key: Arc<str>, value: Vec<u8>, held: i64 },
    /// Deletes the key if it stands under `held`.
    Delete { key: Arc<str>, held: i64 },
}

/// What became of an [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The key stands under the lease now; before, it stood under `over` (0: under none, or it did not exist).
    Written { over: i64 },
    /// The key did stand under `held` and is gone.
    Deleted,
    /// The key did not exist.
    Absent,
    /// Nothing was done: the key stands under another lease (0: a delete met a key without a lease).
    HeldBy(i64),
}

/// A key as it stands in etcd.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
    /// The revision that created it: another one after it was deleted and put again.
    pub(crate) created: i64,
}

/// Every key under a prefix, in order, as of one revision.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    pub(crate) found: Vec<T>,
    pub(crate) revision: i64,
}

/// Keys from one to another, without that one, as etcd writes them.
struct Range {
    from: Vec<u8>,
    end: Vec<u8>,
}

/// What becomes of a range that is read: first a page, then what was taken from it.
enum Progress<T> {
    Page(Page),
    Taken(Vec<u8>, Vec<T>),
}

/// The first keys of a range.
struct Page {
    range: Range,
    answer: GetResponse,
    /// How many keys it could have.
    most: i64,
    /// Whether the values are too large to be read.
    is_without_values: bool,
}

/// What happened to one key.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Found),
    Deleted(Vec<u8>),
}

/// A granted lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) lease: i64,
    /// What etcd granted, not what was asked for.
    pub(crate) ttl: Duration,
}

/// What etcd says about a lease.
#[derive(Debug)]
pub(crate) struct LeaseView {
    pub(crate) ttl: Duration,
    pub(crate) remaining: Duration,
    pub(crate) keys: Vec<Vec<u8>>,
}

/// A cluster of etcd, spoken to through one endpoint at a time. Cloning clones the handle.
#[derive(Clone)]
pub(crate) struct Etcd {
    endpoints: Arc<[Endpoint]>,
    current: Arc<AtomicUsize>,
    reach: Arc<Reach>,
    credentials: Option<Credentials>,
    request_timeout: Duration,
}

/// Whether any endpoint can be reached, and who waits for that.
#[derive(Default)]
struct Reach {
    lost: AtomicBool,
    back: Notify,
}

struct Endpoint {
    url: Arc<str>,
    client: Client,
    /// The last time that the client signed in, or is about to; none where that is in doubt.
    signed_in: Mutex<Option<SignIn>>,
}

/// One sign-in. A caller whose time is over leaves it to the next one as far as it came: the hash of the password may take
/// an etcd that has much to do longer than a call may take.
#[derive(Clone)]
struct SignIn {
    begun: Instant,
    /// Whether etcd wanted to know who it is.
    done: Shared<BoxFuture<'static, Result<bool, Failure>>>,
}

impl Endpoint {
    async fn sign_in(&self, credentials: &Credentials, patience: Duration) -> Result<(), Failure> {
        let signing = {
            let mut place = self.place();
            match &*place {
                // One that failed is tried again.
                Some(signing) if !matches!(signing.done.peek(), Some(Err(_))) => signing.clone(),
                _ => place.insert(self.begin(credentials.clone(), patience)).clone(),
            }
        };
        signing.done.await.map(|_| ())
    }

    fn begin(&self, Credentials { user, password }: Credentials, patience: Duration) -> SignIn {
        let (mut client, url) = (self.client.clone(), self.url.clone());
        let done = async move {
            match timeout(patience, client.update_user(Some((user, password)))).await {
                // An etcd without authentication needs no user, as etcd's own Go client sees it.
                Ok(Err(ClientError::GRpcStatus(status)))
                    if status.message().contains("authentication is not enabled") =>
                {
                    Ok(false)
                }
                Ok(outcome) => outcome.map(|()| true).map_err(|error| classify(&url, &error)),
                Err(_) => Err(Failure::Unanswered { endpoint: url, reason: format!("no sign-in within {patience:?}") }),
            }
        };
        SignIn { begun: Instant::now(), done: done.boxed().shared() }
    }

    /// An etcd that lost its data does not refuse a token from before: it waits until it has written as much as the
    /// etcd that issued the token. And one that did not want to know who we are may do so by now. So whoever gets no answer,
    /// or no access, signs in again.
    fn doubt(&self, why: &Failure) {
        let mut place = self.place();
        let is_over = |signing: &SignIn| match signing.done.peek() {
            // A refusal is no silence: what etcd refuses it does not know any more.
            Some(Ok(true)) => matches!(why, Failure::Denied(_)) || signing.begun.elapsed() >= TRUST,
            Some(Ok(false) | Err(_)) => true,
            None => false,
        };
        if place.as_ref().is_some_and(is_over) {
            *place = None;
        }
    }

    fn place(&self) -> MutexGuard<'_, Option<SignIn>> {
        self.signed_in.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Etcd {
    /// Prepares the connections; makes none yet. Needs to run on the runtime that will drive them.
    pub(crate) async fn prepare(options: &Options) -> Result<Self, Error> {
        let mut transports = Vec::new();
        for text in &options.endpoints {
            let (url, transport) = transport(text, options)?;
            transports.push((url, Channel::Tonic(transport.connect_lazy())));
        }
        Self::over(options, transports).await
    }

    /// The same over given channels, each named as an endpoint would be.
    pub(crate) async fn over(options: &Options, channels: Vec<(Arc<str>, Channel)>) -> Result<Self, Error> {
        if channels.is_empty() {
            return Err(Invalid::new("endpoints", "must name at least one endpoint of etcd").into());
        }
        // An etcd member without a leader says so instead of answering from the past or not at all.
        let connect = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        let mut endpoints = Vec::new();
        for (url, channel) in channels {
            let client = Client::from_channel(channel, Some(connect.clone()))
                .await
                .map_err(|error| Error::unavailable(classify(&url, &error)))?;
            endpoints.push(Endpoint { url, client, signed_in: Mutex::default() });
        }
        Ok(Self {
            endpoints: endpoints.into(),
            current: Arc::new(AtomicUsize::new(0)),
            reach: Arc::default(),
            credentials: options.credentials.clone(),
            request_timeout: options.request_timeout,
        })
    }

    /// Returns when an endpoint answers after none could be reached.
    pub(crate) async fn is_back(&self) {
        self.reach.back.notified().await;
    }

    /// Who answers, and its version.
    pub(crate) async fn status(&self) -> Result<(Arc<str>, String), Failure> {
        let asked =
            self.ask(self.request_timeout, |mut client| async move { Ok(client.status().await?.version().to_owned()) });
        asked.await.map(|(index, version)| (self.url(index), version))
    }

    /// How it is: each endpoint asked by itself.
    pub(crate) async fn health(&self) -> Health {
        let endpoints = self.endpoints.iter().map(|endpoint| async {
            let standing = self.standing(endpoint).await.map_err(Into::into);
            (endpoint.url.to_string(), standing)
        });
        let alarms = self.call(self.request_timeout, |mut client| async move {
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
        let asked = async {
            self.sign_in(endpoint).await?;
            endpoint.client.clone().status().await.map_err(|error| classify(&endpoint.url, &error))
        };
        let after = self.request_timeout;
        match timeout(after, asked).await {
            Ok(Ok(status)) => Ok(Member {
                has_leader: status.leader() != 0,
                database: u64::try_from(status.db_size()).unwrap_or_default(),
                quota: u64::try_from(status.db_size_quota()).ok().filter(|quota| *quota > 0),
            }),
            Ok(Err(Failure::Busy { message, .. })) if message.contains("no leader") => {
                Ok(Member { has_leader: false, database: 0, quota: None })
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                Err(Failure::Unanswered { endpoint: endpoint.url.clone(), reason: format!("nothing within {after:?}") })
            }
        }
    }

    /// A new lease.
    pub(crate) async fn grant(&self, ttl: Ttl, deadline: Duration) -> Result<Granted, Failure> {
        // Within i64: a Ttl is bounded by etcd's maximum.
        let seconds = ttl.seconds() as i64;
        let answer = self.call(deadline, |mut client| async move { client.lease_grant(seconds, None).await }).await?;
        let granted = u64::try_from(answer.ttl()).unwrap_or_default().max(1);
        Ok(Granted { lease: answer.id(), ttl: Duration::from_secs(granted) })
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is a success.
    pub(crate) async fn revoke(&self, lease: i64, deadline: Duration) -> Result<(), Failure> {
        match self.call(deadline, |mut client| async move { client.lease_revoke(lease).await }).await {
            Ok(_) | Err(Failure::LeaseGone) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Every lease there is.
    pub(crate) async fn leases(&self) -> Result<Vec<i64>, Failure> {
        let answer = self.call(self.request_timeout, |mut client| async move { client.leases().await }).await?;
        Ok(answer.leases().iter().map(LeaseStatus::id).collect())
    }

    /// What etcd knows of a lease, with its keys where `keys` says so.
    pub(crate) async fn look_at(&self, lease: i64, keys: bool, deadline: Duration) -> Result<LeaseView, Failure> {
        let mut options = LeaseTimeToLiveOptions::new();
        if keys {
            options = options.with_keys();
        }
        let answer = self
            .call(deadline, |mut client| {
                let options = options.clone();
                async move { client.lease_time_to_live(lease, Some(options)).await }
            })
            .await?;
        match u64::try_from(answer.ttl()) {
            Ok(seconds) => Ok(LeaseView {
                ttl: Duration::from_secs(u64::try_from(answer.granted_ttl()).unwrap_or_default()),
                remaining: Duration::from_secs(seconds),
                keys: answer.keys().to_vec(),
            }),
            Err(_) => Err(Failure::LeaseGone),
        }
    }

    /// Opens a stream of renewals; its opening is the first renewal.
    pub(crate) async fn open_renewals(&self, lease: i64, deadline: Duration) -> Result<Renewals, Failure> {
        let (index, (keeper, answers)) =
            self.ask(deadline, |client| async move { client.lease_client().keep_alive(lease).await }).await?;
        Ok(Renewals { keeper, answers, etcd: self.clone(), index })
    }

    /// Does every operation whose condition holds, in one transaction, all puts under `lease`.
    ///
    /// Takes at most [`MAX_OPS`] operations, no key twice; the outcomes stand in the order of the operations.
    pub(crate) async fn commit(&self, ops: &[Op], lease: i64, deadline: Duration) -> Result<Vec<Outcome>, Failure> {
        let (index, answer) = self
            .ask(deadline, |mut client| {
                let txn = Txn::new().and_then(ops.iter().map(|op| op.conditional(lease)).collect::<Vec<_>>());
                async move { client.txn(txn).await }
            })
            .await?;
        let outcomes: Option<Vec<_>> =
            ops.iter().zip(answer.op_responses()).map(|(op, answer)| op.outcome(&answer)).collect();
        match outcomes {
            Some(outcomes) if outcomes.len() == ops.len() => Ok(outcomes),
            // It was applied, and we do not know how.
            _ => Err(Failure::Unanswered {
                endpoint: self.url(index),
                reason: "its answer does not fit the request".to_owned(),
            }),
        }
    }

    /// Every key under a prefix, as of one revision: what `take` makes of it.
    ///
    /// Pages are read side by side, and while etcd gathers some, others are taken from.
    pub(crate) async fn read<T>(&self, prefix: &str, take: impl Fn(Found) -> T) -> Result<Reading<T>, Failure> {
        let end = end_of(prefix.as_bytes());
        // etcd takes an empty key for none, and the byte 0 for the first of all.
        let from = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let mut rest = VecDeque::from([Range { from, end }]);
        let (mut revision, mut limit) = (0, FIRST_PAGE);
        let mut taken: BTreeMap<Vec<u8>, Vec<T>> = BTreeMap::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < PAGES
                && let Some(range) = rest.pop_front()
            {
                under_way.push(Either::Left(self.page(range, limit, revision)));
            }
            let Some(progress) = under_way.next().await else { break };
            let mut page = match progress? {
                Progress::Page(page) => page,
                Progress::Taken(from, found) => {
                    taken.insert(from, found);
                    continue;
                }
            };
            if revision == 0 {
                revision = page.answer.header().map_or(0, |header| header.revision());
            }
            // The last keys of a range, which may be few or none, say nothing of those in others.
            if page.answer.more() {
                limit = page.next_limit();
                rest.extend(page.rest(limit));
            }
            let take = &take;
            under_way.push(Either::Right(async move {
                let mut found = Vec::with_capacity(page.answer.kvs().len());
                for kv in page.answer.take_kvs() {
                    let kv = Found::from(kv);
                    found.push(take(if page.is_without_values { Found { value: vec![UNREAD], ..kv } } else { kv }));
                    if found.len() % TURN == 0 {
                        yield_now().await;
                    }
                }
                Ok(Progress::Taken(page.range.from, found))
            }));
        }
        Ok(Reading { found: taken.into_values().flatten().collect(), revision })
    }

    /// The first keys of a range, as of a revision, or of now if that is 0: fewer than asked for where they are large, and
    /// one without its value where that alone is too large.
    async fn page<T>(&self, range: Range, mut limit: i64, revision: i64) -> Result<Progress<T>, Failure> {
        let page = |limit, keys_only| {
            let options = GetOptions::new().with_range(range.end.clone()).with_limit(limit).with_revision(revision);
            let options = if keys_only { options.with_keys_only() } else { options };
            let from = range.from.clone();
            self.call(self.request_timeout, move |client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.kv_client().max_decoding_message_size(MAX_ANSWER).get(from, Some(options)).await }
            })
        };
        let (answer, is_without_values) = loop {
            match page(limit, false).await {
                Err(Failure::TooLarge { .. }) if limit == 1 => break (page(1, true).await?, true),
                Err(Failure::TooLarge { .. }) => limit = (limit / 4).max(1),
                // It may have been too much for the time.
                Err(_) if limit > FIRST_PAGE => limit = FIRST_PAGE,
                answer => break (answer?, false),
            }
        };
        Ok(Progress::Page(Page { range, answer, most: limit, is_without_values }))
    }

    /// The revision that had created the key that stood at `revision`; refused when that is compacted.
    pub(crate) async fn created(&self, key: &[u8], revision: i64) -> Result<Option<i64>, Failure> {
        let answer = self.call(self.request_timeout, |mut client| async move {
            client.get(key, Some(GetOptions::new().with_revision(revision))).await
        });
        Ok(answer.await?.kvs().first().map(KeyValue::create_revision))
    }

    /// Opens a stream of what happens to the keys under a prefix from `revision` on. Ok once etcd has confirmed it.
    pub(crate) async fn open_changes(
        &self,
        prefix: &str,
        revision: i64,
        deadline: Duration,
    ) -> Result<Changes, Failure> {
        let key = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let opened = self.ask(deadline, |client| {
            // In fragments: etcd may have more to say at a time than fits into one message.
            let options =
                WatchOptions::new().with_range(end_of(prefix.as_bytes())).with_start_revision(revision).with_fragment();
            let key = key.clone();
            async move { client.watch_client().max_decoding_message_size(MAX_ANSWER).watch(key, Some(options)).await }
        });
        let (index, stream) = opened.await?;
        let mut changes = Changes { stream, url: self.url(index), asked: false };
        match timeout(deadline, changes.message()).await {
            Ok(confirmed) => confirmed.map(|_| changes),
            Err(_) => Err(changes.unanswered(format!("no watch within {deadline:?}"))),
        }
    }

    fn url(&self, index: usize) -> Arc<str> {
        self.endpoints[index].url.clone()
    }

    /// The next endpoint is the one that is asked from now on, unless somebody has moved on from this one already: of
    /// many calls that fail together each would otherwise pass over another one.
    fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn call<T, F>(&self, deadline: Duration, make: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        self.ask(deadline, make).await.map(|(_, answer)| answer)
    }

    /// Makes one call within `deadline`, and says which endpoint answered. One that cannot be reached passes the call on
    /// to the next, each is tried once; one that failed in any other way loses its turn for the calls to come.
    async fn ask<T, F>(&self, deadline: Duration, make: impl Fn(Client) -> F) -> Result<(usize, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let asked = AtomicUsize::new(first);
        let attempts = async {
            let mut outcome = None;
            for index in (first..first + self.endpoints.len()).map(|index| index % self.endpoints.len()) {
                asked.store(index, Ordering::Relaxed);
                let endpoint = &self.endpoints[index];
                let answer = async {
                    self.sign_in(endpoint).await?;
                    make(endpoint.client.clone()).await.map_err(|error| classify(&endpoint.url, &error))
                };
                match answer.await {
                    Err(failure @ Failure::Unreachable { .. }) => {
                        self.pass_over(index);
                        outcome = Some(failure);
                    }
                    answer => return answer,
                }
            }
            Err(outcome.expect("there is at least one endpoint"))
        };
        let answer = timeout(deadline, attempts).await;
        let index = asked.into_inner();
        let answer = answer.unwrap_or_else(|_| {
            Err(Failure::Unanswered { endpoint: self.url(index), reason: format!("nothing within {deadline:?}") })
        });
        match &answer {
            Err(Failure::Unreachable { .. }) => self.reach.lost.store(true, Ordering::Relaxed),
            Err(failure @ (Failure::Unanswered { .. } | Failure::Denied(_))) => self.endpoints[index].doubt(failure),
            // An answer, be it a refusal.
            _ if self.reach.lost.swap(false, Ordering::Relaxed) => self.reach.back.notify_waiters(),
            _ => {}
        }
        if let Err(Failure::Unanswered { .. } | Failure::Busy { .. } | Failure::NotEtcd(_)) = &answer {
            self.pass_over(index);
        }
        answer.map(|answer| (index, answer))
    }

    /// Authenticates once per endpoint; afterwards the client renews by itself a token that etcd refuses.
    async fn sign_in(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        match &self.credentials {
            Some(credentials) => endpoint.sign_in(credentials, self.request_timeout).await,
            None => Ok(()),
        }
    }
}

/// An open stream of renewals of one lease.
pub(crate) struct Renewals {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    etcd: Etcd,
    /// The endpoint that it leads to.
    index: usize,
}

impl Renewals {
    /// Ready once the stream has broken although nothing is asked on it.
    pub(crate) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        Pin::new(&mut self.answers).poll_next(cx).map(|answer| match answer {
            Some(Err(error)) => classify(&self.etcd.url(self.index), &error),
            _ => self.unanswered("the stream of renewals ended".to_owned()),
        })
    }

    /// Renews once. Ok only on etcd's answer that the lease lives on, with the TTL it has from then.
    ///
    /// After a failure the stream must not be used again: a late answer would be taken for the next one.
    pub(crate) async fn renew(&mut self, deadline: Duration) -> Result<Duration, Failure> {
        let exchange = async {
            self.keeper.keep_alive().await?;
            self.answers.message().await
        };
        match timeout(deadline, exchange).await {
            Err(_) => {
                // The next attempt is not to wait for the same endpoint once more: there may be no time for a third.
                self.etcd.pass_over(self.index);
                Err(self.unanswered(format!("no renewal within {deadline:?}")))
            }
            Ok(Err(error)) => Err(classify(&self.etcd.url(self.index), &error)),
            Ok(Ok(None)) => Err(self.unanswered("the stream of renewals ended".to_owned())),
            Ok(Ok(Some(answer))) => match u64::try_from(answer.ttl()) {
                Ok(0) | Err(_) => Err(Failure::LeaseGone),
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
            },
        }
    }

    fn unanswered(&self, reason: String) -> Failure {
        Failure::Unanswered { endpoint: self.etcd.url(self.index), reason }
    }
}

/// An open stream of what happens under a prefix.
pub(crate) struct Changes {
    stream: WatchStream,
    url: Arc<str>,
    /// Whether etcd was asked for a sign of life.
    asked: bool,
}

impl Changes {
    /// What happened next. Nothing is etcd's word that nothing has: it is asked for one after `silence`.
    ///
    /// After a failure the stream must not be used again. May be dropped and called again.
    pub(crate) async fn next(&mut self, silence: Duration, deadline: Duration) -> Result<Vec<Change>, Failure> {
        if !self.asked {
            match timeout(silence, self.message()).await {
                Ok(changes) => return changes,
                Err(_) => self.stream.request_progress().await.map_err(|error| classify(&self.url, &error))?,
            }
            self.asked = true;
        }
        let answer = timeout(deadline, self.message()).await;
        let changes = answer.map_err(|_| self.unanswered(format!("no sign of life within {deadline:?}")))?;
        self.asked = false;
        changes
    }

    async fn message(&mut self) -> Result<Vec<Change>, Failure> {
        let message = self.stream.message().await.map_err(|error| classify(&self.url, &error))?;
        let Some(message) = message else { return Err(self.unanswered("the watch ended".to_owned())) };
        if message.compact_revision() > 0 {
            let message = format!("has compacted what came before revision {}", message.compact_revision());
            return Err(Failure::Refused { endpoint: self.url.clone(), message });
        }
        if message.canceled() {
            let reason = message.cancel_reason();
            let code = if reason.contains("permission denied") { Code::PermissionDenied } else { Code::Cancelled };
            return Err(classify(&self.url, &ClientError::GRpcStatus(Status::new(code, reason))));
        }
        let changes = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(kv.clone().into()),
                EventType::Delete => Change::Deleted(kv.key().to_vec()),
            })
        });
        Ok(changes.collect())
    }

    fn unanswered(&self, reason: String) -> Failure {
        Failure::Unanswered { endpoint: self.url.clone(), reason }
    }
}

impl From<KeyValue> for Found {
    fn from(found: KeyValue) -> Self {
        let (lease, created) = (found.lease(), found.create_revision());
        let (key, value) = found.into_key_value();
        Self { key, value, lease, created }
    }
}

/// A boxed call under way.
pub(crate) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Op {
    pub(crate) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => 4 * key.len() + 2 * value.len(),
            Self::Delete { key, .. } => 3 * key.len(),
        }
    }

    fn conditional(&self, lease: i64) -> TxnOp {
        let held_by = |key: &Arc<str>, lease| Compare::lease(key.as_bytes(), CompareOp::Equal, lease);
        // With its value: etcd 3.7 leaves the lease out of an answer that has keys only.
        let look = |key: &Arc<str>| TxnOp::get(key.as_bytes(), None);
        TxnOp::txn(match self {
            Self::Put { key, value, held } => {
                let put = || TxnOp::put(key.as_bytes(), value.clone(), Some(PutOptions::new().with_lease(lease)));
                // A missing key compares as one without a lease.
                let free = Txn::new().when([held_by(key, 0)]).and_then([put()]).or_else([look(key)]);
                match held {
                    0 => free,
                    held => Txn::new().when([held_by(key, *held)]).and_then([put()]).or_else([TxnOp::txn(free)]),
                }
            }
            Self::Delete { key, held } => Txn::new()
                .when([held_by(key, *held)])
                .and_then([TxnOp::delete(key.as_bytes(), Some(DeleteOptions::new()))])
                .or_else([look(key)]),
        })
    }

    fn outcome(&self, answer: &TxnOpResponse) -> Option<Outcome> {
        let TxnOpResponse::Txn(answer) = answer else { return None };
        match self {
            Self::Put { held, .. } => written(answer, *held),
            Self::Delete { .. } => match answer.op_responses().first()? {
                TxnOpResponse::Delete(gone) => {
                    Some(if gone.deleted() > 0 { Outcome::Deleted } else { Outcome::Absent })
                }
                found => holder(found),
            },
        }
    }
}

fn written(answer: &TxnResponse, held: i64) -> Option<Outcome> {
    match answer.op_responses().first()? {
        TxnOpResponse::Put(_) => Some(Outcome::Written { over: held }),
        TxnOpResponse::Txn(free) => written(free, 0),
        found => holder(found),
    }
}

fn holder(answer: &TxnOpResponse) -> Option<Outcome> {
    let TxnOpResponse::Get(found) = answer else { return None };
    Some(found.kvs().first().map_or(Outcome::Absent, |found| Outcome::HeldBy(found.lease())))
}

impl Page {
    /// How many keys the next pages should have: as many as come to [`PAGE_BYTES`], and not many times more than these.
    fn next_limit(&self) -> i64 {
        let all = self.answer.kvs();
        let bytes: usize = all.iter().map(|kv| kv.key().len() + kv.value().len() + KEY_OVERHEAD).sum();
        let fits = (PAGE_BYTES * all.len()).checked_div(bytes).unwrap_or_default();
        i64::try_from(fits).unwrap_or(MAX_PAGE).min(MAX_PAGE / FIRST_PAGE * self.most).clamp(1, MAX_PAGE)
    }

    /// What of the range comes after it, in pieces if that is much.
    fn rest(&self, limit: i64) -> Vec<Range> {
        let (Some(first), Some(last)) = (self.answer.kvs().first(), self.answer.kvs().last()) else {
            return Vec::new();
        };
        let left = self.answer.count() - i64::try_from(self.answer.kvs().len()).unwrap_or(i64::MAX);
        let mut bounds = vec![[last.key(), &[0]].concat()];
        if left > 2 * limit {
            bounds.extend(cuts(&self.range, first.key(), last.key()));
        }
        bounds.push(self.range.end.clone());
        bounds.windows(2).map(|pair| Range { from: pair[0].clone(), end: pair[1].clone() }).collect()
    }
}

/// Where to cut what is left of a range after its `first` to `last` keys: where these differ, and where the range begins.
fn cuts(range: &Range, first: &[u8], last: &[u8]) -> Vec<Vec<u8>> {
    let same = |other: &[u8]| last.iter().zip(other).take_while(|(a, b)| a == b).count();
    let places = BTreeSet::from([same(first), same(&range.from)]);
    let all = places.iter().rev().flat_map(|place| CUTS.iter().map(|cut| [&last[..*place], &[*cut]].concat()));
    all.filter(|cut| **cut > *last && (**cut < *range.end || range.end == [0])).collect()
}

/// The first key after all that begin with `prefix`, as etcd writes the end of a range.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte < u8::MAX) {
        None => vec![0],
        Some(last) => [&prefix[..last], &[prefix[last] + 1]].concat(),
    }
}

fn transport(text: &str, options: &Options) -> Result<(Arc<str>, Transport), Error> {
    let invalid = |rule: &str| Error::from(Invalid::new("endpoints", rule.to_owned()));
    if text.contains('@') {
        return Err(invalid("must not carry a user or a password; they have options of their own"));
    }
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let not_a_url = || invalid(&format!("must be http://host:port or https://host:port, not {text:?}"));
    let transport = Transport::from_shared(url.clone()).map_err(|_| not_a_url())?;
    let secure = match transport.uri().scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(not_a_url()),
    };
    if transport.uri().port_u16().is_none_or(|port| port == 0) || transport.uri().path() != "/" {
        return Err(not_a_url());
    }
    let transport = transport
        .connect_timeout(options.dial_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    let transport = if secure {
        transport.tls_config(tls(&options.tls)).map_err(|_| {
            Error::from(Invalid::new("tls", "must hold PEM certificates, and a PEM key that fits the certificate"))
        })?
    } else {
        transport
    };
    Ok((url.into(), transport))
}

fn tls(tls: &Tls) -> TlsOptions {
    let mut options = TlsOptions::new();
    if let Some(ca) = &tls.ca_pem {
        options = options.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((certificate, key)) = &tls.identity_pem {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    options
}

/// What an error of the client means for what was asked. etcd's texts are matched here and nowhere else.
fn classify(endpoint: &Arc<str>, error: &ClientError) -> Failure {
    let endpoint = endpoint.clone();
    let status = match error {
        ClientError::GRpcStatus(status) => status,
        ClientError::LeaseKeepAliveError(text) if text == "lease not found" => return Failure::LeaseGone,
        error => return Failure::Unanswered { endpoint, reason: error.to_string() },
    };
    let message = status.message();
    if let Some(alert) = certificate_refused(status) {
        return Failure::Denied(format!("{endpoint} denies access: this host's certificate: {alert}"));
    }
    if let Some(reason) = never_connected(status) {
        return Failure::Unreachable { endpoint, reason };
    }
    // The client's word, or that of a server or a proxy whose own limit it is.
    if message.contains("message length too large") || message.contains("message larger than max") {
        return Failure::TooLarge { endpoint, message: message.to_owned() };
    }
    let said_by_etcd = message.starts_with("etcdserver: ") || message.starts_with("auth: ");
    match status.code() {
        Code::NotFound if message.contains("requested lease not found") => Failure::LeaseGone,
        Code::PermissionDenied => Failure::Forbidden { endpoint, message: message.to_owned() },
        Code::Unauthenticated => Failure::Denied(format!("{endpoint} denies access: {message}")),
        _ if message.contains("authentication failed") || message.contains("user name is empty") => {
            Failure::Denied(format!("{endpoint} denies access: {message}"))
        }
        // What is said before anything is proposed, and what ends once somebody has made room.
        _ if ["no leader", "too many requests", "database space exceeded"]
            .iter()
            .any(|text| message.contains(text)) =>
        {
            Failure::Busy { endpoint, message: message.to_owned() }
        }
        // A proposal whose fate the member does not know.
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
            Failure::Unanswered { endpoint, reason: described(status) }
        }
        _ if said_by_etcd => Failure::Refused { endpoint, message: message.to_owned() },
        Code::Unimplemented => Failure::NotEtcd(endpoint),
        // A server of HTTP, but not of gRPC.
        _ if message.contains("grpc-status header missing") || message.contains("invalid compression flag") => {
            Failure::NotEtcd(endpoint)
        }
        // What HTTP/1 looks like to a client of HTTP/2.
        _ if innermost(status).to_string().contains("frame with invalid size") => Failure::NotEtcd(endpoint),
        _ => Failure::Unanswered { endpoint, reason: described(status) },
    }
}

/// The cause why no connection was made, when that is what happened.
fn never_connected(status: &Status) -> Option<String> {
    let mut error: &(dyn std::error::Error + 'static) = status;
    let mut connecting = false;
    while let Some(source) = error.source() {
        connecting |= source.is::<ConnectError>();
        error = source;
    }
    connecting.then(|| error.to_string())
}

/// The alert with which an endpoint turned down the certificate that this client showed, or did not show.
fn certificate_refused(status: &Status) -> Option<String> {
    const ALERTS: [&str; 6] = [
        "BadCertificate",
        "CertificateExpired",
        "CertificateRequired",
        "CertificateRevoked",
        "CertificateUnknown",
        "UnknownCA",
    ];
    let text = innermost(status).to_string();
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let alert = alert.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    ALERTS.contains(&alert).then(|| alert.to_owned())
}

/// The innermost cause, which is where a transport says what happened.
fn innermost(status: &Status) -> &(dyn std::error::Error + 'static) {
    let mut error: &(dyn std::error::Error + 'static) = status;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// The status with its innermost cause.
fn described(status: &Status) -> String {
    let error = innermost(status);
    match (status.message(), error.to_string()) {
        ("", cause) => cause,
        (message, cause) if cause.contains(message) => cause,
        (message, _) if std::ptr::addr_eq(error, status) => message.to_owned(),
        (message, cause) => format!("{message}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use etcd_client::Error as ClientError;
    use tonic::{Code, Status};

    use super::{Failure, Range, classify, cuts, end_of, transport};
    use crate::config::Options;

    fn failure(code: Code, message: &str) -> Failure {
        classify(&Arc::from("http://e:1"), &ClientError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn a_lost_lease_is_recognised_in_both_of_its_forms() {
        let as_text = ClientError::LeaseKeepAliveError("lease not found".to_owned());
        assert!(matches!(classify(&Arc::from("e"), &as_text), Failure::LeaseGone));
        assert!(matches!(failure(Code::NotFound, "etcdserver: requested lease not found"), Failure::LeaseGone));
    }

    #[test]
    fn an_unknown_fate_counts_as_unanswered() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Cancelled, ""),
            (Code::Unknown, "transport error"),
        ] {
            assert!(failure(code, message).may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn a_refusal_was_not_applied() {
        for (code, message) in [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        ] {
            assert!(!failure(code, message).may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn what_is_no_etcd_may_stand_in_front_of_one() {
        let unimplemented = failure(Code::Unimplemented, "");
        let error_page = failure(Code::Internal, "grpc-status header missing, mapped from HTTP status code 500");
        let http_1 = failure(Code::Internal, "h2 protocol error: frame with invalid size");
        for failure in [unimplemented, error_page, http_1] {
            assert!(matches!(failure, Failure::NotEtcd(_)) && failure.may_have_been_applied(), "{failure}");
        }
    }

    #[test]
    fn an_answer_that_is_too_large_is_no_reason_to_ask_elsewhere() {
        let decoding = "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes";
        for (code, message) in [
            (Code::OutOfRange, decoding),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (5000000 vs. 4194304)"),
        ] {
            let failure = failure(code, message);
            // A write may have been applied all the same.
            assert!(matches!(failure, Failure::TooLarge { .. }) && failure.may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn a_refused_certificate_is_denied() {
        let refused = failure(Code::Unknown, "received fatal alert: CertificateRequired");
        assert!(matches!(refused, Failure::Denied(_)), "{refused}");
        let broken = failure(Code::Unknown, "received fatal alert: BadRecordMac");
        assert!(broken.may_have_been_applied(), "{broken}");
    }

    #[test]
    fn what_is_cut_is_in_order_and_within_the_range() {
        let of = |from: &str, end: &str, first: &str, last: &str| {
            let range = Range { from: from.into(), end: end.into() };
            let cuts = cuts(&range, first.as_bytes(), last.as_bytes());
            assert!(cuts.is_sorted() && cuts.iter().all(|cut| **cut > *last.as_bytes()), "{cuts:?}");
            assert!(end == "\0" || cuts.iter().all(|cut| **cut < *end.as_bytes()), "{cuts:?}");
            cuts.into_iter().map(|cut| String::from_utf8(cut).unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("u/", "u0", "u/40", "u/79"), "u/8 u/a u/c u/e u/i u/m u/q u/u");
        assert_eq!(
            of("u/10.4", "u/10.6", "u/10.4.1", "u/10.49.1"),
            "u/10.4a u/10.4c u/10.4e u/10.4i u/10.4m u/10.4q u/10.4u"
        );
        assert!(
            of("u/", "u0", "u/10.0.0.1", "u/10.0.17.9").starts_with("u/10.0.2 u/10.0.4 u/10.0.6 u/10.0.8 u/10.0.a")
        );
        assert!(of("u/", "u0", "u/10.0.0.1", "u/10.0.17.9").contains(" u/10.0.u u/2 u/4"));
        assert!(of("\0", "\0", "a", "b").starts_with("c e i"));
        assert_eq!(of("u/", "u0", "u/z", "u/z"), "u/z2 u/z4 u/z6 u/z8 u/za u/zc u/ze u/zi u/zm u/zq u/zu");
    }

    #[test]
    fn the_end_of_a_prefix_is_etcds() {
        assert_eq!(end_of(b"/user/"), b"/user0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
        assert_eq!(end_of(b""), b"\0");
    }

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        let options = Options::new(["x"]);
        for good in ["http://127.0.0.1:2379", "127.0.0.1:2379", "http://[::1]:2379/"] {
            assert!(transport(good, &options).is_ok(), "{good}");
        }
        for bad in ["", "http://host", "ftp://host:1", "http://host:0", "http://host:1/path", "http://h:99999"] {
            assert!(transport(bad, &options).is_err(), "{bad}");
        }
        let error = transport("http://root:hunter2@host:2379", &options).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
