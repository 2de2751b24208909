//! The endpoints of a cluster: their sign-ins, and which of them is asked.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

#[cfg(not(feature = "simulation"))]
use etcd_client::Channel;
#[cfg(feature = "simulation")]
pub use etcd_client::Channel;
use etcd_client::{Certificate, Client, ConnectOptions, Error as ClientError, Identity, TlsOptions};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tonic::transport::Endpoint as Transport;

use super::{
    error::{Failure, classify, is_without_authentication},
    patience::within,
};
use crate::{
    error::Error,
    node::Invalid,
    options::{Credentials, Options, Tls},
};

/// How often an idle connection is probed, so that a dead one is noticed. etcd tolerates one ping in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a probe may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sign-in is trusted through calls without an answer. Hashing a password is dear for etcd, and an etcd that
/// is slow to answer must not be asked for it all the time.
const TRUST: Duration = Duration::from_secs(5);

/// The endpoints of one cluster, one of them asked at a time. Cloning clones the handle.
#[derive(Clone)]
pub(super) struct Endpoints {
    all: Arc<[Endpoint]>,
    current: Arc<AtomicUsize>,
    reach: Arc<Reach>,
    credentials: Option<Credentials>,
    /// How long a sign-in may take.
    patience: Duration,
}

/// Whether any endpoint can be reached, and who waits for that.
#[derive(Default)]
struct Reach {
    lost: AtomicBool,
    back: Notify,
}

pub(super) struct Endpoint {
    pub(super) url: Arc<str>,
    pub(super) client: Client,
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
                Ok(Err(ClientError::GRpcStatus(status))) if is_without_authentication(&status) => Ok(false),
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

impl Endpoints {
    /// Prepares the connections; makes none yet. Needs to run on the runtime that will drive them.
    pub(super) async fn prepare(options: &Options) -> Result<Self, Error> {
        let mut transports = Vec::new();
        for text in &options.endpoints {
            let (url, transport) = transport(text, options)?;
            transports.push((url, Channel::Tonic(transport.connect_lazy())));
        }
        Self::over(options, transports).await
    }

    /// The same over given channels, each named as an endpoint would be.
    pub(super) async fn over(options: &Options, channels: Vec<(Arc<str>, Channel)>) -> Result<Self, Error> {
        if channels.is_empty() {
            return Err(Invalid::new("endpoints", "must name at least one endpoint of etcd").into());
        }
        // An etcd member without a leader says so instead of answering from the past or not at all.
        let connect = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        let mut all = Vec::new();
        for (url, channel) in channels {
            let client = Client::from_channel(channel, Some(connect.clone()))
                .await
                .map_err(|error| Error::unavailable(classify(&url, &error)))?;
            all.push(Endpoint { url, client, signed_in: Mutex::default() });
        }
        Ok(Self {
            all: all.into(),
            current: Arc::new(AtomicUsize::new(0)),
            reach: Arc::default(),
            credentials: options.credentials.clone(),
            patience: options.request_timeout,
        })
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

    /// The next endpoint is the one that is asked from now on, unless somebody has moved on from this one already: of
    /// many calls that fail together each would otherwise pass over another one.
    pub(super) fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.all.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes one call within `deadline`, and says which endpoint answered. One that cannot be reached passes the call on
    /// to the next, each is tried once; one that failed in any other way loses its turn for the calls to come.
    pub(super) async fn ask<T, F>(&self, deadline: Duration, make: impl Fn(Client) -> F) -> Result<(usize, T), Failure>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let asked = AtomicUsize::new(first);
        let attempts = async {
            let mut outcome = None;
            for index in (first..first + self.all.len()).map(|index| index % self.all.len()) {
                asked.store(index, Ordering::Relaxed);
                let endpoint = &self.all[index];
                let answer = async {
                    self.sign_in(endpoint).await?;
                    make(endpoint.client.clone()).await.map_err(|error| classify(&endpoint.url, &error))
                };
                match answer.await {
                    Err(failure @ (Failure::Unreachable { .. } | Failure::Handshake { .. })) => {
                        self.pass_over(index);
                        outcome = Some(failure);
                    }
                    answer => return answer,
                }
            }
            Err(outcome.expect("there is at least one endpoint"))
        };
        let answer = within(deadline, attempts).await;
        let index = asked.into_inner();
        let answer = answer.unwrap_or_else(|_| {
            Err(Failure::Unanswered { endpoint: self.url(index), reason: format!("nothing within {deadline:?}") })
        });
        match &answer {
            Err(Failure::Unreachable { .. } | Failure::Handshake { .. }) => {
                self.reach.lost.store(true, Ordering::Relaxed)
            }
            Err(failure @ (Failure::Unanswered { .. } | Failure::Denied(_))) => self.all[index].doubt(failure),
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
    pub(super) async fn sign_in(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        match &self.credentials {
            Some(credentials) => endpoint.sign_in(credentials, self.patience).await,
            None => Ok(()),
        }
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

#[cfg(test)]
mod tests {
    use super::transport;
    use crate::options::Options;

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
