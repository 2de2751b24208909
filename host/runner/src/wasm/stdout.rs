//! What a component prints, brought to the log line by line.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use leasehold::ServiceName;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

/// A longer line is cut into several.
const MAX_LINE_BYTES: usize = 4096;

/// Standard output or standard error of one instance. All streams that a component opens on it share one line.
#[derive(Clone)]
pub(crate) struct Output {
    service: ServiceName,
    stream: &'static str,
    line: Arc<Mutex<Line>>,
}

#[derive(Default)]
struct Line(Vec<u8>);

impl Output {
    pub(crate) fn stdout(service: ServiceName) -> Self {
        Self { service, stream: "stdout", line: Arc::default() }
    }

    pub(crate) fn stderr(service: ServiceName) -> Self {
        Self { service, stream: "stderr", line: Arc::default() }
    }

    fn print(&self, bytes: &[u8]) {
        let mut line = self.line.lock().expect("printing does not panic");
        for line in line.add(bytes) {
            self.log(&line);
        }
    }

    fn log(&self, line: &str) {
        tracing::info!(service = %self.service, stream = self.stream, "{line}");
    }
}

impl Line {
    /// Adds what was printed and returns the lines that are complete.
    fn add(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.0.push(byte);
            }
            if byte == b'\n' || self.0.len() >= MAX_LINE_BYTES {
                lines.extend(self.take());
            }
        }
        lines
    }

    /// The line so far as text that cannot confuse a terminal.
    fn take(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.0);
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
            .collect();
        let text = text.trim_end_matches(['\u{fffd}', ' ', '\t']);
        (!text.is_empty()).then(|| text.to_owned())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // The last stream of the instance: what stands without a line end is a line, too.
        if let Some(line) = Arc::get_mut(&mut self.line)
            && let Some(line) = line.get_mut().ok().and_then(Line::take)
        {
            self.log(&line);
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 * 1024)
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.print(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, MAX_LINE_BYTES};

    #[test]
    fn lines_are_gathered_from_pieces() {
        let mut line = Line::default();
        assert!(line.add(b"hel").is_empty());
        assert_eq!(line.add(b"lo\r\n\nwor"), ["hello"]);
        assert_eq!(line.add(b"ld\n"), ["world"]);
        assert_eq!(line.take(), None);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut line = Line::default();
        let lines = line.add(&vec![b'x'; MAX_LINE_BYTES * 3 + 1]);
        assert_eq!(lines.len(), 3);
        assert_eq!(line.take().as_deref(), Some("x"));
    }

    #[test]
    fn a_terminal_is_not_confused() {
        assert_eq!(Line::default().add(b"a\x1b[31mb\n"), ["a\u{fffd}[31mb"]);
    }
}
