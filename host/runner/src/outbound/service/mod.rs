//! Calls by name: a request to `http://NAME.leasehold/` goes to a node of the service NAME, as the registry has it.
//!
//! `VERSION.NAME.leasehold` names a node of that version. `call` has the life of a call, `verdict` what a response or a failure
//! means for its node, and for a further try.

mod call;
mod secure;
mod verdict;

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version as HttpVersion,
    header::{HOST, TE},
    request::Parts,
    uri::{Authority, Scheme},
};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{
        Builder, Client,
        connect::{Connect, HttpConnector},
    },
    rt::TokioTimer,
};
use leasehold::{Addr, Balancer, ServiceName, Version, View};
use leasehold_wasmtime::{Names, RegistryCtx};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody};

use self::{
    call::Call,
    secure::{ClientTls, Secured},
};
use crate::{
    config::{CallRule, CallRules, CallTls, Split},
    grpc,
    outbound::{
        body::{RequestBody, UpstreamBody, drain},
        callers::CallerDeadline,
        reserved::{Guarded, Reserved},
    },
    rt::executor::Pooled,
    telemetry::{service_metrics::Stats, span::Span},
};

/// Connect timeout of one node, after which the call is retried on the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Deadline of a response where the component sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Time for which an idle connection is kept: shorter than servers usually keep it, so that they do not close it first.
const IDLE: Duration = Duration::from_secs(10);
/// Interval of pings to a node that owes a response over HTTP/2, and longest wait for the pong.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Idle connections to one node, at most.
const MAX_IDLE: usize = 16;

/// Milliseconds until the caller no longer waits for the response to begin.
pub(crate) const DEADLINE: HeaderName = HeaderName::from_static("x-leasehold-deadline");

type Connector = Guarded<HttpConnector>;

/// The services that one component may call by name.
pub(crate) struct ServiceClient {
    registry: RegistryCtx,
    names: Names,
    /// The suffix of service names, with a dot before it.
    suffix: String,
    rules: Arc<CallRules>,
    stats: Arc<Stats>,
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
enum SomeClient {
    Plain(Client<Connector, RequestBody>),
    Secured(Client<Secured<Connector>, RequestBody>),
}

/// Service and version that a request names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    name: ServiceName,
    version: Version,
}

impl Target {
    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The version that a call to a service goes to: the one with its header, or the one at `percent` of the shares.
    fn split(self, rule: &CallRule, headers: &HeaderMap, percent: u32) -> Self {
        if !self.is_split(rule) {
            return self;
        }
        let has_header = |split: &&Split| {
            split.header.as_ref().is_some_and(|(name, value)| headers.get_all(name).iter().any(|sent| sent == value))
        };
        let mut shares = 0;
        let is_at = |split: &&Split| {
            shares += split.share;
            percent < shares
        };
        let split = rule.split.iter().find(has_header).or_else(|| rule.split.iter().find(is_at));
        Self { version: split.map_or(self.version, |split| split.version.clone()), ..self }
    }

    /// Detects a target that gets what is left of the calls to a service.
    fn is_split(&self, rule: &CallRule) -> bool {
        self.version.as_str().is_empty() && !rule.split.is_empty()
    }
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
        let target = |version: &str, name: &str| {
            let target = Target { name: name.parse().ok()?, version: version.parse().ok()? };
            self.names.allow(&target.name).then_some(target)
        };
        // Names may have dots too, and so may versions.
        let versions = || named.match_indices('.').find_map(|(dot, _)| target(&named[..dot], &named[dot + 1..]));
        target("", named).or_else(versions)
    }

    /// Sends a request to a node of the service, for a caller with a deadline of its own. Errors are those of `wasi:http`; the log
    /// says more.
    pub(crate) async fn send(
        &self,
        target: Target,
        request: Request<WasiBody>,
        options: RequestOptions,
        deadline: CallerDeadline,
        mut span: Option<&mut Span>,
    ) -> Result<Response<WasiBody>, Error> {
        if let Some(span) = &mut span {
            span.record_service(&target.name);
        }
        let (mut parts, body) = request.into_parts();
        if let Some(end) = deadline.end.filter(|_| grpc::is_spoken(&parts.headers)) {
            let left = end.saturating_duration_since(Instant::now());
            if grpc::timeout(&parts.headers).is_none_or(|own| own > left) {
                parts.headers.insert(grpc::TIMEOUT, grpc::written_timeout(left));
            }
        }
        let rule = self.rules.of(&target.name);
        let target = target.split(rule, &parts.headers, fastrand::u32(..100));
        let body = if rule.retries > 0 { RequestBody::kept(body) } else { RequestBody::new(body) };
        let patience =
            options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT).min(rule.timeout.unwrap_or(DEFAULT_TIMEOUT));
        let by = Instant::now() + patience;
        let until = deadline.until().map_or(by, |callers| callers.min(by));
        let connect = options.connect_timeout.map_or(CONNECT_TIMEOUT, |requested| requested.min(CONNECT_TIMEOUT));
        let response = async {
            let balancer = timeout_at(until, self.balancer(&target)).await;
            let balancer = balancer.map_err(|_| Error::HttpResponseTimeout)??;
            Call::new(self, &target, rule, &balancer, (&parts, &body), (connect, until)).run(span).await
        };
        let response = response.await;
        let (response, call) = match response {
            Ok(response) => response,
            Err(error) => {
                drain(body).await;
                return Err(error);
            }
        };
        let between_bytes = options.between_bytes_timeout;
        Ok(response.map(|body| UpstreamBody::new(body, between_bytes, Some(call)).boxed_unsync()))
    }

    fn request(
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

    async fn balancer(&self, target: &Target) -> Result<Arc<Balancer>, Error> {
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
fn no_node(target: &Target, view: &View) -> String {
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
fn not_found(message: String) -> Error {
    Error::DnsError { rcode: Some(message), info_code: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::uri::Scheme;
    use leasehold::{Options, Registrar};
    use leasehold_wasmtime::{Names, Policy, RegistryCtx};

    use super::{CallRule, HeaderMap, Reserved, ServiceClient, Split, Target};

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

    #[test]
    fn a_split_is_exact_and_a_header_comes_first() {
        let split = |version: &str, share, header: Option<(&str, &str)>| Split {
            version: version.parse().unwrap(),
            share,
            header: header.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())),
        };
        let rule = CallRule {
            split: [split("v2", 5, None), split("v3", 1, Some(("x-canary", "1"))), split("v4", 0, None)].into(),
            ..CallRule::default()
        };
        let version = |of: &str, headers: &HeaderMap, percent| {
            let target = Target { name: "user".parse().unwrap(), version: of.parse().unwrap() };
            target.split(&rule, headers, percent).version.to_string()
        };
        let none = HeaderMap::new();
        let of = |meant: &str| (0..100).filter(|percent| version("", &none, *percent) == meant).count();
        assert_eq!([of("v2"), of("v3"), of("v4"), of("")], [5, 1, 0, 94]);
        let canary: HeaderMap = [("x-canary".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        assert!((0..100).all(|percent| version("", &canary, percent) == "v3"));
        assert_eq!(version("v1", &canary, 0), "v1", "the caller has named a version");
        let mut rng = fastrand::Rng::with_seed(1);
        let calls = (0..10_000).filter(|_| version("", &none, rng.u32(..100)) == "v2").count();
        assert!((400..=600).contains(&calls), "{calls} of 10,000 calls are 5 % within 1 %");
    }
}
