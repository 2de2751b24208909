//! A configuration file as a tree of scalars, lists and maps, each with its place.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, Span};

use crate::config::{
    mistake::{Mistake, is_word},
    place::{Place, Source},
};

/// Nodes of one file, those that aliases repeat included.
const MAX_NODES: usize = 1_000_000;
/// Depth of a file, with what aliases repeat.
const MAX_DEPTH: usize = 128;

/// A value of a file, and where it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    /// Entries in the order of the file, none with the key of another.
    Map(Vec<(Key, Node)>),
}

/// A scalar as text, whatever YAML takes it for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// False in quotes, where even `null` is text.
    pub(crate) is_plain: bool,
    /// The text as it is written, where it has variables.
    pub(crate) written: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) place: Place,
    /// False for a word in the place of a key, which may be anything.
    pub(crate) has_colon: bool,
}

impl Default for Content {
    fn default() -> Self {
        Self::Map(Vec::new())
    }
}

impl Node {
    /// A scalar that stands in no file.
    pub(crate) fn plain(text: &str) -> Self {
        let scalar = Scalar { text: text.to_owned(), is_plain: true, written: None };
        Self { place: Place::default(), content: Content::Scalar(scalar) }
    }

    /// Detects an absent value: `key:`, `key: ~` and `key: null`.
    pub(crate) fn is_null(&self) -> bool {
        let Content::Scalar(scalar) = &self.content else { return false };
        scalar.is_plain && scalar.written.is_none() && matches!(&*scalar.text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// Detects a scalar that is there.
    pub(crate) fn is_word(&self) -> bool {
        matches!(self.content, Content::Scalar(_)) && !self.is_null()
    }

    /// The map that a word is short for: the word under `key`. Any other value as it is.
    pub(crate) fn long(&self, key: &str) -> Self {
        if !self.is_word() {
            return self.clone();
        }
        let key = Key { text: key.to_owned(), place: self.place, has_colon: true };
        Self { place: self.place, content: Content::Map(vec![(key, self.clone())]) }
    }

    /// The value of a key, unless it is absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Content::Map(entries) = &self.content else { return None };
        entries.iter().find(|(found, _)| found.text == key).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// The place of the value that these keys, or numbers of items, lead to, or as far as they lead.
    pub(crate) fn place_of(&self, path: &[&str]) -> Place {
        let inner = |key: &str| match &self.content {
            Content::List(items) => items.get(key.parse::<usize>().ok()?),
            _ => self.get(key),
        };
        let deeper = path.split_first().and_then(|(key, rest)| Some(inner(key)?.place_of(rest)));
        deeper.unwrap_or(self.place)
    }

    /// Nodes of the tree, and its depth.
    fn measure(&self) -> (usize, usize) {
        let add = |(count, depth): (usize, usize), node: &Self| {
            let (more, deeper) = node.measure();
            (count + more, depth.max(deeper + 1))
        };
        match &self.content {
            Content::Scalar(_) => (1, 1),
            Content::List(items) => items.iter().fold((1, 1), add),
            Content::Map(entries) => entries.iter().map(|(_, node)| node).fold((1, 1), add),
        }
    }
}

/// Parses a source; `None` for text that is no YAML. A duplicate key is a mistake, too.
pub(crate) fn parse(source: &mut Source, index: usize, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    // Lines end with a line feed everywhere, so that an excerpt is of the line that was parsed.
    let text = std::mem::take(&mut source.text).replace("\r\n", "\n").replace('\r', "\n");
    let mut builder = Builder {
        source: index,
        text: text.lines().collect(),
        open: Vec::new(),
        anchors: HashMap::new(),
        left: MAX_NODES,
        root: None,
        values: Vec::new(),
        keys: Vec::new(),
        mistakes,
    };
    let outcome = builder.run(&text);
    let (root, values, keys) = (builder.root.take(), std::mem::take(&mut builder.values), builder.keys);
    (source.values, source.keys, source.is_whole) = (values, keys, outcome.is_ok());
    source.text = text;
    match outcome {
        Ok(()) => {
            let first = Place { source: index, start: (1, 1), end: (1, 2) };
            Some(root.filter(|root| !root.is_null()).unwrap_or(Node { place: first, content: Content::default() }))
        }
        Err((place, message)) => {
            mistakes.push(Mistake { place: Some(place), message, is_secret: false });
            None
        }
    }
}

/// The tree while its events arrive.
struct Builder<'a> {
    source: usize,
    text: Vec<&'a str>,
    open: Vec<Open>,
    /// Nodes that an alias may repeat, with their number and depth.
    anchors: HashMap<usize, (Node, usize, usize)>,
    /// Nodes that the file may still have.
    left: usize,
    root: Option<Node>,
    values: Vec<Place>,
    keys: Vec<Place>,
    mistakes: &'a mut Vec<Mistake>,
}

/// A list or a map whose end is still to come.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
    /// The key whose value comes next.
    key: Option<Key>,
    /// Keys of a map, with their lines.
    lines: HashMap<String, usize>,
}

type Failed = (Place, String);

impl Builder<'_> {
    fn run(&mut self, text: &str) -> Result<(), Failed> {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| (self.at(*error.marker()), explained(error.kind())))?;
            let place = self.place(span);
            match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err((place, "a second document begins here; a configuration is one".to_owned()));
                    }
                }
                Event::Comment(..) => self.values.push(place),
                Event::Scalar(text, style, anchor, tag) => {
                    if tag.as_ref().is_some_and(|tag| tag.is_custom()) {
                        self.wrong(place, "a tag such as !name means nothing here");
                    }
                    let is_plain = style == ScalarStyle::Plain && tag.is_none();
                    let scalar = Scalar { text: text.into_owned(), is_plain, written: None };
                    self.add(Node { place, content: Content::Scalar(scalar) }, anchor)?;
                }
                Event::SequenceStart(_, anchor, _) => self.begin(place, anchor, Content::List(Vec::new()))?,
                Event::MappingStart(_, anchor, _) => self.begin(place, anchor, Content::Map(Vec::new()))?,
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(mut open) = self.open.pop() {
                        if let Content::Map(entries) = &mut open.content {
                            self.merge(entries);
                        }
                        self.add(Node { place: open.place, content: open.content }, open.anchor)?;
                    }
                }
                Event::Alias(anchor) => self.repeat(anchor, place)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), Failed> {
        if self.open.len() >= MAX_DEPTH {
            return Err((place, "nested too deep".to_owned()));
        }
        // Of a list or a map only the beginning is marked.
        let place = Place { end: (place.start.0, place.start.1 + 1), ..place };
        self.open.push(Open { place, anchor, content, key: None, lines: HashMap::new() });
        Ok(())
    }

    fn repeat(&mut self, anchor: usize, place: Place) -> Result<(), Failed> {
        let Some((node, count, depth)) = self.anchors.get(&anchor) else {
            return Err((place, "an alias cannot stand inside of what it repeats".to_owned()));
        };
        if self.open.len() + depth > MAX_DEPTH {
            return Err((place, "nested too deep".to_owned()));
        }
        self.left =
            self.left.checked_sub(*count).ok_or((place, "too large with all that aliases repeat".to_owned()))?;
        self.add(node.clone(), 0)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Failed> {
        let place = node.place;
        self.left = self.left.checked_sub(1).ok_or((place, "too large".to_owned()))?;
        if anchor != 0 {
            let (count, depth) = node.measure();
            self.left = self.left.checked_sub(count).ok_or((place, "too large".to_owned()))?;
            self.anchors.insert(anchor, (node.clone(), count, depth));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        let is_key = matches!(open.content, Content::Map(_)) && open.key.is_none();
        if matches!(node.content, Content::Scalar(_)) && !is_key {
            self.values.push(place);
        }
        match (&mut open.content, open.key.take()) {
            (Content::List(items), _) => items.push(node),
            (Content::Map(entries), Some(key)) => match open.lines.get(&key.text) {
                None => {
                    open.lines.insert(key.text.clone(), key.place.start.0);
                    entries.push((key, node));
                }
                Some(line) => {
                    let message = match is_word(&key.text) {
                        true => format!("the key {:?} stands twice; the first is in line {line}", key.text),
                        false => format!("a key stands twice; the first is in line {line}"),
                    };
                    self.wrong(key.place, &message);
                }
            },
            (Content::Map(_), None) => {
                let has_colon = self.has_colon(place);
                let text = match node.content {
                    Content::Scalar(scalar) => scalar.text,
                    _ => return Err((place, "a key must be text".to_owned())),
                };
                if has_colon {
                    self.keys.push(place);
                } else {
                    self.values.push(place);
                }
                let key = Key { text, place, has_colon };
                if let Some(open) = self.open.last_mut() {
                    open.key = Some(key);
                }
            }
            (Content::Scalar(_), _) => {}
        }
        Ok(())
    }

    /// Adds the entries of `<<: *other` that the map does not have itself.
    fn merge(&mut self, entries: &mut Vec<(Key, Node)>) {
        let Some(at) = entries.iter().position(|(key, _)| key.text == "<<") else { return };
        let (key, merged) = entries.remove(at);
        let maps = match merged.content {
            Content::List(items) => items,
            content => vec![Node { place: merged.place, content }],
        };
        for map in maps {
            let Content::Map(more) = map.content else {
                self.wrong(key.place, "<< must be an alias of a map, or a list of these");
                continue;
            };
            for (key, node) in more {
                if !entries.iter().any(|(own, _)| own.text == key.text) {
                    entries.push((key, node));
                }
            }
        }
    }

    fn wrong(&mut self, place: Place, message: &str) {
        self.mistakes.push(Mistake { place: Some(place), message: message.to_owned(), is_secret: false });
    }

    fn has_colon(&self, place: Place) -> bool {
        let (line, column) = place.end;
        let behind = self.text.get(line.wrapping_sub(1)).map(|line| line.chars().skip(column.saturating_sub(1)));
        behind.is_some_and(|mut behind| behind.find(|c| !c.is_whitespace()) == Some(':'))
    }

    fn place(&self, span: Span) -> Place {
        let (start, end) = ((span.start.line(), span.start.col() + 1), (span.end.line(), span.end.col() + 1));
        Place { source: self.source, start, end }
    }

    fn at(&self, marker: Marker) -> Place {
        // The end of a file is shown at the end of its last line.
        let last = self.text.len().max(1);
        let (line, column) = match marker.line() {
            line if line > last => (last, self.text.last().map_or(0, |line| line.chars().count()) + 1),
            line => (line, marker.col() + 1),
        };
        Place { source: self.source, start: (line, column), end: (line, column + 1) }
    }
}

/// Mistake in text that is no YAML, in the words of its author.
fn explained(kind: &ErrorKind) -> String {
    let message = match kind {
        ErrorKind::UnclosedQuotedScalar => "a quote is not closed",
        ErrorKind::UnclosedFlowCollection { open } => return format!("the bracket {open} is not closed"),
        ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping => "a bracket is not closed",
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            return format!("the bracket {open} is closed by {close}");
        }
        ErrorKind::MisplacedFlowCollectionEnd => "a bracket is closed that was not opened",
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => {
            "a comma or a closing bracket is missing"
        }
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => "a tab cannot stand here; indent with spaces",
        ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::InvalidBlockScalarIndent
        | ErrorKind::InvalidQuotedScalarIndent
        | ErrorKind::InvalidFlowScalarIndent
        | ErrorKind::BlockSequenceEntryNotAllowed => "the indentation of this line fits none of the lines above",
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => "a key needs a colon and a space behind it",
        ErrorKind::MappingValueNotAllowed
        | ErrorKind::MappingKeyNotAllowed
        | ErrorKind::InvalidColonPlacement
        | ErrorKind::InvalidMappingValueWhitespace => {
            "a colon cannot stand here; text with a colon and a space needs quotes"
        }
        ErrorKind::UnknownAnchor => "an alias repeats an anchor that does not stand above it",
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            "nothing may follow a closing quote"
        }
        ErrorKind::UnknownQuotedScalarEscape | ErrorKind::InvalidQuotedScalarHexEscape => {
            "a backslash in double quotes begins an escape, and this is none; single quotes keep it as it is"
        }
        ErrorKind::UnexpectedCharacter { character } => {
            return format!("{character:?} cannot begin a value; text that begins with it needs quotes");
        }
        ErrorKind::RecursionLimitExceeded => "nested too deep",
        _ => "this is not YAML",
    };
    message.to_owned()
}
