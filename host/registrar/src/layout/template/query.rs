//! A query template: URL-encoded pairs, sorted by key as Go sorts them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::layout::template::{
    field::{Captures, Field, FieldValues},
    go_json::merge_sorted,
    json::MERGE_KEY,
    text::TextTemplate,
};

/// Complement of the characters that Go's `url.QueryEscape` leaves as they are; a space becomes `+`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// A query, in a template `?key={field}&...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct QueryTemplate {
    pairs: Vec<(String, TextTemplate)>,
    merges_metadata: bool,
}

impl QueryTemplate {
    /// Parses a template without its leading `?`.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let (mut pairs, mut merges_metadata) = (Vec::new(), false);
        for pair in query.split('&') {
            match pair.split_once('=') {
                None if pair == MERGE_KEY => merges_metadata = true,
                Some((key, value)) => pairs.push((key.to_owned(), TextTemplate::parse(value)?)),
                None => return Err(format!("has the part {pair:?}, which is not key=value")),
            }
        }
        Ok(Self { pairs, merges_metadata })
    }

    pub(super) fn has(&self, field: Field) -> bool {
        self.pairs.iter().any(|(_, text)| text.has(field))
    }

    pub(super) fn has_metadata(&self) -> bool {
        self.merges_metadata
    }

    pub(super) fn write(&self, values: &FieldValues<'_>) -> String {
        let own = self.pairs.iter().map(|(key, text)| (key.clone(), text.write(values)));
        let all = merge_sorted(own.collect(), values.metadata.iter().filter(|_| self.merges_metadata));
        let encode = |text: &str| utf8_percent_encode(text, ESCAPED).to_string().replace(' ', "+");
        let all: Vec<_> = all.iter().map(|(key, text)| format!("{}={}", encode(key), encode(text))).collect();
        all.join("&")
    }

    /// Captures fields from a query; an error is the broken rule.
    pub(super) fn read(&self, query: &str, captures: &mut Captures) -> Result<(), String> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, text) = (decode(key), decode(text));
            match self.pairs.iter().find(|(known, _)| *known == key) {
                Some((_, template)) if !template.read(&text, captures) => {
                    return Err(format!("must have another {key} than {text:?}"));
                }
                None if self.merges_metadata => captures.metadata.push((key, text)),
                _ => {}
            }
        }
        Ok(())
    }
}
