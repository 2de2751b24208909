//! A JSON template: parsed with its keys in order, written as Go writes it, and read back.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::{
    layout::template::{
        field::{Captures, Field, FieldValues},
        go_json::{merge_sorted, write_object, write_string},
        json_value::{JsonValue, sorted},
        text::TextTemplate,
    },
    node::Invalid,
};

/// Key in a template that merges the metadata into its object or query.
pub(super) const MERGE_KEY: &str = "...";

/// A JSON template, or a value inside one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum JsonTemplate {
    /// Serialised JSON, written as it is and skipped when read.
    Literal(String),
    /// A string.
    Text(TextTemplate),
    /// `"{weight:number}"`.
    WeightNumber,
    /// `"{metadata}"`: an object; `"{metadata|null}"`: null instead of an empty object.
    Metadata {
        or_null: bool,
    },
    /// Members in the order of the template; with the key `...`, sorted together with the metadata, as Go sorts a map.
    Object {
        members: Vec<(String, Self)>,
        merges_metadata: bool,
    },
    List(Vec<Self>),
    /// An error in the template, reported by [`JsonTemplate::parse`].
    Invalid(String),
}

impl JsonTemplate {
    pub(super) fn parse(source: &str) -> Result<Self, String> {
        let template: Self = serde_json::from_str(source).map_err(|error| format!("must be JSON: {error}"))?;
        template.checked()
    }

    /// Returns the first error inside the template, if there is one.
    fn checked(self) -> Result<Self, String> {
        match self {
            Self::Invalid(error) => Err(error),
            Self::Object { members, merges_metadata } => {
                let members = members.into_iter().map(|(key, member)| Ok((key, member.checked()?)));
                Ok(Self::Object { members: members.collect::<Result<_, String>>()?, merges_metadata })
            }
            Self::List(items) => Ok(Self::List(items.into_iter().map(Self::checked).collect::<Result<_, _>>()?)),
            template => Ok(template),
        }
    }

    pub(super) fn has(&self, field: Field) -> bool {
        match self {
            Self::Text(text) => text.has(field),
            Self::WeightNumber => field == Field::Weight,
            Self::Object { members, .. } => members.iter().any(|(_, member)| member.has(field)),
            Self::List(items) => items.iter().any(|item| item.has(field)),
            Self::Literal(_) | Self::Metadata { .. } | Self::Invalid(_) => false,
        }
    }

    pub(super) fn has_metadata(&self) -> bool {
        match self {
            Self::Metadata { .. } => true,
            Self::Object { members, merges_metadata } => {
                *merges_metadata || members.iter().any(|(_, member)| member.has_metadata())
            }
            Self::List(items) => items.iter().any(Self::has_metadata),
            Self::Literal(_) | Self::Text(_) | Self::WeightNumber | Self::Invalid(_) => false,
        }
    }

    /// Number of strings that are the address and nothing else; `None` if the address occurs beside other text, or may be
    /// missing.
    pub(super) fn addr_count(&self) -> Option<usize> {
        match self {
            Self::Text(text) if text.is_addr() => Some(1),
            Self::Object { merges_metadata: true, .. } if self.has(Field::Addr) => None,
            Self::Object { members, .. } => members.iter().map(|(_, member)| member.addr_count()).sum(),
            // Several templates may read the same item.
            Self::List(items) if items.len() == 1 => items[0].addr_count(),
            Self::List(_) => None,
            template => (!template.has(Field::Addr)).then_some(0),
        }
    }

    pub(super) fn write(&self, values: &FieldValues<'_>, json: &mut String) {
        match self {
            Self::Literal(text) => json.push_str(text),
            Self::Text(text) => write_string(&text.write(values), json),
            Self::WeightNumber => json.push_str(&values.weight.to_string()),
            Self::Metadata { or_null: true } if values.metadata.is_empty() => json.push_str("null"),
            Self::Metadata { .. } => {
                let pairs = merge_sorted(Vec::new(), values.metadata.iter());
                write_object(&pairs, json, |text, json| write_string(text, json));
            }
            Self::Object { members, merges_metadata: false } => {
                write_object(members, json, |member, json| member.write(values, json));
            }
            Self::Object { members, merges_metadata: true } => {
                let own = members.iter().map(|(key, member)| {
                    let mut json = String::new();
                    member.write(values, &mut json);
                    (key.clone(), json)
                });
                let metadata = values.metadata.iter().map(|(key, text)| {
                    let mut json = String::new();
                    write_string(text, &mut json);
                    (key.clone(), json)
                });
                let pairs = merge_sorted(own.collect(), metadata.collect::<Vec<_>>().iter());
                write_object(&pairs, json, |text, json| json.push_str(text));
            }
            Self::List(items) => {
                json.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    item.write(values, json);
                }
                json.push(']');
            }
            Self::Invalid(_) => {}
        }
    }

    /// Captures fields from `json`, which is the member `key` of the value, or all of it if `key` is empty.
    pub(super) fn read(&self, key: &str, json: &JsonValue<'_>, captures: &mut Captures) -> Result<(), Invalid> {
        let place = if key.is_empty() { "it" } else { key };
        let invalid = |rule: String| Err(Invalid::new("value", rule));
        // A wrong weight is reported as such: other registries may still see a node.
        let wrong_type = |rule: &str| match self.has(Field::Weight) {
            true => Err(Invalid::new("weight", rule)),
            false => invalid(format!("{rule} as {place}")),
        };
        match (self, json) {
            (Self::Literal(_), _) | (Self::Metadata { .. }, JsonValue::Other(Value::Null)) => Ok(()),
            (Self::Text(template), JsonValue::String(text)) if template.read(text, captures) => Ok(()),
            (Self::Text(_), JsonValue::String(text)) => invalid(format!("must have another {place} than {text:?}")),
            (Self::Text(_), _) => wrong_type("must be a string in JSON"),
            (Self::WeightNumber, JsonValue::Other(Value::Number(number)))
                if captures.capture_if(Field::Weight, &number.to_string(), |_| true) =>
            {
                Ok(())
            }
            (Self::WeightNumber, _) => wrong_type("must be a number in JSON"),
            (Self::Metadata { .. }, JsonValue::Object(pairs)) => {
                captures.metadata.extend(sorted(pairs).map(|(key, value)| (key.to_owned(), value.to_text())));
                Ok(())
            }
            (Self::Object { members, merges_metadata }, JsonValue::Object(pairs)) => {
                for (key, member) in members {
                    match pairs.iter().rfind(|(name, _)| name == key) {
                        Some((_, json)) => member.read(key, json, captures)?,
                        // A member that stands among metadata may be missing.
                        None if *merges_metadata || !member.is_required() => {}
                        None => return invalid(format!("must have {key}")),
                    }
                }
                if *merges_metadata {
                    let metadata = sorted(pairs).filter(|(key, _)| !members.iter().any(|(own, _)| own == key));
                    captures.metadata.extend(metadata.map(|(key, value)| (key.to_owned(), value.to_text())));
                }
                Ok(())
            }
            (Self::Object { merges_metadata: true, .. }, JsonValue::Other(Value::Null)) => Ok(()),
            // Go writes a nil slice as null.
            (Self::List(templates), JsonValue::Other(Value::Null)) if templates.is_empty() => Ok(()),
            (Self::List(templates), JsonValue::List(items)) => templates.iter().try_for_each(|template| {
                let fits = items.iter().filter_map(|item| {
                    let mut attempt = captures.clone();
                    template.read(key, item, &mut attempt).is_ok().then_some(attempt)
                });
                // The first item with the closest scheme.
                match fits.min_by_key(|attempt| attempt.scheme_match) {
                    Some(attempt) => {
                        *captures = attempt;
                        Ok(())
                    }
                    None => invalid(format!("must have an item of the layout's form in {place}")),
                }
            }),
            (Self::Metadata { .. } | Self::Object { .. }, _) => invalid(format!("must have an object as {place}")),
            (Self::List(_), _) => invalid(format!("must have a list as {place}")),
            (Self::Invalid(error), _) => invalid(error.clone()),
        }
    }

    /// Returns true if a value without this member is not a node. Many services write no weight, and some no version.
    fn is_required(&self) -> bool {
        self.has(Field::Name) || self.has(Field::Addr)
    }
}

impl<'de> Deserialize<'de> for JsonTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TemplateVisitor)
    }
}

/// Visitor that keeps the order of keys and rejects repeated ones.
struct TemplateVisitor;

impl<'de> Visitor<'de> for TemplateVisitor {
    type Value = JsonTemplate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<JsonTemplate, E> {
        Ok(JsonTemplate::Literal("null".to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<JsonTemplate, E> {
        Ok(JsonTemplate::Literal(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<JsonTemplate, E> {
        Ok(JsonTemplate::Literal(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<JsonTemplate, E> {
        Ok(JsonTemplate::Literal(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<JsonTemplate, E> {
        Ok(JsonTemplate::Literal(value.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<JsonTemplate, E> {
        Ok(match text {
            "{weight:number}" => JsonTemplate::WeightNumber,
            "{metadata}" => JsonTemplate::Metadata { or_null: false },
            "{metadata|null}" => JsonTemplate::Metadata { or_null: true },
            text => match TextTemplate::parse(text) {
                Ok(template) if template.has_placeholders() => JsonTemplate::Text(template),
                Ok(_) => {
                    let mut json = String::new();
                    write_string(text, &mut json);
                    JsonTemplate::Literal(json)
                }
                Err(error) => JsonTemplate::Invalid(error),
            },
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonTemplate, A::Error> {
        let mut templates = Vec::new();
        while let Some(template) = items.next_element()? {
            templates.push(template);
        }
        Ok(JsonTemplate::List(templates))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<JsonTemplate, A::Error> {
        let mut members: Vec<(String, JsonTemplate)> = Vec::new();
        let mut merges_metadata = false;
        while let Some((key, member)) = entries.next_entry::<String, JsonTemplate>()? {
            if key == MERGE_KEY {
                merges_metadata = true;
            } else if members.iter().any(|(taken, _)| *taken == key) {
                return Ok(JsonTemplate::Invalid(format!("has the key {key:?} twice")));
            } else {
                members.push((key, member));
            }
        }
        Ok(JsonTemplate::Object { members, merges_metadata })
    }
}
