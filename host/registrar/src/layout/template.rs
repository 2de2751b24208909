//! The language of layouts: texts and JSON with placeholders, written byte-exact and read back.
//!
//! A placeholder is `{field}`, `{field|default}` for a field that may be empty, or `{field/}` for one that takes a `/`
//! with it when it is there. The fields are name, addr, version, weight, id and label, and within values metadata.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use smol_str::SmolStr;

use crate::node::Invalid;

/// The longest run of characters that one placeholder reads.
const MAX_RUN: usize = 253;
/// What Go's `url.QueryEscape` leaves as it is.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');
/// The key of an object, or of a query, into which the metadata is merged.
const SPREAD: &str = "...";

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Name,
    Addr,
    Version,
    Weight,
    /// A number made of name, version and address: the same at every start, and another for every instance.
    Id,
    /// The address when it is written, and anything when it is read.
    Label,
    /// How the address is spoken to: always written as its default, and read as any.
    Scheme,
}

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

/// The parts of a node that is being written.
pub(crate) struct Parts<'a> {
    pub(crate) name: &'a str,
    pub(crate) addr: &'a str,
    pub(crate) version: &'a str,
    pub(crate) weight: u32,
    pub(crate) metadata: &'a [(String, String)],
}

impl Parts<'_> {
    fn of(&self, field: Field) -> String {
        match field {
            Field::Name => self.name.to_owned(),
            Field::Addr | Field::Label => self.addr.to_owned(),
            Field::Version => self.version.to_owned(),
            Field::Weight => self.weight.to_string(),
            Field::Id => self.id().to_string(),
            Field::Scheme => String::new(),
        }
    }

    /// FNV-1a of 64 bits (Fowler, Noll, Vo; RFC 9923), without the sign bit, so that Go's `int64` holds it.
    fn id(&self) -> u64 {
        let bytes = [self.name, "/", self.version, "/", self.addr].into_iter().flat_map(str::bytes);
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
            & (u64::MAX >> 1)
    }
}

/// The parts of a node that was read, as far as they were there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: Option<SmolStr>,
    pub(crate) addr: Option<SmolStr>,
    pub(crate) version: Option<SmolStr>,
    pub(crate) weight: Option<SmolStr>,
    pub(crate) scheme: Option<SmolStr>,
    pub(crate) metadata: Vec<(String, String)>,
    /// How far the scheme is from that of the layout.
    strangeness: Strangeness,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strangeness {
    #[default]
    Own,
    /// The same with TLS, or without.
    Secured,
    Foreign,
}

impl Strangeness {
    fn of(scheme: &str, own: &str) -> Self {
        let plain = |scheme: &str| scheme.strip_suffix('s').unwrap_or(scheme).to_owned();
        match scheme {
            scheme if scheme == own => Self::Own,
            scheme if plain(scheme) == plain(own) => Self::Secured,
            _ => Self::Foreign,
        }
    }
}

impl Found {
    /// Takes a part over if `fits` then; false, and nothing is taken, if not, or when another is there already.
    fn bind_if(&mut self, field: Field, text: &str, fits: impl FnOnce(&mut Self) -> bool) -> bool {
        match self.place(field) {
            None => fits(self), // Others have their own way to make one.
            Some(Some(there)) => there == text && fits(self),
            Some(place) => {
                *place = Some(text.into());
                let taken = fits(self);
                if let (false, Some(place)) = (taken, self.place(field)) {
                    *place = None;
                }
                taken
            }
        }
    }

    fn place(&mut self, field: Field) -> Option<&mut Option<SmolStr>> {
        match field {
            Field::Name => Some(&mut self.name),
            Field::Addr => Some(&mut self.addr),
            Field::Version => Some(&mut self.version),
            Field::Weight => Some(&mut self.weight),
            Field::Scheme => Some(&mut self.scheme),
            Field::Id | Field::Label => None,
        }
    }
}

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
    fn is_addr(&self) -> bool {
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

/// The shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// A JSON object, as Go writes it.
    Json(Node),
    /// A query as in a URL, sorted as Go sorts it; written as `?key={field}&...`.
    Query { pairs: Vec<(String, Text)>, spread: bool },
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
        let Some(query) = source.strip_prefix('?') else { return Text::parse(source).map(Self::Text) };
        let (mut pairs, mut spread) = (Vec::new(), false);
        for pair in query.split('&') {
            match pair.split_once('=') {
                None if pair == SPREAD => spread = true,
                Some((key, value)) => pairs.push((key.to_owned(), Text::parse(value)?)),
                None => return Err(format!("has the part {pair:?}, which is not key=value")),
            }
        }
        Ok(Self::Query { pairs, spread })
    }

    pub(crate) fn has(&self, field: Field) -> bool {
        match self {
            Self::Json(node) => node.has(field),
            Self::Query { pairs, .. } => pairs.iter().any(|(_, text)| text.has(field)),
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
            Self::Query { spread, .. } => *spread,
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
            Self::Query { pairs, spread } => {
                let own = pairs.iter().map(|(key, text)| (key.clone(), text.write(parts)));
                let all = merged(own.collect(), parts.metadata.iter().filter(|_| *spread));
                let encode = |text: &str| utf8_percent_encode(text, QUERY).to_string().replace(' ', "+");
                let all: Vec<_> = all.iter().map(|(key, text)| format!("{}={}", encode(key), encode(text))).collect();
                all.join("&").into_bytes()
            }
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
            Self::Query { pairs, spread } => {
                let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
                for pair in utf8(value)?.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
                    let (key, text) = (decode(key), decode(text));
                    match pairs.iter().find(|(known, _)| *known == key) {
                        Some((_, template)) if !template.read(&text, found) => {
                            return Err(invalid(format!("must have another {key} than {text:?}")));
                        }
                        None if *spread => found.metadata.push((key, text)),
                        _ => {}
                    }
                }
                Ok(())
            }
            Self::Text(text) if text.read(utf8(value)?, found) => Ok(()),
            Self::Text(_) => Err(invalid("must fit its layout".to_owned())),
        }
    }
}

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
    fn checked(self) -> Result<Self, String> {
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

    fn has(&self, field: Field) -> bool {
        match self {
            Self::Text(text) => text.has(field),
            Self::Number => field == Field::Weight,
            Self::Object { fields, .. } => fields.iter().any(|(_, node)| node.has(field)),
            Self::List(nodes) => nodes.iter().any(|node| node.has(field)),
            Self::Fixed(_) | Self::Metadata { .. } | Self::Wrong(_) => false,
        }
    }

    /// How many strings are the address; `None` where one has it beside other things, or may be missing.
    fn addrs(&self) -> Option<usize> {
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

    fn has_metadata(&self) -> bool {
        match self {
            Self::Metadata { .. } => true,
            Self::Object { fields, spread } => *spread || fields.iter().any(|(_, node)| node.has_metadata()),
            Self::List(nodes) => nodes.iter().any(Self::has_metadata),
            Self::Fixed(_) | Self::Text(_) | Self::Number | Self::Wrong(_) => false,
        }
    }

    fn write(&self, parts: &Parts<'_>, json: &mut String) {
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
    fn read(&self, at: &str, json: &Json<'_>, found: &mut Found) -> Result<(), Invalid> {
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

/// A value that is JSON, whose texts are where they were read, as far as they stand there as they are.
enum Json<'a> {
    Text(Cow<'a, str>),
    /// In the order in which they stand; of a key that stands twice the last counts, as in Go.
    Object(Vec<(Cow<'a, str>, Self)>),
    List(Vec<Self>),
    /// None of those.
    Other(Value),
}

impl Json<'_> {
    /// A value of foreign metadata as text.
    fn plain(&self) -> String {
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

/// Own pairs, which win, and metadata, sorted by key as Go sorts maps. Read back, a pair is the layout's own, too: metadata
/// named `weight` must not become the weight.
fn merged<'a>(
    own: Vec<(String, String)>,
    metadata: impl Iterator<Item = &'a (String, String)>,
) -> Vec<(String, String)> {
    let metadata: Vec<_> = metadata.filter(|(key, _)| own.iter().all(|(there, _)| there != key)).cloned().collect();
    let mut all = [own, metadata].concat();
    all.sort();
    all
}

fn write_object<T>(fields: &[(String, T)], json: &mut String, mut write: impl FnMut(&T, &mut String)) {
    json.push('{');
    for (index, (key, value)) in fields.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        go_string(key, json);
        json.push(':');
        write(value, json);
    }
    json.push('}');
}

#[expect(clippy::ptr_arg, reason = "it is called through `write_object`")]
fn go_string_of(text: &String, json: &mut String) {
    go_string(text, json);
}

/// A string as Go's `encoding/json` writes it: with these five characters escaped, too.
fn go_string(text: &str, json: &mut String) {
    for c in serde_json::to_string(text).expect("strings always serialise").chars() {
        match c {
            '<' => json.push_str("\\u003c"),
            '>' => json.push_str("\\u003e"),
            '&' => json.push_str("\\u0026"),
            '\u{2028}' => json.push_str("\\u2028"),
            '\u{2029}' => json.push_str("\\u2029"),
            c => json.push(c),
        }
    }
}

fn sorted<'a>(pairs: &'a [(Cow<'_, str>, Json<'_>)]) -> impl Iterator<Item = (&'a str, &'a Json<'a>)> {
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
                Ok(template) if template.0.iter().any(|piece| matches!(piece, Piece::Field { .. })) => {
                    Node::Text(template)
                }
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

#[cfg(test)]
mod tests {
    use super::{Field, Found, Parts, Shape, Text, go_string};

    fn parts<'a>(version: &'a str, metadata: &'a [(String, String)]) -> Parts<'a> {
        Parts { name: "user", addr: "h:1", version, weight: 7, metadata }
    }

    fn written(template: &str, metadata: &[(&str, &str)]) -> String {
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        String::from_utf8(Shape::parse(template).unwrap().write(&parts("", &metadata))).unwrap()
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut json = String::new();
        go_string("<a href=\"x\">&\u{2028}\u{2029}\\/\t\n\r\u{8}\u{c}\u{1}\u{7f}é\u{1f600}", &mut json);
        let expected =
            "\"\\u003ca href=\\\"x\\\"\\u003e\\u0026\\u2028\\u2029\\\\/\\t\\n\\r\\b\\f\\u0001\u{7f}é\u{1f600}\"";
        assert_eq!(json, expected);
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
    fn a_placeholder_may_have_a_default_or_a_slash() {
        let text = |template: &str, version| Text::parse(template).unwrap().write(&parts(version, &[]));
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
