//! A text with placeholders: parsed, written, and read back.
//!
//! A placeholder is `{field}`, `{field|default}` for a field that may be empty, or `{field/}` for one that takes a `/`
//! with it when it is there. The fields are name, addr, version, weight, id and label, and within values metadata.

use crate::layout::template::field::{Field, Found, Parts, Strangeness};

/// The longest run of characters that one placeholder reads.
const MAX_RUN: usize = 253;

const FIELDS: [(&str, Field); 7] = [
    ("name", Field::Name),
    ("addr", Field::Addr),
    ("version", Field::Version),
    ("weight", Field::Weight),
    ("id", Field::Id),
    ("label", Field::Label),
    ("scheme", Field::Scheme),
];
/// What a mistaken placeholder might have been.
const KNOWN: &str = "name, addr, version, weight, id, label, prefix and scheme, and in JSON, as a whole value, \
                     weight:number, metadata and metadata|null";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    Text(String),
    Field { field: Field, default: String, slash: bool },
}

/// What a key may have at its end where everything else is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The address.
    Addr,
    /// Any run of characters.
    Any,
}

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Text(Vec<Piece>);

impl Text {
    /// Reads a template. A brace that no small letter follows is text.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if !after.starts_with(|c: char| c.is_ascii_lowercase()) {
                text.push('{');
                rest = after;
                continue;
            }
            let Some((inside, after)) = after.split_once('}') else {
                return Err(format!("has a placeholder that is not closed: {{{after}"));
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(placeholder(inside)?);
            rest = after;
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Self(pieces))
    }

    /// Whether it is `{addr}`.
    pub(super) fn is_addr(&self) -> bool {
        matches!(&*self.0, [Piece::Field { field: Field::Addr, default, slash: false }] if default.is_empty())
    }

    /// How a text ends whose last placeholder has all behind the last `/` to itself, but for a fixed text before it, and what
    /// comes before that end, if the address has no place there.
    pub(crate) fn tail<'a>(&self, text: &'a str) -> Option<(&'a str, Tail)> {
        let [pieces @ .., Piece::Field { field, default, slash: false }] = &*self.0 else { return None };
        let tail = match field {
            Field::Addr => Tail::Addr,
            Field::Label | Field::Id => Tail::Any,
            _ => return None,
        };
        let fixed = match pieces.last()? {
            Piece::Text(text) => text.rsplit_once('/')?.1,
            Piece::Field { .. } => end_in_slash(pieces).then_some("")?,
        };
        let at = text.rfind('/')? + 1 + fixed.len();
        let is_alone = pieces.iter().all(|piece| !matches!(piece, Piece::Field { field: Field::Addr, .. }));
        (is_alone && default.is_empty()).then(|| (&text[..at], tail))
    }

    pub(super) fn has_fields(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Field { .. }))
    }

    pub(crate) fn has(&self, wanted: Field) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Field { field, .. } if *field == wanted))
    }

    pub(crate) fn write(&self, parts: &Parts<'_>) -> String {
        let mut written = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => written.push_str(text),
                Piece::Field { field, default, slash } => {
                    let part = parts.of(*field);
                    written.push_str(if part.is_empty() { default } else { &part });
                    if *slash && !part.is_empty() {
                        written.push('/');
                    }
                }
            }
        }
        written
    }

    /// What every text of this name, and of this version unless that is empty, begins with; of every name without one.
    pub(crate) fn prefix(&self, name: Option<&str>, version: &str) -> String {
        let mut prefix = String::new();
        for piece in &self.0 {
            match (piece, name) {
                (Piece::Text(text), _) => prefix.push_str(text),
                (Piece::Field { field: Field::Name, .. }, Some(name)) => prefix.push_str(name),
                (Piece::Field { field: Field::Version, slash, .. }, Some(_)) if !version.is_empty() => {
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

    /// Reads a text back; false when it does not fit, or says something else than what was found before.
    pub(crate) fn read(&self, text: &str, found: &mut Found) -> bool {
        read(&self.0, text, found)
    }
}

/// Whether what comes next begins behind a `/`, whichever of these are there.
fn end_in_slash(pieces: &[Piece]) -> bool {
    match pieces.split_last() {
        Some((Piece::Text(text), _)) => text.ends_with('/'),
        Some((Piece::Field { slash, .. }, pieces)) => *slash && end_in_slash(pieces),
        None => false,
    }
}

fn placeholder(inside: &str) -> Result<Piece, String> {
    let (name, default) = inside.split_once('|').unwrap_or((inside, ""));
    let (name, slash) = name.strip_suffix('/').map_or((name, false), |name| (name, true));
    match FIELDS.iter().find(|(known, _)| *known == name) {
        Some((_, field)) => Ok(Piece::Field { field: *field, default: default.to_owned(), slash }),
        None => Err(format!("has the unknown placeholder {{{inside}}}; known are {KNOWN}")),
    }
}

/// Whether one placeholder reads all of it.
pub(crate) fn is_run(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_RUN && !text.contains('/')
}

/// Fits pieces to a text, the longest runs first. A run has no `/`, as no part of a node has. What does not fit leaves
/// nothing behind.
fn read(pieces: &[Piece], text: &str, found: &mut Found) -> bool {
    match pieces.split_first() {
        None => text.is_empty(),
        Some((Piece::Text(piece), pieces)) => {
            text.strip_prefix(piece.as_str()).is_some_and(|text| read(pieces, text, found))
        }
        Some((Piece::Field { field, default, slash }, pieces)) => {
            let run = text.bytes().take(MAX_RUN).take_while(|byte| *byte != b'/').count();
            for end in (1..=run).rev().filter(|end| text.is_char_boundary(*end)) {
                let (part, rest) = text.split_at(end);
                let rest = if *slash { rest.strip_prefix('/') } else { Some(rest) };
                let part = if part == default && *field != Field::Scheme { "" } else { part };
                // Most ends are ruled out by what has to follow, without a further look.
                let follows = |rest: &str| match pieces.first() {
                    Some(Piece::Text(next)) => rest.starts_with(next.as_str()),
                    Some(Piece::Field { .. }) => true,
                    None => rest.is_empty(),
                };
                let Some(rest) = rest.filter(|rest| follows(rest)) else { continue };
                if found.bind_if(*field, part, |found| read(pieces, rest, found)) {
                    if *field == Field::Scheme {
                        found.strangeness = Strangeness::of(&text[..end], default);
                    }
                    return true;
                }
            }
            let may_be_absent = *slash || matches!(field, Field::Version | Field::Scheme);
            may_be_absent && found.bind_if(*field, "", |found| read(pieces, text, found))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Text;
    use crate::layout::template::field::{Found, Parts};

    #[test]
    fn a_placeholder_may_have_a_default_or_a_slash() {
        let text = |template: &str, version| {
            Text::parse(template).unwrap().write(&Parts {
                name: "user",
                addr: "h:1",
                version,
                weight: 7,
                metadata: &[],
            })
        };
        assert_eq!(text("/{name}/{version/}{addr}", "v1"), "/user/v1/h:1");
        assert_eq!(text("/{name}/{version/}{addr}", ""), "/user/h:1");
        assert_eq!(text("/{name}/{version|latest}/{label}", ""), "/user/latest/h:1");
        assert_eq!(text("{ {Name} {", ""), "{ {Name} {");
    }

    #[test]
    fn what_does_not_fit_leaves_nothing_behind() {
        let template = Text::parse("/{name}/{version/}{addr}").unwrap();
        let mut found = Found::default();
        for wrong in ["", "/", "/user", "/user/v1/x/h:1", "//h:1"] {
            assert!(!template.read(wrong, &mut found), "{wrong}");
            assert_eq!(found, Found::default(), "{wrong}");
        }
        assert!(template.read("/user/v1/h:1", &mut found));
        assert_eq!(
            (found.name.as_deref(), found.version.as_deref(), found.addr.as_deref()),
            (Some("user"), Some("v1"), Some("h:1"))
        );
        assert!(!template.read("/user/v2/h:1", &mut found), "it was another version before");
    }
}
