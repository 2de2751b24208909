//! How a node becomes a key and a value in etcd, byte-exact.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::node::{Addr, Invalid, ServerNode, ServiceName, Version, Weight};

/// A convention for keys and values that existing services already follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// The layout of the Go services that Leasehold grew up with.
    ///
    /// Key `/name/addr`, or `/name/version/addr`; value
    /// `{"name":"user","addr":"127.0.0.1:10002","version":"","weight":"73"}`, the weight a string.
    /// Metadata has no place in it.
    #[default]
    Seed,
}

/// First segments of keys that belong to other registries in the same etcd. A seed service of that name would
/// read their keys as its own, and they its.
const FOREIGN_PREFIXES: [(&str, &str); 4] =
    [("microservices", "kratos"), ("micro", "go-micro"), ("rpcx", "rpcx"), ("service", "goframe")];

/// The value of the seed layout. Its readers take the fields by name and drop a value whose weight is not a string.
#[derive(Serialize, Deserialize)]
struct SeedValue<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    addr: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    version: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    weight: std::borrow::Cow<'a, str>,
}

impl Layout {
    /// Whether `node` can be published under this layout at all.
    pub(crate) fn accept(self, node: &ServerNode) -> Result<(), Invalid> {
        match FOREIGN_PREFIXES.iter().find(|(prefix, _)| *prefix == node.name.as_str()) {
            None => Ok(()),
            Some((prefix, owner)) => {
                Err(Invalid::new("name", format!("must not be {prefix:?}: /{prefix}/ is where {owner} keeps its keys")))
            }
        }
    }

    /// The key of `node`.
    pub fn key(self, node: &ServerNode) -> String {
        format!("{}{}", self.prefix(&node.name, &node.version), node.addr)
    }

    /// The prefix of every key of `name`, and of `version` unless that is empty.
    pub fn prefix(self, name: &ServiceName, version: &Version) -> String {
        match version.as_str() {
            "" => format!("/{name}/"),
            version => format!("/{name}/{version}/"),
        }
    }

    /// The value of `node` at `weight`.
    pub fn value(self, node: &ServerNode, weight: Weight) -> Vec<u8> {
        let value = SeedValue {
            name: node.name.as_str().into(),
            addr: node.addr.as_str().into(),
            version: node.version.as_str().into(),
            weight: weight.to_string().into(),
        };
        go_json(&value)
    }

    /// The node that stands in `key` and `value`, or why they are not one.
    pub fn parse(self, key: &[u8], value: &[u8]) -> Result<ServerNode, Invalid> {
        let key = std::str::from_utf8(key).map_err(|_| Invalid::new("key", "must be UTF-8"))?;
        let value: SeedValue<'_> = serde_json::from_slice(value)
            .map_err(|error| Invalid::new("value", format!("must be the JSON of a node: {error}")))?;
        let weight: u32 = value.weight.parse().map_err(|_| Invalid::new("weight", "must be a number in a string"))?;
        let node = ServerNode {
            name: value.name.parse()?,
            addr: value.addr.parse()?,
            version: value.version.parse()?,
            weight: Some(weight.try_into()?),
            metadata: crate::node::Metadata::default(),
        };
        if self.key(&node) != key {
            return Err(Invalid::new("key", format!("must be {:?} to agree with its value", self.key(&node))));
        }
        Ok(node)
    }

    /// The address in a key, for a reader that has lost the value: what follows the last `/`.
    pub fn addr_of_key(self, key: &str) -> Option<Addr> {
        key.rsplit_once('/')?.1.parse().ok()
    }
}

impl FromStr for Layout {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "seed" => Ok(Self::Seed),
            _ => Err(Invalid::new("layout", format!("must be one of: seed; not {text:?}"))),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed => f.write_str("seed"),
        }
    }
}

/// JSON as Go's `encoding/json` writes it: without spaces, and with these five characters escaped.
fn go_json(value: &impl Serialize) -> Vec<u8> {
    let plain = serde_json::to_string(value).expect("strings always serialise");
    let mut escaped = String::with_capacity(plain.len());
    for c in plain.chars() {
        // They can stand only inside of strings, so replacing them in the whole text is safe.
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{Layout, go_json};
    use crate::node::ServerNode;

    fn node(name: &str, version: &str, addr: &str) -> ServerNode {
        ServerNode { version: version.parse().unwrap(), ..ServerNode::new(name, addr).unwrap() }
    }

    fn published(node: &ServerNode, weight: u32) -> (String, String) {
        let value = Layout::Seed.value(node, weight.try_into().unwrap());
        (Layout::Seed.key(node), String::from_utf8(value).unwrap())
    }

    #[test]
    fn seed_without_a_version_byte_for_byte() {
        let (key, value) = published(&node("user", "", "127.0.0.1:10002"), 73);
        assert_eq!(key, "/user/127.0.0.1:10002");
        assert_eq!(value, r#"{"name":"user","addr":"127.0.0.1:10002","version":"","weight":"73"}"#);
    }

    #[test]
    fn seed_with_a_version_byte_for_byte() {
        let (key, value) = published(&node("user", "v1", "127.0.0.1:8080"), 73);
        assert_eq!(key, "/user/v1/127.0.0.1:8080");
        assert_eq!(value, r#"{"name":"user","addr":"127.0.0.1:8080","version":"v1","weight":"73"}"#);
    }

    #[test]
    fn text_is_escaped_as_go_does() {
        let (_, value) = published(&node(r#"a<b>&"c\"#, "", "h:1"), 1);
        assert_eq!(value, r#"{"name":"a\u003cb\u003e\u0026\"c\\","addr":"h:1","version":"","weight":"1"}"#);
        assert_eq!(go_json(&"\u{2028}\u{2029}é"), r#""\u2028\u2029é""#.as_bytes());
    }

    #[test]
    fn what_is_published_reads_back() {
        for original in [node("user", "", "127.0.0.1:1"), node("a<b>", "v1", "[::1]:2")] {
            let (key, value) = published(&original, 7);
            let read = Layout::Seed.parse(key.as_bytes(), value.as_bytes()).unwrap();
            assert_eq!(read, ServerNode { weight: Some(7.try_into().unwrap()), ..original });
        }
    }

    #[test]
    fn garbage_is_refused_with_its_reason() {
        let parse = |key: &str, value: &str| Layout::Seed.parse(key.as_bytes(), value.as_bytes()).unwrap_err();
        assert_eq!(parse("/u/h:1", "").field, "value");
        assert_eq!(parse("/u/h:1", r#"{"name":"u","addr":"h:1","version":"","weight":73}"#).field, "value");
        assert_eq!(parse("/u/h:1", r#"{"name":"u","addr":"h:1","version":"","weight":"x"}"#).field, "weight");
        assert_eq!(parse("/u/h:2", r#"{"name":"u","addr":"h:1","version":"","weight":"1"}"#).field, "key");
    }

    #[test]
    fn a_name_under_a_foreign_prefix_is_refused() {
        assert!(Layout::Seed.accept(&node("microservices", "helloworld", "h:1")).is_err());
        assert!(Layout::Seed.accept(&node("user", "", "h:1")).is_ok());
    }
}
