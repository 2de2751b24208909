//! Rules of keys: how the value of a key is read, and how the reference page and the JSON Schema describe it.

use std::{collections::BTreeMap, marker::PhantomData, path::PathBuf};

use serde_json::{Value, json};

use crate::config::{
    mistake::{Mistake, is_word, meant},
    place::{Place, Source},
    tree::{Content, Key as WrittenKey, Node, Scalar},
};

/// The rule of a value.
pub(crate) trait Rule {
    /// Meaning of the value to the host.
    type Value;

    /// A description for people and for editors.
    fn shape() -> Shape;

    /// Reads a value. Reports what is wrong, and is `None` then.
    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value>;

    /// The value of an absent key, where the rule has one.
    fn absent() -> Option<Self::Value> {
        None
    }
}

/// Description of a value.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    /// One scalar, such as a duration.
    Scalar(Form),
    /// A map with known keys.
    Table(Table),
    /// A list of values of one rule.
    List(Box<Shape>),
    /// A map of text with keys of the user's choice.
    Pairs,
    /// A word that stands for a map, or that map.
    WordOrTable(Form, Table),
    /// One of several shapes, with the words that the reference page has for all of them.
    Either(&'static str, Vec<Shape>),
}

/// Description of a scalar.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// Its kind, such as `duration`.
    pub(crate) kind: &'static str,
    /// The values that are permitted.
    pub(crate) range: String,
    pub(crate) example: &'static str,
    /// The JSON Schema of a value without variables.
    pub(crate) schema: Value,
}

/// Description of a map with known keys.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) about: String,
    pub(crate) keys: Vec<Key>,
}

/// Description of a key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Effect of the key.
    pub(crate) effect: String,
    pub(crate) shape: Shape,
    pub(crate) absent: Absent,
    /// An example for this key, where that of its form does not fit.
    pub(crate) example: Option<&'static str>,
}

/// Rule for an absent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// Nothing: the key has to be there.
    Required,
    /// This value, as it would be written.
    Text(&'static str),
    /// No value; the words say what this means.
    Unset(&'static str),
}

impl Table {
    pub(crate) fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Makes every key optional, here and in the tables below.
    pub(crate) fn require_nothing(&mut self) {
        for key in &mut self.keys {
            if key.absent == Absent::Required {
                key.absent = Absent::Unset("none");
            }
            if let Shape::Table(table) = &mut key.shape {
                table.require_nothing();
            }
        }
    }
}

impl Shape {
    /// The table that it is, or may be, or a list of.
    pub(crate) fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) | Self::WordOrTable(_, table) => Some(table),
            Self::List(item) => item.table(),
            _ => None,
        }
    }
}

/// Reading of one configuration: its sources, and the mistakes that were found.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) sources: Vec<Source>,
    pub(crate) mistakes: Vec<Mistake>,
    /// Keys around the value that is read.
    path: Vec<String>,
    /// Required keys may be absent, as under `defaults`.
    pub(crate) is_partial: bool,
    /// Components that cannot be read are mistakes. A host reports and retries the service of such a component alone.
    pub(crate) reads_components: bool,
}

impl Reading {
    /// Reports a mistake; the sentence begins with the key, unless it does already.
    pub(crate) fn wrong(&mut self, place: Place, message: impl Into<String>) {
        self.report(place, message.into(), false);
    }

    fn report(&mut self, place: Place, message: String, is_secret: bool) {
        let message = match self.path.last() {
            Some(key) if !message.starts_with(&format!("{key} ")) => format!("{key}: {message}"),
            _ => message,
        };
        self.mistakes.push(Mistake { place: Some(place), message, is_secret });
    }

    /// Keeps a value out of every excerpt.
    pub(crate) fn hide(&mut self, place: Place) {
        if let Some(source) = self.sources.get_mut(place.source) {
            source.secrets.push(place);
        }
    }

    /// Reads something under a key.
    pub(crate) fn under<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        let value = read(self);
        self.path.pop();
        value
    }

    /// The folder of relative paths at that place.
    pub(crate) fn folder(&self, place: Place) -> PathBuf {
        self.sources.get(place.source).map(|source| source.folder.clone()).unwrap_or_default()
    }

    /// A place as `FILE:LINE`.
    pub(crate) fn place(&self, place: Place) -> String {
        self.sources.get(place.source).map(|source| format!("{}:{}", source.name, place.start.0)).unwrap_or_default()
    }

    /// A place in words, as seen from another one.
    pub(crate) fn line(&self, place: Place, from: Place) -> String {
        let line = place.start.0;
        match self.sources.get(place.source) {
            Some(source) if place.source != from.source => format!("{}:{line}", source.name),
            _ => format!("line {line}"),
        }
    }

    /// The scalar at a node; `what` says what it must be.
    pub(crate) fn scalar<'a>(&mut self, node: &'a Node, what: &str, is_secret: bool) -> Option<&'a Scalar> {
        match &node.content {
            Content::Scalar(scalar) if !node.is_null() => Some(scalar),
            _ => {
                self.report(node.place, format!("must be {what}"), is_secret);
                None
            }
        }
    }

    /// Reports what a scalar's rule says. A value that variables brought is not repeated.
    pub(crate) fn refuse(&mut self, node: &Node, scalar: &Scalar, rule: &str, is_secret: bool) {
        let Some(written) = &scalar.written else {
            return self.report(node.place, rule.to_owned(), is_secret);
        };
        let rule = rule.split(", not \"").next().unwrap_or_default();
        let written = if is_secret { "its variable" } else { written };
        match scalar.text.is_empty() || !rule.contains(&scalar.text) {
            true => self.report(node.place, format!("{rule}, which {written} is not"), is_secret),
            false => self.report(node.place, format!("what {written} stands for is not permitted here"), is_secret),
        }
    }
}

/// The entries of a map while its keys are read.
pub(crate) struct Entries<'a> {
    place: Place,
    entries: &'a [(WrittenKey, Node)],
    /// Known keys that unknown ones most likely mean.
    meant: Vec<&'static str>,
    /// True where each key is known.
    pub(crate) are_known: bool,
}

impl<'a> Entries<'a> {
    /// The entries of a table. Unknown keys are mistakes.
    pub(crate) fn of(
        node: &'a Node,
        table: impl FnOnce() -> Table,
        names: &[&str],
        reading: &mut Reading,
    ) -> Option<Self> {
        let Content::Map(entries) = &node.content else {
            reading.wrong(
                node.place,
                format!("must be a map with keys such as {}", names[..names.len().min(3)].join(", ")),
            );
            return None;
        };
        let mut unknown = entries.iter().filter(|(key, _)| !names.contains(&&*key.text)).peekable();
        let (mut suggested, are_known) = (Vec::new(), unknown.peek().is_none());
        if !are_known {
            let table = table();
            for (key, value) in unknown {
                let (message, is_secret) = misplaced(key, value, &table);
                reading.mistakes.push(Mistake { place: Some(key.place), message, is_secret });
                suggested.extend(meant(&key.text, table.keys.iter().map(|key| key.name)));
            }
        }
        Some(Self { place: node.place, entries, meant: suggested, are_known })
    }

    /// Reads one key.
    pub(crate) fn key<R: Rule>(&self, name: &str, absent: Absent, reading: &mut Reading) -> Option<R::Value> {
        let written = self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
        if let Some(node) = written.filter(|node| !node.is_null()) {
            return reading.under(name, |reading| R::read(node, reading));
        }
        match absent {
            Absent::Text(text) => R::read(&Node::plain(text), &mut Reading::default()),
            Absent::Unset(_) => R::absent(),
            // One sentence is enough for a misspelt key.
            Absent::Required if reading.is_partial || self.meant.contains(&name) => None,
            Absent::Required => {
                let place = self.entries.first().map_or(self.place, |(key, _)| key.place);
                let place = if place.source == self.place.source { place } else { self.place };
                let message = format!("the key {name:?} is missing");
                reading.mistakes.push(Mistake { place: Some(place), message, is_secret: false });
                None
            }
        }
    }
}

/// Message about an unknown key; true if that may be a value without its key.
fn misplaced(key: &WrittenKey, value: &Node, table: &Table) -> (String, bool) {
    let names = || table.keys.iter().map(|key| key.name);
    if !is_word(&key.text) || (!key.has_colon && value.is_null()) {
        // A space is missing behind a key, or a key before its value.
        return (format!("this is no key; known here: {}", names().collect::<Vec<_>>().join(", ")), true);
    }
    let unknown = format!("unknown key {:?}", key.text);
    let deeper =
        table.keys.iter().find(|outer| matches!(&outer.shape, Shape::Table(table) if table.key(&key.text).is_some()));
    let nearly = || {
        table.keys.iter().find_map(|outer| match &outer.shape {
            Shape::Table(inner) => Some((outer.name, meant(&key.text, inner.keys.iter().map(|key| key.name))?)),
            _ => None,
        })
    };
    let message = match (deeper, meant(&key.text, names()), nearly()) {
        (Some(outer), ..) => format!("{unknown}; it stands under {}", outer.name),
        (None, Some(name), _) => format!("{unknown}; did you mean {name:?}?"),
        (None, None, Some((outer, name))) => format!("{unknown}; did you mean {name:?} under {outer}?"),
        (None, None, None) => format!("{unknown}; known here: {}", names().collect::<Vec<_>>().join(", ")),
    };
    (message, false)
}

impl<R: Rule> Rule for Option<R> {
    type Value = Option<R::Value>;

    fn shape() -> Shape {
        R::shape()
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        R::read(node, reading).map(Some)
    }

    fn absent() -> Option<Self::Value> {
        Some(None)
    }
}

impl<R: Rule> Rule for Vec<R> {
    type Value = Vec<R::Value>;

    fn shape() -> Shape {
        Shape::List(Box::new(R::shape()))
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        // All of them are read, so that each mistake is found.
        let read: Vec<_> = items::<R>(node, reading)?.iter().map(|item| R::read(item, reading)).collect();
        read.into_iter().collect()
    }

    fn absent() -> Option<Self::Value> {
        Some(Vec::new())
    }
}

/// A list whose items are read one by one, and good ones among bad ones are kept.
pub(crate) struct Each<R>(PhantomData<R>);

impl<R: Rule> Rule for Each<R> {
    type Value = Vec<Option<R::Value>>;

    fn shape() -> Shape {
        Vec::<R>::shape()
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        Some(items::<R>(node, reading)?.iter().map(|item| R::read(item, reading)).collect())
    }

    fn absent() -> Option<Self::Value> {
        Some(Vec::new())
    }
}

/// A list of values, or the only one of them.
pub(crate) struct OneOrMany<R>(PhantomData<R>);

impl<R: Rule> Rule for OneOrMany<R> {
    type Value = Vec<R::Value>;

    fn shape() -> Shape {
        Shape::Either("text, or a list of it", vec![R::shape(), Vec::<R>::shape()])
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        match node.content {
            Content::List(_) => Vec::<R>::read(node, reading),
            _ => R::read(node, reading).map(|value| vec![value]),
        }
    }

    fn absent() -> Option<Self::Value> {
        Some(Vec::new())
    }
}

/// A part of a file that is left out where it is wrong, so that the other parts are looked at.
pub(crate) struct Part<R>(PhantomData<R>);

impl<R: Rule> Rule for Part<R> {
    type Value = Option<R::Value>;

    fn shape() -> Shape {
        R::shape()
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        Some(R::read(node, reading))
    }

    fn absent() -> Option<Self::Value> {
        Some(R::absent())
    }
}

/// The items of a list that `R` reads. Free text in its place may be a secret.
fn items<'a, R: Rule>(node: &'a Node, reading: &mut Reading) -> Option<&'a [Node]> {
    match &node.content {
        Content::List(items) => Some(items),
        _ => {
            let is_secret = matches!(R::shape(), Shape::Scalar(form) if form.kind == TEXT_KIND);
            reading.report(node.place, "must be a list such as [a, b]".to_owned(), is_secret);
            None
        }
    }
}

const TEXT_KIND: &str = "text";

/// Text of any kind; numbers and truth values are text as they are written.
pub(crate) enum Text {}

/// A map of text with keys of the user's choice.
pub(crate) enum Pairs {}

/// `true` or `false`.
pub(crate) enum Switch {}

/// JSON types that YAML takes text for that is not quoted.
fn text_types() -> Value {
    json!(["string", "number", "boolean"])
}

impl Rule for Text {
    type Value = String;

    fn shape() -> Shape {
        let schema = json!({ "type": text_types() });
        Shape::Scalar(Form { kind: TEXT_KIND, range: "any".into(), example: "text", schema })
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<String> {
        // It may be an argument that is a token.
        reading.scalar(node, "text", true).map(|scalar| scalar.text.clone())
    }
}

/// Reads a map of text with keys of the user's choice. Nothing shows values that may be secrets.
pub(crate) fn pairs(node: &Node, reading: &mut Reading, is_secret: bool) -> Option<BTreeMap<String, String>> {
    let Content::Map(entries) = &node.content else {
        reading.report(node.place, "must be a map of text such as { key: value }".to_owned(), is_secret);
        return None;
    };
    let read: Vec<_> = entries
        .iter()
        .map(|(key, value)| {
            // A word without a colon may be a value that has lost its key.
            let name = if key.has_colon && is_word(&key.text) { key.text.clone() } else { "a value".to_owned() };
            if is_secret {
                reading.hide(value.place);
            }
            let scalar = reading.under(&name, |reading| {
                reading.scalar(value, "text, in quotes if it looks like something else", is_secret)
            });
            scalar.map(|scalar| (key.text.clone(), scalar.text.clone()))
        })
        .collect();
    read.into_iter().collect()
}

impl Rule for Pairs {
    type Value = BTreeMap<String, String>;

    fn shape() -> Shape {
        Shape::Pairs
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<Self::Value> {
        pairs(node, reading, false)
    }

    fn absent() -> Option<Self::Value> {
        Some(BTreeMap::new())
    }
}

impl Rule for Switch {
    type Value = bool;

    fn shape() -> Shape {
        let schema = json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": r"\$" }, { "enum": ["true", "false", "yes", "no", "on", "off"] }] });
        Shape::Scalar(Form { kind: "switch", range: "`true`, `false`".into(), example: "true", schema })
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<bool> {
        let scalar = reading.scalar(node, "true or false", true)?;
        match scalar.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => {
                reading.refuse(node, scalar, "must be true or false", true);
                None
            }
        }
    }
}

/// Declares a map of the configuration: each key once, with its effect, its rule and its default. From this come the
/// struct, how it is read, and its description.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        $visibility:vis struct $name:ident {
            $($(#[doc = $effect:literal])* $key:ident: $rule:ty = $default:expr $(, example $example:literal)?;)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone)]
        $visibility struct $name {
            $($(#[doc = $effect])* pub(crate) $key: <$rule as $crate::config::rule::Rule>::Value,)*
        }

        impl $name {
            fn table() -> $crate::config::rule::Table {
                let keys = vec![$($crate::config::rule::Key {
                    name: stringify!($key),
                    effect: concat!($($effect),*).trim().to_owned(),
                    shape: <$rule as $crate::config::rule::Rule>::shape(),
                    absent: $default,
                    example: [$($example)?].first().copied(),
                }),*];
                $crate::config::rule::Table { about: concat!($($about),*).trim().to_owned(), keys }
            }
        }

        impl $crate::config::rule::Rule for $name {
            type Value = Self;

            fn shape() -> $crate::config::rule::Shape {
                $crate::config::rule::Shape::Table(Self::table())
            }

            fn read(node: &$crate::config::tree::Node, reading: &mut $crate::config::rule::Reading) -> Option<Self> {
                let entries = $crate::config::rule::Entries::of(node, Self::table, &[$(stringify!($key)),*], reading)?;
                $(let $key = entries.key::<$rule>(stringify!($key), $default, reading);)*
                Some(Self { $($key: $key?,)* })
            }

            fn absent() -> Option<Self> {
                Self::read(&$crate::config::tree::Node::default(), &mut $crate::config::rule::Reading::default())
            }
        }
    };
}
pub(crate) use keys;

/// Implements [`Rule`] for scalars that are parsed by `FromStr`.
macro_rules! scalars {
    ($($type:ty => $value:ty, |$parsed:ident| $meaning:expr, secret if $hides:expr, $kind:literal, $range:expr, $example:literal, $schema:expr;)*) => {
        $(impl $crate::config::rule::Rule for $type {
            type Value = $value;

            fn shape() -> $crate::config::rule::Shape {
                $crate::config::rule::Shape::Scalar($crate::config::rule::Form {
                    kind: $kind,
                    range: $range.into(),
                    example: $example,
                    schema: $schema,
                })
            }

            fn read(node: &$crate::config::tree::Node, reading: &mut $crate::config::rule::Reading) -> Option<$value> {
                let hides: fn(&str) -> bool = $hides;
                let scalar = reading.scalar(node, concat!("a single ", $kind), true)?;
                let is_secret = hides(&scalar.text);
                if is_secret {
                    reading.hide(node.place);
                }
                match scalar.text.parse::<$type>() {
                    Ok($parsed) => Some($meaning),
                    Err(error) => {
                        reading.refuse(node, scalar, &error.to_string(), is_secret);
                        None
                    }
                }
            }
        })*
    };
}
pub(crate) use scalars;
