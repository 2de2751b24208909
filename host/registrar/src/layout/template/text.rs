//! A text template: parsed, written, and read back.
//!
//! A placeholder is `{field}`, `{field|default}` for a field that may be empty, or `{field/}` for a field that is followed
//! by a `/` when present. The fields are name, addr, version, weight, id and label, and within values metadata.

use crate::layout::template::field::{Captures, FIELDS, Field, FieldValues, SchemeMatch};

/// Longest text that one placeholder reads, in bytes.
const MAX_RUN: usize = 253;
/// Largest number of steps in which a text is matched with a template. Where placeholders stand side by side there are more
/// ways to read a text than can be tried; an unambiguous template takes a few hundred steps.
const MAX_STEPS: u32 = 10_000;
/// Known placeholders, for the error about an unknown one.
const KNOWN: &str = "name, addr, version, weight, id, label, prefix and scheme, and in JSON, as a whole value, \
                     weight:number, metadata and metadata|null";

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TextTemplate(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    Literal(String),
    Placeholder { field: Field, default: String, slash: bool },
}

/// The varying end of a key whose beginning is shared by all instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The address.
    Addr,
    /// Any text that one placeholder reads.
    Any,
}

impl TextTemplate {
    /// Parses a template. A brace that is not followed by a lowercase letter is literal text.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find('{') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if !after.starts_with(|c: char| c.is_ascii_lowercase()) {
                literal.push('{');
                rest = after;
                continue;
            }
            let Some((inside, after)) = after.split_once('}') else {
                return Err(format!("has a placeholder that is not closed: {{{after}"));
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::placeholder(inside)?);
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    pub(super) fn has_placeholders(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Placeholder { .. }))
    }

    pub(crate) fn has(&self, wanted: Field) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Placeholder { field, .. } if *field == wanted))
    }

    pub(crate) fn write(&self, values: &FieldValues<'_>) -> String {
        let mut written = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => written.push_str(text),
                Piece::Placeholder { field, default, slash } => {
                    let text = values.text(*field);
                    written.push_str(if text.is_empty() { default } else { &text });
                    if *slash && !text.is_empty() {
                        written.push('/');
                    }
                }
            }
        }
        written
    }

    /// The beginning shared by every text of a name, and of a version unless that is empty; without a name, by every text.
    pub(crate) fn prefix(&self, name: Option<&str>, version: &str) -> String {
        let mut prefix = String::new();
        for piece in &self.0 {
            match (piece, name) {
                (Piece::Literal(text), _) => prefix.push_str(text),
                (Piece::Placeholder { field: Field::Name, .. }, Some(name)) => prefix.push_str(name),
                (Piece::Placeholder { field: Field::Version, slash, .. }, Some(_)) if !version.is_empty() => {
                    prefix.push_str(version);
                    if *slash {
                        prefix.push('/');
                    }
                }
                _ => break,
            }
        }
        prefix
    }

    /// Reads a text back. Returns false when it does not fit, or contradicts an earlier capture.
    pub(crate) fn read(&self, text: &str, captures: &mut Captures) -> bool {
        read(&self.0, text, captures, &mut { MAX_STEPS })
    }

    /// Detects the template `{addr}`.
    pub(super) fn is_addr(&self) -> bool {
        matches!(&*self.0, [Piece::Placeholder { field: Field::Addr, default, slash: false }] if default.is_empty())
    }

    /// Splits a text of this template before its last placeholder, and names what that placeholder reads.
    ///
    /// `None` unless everything after the last `/`, but for a literal before it, belongs to that placeholder, and the part
    /// before does not depend on the address.
    pub(crate) fn split_tail<'a>(&self, text: &'a str) -> Option<(&'a str, Tail)> {
        let [pieces @ .., Piece::Placeholder { field, default, slash: false }] = &*self.0 else { return None };
        let tail = match field {
            Field::Addr => Tail::Addr,
            Field::Label | Field::Id => Tail::Any,
            _ => return None,
        };
        let literal = match pieces.last()? {
            Piece::Literal(text) => text.rsplit_once('/')?.1,
            Piece::Placeholder { .. } => end_in_slash(pieces).then_some("")?,
        };
        let at = text.rfind('/')? + 1 + literal.len();
        let is_independent = pieces.iter().all(|piece| !matches!(piece, Piece::Placeholder { field: Field::Addr, .. }));
        (is_independent && default.is_empty()).then(|| (&text[..at], tail))
    }
}

impl Piece {
    fn placeholder(inside: &str) -> Result<Self, String> {
        let (name, default) = inside.split_once('|').unwrap_or((inside, ""));
        let (name, slash) = name.strip_suffix('/').map_or((name, false), |name| (name, true));
        match FIELDS.iter().find(|(known, _)| *known == name) {
            Some((_, field)) => Ok(Self::Placeholder { field: *field, default: default.to_owned(), slash }),
            None => Err(format!("has the unknown placeholder {{{inside}}}; known are {KNOWN}")),
        }
    }
}

/// Fits pieces to a text, the longest runs first. A run has no `/`, as no field of a node has. A text that does not fit
/// leaves no captures behind.
fn read(pieces: &[Piece], text: &str, captures: &mut Captures, steps: &mut u32) -> bool {
    let Some(left) = steps.checked_sub(1) else { return false };
    *steps = left;
    match pieces.split_first() {
        None => text.is_empty(),
        Some((Piece::Literal(literal), pieces)) => {
            text.strip_prefix(literal.as_str()).is_some_and(|text| read(pieces, text, captures, steps))
        }
        Some((Piece::Placeholder { field, default, slash }, pieces)) => {
            let run = text.bytes().take(MAX_RUN).take_while(|byte| *byte != b'/').count();
            for end in (1..=run).rev().filter(|end| text.is_char_boundary(*end)) {
                let (part, rest) = text.split_at(end);
                let rest = if *slash { rest.strip_prefix('/') } else { Some(rest) };
                let part = if part == default && *field != Field::Scheme { "" } else { part };
                // Most ends are ruled out by the piece that has to follow.
                let follows = |rest: &str| match pieces.first() {
                    Some(Piece::Literal(next)) => rest.starts_with(next.as_str()),
                    Some(Piece::Placeholder { .. }) => true,
                    None => rest.is_empty(),
                };
                let Some(rest) = rest.filter(|rest| follows(rest)) else { continue };
                if captures.capture_if(*field, part, |captures| read(pieces, rest, captures, steps)) {
                    if *field == Field::Scheme {
                        captures.scheme_match = SchemeMatch::new(&text[..end], default);
                    }
                    return true;
                }
            }
            let may_be_absent = *slash || matches!(field, Field::Version | Field::Scheme);
            may_be_absent && captures.capture_if(*field, "", |captures| read(pieces, text, captures, steps))
        }
    }
}

/// Returns true if the next piece begins after a `/` whichever of these placeholders are present.
fn end_in_slash(pieces: &[Piece]) -> bool {
    match pieces.split_last() {
        Some((Piece::Literal(text), _)) => text.ends_with('/'),
        Some((Piece::Placeholder { slash, .. }, pieces)) => *slash && end_in_slash(pieces),
        None => false,
    }
}

/// Returns true if one placeholder reads all of the text.
pub(crate) fn is_run(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_RUN && !text.contains('/')
}

#[cfg(test)]
mod tests {
    use super::TextTemplate;
    use crate::layout::template::field::{Captures, FieldValues};

    #[test]
    fn a_placeholder_may_have_a_default_or_a_slash() {
        let text = |template: &str, version| {
            let values = FieldValues { name: "user", addr: "h:1", version, weight: 7, metadata: &[] };
            TextTemplate::parse(template).unwrap().write(&values)
        };
        assert_eq!(text("/{name}/{version/}{addr}", "v1"), "/user/v1/h:1");
        assert_eq!(text("/{name}/{version/}{addr}", ""), "/user/h:1");
        assert_eq!(text("/{name}/{version|latest}/{label}", ""), "/user/latest/h:1");
        assert_eq!(text("{ {Name} {", ""), "{ {Name} {");
    }

    #[test]
    fn a_text_that_does_not_fit_leaves_no_captures() {
        let template = TextTemplate::parse("/{name}/{version/}{addr}").unwrap();
        let mut captures = Captures::default();
        for wrong in ["", "/", "/user", "/user/v1/x/h:1", "//h:1"] {
            assert!(!template.read(wrong, &mut captures), "{wrong}");
            assert_eq!(captures, Captures::default(), "{wrong}");
        }
        assert!(template.read("/user/v1/h:1", &mut captures));
        assert_eq!(
            (captures.name.as_deref(), captures.version.as_deref(), captures.addr.as_deref()),
            (Some("user"), Some("v1"), Some("h:1"))
        );
        assert!(!template.read("/user/v2/h:1", &mut captures), "another version was captured before");
    }
}
