//! Keys of a configuration as they are written, flat: what one reading of a file says that the one before did not.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::config::tree::{Content, Node, Scalar};

/// Keys of a service whose values may be secrets.
const SECRET: [&str; 3] = ["args", "config", "env"];
/// Keys of the whole file whose values are secrets.
const SECRET_OF_HOST: [&str; 2] = ["etcd.password", "artifacts.registries"];

/// The value of each key, by its path such as `limits.memory`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written(BTreeMap<String, Value>);

#[derive(Clone)]
struct Value {
    text: String,
    /// The text for people; `None` for what may be a secret.
    shown: Option<String>,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown.as_deref().unwrap_or("not shown"))
    }
}

/// A key with another value than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyChange {
    /// Path of the key.
    pub(crate) key: String,
    /// The value before; null if the key was absent, or if its value is not shown.
    pub(crate) from: Option<String>,
    /// The value now; null if the key is absent, or if its value is not shown.
    pub(crate) to: Option<String>,
    /// False for a value that may be a secret, or that stems from a variable.
    pub(crate) is_shown: bool,
}

impl Written {
    /// The keys of a service.
    pub(crate) fn of_service(node: &Node) -> Self {
        let mut written = Self::default();
        written.add("", node, &|path| SECRET.iter().any(|key| is_below(path, key)));
        written
    }

    /// The keys of a whole file, without those of its services.
    pub(crate) fn of_host(root: &Node) -> Self {
        let mut written = Self::default();
        if let Content::Map(entries) = &root.content {
            let own = entries.iter().filter(|(key, _)| !matches!(&*key.text, "services" | "defaults" | "include"));
            for (key, node) in own {
                written.add(&key.text, node, &|path| SECRET_OF_HOST.contains(&path));
            }
        }
        written
    }

    /// Returns true if the key of a path is written.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Moves the keys below these paths out.
    pub(crate) fn split_off(&mut self, paths: &[&str]) -> Self {
        let is_moved = |key: &str| paths.iter().any(|path| is_below(key, path));
        let (moved, kept) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| is_moved(key));
        self.0 = kept;
        Self(moved)
    }

    /// Adds the keys of another one, but for those below a path.
    pub(crate) fn extend_without(&mut self, other: &Self, without: Option<&str>) {
        self.extend(other, |key| !without.is_some_and(|without| is_below(key, without)));
    }

    /// Adds the keys of another one below a path.
    pub(crate) fn extend_below(&mut self, other: &Self, path: &str) {
        self.extend(other, |key| is_below(key, path));
    }

    fn extend(&mut self, other: &Self, is_added: impl Fn(&str) -> bool) {
        let added = other.0.iter().filter(|(key, _)| is_added(key));
        self.0.extend(added.map(|(key, value)| (key.clone(), value.clone())));
    }

    /// The keys with other values in the next reading.
    pub(crate) fn changes(&self, next: &Self) -> Vec<KeyChange> {
        let keys = self.0.keys().chain(next.0.keys().filter(|key| !self.0.contains_key(*key)));
        let mut changes: Vec<_> = keys
            .filter_map(|key| {
                let (before, after) = (self.0.get(key), next.0.get(key));
                (before.map(|value| &value.text) != after.map(|value| &value.text)).then(|| change(key, before, after))
            })
            .collect();
        changes.sort_by(|one, other| one.key.cmp(&other.key));
        changes
    }

    fn add(&mut self, path: &str, node: &Node, is_secret: &dyn Fn(&str) -> bool) {
        match &node.content {
            _ if node.is_null() => {}
            Content::Map(entries) => {
                for (key, node) in entries {
                    let path = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                    self.add(&path, node, is_secret);
                }
            }
            Content::Scalar(_) | Content::List(_) => {
                let shown = text(node, true).filter(|_| !is_secret(path));
                let text = text(node, false).unwrap_or_default();
                self.0.insert(path.to_owned(), Value { text, shown });
            }
        }
    }
}

fn change(key: &str, before: Option<&Value>, after: Option<&Value>) -> KeyChange {
    let is_shown = [before, after].into_iter().flatten().all(|value| value.shown.is_some());
    let shown = |value: Option<&Value>| value.filter(|_| is_shown).and_then(|value| value.shown.clone());
    KeyChange { key: key.to_owned(), from: shown(before), to: shown(after), is_shown }
}

/// Detects a path that is another one, or leads further.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A value as text on one line, whether it is shown or not; `None` for the text of a variable where it is shown.
fn text(node: &Node, is_shown: bool) -> Option<String> {
    let all = |nodes: &mut dyn Iterator<Item = (Option<&str>, &Node)>| {
        let pieces = nodes.map(|(key, node)| {
            let text = text(node, is_shown)?;
            Some(key.map_or_else(|| text.clone(), |key| format!("{key}: {text}")))
        });
        pieces.collect::<Option<Vec<_>>>().map(|pieces| pieces.join(", "))
    };
    match &node.content {
        Content::Scalar(Scalar { written: Some(_), .. }) if is_shown => None,
        Content::Scalar(Scalar { text, .. }) => Some(text.clone()),
        Content::List(items) => all(&mut items.iter().map(|item| (None, item))).map(|inner| format!("[{inner}]")),
        Content::Map(entries) => {
            all(&mut entries.iter().map(|(key, node)| (Some(&*key.text), node))).map(|inner| format!("{{ {inner} }}"))
        }
    }
}
