//! The host's own error responses, in the place of a component's.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use wasmtime_wasi_http::WasiBody;

use crate::grpc::{self, Status};

/// Reason for a response of the host. Its text reveals nothing of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rejection {
    Busy,
    NoHost,
    BadTarget,
    TransferCoding,
    ClientAborted,
    TooLarge,
    Timeout,
    Failed,
    /// The component returned an error code, which has this status.
    ErrorCode(StatusCode, Status),
}

impl Rejection {
    /// Status in HTTP, also where the response is a gRPC status.
    pub(crate) fn status(self) -> StatusCode {
        self.parts().0
    }

    /// Status in HTTP and in gRPC, and the text.
    pub(crate) fn parts(self) -> (StatusCode, Status, &'static str) {
        match self {
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, Status::Unavailable, "the service is busy"),
            Self::NoHost => (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request names no host"),
            Self::BadTarget => (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request target is malformed"),
            Self::TransferCoding => {
                (StatusCode::NOT_IMPLEMENTED, Status::Unimplemented, "the transfer coding is not supported")
            }
            Self::ClientAborted => (StatusCode::BAD_REQUEST, Status::Cancelled, "the request broke off"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Status::ResourceExhausted, "the request is too large"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, Status::DeadlineExceeded, "the service took too long"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, Status::Internal, "the service failed"),
            Self::ErrorCode(status, grpc) if status.is_client_error() => {
                (status, grpc, "the service refused the request")
            }
            Self::ErrorCode(status, grpc) => (status, grpc, "the service could not answer the request"),
        }
    }

    /// Returns true if the connection cannot be reused over HTTP/1.1.
    pub(crate) fn closes_connection(self) -> bool {
        matches!(self, Self::ClientAborted | Self::TransferCoding)
    }

    /// The response; in gRPC one whose status is in the headers.
    pub(crate) fn response(self, grpc: bool) -> Response<WasiBody> {
        let (status, grpc_status, text) = self.parts();
        if grpc {
            let mut response = Response::new(empty());
            *response.headers_mut() = grpc::trailers_only(grpc_status, text);
            if matches!(self, Self::Busy) {
                grpc::push_back(response.headers_mut());
            }
            return response;
        }
        let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if matches!(self, Self::Busy) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A body without content.
pub(crate) fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
