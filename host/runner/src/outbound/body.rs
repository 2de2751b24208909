//! Bodies of outgoing requests and of their responses.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::telemetry::span::Span;

/// Longest time for which the body of a request that is not sent is read.
const DRAIN: Duration = Duration::from_millis(100);

/// Body of a response, which ends the span of its request and frees the permit of it.
pub(crate) struct Incoming {
    body: WasiBody,
    span: Option<Span>,
    _place: OwnedSemaphorePermit,
}

impl Incoming {
    pub(crate) fn answer(
        response: Response<WasiBody>,
        mut span: Option<Span>,
        place: OwnedSemaphorePermit,
    ) -> Response<WasiBody> {
        let (head, body) = response.into_parts();
        if let Some(span) = &mut span {
            span.record_response(&head);
        }
        Response::from_parts(head, Self { body, span, _place: place }.boxed_unsync())
    }
}

impl Body for Incoming {
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

impl Drop for Incoming {
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
    let _ = timeout(DRAIN, all).await; // What has not come by then is not waited for.
}
