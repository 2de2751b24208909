//! Bodies of outgoing requests and of their responses.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use leasehold::Pick;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep, timeout},
};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::telemetry::span::Span;

/// Longest time for which the body of a request that is not sent is read.
const DRAIN: Duration = Duration::from_millis(100);

/// Body of a request, shared by one attempt after the other. An attempt without a connection has read nothing of it.
#[derive(Clone)]
pub(crate) struct RequestBody(Arc<Mutex<Shared>>);

struct Shared {
    body: WasiBody,
    /// The component has yet to write more of it, or its end.
    is_waited_for: bool,
    is_broken: bool,
}

impl RequestBody {
    pub(crate) fn new(body: WasiBody) -> Self {
        Self(Arc::new(Mutex::new(Shared { body, is_waited_for: false, is_broken: false })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock()
    }

    /// Returns true if the component has yet to write more of the body.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.shared().is_waited_for
    }

    /// Returns true if the component broke off the body.
    pub(crate) fn is_broken(&self) -> bool {
        self.shared().is_broken
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut shared = self.shared();
        let frame = Pin::new(&mut shared.body).poll_frame(cx);
        shared.is_waited_for = frame.is_pending();
        shared.is_broken |= matches!(frame, Poll::Ready(Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.shared().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.shared().body.size_hint()
    }
}

/// Body of a response of a node or an external host. A node that was picked counts as busy until its end.
pub(crate) struct UpstreamBody {
    body: Incoming,
    between_bytes: Option<Duration>,
    silence: Option<Pin<Box<Sleep>>>,
    _pick: Option<Pick>,
}

impl UpstreamBody {
    /// A body that breaks off after `between_bytes` without data.
    pub(crate) fn new(body: Incoming, between_bytes: Option<Duration>, pick: Option<Pick>) -> Self {
        Self { body, between_bytes, silence: None, _pick: pick }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.silence = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)));
        }
        let Some(limit) = self.between_bytes else { return Poll::Pending };
        ready!(self.silence.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Body of a response that ends the span of its request and frees the request's permit.
pub(crate) struct TracedBody {
    body: WasiBody,
    span: Option<Span>,
    _permit: OwnedSemaphorePermit,
}

impl TracedBody {
    pub(crate) fn response(
        response: Response<WasiBody>,
        mut span: Option<Span>,
        permit: OwnedSemaphorePermit,
    ) -> Response<WasiBody> {
        let (head, body) = response.into_parts();
        if let Some(span) = &mut span {
            span.record_response(&head);
        }
        Response::from_parts(head, Self { body, span, _permit: permit }.boxed_unsync())
    }
}

impl Body for TracedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(span) = &mut self.span else { return Poll::Ready(frame) };
        match &frame {
            None => span.finish(),
            Some(Err(error)) => span.record_wasi_error(error),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    span.record_trailers(trailers);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TracedBody {
    fn drop(&mut self) {
        if self.body.is_end_stream()
            && let Some(span) = &mut self.span
        {
            span.finish();
        }
    }
}

/// Reads and drops the body of a request that is not sent, for a moment. Many components write the body before they look at
/// the response; without this they would see a broken pipe instead of the reason.
pub(crate) async fn drain(mut body: impl Body + Unpin) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(DRAIN, all).await; // The rest is not read.
}
