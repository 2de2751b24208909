//! Values of the configuration with rules of their own: addresses, names, paths and choices.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use leasehold::{Addr, Choice, Invalid, Layout, Ownership, ServiceName, Version, Weight};
use leasehold_artifacts::Reference;
use leasehold_wasmtime::Names;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::config::{
    artifact::Origin,
    destination::Destination,
    rule::{Absent, Entries, Form, Key, Reading, Rule, Shape, Table, Text, pairs, scalars},
    tree::{Content, Node, Scalar},
    units::pattern,
};

/// Source of a service's registration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Register {
    /// The component, by calling `register`.
    #[default]
    Component,
    /// The host, for a component that knows nothing of Leasehold.
    Host,
    /// None: it is not registered.
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

/// The choice of nodes for calls by name.
pub(crate) struct Balance(pub(crate) Choice);

impl FromStr for Balance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "weight" => Ok(Self(Choice::Weighted)),
            "latency" => Ok(Self(Choice::LeastLatency)),
            _ => Err(format!("must be one of: weight, latency; not {text:?}")),
        }
    }
}

/// Requests that have a line in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logged {
    Off,
    /// Requests whose response is an error of the server, breaks off, or does not begin before the client leaves.
    Errors,
    All,
}

impl FromStr for Logged {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "errors" => Ok(Self::Errors),
            "all" => Ok(Self::All),
            _ => Err(format!("must be one of: off, errors, all; not {text:?}")),
        }
    }
}

/// Format of the access log, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessFormat {
    /// As lines of the log, in its format.
    Log,
    /// A JSON object a line, on standard output.
    Json,
    /// The Combined Log Format of web servers, on standard output.
    Combined,
}

impl FromStr for AccessFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "log" => Ok(Self::Log),
            "json" => Ok(Self::Json),
            "combined" => Ok(Self::Combined),
            _ => Err(format!("must be one of: log, json, combined; not {text:?}")),
        }
    }
}

/// A service name, or `*` for any.
#[derive(Debug, Clone)]
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

/// The names that a list of patterns permits.
pub(crate) fn names(patterns: Vec<Pattern>) -> Names {
    let mut only = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        match pattern {
            Pattern::Any => return Names::Any,
            Pattern::Name(name) => only.push(name),
        }
    }
    Names::Only(only)
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

/// The OTLP endpoint of a collector of traces, over gRPC.
pub(crate) struct Collector(pub(crate) String);

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            // Not repeated: it may hold a password.
            return Err("must not hold a user or password; a token goes to traces.headers_file".to_owned());
        }
        text.parse().map(|Endpoint(url)| Self(url))
    }
}

/// The address that clients get. Port 0 is the port of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advertise(String);

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_port = text.strip_suffix(":0").map(|host| format!("{host}:1"));
        let addr: Result<Addr, Invalid> = with_port.as_deref().unwrap_or(text).parse();
        addr.map(|_| Self(text.to_owned())).map_err(|invalid| invalid.to_string())
    }
}

impl Advertise {
    /// The address for a listener on that port; `None` while the port is not known.
    pub(crate) fn of(&self, port: u16) -> Option<Addr> {
        match self.0.strip_suffix(":0") {
            Some(host) => format!("{host}:{port}").parse().ok(),
            None => self.0.parse().ok(),
        }
    }
}

/// The path of a health check.
pub(crate) struct HealthPath(pub(crate) String);

impl FromStr for HealthPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok() {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("must be a path such as /healthz, not {text:?}")),
        }
    }
}

/// The address of a listener.
pub(crate) struct Listen(pub(crate) SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(SocketAddr::V6(addr)) if addr.scope_id() != 0 => {}
            Ok(addr) => return Ok(Self(addr)),
            Err(_) => {}
        }
        let why = match text.rsplit_once(':') {
            Some((host, _)) if host.contains('%') => "; without a scope, since no other host could dial it".to_owned(),
            Some((_, port))
                if !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_err() =>
            {
                "; ports end at 65535".to_owned()
            }
            Some(("", port)) if port.parse::<u16>().is_ok() => {
                format!("; 0.0.0.0:{port} is every IPv4 address, [::]:{port} every address")
            }
            Some((host, _)) if host.contains(':') && !host.starts_with('[') => "; IPv6 goes into brackets".to_owned(),
            Some((host, port)) if port.parse::<u16>().is_ok() && host.bytes().any(|c| c.is_ascii_alphabetic()) => {
                "; a name may stand for several addresses, and for others tomorrow".to_owned()
            }
            _ => String::new(),
        };
        Err(format!("must be an IP address and a port such as 127.0.0.1:8080{why}, not {text:?}"))
    }
}

/// The listener of the admin endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AdminListen {
    /// A socket of this machine, by its path.
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// There is no endpoint.
    Off,
}

impl FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if Path::new(path).is_absolute() && !path.ends_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(format!("must be unix: and the absolute path of a socket, not {text:?}")),
            None if text == "off" => Ok(Self::Off),
            None => text.parse().map(|Listen(addr)| Self::Tcp(addr)),
        }
    }
}

/// Permissions of a file, in octal.
pub(crate) struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be permissions in octal such as 0660, not {text:?}");
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match (digits.len(), u32::from_str_radix(digits, 8)) {
            (3..=4, Ok(mode)) if mode <= 0o777 && !digits.starts_with('+') => Ok(Self(mode)),
            _ => Err(wrong()),
        }
    }
}

/// The domain after a service's name in the host of a request.
pub(crate) struct Suffix(pub(crate) Arc<str>);

impl FromStr for Suffix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |label: &str| !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        if text.len() > 253 || !text.split('.').all(legal) {
            return Err(format!("must be a domain such as leasehold or svc.local, not {text:?}"));
        }
        Ok(Self(text.into()))
    }
}

/// A weight that does not follow the load.
pub(crate) struct FixedWeight(pub(crate) Weight);

impl FromStr for FixedWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: u32 = text.parse().map_err(|_| format!("must be 1 to 100, not {text:?}"))?;
        number.try_into().map(Self).map_err(|invalid: Invalid| invalid.to_string())
    }
}

/// The schema of a choice, which editors complete.
fn choice(words: &[&str]) -> Value {
    json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": r"\$" }] })
}

fn words(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

const REGISTER: [&str; 3] = ["component", "host", "off"];
const LOGGED: [&str; 3] = ["off", "errors", "all"];
const ACCESS_FORMATS: [&str; 3] = ["log", "json", "combined"];
const BALANCE: [&str; 2] = ["weight", "latency"];
const OWNERSHIP: [&str; 3] = ["take-over", "refuse", "wait"];
const VISIBLE: &str = "[!-.0-~]";

fn url() -> Value {
    json!({ "type": "string", "pattern": pattern("https?://[^@/?#]+:[0-9]+/?") })
}

scalars! {
    ServiceName => ServiceName, |name| name, secret if |_| false,
        "name", "1 to 253 visible ASCII characters without `/`", "greeter",
        json!({ "type": ["string", "number", "boolean"], "pattern": pattern(&format!("{VISIBLE}{{1,253}}")) });
    Version => Version, |version| version, secret if |_| false,
        "version", "up to 128 visible ASCII characters without `/`", "v1",
        json!({ "type": ["string", "number", "boolean"], "pattern": pattern(&format!("{VISIBLE}{{0,128}}")) });
    Advertise => Advertise, |advertise| advertise, secret if |_| false,
        "address", "`host:port`, with a name or an IP address that is no wildcard", "10.0.0.7:8080",
        json!({ "type": "string", "pattern": pattern(r"[^/@]+:[0-9]{1,5}") });
    Pattern => Pattern, |pattern| pattern, secret if |_| false,
        "name or `*`", "names, or `*` for every name", "greeter",
        json!({ "type": ["string", "number", "boolean"], "pattern": pattern(&format!(r"\*|{VISIBLE}{{1,253}}")) });
    Destination => Destination, |destination| destination, secret if |_| false,
        "destination", "a host, `*.DOMAIN`, an IP address, a network or `*`; `:PORT` behind it or not", "api.example:443",
        json!({ "type": ["string", "number"], "pattern": pattern(r"[A-Za-z0-9._*/:\[\]-]+") });
    Collector => String, |collector| collector.0, secret if |text| text.contains('@'),
        "URL", "`http://host:port` or `https://host:port`", "http://127.0.0.1:4317", url();
    HealthPath => String, |path| path.0, secret if |_| false,
        "path", "a path, with or without a query", "/healthz",
        json!({ "type": "string", "pattern": pattern("/.*") });
    Listen => SocketAddr, |listen| listen.0, secret if |_| false,
        "listener", "`IP:PORT`; IPv6 in brackets; port `0` takes a free one", "127.0.0.1:8080",
        json!({ "type": "string", "pattern": pattern(r"([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}") });
    AdminListen => AdminListen, |listen| listen, secret if |_| false,
        "listener", "`unix:` and an absolute path, `IP:PORT`, or `off`", "unix:/run/leasehold/admin.sock",
        json!({ "type": "string", "pattern": pattern(r"off|unix:/.+|([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}") });
    Mode => u32, |mode| mode.0, secret if |_| false,
        "permissions", "`000` to `0777`", "0660",
        json!({ "type": ["integer", "string"], "minimum": 0, "maximum": 777, "pattern": pattern("(0o?)?[0-7]{3,4}") });
    Suffix => Arc<str>, |suffix| suffix.0, secret if |_| false,
        "domain", "labels of letters, digits and `-`, with dots between them", "svc.local",
        json!({ "type": ["string", "number", "boolean"], "pattern": pattern(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*") });
    FixedWeight => Weight, |weight| weight.0, secret if |_| false,
        "number", "`1` to `100`", "50",
        json!({ "type": ["integer", "string"], "minimum": 1, "maximum": 100, "pattern": pattern("[0-9]+") });
    Register => Register, |register| register, secret if |_| false,
        "choice", words(&REGISTER), "host", choice(&REGISTER);
    Logged => Logged, |logged| logged, secret if |_| false,
        "choice", words(&LOGGED), "all", choice(&LOGGED);
    AccessFormat => AccessFormat, |format| format, secret if |_| false,
        "choice", words(&ACCESS_FORMATS), "combined", choice(&ACCESS_FORMATS);
    Balance => Choice, |balance| balance.0, secret if |_| false,
        "choice", words(&BALANCE), "latency", choice(&BALANCE);
    Ownership => Ownership, |ownership| ownership, secret if |_| false,
        "choice", words(&OWNERSHIP), "wait", choice(&OWNERSHIP);
}

/// The path of a file, relative to the file that names it.
pub(crate) enum FilePath {}

/// The path of a file that can be read now.
pub(crate) enum Readable {}

/// True if the content of a file begins with certificates as PEM, whatever stands around them.
pub(crate) fn has_certificate(pem: &[u8]) -> bool {
    CertificateDer::pem_slice_iter(pem).next().is_some_and(|first| first.is_ok())
}

fn file(example: &'static str) -> Shape {
    let schema = json!({ "type": ["string", "number", "boolean"] });
    Shape::Scalar(Form { kind: "file", range: "relative to the configuration file".into(), example, schema })
}

impl Rule for FilePath {
    type Value = PathBuf;

    fn shape() -> Shape {
        file("greeter.wasm")
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<PathBuf> {
        let scalar = reading.scalar(node, "the path of a file", false)?;
        if scalar.text.is_empty() {
            reading.refuse(node, scalar, "must be the path of a file", false);
            return None;
        }
        Some(reading.folder(node.place).join(&scalar.text))
    }
}

impl Rule for Origin {
    type Value = Self;

    fn shape() -> Shape {
        let range = "relative to the configuration file, or `oci://HOST/NAME:TAG`, or `@sha256:…` for the tag".into();
        let schema = json!({ "type": ["string", "number", "boolean"] });
        Shape::Scalar(Form { kind: "file or reference", range, example: "greeter.wasm", schema })
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self> {
        let scalar = reading.scalar(node, "the path of a file, or oci://HOST/NAME:TAG", false)?;
        if !Reference::is_meant(&scalar.text) {
            if reading.reads_components {
                let _ = Readable::read(node, reading); // Only its mistakes count: the other keys of the service are looked at.
            }
            return FilePath::read(node, reading).map(Self::File);
        }
        match scalar.text.parse() {
            Ok(reference) => Some(Self::Registry(reference)),
            Err(error) => {
                // A password may stand where none belongs.
                reading.hide(node.place);
                reading.refuse(node, scalar, &error.to_string(), true);
                None
            }
        }
    }
}

impl Rule for Readable {
    type Value = PathBuf;

    fn shape() -> Shape {
        file("etcd/ca.pem")
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<PathBuf> {
        let path = FilePath::read(node, reading)?;
        match std::fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(found) if found.is_dir() => {
                reading.wrong(node.place, format!("{} is a folder", path.display()));
                None
            }
            Ok(_) => Some(path),
            Err(error) => {
                let name = match &node.content {
                    // A variable may bring the secret itself instead of a path to it.
                    Content::Scalar(Scalar { written: Some(written), .. }) => format!("what {written} stands for"),
                    _ => path.display().to_string(),
                };
                reading.wrong(node.place, format!("cannot read {name}: {error}"));
                None
            }
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

impl Rule for Variables {
    type Value = Self;

    fn shape() -> Shape {
        Shape::Pairs
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self> {
        pairs(node, reading, true).map(Self)
    }

    fn absent() -> Option<Self> {
        Some(Self::default())
    }
}

/// One layout or a list of them; each is the name of a built-in layout, or a map.
pub(crate) enum Layouts {}

/// A layout that is built in, under another prefix or scheme; or one of the user's own, as templates.
struct Described {
    name: Option<String>,
    prefix: Option<String>,
    scheme: Option<String>,
    key: Option<String>,
    value: Option<String>,
}

impl Described {
    const KEYS: [&'static str; 5] = ["name", "prefix", "scheme", "key", "value"];

    fn table() -> Table {
        let effects = [
            "a built-in layout",
            "the prefix of the keys, where it is not the usual one",
            "the scheme of published addresses",
            "the template of keys, for a layout of your own",
            "the template of values, for a layout of your own",
        ];
        let keys = Self::KEYS.into_iter().zip(effects).map(|(name, effect)| Key {
            name,
            effect: effect.to_owned(),
            shape: if name == "name" { built_in() } else { Text::shape() },
            absent: Absent::Unset(""),
            example: None,
        });
        Table { about: String::new(), keys: keys.collect() }
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Layout> {
        let entries = Entries::of(node, Self::table, &Self::KEYS, reading).filter(|entries| entries.are_known)?;
        let mut text = |key| entries.key::<Option<Text>>(key, Absent::Unset(""), reading);
        let all = (text("name"), text("prefix"), text("scheme"), text("key"), text("value"));
        let (Some(name), Some(prefix), Some(scheme), Some(key), Some(value)) = all else { return None };
        let layout = Self { name, prefix, scheme, key, value }.layout();
        let message = match layout {
            Ok(layout) => return Some(layout),
            Err(message) => message,
        };
        let mut brought = Self::KEYS.iter().filter_map(|key| match &node.get(key)?.content {
            Content::Scalar(scalar) => Some((scalar.written.as_ref()?, &scalar.text)),
            _ => None,
        });
        let message = match brought.find(|(_, text)| !text.is_empty() && message.contains(text.as_str())) {
            Some((written, _)) => format!("what {written} stands for is not permitted here"),
            None => message,
        };
        reading.wrong(node.place, message);
        None
    }

    fn layout(self) -> Result<Layout, String> {
        let message = |error: Invalid| error.to_string();
        let mut layout = match (self.name, self.key, self.value) {
            (Some(name), None, None) => name.parse().map_err(message)?,
            (None, Some(key), Some(value)) => Layout::custom(&key, &value).map_err(message)?,
            _ => return Err("needs a name, or a key and a value as templates".to_owned()),
        };
        if let Some(prefix) = self.prefix {
            layout = layout.with_prefix(&prefix).map_err(message)?;
        }
        if let Some(scheme) = self.scheme {
            layout = layout.with_scheme(&scheme).map_err(message)?;
        }
        Ok(layout)
    }
}

fn built_in() -> Shape {
    let range = words(Layout::NAMES);
    Shape::Scalar(Form { kind: "layout", range, example: "kratos", schema: choice(Layout::NAMES) })
}

impl Rule for Layouts {
    type Value = Vec<Layout>;

    fn shape() -> Shape {
        let one = || Shape::Either("layout", vec![built_in(), Shape::Table(Described::table())]);
        Shape::Either("layout, or a list of them", vec![one(), Shape::List(Box::new(one()))])
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Vec<Layout>> {
        let read: Vec<_> = match &node.content {
            Content::List(items) => items.iter().map(|item| layout(item, reading)).collect(),
            _ => vec![layout(node, reading)],
        };
        let layouts: Vec<_> = read.into_iter().collect::<Option<_>>()?;
        match Layout::check_together(&layouts) {
            Ok(()) => Some(layouts),
            Err(invalid) => {
                reading.wrong(node.place, invalid.to_string());
                None
            }
        }
    }
}

fn layout(node: &Node, reading: &mut Reading) -> Option<Layout> {
    let scalar = match &node.content {
        Content::Map(_) => return Described::read(node, reading),
        _ => reading.scalar(node, "the name of a layout, or a map that describes one", false)?,
    };
    match scalar.text.parse() {
        Ok(layout) => Some(layout),
        Err(error) => {
            let error: Invalid = error;
            reading.refuse(node, scalar, &error.to_string(), false);
            None
        }
    }
}
