//! JSON as it is read from etcd, whose texts stay where they were read.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A value that is JSON, whose texts are where they were read, as far as they stand there as they are.
pub(super) enum Json<'a> {
    Text(Cow<'a, str>),
    /// In the order in which they stand; of a key that stands twice the last counts, as in Go.
    Object(Vec<(Cow<'a, str>, Self)>),
    List(Vec<Self>),
    /// None of those.
    Other(Value),
}

impl Json<'_> {
    /// A value of foreign metadata as text.
    pub(super) fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone().into_owned(),
            json => json.to_value().to_string(),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => Value::String(text.clone().into_owned()),
            Self::Object(pairs) => {
                Value::Object(pairs.iter().map(|(key, json)| (key.clone().into_owned(), json.to_value())).collect())
            }
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Other(value) => value.clone(),
        }
    }
}

pub(super) fn sorted<'a>(pairs: &'a [(Cow<'_, str>, Json<'_>)]) -> impl Iterator<Item = (&'a str, &'a Json<'a>)> {
    pairs.iter().map(|(key, json)| (&**key, json)).collect::<BTreeMap<_, _>>().into_iter()
}

/// A text that stays where it is, if it can.
#[derive(serde::Deserialize)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadingValue)
    }
}

struct ReadingValue;

impl<'de> Visitor<'de> for ReadingValue {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Other(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json<'de>, A::Error> {
        let mut pairs = Vec::new();
        while let Some((Borrowed(key), json)) = entries.next_entry()? {
            pairs.push((key, json));
        }
        Ok(Json::Object(pairs))
    }
}
