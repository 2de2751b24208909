//! Everything that one process runs, as checked: the meaning of a configuration.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use leasehold::{Addr, Layout, Metadata, Options, OutlierRules, PickRules, ServerNode, ServiceName, Source, Version};
use leasehold_wasmtime::Names;

use crate::config::{
    artifact::Artifact,
    destination::Destination,
    file::{self, AccessLog, Limits},
    rule::Rule,
    values::{Advertise, Register, Variables},
    written::Written,
};

/// Domain of calls by name where none is configured.
pub(crate) const SUFFIX: &str = "leasehold";
/// Time for the keys of a service to leave etcd. Those that do not go with their lease.
pub(crate) const DELETE_TIMEOUT: Duration = Duration::from_secs(6);

/// Everything that one process runs.
#[derive(Debug)]
pub(crate) struct Config {
    /// etcd and the defaults of registrations.
    pub(crate) registrar: Options,
    /// The files of the connection to etcd.
    pub(crate) etcd_files: EtcdFiles,
    /// Ends a start without etcd; otherwise etcd is waited for.
    pub(crate) etcd_required: bool,
    /// A trial on a private etcd.
    pub(crate) dev: bool,
    /// Holds every component back until all services can listen.
    pub(crate) strict: bool,
    /// The admin endpoint.
    pub(crate) admin: Admin,
    /// The listener for health and metrics alone, if there is one.
    pub(crate) metrics: Option<SocketAddr>,
    /// The collector of traces, if there is one.
    pub(crate) traces: Option<Traces>,
    /// The services, in the file's order.
    pub(crate) services: Vec<Spec>,
    /// Keys of the file beside the services, to compare them with its next reading.
    pub(crate) written: Written,
    /// Advice about the file that does not keep it from running.
    pub(crate) notes: Vec<String>,
}

/// Paths of the files under `etcd.tls`.
#[derive(Debug, Clone, Default)]
pub(crate) struct EtcdFiles {
    /// The authority of its certificate.
    pub(crate) ca: Option<PathBuf>,
    /// The host's own certificate.
    pub(crate) cert: Option<PathBuf>,
    /// The key of that.
    pub(crate) key: Option<PathBuf>,
}

/// The admin endpoint.
#[derive(Debug, Clone)]
pub(crate) enum Admin {
    /// A socket at a path that the system suggests. The host runs without it if it cannot be made.
    Suggested {
        mode: Option<u32>,
        group: Option<String>,
    },
    Unix(SocketFile),
    Tcp(AdminAddress),
    Off,
}

/// A socket of this machine.
#[derive(Debug, Clone)]
pub(crate) struct SocketFile {
    pub(crate) path: PathBuf,
    /// Its permissions, where they are configured.
    pub(crate) mode: Option<u32>,
    /// Its group, by name or number; the host's own otherwise.
    pub(crate) group: Option<String>,
}

/// An address of the admin endpoint. Commands need the token, or a client certificate.
#[derive(Debug, Clone)]
pub(crate) struct AdminAddress {
    pub(crate) listen: SocketAddr,
    /// The token of commands; read again for each.
    pub(crate) token: Option<Source>,
    pub(crate) tls: Option<TlsFiles>,
}

impl Default for Admin {
    fn default() -> Self {
        Self::Suggested { mode: None, group: None }
    }
}

impl Admin {
    /// The address of the endpoint, if it is at one.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address.listen),
            _ => None,
        }
    }
}

impl SocketFile {
    /// Its permissions.
    pub(crate) fn mode(&self) -> u32 {
        self.mode.unwrap_or(if self.group.is_some() { 0o660 } else { 0o600 })
    }
}

/// The collector of traces.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    /// Its OTLP endpoint over gRPC.
    pub(crate) endpoint: String,
    /// The authority of its certificate.
    pub(crate) ca_pem: Option<Source>,
    /// Headers of every batch; shown by nothing.
    pub(crate) headers: Option<Source>,
    /// The part of those requests that is traced whose caller has not decided.
    pub(crate) sample: f64,
}

/// One service.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Its name, in etcd and in the log.
    pub(crate) name: ServiceName,
    /// File and line of the service; empty where arguments describe it.
    pub(crate) place: String,
    /// The component's file, or the text of its reference.
    pub(crate) component: PathBuf,
    /// The component in its registry, if it is in one.
    pub(crate) artifact: Option<Artifact>,
    /// Ends the whole host where the service does not start.
    pub(crate) required: bool,
    /// Permits machine code, which no sandbox holds.
    pub(crate) precompiled: bool,
    /// Where the host accepts HTTP/1.1 and HTTP/2, and port 0 takes a free one; or the component whatever it speaks.
    pub(crate) listen: SocketAddr,
    /// The certificate of the listener; `None` for plain text.
    pub(crate) tls: Option<TlsFiles>,
    /// The published address; `None` for the listener's address.
    pub(crate) advertise: Option<Advertise>,
    /// Its version, where the host registers it.
    pub(crate) version: Version,
    /// Source of its registration.
    pub(crate) register: Register,
    /// Values of `wasi:config/store`.
    pub(crate) config: Variables,
    /// Its arguments, without its name.
    pub(crate) args: Vec<String>,
    /// Its environment variables.
    pub(crate) env: Variables,
    /// The layouts it is published under, where they are not those of the registry.
    pub(crate) layouts: Option<Vec<Layout>>,
    /// Metadata of its node, where the host registers it.
    pub(crate) metadata: Metadata,
    /// Its policy.
    pub(crate) allow: Allow,
    /// The domain of calls by name.
    pub(crate) suffix: Arc<str>,
    /// Metadata of the nodes that calls by name prefer.
    pub(crate) prefer: Metadata,
    /// Rules of its calls by name.
    pub(crate) calls: Arc<CallRules>,
    /// Its limits.
    pub(crate) limits: Limits,
    /// Its access log.
    pub(crate) access_log: AccessLog,
    /// Its health check, if it has one.
    pub(crate) health: Option<Health>,
    /// Rule of its withdrawal when its requests fail.
    pub(crate) quarantine: Quarantine,
    /// Replaces it whenever its file changes.
    pub(crate) follow: bool,
    /// Keys of its configuration, to compare them with the next reading.
    pub(crate) written: Written,
}

/// Rules of calls by name, by the service that is called.
#[derive(Debug, Default)]
pub(crate) struct CallRules {
    named: Vec<(ServiceName, CallRule)>,
    others: CallRule,
}

/// Rule of calls by name to a service.
#[derive(Debug, Clone)]
pub(crate) struct CallRule {
    /// Time until a response begins, with all tries.
    pub(crate) timeout: Option<Duration>,
    /// Time of one try.
    pub(crate) try_timeout: Option<Duration>,
    pub(crate) retries: u32,
    /// Share of retries among all calls.
    pub(crate) retry_budget: f64,
    pub(crate) hedge_after: Option<Duration>,
    /// Calls in flight, at most.
    pub(crate) in_flight: u32,
    pub(crate) outliers: OutlierRules,
    pub(crate) pick: PickRules,
    /// Versions that get a part of the calls.
    pub(crate) split: Arc<[Split]>,
    /// TLS to every node; without it, in plain text to those that do not use TLS.
    pub(crate) tls: Option<CallTls>,
}

/// A version that gets a part of the calls to a service.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub(crate) version: Version,
    /// Its share of the calls, in percent.
    pub(crate) share: u32,
    /// Calls with this header, whatever the share.
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
}

/// TLS to the nodes of a service.
#[derive(Debug, Clone)]
pub(crate) struct CallTls {
    /// The authorities of the nodes' certificates.
    pub(crate) ca: PathBuf,
    /// The host's own certificate, and its private key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
    /// Name that a node's certificate must have, with `{name}` for that of the service; `None` for the host of its address.
    pub(crate) server_name: Option<String>,
}

impl CallRules {
    /// Adds a rule for these services, or for all that no rule names. Returns what has a rule already.
    pub(crate) fn add(&mut self, services: &[ServiceName], rule: CallRule) -> Option<ServiceName> {
        if services.is_empty() {
            self.others = rule;
            return None;
        }
        let has_rule = |service: &&ServiceName| self.named.iter().any(|(named, _)| named == *service);
        let double = services.iter().find(has_rule).cloned();
        self.named.extend(services.iter().map(|service| (service.clone(), rule.clone())));
        double
    }

    /// The rule for a service.
    pub(crate) fn of(&self, service: &ServiceName) -> &CallRule {
        self.named.iter().find(|(named, _)| named == service).map_or(&self.others, |(_, rule)| rule)
    }
}

impl CallRule {
    /// Returns true for a node of a version that gets calls of its own.
    pub(crate) fn is_split_off(&self, node: &ServerNode) -> bool {
        self.split.iter().any(|split| split.version == node.version)
    }
}

impl Default for CallRule {
    fn default() -> Self {
        file::Calls::absent().expect("no key of a call is required").into()
    }
}

impl From<file::Split> for Split {
    fn from(split: file::Split) -> Self {
        let header = split.header.and_then(|header| parse_header(&header));
        Self { version: split.version, share: split.share.unwrap_or_default(), header }
    }
}

/// A header written as `NAME: VALUE`.
pub(super) fn parse_header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

impl From<file::Calls> for CallRule {
    fn from(calls: file::Calls) -> Self {
        let by_success_rate = calls.eject_after > 0;
        Self {
            timeout: calls.timeout,
            try_timeout: calls.try_timeout,
            retries: calls.retries,
            retry_budget: f64::from(calls.retry_budget) / 100.0,
            hedge_after: calls.hedge_after,
            in_flight: calls.in_flight,
            outliers: OutlierRules { consecutive: calls.eject_after, by_success_rate },
            pick: PickRules { choice: calls.balance, slow_start: calls.slow_start, excludes_tls: calls.tls.is_none() },
            split: calls.split.into_iter().map(Split::from).collect(),
            tls: calls.tls.map(|tls| CallTls { ca: tls.ca, own: tls.cert.zip(tls.key), server_name: tls.server_name }),
        }
    }
}

/// The files of a listener's certificate, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate, then those that lead to an authority.
    pub(crate) cert: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// The authorities of which a client needs a certificate; `None` for clients without one.
    pub(crate) client_ca: Option<PathBuf>,
}

/// A health check.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// The request.
    pub(crate) probe: Probe,
    /// The pause between two of them.
    pub(crate) interval: Duration,
    /// Time for a response; a later one is a bad one.
    pub(crate) timeout: Duration,
    /// Good responses in a row until it is announced.
    pub(crate) rise: u32,
    /// Bad responses in a row until it is withdrawn.
    pub(crate) fall: u32,
}

/// Rule of the withdrawal of a service that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// Percentage of the nodes of its names that have to remain in etcd. At 0 it is withdrawn whatever remains.
    pub(crate) panic_threshold: u32,
    /// Withdraws a service whose instances trap whatever remains.
    pub(crate) withdraw_on_trap: bool,
}

impl Default for Quarantine {
    fn default() -> Self {
        let health = file::Health::absent().expect("no key of a health check is required");
        Self { panic_threshold: health.panic_threshold, withdraw_on_trap: health.withdraw_on_trap }
    }
}

/// A request whose response says if a service is healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `GET`; any status from 200 to 299 is good.
    Http(String),
    /// `grpc.health.v1` for the whole server; `SERVING` is good.
    Grpc,
}

/// Rights of a component beyond responding to requests.
#[derive(Debug, Clone)]
pub(crate) struct Allow {
    /// The names it may register. By default the service's own.
    pub(crate) names: Names,
    /// The names it may look up, and call by name. By default none.
    pub(crate) discover: Names,
    /// The hosts it may send HTTP requests to, and a program may connect to by IP address. By default none.
    pub(crate) outbound: Vec<Destination>,
    /// Permits `outbound` entries to lead to this machine or its link without naming it.
    pub(crate) local: bool,
    /// The names in certificates of clients that may send requests. By default every client may.
    pub(crate) callers: Option<Arc<[String]>>,
}

impl Config {
    /// One service, with the defaults of everything else.
    pub(crate) fn of(registrar: Options, etcd_files: EtcdFiles, spec: Spec) -> Self {
        Self {
            registrar,
            etcd_files,
            etcd_required: false,
            dev: false,
            strict: false,
            admin: Admin::default(),
            metrics: None,
            traces: None,
            services: vec![spec],
            written: Written::default(),
            notes: Vec::new(),
        }
    }
}

impl Spec {
    /// A service with the defaults of everything that has one.
    pub(crate) fn new(name: ServiceName, component: PathBuf, listen: SocketAddr) -> Self {
        Self {
            allow: Allow {
                names: Names::Only(vec![name.clone()]),
                discover: Names::Only(Vec::new()),
                outbound: Vec::new(),
                local: false,
                callers: None,
            },
            name,
            place: String::new(),
            component,
            artifact: None,
            required: false,
            precompiled: false,
            listen,
            tls: None,
            advertise: None,
            version: Version::default(),
            register: Register::default(),
            layouts: None,
            metadata: Metadata::default(),
            config: Variables::default(),
            args: Vec::new(),
            env: Variables::default(),
            suffix: SUFFIX.into(),
            prefer: Metadata::default(),
            calls: Arc::default(),
            limits: Limits::default(),
            access_log: AccessLog::default(),
            health: None,
            quarantine: Quarantine::default(),
            follow: false,
            written: Written::default(),
        }
    }

    /// Detects a component that has to pass its health check before it can register anything.
    pub(crate) fn is_probed_before_start(&self) -> bool {
        self.health.is_some() && self.register == Register::Component
    }

    /// A sentence behind the place of the service in the configuration.
    pub(crate) fn located(&self, sentence: &str) -> String {
        if self.place.is_empty() { sentence.to_owned() } else { format!("{}: {sentence}", self.place) }
    }

    /// Names that it may register; `None` if it is not registered.
    pub(crate) fn registered_names(&self) -> Option<Names> {
        match self.register {
            Register::Off => None,
            Register::Host => Some(Names::Only(vec![self.name.clone()])),
            Register::Component => Some(self.allow.names.clone()),
        }
    }

    /// The published address of a listener. Total: a wildcard was refused without `advertise`.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> Option<Addr> {
        match &self.advertise {
            Some(advertise) => advertise.of(bound.port()),
            None => bound.to_string().parse().ok(),
        }
    }

    /// The address at which this host itself reaches the listener.
    pub(crate) fn reachable(&self) -> SocketAddr {
        let ip = match self.listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.listen.port())
    }

    /// The rule that a wildcard listener needs an address that clients can dial.
    pub(crate) fn check_advertise(&self) -> Result<(), String> {
        match self.advertise {
            None if self.listen.ip().is_unspecified() && self.register != Register::Off => {
                Err(format!("no client can dial {}; say with advertise which address to publish", self.listen))
            }
            _ => Ok(()),
        }
    }

    /// Values of `wasi:config/store`: those that are configured, and the name and version of a component that registers
    /// itself, which it would otherwise have to repeat.
    pub(crate) fn store(&self) -> BTreeMap<String, String> {
        let mut store = self.config.0.clone();
        if self.register == Register::Component {
            store.entry("name".to_owned()).or_insert_with(|| self.name.to_string());
            if !self.version.as_str().is_empty() {
                store.entry("version".to_owned()).or_insert_with(|| self.version.to_string());
            }
        }
        store
    }

    /// Name and version that the component registers itself under, if it goes by `wasi:config/store`; the host registers
    /// under those of the service.
    pub(crate) fn registered_as(&self) -> (ServiceName, Version) {
        let (mut name, mut version) = (self.name.clone(), self.version.clone());
        if self.register == Register::Component {
            let configured = |key: &str| self.config.0.get(key);
            name = configured("name").and_then(|name| name.parse().ok()).unwrap_or(name);
            version = configured("version").and_then(|version| version.parse().ok()).unwrap_or(version);
        }
        (name, version)
    }
}
