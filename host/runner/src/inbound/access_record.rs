//! One request for the access log, from its arrival to the end of its response.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body::Frame;
use tokio::time::Instant;
use wasmtime_wasi_http::Error;

use crate::{
    grpc,
    rejection::RejectReason,
    telemetry::access_log::{AccessLine, AccessLog, Ending},
    wasm::in_flight::InFlightRequest,
};

/// A request whose line is written when this is dropped: with its response, or without one if its client has left.
pub(crate) struct AccessRecord {
    log: Arc<AccessLog>,
    request: Arc<InFlightRequest>,
    arrived: Instant,
    /// Headers of the request, for the format that has them.
    client: Option<ClientHeaders>,
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
    bytes: u64,
    /// Reason for which the host responded in the component's place.
    reason: Option<RejectReason>,
    /// The client has the whole response, or what is left of it is on its way.
    pub(crate) is_complete: bool,
    has_failed: bool,
}

/// Further fields of the Combined Log Format.
struct ClientHeaders {
    version: Version,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

impl AccessRecord {
    /// Begins the record of a request; `None` if the access log is off.
    pub(crate) fn begin<B>(
        log: &Arc<AccessLog>,
        in_flight: &Arc<InFlightRequest>,
        request: &Request<B>,
        arrived: Instant,
    ) -> Option<Self> {
        let header = |name: HeaderName| request.headers().get(name).cloned();
        let client = || ClientHeaders {
            version: request.version(),
            referer: header(header::REFERER),
            user_agent: header(header::USER_AGENT),
        };
        log.is_on().then(|| Self {
            log: Arc::clone(log),
            request: Arc::clone(in_flight),
            arrived,
            client: log.has_client_headers().then(client),
            status: None,
            grpc_status: None,
            bytes: 0,
            reason: None,
            is_complete: false,
            has_failed: false,
        })
    }

    /// Notes that the host responds in the component's place.
    pub(crate) fn reject(&mut self, reason: RejectReason) {
        self.reason = Some(reason);
    }

    /// Notes the head of the response.
    pub(crate) fn begin_response(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.grpc_status = grpc::is_trailers_only(headers).then(|| grpc::status(headers)).flatten();
    }

    /// Notes a part of the response on its way.
    pub(crate) fn sent(&mut self, frame: &Frame<Bytes>) {
        self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(trailers) = frame.trailers_ref() {
            self.grpc_status = grpc::status(trailers).or(self.grpc_status);
        }
    }

    /// Notes the last part of the response, which may be an error.
    pub(crate) fn ended(&mut self, last: Option<&Result<Frame<Bytes>, Error>>) {
        match last {
            Some(Ok(frame)) => self.sent(frame),
            Some(Err(_)) => self.has_failed = true,
            None => {}
        }
        self.is_complete = true;
    }

    fn ending(&self) -> Ending {
        let has_no_body = self.request.identity.method == Method::HEAD
            || matches!(self.status, Some(StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED));
        match self.status {
            Some(_) if self.has_failed => Ending::BrokenOff,
            Some(_) if self.is_complete || has_no_body => Ending::Complete,
            Some(_) => Ending::ClientLeft,
            None => Ending::NoResponse,
        }
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let client = self.client.take();
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let ending = self.ending();
        self.log.write(ending, self.status, self.grpc_status, || AccessLine {
            request: Some(&self.request.identity),
            peer: self.request.identity.peer,
            status: self.status.map(|status| status.as_u16()),
            grpc_status: self.grpc_status,
            ending,
            reason: self.reason.map(Into::into),
            bytes: self.bytes,
            duration: Some(self.arrived.elapsed()),
            queued: self.request.queued(),
            is_reuse: self.request.is_reuse(),
            version: client.as_ref().map(|client| client.version),
            referer: client.as_ref().and_then(|client| text(&client.referer)),
            user_agent: client.as_ref().and_then(|client| text(&client.user_agent)),
        });
    }
}
