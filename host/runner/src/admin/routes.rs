//! Routes of the admin endpoint: from a request's head to its route, or to the reason of a refusal. Pure.
//!
//! A router crate would find the path alone; the method, the rights of the caller and the reason of a refusal are decided with it.

use std::{fmt, net::IpAddr, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode, header};
use leasehold::Weight;
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq;

use crate::error::shown;

use crate::telemetry::log_level::Level;

/// Paths and methods, for a request that has another path.
const PATHS: &str = "GET /healthz, GET /readyz, GET /metrics, GET /services, GET /status, GET /status/NAME, \
                     POST /drain/NAME, POST /resume/NAME, POST /weight/NAME?value=WEIGHT, POST /reload?dry_run=true, \
                     POST /reload/NAME, POST /upgrade, POST /log/LEVEL?for=SECONDS";
/// Longest change of the log's level, and the usual one.
const MAX_LOG_SECONDS: u32 = 24 * 3600;
const LOG_SECONDS: u32 = 600;

/// Route of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Readiness {
        /// The state of etcd does not count.
        without_etcd: bool,
    },
    Metrics,
    Services,
    /// Status of the host with all of its services, or of the services of one name.
    Status(Option<String>),
    Drain(String),
    Resume(String),
    /// Sets the weight of a service; `None` for the weight as configured.
    Weight(String, Option<Weight>),
    /// Reload of one service from its component file.
    Reload(String),
    /// Reload of the configuration.
    Reconfigure {
        /// Changes nothing, and responds with the plan.
        dry_run: bool,
    },
    /// Hand-over of the host to a new process.
    Upgrade,
    /// Another level of the log for a while; no time at all restores the usual one.
    LogLevel(Level, Duration),
}

/// Rights of a client, by its listener and its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Everything: the permissions of the socket or the certificate have identified the client.
    All,
    /// Reading, and with the token everything.
    Token,
    /// Reading alone.
    Read,
    /// Health and metrics alone.
    Probes,
}

/// Token of a request, compared with the configured one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Absent,
    Wrong,
    Right,
}

impl Token {
    /// Compares the token of a request, in a time that does not depend on where they differ.
    pub(crate) fn of(headers: &HeaderMap, expected: &[u8]) -> Self {
        match bearer(headers) {
            None => Self::Absent,
            Some(token) if bool::from(token.ct_eq(expected)) => Self::Right,
            Some(_) => Self::Wrong,
        }
    }
}

/// The token of a request with `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Reason for which a request has no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The method that the path accepts.
    pub(crate) allow: Option<Method>,
}

impl RouteError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), allow: None }
    }

    /// The token cannot be compared.
    pub(crate) fn unreadable_token() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the host cannot read its admin.token_file; its log says why")
    }
}

/// The command as it is typed.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain(name) => write!(f, "drain {}", shown(name)),
            Self::Resume(name) => write!(f, "resume {}", shown(name)),
            Self::Weight(name, Some(weight)) => write!(f, "weight {} {weight}", shown(name)),
            Self::Weight(name, None) => write!(f, "weight {} auto", shown(name)),
            Self::Reload(name) => write!(f, "reload {}", shown(name)),
            Self::Reconfigure { dry_run: true } => write!(f, "reload --dry-run"),
            Self::Reconfigure { dry_run: false } => write!(f, "reload"),
            Self::Upgrade => write!(f, "upgrade"),
            Self::LogLevel(level, _) => write!(f, "log {level}"),
            Self::Status(Some(name)) => write!(f, "status {}", shown(name)),
            Self::Health | Self::Readiness { .. } | Self::Metrics | Self::Services | Self::Status(None) => {
                write!(f, "status")
            }
        }
    }
}

impl Route {
    /// The route of a request. `takes_any_name` for a listener of which a name in the `Host` header proves nothing: it is
    /// reached from beyond this machine, or by its path.
    pub(crate) fn of<B>(request: &Request<B>, takes_any_name: bool) -> Result<Self, RouteError> {
        refuse_web_pages(request, takes_any_name)?;
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let route = match path {
            "/healthz" => Self::Health,
            "/readyz" => Self::Readiness { without_etcd: without_etcd(query)? },
            "/metrics" => Self::Metrics,
            "/services" => Self::Services,
            "/status" => Self::Status(None),
            "/upgrade" => Self::Upgrade,
            "/reload" => Self::Reconfigure { dry_run: dry_run(query)? },
            _ => match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
                Some(("status", name)) => Self::Status(Some(decoded(name)?)),
                Some(("drain", name)) => Self::Drain(decoded(name)?),
                Some(("resume", name)) => Self::Resume(decoded(name)?),
                Some(("weight", name)) => Self::Weight(decoded(name)?, weight(query)?),
                Some(("reload", name)) => Self::Reload(decoded(name)?),
                Some(("log", level)) => log_level(level, request.uri().query())?,
                _ => {
                    return Err(RouteError::new(
                        StatusCode::NOT_FOUND,
                        format!("not an admin endpoint: the endpoints are {PATHS}"),
                    ));
                }
            },
        };
        let expected = route.method();
        if *request.method() == expected || (request.method() == Method::HEAD && expected == Method::GET) {
            return Ok(route);
        }
        let message = format!("the method must be {expected}");
        Err(RouteError { status: StatusCode::METHOD_NOT_ALLOWED, message, allow: Some(expected) })
    }

    /// Returns true for a command, which changes something.
    pub(crate) fn is_command(&self) -> bool {
        match self {
            Self::Health | Self::Readiness { .. } | Self::Metrics | Self::Services | Self::Status(_) => false,
            Self::Drain(_)
            | Self::Resume(_)
            | Self::Weight(..)
            | Self::Reload(_)
            | Self::Reconfigure { .. }
            | Self::Upgrade
            | Self::LogLevel(..) => true,
        }
    }

    /// Checks the route against the rights of the client.
    pub(crate) fn permit(&self, rights: Rights, token: Token) -> Result<(), RouteError> {
        let is_probe = matches!(self, Self::Health | Self::Readiness { .. } | Self::Metrics);
        let (status, message) = match (rights, token) {
            (Rights::Probes, _) if !is_probe => {
                (StatusCode::NOT_FOUND, "this listener has /healthz, /readyz and /metrics alone")
            }
            (Rights::Read, _) if self.is_command() => (
                StatusCode::FORBIDDEN,
                "this address is read-only: admin.token_file or admin.tls.client_ca permits commands over TCP, and \
                 admin.listen: unix:PATH those of this machine",
            ),
            (Rights::Token, Token::Absent) if self.is_command() => (
                StatusCode::UNAUTHORIZED,
                "this needs the token of admin.token_file: --config FILE or --token-file FILE of a command, or Authorization: \
                 Bearer TOKEN",
            ),
            (Rights::Token, Token::Wrong) if self.is_command() => {
                (StatusCode::UNAUTHORIZED, "the token is not that of admin.token_file")
            }
            _ => return Ok(()),
        };
        Err(RouteError::new(status, message))
    }

    /// The method of the route: POST for commands.
    fn method(&self) -> Method {
        if self.is_command() { Method::POST } else { Method::GET }
    }
}

/// Value of a parameter of the query, as it is written.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Returns true if the state of etcd does not count for readiness.
fn without_etcd(query: &str) -> Result<bool, RouteError> {
    match parameter(query, "etcd") {
        None | Some("required") => Ok(false),
        Some("optional") => Ok(true),
        Some(_) => Err(RouteError::new(StatusCode::BAD_REQUEST, "etcd must be optional or required")),
    }
}

/// Returns true if a reload is only planned.
fn dry_run(query: &str) -> Result<bool, RouteError> {
    let written = parameter(query, "dry_run").unwrap_or("false");
    written.parse().map_err(|_| RouteError::new(StatusCode::BAD_REQUEST, "dry_run must be true or false"))
}

/// The weight in a query; `None` for the weight as configured.
fn weight(query: &str) -> Result<Option<Weight>, RouteError> {
    let weight = match parameter(query, "value") {
        Some("auto") => return Ok(None),
        value => value.and_then(|value| value.parse::<u32>().ok()).and_then(|value| value.try_into().ok()),
    };
    let weight = weight.ok_or_else(|| RouteError::new(StatusCode::BAD_REQUEST, "value must be 1 to 100, or auto"))?;
    Ok(Some(weight))
}

/// Refuses requests that come from a web page in an operator's browser: those with an `Origin`, and on loopback those for a
/// name, which may resolve there by DNS rebinding.
fn refuse_web_pages<B>(request: &Request<B>, takes_any_name: bool) -> Result<(), RouteError> {
    if request.headers().contains_key(header::ORIGIN) {
        return Err(RouteError::new(StatusCode::FORBIDDEN, "not for web pages"));
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<http::uri::Authority>().map(|authority| authority.host().to_owned());
    let is_plain = |name: String| name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    match takes_any_name || name.is_ok_and(is_plain) {
        true => Ok(()),
        false => Err(RouteError::new(StatusCode::FORBIDDEN, "the host must be an address, or localhost")),
    }
}

fn log_level(level: &str, query: Option<&str>) -> Result<Route, RouteError> {
    let refused = |message: &str| RouteError::new(StatusCode::BAD_REQUEST, message);
    let level = level.parse().map_err(|_| refused("the level must be error, warn, info, debug or trace"))?;
    let seconds = match query.map(|query| query.strip_prefix("for=")) {
        None => Some(LOG_SECONDS),
        Some(written) => written.and_then(|text| text.parse().ok()).filter(|seconds| *seconds <= MAX_LOG_SECONDS),
    };
    let seconds = seconds.ok_or_else(|| refused("the time must be for=0 to for=86400, in seconds"))?;
    Ok(Route::LogLevel(level, Duration::from_secs(seconds.into())))
}

fn decoded(name: &str) -> Result<String, RouteError> {
    let decoded = percent_decode_str(name).decode_utf8();
    decoded.map(Into::into).map_err(|_| RouteError::new(StatusCode::BAD_REQUEST, "the name of a service is UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, Method, Request, StatusCode, header::AUTHORIZATION};

    use super::{Level, Rights, Route, RouteError, Token};

    fn route(method: &str, target: &str) -> Result<Route, RouteError> {
        let request = Request::builder().method(method).uri(target).header("host", "127.0.0.1:1").body(()).unwrap();
        Route::of(&request, false)
    }

    #[test]
    fn each_path_has_one_method() {
        for (method, target, expected) in [
            ("GET", "/healthz", Route::Health),
            ("HEAD", "/healthz?verbose", Route::Health),
            ("GET", "/readyz", Route::Readiness { without_etcd: false }),
            ("GET", "/readyz?etcd=optional", Route::Readiness { without_etcd: true }),
            ("GET", "/metrics", Route::Metrics),
            ("GET", "/services", Route::Services),
            ("GET", "/readyz?verbose&etcd=optional", Route::Readiness { without_etcd: true }),
            ("GET", "/readyz?etcd=required", Route::Readiness { without_etcd: false }),
            ("GET", "/status", Route::Status(None)),
            ("GET", "/status/a", Route::Status(Some("a".to_owned()))),
            ("POST", "/resume/a", Route::Resume("a".to_owned())),
            ("POST", "/weight/a?value=100", Route::Weight("a".to_owned(), Some(100.try_into().unwrap()))),
            ("POST", "/weight/a?value=auto", Route::Weight("a".to_owned(), None)),
            ("POST", "/drain/a%20b", Route::Drain("a b".to_owned())),
            ("POST", "/reload", Route::Reconfigure { dry_run: false }),
            ("POST", "/upgrade", Route::Upgrade),
            ("POST", "/reload?dry_run=true", Route::Reconfigure { dry_run: true }),
            ("POST", "/reload/a/b", Route::Reload("a/b".to_owned())),
            ("POST", "/log/debug", Route::LogLevel(Level::Debug, Duration::from_secs(600))),
            ("POST", "/log/trace?for=0", Route::LogLevel(Level::Trace, Duration::ZERO)),
        ] {
            assert_eq!(route(method, target), Ok(expected.clone()), "{method} {target}");
            let other = if method == "POST" { "GET" } else { "POST" };
            let refused = route(other, target).unwrap_err();
            assert_eq!((refused.status, refused.allow), (StatusCode::METHOD_NOT_ALLOWED, Some(expected.method())));
        }
        assert_eq!(route("HEAD", "/drain/a").unwrap_err().allow, Some(Method::POST));
        for target in ["/", "/drain", "/resume", "/weight", "/health", "//healthz", "/services/x"] {
            assert_eq!(route("GET", target).unwrap_err().status, StatusCode::NOT_FOUND, "{target}");
        }
        for (method, target) in [
            ("POST", "/drain/%ff"),
            ("POST", "/weight/a"),
            ("POST", "/weight/a?value="),
            ("POST", "/weight/a?value=0"),
            ("POST", "/weight/a?value=101"),
            ("POST", "/weight/a?value=-5"),
            ("GET", "/readyz?etcd=off"),
            ("POST", "/reload?dry_run=perhaps"),
            ("POST", "/log/loud"),
            ("POST", "/log/"),
            ("POST", "/log/debug?for="),
            ("POST", "/log/debug?for=86401"),
            ("POST", "/log/debug?x=1"),
        ] {
            assert_eq!(route(method, target).unwrap_err().status, StatusCode::BAD_REQUEST, "{target}");
        }
    }

    #[test]
    fn commands_need_rights_and_reading_does_not() {
        let command = Route::Drain("a".to_owned());
        let status =
            |route: &Route, rights, token| route.permit(rights, token).err().map(|refused| refused.status.as_u16());
        for (rights, absent, wrong, right) in [
            (Rights::All, None, None, None),
            (Rights::Token, Some(401), Some(401), None),
            (Rights::Read, Some(403), Some(403), Some(403)),
            (Rights::Probes, Some(404), Some(404), Some(404)),
        ] {
            let statuses = [Token::Absent, Token::Wrong, Token::Right].map(|token| status(&command, rights, token));
            assert_eq!(statuses, [absent, wrong, right], "{rights:?}");
            assert_eq!(status(&Route::Metrics, rights, Token::Absent), None);
            let services = if rights == Rights::Probes { Some(404) } else { None };
            assert_eq!(status(&Route::Services, rights, Token::Absent), services);
        }
    }

    #[test]
    fn a_token_is_compared_as_a_whole() {
        let of = |value: &str| Token::of(&HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]), b"secret");
        assert_eq!(["Bearer secret", "bearer  secret "].map(of), [Token::Right; 2]);
        assert_eq!(["Bearer secre", "Bearer secrets", "Bearer Secret", "Bearer "].map(of), [Token::Wrong; 4]);
        assert_eq!(["Basic secret", "secret", "Bearer"].map(of), [Token::Absent; 3]);
        assert_eq!(Token::of(&HeaderMap::new(), b"secret"), Token::Absent);
    }

    #[test]
    fn a_web_page_is_refused_and_a_name_on_loopback() {
        let request = |host: &str, origin: Option<&str>| {
            let request = Request::builder().uri("/services").header("host", host);
            let request = origin.into_iter().fold(request, |request, origin| request.header("origin", origin));
            request.body(()).unwrap()
        };
        for (host, origin, takes_any_name, is_served) in [
            ("127.0.0.1:9", None, false, true),
            ("[::1]:9", None, false, true),
            ("localhost:9", None, false, true),
            ("admin.example", None, true, true),
            ("rebound.example", None, false, false),
            ("", None, false, false),
            ("127.0.0.1:9", Some("http://evil.example"), false, false),
            ("127.0.0.1:9", Some("http://evil.example"), true, false),
        ] {
            let routed = Route::of(&request(host, origin), takes_any_name);
            assert_eq!(routed.is_ok(), is_served, "{host} {origin:?}: {routed:?}");
        }
    }
}
