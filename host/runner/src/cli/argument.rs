//! Values of arguments, and errors that name their flags.

use std::{fmt::Display, path::Path, str::FromStr};

use leasehold::Source;

use crate::{config::Variables, error::Failure};

/// A file that can be read now, and is read again for each use.
pub(super) fn readable(flag: &str, path: &Path) -> Result<Source, Failure> {
    let source = Source::from(path.to_owned());
    source.read().map_err(|error| wrong(flag, error))?;
    Ok(source)
}

/// Parses an argument; the error names its flag.
pub(crate) fn parse<T>(flag: &str, text: &str) -> Result<T, Failure>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error| wrong(flag, error))
}

/// Error of an argument.
pub(super) fn wrong(flag: &str, error: impl Display) -> Failure {
    Failure::usage(format!("{flag}: {error}"))
}

/// Pairs of `KEY=VALUE`.
pub(super) fn pairs(flag: &str, given: &[String]) -> Result<Variables, Failure> {
    let mut variables = Variables::default();
    for pair in given {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                variables.0.insert(key.to_owned(), value.to_owned());
            }
            // The text is not repeated: it may be half of a secret.
            _ => return Err(Failure::usage(format!("{flag}: must be KEY=VALUE"))),
        }
    }
    Ok(variables)
}
