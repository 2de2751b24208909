//! Why the process ends otherwise than well: one sentence and an exit code.

use std::fmt::Display;

use anyhow::anyhow;

/// An end that is not a success. Its text is one sentence for the operator and never holds a secret.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration, the arguments or a component file is not what it has to be. Starting again does not help.
    Usage(anyhow::Error),
    /// etcd did not answer although it is required. Starting again may help.
    Unavailable(anyhow::Error),
    /// Anything else: a port in use, a component that fails to start.
    Other(anyhow::Error),
}

impl Clone for Failure {
    /// Keeps the sentence and the exit code, without the chain of causes.
    fn clone(&self) -> Self {
        let sentence = self.sentence();
        match self {
            Self::Usage(_) => Self::usage(sentence),
            Self::Unavailable(_) => Self::unavailable(sentence),
            Self::Other(_) => Self::other(sentence),
        }
    }
}

impl Failure {
    pub(crate) fn usage(sentence: impl Display) -> Self {
        Self::Usage(anyhow!("{sentence}"))
    }

    pub(crate) fn unavailable(sentence: impl Display) -> Self {
        Self::Unavailable(anyhow!("{sentence}"))
    }

    pub(crate) fn other(sentence: impl Display) -> Self {
        Self::Other(anyhow!("{sentence}"))
    }

    /// The process's exit code; 64 and 69 as in sysexits.h.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Other(_) => 1,
        }
    }

    /// The whole chain of causes on one line.
    pub(crate) fn sentence(&self) -> String {
        let (Self::Usage(error) | Self::Unavailable(error) | Self::Other(error)) = self;
        one_line(&format!("{error:#}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Foreign text on one line: what a component or a library said may have many.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Foreign text on one line that cannot confuse a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(Failure::other("a\n  b").sentence(), "a b");
    }

    #[test]
    fn the_exit_codes_are_as_documented() {
        let codes = [Failure::usage(""), Failure::unavailable(""), Failure::other("")].map(|failure| failure.code());
        assert_eq!(codes, [64, 69, 1]);
    }
}
