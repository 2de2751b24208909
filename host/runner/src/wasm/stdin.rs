//! Standard input of a program: empty, with its end as the signal to end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};

/// The input of one run.
pub(crate) struct Input(pub(crate) CancellationToken);

struct Stream(Pin<Box<WaitForCancellationFutureOwned>>);

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Stream(Box::pin(self.0.clone().cancelled_owned())))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }
}
