//! A service that is called by name, and the response of such a call.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// The host of the URLs of one service.
#[derive(Debug, Clone)]
pub(crate) struct Callee {
    authority: String,
}

/// A response with its whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text, with a replacement for what is not UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Callee {
    /// A service in whatever version.
    pub(crate) fn new(name: &str) -> Self {
        Self { authority: format!("{name}.leasehold") }
    }

    pub(crate) fn of_version(name: &str, version: &str) -> Self {
        Self { authority: format!("{version}.{name}.leasehold") }
    }

    #[cfg(feature = "p3-http")]
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    pub(crate) fn error(&self, error: impl fmt::Display) -> Error {
        Error::new(format!("call {}", self.authority), ErrorKind::Http, error.to_string())
    }
}
