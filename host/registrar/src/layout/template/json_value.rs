//! A JSON value whose strings borrow from the bytes that were read. serde_json's own copies each string, and a view of many nodes
//! parses as many values.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A JSON value. A string without escapes borrows from the input.
pub(super) enum JsonValue<'a> {
    String(Cow<'a, str>),
    /// Pairs in the order of the input; the last one of a repeated key counts, as in Go.
    Object(Vec<(Cow<'a, str>, Self)>),
    List(Vec<Self>),
    /// Null, a boolean or a number.
    Other(Value),
}

impl JsonValue<'_> {
    /// The text of a metadata value: a string as it is, anything else as JSON.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::String(text) => text.clone().into_owned(),
            value => value.to_value().to_string(),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::String(text) => Value::String(text.clone().into_owned()),
            Self::Object(pairs) => {
                Value::Object(pairs.iter().map(|(key, value)| (key.clone().into_owned(), value.to_value())).collect())
            }
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Other(value) => value.clone(),
        }
    }
}

/// Pairs of an object sorted by key, the last one of a repeated key.
pub(super) fn sorted<'a>(
    pairs: &'a [(Cow<'_, str>, JsonValue<'_>)],
) -> impl Iterator<Item = (&'a str, &'a JsonValue<'a>)> {
    pairs.iter().map(|(key, value)| (&**key, value)).collect::<BTreeMap<_, _>>().into_iter()
}

/// A key that borrows from the input if it has no escapes.
#[derive(serde::Deserialize)]
struct BorrowedKey<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for JsonValue<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = JsonValue<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Other(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Other(value.into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::String(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::String(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonValue<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(JsonValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<JsonValue<'de>, A::Error> {
        let mut pairs = Vec::new();
        while let Some((BorrowedKey(key), value)) = entries.next_entry()? {
            pairs.push((key, value));
        }
        Ok(JsonValue::Object(pairs))
    }
}
