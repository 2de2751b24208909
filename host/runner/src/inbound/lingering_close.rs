//! Lingering close: a connection whose client still sends is read for a while, so that the client comes to read the
//! response. Otherwise the kernel answers with a reset, which discards the end of the response.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy, sink},
    net::TcpStream,
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest time that a client may take to notice the end.
const LINGER: Duration = Duration::from_secs(2);

/// Connection of a client. Dropping it shuts down its write side, and reads on until the client ends too.
pub(crate) struct Lingering {
    /// Present until the drop.
    stream: Option<TcpStream>,
    /// The client has ended, or is gone.
    ended: bool,
    permit: Option<OwnedSemaphorePermit>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Lingering {
    /// A connection that keeps its permit until its end, and does not linger once its listener is `closing`.
    pub(crate) fn new(
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        Self { stream: Some(stream), ended: false, permit: Some(permit), tasks, closing }
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("it is there until it is dropped"))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let (Some(mut stream), Ok(runtime)) = (self.stream.take(), Handle::try_current()) else { return };
        if self.ended || self.closing.is_cancelled() {
            return;
        }
        let (permit, closing) = (self.permit.take(), self.closing.clone());
        let lingering = async move {
            let rest = async {
                stream.shutdown().await?;
                copy(&mut stream, &mut sink()).await
            };
            let _ = timeout(LINGER, closing.run_until_cancelled(rest)).await;
            drop(permit);
        };
        self.tasks.spawn_on(lingering, &runtime);
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.stream().poll_read(cx, buf);
        self.ended |= match &read {
            Poll::Ready(Ok(())) => buf.filled().len() == before && buf.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        read
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
