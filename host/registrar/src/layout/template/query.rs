//! A query template, as in a URL: sorted as Go sorts it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::layout::template::{
    field::{Field, Found, Parts},
    go_json::merged,
    json::SPREAD,
    text::Text,
};

/// What Go's `url.QueryEscape` leaves as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// Written as `?key={field}&...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Query {
    pairs: Vec<(String, Text)>,
    spread: bool,
}

impl Query {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let (mut pairs, mut spread) = (Vec::new(), false);
        for pair in query.split('&') {
            match pair.split_once('=') {
                None if pair == SPREAD => spread = true,
                Some((key, value)) => pairs.push((key.to_owned(), Text::parse(value)?)),
                None => return Err(format!("has the part {pair:?}, which is not key=value")),
            }
        }
        Ok(Self { pairs, spread })
    }

    pub(super) fn has(&self, field: Field) -> bool {
        self.pairs.iter().any(|(_, text)| text.has(field))
    }

    pub(super) fn has_metadata(&self) -> bool {
        self.spread
    }

    pub(super) fn write(&self, parts: &Parts<'_>) -> String {
        let own = self.pairs.iter().map(|(key, text)| (key.clone(), text.write(parts)));
        let all = merged(own.collect(), parts.metadata.iter().filter(|_| self.spread));
        let encode = |text: &str| utf8_percent_encode(text, QUERY).to_string().replace(' ', "+");
        let all: Vec<_> = all.iter().map(|(key, text)| format!("{}={}", encode(key), encode(text))).collect();
        all.join("&")
    }

    /// Reads a query back, or says what is wrong with it.
    pub(super) fn read(&self, query: &str, found: &mut Found) -> Result<(), String> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, text) = (decode(key), decode(text));
            match self.pairs.iter().find(|(known, _)| *known == key) {
                Some((_, template)) if !template.read(&text, found) => {
                    return Err(format!("must have another {key} than {text:?}"));
                }
                None if self.spread => found.metadata.push((key, text)),
                _ => {}
            }
        }
        Ok(())
    }
}
