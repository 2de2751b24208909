//! Status of an error code of `wasi:http` that a component returns in the place of a response, as RFC 9209, section 2.3,
//! recommends it.

use http::StatusCode;
use wasmtime_wasi_http::{Error, p2, p3};

use crate::{grpc::Status, rejection::Rejection};

/// The error code that a handler returned, if it ended with one.
pub(crate) fn returned(error: &wasmtime::Error) -> Option<Error> {
    if let Some(code) = error.downcast_ref::<p2::bindings::http::types::ErrorCode>() {
        return Some(code.clone().into());
    }
    error.downcast_ref::<p3::bindings::http::types::ErrorCode>().map(|code| code.clone().into())
}

/// Response in the place of which a component returned this error code.
pub(crate) fn rejection(code: &Error) -> Rejection {
    let (status, grpc) = status(code);
    Rejection::error_code(status, grpc)
}

/// Status in HTTP and in gRPC. An error that the host adds in a later version is the component's internal one.
fn status(code: &Error) -> (StatusCode, Status) {
    let status = match code {
        Error::HttpRequestDenied => StatusCode::FORBIDDEN,
        Error::HttpRequestLengthRequired => StatusCode::LENGTH_REQUIRED,
        Error::HttpRequestBodySize(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Error::HttpRequestUriTooLong => StatusCode::URI_TOO_LONG,
        // 405 would have to name the methods that are allowed.
        Error::HttpRequestMethodInvalid | Error::HttpRequestUriInvalid => StatusCode::BAD_REQUEST,
        Error::HttpRequestHeaderSectionSize(_)
        | Error::HttpRequestHeaderSize { .. }
        | Error::HttpRequestTrailerSectionSize(_)
        | Error::HttpRequestTrailerSize { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Error::DestinationUnavailable | Error::ConnectionLimitReached => StatusCode::SERVICE_UNAVAILABLE,
        Error::DnsTimeout
        | Error::ConnectionTimeout
        | Error::ConnectionReadTimeout
        | Error::ConnectionWriteTimeout
        | Error::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        Error::DnsError { .. }
        | Error::DestinationIpProhibited
        | Error::DestinationIpUnroutable
        | Error::ConnectionRefused
        | Error::ConnectionTerminated
        | Error::TlsProtocolError
        | Error::TlsCertificateError
        | Error::TlsAlertReceived { .. }
        | Error::HttpResponseIncomplete
        | Error::HttpResponseHeaderSectionSize(_)
        | Error::HttpResponseHeaderSize { .. }
        | Error::HttpResponseBodySize(_)
        | Error::HttpResponseTrailerSectionSize(_)
        | Error::HttpResponseTrailerSize { .. }
        | Error::HttpResponseTransferCoding(_)
        | Error::HttpResponseContentCoding(_)
        | Error::HttpUpgradeFailed
        | Error::HttpProtocolError
        | Error::LoopDetected => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let grpc = match status {
        StatusCode::FORBIDDEN => Status::PermissionDenied,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            Status::ResourceExhausted
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Status::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Status::DeadlineExceeded,
        status if status.is_client_error() => Status::InvalidArgument,
        _ => Status::Internal,
    };
    (status, grpc)
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi_http::{
        Error, p2,
        p3::{self, bindings::http::types::DnsErrorPayload},
    };

    use super::{returned, status};

    #[test]
    fn an_error_code_has_the_status_of_rfc_9209() {
        for (code, http, grpc) in [
            (Error::DnsError { rcode: None, info_code: None }, 502, 14),
            (Error::DnsTimeout, 504, 4),
            (Error::DestinationNotFound, 500, 13),
            (Error::DestinationUnavailable, 503, 14),
            (Error::ConnectionRefused, 502, 14),
            (Error::ConnectionReadTimeout, 504, 4),
            (Error::ConnectionLimitReached, 503, 14),
            (Error::HttpRequestDenied, 403, 7),
            (Error::HttpRequestLengthRequired, 411, 3),
            (Error::HttpRequestBodySize(Some(1)), 413, 8),
            (Error::HttpRequestUriTooLong, 414, 8),
            (Error::HttpRequestUriInvalid, 400, 3),
            (Error::HttpRequestHeaderSectionSize(None), 431, 8),
            (Error::HttpResponseTimeout, 504, 4),
            (Error::LoopDetected, 502, 14),
            (Error::ConfigurationError, 500, 13),
            (Error::InternalError(Some("said".to_owned())), 500, 13),
        ] {
            let (found, status) = status(&code);
            assert_eq!((found.as_u16(), status as u16), (http, grpc), "{code:?}");
        }
    }

    #[test]
    fn an_error_code_is_known_in_both_versions_and_a_trap_is_none() {
        let old = wasmtime::Error::from(p2::bindings::http::types::ErrorCode::ConnectionRefused);
        assert!(matches!(returned(&old), Some(Error::ConnectionRefused)));
        let payload = DnsErrorPayload { rcode: None, info_code: Some(7) };
        let new = wasmtime::Error::from(p3::bindings::http::types::ErrorCode::DnsError(payload));
        assert!(matches!(returned(&new), Some(Error::DnsError { info_code: Some(7), .. })));
        assert!(returned(&wasmtime::Error::from(wasmtime::Trap::UnreachableCodeReached)).is_none());
    }
}
