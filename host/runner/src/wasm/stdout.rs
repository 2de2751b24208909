//! Output of a component, logged line by line, at a limited rate.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use crate::{
    error::shown,
    telemetry::{
        line_budget::{LineBudget, LineFate},
        request::RequestIdentity,
        service_metrics::{Incident, Stats},
    },
    wasm::in_flight::InFlightRequests,
};

/// Longest line; a longer one is split.
const MAX_LINE_BYTES: usize = 4096;
/// Longest text of a panic.
const MAX_PANIC: usize = 2048;

/// Standard output or standard error of one instance. All streams that a component opens on it share one line.
#[derive(Clone)]
pub(crate) struct Output {
    stream: &'static str,
    line: Arc<Mutex<Line>>,
    budget: Arc<OutputBudget>,
    requests: Arc<InFlightRequests>,
    /// Holds the text of a panic back; on standard error only.
    panic: Option<Panic>,
}

/// Text of a panic on standard error, held back until the instance ends, so that one line has both.
#[derive(Clone, Default)]
pub(crate) struct Panic(Arc<Mutex<Option<String>>>);

#[derive(Default)]
struct Line(Vec<u8>);

/// Token bucket for the lines of all instances of one service.
pub(crate) struct OutputBudget {
    stats: Arc<Stats>,
    lines_per_second: u32,
    bucket: Mutex<LineBudget>,
}

impl Output {
    pub(crate) fn stdout(budget: Arc<OutputBudget>, requests: Arc<InFlightRequests>) -> Self {
        Self { stream: "stdout", line: Arc::default(), budget, requests, panic: None }
    }

    pub(crate) fn stderr(budget: Arc<OutputBudget>, requests: Arc<InFlightRequests>, panic: Panic) -> Self {
        Self { stream: "stderr", line: Arc::default(), budget, requests, panic: Some(panic) }
    }

    fn print(&self, bytes: &[u8]) {
        let mut line = self.line.lock();
        line.add(bytes, |line| self.log(line));
    }

    fn log(&self, line: &[u8]) {
        if line.iter().all(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            return;
        }
        let text = shown(String::from_utf8_lossy(line).trim_end());
        match self.panic.as_ref().map_or(Held::No, |panic| panic.hold(&text)) {
            Held::Yes => {}
            Held::No => self.emit(&text),
            // It goes on as if nothing had happened.
            Held::Full(panic) => [&*panic, &text].into_iter().for_each(|text| self.emit(text)),
        }
    }

    fn emit(&self, text: &str) {
        let stats = &self.budget.stats;
        let fate = self.budget.bucket().take(Instant::now(), self.budget.lines_per_second);
        match fate {
            LineFate::Logged(dropped) => {
                if let Some(dropped) = dropped {
                    self.budget.report(dropped);
                }
                let request = self.requests.current();
                let request = request.as_ref().map(|request| &request.identity);
                tracing::info!(
                    event = "output",
                    service = %stats.service(),
                    stream = self.stream,
                    request_id = request.and_then(RequestIdentity::id_field),
                    trace_id = request.and_then(RequestIdentity::trace_field),
                    "{text}"
                );
            }
            LineFate::FirstDropped => {
                stats.incident(Incident::OutputLimit);
                let most = self.budget.lines_per_second;
                tracing::warn!(service = %stats.service(), "output beyond {most} lines a second is dropped (limits.output_lines)");
            }
            LineFate::Dropped => stats.incident(Incident::OutputLimit),
        }
    }
}

/// Outcome of an attempt to hold a line back.
enum Held {
    Yes,
    No,
    /// The line is too much; the text so far is given back.
    Full(String),
}

impl Panic {
    /// Holds a line back if it begins a panic or goes on with it.
    fn hold(&self, line: &str) -> Held {
        let mut held = self.0.lock();
        match &mut *held {
            None => match panic_text(line) {
                Some(text) => *held = Some(text),
                None => return Held::No,
            },
            // The advice about a backtrace is of no use here.
            Some(_) if line.starts_with("note: ") => {}
            Some(text) if text.len() + line.len() < MAX_PANIC => {
                text.push(' ');
                text.push_str(line);
            }
            Some(_) => return held.take().map_or(Held::No, Held::Full),
        }
        Held::Yes
    }

    /// The text of the panic, such as `panicked at src/lib.rs:1:2: reason`.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().take()
    }
}

/// The text of a line that begins a panic, in the form of Rust or of Go.
fn panic_text(line: &str) -> Option<String> {
    if line.starts_with("panic: runtime error") {
        return Some(line.replacen("panic: ", "panicked: ", 1));
    }
    let (_, at) = line.strip_prefix("thread '")?.split_once(" panicked at ")?;
    Some(format!("panicked at {at}"))
}

impl OutputBudget {
    pub(crate) fn new(stats: Arc<Stats>, lines_per_second: u32) -> Arc<Self> {
        Arc::new(Self {
            stats,
            lines_per_second,
            bucket: Mutex::new(LineBudget::new(Instant::now(), lines_per_second)),
        })
    }

    fn report(&self, dropped: u64) {
        tracing::warn!(service = %self.stats.service(), "{dropped} lines of output were dropped (limits.output_lines)");
    }

    /// Reports the lines that were left out and not reported yet.
    pub(crate) fn report_rest(&self) {
        let dropped = self.bucket().take_dropped();
        if dropped > 0 {
            self.report(dropped);
        }
    }

    fn bucket(&self) -> MutexGuard<'_, LineBudget> {
        self.bucket.lock()
    }
}

impl Line {
    /// Adds printed bytes, and passes on each complete line.
    fn add(&mut self, mut bytes: &[u8], mut complete: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(MAX_LINE_BYTES - self.0.len())];
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(piece.len());
            self.0.extend_from_slice(&piece[..taken]);
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if end.is_some() || self.0.len() >= MAX_LINE_BYTES {
                complete(&self.0);
                self.0.clear();
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // The last stream of the instance: text without a line end is a line, too.
        let last = Arc::get_mut(&mut self.line).map(|line| std::mem::take(&mut line.get_mut().0));
        let Some(line) = last else { return };
        self.log(&line);
        if let Some(text) = self.panic.as_ref().and_then(Panic::take) {
            self.emit(&text);
        }
        let due = self.budget.bucket().due(Instant::now());
        if let Some(dropped) = due {
            self.budget.report(dropped);
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
    use super::{Held, Line, MAX_LINE_BYTES, MAX_PANIC, Panic};

    fn add(line: &mut Line, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        line.add(bytes, |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn lines_are_gathered_from_pieces() {
        let mut line = Line::default();
        assert!(add(&mut line, b"hel").is_empty());
        assert_eq!(add(&mut line, b"lo\n\nwor"), ["hello", ""]);
        assert_eq!(add(&mut line, b"ld\n"), ["world"]);
        assert!(line.0.is_empty());
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut line = Line::default();
        let lines = add(&mut line, &vec![b'x'; MAX_LINE_BYTES * 3 + 1]);
        assert_eq!(lines.len(), 3);
        assert_eq!(line.0, b"x");
    }

    #[test]
    fn a_panic_is_one_text() {
        let panic = Panic::default();
        let hold = |line: &str| matches!(panic.hold(line), Held::Yes);
        assert!(!hold("thread 'main' says hello"));
        assert!(hold("thread 'main' (1) panicked at src/lib.rs:1:2:"));
        assert!(hold("made to") && hold("trap"));
        assert!(hold("note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"));
        assert_eq!(panic.take().as_deref(), Some("panicked at src/lib.rs:1:2: made to trap"));
        assert!(panic.take().is_none() && !hold("after it"));
        assert!(hold("panic: runtime error: nil map"));
        let Held::Full(text) = panic.hold(&"x".repeat(MAX_PANIC)) else { panic!("it is too much") };
        assert_eq!(text, "panicked: runtime error: nil map");
        assert!(!hold("after it"));
    }
}
