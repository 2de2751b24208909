//! Errors of pulls and pushes, by what helps against them.

use oci_client::errors::{OciDistributionError, OciErrorCode};

/// Longest text of a registry within an error.
const MAX_FOREIGN_CHARS: usize = 200;

/// Reason why an artifact cannot be had. The text is a sentence about it, and never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that the caller gave breaks a rule. Repeating the call does not help.
    #[error("{0}")]
    Invalid(String),
    /// The registry does not answer, or fails. Repeating the call may help.
    #[error("{registry} does not answer: {why}")]
    Unavailable {
        /// Host of the registry.
        registry: String,
        /// The cause.
        why: String,
    },
    /// The registry denies access.
    #[error("{registry} denies access: {why}; a user and a password for it may help")]
    Denied {
        /// Host of the registry.
        registry: String,
        /// The cause.
        why: String,
    },
    /// The registry has no such artifact.
    #[error("{registry} has no {name}")]
    NotFound {
        /// Host of the registry.
        registry: String,
        /// Name, with tag or digest.
        name: String,
    },
    /// The artifact is not what its digest or its manifest says, or not a component.
    #[error("{0}")]
    Unusable(String),
    /// None of the keys has signed it.
    #[error("{0}")]
    Unsigned(String),
    /// The cache cannot be read or written.
    #[error("the cache of artifacts cannot be used: {0}")]
    Cache(String),
}

impl Error {
    /// The registry at a host has not answered, or not in time.
    pub fn unavailable(registry: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unavailable { registry: registry.into(), why: why.into() }
    }

    /// Returns true if the cache may stand in: the registry has not said that there is no such artifact, or that it denies it.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unusable(_) | Self::Cache(_))
    }

    /// The client's error about `name` at a registry.
    pub(crate) fn of(error: OciDistributionError, registry: &str, name: &str) -> Self {
        let registry = registry.to_owned();
        let unusable = |why: String| Self::Unusable(format!("{registry} sends a wrong answer for {name}: {why}"));
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => Self::NotFound { registry, name: name.to_owned() },
            OciDistributionError::AuthenticationFailure(why) => match is_denial(&why) {
                true => Self::Denied { registry, why: brief(&why) },
                false => Self::Unavailable { registry, why: format!("no token: {}", brief(&why)) },
            },
            OciDistributionError::UnauthorizedError { .. } => {
                Self::Denied { registry, why: "not authorized".to_owned() }
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes: Vec<_> = envelope.errors.iter().map(|error| &error.code).collect();
                let is = |known: &[OciErrorCode]| codes.iter().any(|code| known.contains(code));
                let why = brief(&envelope.to_string());
                if is(&[
                    OciErrorCode::ManifestUnknown,
                    OciErrorCode::NameUnknown,
                    OciErrorCode::NotFound,
                    OciErrorCode::BlobUnknown,
                ]) {
                    Self::NotFound { registry, name: name.to_owned() }
                } else if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    Self::Denied { registry, why }
                } else {
                    Self::Unavailable { registry, why }
                }
            }
            OciDistributionError::ServerError { code: 404, .. } => Self::NotFound { registry, name: name.to_owned() },
            OciDistributionError::ServerError { code: code @ (401 | 403), .. } => {
                Self::Denied { registry, why: format!("status {code}") }
            }
            OciDistributionError::ServerError { code, .. } => {
                Self::Unavailable { registry, why: format!("status {code}") }
            }
            OciDistributionError::RequestError(error) => {
                let why = chain(&error.without_url());
                // Of rustls, about a first byte that is none of TLS.
                let is_plain = why.contains("InvalidContentType");
                let hint = if is_plain { "; with plain_http, this host speaks HTTP to it" } else { "" };
                Self::Unavailable { registry, why: format!("{why}{hint}") }
            }
            OciDistributionError::IoError(error) => Self::Unavailable { registry, why: chain(&error) },
            error => unusable(brief(&error.to_string())),
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

/// Returns true for the answer of a token server that refuses the credentials; the client does not tell its status.
fn is_denial(answer: &str) -> bool {
    let answer = answer.to_lowercase();
    ["unauthorized", "denied", "forbidden", "incorrect", "invalid"].iter().any(|word| answer.contains(word))
}

/// Foreign text on one line, as much as is needed to understand it, without what commands a terminal.
pub(crate) fn brief(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_FOREIGN_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
