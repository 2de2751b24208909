//! A response on its way to the client: its body, its permits, and its end if it cannot be completed.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use leasehold::ServiceName;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::{
    grpc::{self, Status},
    inbound::access_record::AccessRecord,
    rejection::{RejectReason, Rejection, empty},
    rt::timers::Sleep,
    telemetry::{request::log_request, service_metrics::Within, span::Span},
    wasm::in_flight::{InFlightRequest, InstanceEnd},
};

/// Guard of an in-flight request. Dropping it before `complete` marks the request as abandoned.
pub(crate) struct RequestGuard {
    service: ServiceName,
    pub(crate) request: Arc<InFlightRequest>,
    complete: bool,
    /// The span of the response, from its beginning on.
    span: Option<Span>,
}

impl RequestGuard {
    pub(crate) fn begin(service: ServiceName, request: Arc<InFlightRequest>) -> Self {
        Self { service, request, complete: false, span: None }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.request.leave(self.complete);
        if let Some(span) = self.span.as_mut().filter(|_| self.complete) {
            span.finish();
        }
    }
}

/// Next item of a body: a frame, an error, or the end.
type Next = Option<Result<Frame<Bytes>, Error>>;

/// Body of a response.
pub(crate) struct ResponseBody {
    /// State of a component's response; none for a response of the host. It is dropped first, so that the instance is
    /// abandoned before it notices that the body is not read.
    delivery: Option<Delivery>,
    body: WasiBody,
    /// Items that were read before anything is sent: one piece, and the next.
    ahead: [Option<Next>; 2],
    ended: bool,
    /// Its line of the access log.
    record: Option<AccessRecord>,
}

/// Permits of the queue and of a slot, and the entries among the requests in flight of the service and of the dispatcher.
pub(crate) type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit, (Within, TaskTrackerToken));

struct Delivery {
    guard: RequestGuard,
    /// Released when the response has been sent.
    _permits: Permits,
    /// A gRPC response that breaks off ends with a status.
    grpc: bool,
    /// Deadline of the whole response.
    deadline: Sleep,
    /// Length of the body and its unsent rest, if the component declares a length.
    length: Option<u64>,
    unsent: Option<u64>,
}

impl ResponseBody {
    /// Body of a response of the host.
    pub(crate) fn of(body: WasiBody) -> Self {
        Self { delivery: None, body, ahead: [None, None], ended: false, record: None }
    }

    /// Returns the component's response once its instance is idle, so that its first output is sent in one piece. A body
    /// that is complete by then has a length, and a failed body is an error. The span is moved into the response.
    pub(crate) async fn component(
        response: Response<WasiBody>,
        guard: RequestGuard,
        permits: Permits,
        deadline: Sleep,
        span: &mut Option<Span>,
    ) -> Result<Response<Self>, InstanceEnd> {
        let (parts, body) = response.into_parts();
        // Clients read a status in the headers only if the stream ends with them, which wasi:http cannot express.
        let body = if grpc::is_trailers_only(&parts.headers) { empty() } else { body };
        let grpc = grpc::is_spoken(&parts.headers);
        if parts.status.is_informational() {
            log_request!(
                warn,
                guard.service,
                guard.request.identity,
                "the component answered {}, which is no final response; connections are not upgraded",
                parts.status.as_u16()
            );
            return Err(InstanceEnd::Failed);
        }
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut delivery = Delivery { guard, _permits: permits, grpc, deadline, length, unsent: length };
        delivery.guard.complete = body.is_end_stream() || length == Some(0);
        let mut this = Self { delivery: Some(delivery), ..Self::of(body) };
        this.gather().await?;
        if let (Some(mut span), Some(delivery)) = (span.take(), &mut this.delivery) {
            span.record_response(&parts);
            delivery.guard.span = Some(span);
        }
        Ok(Response::from_parts(parts, this))
    }

    /// Leaves the line of the access log to the body, which writes it at its end.
    pub(crate) fn record(response: &mut Response<Self>, mut record: AccessRecord) {
        record.begin_response(response.status(), response.headers());
        let body = response.body_mut();
        record.is_complete = body.delivery.as_ref().is_none_or(|delivery| delivery.guard.complete);
        body.record = Some(record);
    }

    async fn gather(&mut self) -> Result<(), InstanceEnd> {
        let mut until = None;
        poll_fn(|cx| {
            if self.poll_ahead(cx).is_ready() {
                return Poll::Ready(());
            }
            if let Some(delivery) = &self.delivery {
                ready!(delivery.guard.request.poll_idle(cx, &mut until));
            }
            let _ = self.poll_ahead(cx);
            Poll::Ready(())
        })
        .await;
        let Some(delivery) = self.delivery.as_ref().filter(|delivery| !delivery.grpc && !delivery.guard.complete)
        else {
            return Ok(());
        };
        match self.ahead.iter().flatten().last() {
            Some(Some(Err(error))) => {
                delivery.warn(error, self.read_ahead());
                Err(delivery.guard.request.end().unwrap_or(InstanceEnd::Failed))
            }
            Some(None) => delivery.guard.request.end().map_or(Ok(()), Err),
            Some(Some(Ok(_))) | None => Ok(()),
        }
    }

    /// Reads one piece and the next item, as far as they are available. Ready once there is nothing more to read.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(delivery) = self.delivery.as_mut().filter(|delivery| !delivery.guard.complete) else {
            return Poll::Ready(());
        };
        for ahead in self.ahead.iter_mut().filter(|ahead| ahead.is_none()) {
            let next = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let is_data = matches!(&next, Some(Ok(frame)) if frame.is_data());
            // Incomplete if the instance ended, or the declared length is not reached.
            delivery.guard.complete =
                next.is_none() && delivery.unsent.is_none() && delivery.guard.request.end().is_none();
            *ahead = Some(next);
            if !is_data {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Bytes that were read and are not sent yet.
    fn read_ahead(&self) -> u64 {
        self.ahead.iter().flatten().flatten().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum()
    }

    /// Bytes that were read, if they are the whole rest of the body.
    fn whole_rest(&self) -> Option<u64> {
        let ends = self.ahead.iter().flatten().any(Option::is_none);
        let is_whole = self.delivery.as_ref().is_some_and(|delivery| delivery.guard.complete);
        (ends && is_whole).then(|| self.read_ahead())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let [first, second] = &mut self.ahead;
        match mem::replace(first, second.take()) {
            Some(next) => Poll::Ready(next),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }

    fn end(&mut self, last: Next) -> Poll<Next> {
        self.ended = true;
        if let Some(record) = &mut self.record {
            record.ended(last.as_ref());
        }
        Poll::Ready(last)
    }
}

impl Delivery {
    /// Last item of a body that broke off.
    fn broken(&mut self, end: InstanceEnd) -> Result<Frame<Bytes>, Error> {
        self.fails(end);
        match (self.grpc, end) {
            (true, InstanceEnd::TimedOut) => {
                Ok(Frame::trailers(grpc::trailers(Status::DeadlineExceeded, "the service took too long")))
            }
            (true, InstanceEnd::Failed | InstanceEnd::Abandoned) => {
                Ok(Frame::trailers(grpc::trailers(Status::Internal, "the service failed")))
            }
            (false, _) => Err(Error::HttpResponseIncomplete),
        }
    }

    /// Logs the reason for which a body broke off, unless its instance ended or the client broke off the request.
    fn warn(&self, error: &Error, read_ahead: u64) {
        if self.guard.request.end().is_some() || matches!(error, Error::ConnectionTerminated) {
            return;
        }
        let why = match (error, self.length, self.unsent) {
            (Error::HttpProtocolError, Some(length), Some(left)) if left != read_ahead => {
                format!("the component wrote {} bytes, and its content-length is {length}", length - left + read_ahead)
            }
            // The error of a dropped body of 0.2.
            (Error::HttpProtocolError, ..) => {
                "the component dropped its outgoing-body without outgoing-body.finish".to_owned()
            }
            (error, ..) => error.to_string(),
        };
        log_request!(warn, self.guard.service, self.guard.request.identity, "a response broke off: {why}");
    }

    fn fails(&mut self, end: InstanceEnd) {
        if let Some(span) = &mut self.guard.span {
            let reason =
                if end == InstanceEnd::TimedOut { RejectReason::Timeout } else { RejectReason::ComponentFailed };
            span.record_error(<&str>::from(reason).to_owned(), Rejection::from(reason).text);
            span.finish();
        }
    }

    fn passed(&mut self, frame: &Frame<Bytes>) {
        if let (Some(span), Some(trailers)) = (&mut self.guard.span, frame.trailers_ref()) {
            span.record_trailers(trailers);
        }
        if let (Some(left), Some(data)) = (&mut self.unsent, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
        }
        self.guard.complete |= frame.is_trailers() || self.unsent == Some(0);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = this.poll_next(cx);
        let Some(delivery) = &mut this.delivery else {
            if let (Some(record), Poll::Ready(Some(Ok(frame)))) = (&mut this.record, &polled) {
                record.sent(frame);
            }
            return polled;
        };
        let is_overdue = Instant::now() >= delivery.deadline.deadline();
        if is_overdue || (polled.is_pending() && Pin::new(&mut delivery.deadline).poll(cx).is_ready()) {
            let last = delivery.broken(InstanceEnd::TimedOut);
            return this.end(Some(last));
        }
        let end = match ready!(polled) {
            Some(Ok(frame)) => {
                delivery.passed(&frame);
                if let Some(record) = &mut this.record {
                    record.sent(&frame);
                    record.is_complete = delivery.guard.complete;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            // A body whose instance is gone appears to have ended.
            None if delivery.guard.complete => None,
            None => delivery.guard.request.end(),
            Some(Err(error)) => {
                delivery.warn(&error, 0);
                if !delivery.grpc {
                    delivery.fails(InstanceEnd::Failed);
                    return this.end(Some(Err(error)));
                }
                Some(delivery.guard.request.end().unwrap_or(InstanceEnd::Failed))
            }
        };
        delivery.guard.complete |= end.is_none();
        let last = end.map(|end| delivery.broken(end));
        this.end(last)
    }

    fn is_end_stream(&self) -> bool {
        let whole = self.delivery.as_ref().is_none_or(|delivery| delivery.guard.complete);
        self.ended || self.whole_rest() == Some(0) || (whole && self.ahead[0].is_none() && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(left) = self.whole_rest() {
            return SizeHint::with_exact(left);
        }
        // The hint of the body does not include the items that were read.
        let (mut hint, read_ahead) = (self.body.size_hint(), self.read_ahead());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read_ahead));
        }
        hint.set_lower(hint.lower().saturating_add(read_ahead));
        hint
    }
}
