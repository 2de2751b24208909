//! The client of one component: its pooled connections, in plain text and over TLS, and the nodes of the services that it may call.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{
    HeaderName, HeaderValue, Request, Uri, Version as HttpVersion,
    header::{HOST, TE},
    request::Parts,
    uri::{Authority, Scheme},
};
use hyper_util::{
    client::legacy::{
        Builder, Client,
        connect::{Connect, HttpConnector},
    },
    rt::TokioTimer,
};
use leasehold::{Addr, Balancer, ServiceName, View};
use leasehold_wasmtime::{Names, RegistryCtx};
use parking_lot::Mutex;
use tokio::time::Instant;
use wasmtime_wasi_http::Error;

use crate::{
    config::{CallRule, CallRules, CallTls},
    grpc,
    outbound::{
        body::RequestBody,
        reserved::{Guarded, Reserved},
        service::{
            secure::{CONNECT_TIMEOUT, ClientTls, Secured},
            target::Target,
        },
    },
    rt::executor::Pooled,
    telemetry::service_metrics::Stats,
};

/// Time for which an idle connection is kept: shorter than servers usually keep it, so that they do not close it first.
const IDLE: Duration = Duration::from_secs(10);
/// Interval of pings to a node that owes a response over HTTP/2, and longest wait for the pong.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Idle connections to one node, at most.
const MAX_IDLE: usize = 16;

/// Milliseconds until the caller no longer waits for the response to begin.
pub(crate) const DEADLINE: HeaderName = HeaderName::from_static("x-leasehold-deadline");

pub(super) type Connector = Guarded<HttpConnector>;

/// The services that one component may call by name.
pub(crate) struct ServiceClient {
    registry: RegistryCtx,
    names: Names,
    /// The suffix of service names, with a dot before it.
    suffix: String,
    pub(super) rules: Arc<CallRules>,
    pub(super) stats: Arc<Stats>,
    plain: Clients<Connector>,
    /// Clients of services that are called over TLS, once they were called.
    secured: Mutex<HashMap<ServiceName, Arc<Clients<Secured<Connector>>>>>,
    connector: Connector,
}

/// Pooled connections.
struct Clients<C> {
    http1: Client<C, RequestBody>,
    /// For gRPC, which exists over HTTP/2 only.
    http2: Client<C, RequestBody>,
}

/// The client of one request.
pub(super) enum SomeClient {
    Plain(Client<Connector, RequestBody>),
    Secured(Client<Secured<Connector>, RequestBody>),
}

impl ServiceClient {
    pub(crate) fn new(
        registry: RegistryCtx,
        names: Names,
        suffix: &str,
        (rules, stats): (Arc<CallRules>, Arc<Stats>),
        reserved: Reserved,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.enforce_http(false);
        let connector = Guarded::new(connector, reserved);
        let plain = Clients { http1: http1(connector.clone()), http2: http2(connector.clone()) };
        let suffix = format!(".{suffix}");
        Self { registry, names, suffix, rules, stats, plain, secured: Mutex::default(), connector }
    }

    /// The host without the suffix, if it has the suffix.
    pub(crate) fn named<'a>(&self, authority: &'a Authority) -> Option<&'a str> {
        authority.as_str().strip_suffix(&self.suffix)
    }

    /// The service that a request names; `None` for another kind of host, or a service that the component may not call.
    pub(crate) fn target(&self, authority: &Authority, scheme: Option<&Scheme>) -> Option<Target> {
        let named = self.named(authority)?;
        if scheme.is_some_and(|scheme| *scheme != Scheme::HTTP) {
            return None;
        }
        Target::parse(named, &self.names)
    }

    pub(super) fn request(
        &self,
        target: &Target,
        rule: &CallRule,
        (parts, body): (&Parts, &RequestBody),
        addr: &Addr,
        by: Instant,
    ) -> Result<(SomeClient, Request<RequestBody>), Error> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let scheme = if rule.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder().scheme(scheme).authority(addr.as_str()).path_and_query(path).build();
        let mut request = Request::new(body.clone());
        *request.uri_mut() = uri.map_err(|_| Error::HttpRequestUriInvalid)?;
        *request.method_mut() = parts.method.clone();
        *request.headers_mut() = parts.headers.clone();
        let is_grpc = grpc::is_spoken(&parts.headers);
        if is_grpc {
            *request.version_mut() = HttpVersion::HTTP_2;
            // gRPC over HTTP/2 asks for it, and `wasi:http` keeps it from components.
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        } else {
            let left = by.saturating_duration_since(Instant::now());
            let left = HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            request.headers_mut().insert(DEADLINE, left);
            if let Some(authority) = parts.uri.authority()
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                request.headers_mut().entry(HOST).or_insert(host);
            }
        }
        let client = match &rule.tls {
            None => SomeClient::Plain(self.plain.of(is_grpc).clone()),
            Some(tls) => SomeClient::Secured(self.secured(&target.name, tls).of(is_grpc).clone()),
        };
        Ok((client, request))
    }

    /// The clients of a service that is called over TLS.
    fn secured(&self, service: &ServiceName, tls: &CallTls) -> Arc<Clients<Secured<Connector>>> {
        let mut secured = self.secured.lock();
        if let Some(clients) = secured.get(service) {
            return Arc::clone(clients);
        }
        let connector = |protocol| Secured::new(self.connector.clone(), ClientTls::new(tls.clone(), service, protocol));
        let clients = Arc::new(Clients { http1: http1(connector(b"http/1.1")), http2: http2(connector(b"h2")) });
        secured.insert(service.clone(), Arc::clone(&clients));
        clients
    }

    pub(super) async fn balancer(&self, target: &Target) -> Result<Arc<Balancer>, Error> {
        let balancer = self.registry.balancer(target.name.clone(), target.version.clone()).await;
        balancer.map_err(|error| {
            match error {
                // The component causes this, as often as it likes.
                leasehold::Error::Quota { .. } => {
                    tracing::debug!(service = %target.name, "it cannot be looked up: {error}");
                }
                _ => tracing::warn!(service = %target.name, "it cannot be looked up: {error}"),
            }
            not_found(format!("{} cannot be looked up now", target.name))
        })
    }
}

impl<C> Clients<C> {
    fn of(&self, is_grpc: bool) -> &Client<C, RequestBody> {
        if is_grpc { &self.http2 } else { &self.http1 }
    }
}

fn http1<C: Connect + Clone>(connector: C) -> Client<C, RequestBody> {
    builder().build(connector)
}

fn http2<C: Connect + Clone>(connector: C) -> Client<C, RequestBody> {
    let mut builder = builder();
    builder.http2_keep_alive_interval(PING_INTERVAL).http2_keep_alive_timeout(PING_INTERVAL);
    builder.http2_only(true).build(connector)
}

fn builder() -> Builder {
    let mut builder = Client::builder(Pooled);
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    builder.pool_idle_timeout(IDLE).pool_max_idle_per_host(MAX_IDLE);
    builder
}

/// Sentence about a service without nodes, with the prefixes that were read. A component may know the keys of services that
/// it may call.
pub(super) fn no_node(target: &Target, view: &View) -> String {
    let mut message = format!("no node is registered as {}", target.name);
    if !target.version.as_str().is_empty() {
        message += &format!(" in version {}", target.version);
    }
    let prefixes: Vec<_> = view.prefixes().iter().map(|(layout, prefix)| format!("{prefix} ({layout})")).collect();
    message += &format!(", under {}", prefixes.join(", "));
    for (count, one, many) in [
        (view.invalid_keys(), "key there is not a node", "keys there are not nodes"),
        (
            view.nodes().tls_count(),
            "node there speaks TLS, which this host does not: registry.calls.tls",
            "nodes there speak TLS, which this host does not: registry.calls.tls",
        ),
    ] {
        if count > 0 {
            message += &format!("; {count} {}", if count == 1 { one } else { many });
        }
    }
    message
}

/// The error of `wasi:http` that has a field for a sentence.
pub(super) fn not_found(message: String) -> Error {
    Error::DnsError { rcode: Some(message), info_code: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::uri::Scheme;
    use leasehold::{Options, Registrar};
    use leasehold_wasmtime::{Names, Policy, RegistryCtx};

    use super::{Reserved, ServiceClient, Stats};

    fn client(names: Names) -> ServiceClient {
        // The endpoint refuses connections, and is not used.
        let registrar = Registrar::start(Options::new(["http://127.0.0.1:1"])).unwrap();
        ServiceClient::new(
            RegistryCtx::new(registrar, Policy::default()),
            names,
            "leasehold",
            (Arc::default(), Arc::new(Stats::new("shop".parse().unwrap()))),
            Reserved::default(),
        )
    }

    #[tokio::test]
    async fn a_host_names_a_service_and_perhaps_its_version() {
        let only = client(["user", "user.rpc"].iter().map(|name| name.parse().unwrap()).collect());
        let target = |client: &ServiceClient, authority: &str, scheme| {
            let target = client.target(&authority.parse().unwrap(), Some(&scheme))?;
            Some((target.version.to_string(), target.name.to_string()))
        };
        let named = |version: &str, name: &str| Some((version.to_owned(), name.to_owned()));
        for (authority, expected) in [
            ("user.leasehold", named("", "user")),
            ("user.rpc.leasehold", named("", "user.rpc")),
            ("v1.user.leasehold", named("v1", "user")),
            ("v1.2.user.leasehold", named("v1.2", "user")),
            ("v1.user.rpc.leasehold", named("v1", "user.rpc")),
            ("order.leasehold", None),
            ("user.leasehold:80", None),
            ("user.leasehold.evil", None),
            ("a@user.leasehold", None),
            ("leasehold", None),
            ("user", None),
        ] {
            assert_eq!(target(&only, authority, Scheme::HTTP), expected, "{authority}");
        }
        assert_eq!(target(&only, "user.leasehold", Scheme::HTTPS), None);
        assert_eq!(target(&client(Names::Any), "v1.user.leasehold", Scheme::HTTP), named("", "v1.user"));
    }
}
