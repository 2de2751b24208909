//! The host's own error responses, in the place of a component's.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use strum::{EnumCount, EnumIter, IntoStaticStr};
use wasmtime_wasi_http::WasiBody;

use crate::grpc::{self, Status};

/// Reason for which a request has no response of the component's; its name is that of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum RejectReason {
    /// All concurrency slots and all places in the admission queue are taken.
    QueueFull,
    /// No concurrency slot, or no instance, became free in time.
    QueueTimeout,
    /// The policy does not list the client's certificate.
    CallerDenied,
    /// The request names no host, or a malformed one.
    NoHost,
    /// The target is malformed, or not allowed for the method.
    BadTarget,
    /// The body has a transfer coding beside `chunked`.
    TransferCoding,
    /// The client broke off the request.
    ClientAborted,
    /// The body is larger than `body_size`.
    BodyTooLarge,
    /// The headers are larger than `header_size`. The HTTP server responds.
    HeadersTooLarge,
    /// The bytes are no request of HTTP. The HTTP server responds.
    Malformed,
    /// The component took longer than `request_timeout`, or than the client waits.
    Timeout,
    /// The component trapped, or ended without a response.
    ComponentFailed,
    /// No instance could be made.
    InstantiationFailed,
    /// The component returned an error code in the place of a response.
    ErrorCode,
}

/// A response of the host. Its text reveals nothing of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rejection {
    pub(crate) reason: RejectReason,
    /// Status in HTTP, which in gRPC is not sent.
    pub(crate) status: StatusCode,
    pub(crate) grpc_status: Status,
    pub(crate) text: &'static str,
}

impl From<RejectReason> for Rejection {
    fn from(reason: RejectReason) -> Self {
        let (status, grpc_status, text) = match reason {
            RejectReason::QueueFull | RejectReason::QueueTimeout => {
                (StatusCode::SERVICE_UNAVAILABLE, Status::Unavailable, "the service is busy")
            }
            RejectReason::CallerDenied => {
                (StatusCode::FORBIDDEN, Status::PermissionDenied, "the caller may not call this service")
            }
            RejectReason::NoHost => (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request names no host"),
            RejectReason::BadTarget => {
                (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request target is malformed")
            }
            RejectReason::TransferCoding => {
                (StatusCode::NOT_IMPLEMENTED, Status::Unimplemented, "the transfer coding is not supported")
            }
            RejectReason::Malformed => (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request is malformed"),
            RejectReason::ClientAborted => (StatusCode::BAD_REQUEST, Status::Cancelled, "the request broke off"),
            RejectReason::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, Status::ResourceExhausted, "the request is too large")
            }
            RejectReason::HeadersTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Status::ResourceExhausted,
                "the headers of the request are too large",
            ),
            RejectReason::Timeout => {
                (StatusCode::GATEWAY_TIMEOUT, Status::DeadlineExceeded, "the service took too long")
            }
            RejectReason::ComponentFailed | RejectReason::InstantiationFailed | RejectReason::ErrorCode => {
                (StatusCode::INTERNAL_SERVER_ERROR, Status::Internal, "the service failed")
            }
        };
        Self { reason, status, grpc_status, text }
    }
}

impl Rejection {
    /// The response in the place of which a component returned an error code with this status.
    pub(crate) fn error_code(status: StatusCode, grpc_status: Status) -> Self {
        let text = match status.is_client_error() {
            true => "the service refused the request",
            false => "the service could not answer the request",
        };
        Self { reason: RejectReason::ErrorCode, status, grpc_status, text }
    }

    /// Returns true if the connection cannot be reused over HTTP/1.1.
    pub(crate) fn closes_connection(&self) -> bool {
        matches!(self.reason, RejectReason::ClientAborted | RejectReason::TransferCoding)
    }

    /// The response; in gRPC one whose status is in the headers.
    pub(crate) fn response(&self, grpc: bool) -> Response<WasiBody> {
        let is_busy = matches!(self.reason, RejectReason::QueueFull | RejectReason::QueueTimeout);
        if grpc {
            let mut response = Response::new(empty());
            *response.headers_mut() = grpc::trailers_only(self.grpc_status, self.text);
            if is_busy {
                grpc::push_back(response.headers_mut());
            }
            return response;
        }
        let body = Full::new(Bytes::from(format!("{}\n", self.text)));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if is_busy {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A body without content.
pub(crate) fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
