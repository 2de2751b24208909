//! An answer on its way to the client: the body, the place that it holds meanwhile, and how it ends when it cannot go on.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::{
    call::{Call, End},
    grpc::{self, Status},
    span::Span,
    stats::{Hit, Within},
};

/// Why the host answers in the component's place. What is said tells nothing of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    Busy,
    NoHost,
    Broken,
    Large,
    Late,
    Failed,
}

impl Refusal {
    /// In HTTP, in gRPC and in words.
    pub(crate) fn told(self) -> (StatusCode, Status, &'static str) {
        match self {
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, Status::Unavailable, "the service is busy"),
            Self::NoHost => (StatusCode::BAD_REQUEST, Status::InvalidArgument, "the request names no host"),
            Self::Broken => (StatusCode::BAD_REQUEST, Status::Cancelled, "the request broke off"),
            Self::Large => (StatusCode::PAYLOAD_TOO_LARGE, Status::ResourceExhausted, "the request is too large"),
            Self::Late => (StatusCode::GATEWAY_TIMEOUT, Status::DeadlineExceeded, "the service took too long"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, Status::Internal, "the service failed"),
        }
    }

    /// The status in HTTP, however it is told.
    pub(crate) fn status(self) -> StatusCode {
        self.told().0
    }

    /// The answer, as a gRPC status where gRPC is spoken.
    pub(crate) fn response(self, grpc: bool) -> Response<Answer> {
        let (status, grpc_status, said) = self.told();
        if grpc {
            let mut response = Response::new(Answer::of(empty()));
            *response.headers_mut() = grpc::trailers_only(grpc_status, said);
            return response;
        }
        let text = Full::new(Bytes::from(format!("{said}\n"))).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(Answer::of(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if matches!(self, Self::Busy) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request that is waited for. Dropping it without `whole` tells its instance that the client has left.
pub(crate) struct Waiting {
    pub(crate) call: Arc<Call>,
    whole: bool,
    /// The span of the answer, from its beginning on.
    span: Option<Span>,
}

impl Waiting {
    pub(crate) fn begin(within: Duration, span: Option<&Span>) -> Self {
        Self { call: Arc::new(Call::new(within, span.map(Span::context))), whole: false, span: None }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.call.leave(self.whole);
        if let Some(span) = self.span.as_mut().filter(|_| self.whole) {
            span.ends();
        }
    }
}

/// The body of an answer.
pub(crate) struct Answer {
    body: WasiBody,
    /// What an answer of the component has, and one of the host has not.
    hold: Option<Hold>,
    ended: bool,
}

/// Of the hall, of the room, and among those that are counted: by the service, and by the door.
pub(crate) type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit, (Within, TaskTrackerToken));

struct Hold {
    waiting: Waiting,
    /// Given back when the answer has been sent.
    _permits: Permits,
    /// Where gRPC is spoken, an answer that cannot go on ends with a status.
    grpc: bool,
    /// Until then the answer has to be there.
    deadline: Instant,
    /// Wakes by then, once something is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Bytes that are still to come, where the component says so.
    left: Option<u64>,
}

impl Answer {
    fn of(body: WasiBody) -> Self {
        Self { body, hold: None, ended: false }
    }

    /// The component's answer.
    pub(crate) fn component(
        response: Response<WasiBody>,
        waiting: Waiting,
        permits: Permits,
        deadline: Instant,
        span: Option<Span>,
    ) -> Response<Self> {
        let (parts, body) = response.into_parts();
        let grpc = grpc::is_spoken(&parts.headers);
        let left = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let mut hold = Hold { waiting, _permits: permits, grpc, deadline, alarm: None, left };
        hold.waiting.whole = body.is_end_stream() || left == Some(0);
        hold.waiting.span = span;
        if let Some(span) = &mut hold.waiting.span {
            span.begins(&parts);
        }
        // Clients read a status in the headers only if the stream ends with them, and wasi:http cannot say that it does.
        if grpc::is_trailers_only(&parts.headers) {
            hold.waiting.whole = true;
            return Response::from_parts(parts, Self::of(empty()));
        }
        Response::from_parts(parts, Self { body, hold: Some(hold), ended: false })
    }

    fn end(&mut self, frame: Option<Result<Frame<Bytes>, Error>>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.ended = true;
        Poll::Ready(frame)
    }
}

impl Hold {
    /// What is sent instead of the rest.
    fn broken(&mut self, end: End) -> Result<Frame<Bytes>, Error> {
        self.fails(end);
        match (self.grpc, end) {
            (true, End::Late) => {
                Ok(Frame::trailers(grpc::trailers(Status::DeadlineExceeded, "the service took too long")))
            }
            (true, End::Failed | End::Abandoned) => {
                Ok(Frame::trailers(grpc::trailers(Status::Internal, "the service failed")))
            }
            (false, _) => Err(Error::HttpResponseIncomplete),
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.get_or_insert_with(|| Box::pin(sleep_until(self.deadline))).as_mut().poll(cx)
    }

    fn fails(&mut self, end: End) {
        if let Some(span) = &mut self.waiting.span {
            let hit = if end == End::Late { Hit::Late } else { Hit::Failed };
            span.fails(hit.name().to_owned(), Refusal::from(hit).told().2);
            span.ends();
        }
    }

    fn passed(&mut self, frame: &Frame<Bytes>) {
        if let (Some(span), Some(trailers)) = (&mut self.waiting.span, frame.trailers_ref()) {
            span.trailers(trailers);
        }
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
        }
        self.waiting.whole |= frame.is_trailers() || self.left == Some(0);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let Some(hold) = &mut this.hold else { return Pin::new(&mut this.body).poll_frame(cx) };
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if Instant::now() >= hold.deadline || (polled.is_pending() && hold.alarm(cx).is_ready()) {
            let last = hold.broken(End::Late);
            return this.end(Some(last));
        }
        let end = match ready!(polled) {
            Some(Ok(frame)) => {
                hold.passed(&frame);
                return Poll::Ready(Some(Ok(frame)));
            }
            // A body whose instance is gone looks as if it had come to its end.
            None if hold.waiting.whole => None,
            None => hold.waiting.call.end(),
            Some(Err(error)) if !hold.grpc => {
                hold.fails(End::Failed);
                return this.end(Some(Err(error)));
            }
            Some(Err(_)) => Some(hold.waiting.call.end().unwrap_or(End::Failed)),
        };
        hold.waiting.whole |= end.is_none();
        let last = end.map(|end| hold.broken(end));
        this.end(last)
    }

    fn is_end_stream(&self) -> bool {
        let whole = self.hold.as_ref().is_none_or(|hold| hold.waiting.whole);
        self.ended || (whole && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
