//! Routes of the admin endpoint: from a request's head to its route, or to the reason of a refusal. Pure.

use std::{net::IpAddr, time::Duration};

use http::{Method, Request, StatusCode, header};
use leasehold::Weight;
use percent_encoding::percent_decode_str;

use crate::telemetry::log_level::Level;

/// Paths and methods, for a request that has another path.
const PATHS: &str = "GET /healthz, GET /readyz, GET /metrics, GET /services, GET /status, GET /status/NAME, \
                     POST /drain/NAME, POST /resume/NAME, POST /weight/NAME?value=WEIGHT, POST /reload, POST /reload/NAME, \
                     POST /log/LEVEL?for=SECONDS";
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
    /// Reload of one service, or of all.
    Reload(Option<String>),
    /// Another level of the log for a while; no time at all restores the usual one.
    LogLevel(Level, Duration),
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
}

impl Route {
    /// The route of a request. `is_remote` for an endpoint that listens beyond this machine, where a name in the `Host`
    /// header proves nothing.
    pub(crate) fn of<B>(request: &Request<B>, is_remote: bool) -> Result<Self, RouteError> {
        refuse_web_pages(request, is_remote)?;
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let route = match path {
            "/healthz" => Self::Health,
            "/readyz" => Self::Readiness { without_etcd: without_etcd(query)? },
            "/metrics" => Self::Metrics,
            "/services" => Self::Services,
            "/status" => Self::Status(None),
            "/reload" => Self::Reload(None),
            _ => match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
                Some(("status", name)) => Self::Status(Some(decoded(name)?)),
                Some(("drain", name)) => Self::Drain(decoded(name)?),
                Some(("resume", name)) => Self::Resume(decoded(name)?),
                Some(("weight", name)) => Self::Weight(decoded(name)?, weight(query)?),
                Some(("reload", name)) => Self::Reload(Some(decoded(name)?)),
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
            Self::Drain(_) | Self::Resume(_) | Self::Weight(..) | Self::Reload(_) | Self::LogLevel(..) => true,
        }
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
fn refuse_web_pages<B>(request: &Request<B>, is_remote: bool) -> Result<(), RouteError> {
    if request.headers().contains_key(header::ORIGIN) {
        return Err(RouteError::new(StatusCode::FORBIDDEN, "not for web pages"));
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<http::uri::Authority>().map(|authority| authority.host().to_owned());
    let is_plain = |name: String| name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    match is_remote || name.is_ok_and(is_plain) {
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

    use http::{Method, Request, StatusCode};

    use super::{Level, Route, RouteError};

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
            ("POST", "/reload", Route::Reload(None)),
            ("POST", "/reload/a/b", Route::Reload(Some("a/b".to_owned()))),
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
    fn a_web_page_is_refused_and_a_name_on_loopback() {
        let request = |host: &str, origin: Option<&str>| {
            let request = Request::builder().uri("/services").header("host", host);
            let request = origin.into_iter().fold(request, |request, origin| request.header("origin", origin));
            request.body(()).unwrap()
        };
        for (host, origin, is_remote, is_served) in [
            ("127.0.0.1:9", None, false, true),
            ("[::1]:9", None, false, true),
            ("localhost:9", None, false, true),
            ("admin.example", None, true, true),
            ("rebound.example", None, false, false),
            ("", None, false, false),
            ("127.0.0.1:9", Some("http://evil.example"), false, false),
            ("127.0.0.1:9", Some("http://evil.example"), true, false),
        ] {
            let routed = Route::of(&request(host, origin), is_remote);
            assert_eq!(routed.is_ok(), is_served, "{host} {origin:?}: {routed:?}");
        }
    }
}
