//! A JSON template: parsed with its keys in order, written as Go writes it, and read back.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::{
    layout::template::{
        field::{Field, Found, Parts},
        go_json::{go_string, go_string_of, merged, write_object},
        json_value::{Json, sorted},
        text::Text,
    },
    node::Invalid,
};

/// The key of an object, or of a query, into which the metadata is merged.
pub(super) const SPREAD: &str = "...";

/// A part of a JSON template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// Written as it stands, and not looked at when read.
    Fixed(String),
    /// A string.
    Text(Text),
    /// `"{weight:number}"`.
    Number,
    /// `"{metadata}"`: an object; `"{metadata|null}"`: null when there is none.
    Metadata {
        or_null: bool,
    },
    /// Its keys in this order, or, with the key `...`, sorted together with the metadata, as Go sorts a map.
    Object {
        fields: Vec<(String, Self)>,
        spread: bool,
    },
    List(Vec<Self>),
    /// Where a string was no good template.
    Wrong(String),
}

impl Node {
    pub(super) fn checked(self) -> Result<Self, String> {
        match self {
            Self::Wrong(why) => Err(why),
            Self::Object { fields, spread } => {
                let fields = fields.into_iter().map(|(key, node)| Ok((key, node.checked()?)));
                Ok(Self::Object { fields: fields.collect::<Result<_, String>>()?, spread })
            }
            Self::List(nodes) => Ok(Self::List(nodes.into_iter().map(Self::checked).collect::<Result<_, _>>()?)),
            node => Ok(node),
        }
    }

    pub(super) fn has(&self, field: Field) -> bool {
        match self {
            Self::Text(text) => text.has(field),
            Self::Number => field == Field::Weight,
            Self::Object { fields, .. } => fields.iter().any(|(_, node)| node.has(field)),
            Self::List(nodes) => nodes.iter().any(|node| node.has(field)),
            Self::Fixed(_) | Self::Metadata { .. } | Self::Wrong(_) => false,
        }
    }

    /// How many strings are the address; `None` where one has it beside other things, or may be missing.
    pub(super) fn addrs(&self) -> Option<usize> {
        match self {
            Self::Text(text) if text.is_addr() => Some(1),
            Self::Object { spread: true, .. } if self.has(Field::Addr) => None,
            Self::Object { fields, .. } => fields.iter().map(|(_, node)| node.addrs()).sum(),
            // Several may read the same item.
            Self::List(nodes) if nodes.len() == 1 => nodes[0].addrs(),
            Self::List(_) => None,
            node => (!node.has(Field::Addr)).then_some(0),
        }
    }

    pub(super) fn has_metadata(&self) -> bool {
        match self {
            Self::Metadata { .. } => true,
            Self::Object { fields, spread } => *spread || fields.iter().any(|(_, node)| node.has_metadata()),
            Self::List(nodes) => nodes.iter().any(Self::has_metadata),
            Self::Fixed(_) | Self::Text(_) | Self::Number | Self::Wrong(_) => false,
        }
    }

    pub(super) fn write(&self, parts: &Parts<'_>, json: &mut String) {
        match self {
            Self::Fixed(text) => json.push_str(text),
            Self::Text(text) => go_string(&text.write(parts), json),
            Self::Number => json.push_str(&parts.weight.to_string()),
            Self::Metadata { or_null: true } if parts.metadata.is_empty() => json.push_str("null"),
            Self::Metadata { .. } => write_object(&merged(Vec::new(), parts.metadata.iter()), json, go_string_of),
            Self::Object { fields, spread: false } => {
                write_object(fields, json, |node, json| node.write(parts, json));
            }
            Self::Object { fields, spread: true } => {
                let own = fields.iter().map(|(key, node)| {
                    let mut json = String::new();
                    node.write(parts, &mut json);
                    (key.clone(), json)
                });
                let quoted: Vec<_> = parts
                    .metadata
                    .iter()
                    .map(|(key, text)| {
                        let mut json = String::new();
                        go_string(text, &mut json);
                        (key.clone(), json)
                    })
                    .collect();
                write_object(&merged(own.collect(), quoted.iter()), json, |text, json| json.push_str(text));
            }
            Self::List(nodes) => {
                json.push('[');
                for (index, node) in nodes.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    node.write(parts, json);
                }
                json.push(']');
            }
            Self::Wrong(_) => {}
        }
    }

    /// Takes what it knows out of `json`; `at` says where in the value that stands.
    pub(super) fn read(&self, at: &str, json: &Json<'_>, found: &mut Found) -> Result<(), Invalid> {
        let place = if at.is_empty() { "it" } else { at };
        // The weight is told apart: where only that is wrong, others may see a node.
        let wrong = |rule: String| Err(Invalid::new("value", rule));
        let wrong_type = |rule: &str| match self.has(Field::Weight) {
            true => Err(Invalid::new("weight", rule)),
            false => wrong(format!("{rule} as {place}")),
        };
        match (self, json) {
            (Self::Fixed(_), _) | (Self::Metadata { .. }, Json::Other(Value::Null)) => Ok(()),
            (Self::Text(template), Json::Text(text)) if template.read(text, found) => Ok(()),
            (Self::Text(_), Json::Text(text)) => wrong(format!("must have another {place} than {text:?}")),
            (Self::Text(_), _) => wrong_type("must be a string in JSON"),
            (Self::Number, Json::Other(Value::Number(number)))
                if found.bind_if(Field::Weight, &number.to_string(), |_| true) =>
            {
                Ok(())
            }
            (Self::Number, _) => wrong_type("must be a number in JSON"),
            (Self::Metadata { .. }, Json::Object(pairs)) => {
                found.metadata.extend(sorted(pairs).map(|(key, value)| (key.to_owned(), value.plain())));
                Ok(())
            }
            (Self::Object { fields, spread }, Json::Object(pairs)) => {
                for (key, node) in fields {
                    match pairs.iter().rfind(|(is, _)| is == key) {
                        Some((_, json)) => node.read(key, json, found)?,
                        // What may stand among metadata may be missing there.
                        None if *spread || !node.is_needed() => {}
                        None => return wrong(format!("must have {key}")),
                    }
                }
                if *spread {
                    let rest = sorted(pairs).filter(|(key, _)| !fields.iter().any(|(own, _)| own == key));
                    found.metadata.extend(rest.map(|(key, value)| (key.to_owned(), value.plain())));
                }
                Ok(())
            }
            (Self::Object { spread: true, .. }, Json::Other(Value::Null)) => Ok(()),
            // Go writes an empty list so, where nobody has made it.
            (Self::List(nodes), Json::Other(Value::Null)) if nodes.is_empty() => Ok(()),
            (Self::List(nodes), Json::List(items)) => nodes.iter().try_for_each(|node| {
                let fits = items.iter().filter_map(|item| {
                    let mut attempt = found.clone();
                    node.read(at, item, &mut attempt).is_ok().then_some(attempt)
                });
                // The first of those whose scheme is the nearest.
                match fits.min_by_key(|attempt| attempt.strangeness) {
                    Some(attempt) => {
                        *found = attempt;
                        Ok(())
                    }
                    None => wrong(format!("must have an item of the layout's form in {place}")),
                }
            }),
            (Self::Metadata { .. } | Self::Object { .. }, _) => wrong(format!("must have an object as {place}")),
            (Self::List(_), _) => wrong(format!("must have a list as {place}")),
            (Self::Wrong(why), _) => wrong(why.clone()),
        }
    }

    /// Whether a value without it is no node. Many write no weight, and none of them the version they do not have.
    fn is_needed(&self) -> bool {
        self.has(Field::Name) || self.has(Field::Addr)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading)
    }
}

/// Reads a JSON template with its keys in order, and a key that stands twice as a mistake.
struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Fixed("null".to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Fixed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Fixed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Fixed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Fixed(value.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(match text {
            "{weight:number}" => Node::Number,
            "{metadata}" => Node::Metadata { or_null: false },
            "{metadata|null}" => Node::Metadata { or_null: true },
            text => match Text::parse(text) {
                Ok(template) if template.has_fields() => Node::Text(template),
                Ok(_) => {
                    let mut json = String::new();
                    go_string(text, &mut json);
                    Node::Fixed(json)
                }
                Err(why) => Node::Wrong(why),
            },
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        let mut spread = false;
        while let Some((key, node)) = entries.next_entry::<String, Node>()? {
            if key == SPREAD {
                spread = true;
            } else if fields.iter().any(|(there, _)| *there == key) {
                return Ok(Node::Wrong(format!("has the key {key:?} twice")));
            } else {
                fields.push((key, node));
            }
        }
        Ok(Node::Object { fields, spread })
    }
}
