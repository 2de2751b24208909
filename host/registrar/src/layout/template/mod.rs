//! The template language of layouts: texts, queries and JSON with placeholders, written byte-exact and read back.

mod field;
mod go_json;
mod json;
mod json_value;
pub(crate) mod memo;
mod query;
mod text;

pub(crate) use self::{
    field::{Captures, Field, FieldValues},
    text::TextTemplate,
};
use crate::{
    layout::template::{json::JsonTemplate, query::QueryTemplate},
    node::Invalid,
};

/// Template of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ValueTemplate {
    Json(JsonTemplate),
    Query(QueryTemplate),
    Text(TextTemplate),
}

impl ValueTemplate {
    /// Parses a template: JSON if it begins with an object, a query if it begins with `?`, else text.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        // A template from a YAML block may have line breaks at its ends.
        if source.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with(['"', '}'])) {
            return JsonTemplate::parse(source).map(Self::Json);
        }
        match source.strip_prefix('?') {
            Some(query) => QueryTemplate::parse(query).map(Self::Query),
            None => TextTemplate::parse(source).map(Self::Text),
        }
    }

    pub(crate) fn has(&self, field: Field) -> bool {
        match self {
            Self::Json(json) => json.has(field),
            Self::Query(query) => query.has(field),
            Self::Text(text) => text.has(field),
        }
    }

    pub(crate) fn has_metadata(&self) -> bool {
        match self {
            Self::Json(json) => json.has_metadata(),
            Self::Query(query) => query.has_metadata(),
            Self::Text(_) => false,
        }
    }

    pub(crate) fn write(&self, values: &FieldValues<'_>) -> Vec<u8> {
        match self {
            Self::Json(template) => {
                let mut json = String::new();
                template.write(values, &mut json);
                json.into_bytes()
            }
            Self::Query(query) => query.write(values).into_bytes(),
            Self::Text(text) => text.write(values).into_bytes(),
        }
    }

    /// Captures fields from a value.
    pub(crate) fn read(&self, value: &[u8], captures: &mut Captures) -> Result<(), Invalid> {
        let invalid = |rule: String| Invalid::new("value", rule);
        let utf8 = |value| std::str::from_utf8(value).map_err(|_| invalid("must be UTF-8".to_owned()));
        match self {
            Self::Json(template) => {
                let json = serde_json::from_slice(value).map_err(|error| invalid(format!("must be JSON: {error}")))?;
                template.read("", &json, captures)
            }
            Self::Query(query) => query.read(utf8(value)?, captures).map_err(invalid),
            Self::Text(text) if text.read(utf8(value)?, captures) => Ok(()),
            Self::Text(_) => Err(invalid("must fit its layout".to_owned())),
        }
    }

    /// An address as this template writes it, if it stands alone in one place of the value and in no other.
    pub(crate) fn quote_sole_addr(&self, addr: &str) -> Option<String> {
        match self {
            Self::Json(json) if json.addr_count() == Some(1) => Some(format!("\"{addr}\"")),
            Self::Text(text) if text.is_addr() => Some(addr.to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Captures, Field, FieldValues, TextTemplate, ValueTemplate};

    fn written(template: &str, metadata: &[(&str, &str)]) -> String {
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let values = FieldValues { name: "user", addr: "h:1", version: "", weight: 7, metadata: &metadata };
        String::from_utf8(ValueTemplate::parse(template).unwrap().write(&values)).unwrap()
    }

    #[test]
    fn literals_in_a_template_are_escaped_too() {
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

    /// Found by fuzzing: it took hours, on the thread that renews leases.
    #[test]
    fn a_template_that_can_be_read_in_very_many_ways_is_given_up() {
        let template = TextTemplate::parse("{name}{version}{id}{label}").unwrap();
        assert!(template.read(&"x".repeat(250), &mut Captures::default()));
        let template = TextTemplate::parse(&("{label}".repeat(32) + "!")).unwrap();
        assert!(!template.read(&"x".repeat(250), &mut Captures::default()));
        let value =
            ValueTemplate::parse(&format!(r#"{{"a":"{}!","b":"{{addr}}"}}"#, "{id}{label}".repeat(16))).unwrap();
        let json = format!(r#"{{"a":"{}","b":"h:1"}}"#, "x".repeat(250));
        assert!(value.read(json.as_bytes(), &mut Captures::default()).is_err());
    }

    #[test]
    fn a_template_knows_its_fields() {
        let template = ValueTemplate::parse(r#"{"a":[{"w":"{weight:number}"}],"m":"{metadata}"}"#).unwrap();
        assert!(template.has(Field::Weight) && !template.has(Field::Addr) && template.has_metadata());
        assert!(!ValueTemplate::parse("{addr}").unwrap().has_metadata());
        assert!(ValueTemplate::parse("?...&w={weight}").unwrap().has_metadata());
        let deep = format!("{{\"a\":{}", "[".repeat(10_000));
        assert!(ValueTemplate::parse(&deep).unwrap_err().starts_with("must be JSON: recursion limit"));
    }
}
