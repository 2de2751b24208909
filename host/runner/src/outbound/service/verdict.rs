//! Verdict on a response, or on a failure without one: for the node, and for a further try.

use std::{error::Error, time::Duration};

use h2::Reason;
use http::{HeaderMap, StatusCode};

use crate::grpc;

/// Condition of a further try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// None makes sense: the node has responded, be it with an error of the request's own.
    Never,
    /// Nothing was sent.
    NotSent,
    /// The node has not begun to process the request; a further try follows after this pause.
    NotProcessed(Duration),
    /// The node may have processed it, so the request must do no harm twice.
    IfHarmless,
}

/// Judges the head of a response.
pub(super) fn of_response(status: StatusCode, headers: &HeaderMap) -> Again {
    if grpc::is_trailers_only(headers) {
        return match grpc::status(headers) {
            // The node says when, or that it has had enough.
            Some(grpc::UNAVAILABLE) => grpc::pushback(headers).map_or(Again::IfHarmless, Again::NotProcessed),
            _ => Again::Never,
        };
    }
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Again::IfHarmless,
        _ => Again::Never,
    }
}

/// Judges a connection that broke off before the response. Over HTTP/2 a node says which requests it has not processed
/// (RFC 9113, 6.8 and 8.7).
pub(super) fn of_broken(error: &(dyn Error + 'static)) -> Again {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_refused = error.reason() == Some(Reason::REFUSED_STREAM);
            let is_leaving = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
            return if is_refused || is_leaving { Again::NotProcessed(Duration::ZERO) } else { Again::IfHarmless };
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return Again::NotProcessed(Duration::ZERO);
        }
        cause = error.source();
    }
    Again::IfHarmless
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, StatusCode};

    use super::{Again, of_response};

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn gateway_errors_are_tried_again_if_that_does_no_harm() {
        for (status, again) in [
            (200, Again::Never),
            (404, Again::Never),
            (429, Again::Never),
            (500, Again::Never),
            (501, Again::Never),
            (502, Again::IfHarmless),
            (503, Again::IfHarmless),
            (504, Again::IfHarmless),
        ] {
            assert_eq!(of_response(StatusCode::from_u16(status).unwrap(), &HeaderMap::new()), again, "{status}");
        }
    }

    #[test]
    fn an_unavailable_grpc_server_says_when_to_try_again() {
        let of = |more: &[(&'static str, &str)]| {
            let mut all = headers(more);
            all.extend(headers(&[("content-type", "application/grpc")]));
            of_response(StatusCode::OK, &all)
        };
        assert_eq!(of(&[]), Again::Never, "the status follows in the trailers");
        assert_eq!(of(&[("grpc-status", "5")]), Again::Never);
        assert_eq!(of(&[("grpc-status", "14")]), Again::IfHarmless);
        let pushed = |by| of(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", by)]);
        assert_eq!(pushed("20"), Again::NotProcessed(Duration::from_millis(20)));
        for never in ["-1", "x", "99999999999999999999"] {
            assert_eq!(pushed(never), Again::IfHarmless, "{never}");
        }
    }
}
