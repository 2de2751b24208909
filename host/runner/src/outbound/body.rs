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
use leasehold::{InFlight, Pick};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep, timeout},
};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::telemetry::span::Span;

/// Longest time for which the body of a request that is not sent is read.
const DRAIN: Duration = Duration::from_millis(100);

/// Bytes of a request's body that are kept for a further try, with those for each frame.
const REPLAYED: usize = 64 << 10;
/// Bytes that a kept frame counts beside its content.
const FRAME: usize = 64;

/// Body of a request, shared by one try after the other. What a try has read is kept for the next one, up to a limit.
pub(crate) struct RequestBody {
    shared: Arc<Mutex<Shared>>,
    /// Number of the try. The connection of an earlier one may go on to send the body, and gets an error instead of it.
    number: u64,
    /// Number of kept frames that this try has had.
    position: usize,
}

struct Shared {
    body: WasiBody,
    /// Number of the latest try.
    latest: u64,
    /// Frames that were read, for a further try.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// False once something was read that is not kept.
    is_whole: bool,
    keeps: bool,
    is_at_end: bool,
    /// The component has yet to write more of it, or its end.
    is_waited_for: bool,
    is_broken: bool,
}

impl Clone for RequestBody {
    /// The body for another try; those before get no more of it.
    fn clone(&self) -> Self {
        let mut shared = self.shared.lock();
        shared.latest += 1;
        Self { shared: self.shared.clone(), number: shared.latest, position: 0 }
    }
}

impl RequestBody {
    /// A body for one try.
    pub(crate) fn new(body: WasiBody) -> Self {
        Self::of(body, false)
    }

    /// A body that may be sent more than once.
    pub(crate) fn kept(body: WasiBody) -> Self {
        Self::of(body, true)
    }

    fn of(body: WasiBody, keeps: bool) -> Self {
        let is_at_end = body.is_end_stream();
        let shared = Shared {
            body,
            latest: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            is_whole: true,
            keeps,
            is_at_end,
            is_waited_for: false,
            is_broken: false,
        };
        Self { shared: Arc::new(Mutex::new(shared)), number: 0, position: 0 }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock()
    }

    /// Returns true if the component has yet to write more of the body.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.shared().is_waited_for
    }

    /// Returns true if the component broke off the body.
    pub(crate) fn is_broken(&self) -> bool {
        self.shared().is_broken
    }

    /// Returns true if another try can send the whole body.
    pub(crate) fn is_replayable(&self) -> bool {
        let shared = self.shared();
        shared.is_whole && !shared.is_broken
    }
}

impl Shared {
    /// Keeps a frame that was read, if there is room. Returns true if it is kept.
    fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        let cost = |data: &Bytes| data.len() + FRAME;
        match frame.data_ref() {
            // A component can write as many as it likes, and none is sent.
            Some(data) if data.is_empty() => return false,
            Some(data) if self.keeps && self.is_whole && self.kept_bytes + cost(data) <= REPLAYED => {
                self.kept_bytes += cost(data);
                self.kept.push(data.clone());
                return true;
            }
            // Too much, or trailers, or nothing is kept.
            _ => {
                self.is_whole = false;
                self.kept = Vec::new();
            }
        }
        false
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Self { shared, number, position } = &mut *self;
        let mut shared = shared.lock();
        if shared.is_at_end && shared.is_whole && shared.kept.is_empty() {
            return Poll::Ready(None);
        }
        if *number != shared.latest {
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        if shared.is_whole
            && let Some(kept) = shared.kept.get(*position)
        {
            *position += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if shared.is_at_end {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut shared.body).poll_frame(cx);
        shared.is_waited_for = frame.is_pending();
        match &frame {
            Poll::Ready(Some(Ok(frame))) => *position += usize::from(shared.keep(frame)),
            Poll::Ready(Some(Err(_))) => shared.is_broken = true,
            Poll::Ready(None) => shared.is_at_end = true,
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared();
        let is_replayed = !shared.is_whole || self.position >= shared.kept.len();
        is_replayed && (shared.is_at_end || shared.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared();
        let rest = shared.body.size_hint();
        let replayed = if shared.is_whole {
            shared.kept.iter().skip(self.position).map(|kept| kept.len() as u64).sum()
        } else {
            0
        };
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + replayed);
        }
        hint.set_lower(rest.lower() + replayed);
        hint
    }
}

/// Body of a response of a node or an external host. A call by name is in flight until its end.
pub(crate) struct UpstreamBody {
    body: Incoming,
    between_bytes: Option<Duration>,
    silence: Option<Pin<Box<Sleep>>>,
    _call: Option<(Pick, InFlight)>,
}

impl UpstreamBody {
    /// A body that breaks off after `between_bytes` without data.
    pub(crate) fn new(body: Incoming, between_bytes: Option<Duration>, call: Option<(Pick, InFlight)>) -> Self {
        Self { body, between_bytes, silence: None, _call: call }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};

    use super::{REPLAYED, RequestBody};

    fn body(frames: impl IntoIterator<Item = Vec<u8>, IntoIter: Send + 'static>) -> RequestBody {
        let frames = frames.into_iter().map(|frame| Ok(Frame::data(Bytes::from(frame))));
        RequestBody::kept(StreamBody::new(stream::iter(frames).boxed()).boxed_unsync())
    }

    async fn next(body: &mut RequestBody) -> Option<Result<Vec<u8>, ()>> {
        let frame = body.frame().await?;
        Some(frame.map(|frame| frame.into_data().unwrap().to_vec()).map_err(drop))
    }

    #[tokio::test]
    async fn a_further_try_begins_anew_and_the_one_before_gets_no_more() {
        let body = body([b"one".to_vec(), b"two".to_vec()]);
        let mut first = body.clone();
        assert_eq!(next(&mut first).await, Some(Ok(b"one".to_vec())));
        assert!(body.is_replayable());
        let mut second = body.clone();
        assert_eq!(next(&mut second).await, Some(Ok(b"one".to_vec())));
        assert_eq!(next(&mut first).await, Some(Err(())), "it is sent on a connection that nothing waits for");
        assert_eq!(next(&mut second).await, Some(Ok(b"two".to_vec())));
        assert_eq!(next(&mut second).await, None);
    }

    #[tokio::test]
    async fn what_is_kept_is_limited_by_bytes_and_by_frames() {
        let large = body([vec![b'x'; REPLAYED]]);
        assert!(next(&mut large.clone()).await.is_some());
        assert!(!large.is_replayable());
        let (mut stale, mut latest) = (large.clone(), large.clone());
        assert_eq!(next(&mut latest).await, None);
        assert_eq!(next(&mut stale).await, Some(Err(())), "it has not sent what the other one has");
        let small = body((0..REPLAYED).map(|_| vec![b'x']));
        let mut first = small.clone();
        for _ in 0..2000 {
            assert!(next(&mut first).await.is_some());
        }
        assert!(!small.is_replayable());
        let empty = body((0..100_000).map(|_| Vec::new()));
        let mut first = empty.clone();
        while next(&mut first).await.is_some() {}
        assert!(empty.is_replayable() && empty.shared().kept.is_empty());
    }
}
