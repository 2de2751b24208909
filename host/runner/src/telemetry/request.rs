//! Identity of a request in the log: its method and path, its client, and its identifiers.

use std::{fmt, net::SocketAddr};

use http::{Method, Request, Uri};
use opentelemetry::trace::{SpanContext, TraceId};
use tracing::field::{DisplayValue, display};

use crate::{error::shown, telemetry::request_id::RequestId};

/// Longest part of a path that is logged.
const MAX_PATH: usize = 256;

/// Identity of a request. Displayed as its method and its path.
#[derive(Debug, Default, Clone)]
pub(crate) struct RequestIdentity {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// The client; `None` for a request of the host.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) id: Option<RequestId>,
    /// Its span, if the request is traced.
    pub(crate) span: Option<SpanContext>,
}

impl RequestIdentity {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone(), ..Self::default() }
    }

    /// The path, cut, without the query: that may hold a secret.
    pub(crate) fn path(&self) -> String {
        cut(self.uri.path())
    }

    /// The query, cut; empty where there is none.
    pub(crate) fn query(&self) -> String {
        cut(self.uri.query().unwrap_or_default())
    }

    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        self.span.as_ref().map(SpanContext::trace_id)
    }
}

// Fields of a log line.
impl RequestIdentity {
    pub(crate) fn peer_field(&self) -> Option<DisplayValue<SocketAddr>> {
        self.peer.map(display)
    }

    pub(crate) fn id_field(&self) -> Option<&str> {
        self.id.as_ref().map(RequestId::as_str)
    }

    pub(crate) fn trace_field(&self) -> Option<DisplayValue<TraceId>> {
        self.trace_id().map(display)
    }
}

impl fmt::Display for RequestIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path())
    }
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_PATH);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", shown(&text[..end]))
}

/// Logs a message about a request of a service, with the fields by which other lines about it are found.
macro_rules! log_request {
    ($level:ident, $service:expr, $request:expr, $($message:tt)+) => {
        tracing::$level!(
            service = %$service,
            request = %$request,
            peer = $request.peer_field(),
            request_id = $request.id_field(),
            trace_id = $request.trace_field(),
            $($message)+
        )
    };
}
pub(crate) use log_request;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::RequestIdentity;

    #[test]
    fn a_request_is_logged_without_its_query_and_cut() {
        let line = |uri: &str| RequestIdentity::of(&Request::post(uri).body(()).unwrap()).to_string();
        assert_eq!(line("http://here/a/b?secret=1"), "POST /a/b");
        assert_eq!(line(&format!("/{}", "a".repeat(300))), format!("POST /{}...", "a".repeat(255)));
    }
}
