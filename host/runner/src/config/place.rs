//! Places in configuration files, and the sources that they point into.

use std::path::PathBuf;

/// A stretch of text in one source. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// Index of the source.
    pub(crate) source: usize,
    /// Line and column of the first character.
    pub(crate) start: (usize, usize),
    /// Line and column behind the last character.
    pub(crate) end: (usize, usize),
}

impl Place {
    /// Columns that it covers on one line; `usize::MAX` ends a stretch that goes on.
    pub(crate) fn on_line(&self, line: usize) -> Option<(usize, usize)> {
        let start = if self.start.0 == line { self.start.1 } else { 1 };
        let end = if self.end.0 == line { self.end.1 } else { usize::MAX };
        (self.start.0..=self.end.0).contains(&line).then_some((start, end))
    }
}

/// One file of a configuration, or standard input.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Its name in errors.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
    /// The folder of its relative paths.
    pub(crate) folder: PathBuf,
    /// Values and comments; an excerpt of an error hides them.
    pub(crate) values: Vec<Place>,
    /// Values that no excerpt shows, whatever is wrong with them.
    pub(crate) secrets: Vec<Place>,
    /// Keys; of a file that cannot be parsed, an excerpt shows these on any line.
    pub(crate) keys: Vec<Place>,
    /// Characters at the beginning of each line that an excerpt shows nevertheless.
    pub(crate) clear: Vec<usize>,
    /// True once it was parsed to its end, so that every value is among `values`.
    pub(crate) is_whole: bool,
}

impl Source {
    /// The text of one line, without its line break.
    pub(crate) fn line(&self, number: usize) -> &str {
        self.text.lines().nth(number.saturating_sub(1)).unwrap_or_default()
    }
}
