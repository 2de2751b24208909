//! The language of layouts: texts, queries and JSON with placeholders, written byte-exact and read back.

mod field;
mod go_json;
mod json;
mod json_value;
pub(crate) mod memo;
mod query;
mod text;

pub(crate) use self::{
    field::{Field, Found, Parts},
    text::Text,
};
use crate::{
    layout::template::{json::Node, query::Query},
    node::Invalid,
};

/// The shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// A JSON object, as Go writes it.
    Json(Node),
    /// A query as in a URL.
    Query(Query),
    /// Plain text.
    Text(Text),
}

impl Shape {
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        // A template may stand in a block of YAML, with a line break at its ends.
        if source.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with(['"', '}'])) {
            let node: Node = serde_json::from_str(source).map_err(|error| format!("must be JSON: {error}"))?;
            return node.checked().map(Self::Json);
        }
        match source.strip_prefix('?') {
            Some(query) => Query::parse(query).map(Self::Query),
            None => Text::parse(source).map(Self::Text),
        }
    }

    pub(crate) fn has(&self, field: Field) -> bool {
        match self {
            Self::Json(node) => node.has(field),
            Self::Query(query) => query.has(field),
            Self::Text(text) => text.has(field),
        }
    }

    /// How an address is written that has a place of its own in the value, and no other one.
    pub(crate) fn quoted(&self, addr: &str) -> Option<String> {
        match self {
            Self::Json(node) if node.addrs() == Some(1) => Some(format!("\"{addr}\"")),
            Self::Text(text) if text.is_addr() => Some(addr.to_owned()),
            _ => None,
        }
    }

    pub(crate) fn has_metadata(&self) -> bool {
        match self {
            Self::Json(node) => node.has_metadata(),
            Self::Query(query) => query.has_metadata(),
            Self::Text(_) => false,
        }
    }

    pub(crate) fn write(&self, parts: &Parts<'_>) -> Vec<u8> {
        match self {
            Self::Json(node) => {
                let mut json = String::new();
                node.write(parts, &mut json);
                json.into_bytes()
            }
            Self::Query(query) => query.write(parts).into_bytes(),
            Self::Text(text) => text.write(parts).into_bytes(),
        }
    }

    /// Reads a value back, or says what is wrong with it.
    pub(crate) fn read(&self, value: &[u8], found: &mut Found) -> Result<(), Invalid> {
        let invalid = |rule: String| Invalid::new("value", rule);
        let utf8 = |value| std::str::from_utf8(value).map_err(|_| invalid("must be UTF-8".to_owned()));
        match self {
            Self::Json(node) => {
                let json = serde_json::from_slice(value).map_err(|error| invalid(format!("must be JSON: {error}")))?;
                node.read("", &json, found)
            }
            Self::Query(query) => query.read(utf8(value)?, found).map_err(invalid),
            Self::Text(text) if text.read(utf8(value)?, found) => Ok(()),
            Self::Text(_) => Err(invalid("must fit its layout".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Field, Parts, Shape};

    fn parts<'a>(version: &'a str, metadata: &'a [(String, String)]) -> Parts<'a> {
        Parts { name: "user", addr: "h:1", version, weight: 7, metadata }
    }

    fn written(template: &str, metadata: &[(&str, &str)]) -> String {
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        String::from_utf8(Shape::parse(template).unwrap().write(&parts("", &metadata))).unwrap()
    }

    #[test]
    fn what_is_fixed_in_a_template_is_escaped_too() {
        assert_eq!(
            written(r#"{"<k>":"a&b","n":null,"l":[],"f":1.5}"#, &[]),
            r#"{"\u003ck\u003e":"a\u0026b","n":null,"l":[],"f":1.5}"#
        );
    }

    #[test]
    fn no_metadata_is_an_empty_object_or_null() {
        assert_eq!(written(r#"{"m":"{metadata}","n":"{metadata|null}"}"#, &[]), r#"{"m":{},"n":null}"#);
        let both = written(r#"{"m":"{metadata}","n":"{metadata|null}"}"#, &[("z", "<"), ("a", "\u{2028}")]);
        assert_eq!(both, r#"{"m":{"a":"\u2028","z":"\u003c"},"n":{"a":"\u2028","z":"\u003c"}}"#);
    }

    #[test]
    fn metadata_is_merged_in_order_and_never_over_what_the_template_has() {
        let metadata = [("b", "2"), ("weight", "99"), ("z", "3")];
        assert_eq!(written(r#"{"weight":"{weight}","...":1}"#, &metadata), r#"{"b":"2","weight":"7","z":"3"}"#);
        assert_eq!(written("?weight={weight}&...", &metadata), "b=2&weight=7&z=3");
    }

    #[test]
    fn a_template_knows_its_fields() {
        let shape = Shape::parse(r#"{"a":[{"w":"{weight:number}"}],"m":"{metadata}"}"#).unwrap();
        assert!(shape.has(Field::Weight) && !shape.has(Field::Addr) && shape.has_metadata());
        assert!(!Shape::parse("{addr}").unwrap().has_metadata());
        assert!(Shape::parse("?...&w={weight}").unwrap().has_metadata());
        let deep = format!("{{\"a\":{}", "[".repeat(10_000));
        assert!(Shape::parse(&deep).unwrap_err().starts_with("must be JSON: recursion limit"));
    }
}
