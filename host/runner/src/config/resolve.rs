//! From what a file says to what it means: the rules that concern several keys.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use leasehold::{Credentials, Invalid, Layout, LoadSource, Metadata, Options, ServiceName, Source, Tls};
use leasehold_artifacts::Registry;
use leasehold_wasmtime::Names;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{
    artifact::{self, Artifact, Origin},
    connection,
    file::{self, File},
    rule::Reading,
    spec::{
        Admin, AdminAddress, Allow, CallRule, CallRules, CallTls, Config, EtcdFiles, Health, Probe, Quarantine,
        SocketFile, Spec, TlsFiles, Traces, parse_header,
    },
    tree::{Content, Node},
    values::{AdminListen, Register, has_certificate, names},
    variables::Environment,
    written::Written,
};

/// Keys outside of the services that are a part of each of them.
const OF_SERVICES: [&str; 4] = ["registry.layout", "registry.suffix", "registry.prefer", "registry.calls"];
/// A longer time to live is accepted with a remark.
const LONG_TTL_SECONDS: u64 = 2 * 3600 - 1;

/// Checks the parts of a file together; `None` where something is wrong.
pub(crate) fn resolve(file: File, root: &Node, environment: Environment, reading: &mut Reading) -> Option<Config> {
    let mut resolver = Resolver { root, environment, reading, notes: Vec::new() };
    let admin = file.admin.flatten().map_or(Some(Admin::default()), |admin| resolver.admin(admin));
    let metrics = file.metrics.flatten().map(|metrics| metrics.listen);
    let traces = file.traces.flatten().map(|traces| resolver.traces(traces));
    let mut services = resolver.services(file.services, !file.include.is_empty());
    let etcd_required = file.etcd.as_ref().is_some_and(|etcd| etcd.required);
    let etcd_files = file.etcd.as_ref().map(|etcd| EtcdFiles::from(&etcd.tls)).unwrap_or_default();
    let artifacts = file.artifacts?;
    let registries = resolver.registries(&artifacts.registries);
    let pulled = artifact::artifacts(registries?, artifacts.cache_size as u64);
    for artifact in services.iter_mut().filter_map(|spec| spec.artifact.as_mut()) {
        (artifact.poll, artifact.artifacts) = (artifacts.poll, pulled.clone());
    }
    let registry = file.registry.as_ref();
    let (suffix, prefer) = (registry?.suffix.clone(), registry?.prefer.clone());
    let calls = Arc::new(resolver.calls(&registry?.calls)?);
    file.defaults?;
    let mut registrar = resolver.registrar(file.etcd?, file.registry?)?;
    registrar.also_read = services.iter().flat_map(|spec| spec.layouts.iter().flatten().cloned()).collect();
    let prefer = prefer.map(|pairs| resolver.prefer(pairs, &registrar.read_layouts()));
    let prefer = prefer.flatten().unwrap_or_default();
    let mut written = Written::of_host(root);
    let for_services = written.split_off(&OF_SERVICES);
    let for_artifacts = written.split_off(&["artifacts"]);
    // The layouts of look-ups are those of the start.
    written.extend_below(&for_services, "registry.layout");
    for spec in &mut services {
        let own_layout = spec.layouts.is_some().then_some("registry.layout");
        spec.written.extend_without(&for_services, own_layout);
        if spec.artifact.is_some() {
            spec.written.extend_without(&for_artifacts, None);
        }
        spec.suffix = suffix.clone();
        spec.prefer = prefer.clone();
        spec.calls = calls.clone();
        let layouts = spec.layouts.as_ref().unwrap_or(&registrar.layouts);
        let published = |layout: &Layout| if spec.tls.is_some() { layout.with_tls() } else { layout.clone() };
        spec.layouts = Some(layouts.iter().map(published).collect());
    }
    Some(Config {
        registrar,
        etcd_files,
        etcd_required,
        dev: false,
        strict: false,
        admin: admin?,
        metrics,
        traces: traces.flatten(),
        services,
        written,
        notes: resolver.notes,
    })
}

/// Checks the admin endpoint of a file alone.
pub(crate) fn resolve_admin(
    admin: file::Admin,
    root: &Node,
    environment: Environment,
    reading: &mut Reading,
) -> Option<Admin> {
    Resolver { root, environment, reading, notes: Vec::new() }.admin(admin)
}

/// Checks the connection to etcd and the registration; with advice that keeps nothing from running.
pub(crate) fn resolve_registrar(
    etcd: file::Etcd,
    registry: file::Registry,
    root: &Node,
    environment: Environment,
    reading: &mut Reading,
) -> Option<(Options, Vec<String>)> {
    let mut resolver = Resolver { root, environment, reading, notes: Vec::new() };
    let options = resolver.registrar(etcd, registry)?;
    Some((options, resolver.notes))
}

struct Resolver<'a> {
    root: &'a Node,
    environment: Environment,
    reading: &'a mut Reading,
    notes: Vec<String>,
}

impl Resolver<'_> {
    /// Reports a mistake at the value that these keys lead to.
    fn wrong(&mut self, path: &[&str], message: impl Into<String>) {
        let place = self.root.place_of(path);
        match path.last() {
            Some(key) => self.reading.under(key, |reading| reading.wrong(place, message)),
            None => self.reading.wrong(place, message),
        }
    }

    fn registrar(&mut self, etcd: file::Etcd, registry: file::Registry) -> Option<Options> {
        let has_tls = etcd.tls.ca.is_some() || etcd.tls.cert.is_some();
        let endpoints = match etcd.endpoints {
            Some(listed) if listed.is_empty() => {
                self.wrong(&["etcd", "endpoints"], "must name at least one");
                return None;
            }
            Some(listed) => {
                // Beside one that is encrypted, a member without a scheme is not plain text.
                let has_tls = has_tls || listed.iter().any(|member| member.starts_with("https://"));
                listed.iter().filter_map(|member| connection::endpoint(member, has_tls).ok()).collect()
            }
            None => match connection::endpoints(self.environment, has_tls) {
                Ok(endpoints) => endpoints,
                Err(message) => {
                    self.wrong(&[], message);
                    return None;
                }
            },
        };
        let mut options = Options::new(endpoints);
        options.credentials = self.credentials(etcd.user, etcd.password.map(|secret| secret.0), etcd.password_file);
        options.tls = self.tls(etcd.tls);
        options.dial_timeout = etcd.dial_timeout;
        options.request_timeout = etcd.request_timeout;
        options.layouts = registry.layout;
        options.ttl = registry.ttl;
        if options.ttl.seconds() > LONG_TTL_SECONDS {
            let hours = options.ttl.seconds() / 3600;
            self.notes.push(format!("registry.ttl: the keys of a host that dies stay for up to {hours} hours"));
        }
        options.ownership = registry.ownership;
        if let Some(weight) = registry.weight.fixed {
            options.load = LoadSource::Fixed(weight);
        }
        options.damping.dead_band = registry.weight.dead_band;
        options.damping.min_interval = registry.weight.min_interval;
        Some(options)
    }

    fn calls(&mut self, all: &[file::Calls]) -> Option<CallRules> {
        let (mut rules, mut is_right, mut have_others) = (CallRules::default(), true, false);
        for (index, calls) in all.iter().enumerate() {
            let index = index.to_string();
            let mut wrong = |keys: &[&str], message: String| {
                let path: Vec<_> = ["registry", "calls", &index].into_iter().chain(keys.iter().copied()).collect();
                self.wrong(&path, message);
                is_right = false;
            };
            if let (Some(timeout), Some(try_timeout)) = (calls.timeout, calls.try_timeout)
                && try_timeout > timeout
            {
                wrong(&["try_timeout"], format!("must be at most timeout, which is {timeout:?}"));
            }
            if let (Some(hedge_after), Some(longest)) = (calls.hedge_after, calls.try_timeout.or(calls.timeout))
                && hedge_after >= longest
            {
                wrong(&["hedge_after"], format!("must be shorter than a try, which takes {longest:?} at most"));
            }
            if calls.retries > 0 && calls.retry_budget == 0 {
                wrong(&["retry_budget"], "permits no retry; say retries: 0 if none is meant".to_owned());
            }
            if calls.service.is_empty() && std::mem::replace(&mut have_others, true) {
                wrong(&["service"], "is missing, and another entry is for all other services already".to_owned());
            }
            if let Some(tls) = &calls.tls {
                for (key, has_key, other) in [("cert", tls.cert.is_some(), "key"), ("key", tls.key.is_some(), "cert")] {
                    if has_key && !(tls.cert.is_some() && tls.key.is_some()) {
                        wrong(&["tls", key], format!("needs tls.{other}"));
                    }
                }
            }
            for (index, split) in calls.split.iter().enumerate() {
                let index = index.to_string();
                let at = |key| ["split", &index, key];
                if split.version.as_str().is_empty() {
                    wrong(&at("version"), "must name a version".to_owned());
                }
                if split.share.is_none() && split.header.is_none() {
                    wrong(&at("version"), "gets no calls: say its share, or a header".to_owned());
                }
                if split.header.as_deref().is_some_and(|header| parse_header(header).is_none()) {
                    wrong(&at("header"), "must be a header such as \"x-canary: 1\"".to_owned());
                }
            }
            let shares: u32 = calls.split.iter().filter_map(|split| split.share).sum();
            if shares > 100 {
                wrong(&["split"], format!("the shares add up to {shares}%, which is more than all calls"));
            }
            let rule = CallRule::from(calls.clone());
            if let Some(Err(message)) = rule.tls.as_ref().map(CallTls::check) {
                wrong(&["tls"], message);
            }
            if let Some(name) = rule.tls.as_ref().and_then(|tls| tls.server_name.as_ref())
                && !is_server_name(name)
            {
                wrong(
                    &["tls", "server_name"],
                    format!("must be a DNS name, an IP address or spiffe://…, not {name:?}"),
                );
            }
            if let Some(double) = rules.add(&calls.service, rule) {
                wrong(&["service"], format!("another entry is for {double} already"));
            }
        }
        is_right.then_some(rules)
    }

    fn prefer(&mut self, pairs: BTreeMap<String, String>, layouts: &[Layout]) -> Option<Metadata> {
        let path = ["registry", "prefer"];
        let unread = pairs.keys().find(|key| *key != "version" && !layouts.iter().any(Layout::carries_metadata));
        if let Some(key) = unread {
            self.wrong(&path, format!("no node has a {key}: none of the layouts carries metadata"));
            return None;
        }
        let metadata = pairs.into_iter().collect::<Vec<_>>().try_into();
        metadata.map_err(|invalid: Invalid| self.wrong(&path, invalid.to_string())).ok()
    }

    fn admin(&mut self, admin: file::Admin) -> Option<Admin> {
        let file::Admin { listen, mode, group, remote, token_file, tls } = admin;
        let tls = tls.map(|file::ListenTls { cert, key, client_ca }| TlsFiles { cert, key, client_ca });
        let addr = match listen {
            Some(AdminListen::Tcp(addr)) => addr,
            listen => {
                for (key, has_key) in [("token_file", token_file.is_some()), ("tls", tls.is_some())] {
                    if has_key {
                        let message =
                            "is for an address (listen: IP:PORT); who may use a socket, its mode and group say";
                        self.wrong(&["admin", key], message);
                        return None;
                    }
                }
                return Some(match listen {
                    None => Admin::Suggested { mode, group },
                    Some(AdminListen::Unix(path)) => Admin::Unix(SocketFile { path, mode, group }),
                    _ => Admin::Off,
                });
            }
        };
        for (key, has_key) in [("mode", mode.is_some()), ("group", group.is_some())] {
            if has_key {
                self.wrong(&["admin", key], "is for a socket (listen: unix:PATH)");
                return None;
            }
        }
        if !addr.ip().is_loopback() && !remote {
            let message = format!("other machines can reach {addr}; say admin.remote: true if they may");
            self.wrong(&["admin", "listen"], message);
            return None;
        }
        self.admin_address(AdminAddress { listen: addr, token: token_file.map(Source::from), tls })
    }

    fn admin_address(&mut self, address: AdminAddress) -> Option<Admin> {
        if let Some(token) = &address.token
            && let Err(message) = address.read_token()
        {
            self.wrong(&["admin", "token_file"], format!("{token} {message}"));
            return None;
        }
        let has_certificates = address.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let listen = address.listen;
        match (&address.token, has_certificates) {
            (None, false) => self.notes.push(format!(
                "admin: {listen} is read-only: admin.token_file or admin.tls.client_ca permits commands over TCP, and \
                 listen: unix:PATH those of this machine"
            )),
            (Some(_), _) if address.tls.is_none() && !listen.ip().is_loopback() => {
                self.notes.push(format!("admin: the token goes to {listen} in plain text; admin.tls encrypts it"));
            }
            _ => {}
        }
        Some(Admin::Tcp(address))
    }

    fn traces(&mut self, traces: file::Traces) -> Option<Traces> {
        if traces.endpoint.starts_with("https:") && traces.ca.is_none() {
            self.wrong(&["traces", "endpoint"], "https needs traces.ca, the certificate that vouches for it");
            return None;
        }
        if let Some(path) = &traces.headers_file {
            self.headers(path)?;
        }
        let (ca_pem, headers) = (traces.ca.map(Source::from), traces.headers_file.map(Source::from));
        Some(Traces { endpoint: traces.endpoint, ca_pem, headers, sample: traces.sample })
    }

    /// Checks a file of headers, which is read again for each batch.
    fn headers(&mut self, path: &Path) -> Option<()> {
        let read = Source::from(path.to_owned()).read().map_err(|error| error.to_string());
        let parsed = read.and_then(|text| {
            parse_headers(&text).map_err(|line| format!("line {line} of {} must be NAME: VALUE", path.display()))
        });
        parsed.map(drop).map_err(|message| self.wrong(&["traces", "headers_file"], message)).ok()
    }

    fn credentials(
        &mut self,
        user: Option<String>,
        password: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<Credentials> {
        let (key, message) = match (user, password, file) {
            (None, None, None) => return None,
            (None, Some(_), _) => ("password", "needs etcd.user"),
            (None, None, Some(_)) => ("password_file", "needs etcd.user"),
            (Some(_), None, None) => ("user", "needs etcd.password or etcd.password_file"),
            (Some(_), Some(_), Some(_)) => ("password_file", "stands beside password; one of them is enough"),
            (Some(user), Some(password), None) => {
                self.note_password();
                return Some(Credentials { user, password: password.into() });
            }
            (Some(user), None, Some(path)) => {
                let source = Source::from(path);
                match source.read().map_err(|error| error.to_string()).map(String::from_utf8) {
                    Ok(Ok(_)) => return Some(Credentials { user, password: source }),
                    Ok(Err(_)) => ("password_file", "must be UTF-8"),
                    Err(message) => {
                        self.wrong(&["etcd", "password_file"], message);
                        return None;
                    }
                }
            }
        };
        self.wrong(&["etcd", key], message);
        None
    }

    /// Advises against a password that is written out.
    fn note_password(&mut self) {
        let password = self.root.get("etcd").and_then(|etcd| etcd.get("password"));
        let Some(Node { place, content: Content::Scalar(scalar) }) = password else { return };
        if scalar.written.is_none() {
            let name = self.reading.sources.get(place.source).map(|source| source.name.clone()).unwrap_or_default();
            let line = place.start.0;
            self.notes.push(format!(
                "{name}:{line}: the password of etcd is written out; password_file or ${{VARIABLE}} keeps it apart"
            ));
        }
    }

    fn tls(&mut self, tls: file::EtcdTls) -> Tls {
        for (key, file) in [("ca", &tls.ca), ("cert", &tls.cert)] {
            // A file that cannot be read is a mistake already.
            let pem = file.as_ref().and_then(|file| std::fs::read(file).ok());
            if pem.is_some_and(|pem| !has_certificate(&pem)) {
                self.wrong(&["etcd", "tls", key], "the file has no certificate as PEM");
            }
        }
        let identity_pem = match (tls.cert, tls.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (Some(_), None) => {
                self.wrong(&["etcd", "tls", "cert"], "needs etcd.tls.key");
                None
            }
            (None, Some(_)) => {
                self.wrong(&["etcd", "tls", "key"], "needs etcd.tls.cert");
                None
            }
        };
        Tls { ca_pem: tls.ca.map(Source::from), identity_pem, server_name: tls.server_name }
    }

    /// The good ones among the services.
    fn services(&mut self, listed: Vec<Option<file::Service>>, is_more: bool) -> Vec<Spec> {
        if listed.is_empty() {
            let message =
                if is_more { "must list at least one, and include brings none" } else { "must list at least one" };
            self.wrong(&["services"], message);
        }
        let nodes: &[Node] = match self.root.get("services").map(|services| &services.content) {
            Some(Content::List(nodes)) => nodes,
            _ => &[],
        };
        let (mut listeners, mut published) = (HashMap::new(), HashMap::new());
        let mut specs = Vec::with_capacity(listed.len());
        for (written, node) in listed.into_iter().zip(nodes) {
            let Some(spec) = written.and_then(|written| self.service(written, node)) else { continue };
            let (name_place, listen_place) = (node.place_of(&["name"]), node.place_of(&["listen"]));
            if let Err(message) = spec.check_advertise() {
                self.reading.under("listen", |reading| reading.wrong(listen_place, message));
                continue;
            }
            if spec.listen.port() != 0
                && let Some(first) = listeners.insert(spec.listen, listen_place)
            {
                let first = self.reading.line(first, listen_place);
                let message = format!("{} is the listener of {first} already", spec.listen);
                self.reading.under("listen", |reading| reading.wrong(listen_place, message));
            } else if let Some(addr) = spec.advertised(spec.listen)
                && let Some(first) = published.insert((spec.name.clone(), addr.clone()), name_place)
            {
                let first = self.reading.line(first, name_place);
                let message = format!("{} at {addr} is the service of {first} already", spec.name);
                self.reading.under("name", |reading| reading.wrong(name_place, message));
            }
            specs.push(spec);
        }
        specs
    }

    fn service(&mut self, written: file::Service, node: &Node) -> Option<Spec> {
        let metadata = self.metadata(&written, node);
        let health = written.health.as_ref().map(|health| self.health(health, node));
        let (component, artifact) = self.origin(written.component, written.verify, node)?;
        let mut spec = Spec::new(written.name, component, written.listen);
        spec.place = self.reading.place(node.place);
        spec.artifact = artifact;
        spec.written = Written::of_service(node);
        spec.precompiled = written.precompiled;
        spec.required = written.required;
        spec.advertise = written.advertise;
        spec.tls = written.tls.map(|file::ListenTls { cert, key, client_ca }| TlsFiles { cert, key, client_ca });
        spec.version = written.version.unwrap_or_default();
        spec.register = written.register;
        spec.layouts = written.layout;
        spec.metadata = metadata?;
        spec.config = written.config;
        spec.args = written.args;
        spec.env = written.env;
        spec.allow = Allow {
            names: written.allow.names.map_or(spec.allow.names, names),
            discover: names(written.allow.discover),
            outbound: written.allow.outbound,
            local: written.allow.local,
            callers: written.allow.callers.map(Arc::from),
        };
        if spec.allow.callers.is_some() && spec.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()) {
            let place = node.place_of(&["allow", "callers"]);
            let message = "needs tls.client_ca: without certificates no caller is known";
            self.reading.under("callers", |reading| reading.wrong(place, message));
            return None;
        }
        if let (Register::Component, Names::Only(permitted)) = (spec.register, &spec.allow.names) {
            let (name, _) = spec.registered_as();
            if !permitted.contains(&name) {
                let permitted: Vec<_> = permitted.iter().map(ServiceName::as_str).collect();
                // A component may use the key for something else.
                self.notes.push(format!(
                    "{}: config.name is {name}, and the component may not register that: allow.names permits {}",
                    spec.name,
                    permitted.join(", ")
                ));
            }
        }
        spec.limits = written.limits;
        spec.access_log = written.access_log;
        if let Some(file::Health { panic_threshold, withdraw_on_trap, .. }) = written.health {
            spec.quarantine = Quarantine { panic_threshold, withdraw_on_trap };
        }
        spec.health = health.unwrap_or(Some(None))?;
        Some(spec)
    }

    /// The component's file, or its reference with the keys that have to have signed it.
    fn origin(&mut self, origin: Origin, keys: Vec<PathBuf>, node: &Node) -> Option<(PathBuf, Option<Artifact>)> {
        match origin {
            Origin::File(path) if keys.is_empty() => Some((path, None)),
            Origin::File(_) => {
                // Where all services have it by `defaults`, those of files would run without a signature.
                let place = node.place_of(&["verify"]);
                let message = "is for a component from a registry (component: oci://…)";
                self.reading.under("verify", |reading| reading.wrong(place, message));
                None
            }
            Origin::Registry(reference) => {
                if let Some(message) = keys.iter().find_map(|path| artifact::read_key(path).err()) {
                    let place = node.place_of(&["verify"]);
                    self.reading.under("verify", |reading| reading.wrong(place, message));
                    return None;
                }
                let artifacts = Err("no registries are configured".to_owned()); // Replaced for all services at once.
                let path = PathBuf::from(reference.to_string());
                Some((path, Some(Artifact { reference, keys, poll: Duration::ZERO, artifacts })))
            }
        }
    }

    /// The good ones among the registries; `None` where one is wrong.
    fn registries(&mut self, written: &[file::ArtifactRegistry]) -> Option<Vec<Registry>> {
        let mut hosts = HashSet::new();
        let registries = written.iter().map(|written| {
            let wrong = match (&written.username, &written.password, &written.password_file) {
                (_, Some(_), Some(_)) => Some(format!("{}: password_file stands beside password", written.host)),
                (Some(_), None, None) => Some(format!("{}: username needs password or password_file", written.host)),
                _ if !hosts.insert(written.host.clone()) => Some(format!("{} stands here twice", written.host)),
                _ if written.host.contains(['/', '@']) => Some("host must be a host alone, or host:port".to_owned()),
                _ if written.mirrors.iter().any(|mirror| mirror.contains(['/', '@'])) => {
                    Some("mirrors must be hosts alone, or host:port".to_owned())
                }
                _ => None,
            };
            if let Some(message) = wrong {
                self.wrong(&["artifacts", "registries"], message);
                return None;
            }
            let password = written.password.clone().map(|secret| Source::Value(secret.0.into_bytes()));
            Some(Registry {
                host: written.host.clone(),
                username: written.username.clone(),
                password: password.or_else(|| written.password_file.clone().map(Source::from)),
                ca: written.ca.clone().map(Source::from),
                mirrors: written.mirrors.clone(),
                plain_http: written.plain_http,
            })
        });
        // All of them are looked at, so that each mistake is found.
        let registries: Vec<_> = registries.collect();
        registries.into_iter().collect()
    }

    fn metadata(&mut self, written: &file::Service, node: &Node) -> Option<Metadata> {
        let Some(pairs) = &written.metadata else { return Some(Metadata::default()) };
        let place = node.place_of(&["metadata"]);
        let invalid = match written.register {
            Register::Host => match pairs.clone().into_iter().collect::<Vec<_>>().try_into() {
                Ok(metadata) => return Some(metadata),
                Err(invalid) => Invalid::to_string(&invalid),
            },
            _ => "is for register: host; a component declares its own".to_owned(),
        };
        self.reading.under("metadata", |reading| reading.wrong(place, invalid));
        None
    }

    /// `Some(None)` where it says only when a service that fails is withdrawn.
    fn health(&mut self, health: &file::Health, node: &Node) -> Option<Option<Health>> {
        let written = node.get("health");
        let has = |keys: &[&str]| keys.iter().any(|key| written.is_some_and(|health| health.get(key).is_some()));
        let probe = match (&health.path, health.grpc) {
            (Some(path), false) => Probe::Http(path.clone()),
            (None, true) => Probe::Grpc,
            (None, false)
                if has(&["panic_threshold", "withdraw_on_trap"]) && !has(&["interval", "timeout", "rise", "fall"]) =>
            {
                return Some(None);
            }
            _ => {
                let place = node.place_of(&["health"]);
                self.reading.under("health", |reading| reading.wrong(place, "needs either path or grpc: true"));
                return None;
            }
        };
        let file::Health { interval, timeout, rise, fall, .. } = *health;
        Some(Some(Health { probe, interval, timeout, rise, fall }))
    }
}

impl From<&file::EtcdTls> for EtcdFiles {
    fn from(tls: &file::EtcdTls) -> Self {
        Self { ca: tls.ca.clone(), cert: tls.cert.clone(), key: tls.key.clone() }
    }
}

/// Shortest token, in bytes.
const MIN_TOKEN_BYTES: usize = 16;

impl AdminAddress {
    /// The token in its file, without space around it. The error is the rest of a sentence that begins with the file, and does
    /// not show the token.
    pub(crate) fn read_token(&self) -> Result<Vec<u8>, String> {
        let Some(source) = &self.token else { return Err("is not configured".to_owned()) };
        let token = source.read().map_err(|error| error.to_string())?.trim_ascii().to_vec();
        let is_header = token.iter().all(|byte| byte.is_ascii_graphic());
        match token.len() >= MIN_TOKEN_BYTES && is_header {
            true => Ok(token),
            false => Err(format!(
                "holds no token of {MIN_TOKEN_BYTES} visible characters or more; `openssl rand -hex 32` makes one"
            )),
        }
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

/// Detects a name that a certificate can have.
fn is_server_name(name: &str) -> bool {
    let name = name.replace("{name}", "a");
    name.strip_prefix("spiffe://").map_or_else(|| ServerName::try_from(name.as_str()).is_ok(), |path| !path.is_empty())
}
