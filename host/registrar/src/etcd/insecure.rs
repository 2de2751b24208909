//! TLS in a build without it: an endpoint with `https` is refused, so that there is none of this.

use std::sync::Arc;

use tonic::transport::Endpoint as Transport;

use super::connection::Dial;
use crate::{node::Invalid, options::Options};

/// TLS towards one endpoint, which has no values here.
pub(super) enum Secure {}

impl Secure {
    pub(super) fn new(url: &Arc<str>, _: &str, _: &Options) -> Result<Self, Invalid> {
        Err(Invalid::new("endpoints", format!("must not be {url}: this program is built without the feature `tls`")))
    }

    pub(super) fn dial(self: Arc<Self>, _: Transport) -> Dial {
        match *self {}
    }

    pub(super) fn expired(&self) -> Option<String> {
        match *self {}
    }

    pub(super) fn log_failure(&self, _: &str) {
        match *self {}
    }

    pub(super) fn log_success(&self) {
        match *self {}
    }
}
