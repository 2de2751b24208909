//! The log: readable on a terminal, JSON for machines, always on stderr. A slow or missing reader of it blocks nothing and
//! ends nothing.

use std::io::{IsTerminal, Write, stderr};

use clap::{ArgAction, Args, ValueEnum};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt::time::SystemTime as Timestamp};

use crate::error::Failure;

/// Filters by verbosity. Libraries log from warnings on; their other lines are of no use to an operator.
const FILTERS: [&str; 3] = [
    "warn,leasehold=info,leasehold_wasmtime=info",
    "info,leasehold=debug,leasehold_wasmtime=debug",
    "debug,leasehold=trace",
];

/// Lines that wait for their reader. Further ones are lost.
const MAX_LINES: usize = 10_000;

/// Arguments of the log: how much is logged, and how.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// Format of log lines, on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Log errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// The log of the process. Dropping it writes what still waits, for a second at most.
pub(crate) struct Log {
    format: LogFormat,
    lines: NonBlocking,
    _writer: WorkerGuard,
}

/// Starts logging. Called once.
pub(crate) fn init(args: &LogArgs) -> Log {
    let fallback = if args.quiet { "error" } else { FILTERS[usize::from(args.verbose).min(FILTERS.len() - 1)] };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let (lines, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES).thread_name("log").finish(stderr());
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone()).with_target(false);
    match args.log_format {
        LogFormat::Json => base.json().flatten_event(true).with_timer(Timestamp).init(),
        LogFormat::Text => base.compact().with_ansi(stderr().is_terminal()).with_timer(Timestamp).init(),
    }
    Log { format: args.log_format, lines, _writer: writer }
}

impl Log {
    /// Writes the reason for which the process ends.
    pub(crate) fn last_words(mut self, failure: &Failure) {
        last_words(failure, self.format, &mut self.lines);
    }
}

/// Writes the reason for which the process ends, as one sentence.
pub(crate) fn last_words(failure: &Failure, format: LogFormat, to: &mut impl Write) {
    let sentence = failure.sentence();
    let line = match format {
        LogFormat::Text => format!("leasehold: {sentence}\n"),
        LogFormat::Json => {
            let line = serde_json::json!({ "level": "ERROR", "message": sentence, "exit_code": failure.code() });
            format!("{line}\n")
        }
    };
    // Stderr may be closed.
    let _ = to.write_all(line.as_bytes());
}
