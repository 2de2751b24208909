//! Conformance of the simulated etcd with a real etcd: every check runs on both.

mod auth;
mod keys;
mod leases;
mod transactions;
mod watches;

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, GetOptions};
use leasehold_scenarios::real::Etcd;
use leasehold_scenarios::sim::SimEtcd;
use tonic::Code;

/// The etcd under the check.
pub(crate) enum Target {
    Simulated(SimEtcd),
    Real(Box<Etcd>),
}

/// Lifetime of an unused token, if authentication is enabled.
pub(crate) const TOKEN_TTL: Duration = Duration::from_secs(2);

impl Target {
    /// A client without a user.
    pub(crate) async fn client(&self) -> Client {
        let client = self.connect(ConnectOptions::new()).await;
        client.expect("a client without a user calls nothing")
    }

    pub(crate) async fn connect(&self, options: ConnectOptions) -> Result<Client, Error> {
        match self {
            Self::Simulated(etcd) => Client::from_channel(etcd.channel("host"), Some(options)).await,
            Self::Real(etcd) => Client::connect([etcd.endpoint()], Some(options)).await,
        }
    }

    pub(crate) async fn simulated() -> Self {
        Self::Simulated(SimEtcd::new(1))
    }

    pub(crate) async fn real() -> Self {
        Self::Real(Box::new(Box::pin(Etcd::start()).await))
    }

    /// An etcd with authentication, and the user `root` with the password `secret`.
    pub(crate) async fn simulated_with_user() -> Self {
        let etcd = SimEtcd::new(1);
        etcd.require_user("root", "secret", TOKEN_TTL);
        Self::Simulated(etcd)
    }

    pub(crate) async fn real_with_user() -> Self {
        let options = Etcd::options().user("root", "secret").token_ttl(TOKEN_TTL);
        Self::Real(Box::new(Box::pin(options.start()).await))
    }
}

/// Defines two tests per check.
macro_rules! on_both {
    ($simulated:ident, $real:ident: $($check:ident),* $(,)?) => {
        mod simulated {
            $(
                #[tokio::test(start_paused = true)]
                async fn $check() {
                    Box::pin(super::$check(crate::conformance::Target::$simulated().await)).await;
                }
            )*
        }

        mod real {
            $(
                #[tokio::test]
                async fn $check() {
                    Box::pin(super::$check(crate::conformance::Target::$real().await)).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;

/// Asserts that etcd refused the request with this code and this text.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Error>, code: Code, words: &str) {
    match result {
        Err(Error::GRpcStatus(status)) => {
            assert_eq!((status.code(), status.message()), (code, words));
        }
        other => panic!("expected {code:?} {words:?}, got {other:?}"),
    }
}

/// The value of a key as text; `None` if the key does not exist.
pub(crate) async fn value(client: &mut Client, key: &str) -> Option<String> {
    let response = client.get(key, None).await.unwrap();
    let kv = response.kvs().first()?;
    Some(kv.value_str().unwrap().to_owned())
}

/// The keys with a prefix.
pub(crate) async fn keys(client: &mut Client, prefix: &str) -> Vec<String> {
    let options = GetOptions::new().with_prefix();
    let response = client.get(prefix, Some(options)).await.unwrap();
    let keys = response.kvs().iter().map(|kv| kv.key_str().unwrap());
    keys.map(str::to_owned).collect()
}

/// The revision of the store.
pub(crate) async fn revision(client: &mut Client) -> i64 {
    let response = client.get("any", None).await.unwrap();
    response.header().unwrap().revision()
}
