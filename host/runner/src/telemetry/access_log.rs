//! The access log of one service: the selection of requests, and the line of each in its format.

use std::{
    fmt::Write as _,
    io::{Write, stdout},
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, StatusCode, Version};
use leasehold::ServiceName;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use strum::IntoStaticStr;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::{
    config::{self, AccessFormat, Logged},
    error::shown,
    grpc,
    rejection::{RejectReason, Rejection},
    telemetry::{
        line_budget::{LineBudget, LineFate},
        log::{MAX_LINES, now},
        request::RequestIdentity,
        request_id::RequestId,
    },
};

/// Longest header of a client that is logged.
const MAX_HEADER: usize = 256;

/// Standard output, opened with the first line.
static STDOUT: OnceLock<Stdout> = OnceLock::new();

/// Lines to standard output, which nothing waits for.
struct Stdout {
    lines: NonBlocking,
    writer: Mutex<Option<WorkerGuard>>,
}

/// The access log of one service, shared by its revisions.
pub(crate) struct AccessLog {
    service: ServiceName,
    settings: config::AccessLog,
    budget: Mutex<LineBudget>,
}

/// End of a request; its name is that in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Ending {
    /// The response was sent.
    Complete,
    /// The response has begun, and was broken off by the host or the component.
    BrokenOff,
    /// The response has begun, and the client did not wait for its end.
    ClientLeft,
    /// The client left before a response.
    NoResponse,
}

/// Content of one line.
pub(crate) struct AccessLine<'a> {
    /// `None` for bytes that are no request, and for a head that is too large.
    pub(crate) request: Option<&'a RequestIdentity>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) status: Option<u16>,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) ending: Ending,
    /// Reason for which the host responded in the component's place.
    pub(crate) reason: Option<&'static str>,
    /// Bytes of the response's body.
    pub(crate) bytes: u64,
    /// Time from the arrival to the end of the response.
    pub(crate) duration: Option<Duration>,
    /// Part of it in the admission queue.
    pub(crate) queued: Duration,
    /// Its instance had served requests before.
    pub(crate) is_reuse: bool,
    pub(crate) version: Option<Version>,
    pub(crate) referer: Option<String>,
    pub(crate) user_agent: Option<String>,
}

impl Stdout {
    fn open() -> Self {
        let (lines, writer) =
            NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES).thread_name("access log").finish(stdout());
        Self { lines, writer: Mutex::new(Some(writer)) }
    }
}

/// Writes what still waits for standard output, for a second at most.
pub(crate) fn close() {
    if let Some(stdout) = STDOUT.get() {
        drop(stdout.writer.lock().take());
    }
}

/// Seconds, as a number that is short in every format.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

impl AccessLog {
    pub(crate) fn new(service: ServiceName, settings: config::AccessLog) -> Self {
        let budget = Mutex::new(LineBudget::new(Instant::now(), settings.lines));
        Self { service, settings, budget }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.settings.log != Logged::Off
    }

    /// Returns true if lines have headers of the request.
    pub(crate) fn has_client_headers(&self) -> bool {
        self.settings.format != AccessFormat::Log
    }

    /// The identifier of a request. Without an access log none is made.
    pub(crate) fn identify(&self, headers: &mut HeaderMap) -> Option<RequestId> {
        match self.is_on() {
            true => Some(RequestId::ensure(headers)),
            false => RequestId::sent(headers),
        }
    }

    /// Writes the line of a request that has ended, if it is to have one.
    pub(crate) fn write<'a>(
        &self,
        ending: Ending,
        status: Option<StatusCode>,
        grpc_status: Option<u16>,
        line: impl FnOnce() -> AccessLine<'a>,
    ) {
        let is_chosen = match self.settings.log {
            _ if is_error(ending, status, grpc_status) => self.is_on(),
            Logged::All => self.settings.sample >= 1.0 || fastrand::f64() < self.settings.sample,
            Logged::Errors | Logged::Off => false,
        };
        if is_chosen && self.has_budget() {
            self.print(&line());
        }
    }

    /// Writes the line of what the HTTP server refused, before there was a request.
    pub(crate) fn write_refused(&self, peer: SocketAddr, refused: RejectReason) {
        let status = Rejection::from(refused).status;
        self.write(Ending::Complete, Some(status), None, || AccessLine {
            request: None,
            peer: Some(peer),
            status: Some(status.as_u16()),
            grpc_status: None,
            ending: Ending::Complete,
            reason: Some(refused.into()),
            bytes: 0,
            duration: None,
            queued: Duration::ZERO,
            is_reuse: false,
            version: None,
            referer: None,
            user_agent: None,
        });
    }

    /// Takes a line out of the budget. Reports lines that were left out.
    fn has_budget(&self) -> bool {
        let fate = self.budget.lock().take(Instant::now(), self.settings.lines);
        let service = &self.service;
        match fate {
            LineFate::Logged(None) => {}
            LineFate::Logged(Some(dropped)) => {
                tracing::warn!(%service, dropped, "lines of the access log were left out (access_log.lines)");
            }
            LineFate::FirstDropped => {
                let most = self.settings.lines;
                tracing::warn!(%service, "the access log has no more than {most} lines a second (access_log.lines)");
            }
            LineFate::Dropped => {}
        }
        matches!(fate, LineFate::Logged(_))
    }

    fn print(&self, line: &AccessLine<'_>) {
        let text = match self.settings.format {
            AccessFormat::Log => return self.event(line),
            AccessFormat::Json => line.json(&self.service, self.settings.query),
            AccessFormat::Combined => line.combined(self.settings.query),
        };
        let mut lines = STDOUT.get_or_init(Stdout::open).lines.clone();
        let _ = lines.write_all(text.as_bytes()); // Standard output may be closed.
    }

    /// Writes a line of the log.
    fn event(&self, line: &AccessLine<'_>) {
        let AccessLine { request, peer, status, grpc_status, reason, bytes, .. } = *line;
        tracing::info!(
            event = "request",
            service = %self.service,
            method = request.map(|request| request.method.as_str()),
            path = request.map(RequestIdentity::path),
            query = request.filter(|_| self.settings.query).map(RequestIdentity::query),
            status,
            grpc_status,
            outcome = <&str>::from(line.ending),
            reason,
            bytes,
            duration = line.duration.map(seconds),
            queued = seconds(line.queued),
            reused = line.is_reuse,
            peer = peer.map(display),
            request_id = request.and_then(RequestIdentity::id_field),
            trace_id = request.and_then(RequestIdentity::trace_field),
            "a request has ended"
        );
    }
}

/// Detects an error of the server: by the status, or since the response broke off or did not begin.
fn is_error(ending: Ending, status: Option<StatusCode>, grpc_status: Option<u16>) -> bool {
    matches!(ending, Ending::BrokenOff | Ending::NoResponse)
        || status.is_some_and(|status| status.is_server_error())
        || grpc_status.is_some_and(grpc::is_failure)
}

impl AccessLine<'_> {
    /// The line as a JSON object with the fields of the log.
    fn json(&self, service: &ServiceName, with_query: bool) -> String {
        let request = self.request;
        let fields = json!({
            "timestamp": now(),
            "event": "request",
            "service": service.as_str(),
            "method": request.map(|request| request.method.as_str()),
            "path": request.map(RequestIdentity::path),
            "query": request.filter(|_| with_query).map(RequestIdentity::query),
            "protocol": self.version.map(|version| format!("{version:?}")),
            "status": self.status,
            "grpc_status": self.grpc_status,
            "outcome": <&str>::from(self.ending),
            "reason": self.reason,
            "bytes": self.bytes,
            "duration": self.duration.map(seconds),
            "queued": seconds(self.queued),
            "reused": self.is_reuse,
            "peer": self.peer.map(|peer| peer.to_string()),
            "request_id": request.and_then(RequestIdentity::id_field),
            "trace_id": request.and_then(RequestIdentity::trace_id).map(|id| id.to_string()),
            "referer": self.referer(with_query),
            "user_agent": self.user_agent.as_deref().map(cut),
        });
        let Value::Object(fields) = fields else { return String::new() };
        let known: Map<_, _> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        format!("{}\n", Value::Object(known))
    }

    /// The line in the Combined Log Format. Its status for a client that has left is that of nginx.
    fn combined(&self, with_query: bool) -> String {
        let peer = self.peer.map_or_else(|| "-".to_owned(), |peer| peer.ip().to_string());
        let head = self.request.map_or_else(|| "-".to_owned(), |request| self.head(request, with_query));
        let mut line = format!("{peer} - - [{}] ", clf_time());
        let _ = writeln!(
            line,
            "\"{head}\" {} {} \"{}\" \"{}\"",
            self.status.unwrap_or(499),
            self.bytes,
            quoted(self.referer(with_query).as_deref().unwrap_or("-")),
            quoted(&self.user_agent.as_deref().map_or_else(|| "-".to_owned(), cut)),
        );
        line
    }

    /// The line of the request itself.
    fn head(&self, request: &RequestIdentity, with_query: bool) -> String {
        let query = match request.query() {
            query if with_query && !query.is_empty() => format!("?{query}"),
            _ => String::new(),
        };
        let version = self.version.unwrap_or_default();
        format!("{} {}{} {version:?}", request.method, quoted(&request.path()), quoted(&query))
    }

    /// The referer, by default without its query.
    fn referer(&self, with_query: bool) -> Option<String> {
        let referer = self.referer.as_deref()?;
        let end = if with_query { None } else { referer.find(['?', '#']) };
        Some(cut(&referer[..end.unwrap_or(referer.len())]))
    }
}

fn cut(text: &str) -> String {
    shown(&text[..text.floor_char_boundary(MAX_HEADER)])
}

/// Text between quotes.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// The time as the Combined Log Format has it, made of that of HTTP: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn clf_time() -> String {
    let time = httpdate::fmt_http_date(SystemTime::now());
    let parts: Vec<_> = time.split(' ').collect();
    match parts.as_slice() {
        [_, day, month, year, clock, _] => format!("{day}/{month}/{year}:{clock} +0000"),
        _ => time,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Request, StatusCode, Version};

    use super::{AccessLine, Ending, is_error};
    use crate::telemetry::request::RequestIdentity;

    fn identity() -> RequestIdentity {
        let request = Request::get("http://here/a\"b?token=1").body(()).unwrap();
        RequestIdentity { peer: Some("[::1]:9".parse().unwrap()), ..RequestIdentity::of(&request) }
    }

    fn line(request: &RequestIdentity) -> AccessLine<'_> {
        AccessLine {
            request: Some(request),
            peer: request.peer,
            status: Some(200),
            grpc_status: None,
            ending: Ending::Complete,
            reason: None,
            bytes: 6,
            duration: Some(Duration::from_nanos(1_234_567)),
            queued: Duration::ZERO,
            is_reuse: false,
            version: Some(Version::HTTP_11),
            referer: Some("https://there/?secret=1".to_owned()),
            user_agent: Some("curl \"8\"\u{1b}".to_owned()),
        }
    }

    #[test]
    fn the_combined_format_is_that_of_web_servers() {
        let identity = identity();
        let text = line(&identity).combined(false);
        assert!(text.starts_with("::1 - - ["), "{text}");
        let (time, rest) = text["::1 - - [".len()..].split_once("] ").unwrap();
        assert_eq!(time.len(), "10/Oct/2000:13:55:36 +0000".len(), "{time}");
        assert_eq!(rest, "\"GET /a\\\"b HTTP/1.1\" 200 6 \"https://there/\" \"curl \\\"8\\\"\u{fffd}\"\n");
        assert!(line(&identity).combined(true).contains("?token=1 HTTP/1.1"));
        let left = AccessLine { status: None, referer: None, user_agent: None, ..line(&identity) };
        assert!(left.combined(false).ends_with(" 499 6 \"-\" \"-\"\n"), "{}", left.combined(false));
        let unread = AccessLine { request: None, version: None, status: Some(400), ..left };
        assert!(unread.combined(true).ends_with("] \"-\" 400 6 \"-\" \"-\"\n"), "{}", unread.combined(true));
    }

    #[test]
    fn a_line_of_json_has_numbers_and_no_absent_field() {
        let (identity, service) = (identity(), "greeter".parse().unwrap());
        let text = line(&identity).json(&service, false);
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((found["duration"].as_f64(), found["bytes"].as_u64()), (Some(0.001_235), Some(6)));
        assert_eq!((found["path"].as_str(), found["peer"].as_str()), (Some("/a\"b"), Some("[::1]:9")));
        for absent in ["query", "reason", "grpc_status", "request_id", "trace_id"] {
            assert!(found.get(absent).is_none(), "{absent}: {text}");
        }
        assert!(!text.contains("secret") && text.ends_with("}\n"), "{text}");
    }

    #[test]
    fn an_error_is_the_servers() {
        let is = |ending, status: u16, grpc| is_error(ending, StatusCode::from_u16(status).ok(), grpc);
        for (ending, status, grpc, expected) in [
            (Ending::Complete, 200, None, false),
            (Ending::Complete, 404, None, false),
            (Ending::Complete, 503, None, true),
            (Ending::Complete, 200, Some(0), false),
            (Ending::Complete, 200, Some(5), false),
            (Ending::Complete, 200, Some(13), true),
            (Ending::ClientLeft, 200, None, false),
            (Ending::BrokenOff, 200, None, true),
            (Ending::NoResponse, 0, None, true),
        ] {
            assert_eq!(is(ending, status, grpc), expected, "{ending:?} {status} {grpc:?}");
        }
    }
}
