//! A layout: how a node becomes a key and a value in etcd, byte-exact, and how it is read back.

mod builtin;
pub(crate) mod template;

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    layout::{
        builtin::{BUILT_IN, Convention, FOREIGN_PREFIXES},
        template::{Captures, Field, FieldValues, TextTemplate, ValueTemplate, memo::ParseMemo},
    },
    node::{Addr, Invalid, Metadata, ServerNode, ServiceName, Version, Weight},
};

/// Largest number of layouts under which one node is published.
const MAX_LAYOUTS: usize = 8;
/// Name of a layout that is not built in.
const CUSTOM: &str = "custom";

/// A convention for keys and values. Cloning is cheap.
///
/// The built-in ones have a name: `"kratos".parse()`. [`Layout::NAMES`] lists them; the default is `seed`, the layout of
/// the Go services that Leasehold grew up with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Layout(Arc<Compiled>);

#[derive(PartialEq, Eq, Hash)]
struct Compiled {
    definition: Definition,
    key: TextTemplate,
    value: ValueTemplate,
}

/// Source of a layout. `{prefix}` and `{scheme}` in its templates stand for the fields of that name, `{prefix/}` for a prefix
/// with a `/` after it unless it is empty. A value is read with any scheme.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Definition {
    name: &'static str,
    prefix: String,
    scheme: String,
    key: String,
    value: String,
}

impl Default for Layout {
    fn default() -> Self {
        Self::built_in(&BUILT_IN[0])
    }
}

impl FromStr for Layout {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let convention = BUILT_IN.iter().find(|convention| convention.name == text);
        convention
            .map(Self::built_in)
            .ok_or_else(|| Invalid::new("layout", format!("must be one of: {}; not {text:?}", Self::NAMES.join(", "))))
    }
}

impl Layout {
    /// Names of the built-in layouts.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; BUILT_IN.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = BUILT_IN[index].name;
            index += 1;
        }
        names
    };

    fn built_in(convention: &Convention) -> Self {
        let Convention { name, prefix, scheme, key, value } = *convention;
        let definition = Definition {
            name,
            prefix: prefix.to_owned(),
            scheme: scheme.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        Self::compile(definition).expect("a test compiles every built-in layout")
    }

    /// Creates a custom layout from templates for key and value.
    ///
    /// Placeholders are `{prefix}`, `{name}`, `{addr}`, `{version}`, `{weight}`, `{id}` (a number that stays the same when
    /// an instance restarts) and `{label}` (written as the address, read as any text). `{version|latest}` has a word for
    /// an empty version, and `{version/}` is followed by a `/` unless the version is empty.
    ///
    /// A value is JSON, a query (`?weight={weight}&...`) or any other text. In JSON, `"{weight:number}"` is a number,
    /// `"{metadata}"` an object, `"{metadata|null}"` the same with null for no metadata, and the key `"..."` merges the
    /// metadata into its object.
    ///
    /// Fails for a template that cannot be parsed, and for a key that does not distinguish services and instances.
    pub fn custom(key: &str, value: &str) -> Result<Self, Invalid> {
        let empty = String::new;
        let definition =
            Definition { name: CUSTOM, prefix: empty(), scheme: empty(), key: key.to_owned(), value: value.to_owned() };
        Self::compile(definition)
    }

    /// Replaces the prefix; a `/` at its end is dropped.
    ///
    /// Fails for a prefix that is longer than 256 bytes, or contains anything but visible ASCII characters.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, Invalid> {
        let is_legal =
            prefix.len() <= 256 && prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}".contains(&byte));
        if !is_legal {
            return Err(Invalid::new("prefix", "must be at most 256 visible ASCII characters without braces"));
        }
        Self::compile(Definition { prefix: prefix.trim_end_matches('/').to_owned(), ..self.0.definition.clone() })
    }

    /// Replaces the scheme of published addresses, such as `http` or `grpc`.
    ///
    /// Fails for a layout that publishes no scheme, and for text that is not a scheme (RFC 3986, section 3.1).
    pub fn with_scheme(&self, scheme: &str) -> Result<Self, Invalid> {
        if !self.0.definition.value.contains("{scheme}") {
            return Err(Invalid::new("scheme", format!("has no place in the layout {self}")));
        }
        let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.chars().all(is_legal) || scheme.len() > 32 {
            return Err(Invalid::new("scheme", format!("must be a scheme such as http or grpc, not {scheme:?}")));
        }
        Self::compile(Definition { scheme: scheme.to_owned(), ..self.0.definition.clone() })
    }

    /// Marks published addresses as TLS: `http` becomes `https`, and `grpc` becomes `grpcs`. Any other scheme, which the
    /// user has chosen, stays, and so does a layout that publishes none.
    #[must_use]
    pub fn with_tls(&self) -> Self {
        let scheme = match self.0.definition.scheme.as_str() {
            "http" => "https",
            "grpc" => "grpcs",
            _ => return self.clone(),
        };
        let value = self.0.definition.value.replace(r#""insecure":true"#, r#""insecure":false"#);
        Self::compile(Definition { scheme: scheme.to_owned(), value, ..self.0.definition.clone() })
            .expect("a scheme changes nothing else")
    }

    fn compile(definition: Definition) -> Result<Self, Invalid> {
        let slashed = if definition.prefix.is_empty() { String::new() } else { format!("{}/", definition.prefix) };
        let fill = |template: &str, scheme: &str| {
            let filled = template.replace("{prefix/}", &slashed).replace("{prefix}", &definition.prefix);
            filled.replace("{scheme}", scheme)
        };
        let key = fill(&definition.key, &definition.scheme);
        let key = TextTemplate::parse(&key).map_err(|rule| Invalid::new("key", rule))?;
        let any_scheme = format!("{{scheme|{}}}", definition.scheme);
        let value = fill(&definition.value, &any_scheme);
        let value = ValueTemplate::parse(&value).map_err(|rule| Invalid::new("value", rule))?;
        let invalid_key = |rule: &str| Err(Invalid::new("key", rule));
        if !definition.key.contains("{name}/") {
            return invalid_key("must have {name}/, which distinguishes services");
        }
        if ![Field::Addr, Field::Id, Field::Label].into_iter().any(|field| key.has(field)) {
            return invalid_key("must have {addr}, {id} or {label}, which distinguish instances");
        }
        if key.has(Field::Weight) {
            return invalid_key("must not have {weight}: a key does not change");
        }
        if !key.has(Field::Addr) && !value.has(Field::Addr) {
            return Err(Invalid::new("value", "must have {addr}, since the key has none"));
        }
        Ok(Self(Arc::new(Compiled { definition, key, value })))
    }

    /// Checks that one node can be published under all of these layouts: 1 to 8, no two of which write the same keys.
    pub fn check_together(layouts: &[Self]) -> Result<(), Invalid> {
        let invalid = |rule: String| Err(Invalid::new("layouts", rule));
        if layouts.is_empty() || layouts.len() > MAX_LAYOUTS {
            return invalid(format!("must be 1 to {MAX_LAYOUTS}, not {}", layouts.len()));
        }
        for (index, layout) in layouts.iter().enumerate() {
            // Templates that look different may write the same keys.
            let has_same_keys = |other: &&Self| {
                ["", "v"].iter().any(|version| {
                    let probe = FieldValues { name: "n", addr: "a:1", version, weight: 1, metadata: &[] };
                    layout.0.key.write(&probe) == other.0.key.write(&probe)
                })
            };
            if let Some(other) = layouts[..index].iter().find(has_same_keys) {
                return invalid(format!("must not write the same keys, as {other} and {layout} do"));
            }
        }
        Ok(())
    }

    /// Checks that a node can be registered under these layouts by a registrar that has no others.
    pub fn accept_under(layouts: &[Self], node: &ServerNode) -> Result<(), Invalid> {
        Self::check_together(layouts)?;
        layouts.iter().try_for_each(|layout| layout.accept(node).and_then(|()| layout.accept_beside(node, layouts)))
    }

    /// Checks that the key of `node` does not lie where another registry keeps its keys.
    pub fn accept(&self, node: &ServerNode) -> Result<(), Invalid> {
        let key = self.key(node);
        let name = self.0.definition.name;
        match FOREIGN_PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix)) {
            Some((prefix, owner)) if name != *owner && name != CUSTOM => {
                let rule = format!("must not be {:?}: {prefix} is where {owner} keeps its keys", node.name.as_str());
                Err(Invalid::new("name", rule))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the key of `node` does not lie among those of another layout that this registrar reads.
    pub(crate) fn accept_beside<'a>(
        &self,
        node: &ServerNode,
        others: impl IntoIterator<Item = &'a Self>,
    ) -> Result<(), Invalid> {
        let (key, root) = (self.key(node), self.root());
        let contains_key = |other: &&Self| {
            let theirs = other.root();
            theirs.len() > root.len() && theirs.starts_with(&root) && key.starts_with(&theirs)
        };
        match others.into_iter().find(contains_key) {
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
        self.0.key.write(&field_values(node, Weight::MIN))
    }

    /// The beginning shared by all keys of `name`, and of `version` unless that is empty or not part of the key.
    pub fn prefix(&self, name: &ServiceName, version: &Version) -> String {
        self.0.key.prefix(Some(name.as_str()), version.as_str())
    }

    /// The beginning shared by all keys of this layout; may be empty.
    pub fn root(&self) -> String {
        self.0.key.prefix(None, "")
    }

    /// The value of `node` at `weight`.
    pub fn value(&self, node: &ServerNode, weight: Weight) -> Vec<u8> {
        self.0.value.write(&field_values(node, weight))
    }

    /// Returns true if a value includes the metadata of its node.
    pub fn carries_metadata(&self) -> bool {
        self.0.value.has_metadata()
    }

    /// Returns true if both layouts read the same nodes, as two that differ in the scheme do.
    pub(crate) fn reads_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.0.definition, &other.0.definition);
        let is_same = (ours.name, &ours.prefix, &ours.key) == (theirs.name, &theirs.prefix, &theirs.key);
        is_same && (ours.name != CUSTOM || ours.value == theirs.value)
    }

    /// Parses the node of `key` and `value`.
    ///
    /// A weight outside of 1 to 100, as other registries may have, becomes the nearest one within.
    pub fn parse(&self, key: &[u8], value: &[u8]) -> Result<ServerNode, Invalid> {
        self.read(key, value).map(|(node, _)| node)
    }

    /// Parses the node of `key` and `value`, and whether it uses TLS.
    pub(crate) fn read(&self, key: &[u8], value: &[u8]) -> Result<(ServerNode, bool), Invalid> {
        self.read_with(&mut ParseMemo::default(), key, value)
    }

    /// Parses one of many nodes under the same prefix, with a memo of those before it. The result is the same as without.
    pub(crate) fn read_with(
        &self,
        memo: &mut ParseMemo,
        key: &[u8],
        value: &[u8],
    ) -> Result<(ServerNode, bool), Invalid> {
        let key = std::str::from_utf8(key).map_err(|_| Invalid::new("key", "must be UTF-8"))?;
        if let Some(hit) = memo.lookup(key, value) {
            return hit;
        }
        let parsed = self.read_without_memo(key, value)?;
        memo.store((&self.0.key, &self.0.value), (key, value), &parsed);
        Ok(parsed)
    }

    fn read_without_memo(&self, key: &str, value: &[u8]) -> Result<(ServerNode, bool), Invalid> {
        let mut captures = Captures::default();
        self.0.value.read(value, &mut captures)?;
        if !self.0.key.read(key, &mut captures) {
            let fits = self.0.key.read(key, &mut Captures::default());
            let rule = if fits { "must agree with its value" } else { "must have the form of its layout" };
            return Err(Invalid::new("key", rule));
        }
        let weight = captures.weight.map(|text| {
            let number: f64 = text.parse().map_err(|_| Invalid::new("weight", "must be a number"))?;
            Ok(Weight::clamped(number))
        });
        let uses_tls = captures.scheme.is_some_and(|scheme| ["https", "grpcs"].contains(&scheme.as_str()));
        let node = ServerNode {
            name: ServiceName::new(captures.name.unwrap_or_default())?,
            addr: Addr::new(captures.addr.unwrap_or_default())?,
            version: Version::new(captures.version.unwrap_or_default())?,
            weight: weight.transpose()?,
            metadata: Metadata::try_from(captures.metadata)?,
        };
        Ok((node, uses_tls))
    }
}

fn field_values(node: &ServerNode, weight: Weight) -> FieldValues<'_> {
    FieldValues {
        name: node.name.as_str(),
        addr: node.addr.as_str(),
        version: node.version.as_str(),
        weight: weight.value(),
        metadata: node.metadata.pairs(),
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.definition.name)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Definition { name, key, value, .. } = &self.0.definition;
        write!(f, "Layout({name}, {key:?}, {value:?})")
    }
}

#[cfg(test)]
mod tests;
