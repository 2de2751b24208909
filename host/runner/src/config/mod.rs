//! What to run: the configuration, read from a file or from arguments, checked once and trusted afterwards.

pub(crate) mod destination;
pub(crate) mod file;
pub(crate) mod units;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use leasehold::{Addr, Credentials, Invalid, Layout, LoadSource, Metadata, Options, ServiceName, Source, Tls, Version};
use leasehold_wasmtime::Names;
use serde_saphyr::Spanned;

use crate::{
    config::{
        destination::Destination,
        file::{Collector, Listen, at_line},
        units::{Parsed, Secret, Span},
    },
    error::Failure,
    inbound::tls::Files,
};

/// Where etcd listens unless it is told otherwise.
pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// What follows a service's name in a host, unless the configuration says otherwise.
pub(crate) const SUFFIX: &str = "leasehold";
/// How long the keys of a service may take to leave etcd. Those that do not go with their lease.
pub(crate) const DELETE_TIMEOUT: Duration = Duration::from_secs(6);

/// Everything that one process runs.
#[derive(Debug)]
pub(crate) struct Config {
    /// etcd and the defaults of registrations.
    pub(crate) registrar: Options,
    /// The files with which etcd is spoken to.
    pub(crate) etcd_files: EtcdFiles,
    /// Whether a start without etcd is a failure; otherwise etcd is waited for.
    pub(crate) etcd_required: bool,
    /// Whether etcd is one of the host's own, and what is shown is a trial.
    pub(crate) dev: bool,
    /// Holds every component back until all services can listen.
    pub(crate) strict: bool,
    /// Where operators ask, if anywhere.
    pub(crate) admin: Option<Admin>,
    /// Where traces go, if anywhere.
    pub(crate) traces: Option<Traces>,
    /// The services, in the file's order.
    pub(crate) services: Vec<Spec>,
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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin {
    /// Where it listens. Whoever reaches it can drain services.
    pub(crate) listen: SocketAddr,
    /// Whether it may be reached from other machines.
    pub(crate) remote: bool,
}

/// The collector of traces.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    /// Where it takes OTLP over gRPC.
    pub(crate) endpoint: String,
    /// The authority of its certificate.
    pub(crate) ca_pem: Option<Source>,
    /// What goes with every batch; shown by nothing.
    pub(crate) headers: Option<Source>,
    /// The part of those requests that is traced whose caller has not decided.
    pub(crate) sample: f64,
}

/// One service.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Its name, in etcd and in the log.
    pub(crate) name: ServiceName,
    /// The component's file.
    pub(crate) component: PathBuf,
    /// Ends the whole host where the service does not start.
    pub(crate) required: bool,
    /// Whether that may be machine code, which no sandbox holds.
    pub(crate) precompiled: bool,
    /// Where the host accepts HTTP/1.1 and HTTP/2, and port 0 takes a free one; or the component whatever it speaks.
    pub(crate) listen: SocketAddr,
    /// The certificate that it shows there; `None` for plain text.
    pub(crate) tls: Option<Files>,
    /// What is published; `None` for the listener's address.
    pub(crate) advertise: Option<Addr>,
    /// Its version, where the host registers it.
    pub(crate) version: Version,
    /// Who registers it.
    pub(crate) register: Register,
    /// What `wasi:config/store` shows the component.
    pub(crate) config: Variables,
    /// Its arguments, without its name.
    pub(crate) args: Vec<String>,
    /// Its environment variables.
    pub(crate) env: Variables,
    /// The layouts it is published under, where they are not those of the registry.
    pub(crate) layouts: Option<Vec<Layout>>,
    /// What else is published where the host registers.
    pub(crate) metadata: Metadata,
    /// What it may do.
    pub(crate) allow: Allow,
    /// What follows a service's name in the host of a request that goes to it by name.
    pub(crate) suffix: Arc<str>,
    /// What the metadata of nodes has that requests by name go to first.
    pub(crate) prefer: Metadata,
    /// What it may use.
    pub(crate) limits: Limits,
    /// What it is asked, to know whether it works.
    pub(crate) health: Option<Health>,
    /// When it is withdrawn since its requests fail.
    pub(crate) quarantine: Quarantine,
    /// Whether it is replaced whenever its file changes.
    pub(crate) follow: bool,
}

/// How a service is asked whether it works.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// The question.
    pub(crate) probe: Probe,
    /// The pause between two of them.
    pub(crate) interval: Duration,
    /// How long an answer may take; what comes later is a bad one.
    pub(crate) timeout: Duration,
    /// Good answers in a row until it is announced.
    pub(crate) rise: u32,
    /// Bad answers in a row until it is withdrawn.
    pub(crate) fall: u32,
}

/// When a service that fails is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// Percentage of the nodes of its names that have to remain in etcd. At 0 it is withdrawn whatever remains.
    pub(crate) panic_threshold: u32,
    /// Whether one whose instances trap is withdrawn whatever remains.
    pub(crate) withdraw_on_trap: bool,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { panic_threshold: 50, withdraw_on_trap: false }
    }
}

/// A question whose answer says whether a service works.
#[derive(Debug, Clone)]
pub(crate) enum Probe {
    /// `GET`; any status from 200 to 299 is good.
    Http(String),
    /// `grpc.health.v1` for the whole server; `SERVING` is good.
    Grpc,
}

/// Who puts a service into etcd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Register {
    /// The component, by calling `register`.
    #[default]
    Component,
    /// The host, for a component that knows nothing of Leasehold.
    Host,
    /// Nobody.
    Off,
}

impl FromStr for Register {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "component" => Ok(Self::Component),
            "host" => Ok(Self::Host),
            "off" => Ok(Self::Off),
            _ => Err(format!("must be one of: component, host, off; not {text:?}")),
        }
    }
}

/// Pairs for the component's eyes only. `Debug` shows the keys.
#[derive(Clone, Default)]
pub(crate) struct Variables(pub(crate) BTreeMap<String, String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a component may do beyond answering requests.
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
}

/// What a service may use, with its defaults.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Linear memory of one instance, in bytes. Too little and the component's allocations fail.
    pub(crate) memory: usize,
    /// How long a request may take until its answer begins.
    pub(crate) request_timeout: Duration,
    /// How long an answer may take once it has begun, and a call of gRPC until then whose caller waits for longer than
    /// `request_timeout`. As long as that by default.
    pub(crate) stream_timeout: Option<Duration>,
    /// Requests at a time; as many again wait for their turn.
    pub(crate) concurrency: u32,
    /// Connections at a time; further ones wait in the kernel's queue.
    pub(crate) connections: u32,
    /// Requests of the component's own at a time, until their answers are read; further ones wait, and fail in the end.
    pub(crate) outgoing: u32,
    /// Nodes of a service that the component is told when it looks that up.
    pub(crate) nodes: u32,
    /// The headers of a request, in bytes. More is answered with 431.
    pub(crate) header_size: usize,
    /// The body of a request, in bytes. More is answered with 413.
    pub(crate) body_size: usize,
    /// Lines a second that the component prints into the log; further ones are left out.
    pub(crate) output_lines: u32,
    /// How long a client may take to send the headers of a request and to take any of what it is sent, and how long an
    /// idle connection is kept.
    pub(crate) client_timeout: Duration,
    /// Requests that one instance answers until it is replaced. By default 1 where the component is of `wasi:http` 0.2,
    /// which may count on a fresh start, and 1,000 where it is of 0.3.
    pub(crate) instance_requests: Option<u32>,
    /// Requests that one instance answers at a time. By default 16 where the component is of `wasi:http` 0.3; one of 0.2
    /// answers one at a time.
    pub(crate) instance_concurrency: Option<u32>,
    /// How long `lifecycle.start` may take, its registration included.
    pub(crate) start_timeout: Duration,
    /// How long `lifecycle.stop` may take.
    pub(crate) stop_timeout: Duration,
    /// How long new requests are still taken once the keys are gone, for clients that have yet to hear of it. Too short
    /// fails their requests.
    pub(crate) settle_time: Duration,
    /// How long requests in flight may go on once the service ends.
    pub(crate) drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            request_timeout: Duration::from_secs(30),
            stream_timeout: None,
            concurrency: 200,
            connections: 4096,
            outgoing: 256,
            nodes: 1000,
            header_size: 64 << 10,
            body_size: 64 << 20,
            output_lines: 100,
            client_timeout: Duration::from_secs(30),
            instance_requests: None,
            instance_concurrency: None,
            start_timeout: Duration::from_secs(20),
            stop_timeout: Duration::from_secs(5),
            settle_time: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How long an answer may take once it has begun.
    pub(crate) fn stream_timeout(&self) -> Duration {
        self.stream_timeout.unwrap_or(self.request_timeout)
    }

    /// How long an answer may take to begin, at most.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.request_timeout.max(self.stream_timeout())
    }
}

/// A service name, or `*` for any.
pub(crate) enum Pattern {
    Any,
    Name(ServiceName),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::Any),
            // A name may have one, but an operator who writes it means a pattern.
            _ if text.contains('*') => Err(format!("must be a name, or * alone for every name, not {text:?}")),
            _ => text.parse().map(Self::Name).map_err(|invalid: Invalid| invalid.to_string()),
        }
    }
}

/// One member of the etcd cluster, as `http://host:port` or `https://host:port`.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint(pub(crate) String);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || Err(format!("must be http://host:port or https://host:port, not {text:?}"));
        if text.contains('@') {
            // Not repeated: it may hold a password.
            return Err("must not hold a user or password; they go to etcd.user and etcd.password_file".to_owned());
        }
        let Ok(uri) = text.parse::<http::Uri>() else { return wrong() };
        let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
        match (uri.scheme_str(), uri.port_u16()) {
            (Some("http" | "https"), Some(1..)) if plain => Ok(Self(text.trim_end_matches('/').to_owned())),
            _ => wrong(),
        }
    }
}

impl Spec {
    /// Whether the component is to answer its health check before it can register anything.
    pub(crate) fn answers_first(&self) -> bool {
        self.health.is_some() && self.register == Register::Component
    }

    /// A service with the defaults of everything that has one.
    pub(crate) fn new(name: ServiceName, component: PathBuf, listen: SocketAddr) -> Self {
        Self {
            allow: Allow {
                names: Names::Only(vec![name.clone()]),
                discover: Names::Only(Vec::new()),
                outbound: Vec::new(),
                local: false,
            },
            name,
            component,
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
            limits: Limits::default(),
            health: None,
            quarantine: Quarantine::default(),
            follow: false,
        }
    }

    /// What clients are told, given where the listener really is. Total: a wildcard was refused without `advertise`.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> Option<Addr> {
        self.advertise.clone().or_else(|| bound.to_string().parse().ok())
    }

    /// Where this host itself reaches whoever listens there.
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
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to it.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let file = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("cannot read {file}: {error}")))?;
        Self::parse(&file, &text, path.parent().unwrap_or(Path::new(""))).map_err(Failure::usage)
    }

    pub(crate) fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, String> {
        let parsed = file::parse(file, text)?;
        let reader = Reader { file, folder };
        let etcd_required = parsed.etcd.required;
        let etcd_files = reader.etcd_files(&parsed.etcd.tls);
        let admin = parsed.admin.map(|admin| reader.admin(&admin)).transpose()?;
        let traces = parsed.traces.map(|traces| reader.traces(traces)).transpose()?;
        let suffix = parsed.registry.suffix.as_ref().map(|Parsed(suffix)| suffix.0.clone());
        let prefer = parsed.registry.prefer.clone();
        let mut registrar = reader.registrar(parsed.etcd, parsed.registry)?;
        let mut services = reader.services(parsed.services)?;
        registrar.also_read = services.iter().flat_map(|spec| spec.layouts.iter().flatten().cloned()).collect();
        let prefer = prefer.map(|at| reader.prefer(&at, &registrar.read_layouts())).transpose()?;
        for spec in &mut services {
            set(&mut spec.suffix, suffix.clone());
            set(&mut spec.prefer, prefer.clone());
            if spec.tls.is_some() {
                let layouts = spec.layouts.as_ref().unwrap_or(&registrar.layouts);
                spec.layouts = Some(layouts.iter().map(Layout::with_tls).collect());
            }
        }
        Ok(Self { registrar, etcd_files, etcd_required, dev: false, strict: false, admin, traces, services })
    }
}

/// Turns what is written into what is meant.
struct Reader<'a> {
    file: &'a str,
    folder: &'a Path,
}

impl Reader<'_> {
    fn wrong<T>(&self, at: &Spanned<T>, said: impl fmt::Display) -> String {
        at_line(self.file, at.referenced.line(), &said.to_string())
    }

    fn registrar(&self, etcd: file::Etcd, registry: file::Registry) -> Result<Options, String> {
        let endpoints = match etcd.endpoints {
            None => vec![DEFAULT_ENDPOINT.to_owned()],
            Some(listed) if listed.value.is_empty() => {
                return Err(self.wrong(&listed, "endpoints: must name at least one"));
            }
            Some(listed) => listed.value.into_iter().map(|Parsed(Endpoint(url))| url).collect(),
        };
        let mut options = Options::new(endpoints);
        options.tls = self.tls(etcd.tls)?;
        if options.tls.ca_pem.is_none() && options.endpoints.iter().any(|url| url.starts_with("https:")) {
            return Err(at_line(
                self.file,
                0,
                "an https endpoint needs etcd.tls.ca, the certificate that vouches for it",
            ));
        }
        options.credentials = self.credentials(etcd.user, etcd.password, etcd.password_file)?;
        set(&mut options.dial_timeout, etcd.dial_timeout.map(|Parsed(span)| span.0));
        set(&mut options.request_timeout, etcd.request_timeout.map(|Parsed(span)| span.0));
        set(&mut options.layouts, self.layouts(registry.layout)?);
        set(&mut options.ttl, registry.ttl.map(|Parsed(ttl)| ttl.0));
        set(&mut options.ownership, registry.ownership.map(|Parsed(ownership)| ownership));
        set(&mut options.load, registry.weight.fixed.map(|Parsed(weight)| LoadSource::Fixed(weight.0)));
        set(&mut options.damping.dead_band, registry.weight.dead_band);
        set(&mut options.damping.min_interval, registry.weight.min_interval.map(|Parsed(span)| span.0));
        Ok(options)
    }

    fn prefer(&self, at: &Spanned<BTreeMap<String, String>>, layouts: &[Layout]) -> Result<Metadata, String> {
        let pairs: Vec<_> = at.value.clone().into_iter().collect();
        let unread = pairs.iter().find(|(key, _)| key != "version" && !layouts.iter().any(Layout::carries_metadata));
        if let Some((key, _)) = unread {
            let said = format!("prefer: no node has a {key}: none of the layouts carries metadata");
            return Err(self.wrong(at, said));
        }
        pairs.try_into().map_err(|invalid: Invalid| self.wrong(at, format!("prefer: {invalid}")))
    }

    fn admin(&self, admin: &file::Admin) -> Result<Admin, String> {
        let Parsed(Listen(listen)) = admin.listen.value;
        if !listen.ip().is_loopback() && !admin.remote {
            let said = format!(
                "listen: whoever reaches {listen} could drain services; say admin.remote: true if other machines may"
            );
            return Err(self.wrong(&admin.listen, said));
        }
        Ok(Admin { listen, remote: admin.remote })
    }

    fn traces(&self, traces: file::Traces) -> Result<Traces, String> {
        let Parsed(Collector(endpoint)) = &traces.endpoint.value;
        let ca_pem = traces.ca.as_ref().map(|ca| self.source("ca", ca)).transpose()?;
        if endpoint.starts_with("https:") && ca_pem.is_none() {
            let said = "endpoint: https needs traces.ca, the certificate that vouches for it";
            return Err(self.wrong(&traces.endpoint, said));
        }
        let headers = traces.headers_file.as_ref().map(|file| self.headers(file)).transpose()?;
        let sample = traces.sample.map_or(1.0, |Parsed(share)| share.0);
        Ok(Traces { endpoint: endpoint.clone(), ca_pem, headers, sample })
    }

    /// A file of headers, good now and read again for each batch.
    fn headers(&self, file: &Spanned<String>) -> Result<Source, String> {
        parse_headers(&self.read("headers_file", file)?).map_err(|line| {
            self.wrong(file, format!("headers_file: line {line} of {} must be NAME: VALUE", file.value))
        })?;
        Ok(self.folder.join(&file.value).into())
    }

    fn layouts(&self, written: Option<Spanned<file::Layouts>>) -> Result<Option<Vec<Layout>>, String> {
        let Some(at) = written else { return Ok(None) };
        Layout::check_together(&at.value.0).map_err(|invalid| self.wrong(&at, format!("layout: {invalid}")))?;
        Ok(Some(at.value.0))
    }

    fn credentials(
        &self,
        user: Option<Spanned<String>>,
        password: Option<Spanned<Parsed<Secret>>>,
        password_file: Option<Spanned<String>>,
    ) -> Result<Option<Credentials>, String> {
        match (user, password, password_file) {
            (None, None, None) => Ok(None),
            (None, Some(at), _) => Err(self.wrong(&at, "password: needs etcd.user")),
            (None, None, Some(at)) => Err(self.wrong(&at, "password_file: needs etcd.user")),
            (Some(at), None, None) => Err(self.wrong(&at, "user: needs etcd.password or etcd.password_file")),
            (Some(_), Some(_), Some(at)) => {
                Err(self.wrong(&at, "password_file: stands beside password; one of them is enough"))
            }
            (Some(user), Some(password), None) => {
                Ok(Some(Credentials { user: user.value, password: password.value.0.0.into() }))
            }
            (Some(user), None, Some(file)) => {
                let text = String::from_utf8(self.read("password_file", &file)?);
                text.map_err(|_| self.wrong(&file, "password_file: must be UTF-8"))?;
                Ok(Some(Credentials { user: user.value, password: self.folder.join(file.value).into() }))
            }
        }
    }

    fn etcd_files(&self, tls: &file::Tls) -> EtcdFiles {
        let path = |written: &Option<Spanned<String>>| written.as_ref().map(|path| self.folder.join(&path.value));
        EtcdFiles { ca: path(&tls.ca), cert: path(&tls.cert), key: path(&tls.key) }
    }

    fn tls(&self, tls: file::Tls) -> Result<Tls, String> {
        let identity_pem = match (&tls.cert, &tls.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((self.source("cert", cert)?, self.source("key", key)?)),
            (Some(alone), None) => return Err(self.wrong(alone, "cert: needs etcd.tls.key")),
            (None, Some(alone)) => return Err(self.wrong(alone, "key: needs etcd.tls.cert")),
        };
        let ca_pem = tls.ca.as_ref().map(|ca| self.source("ca", ca)).transpose()?;
        Ok(Tls { ca_pem, identity_pem, server_name: tls.server_name })
    }

    /// A file that can be read now, and is read again for each use.
    fn source(&self, key: &str, path: &Spanned<String>) -> Result<Source, String> {
        self.read(key, path)?;
        Ok(self.folder.join(&path.value).into())
    }

    fn read(&self, key: &str, path: &Spanned<String>) -> Result<Vec<u8>, String> {
        let full = self.folder.join(&path.value);
        std::fs::read(&full)
            .map_err(|error| self.wrong(path, format!("{key}: cannot read {}: {error}", full.display())))
    }

    fn services(&self, listed: Spanned<Vec<file::Service>>) -> Result<Vec<Spec>, String> {
        if listed.value.is_empty() {
            return Err(self.wrong(&listed, "services: must list at least one"));
        }
        let mut listeners = HashMap::new();
        let mut published = HashMap::new();
        let mut specs = Vec::with_capacity(listed.value.len());
        for written in listed.value {
            let name_line = written.name.referenced.line();
            let listen_line = written.listen.referenced.line();
            let spec = self.service(written)?;
            spec.check_advertise().map_err(|said| at_line(self.file, listen_line, &format!("listen: {said}")))?;
            if spec.listen.port() != 0
                && let Some(line) = listeners.insert(spec.listen, listen_line)
            {
                let said = format!("listen: {} is the listener of line {line} already", spec.listen);
                return Err(at_line(self.file, listen_line, &said));
            }
            if let Some(addr) = spec.advertised(spec.listen)
                && let Some(line) = published.insert((spec.name.clone(), addr.clone()), name_line)
            {
                let said = format!("name: {} at {addr} is the service of line {line} already", spec.name);
                return Err(at_line(self.file, name_line, &said));
            }
            specs.push(spec);
        }
        Ok(specs)
    }

    fn service(&self, written: file::Service) -> Result<Spec, String> {
        let Parsed(name) = written.name.value;
        let Parsed(Listen(listen)) = written.listen.value;
        let mut spec = Spec::new(name, self.folder.join(written.component.value), listen);
        spec.precompiled = written.precompiled;
        spec.required = written.required;
        spec.advertise = written.advertise.map(|at| at.value.0);
        spec.tls = written.tls.map(|file::ListenTls { cert, key, client_ca }| Files {
            cert: self.folder.join(cert),
            key: self.folder.join(key),
            client_ca: client_ca.map(|path| self.folder.join(path)),
        });
        set(&mut spec.version, written.version.map(|Parsed(version)| version));
        set(&mut spec.register, written.register.map(|Parsed(register)| register));
        spec.layouts = self.layouts(written.layout)?;
        if let Some(at) = written.metadata {
            if spec.register != Register::Host {
                return Err(self.wrong(&at, "metadata: is for register: host; a component declares its own"));
            }
            let pairs: Vec<_> = at.value.clone().into_iter().collect();
            spec.metadata = pairs.try_into().map_err(|invalid: Invalid| self.wrong(&at, invalid))?;
        }
        spec.config = Variables(written.config);
        spec.args = written.args;
        spec.env = Variables(written.env);
        set(&mut spec.allow.names, written.allow.names.map(names));
        set(&mut spec.allow.discover, written.allow.discover.map(names));
        set(
            &mut spec.allow.outbound,
            written.allow.outbound.map(|all| all.into_iter().map(|Parsed(destination)| destination).collect()),
        );
        set(&mut spec.allow.local, written.allow.local);
        spec.limits = self.limits(written.limits)?;
        if let Some(at) = written.health {
            set(&mut spec.quarantine.panic_threshold, at.value.panic_threshold.as_ref().map(|Parsed(share)| share.0));
            set(&mut spec.quarantine.withdraw_on_trap, at.value.withdraw_on_trap);
            spec.health = self.health(at)?;
        }
        Ok(spec)
    }

    fn limits(&self, written: file::Limits) -> Result<Limits, String> {
        let mut limits = Limits::default();
        let count = |name: &str, written: Option<Spanned<u32>>| match written {
            Some(at) if !(1..=100_000).contains(&at.value) => {
                Err(self.wrong(&at, format!("{name}: must be 1 to 100000, not {}", at.value)))
            }
            written => Ok(written.map(|at| at.value)),
        };
        set(&mut limits.memory, written.memory.map(|Parsed(size)| size.0));
        set(&mut limits.request_timeout, written.request_timeout.map(|Parsed(span)| span.0));
        limits.stream_timeout = written.stream_timeout.map(|Parsed(span)| span.0);
        set(&mut limits.concurrency, count("concurrency", written.concurrency)?);
        set(&mut limits.connections, count("connections", written.connections)?);
        set(&mut limits.outgoing, count("outgoing", written.outgoing)?);
        set(&mut limits.nodes, count("nodes", written.nodes)?);
        set(&mut limits.output_lines, count("output_lines", written.output_lines)?);
        set(&mut limits.header_size, written.header_size.map(|Parsed(size)| size.0));
        set(&mut limits.body_size, written.body_size.map(|Parsed(size)| size.0));
        set(&mut limits.client_timeout, written.client_timeout.map(|Parsed(span)| span.0));
        limits.instance_requests = count("instance_requests", written.instance_requests)?;
        limits.instance_concurrency = count("instance_concurrency", written.instance_concurrency)?;
        set(&mut limits.start_timeout, written.start_timeout.map(|Parsed(span)| span.0));
        set(&mut limits.stop_timeout, written.stop_timeout.map(|Parsed(span)| span.0));
        set(&mut limits.settle_time, written.settle_time.map(|Parsed(span)| span.0));
        set(&mut limits.drain_timeout, written.drain_timeout.map(|Parsed(span)| span.0));
        Ok(limits)
    }

    /// None where it says only when a service that fails is withdrawn.
    fn health(&self, at: Spanned<file::Health>) -> Result<Option<Health>, String> {
        let probe = match (&at.value.path, at.value.grpc) {
            (Some(Parsed(path)), false) => Probe::Http(path.0.clone()),
            (None, true) => Probe::Grpc,
            (None, false) if at.value.is_of_quarantine_alone() => return Ok(None),
            _ => return Err(self.wrong(&at, "health: needs either path or grpc: true")),
        };
        let span = |written: Option<Parsed<Span>>, default| written.map_or(default, |Parsed(span)| span.0);
        let health = at.value;
        Ok(Some(Health {
            probe,
            interval: span(health.interval, Duration::from_secs(2)),
            timeout: span(health.timeout, Duration::from_secs(1)),
            rise: health.rise.map_or(2, |Parsed(times)| times.0),
            fall: health.fall.map_or(3, |Parsed(times)| times.0),
        }))
    }
}

/// A header a line. The error is the number of a line, and does not repeat what may be a secret.
pub(crate) fn parse_headers(text: &[u8]) -> Result<HeaderMap, usize> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let header = || {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            let mut value = HeaderValue::from_bytes(value[1..].trim_ascii()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim_ascii()).ok()?, value))
        };
        let (name, value) = header().ok_or(number + 1)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Replaces a default by what was written, if anything was.
fn set<T>(field: &mut T, written: Option<T>) {
    if let Some(value) = written {
        *field = value;
    }
}

fn names(patterns: Vec<Parsed<Pattern>>) -> Names {
    let mut only = Vec::with_capacity(patterns.len());
    for Parsed(pattern) in patterns {
        match pattern {
            Pattern::Any => return Names::Any,
            Pattern::Name(name) => only.push(name),
        }
    }
    Names::Only(only)
}

#[cfg(test)]
mod tests;
