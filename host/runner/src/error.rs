//! Failures that end the process: one sentence and an exit code.

use std::fmt::Display;

use anyhow::anyhow;

/// An end that is not a success. Its text is one sentence for the operator and never holds a secret.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration, the arguments or a component file is wrong. Starting again does not help.
    Usage(anyhow::Error),
    /// etcd did not answer although it is required. Starting again may help.
    Unavailable(anyhow::Error),
    /// etcd refuses: a user, a password, a certificate or a permission is missing or wrong. Starting again does not help.
    Refused(anyhow::Error),
    /// Anything else: a port in use, a component that fails to start.
    Other(anyhow::Error),
    /// A command has ended, with this exit code.
    Command(anyhow::Error, u8),
}

impl Clone for Failure {
    /// Keeps the sentence and the exit code, without the chain of causes.
    fn clone(&self) -> Self {
        let sentence = self.sentence();
        match self {
            Self::Usage(_) => Self::usage(sentence),
            Self::Unavailable(_) => Self::unavailable(sentence),
            Self::Refused(_) => Self::refused(sentence),
            Self::Other(_) => Self::other(sentence),
            Self::Command(_, code) => Self::command(sentence, *code),
        }
    }
}

impl Failure {
    /// The same with another sentence.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        let sentence = change(self.sentence());
        match self {
            Self::Usage(_) => Self::usage(sentence),
            Self::Unavailable(_) => Self::unavailable(sentence),
            Self::Refused(_) => Self::refused(sentence),
            Self::Other(_) => Self::other(sentence),
            Self::Command(_, code) => Self::command(sentence, code),
        }
    }

    pub(crate) fn usage(sentence: impl Display) -> Self {
        Self::Usage(anyhow!("{sentence}"))
    }

    pub(crate) fn unavailable(sentence: impl Display) -> Self {
        Self::Unavailable(anyhow!("{sentence}"))
    }

    pub(crate) fn refused(sentence: impl Display) -> Self {
        Self::Refused(anyhow!("{sentence}"))
    }

    pub(crate) fn other(sentence: impl Display) -> Self {
        Self::Other(anyhow!("{sentence}"))
    }

    pub(crate) fn command(sentence: impl Display, code: u8) -> Self {
        Self::Command(anyhow!("{sentence}"), code)
    }

    /// The process's exit code; 64, 69 and 77 as in sysexits.h.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Refused(_) => 77,
            Self::Other(_) => 1,
            Self::Command(_, code) => *code,
        }
    }

    /// The whole chain of causes on one line.
    pub(crate) fn sentence(&self) -> String {
        let (Self::Usage(error)
        | Self::Unavailable(error)
        | Self::Refused(error)
        | Self::Other(error)
        | Self::Command(error, _)) = self;
        one_line(&format!("{error:#}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Foreign text on one line, which may have had several. Escaped as in [`shown`].
pub(crate) fn one_line(text: &str) -> String {
    shown(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

/// Foreign text that cannot confuse a terminal: the one place where a component's text is escaped.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if confuses(c) { '\u{fffd}' } else { c }).collect()
}

/// Characters that command a terminal, end a line in some editor, or change the direction of the text around them.
fn confuses(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::{Failure, one_line, shown};

    #[test]
    fn foreign_text_commands_no_terminal() {
        assert_eq!(one_line("a\x1b[31m\r\n b\u{9b}2J"), "a\u{fffd}[31m b\u{fffd}2J");
        assert_eq!(shown("a\u{202e}b\u{2028}c\u{2066}\u{200b}\u{e9}"), "a\u{fffd}b\u{fffd}c\u{fffd}\u{200b}\u{e9}");
        assert_eq!(Failure::other("\x1b]0;title\x07").sentence(), "\u{fffd}]0;title\u{fffd}");
    }

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(Failure::other("a\n  b").sentence(), "a b");
    }

    #[test]
    fn the_exit_codes_are_as_documented() {
        let all = [Failure::usage(""), Failure::unavailable(""), Failure::refused(""), Failure::other("")];
        assert_eq!(all.map(|failure| failure.code()), [64, 69, 77, 1]);
    }
}
