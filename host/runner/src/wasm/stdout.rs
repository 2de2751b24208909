//! Output of a component, logged line by line, at a limited rate.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
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
    telemetry::service_metrics::{Incident, Stats},
};

/// Longest line; a longer one is split.
const MAX_LINE_BYTES: usize = 4096;
/// Burst, in seconds of the rate.
const BURST: f64 = 10.0;
/// Interval between two reports of dropped lines, at least.
const REPORT: Duration = Duration::from_secs(1);

/// Standard output or standard error of one instance. All streams that a component opens on it share one line.
#[derive(Clone)]
pub(crate) struct Output {
    stream: &'static str,
    line: Arc<Mutex<Line>>,
    budget: Arc<OutputBudget>,
}

#[derive(Default)]
struct Line(Vec<u8>);

/// Token bucket for the lines of all instances of one service.
pub(crate) struct OutputBudget {
    stats: Arc<Stats>,
    lines_per_second: u32,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    lines: f64,
    filled: Instant,
    dropped: u64,
    reported: Option<Instant>,
}

/// Fate of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineFate {
    /// The line is logged, after a report of this many dropped lines, if any.
    Logged(Option<u64>),
    /// The line is dropped, with a report.
    FirstDropped,
    Dropped,
}

impl Output {
    pub(crate) fn stdout(budget: Arc<OutputBudget>) -> Self {
        Self { stream: "stdout", line: Arc::default(), budget }
    }

    pub(crate) fn stderr(budget: Arc<OutputBudget>) -> Self {
        Self { stream: "stderr", line: Arc::default(), budget }
    }

    fn print(&self, bytes: &[u8]) {
        let mut line = self.line.lock();
        line.add(bytes, |line| self.log(line));
    }

    fn log(&self, line: &[u8]) {
        if line.iter().all(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            return;
        }
        let stats = &self.budget.stats;
        let fate = self.budget.bucket().take(Instant::now(), self.budget.lines_per_second);
        match fate {
            LineFate::Logged(dropped) => {
                if let Some(dropped) = dropped {
                    self.budget.report(dropped);
                }
                let text = shown(String::from_utf8_lossy(line).trim_end());
                tracing::info!(service = %stats.service(), stream = self.stream, "{text}");
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

impl OutputBudget {
    pub(crate) fn new(stats: Arc<Stats>, lines_per_second: u32) -> Arc<Self> {
        Arc::new(Self { stats, lines_per_second, bucket: Mutex::new(Bucket::new(Instant::now(), lines_per_second)) })
    }

    fn report(&self, dropped: u64) {
        tracing::warn!(service = %self.stats.service(), "{dropped} lines of output were dropped (limits.output_lines)");
    }

    /// Reports the lines that were left out and not reported yet.
    pub(crate) fn report_rest(&self) {
        let dropped = std::mem::take(&mut self.bucket().dropped);
        if dropped > 0 {
            self.report(dropped);
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock()
    }
}

impl Bucket {
    fn new(now: Instant, lines_per_second: u32) -> Self {
        Self { lines: f64::from(lines_per_second) * BURST, filled: now, dropped: 0, reported: None }
    }

    fn take(&mut self, now: Instant, lines_per_second: u32) -> LineFate {
        let rate = f64::from(lines_per_second);
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        (self.lines, self.filled) = ((self.lines + filled).min(rate * BURST), now);
        if self.lines >= 1.0 {
            self.lines -= 1.0;
            return LineFate::Logged(self.due(now));
        }
        self.dropped += 1;
        if self.dropped == 1 && self.may_report(now) {
            self.reported = Some(now);
            return LineFate::FirstDropped;
        }
        LineFate::Dropped
    }

    /// Number of dropped lines to report, once a while.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.dropped == 0 || !self.may_report(now) {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }

    fn may_report(&self, now: Instant) -> bool {
        self.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT)
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
    use std::time::{Duration, Instant};

    use super::{Bucket, Line, LineFate, MAX_LINE_BYTES};

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
    fn lines_beyond_the_rate_are_dropped_and_counted() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(begun, 10);
        let mut take = |millis| bucket.take(begun + Duration::from_millis(millis), 10);
        assert!((0..100).all(|_| take(0) == LineFate::Logged(None)));
        assert_eq!([take(0), take(0), take(50)], [LineFate::FirstDropped, LineFate::Dropped, LineFate::Dropped]);
        assert_eq!([take(100), take(100)], [LineFate::Logged(None), LineFate::Dropped]);
        assert_eq!([take(1100), take(1100)], [LineFate::Logged(Some(4)), LineFate::Logged(None)]);
    }
}
