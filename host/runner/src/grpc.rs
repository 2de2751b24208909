//! The parts of gRPC that a host has to know: its content type, its deadlines and its statuses.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Header with the pause before the next retry, as `retry-after` in HTTP.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Content type of every gRPC message; a suffix names its encoding.
const CONTENT_TYPE: &str = "application/grpc";

/// A status that the host answers in the component's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The caller broke off its request.
    Cancelled = 1,
    /// The request is malformed.
    InvalidArgument = 3,
    /// The caller's deadline passed, or the host's.
    DeadlineExceeded = 4,
    /// The component denies the request.
    PermissionDenied = 7,
    /// The request is too large.
    ResourceExhausted = 8,
    /// The host cannot read the request.
    Unimplemented = 12,
    /// The component failed.
    Internal = 13,
    /// The request was not begun and a retry is safe, if a pause is sent with it; otherwise the component could not reach a
    /// service that it needs.
    Unavailable = 14,
}

/// Returns true for a gRPC message, by its headers.
pub(crate) fn is_spoken(headers: &HeaderMap) -> bool {
    let Some(Ok(written)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
    // `application/grpc-web` is another protocol, in which a status is part of the body.
    written.strip_prefix(CONTENT_TYPE).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// Deadline of the caller for the whole call, if it sends a valid one.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let written = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = written.split_at_checked(written.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Returns true if a response has its status in the headers, after which nothing may follow.
pub(crate) fn is_trailers_only(headers: &HeaderMap) -> bool {
    is_spoken(headers) && headers.contains_key(STATUS)
}

/// Status in the trailers, or in headers in their place.
pub(crate) fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// Returns true for a status that is not the caller's fault.
pub(crate) fn is_failure(status: u16) -> bool {
    matches!(status, 2 | 4 | 12..=15)
}

/// Trailers of a response that broke off.
pub(crate) fn trailers(status: Status, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(STATUS, HeaderValue::from(status as u16));
    trailers.insert(MESSAGE, HeaderValue::from_static(message));
    trailers
}

/// Headers of a response that consists of a status.
pub(crate) fn trailers_only(status: Status, message: &'static str) -> HeaderMap {
    let mut headers = trailers(status, message);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers
}

/// Status of a server that cannot process requests at the moment.
pub(crate) const UNAVAILABLE: u16 = Status::Unavailable as u16;

/// Pause that a server wants before a further try; `None` if it says nothing, or wants none.
pub(crate) fn pushback(headers: &HeaderMap) -> Option<Duration> {
    let millis: u32 = headers.get(PUSHBACK)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis.into()))
}

/// Deadline as it is written in a header.
pub(crate) fn written_timeout(left: Duration) -> HeaderValue {
    // Eight digits of milliseconds are a day.
    HeaderValue::try_from(format!("{}m", left.as_millis().min(99_999_999))).expect("digits and a letter")
}

/// Lets a client try again after a second.
pub(crate) fn push_back(headers: &mut HeaderMap) {
    headers.insert(PUSHBACK, HeaderValue::from_static("1000"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName};

    use super::{is_spoken, timeout};

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        [(HeaderName::from_static(name), value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let spoken = |value| is_spoken(&headers("content-type", value));
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(spoken(grpc), "{grpc}");
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "application/json", "application/grpcx", ""]
        {
            assert!(!spoken(other), "{other}");
        }
        assert!(!is_spoken(&HeaderMap::new()));
    }

    #[test]
    fn a_timeout_has_a_unit_and_eight_digits_at_most() {
        let timeout = |value| timeout(&headers("grpc-timeout", value));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout("2M"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("7u"), Some(Duration::from_micros(7)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1s", "1.5S", "-1S", "+1S", "100000000S", "1 S", "1SS"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }
}
