//! The endpoints of a cluster: their sign-ins, and the choice of the one to send requests to.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error as ClientError};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, pending},
    stream::FuturesUnordered,
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    connection::{Connections, Life},
    error::{Failure, classify, is_without_authentication, rounded},
    patience::within,
    secure::Secure,
    transport::Way,
};
use crate::{
    node::Invalid,
    options::{Credentials, Options},
    source::Reads,
};

/// Time for which a sign-in is trusted through calls without a response. Hashing a password is expensive for etcd, and a slow
/// etcd must not have to do it all the time.
const TRUST: Duration = Duration::from_secs(5);
/// Part of the time for a sign-in after which the request is sent once more.
const ASK_AGAIN: u32 = 4;
/// Pause after which a refused password is sent again. Another password is sent at once.
const SHOW_AGAIN: Duration = Duration::from_millis(500);

/// Longest time for which a request in etcd's log is waited for: after 7 s (5 s and two election timeouts, unless etcd was given
/// others) etcd itself fails the request.
const MAX_PATIENCE: Duration = Duration::from_secs(8);
/// Time for which the answer to a request may be under way still after a later request was answered.
const OVERTAKEN: Duration = Duration::from_millis(100);
/// Id that no lease has: for a grant it means that etcd chooses one.
const NO_LEASE: i64 = 0;

/// The endpoints of one cluster, of which one serves at a time. Cloning clones the handle.
#[derive(Clone)]
pub(super) struct Endpoints {
    all: Arc<[Endpoint]>,
    current: Arc<AtomicUsize>,
    reach: Arc<Reach>,
    users: Option<Arc<Users>>,
}

/// Reachability of the cluster, and those who wait for it.
#[derive(Default)]
struct Reach {
    lost: AtomicBool,
    back: Notify,
}

pub(super) struct Endpoint {
    pub(super) url: Arc<str>,
    client: Client,
    connections: Connections,
    secure: Option<Arc<Secure>>,
    /// The last time that the client signed in, or is about to; none where that is in doubt.
    signed_in: Mutex<Option<SignIn>>,
}

/// The user of this host, for all endpoints.
struct Users {
    credentials: Credentials,
    /// Longest time for a sign-in, in which the password is read.
    patience: Duration,
    reads: Reads,
    refused: Mutex<Option<Refused>>,
    /// etcd has accepted a sign-in of this host.
    was_accepted: AtomicBool,
}

/// A password that etcd refused last, if it was read, and what it said.
struct Refused {
    at: Instant,
    password: Option<String>,
    failure: Failure,
}

/// One sign-in. A caller whose time is over leaves it to the next one as far as it came: the hash of the password may take
/// an etcd that has much to do longer than a call may take.
#[derive(Clone)]
struct SignIn {
    begun: Instant,
    /// True if etcd requires a sign-in.
    done: Shared<BoxFuture<'static, Result<bool, Failure>>>,
}

/// The endpoint and the connection over which something was answered.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) index: usize,
    pub(super) life: Arc<Life>,
}

/// Rule for repeating a request whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It does the same however often it is made.
    Harmless,
    /// It may take effect later, or twice.
    Never,
}

impl Users {
    async fn password(&self) -> Result<String, String> {
        let source = self.credentials.password.clone();
        self.reads.run(source.may_block(), move || source.read_password()).await
    }

    /// Signs in with the password as it is now. A password that changes while etcd refuses the former one is sent at once.
    async fn sign_in(&self, client: Client, url: &Arc<str>) -> Result<bool, Failure> {
        let mut latest = self.password().await;
        loop {
            let password = match latest {
                Ok(password) => password,
                Err(reason) => {
                    return Err(self.refuse(None, Failure::Denied(format!("{url}: no password: {reason}"))));
                }
            };
            if let Some(failure) = self.refused_lately(&password) {
                return Err(failure);
            }
            let refusal = match self.sign_in_with(&password, client.clone(), url).await {
                Err(refusal @ Failure::Denied(_)) => refusal,
                outcome => return outcome,
            };
            latest = self.password().await;
            if latest.as_ref().is_ok_and(|latest| *latest == password) {
                return Err(self.refuse(Some(password), refusal));
            }
        }
    }

    /// Refusal of this password that is so recent that etcd is not asked to hash it again.
    fn refused_lately(&self, password: &str) -> Option<Failure> {
        let refused = self.refused.lock();
        let is_recent =
            |refused: &&Refused| refused.password.as_deref() == Some(password) && refused.at.elapsed() < SHOW_AGAIN;
        refused.as_ref().filter(is_recent).map(|refused| refused.failure.clone())
    }

    async fn sign_in_with(&self, password: &str, mut client: Client, url: &Arc<str>) -> Result<bool, Failure> {
        let user = self.credentials.user.clone();
        match client.update_user(Some((user, password.to_owned()))).await {
            // An etcd without authentication needs no user, as etcd's own Go client sees it.
            Err(ClientError::GRpcStatus(status)) if is_without_authentication(&status) => {
                self.accept(url);
                Ok(false)
            }
            Ok(()) => {
                self.accept(url);
                Ok(true)
            }
            Err(error) => Err(classify(url, &error)),
        }
    }

    /// Remembers the refusal. Warns of the first one after an accepted sign-in; before that, the caller reports it.
    fn refuse(&self, password: Option<String>, failure: Failure) -> Failure {
        let before = self.refused.lock().replace(Refused { at: Instant::now(), password, failure: failure.clone() });
        // Of a kind: the endpoints of a cluster know the same users.
        if before.is_none() && self.was_accepted.load(Ordering::Relaxed) {
            let Credentials { user, password } = &self.credentials;
            warn!(user, password = %password, "etcd refuses the sign-in; the next attempt follows: {failure}");
        }
        failure
    }

    fn accept(&self, url: &str) {
        self.was_accepted.store(true, Ordering::Relaxed);
        if self.refused.lock().take().is_some() {
            info!(endpoint = url, user = self.credentials.user, "signed in at etcd again");
        }
    }
}

impl Endpoint {
    /// Signs in, unless that was done before. Returns the sign-in whose token the next call carries.
    async fn sign_in(&self, users: &Arc<Users>) -> Result<SignIn, Failure> {
        let called = Instant::now();
        loop {
            let signing = {
                let mut place = self.signed_in.lock();
                match &*place {
                    // A failed sign-in is repeated.
                    Some(signing) if !matches!(signing.done.peek(), Some(Err(_))) => signing.clone(),
                    _ => place.insert(self.begin(users.clone())).clone(),
                }
            };
            match signing.done.clone().await {
                // Its requests were lost before this call began, and so say nothing about etcd now.
                Err(Failure::Unanswered { .. }) if signing.begun < called => {}
                outcome => return outcome.map(|_| signing),
            }
        }
    }

    /// Forgets a sign-in whose token etcd does not know any more, unless another one has replaced it.
    fn forget(&self, refused: &SignIn) {
        self.signed_in.lock().take_if(|signing| signing.done.ptr_eq(&refused.done));
    }

    fn begin(&self, users: Arc<Users>) -> SignIn {
        let (client, url) = (self.client.clone(), self.url.clone());
        let done = async move {
            let patience = users.patience;
            // In case the response is lost, the request is sent once more; to a slow etcd at most twice.
            let again = async {
                sleep(patience / ASK_AGAIN).await;
                Box::pin(users.sign_in(client.clone(), &url)).await
            };
            let either = async {
                tokio::select! {
                    biased;
                    outcome = Box::pin(users.sign_in(client.clone(), &url)) => outcome,
                    outcome = again => outcome,
                }
            };
            match timeout(patience, either).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Failure::Unanswered {
                    endpoint: url,
                    reason: format!("no sign-in within {:?}", rounded(patience)),
                }),
            }
        };
        SignIn { begun: Instant::now(), done: done.boxed().shared() }
    }

    /// Signs in again after a call without a response or without access. An etcd that lost its data does not refuse a token from
    /// before: it waits until it has written as much as the etcd that issued the token. And authentication may have been enabled
    /// since.
    fn doubt(&self, why: &Failure) {
        let mut place = self.signed_in.lock();
        let is_over = |signing: &SignIn| match signing.done.peek() {
            // A refusal is no silence: etcd does not know the token any more.
            Some(Ok(true)) => matches!(why, Failure::Denied(_)) || signing.begun.elapsed() >= TRUST,
            Some(Ok(false) | Err(_)) => true,
            None => false,
        };
        if place.as_ref().is_some_and(is_over) {
            *place = None;
        }
    }

    fn nothing_within(&self, time: Duration) -> Failure {
        Failure::Unanswered { endpoint: self.url.clone(), reason: format!("nothing within {:?}", rounded(time)) }
    }

    /// An error of the client, and why this host's certificate was refused, where that is known here.
    fn failure(&self, error: &ClientError) -> Failure {
        let failure = classify(&self.url, error);
        let Some(secure) = &self.secure else { return failure };
        match failure {
            Failure::Denied(said) if said.contains("certificate") => {
                let said = secure.expired().map_or(said.clone(), |expired| format!("{said}: {expired}"));
                secure.log_failure(&said);
                Failure::Denied(said)
            }
            failure => failure,
        }
    }
}

impl Endpoints {
    /// Prepares the connections; makes none yet. Needs to run on the runtime that will drive them.
    pub(super) async fn prepare(options: &Options) -> Result<Self, Invalid> {
        let ways: Result<Vec<_>, Invalid> = options.endpoints.iter().map(|text| Way::new(text, options)).collect();
        Self::over(options, ways?).await
    }

    /// The same over given ways, each named as an endpoint would be.
    pub(super) async fn over(options: &Options, ways: Vec<Way>) -> Result<Self, Invalid> {
        if ways.is_empty() {
            return Err(Invalid::new("endpoints", "must name at least one endpoint of etcd"));
        }
        // An etcd member without a leader says so instead of answering from the past or not at all.
        let connect = ConnectOptions::new().with_require_leader(true);
        let mut all = Vec::new();
        for Way { url, dial, secure } in ways {
            let connections = Connections::new(url.clone(), dial);
            let client = Client::from_channel(connections.channel(), Some(connect.clone()))
                .await
                .map_err(|error| Invalid::new("endpoints", classify(&url, &error).to_string()))?;
            all.push(Endpoint { url, client, connections, secure, signed_in: Mutex::default() });
        }
        let users = options.credentials.clone().map(|credentials| {
            let (patience, reads) = (options.request_timeout, Reads::default());
            Arc::new(Users {
                credentials,
                patience,
                reads,
                refused: Mutex::default(),
                was_accepted: AtomicBool::new(false),
            })
        });
        Ok(Self { all: all.into(), current: Arc::new(AtomicUsize::new(0)), reach: Arc::default(), users })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.all.iter()
    }

    /// Returns when an endpoint answers after none could be reached.
    pub(super) async fn is_back(&self) {
        self.reach.back.notified().await;
    }

    pub(super) fn url(&self, index: usize) -> Arc<str> {
        self.all[index].url.clone()
    }

    /// Switches from this endpoint to the next one, unless another call has done so already: of many calls that fail together
    /// each would otherwise pass over another endpoint.
    pub(super) fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.all.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Waits for what is to be answered on an open stream within `deadline`, which the caller holds.
    pub(super) async fn attend<T>(&self, route: &Route, deadline: Duration, answer: impl Future<Output = T>) -> T {
        self.all[route.index].connections.attend(&route.life, deadline, answer).await
    }

    /// Makes one call within `deadline`, and returns the connection on which the response came. An unreachable endpoint passes
    /// the call on to the next, each is tried once; an endpoint that fails in another way is passed over by later calls. A call
    /// whose connection is given up is repeated on its replacement, where that does no harm.
    pub(super) async fn ask<T, F>(
        &self,
        repeat: Repeat,
        deadline: Duration,
        make: impl Fn(Client) -> F,
    ) -> Result<(Route, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let (begun, target) = (Instant::now(), self.target());
        let answer = within(deadline, self.attempts(repeat, begun + deadline, &target, &make)).await;
        self.conclude(answer, target.into_inner(), begun.elapsed())
    }

    /// Makes one call as [`ask`](Self::ask) does, for a request that goes through etcd's log, behind all before it. A slow etcd
    /// has its answer ready later than the deadline, and would be slower still if it had to do everything again. So the request
    /// is waited for beyond it while its connection is heard of, and no later request has come through the log before it.
    pub(super) async fn propose<T, F>(
        &self,
        repeat: Repeat,
        deadline: Duration,
        make: impl Fn(Client) -> F,
    ) -> Result<(Route, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let (begun, target) = (Instant::now(), self.target());
        let mut attempts = pin!(self.attempts(repeat, begun + deadline, &target, &make));
        let mut answer = within(deadline, attempts.as_mut()).await;
        let mut heard_since = begun + deadline / 2;
        while answer.is_err() {
            let life = target.lock().life.clone();
            let left = MAX_PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() || !life.was_heard_since(heard_since) {
                break;
            }
            heard_since = Instant::now();
            answer = tokio::select! {
                biased;
                answer = &mut attempts => Ok(answer),
                // Boxed: it is rarely needed, and large.
                () = Box::pin(self.overtake()) => {
                    let late = within(OVERTAKEN, attempts.as_mut()).await;
                    if late.is_err() {
                        break;
                    }
                    late
                }
                elapsed = timeout(deadline.min(left), pending()) => elapsed,
            };
        }
        self.conclude(answer, target.lock().clone(), begun.elapsed())
    }

    /// Returns once a request that was made now has come through etcd's log, by way of any endpoint: a member that has lost the
    /// others does not answer it. Revokes a lease that cannot exist, so nothing changes, and no user needs a right for it.
    async fn overtake(&self) {
        let revoke = |mut client: Client| async move { client.lease_revoke(NO_LEASE).await };
        let mut answers: FuturesUnordered<_> = self.all.iter().map(|one| self.attempt(one, &revoke)).collect();
        while let Some(answer) = answers.next().await {
            if matches!(answer, Ok(_) | Err(Failure::LeaseGone)) {
                return;
            }
        }
        pending::<()>().await;
    }

    /// The endpoint that serves.
    fn target(&self) -> Mutex<Route> {
        let index = self.current.load(Ordering::Relaxed);
        Mutex::new(Route { index, life: self.all[index].connections.current() })
    }

    /// Tries the endpoints, from the target on, until one is reached.
    async fn attempts<T, F>(
        &self,
        repeat: Repeat,
        end: Instant,
        target: &Mutex<Route>,
        make: &impl Fn(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let (first, mut outcome) = (target.lock().index, None);
        for index in (first..first + self.all.len()).map(|index| index % self.all.len()) {
            let endpoint = &self.all[index];
            let answer = loop {
                let life = endpoint.connections.current();
                *target.lock() = Route { index, life: life.clone() };
                let left = end.saturating_duration_since(Instant::now());
                // Boxed: each future that waits for it holds it more than once.
                let attempt = Box::pin(self.attempt(endpoint, make));
                let answer = endpoint.connections.attend(&life, left, attempt).await;
                let is_unknown = matches!(&answer, Err(Failure::Unanswered { .. }));
                if !(is_unknown && life.is_given_up() && repeat == Repeat::Harmless) {
                    break answer;
                }
            };
            match answer {
                Err(failure @ (Failure::Unreachable { .. } | Failure::Handshake { .. })) => {
                    self.pass_over(index);
                    outcome = Some(failure);
                }
                answer => return answer,
            }
        }
        Err(outcome.expect("there is at least one endpoint"))
    }

    async fn attempt<T, F>(&self, endpoint: &Endpoint, make: &impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let call = || {
            let answer = make(endpoint.client.clone());
            async { answer.await.map_err(|error| endpoint.failure(&error)) }
        };
        let Some(users) = &self.users else { return call().await };
        let signed_in = endpoint.sign_in(users).await?;
        match call().await {
            // etcd has restarted, or the password has changed. A refused call has not taken effect.
            Err(failure) if failure.is_about_user() => {
                endpoint.forget(&signed_in);
                endpoint.sign_in(users).await?;
                call().await
            }
            outcome => outcome,
        }
    }

    /// Learns from the answer to a call, or from none.
    fn conclude<T>(
        &self,
        answer: Result<Result<T, Failure>, Elapsed>,
        route: Route,
        after: Duration,
    ) -> Result<(Route, T), Failure> {
        let answer = answer.unwrap_or_else(|_| Err(self.all[route.index].nothing_within(after)));
        self.learn(route.index, &route.life, &answer, after);
        answer.map(|answer| (route, answer))
    }

    /// Draws the consequences of an answer, or of none, for the requests to come.
    fn learn<T>(&self, index: usize, life: &Arc<Life>, answer: &Result<T, Failure>, after: Duration) {
        let Endpoint { connections, secure, .. } = &self.all[index];
        // The connection was to blame, and another one is in use by now.
        let is_mended = life.is_given_up();
        match answer {
            Err(Failure::Unreachable { .. } | Failure::Handshake { .. }) => {
                self.reach.lost.store(true, Ordering::Relaxed);
            }
            Err(failure @ (Failure::Unanswered { .. } | Failure::Denied(_))) if !is_mended => {
                self.all[index].doubt(failure);
            }
            // An answer, be it a refusal.
            _ if self.reach.lost.swap(false, Ordering::Relaxed) => self.reach.back.notify_waiters(),
            _ => {}
        }
        match answer {
            Err(Failure::Unanswered { .. }) if is_mended => {}
            Err(Failure::Unanswered { .. } | Failure::NotEtcd(_)) => connections.failed(life),
            Ok(_) => connections.answered(after),
            Err(_) => {}
        }
        if answer.is_ok()
            && let Some(secure) = secure
        {
            secure.log_success();
        }
        if let Err(Failure::Unanswered { .. } | Failure::Busy { .. } | Failure::NotEtcd(_)) = answer
            && !is_mended
        {
            self.pass_over(index);
        }
    }

    /// Makes one call to this endpoint within `deadline`, whichever endpoint serves the others.
    pub(super) async fn ask_one<T, F>(
        &self,
        endpoint: &Endpoint,
        deadline: Duration,
        make: impl Fn(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let end = Instant::now() + deadline;
        let attempts = async {
            loop {
                let life = endpoint.connections.current();
                let left = end.saturating_duration_since(Instant::now());
                let attempt = Box::pin(self.attempt(endpoint, &make));
                let answer = endpoint.connections.attend(&life, left, attempt).await;
                if !(matches!(answer, Err(Failure::Unanswered { .. })) && life.is_given_up()) {
                    return answer;
                }
            }
        };
        timeout(deadline, attempts).await.unwrap_or_else(|_| Err(endpoint.nothing_within(deadline)))
    }

    /// A renewal was answered on an open stream.
    pub(super) fn answered(&self, route: &Route, after: Duration) {
        self.all[route.index].connections.answered(after);
    }
}
