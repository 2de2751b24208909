//! Mistakes in a configuration: what is wrong, where, and the line of the file with a mark below it.

use std::{collections::BTreeSet, error::Error, fmt};

use serde::Serialize;

use crate::{
    config::place::{Place, Source},
    error::{Failure, shown},
};

/// Mistakes of one run that are listed; further ones are counted.
const MAX_LISTED: usize = 20;
/// Longest sentence, in characters.
const MAX_MESSAGE: usize = 1000;
/// Longest excerpt, in characters, and the part of it before the mark.
const MAX_EXCERPT: usize = 100;
const BEFORE_MARK: usize = 40;
/// Replaces text of a source that may hold a secret.
const HIDDEN: char = '…';

/// A mistake as it is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mistake {
    /// Where it stands; `None` for the file as a whole.
    pub(crate) place: Option<Place>,
    /// A sentence that names the key and, where there is one, the remedy.
    pub(crate) message: String,
    /// Keeps the text at the place out of the excerpt.
    pub(crate) is_secret: bool,
}

/// All mistakes of a configuration, in the order of the files. The text holds no secret.
#[derive(Debug, Clone)]
pub(crate) struct Mistakes {
    mistakes: Vec<Listed>,
    further: usize,
}

/// A mistake as it is listed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Listed {
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    pub(crate) message: String,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

/// A line of a source, without what may be secret.
#[derive(Debug, Clone)]
struct Excerpt {
    text: String,
    /// Characters before the mark, and its length.
    mark: (usize, usize),
}

impl Mistakes {
    /// Lists what was found; `None` for nothing. The first source names mistakes without a place.
    pub(crate) fn of(found: Vec<Mistake>, sources: &[Source]) -> Option<Self> {
        // An alias or a default repeats its mistake wherever it is used.
        let found: BTreeSet<Mistake> = found.into_iter().collect();
        let further = found.len().saturating_sub(MAX_LISTED);
        let mistakes: Vec<_> = found.iter().take(MAX_LISTED).map(|mistake| Listed::of(mistake, sources)).collect();
        (!mistakes.is_empty()).then_some(Self { mistakes, further })
    }

    /// A mistake about a whole file.
    pub(crate) fn whole(file: &str, message: impl Into<String>) -> Self {
        let listed = Listed { file: file.to_owned(), line: None, column: None, message: message.into(), excerpt: None };
        Self { mistakes: vec![listed], further: 0 }
    }

    /// The mistakes for which a process ends, if that is why it does.
    pub(crate) fn behind(failure: &Failure) -> Option<&Self> {
        match failure {
            Failure::Usage(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// One paragraph for each mistake: the sentence, then the line of the file with a mark.
    pub(crate) fn text(&self) -> String {
        let mut text: String = self.mistakes.iter().map(Listed::text).collect();
        if self.further > 0 {
            text.push_str(&format!("and {} more\n", self.further));
        }
        text
    }

    /// The mistakes, for machines.
    pub(crate) fn list(&self) -> &[Listed] {
        &self.mistakes
    }

    /// The number of mistakes, in words.
    pub(crate) fn count(&self) -> String {
        match self.mistakes.len() + self.further {
            1 => "1 mistake in the configuration".to_owned(),
            many => format!("{many} mistakes in the configuration"),
        }
    }
}

/// The sentences, without excerpts.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentences: Vec<_> = self.mistakes.iter().map(Listed::sentence).collect();
        f.write_str(&sentences.join("; "))?;
        if self.further > 0 { write!(f, "; and {} more", self.further) } else { Ok(()) }
    }
}

impl Error for Mistakes {}

impl Listed {
    fn of(mistake: &Mistake, sources: &[Source]) -> Self {
        let mut message: String = shown(&mistake.message).chars().take(MAX_MESSAGE).collect();
        if message.chars().count() == MAX_MESSAGE {
            message.push(HIDDEN);
        }
        let name = |source: Option<&Source>| source.map_or_else(String::new, |source| shown(&source.name));
        let Some(place) = mistake.place.filter(|place| place.source < sources.len() && place.start > (0, 0)) else {
            return Self { file: name(sources.first()), line: None, column: None, message, excerpt: None };
        };
        let source = &sources[place.source];
        let (line, column) = place.start;
        let excerpt = Excerpt::of(source, place, mistake.is_secret || source.secrets.contains(&place));
        Self { file: name(Some(source)), line: Some(line), column: Some(column), message, excerpt: Some(excerpt) }
    }

    fn sentence(&self) -> String {
        match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}: {}", self.file, self.message),
            _ => format!("{}: {}", self.file, self.message),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.sentence());
        if let (Some(line), Some(Excerpt { text: excerpt, mark: (before, length) })) = (self.line, &self.excerpt) {
            let margin = " ".repeat(line.to_string().len());
            let mark = format!("{}{}", " ".repeat(*before), "^".repeat(*length));
            text.push_str(&format!("  {line} | {excerpt}\n  {margin} | {mark}\n"));
        }
        text
    }
}

impl Excerpt {
    fn of(source: &Source, place: Place, is_secret: bool) -> Self {
        let line = source.line(place.start.0);
        let visible = visible(source, line, place, is_secret);
        let (from, until) = place.on_line(place.start.0).unwrap_or((1, 1));
        let (mut text, mut before, mut length) = (String::new(), None, 0);
        for (at, c) in line.chars().enumerate() {
            let is_marked = (from - 1..until.saturating_sub(1)).contains(&at);
            if at + 1 == from {
                before = Some(text.chars().count());
            }
            match visible[at] {
                true if c == '\t' => text.push(' '),
                true => text.push(c),
                // One sign for the whole stretch, and another one where the mark begins.
                false if text.ends_with(HIDDEN) && at + 1 != from && at + 1 != until => continue,
                false => text.push(HIDDEN),
            }
            length += usize::from(is_marked);
        }
        let before = before.unwrap_or_else(|| text.trim_end().chars().count());
        Self::cut(&shown(&text), before, length.max(1))
    }

    /// The part of a long line around the mark.
    fn cut(text: &str, before: usize, length: usize) -> Self {
        if text.chars().count() <= MAX_EXCERPT {
            return Self { text: text.trim_end().to_owned(), mark: (before, length) };
        }
        let skipped = before.saturating_sub(BEFORE_MARK);
        let text: String = text.chars().skip(skipped).take(MAX_EXCERPT).collect();
        Self {
            text: text.trim_end().to_owned(),
            mark: (before - skipped, length.min(MAX_EXCERPT - (before - skipped))),
        }
    }
}

/// Tells of each character of the line whether an excerpt may show it: everything but values and comments, and the value
/// at the mistake. Of a file that could not be parsed to its end, keys, and lines that hold no secret.
fn visible(source: &Source, line: &str, place: Place, is_secret: bool) -> Vec<bool> {
    let length = line.chars().count();
    let mut visible = vec![source.is_whole; length];
    let mut set = |places: &[Place], value: bool| {
        for (from, until) in places.iter().filter_map(|covers| covers.on_line(place.start.0)) {
            let until = until.min(length + 1);
            visible[from.min(until) - 1..until - 1].fill(value);
        }
    };
    set(&source.values, false);
    if source.is_whole {
        set(&[place], !is_secret);
    } else {
        set(&source.keys, true);
        let is_value = source.values.iter().any(|value| value.start.0 < place.start.0 && value.end.0 >= place.start.0);
        let clear = source.clear.get(place.start.0 - 1).copied().unwrap_or(0).min(length);
        visible[..if is_value { 0 } else { leading_key(line).max(clear) }].fill(true);
        if !is_value {
            show_punctuation(line, place, &mut visible);
        }
    }
    visible
}

/// Shows the mark where it is punctuation of YAML, the colon behind a key, and the space beside what is shown.
fn show_punctuation(line: &str, place: Place, visible: &mut [bool]) {
    let chars: Vec<char> = line.chars().collect();
    let mark = place.start.1 - 1;
    if chars.get(mark).is_some_and(|c| "{}[],\"'".contains(*c)) {
        visible[mark] = true;
    }
    for at in 1..chars.len() {
        let is_colon = chars[at] == ':' && is_word(&chars[at - 1].to_string());
        visible[at] |= visible[at - 1] && (is_colon || chars[at].is_whitespace());
    }
    for at in (1..chars.len()).rev() {
        visible[at - 1] |= visible[at] && chars[at - 1].is_whitespace();
    }
}

/// Length of the indentation of a line and of the key after it, in characters.
fn leading_key(line: &str) -> usize {
    let indentation = line.len() - line.trim_start_matches([' ', '\t', '-']).len();
    match line[indentation..].split_once(':') {
        Some((key, _)) if is_word(key) => indentation + key.len() + 1,
        _ => indentation,
    }
}

/// Detects text that can be a key, and hardly a secret.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

/// The candidate that a misspelt word most likely means.
pub(crate) fn meant<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &&str| strsim::normalized_damerau_levenshtein(word, candidate);
    let best = candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= 0.6).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::meant;

    #[test]
    fn a_misspelt_word_has_a_meaning() {
        let keys = ["memory", "request_timeout", "concurrency", "connections"];
        assert_eq!(meant("memroy", keys), Some("memory"));
        assert_eq!(meant("request-timeout", keys), Some("request_timeout"));
        assert_eq!(meant("requesttimeout", keys), Some("request_timeout"));
        assert_eq!(meant("colour", keys), None);
    }
}
