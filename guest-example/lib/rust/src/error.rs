//! Errors of the host, as sentences and as kinds.

use std::fmt;

use crate::bindings::leasehold::registry::registry_types;

/// A call that failed: its subject, the kind of the error, and the host's text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    subject: String,
    kind: ErrorKind,
    text: String,
}

/// Kind of an error, by which a program decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A field breaks its rule. Repeating the call does not help.
    InvalidArgument,
    /// The policy of the component does not allow the call. Repeating it does not help.
    AccessDenied,
    /// A limit of the component or of the host is reached.
    QuotaExceeded,
    /// The live lease of another host holds the key.
    Conflict,
    /// The registry is unreachable, or the service is being stopped. A later call may succeed.
    Unavailable,
    /// The deadline expired.
    Timeout,
    /// The registration has ended already.
    NotRegistered,
    /// A call by name failed, or its response broke off.
    Http,
    /// Any other failure.
    Other,
}

impl Error {
    pub(crate) fn new(subject: impl Into<String>, kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), kind, text: text.into() }
    }

    /// The error of a call of the host.
    pub(crate) fn of(subject: impl Into<String>, error: registry_types::Error) -> Self {
        use registry_types::Error as Case;

        let (kind, text) = match error {
            Case::InvalidArgument(text) => (ErrorKind::InvalidArgument, text),
            Case::AccessDenied(text) => (ErrorKind::AccessDenied, text),
            Case::QuotaExceeded(text) => (ErrorKind::QuotaExceeded, text),
            Case::Conflict(text) => (ErrorKind::Conflict, text),
            Case::Unavailable(text) => (ErrorKind::Unavailable, text),
            Case::Timeout => (ErrorKind::Timeout, String::new()),
            Case::NotRegistered => (ErrorKind::NotRegistered, String::new()),
            Case::Other(text) => (ErrorKind::Other, text),
        };
        Self::new(subject, kind, text)
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidArgument => "invalid argument",
            Self::AccessDenied => "access denied",
            Self::QuotaExceeded => "quota exceeded",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::NotRegistered => "not registered",
            Self::Http => "the request failed",
            Self::Other => "the host failed",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.kind)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::{Error, ErrorKind, registry_types};

    #[test]
    fn an_error_is_a_sentence_with_its_subject_and_its_kind() {
        let denied = Error::of("register user", registry_types::Error::AccessDenied("addr must be its own".into()));
        assert_eq!(denied.to_string(), "register user: access denied: addr must be its own");
        assert_eq!(denied.kind(), ErrorKind::AccessDenied);
        assert_eq!(Error::of("stop", registry_types::Error::Timeout).to_string(), "stop: timeout");
    }
}
