//! How a node becomes a key and a value in etcd, byte-exact: the conventions that existing services follow, as data.

mod builtin;
pub(crate) mod template;

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    layout::{
        builtin::{BUILT_IN, FOREIGN_PREFIXES, Row},
        template::{Field, Found, Parts, Shape, Text, memo::Last},
    },
    node::{Addr, Invalid, Metadata, ServerNode, ServiceName, Version, Weight},
};

/// A convention for keys and values. Cloning is cheap.
///
/// The built-in ones have a name: `"kratos".parse()`. [`Layout::NAMES`] lists them; the default is `seed`, the layout of
/// the Go services that Leasehold grew up with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Layout(Arc<Plan>);

#[derive(PartialEq, Eq, Hash)]
struct Plan {
    source: Source,
    key: Text,
    value: Shape,
}

/// What a layout is made of. In the templates, `{prefix}` and `{scheme}` stand for these two, `{prefix/}` for a prefix
/// with a `/` after it unless it is empty; the rest is the language of `template`. In a value any scheme is read.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Source {
    name: &'static str,
    prefix: String,
    scheme: String,
    key: String,
    value: String,
}

/// The most layouts under which one node is published.
const MOST_TOGETHER: usize = 8;
/// The name of a layout that is not built in.
const CUSTOM: &str = "custom";

impl Layout {
    /// The names of the built-in layouts.
    pub const NAMES: [&str; BUILT_IN.len()] = {
        let mut names = [""; BUILT_IN.len()];
        let mut row = 0;
        while row < names.len() {
            names[row] = BUILT_IN[row][0];
            row += 1;
        }
        names
    };

    /// A layout of one's own, from templates for key and value.
    ///
    /// Placeholders are `{prefix}`, `{name}`, `{addr}`, `{version}`, `{weight}`, `{id}`, a number that is the same at
    /// every start of the same instance, and `{label}`, which is written as the address and read as anything; `{version|latest}` has a word for no version, and `{version/}` takes a `/` with
    /// it when there is a version. A value is JSON (`"{weight:number}"` is a number, `"{metadata}"` an object,
    /// `"{metadata|null}"` null when there is none, and the key `"..."` merges the metadata into its object), or a query
    /// (`?weight={weight}&...`), or any other text.
    ///
    /// Fails when a template cannot be read, or when a key does not tell services and instances apart.
    pub fn custom(key: &str, value: &str) -> Result<Self, Invalid> {
        let empty = String::new;
        let source =
            Source { name: CUSTOM, prefix: empty(), scheme: empty(), key: key.to_owned(), value: value.to_owned() };
        Self::new(source)
    }

    /// The same under another prefix; a `/` at its end counts as none.
    ///
    /// Fails when the prefix is longer than 256 bytes, or holds anything but visible ASCII characters.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, Invalid> {
        let legal = prefix.len() <= 256 && prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}".contains(&byte));
        if !legal {
            return Err(Invalid::new("prefix", "must be at most 256 visible ASCII characters without braces"));
        }
        Self::new(Source { prefix: prefix.trim_end_matches('/').to_owned(), ..self.0.source.clone() })
    }

    /// The same with another scheme of the addresses, such as `http` or `grpc`.
    ///
    /// Fails when the layout publishes no scheme, or when it is not one (RFC 3986, section 3.1).
    pub fn with_scheme(&self, scheme: &str) -> Result<Self, Invalid> {
        if !self.0.source.value.contains("{scheme}") {
            return Err(Invalid::new("scheme", format!("has no place in the layout {self}")));
        }
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.chars().all(legal) || scheme.len() > 32 {
            return Err(Invalid::new("scheme", format!("must be a scheme such as http or grpc, not {scheme:?}")));
        }
        Self::new(Source { scheme: scheme.to_owned(), ..self.0.source.clone() })
    }

    /// The same for instances that speak TLS: where it publishes a scheme, `http` becomes `https` and `grpc` `grpcs`.
    /// Another scheme, which the user has chosen, stays.
    #[must_use]
    pub fn secured(&self) -> Self {
        let secured = match self.0.source.scheme.as_str() {
            "http" => "https",
            "grpc" => "grpcs",
            _ => return self.clone(),
        };
        let value = self.0.source.value.replace(r#""insecure":true"#, r#""insecure":false"#);
        Self::new(Source { scheme: secured.to_owned(), value, ..self.0.source.clone() })
            .expect("a scheme changes nothing else")
    }

    fn new(source: Source) -> Result<Self, Invalid> {
        let slashed = if source.prefix.is_empty() { String::new() } else { format!("{}/", source.prefix) };
        let fill = |template: &str, scheme: &str| {
            let filled = template.replace("{prefix/}", &slashed).replace("{prefix}", &source.prefix);
            filled.replace("{scheme}", scheme)
        };
        let key = Text::parse(&fill(&source.key, &source.scheme)).map_err(|rule| Invalid::new("key", rule))?;
        let any_scheme = format!("{{scheme|{}}}", source.scheme);
        let value = Shape::parse(&fill(&source.value, &any_scheme)).map_err(|rule| Invalid::new("value", rule))?;
        let of_key = |rule: &str| Err(Invalid::new("key", rule));
        if !source.key.contains("{name}/") {
            return of_key("must have {name}/, so that services are told apart");
        }
        if ![Field::Addr, Field::Id, Field::Label].into_iter().any(|field| key.has(field)) {
            return of_key("must have {addr}, {id} or {label}, so that instances are told apart");
        }
        if key.has(Field::Weight) {
            return of_key("must not have {weight}: a key does not change");
        }
        if !key.has(Field::Addr) && !value.has(Field::Addr) {
            return Err(Invalid::new("value", "must have {addr}, since the key has none"));
        }
        Ok(Self(Arc::new(Plan { source, key, value })))
    }

    /// Whether these can stand beside each other for one node: 1 to 8, of which no two write the same keys.
    pub fn check_together(layouts: &[Self]) -> Result<(), Invalid> {
        let of_layouts = |rule: String| Err(Invalid::new("layouts", rule));
        if layouts.is_empty() || layouts.len() > MOST_TOGETHER {
            return of_layouts(format!("must be 1 to {MOST_TOGETHER}, not {}", layouts.len()));
        }
        for (index, layout) in layouts.iter().enumerate() {
            // A template may make the same keys as another that looks different.
            let same_keys = |other: &&Self| {
                ["", "v"].iter().any(|version| {
                    let probe = Parts { name: "n", addr: "a:1", version, weight: 1, metadata: &[] };
                    layout.0.key.write(&probe) == other.0.key.write(&probe)
                })
            };
            if let Some(other) = layouts[..index].iter().find(same_keys) {
                return of_layouts(format!("must not write the same keys, as {other} and {layout} do"));
            }
        }
        Ok(())
    }

    /// Whether `node` can be published under this layout at all: not where another registry keeps its keys.
    pub fn accept(&self, node: &ServerNode) -> Result<(), Invalid> {
        let key = self.key(node);
        let name = self.0.source.name;
        match FOREIGN_PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix)) {
            Some((prefix, owner)) if name != *owner && name != CUSTOM => {
                let rule = format!("must not be {:?}: {prefix} is where {owner} keeps its keys", node.name.as_str());
                Err(Invalid::new("name", rule))
            }
            _ => Ok(()),
        }
    }

    /// Whether `node` can be published under this layout beside others that are read here: not among their keys.
    pub(crate) fn accept_beside<'a>(
        &self,
        node: &ServerNode,
        others: impl IntoIterator<Item = &'a Self>,
    ) -> Result<(), Invalid> {
        let (key, root) = (self.key(node), self.root());
        let is_inside = |other: &&Self| {
            let theirs = other.root();
            theirs.len() > root.len() && theirs.starts_with(&root) && key.starts_with(&theirs)
        };
        match others.into_iter().find(is_inside) {
            Some(other) => {
                let rule =
                    format!("must not be {:?}: {} is where {other} keeps its keys", node.name.as_str(), other.root());
                Err(Invalid::new("name", rule))
            }
            None => Ok(()),
        }
    }

    /// The key of `node`.
    pub fn key(&self, node: &ServerNode) -> String {
        self.0.key.write(&parts(node, Weight::MIN))
    }

    /// What every key of `name` begins with, and of `version` unless that is empty or has no place in the key.
    pub fn prefix(&self, name: &ServiceName, version: &Version) -> String {
        self.0.key.prefix(Some(name.as_str()), version.as_str())
    }

    /// What every key of this layout begins with; may be empty.
    pub fn root(&self) -> String {
        self.0.key.prefix(None, "")
    }

    /// The value of `node` at `weight`.
    pub fn value(&self, node: &ServerNode, weight: Weight) -> Vec<u8> {
        self.0.value.write(&parts(node, weight))
    }

    /// Whether the other reads what this one does, as one with another scheme.
    pub(crate) fn reads_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.0.source, &other.0.source);
        let same = (ours.name, &ours.prefix, &ours.key) == (theirs.name, &theirs.prefix, &theirs.key);
        same && (ours.name != CUSTOM || ours.value == theirs.value)
    }

    /// Whether the metadata of a node is published with it.
    pub fn carries_metadata(&self) -> bool {
        self.0.value.has_metadata()
    }

    /// The node that stands in `key` and `value`, or why they are not one.
    ///
    /// A weight beyond 1 to 100, which other registries may have, becomes the nearest one within.
    pub fn parse(&self, key: &[u8], value: &[u8]) -> Result<ServerNode, Invalid> {
        self.read(key, value).map(|(node, _)| node)
    }

    /// The same, and whether the node says that it speaks TLS.
    pub(crate) fn read(&self, key: &[u8], value: &[u8]) -> Result<(ServerNode, bool), Invalid> {
        self.read_next(&mut Last::default(), key, value)
    }

    /// The same of one after the other, of which those that are like the last one are known sooner.
    pub(crate) fn read_next(&self, last: &mut Last, key: &[u8], value: &[u8]) -> Result<(ServerNode, bool), Invalid> {
        let key = std::str::from_utf8(key).map_err(|_| Invalid::new("key", "must be UTF-8"))?;
        if let Some(like) = last.read(key, value) {
            return like;
        }
        let read = self.read_alone(key, value)?;
        last.keep((&self.0.key, &self.0.value), (key, value), &read);
        Ok(read)
    }

    fn read_alone(&self, key: &str, value: &[u8]) -> Result<(ServerNode, bool), Invalid> {
        let mut found = Found::default();
        self.0.value.read(value, &mut found)?;
        if !self.0.key.read(key, &mut found) {
            let fits = self.0.key.read(key, &mut Found::default());
            let rule = if fits { "must agree with its value" } else { "must have the form of its layout" };
            return Err(Invalid::new("key", rule));
        }
        let weight = found.weight.map(|text| {
            let number: f64 = text.parse().map_err(|_| Invalid::new("weight", "must be a number"))?;
            Ok(Weight::clamped(number))
        });
        let is_secured = found.scheme.is_some_and(|scheme| ["https", "grpcs"].contains(&scheme.as_str()));
        let node = ServerNode {
            name: ServiceName::new(found.name.unwrap_or_default())?,
            addr: Addr::new(found.addr.unwrap_or_default())?,
            version: Version::new(found.version.unwrap_or_default())?,
            weight: weight.transpose()?,
            metadata: Metadata::try_from(found.metadata)?,
        };
        Ok((node, is_secured))
    }
}

fn parts(node: &ServerNode, weight: Weight) -> Parts<'_> {
    Parts {
        name: node.name.as_str(),
        addr: node.addr.as_str(),
        version: node.version.as_str(),
        weight: weight.value(),
        metadata: node.metadata.pairs(),
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::built_in(&BUILT_IN[0])
    }
}

impl Layout {
    fn built_in([name, prefix, scheme, key, value]: &Row) -> Self {
        let source = Source {
            name,
            prefix: (*prefix).to_owned(),
            scheme: (*scheme).to_owned(),
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        Self::new(source).expect("the table is tested")
    }
}

impl FromStr for Layout {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let row = BUILT_IN.iter().find(|[name, ..]| *name == text);
        row.map(Self::built_in)
            .ok_or_else(|| Invalid::new("layout", format!("must be one of: {}; not {text:?}", Self::NAMES.join(", "))))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.source.name)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({}, {:?}, {:?})", self.0.source.name, self.0.source.key, self.0.source.value)
    }
}

#[cfg(test)]
mod tests;
