//! The file of `leasehold keep`: nodes of processes that are no components, and the check of each.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    str::FromStr,
    time::Duration,
};

use http::{Uri, uri::Authority};
use leasehold::{Addr, Invalid, Layout, Metadata, Options, ServerNode, ServiceName, Version};
use serde_json::json;

use crate::{
    config::{
        file::{Etcd, Registry, Weight},
        load::{load_text, parse_with, source},
        mistake::Mistakes,
        resolve::resolve_registrar,
        rule::{
            Absent::{Required, Text as Default, Unset},
            Each, Pairs, Part, Reading, Rule, Shape, keys, scalars,
        },
        spec::{Health, Probe},
        tree::{Content, Node},
        units::{Count, Span, WholeSeconds, pattern},
        values::{FixedWeight, Layouts},
        variables::Environment,
    },
    error::Failure,
};

keys! {
    /// Nodes that `leasehold keep` keeps in etcd. Keys that begin with `x-` are ignored.
    pub(crate) struct KeptFile {
        /// The connection to etcd, as in the [configuration of a host](configuration.md#etcd).
        etcd: Part<Etcd> = Unset("");
        /// Registration, for all nodes.
        registry: Part<KeptRegistry> = Unset("");
        /// The nodes, one at least.
        nodes: Each<WrittenNode> = Required;
    }
}

keys! {
    /// Registration, for all nodes.
    pub(crate) struct KeptRegistry {
        /// The format of keys and values: one layout, or several at once.
        layout: Layouts = Default("seed"), example "[seed, kratos]";
        /// Time that keys outlive a `keep` that was killed.
        ttl: WholeSeconds = Default("10s"), example "1m";
        /// Rule for a key of another host: write over it, fail, or wait until the key is free.
        ownership: leasehold::Ownership = Default("take-over");
        /// The published weight of nodes without a weight of their own.
        weight: Weight = Unset("");
    }
}

keys! {
    /// A node: what is published, and when.
    pub(crate) struct WrittenNode {
        /// The name of the service.
        name: ServiceName = Required;
        /// The address that clients get. Only `health` looks for a process there.
        addr: Addr = Required;
        /// The version of the service.
        version: Option<Version> = Unset("none");
        /// A weight that does not follow the load of the machine.
        weight: Option<FixedWeight> = Unset("`registry.weight`"), example "50";
        /// Metadata of the node.
        metadata: Option<Pairs> = Unset("none"), example "{ zone: a }";
        /// The check: the node is registered only while it succeeds. The URL alone is short for a map.
        health: Option<CheckRule> = Unset("no check: registered at once"), example "http://127.0.0.1:8080/healthz";
    }
}

keys! {
    /// The check of a node. `health: URL` is short for `health: { url: URL }`.
    pub(crate) struct WrittenCheck {
        /// `http://HOST:PORT/PATH` with a status from 200 to 299, `grpc://HOST:PORT` with `SERVING` from `grpc.health.v1`, or `tcp://HOST:PORT` with a connection.
        url: CheckUrl = Required;
        /// Time between two checks.
        interval: Span = Default("2s"), example "5s";
        /// Time for an answer. Beyond, the check has failed.
        timeout: Span = Default("1s"), example "500ms";
        /// Successful checks in a row until the node is registered.
        rise: Count = Default("1"), example "2";
        /// Failed checks in a row until the node is withdrawn.
        fall: Count = Default("3"), example "5";
    }
}

/// Everything that one `leasehold keep` keeps, as checked.
#[derive(Debug)]
pub(crate) struct Kept {
    /// etcd and the registration.
    pub(crate) registrar: Options,
    /// At least one, with keys that differ under every layout.
    pub(crate) nodes: Vec<KeptNode>,
    /// Advice that does not keep it from running.
    pub(crate) notes: Vec<String>,
}

/// A node that is registered while its check succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptNode {
    pub(crate) node: ServerNode,
    /// `None` for a node that is always registered.
    pub(crate) check: Option<Check>,
}

/// A health check over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) url: CheckUrl,
    /// The pause between two checks.
    pub(crate) interval: Duration,
    /// Time for an answer.
    pub(crate) timeout: Duration,
    /// Successful checks in a row until the node is registered.
    pub(crate) rise: u32,
    /// Failed checks in a row until the node is withdrawn.
    pub(crate) fall: u32,
}

/// The address of a check, and what is sent there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckUrl {
    pub(crate) authority: Authority,
    /// The request; `None` for a connection alone.
    pub(crate) probe: Option<Probe>,
}

impl FromStr for CheckUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            Err(format!("{why}; it is http://HOST:PORT/PATH, grpc://HOST:PORT or tcp://HOST:PORT, not {text:?}"))
        };
        if text.contains('@') {
            // Not repeated: it may hold a password.
            return Err("a user has no place here".to_owned());
        }
        let Ok(uri) = text.parse::<Uri>() else { return wrong("this is no URL") };
        let Some(authority) = uri.authority().cloned() else { return wrong("the host is missing") };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let probe = match uri.scheme_str() {
            Some("http") => Some(Probe::Http(path.to_owned())),
            Some("grpc" | "tcp") if path != "/" && !path.is_empty() => return wrong("a path means nothing here"),
            Some("grpc") => Some(Probe::Grpc),
            Some("tcp") => None,
            _ => return wrong("the scheme is unknown"),
        };
        match authority.port_u16() {
            Some(1..) => Ok(Self { authority, probe }),
            _ => wrong("the port is missing"),
        }
    }
}

scalars! {
    Addr => Addr, |addr| addr, secret if |_| false,
        "address", "`host:port`, with a name or an IP address that is no wildcard", "10.0.0.7:8080",
        json!({ "type": "string", "pattern": pattern(r"[^/@]+:[0-9]{1,5}") });
    CheckUrl => CheckUrl, |url| url, secret if |text| text.contains('@'),
        "URL", "`http`, `grpc` or `tcp`, with a port", "http://127.0.0.1:8080/healthz",
        json!({ "type": "string", "pattern": pattern("(http://[^@/]+:[0-9]+(/.*)?|(grpc|tcp)://[^@/]+:[0-9]+/?)") });
}

/// The check as its URL, or as a map.
pub(crate) enum CheckRule {}

impl Rule for CheckRule {
    type Value = Check;

    fn shape() -> Shape {
        match (CheckUrl::shape(), WrittenCheck::shape()) {
            (Shape::Scalar(url), Shape::Table(check)) => Shape::WordOrTable(url, check),
            (_, shape) => shape,
        }
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Check> {
        let WrittenCheck { url, interval, timeout, rise, fall } = WrittenCheck::read(&node.long("url"), reading)?;
        Some(Check { url, interval, timeout, rise, fall })
    }
}

impl Check {
    /// The request with its timeout; `None` for a connection alone.
    pub(crate) fn health(&self) -> Option<Health> {
        let Self { interval, timeout, rise, fall, .. } = *self;
        let probe = self.url.probe.clone()?;
        Some(Health { probe, interval, timeout, rise, fall })
    }
}

impl KeptNode {
    /// Its keys under these layouts.
    pub(crate) fn keys(&self, layouts: &[Layout]) -> Vec<String> {
        layouts.iter().map(|layout| layout.key(&self.node)).collect()
    }
}

impl Kept {
    /// Reads and checks a file, or standard input for `-`.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        load_text(path, |file, text, folder| Self::parse_in(file, text, folder, |name| std::env::var(name).ok()))
    }

    /// Parses and checks the text of a file whose relative paths begin in `folder`.
    pub(crate) fn parse_in(file: &str, text: &str, folder: &Path, environment: Environment) -> Result<Self, Mistakes> {
        parse_with(file, |reading| {
            let root =
                source(file.to_owned(), text.to_owned(), folder.to_owned(), KeptFile::shape, environment, reading)?;
            let written = KeptFile::read(&root, reading)?;
            resolve(written, &root, environment, reading)
        })
    }
}

fn resolve(file: KeptFile, root: &Node, environment: Environment, reading: &mut Reading) -> Option<Kept> {
    let place = root.place_of(&["nodes"]);
    if file.nodes.is_empty() {
        reading.under("nodes", |reading| reading.wrong(place, "must have one node at least"));
    }
    let registry = file.registry?;
    let registry = Registry {
        layout: registry.layout,
        ttl: registry.ttl,
        ownership: registry.ownership,
        weight: registry.weight,
        ..Registry::absent()?
    };
    let (registrar, notes) = resolve_registrar(file.etcd?, registry, root, environment, reading)?;
    let places = match root.get("nodes").map(|nodes| &nodes.content) {
        Some(Content::List(nodes)) => nodes.as_slice(),
        _ => &[],
    };
    let (mut nodes, mut known) = (Vec::new(), HashMap::new());
    for (written, at) in file.nodes.into_iter().zip(places) {
        let Some(written) = written else { continue };
        let Some(kept) = kept(written, at, &registrar.layouts, reading) else { continue };
        for key in kept.keys(&registrar.layouts) {
            if let Some(first) = known.insert(key.clone(), at.place) {
                let first = reading.line(first, at.place);
                reading.wrong(at.place, format!("the key {key} is that of the node on {first} already"));
                break;
            }
        }
        nodes.push(kept);
    }
    Some(Kept { registrar, nodes, notes })
}

fn kept(written: WrittenNode, at: &Node, layouts: &[Layout], reading: &mut Reading) -> Option<KeptNode> {
    let WrittenNode { name, addr, version, weight, metadata, health } = written;
    let pairs: BTreeMap<String, String> = metadata.unwrap_or_default();
    let metadata: Result<Metadata, Invalid> = pairs.into_iter().collect::<Vec<_>>().try_into();
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(invalid) => {
            let place = at.place_of(&["metadata"]);
            reading.under("metadata", |reading| reading.wrong(place, invalid.to_string()));
            return None;
        }
    };
    let node = ServerNode { name, addr, version: version.unwrap_or_default(), weight, metadata };
    if let Err(invalid) = Layout::accept_under(layouts, &node) {
        reading.wrong(at.place, invalid.to_string());
        return None;
    }
    Some(KeptNode { node, check: health })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::{CheckUrl, Kept};

    fn parse(text: &str) -> Result<Kept, String> {
        let environment = |name: &str| (name == "POD_IP").then(|| "10.0.0.7".to_owned());
        Kept::parse_in("keep.yaml", text, Path::new("/"), environment).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn nodes_have_their_own_weight_metadata_and_check() {
        let kept = parse(
            "etcd: { endpoints: [http://etcd-1:2379] }
registry: { layout: [seed, kratos], ttl: 5s }
nodes:
  - name: user
    version: v1
    addr: ${POD_IP}:8080
    weight: 7
    metadata: { zone: a }
    health: { url: http://127.0.0.1:8080/healthz, interval: 5s, fall: 1 }
  - { name: mail, addr: 10.0.0.7:25, health: tcp://127.0.0.1:25 }
x-notes: of mine
",
        )
        .unwrap();
        let [user, mail] = kept.nodes.as_slice() else { panic!("{kept:?}") };
        assert_eq!(
            (user.node.addr.as_str(), user.node.weight.map(|weight| weight.value())),
            ("10.0.0.7:8080", Some(7))
        );
        assert_eq!(user.keys(&kept.registrar.layouts)[0], "/user/v1/10.0.0.7:8080");
        let check = user.check.as_ref().unwrap();
        assert_eq!((check.interval, check.timeout, check.fall), (Duration::from_secs(5), Duration::from_secs(1), 1));
        let check = mail.check.as_ref().unwrap();
        assert_eq!((check.interval, check.rise, check.fall), (Duration::from_secs(2), 1, 3));
        assert!(check.url.probe.is_none() && mail.node.weight.is_none());
        assert_eq!(kept.registrar.ttl.seconds(), 5);
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        let found = parse(
            "etcd: { endpoint: http://etcd-1:2379 }
registry: { suffix: svc }
nodes:
  - { name: a/b, addr: 10.0.0.7:1 }
  - { name: user, addr: 0.0.0.0:1 }
  - { addr: 10.0.0.7:2 }
  - { name: user, addr: 10.0.0.7:3, health: http://user:secret@127.0.0.1:3/ }
  - { name: user, addr: 10.0.0.7:4, weight: 101 }
",
        )
        .unwrap_err();
        for expected in [
            "\"endpoints\"",
            "unknown key \"suffix\"",
            "a/b",
            "0.0.0.0:1",
            "\"name\" is missing",
            "a user has no",
            "101",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
        assert!(!found.contains("secret"), "{found}");
    }

    #[test]
    fn two_nodes_have_different_keys() {
        let found =
            parse("nodes: [{ name: a, addr: b:1 }, { name: c, addr: b:1 }, { name: a, addr: b:1 }]").unwrap_err();
        assert!(found.contains("the key /a/b:1 is that of the node on line 1 already"), "{found}");
        assert!(parse("nodes: []").unwrap_err().contains("one node at least"));
        assert!(parse("{}").unwrap_err().contains("\"nodes\" is missing"));
    }

    #[test]
    fn a_check_is_a_url_with_a_port() {
        for url in ["http://127.0.0.1:80/healthz?a=b", "http://[::1]:80", "grpc://db:9000", "tcp://db:9000/"] {
            assert!(url.parse::<CheckUrl>().is_ok(), "{url}");
        }
        for (url, why) in [
            ("127.0.0.1:80", "the scheme is unknown"),
            ("https://db:1/", "the scheme is unknown"),
            ("http://db/", "the port is missing"),
            ("tcp://db:0", "the port is missing"),
            ("grpc://db:1/user", "a path means nothing here"),
            ("http://user:secret@db:1/", "a user has no place here"),
            ("http:// :1/", "this is no URL"),
        ] {
            let error = url.parse::<CheckUrl>().unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
