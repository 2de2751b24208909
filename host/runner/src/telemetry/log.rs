//! The log: readable on a terminal, JSON for machines, always on stderr. A slow or missing reader of it blocks nothing and
//! ends nothing.

use std::io::{IsTerminal, Write, stderr};

use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Value, json};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt::time::SystemTime as Timestamp};

use crate::{config::mistake::Mistakes, error::Failure};

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

/// Writes the reason for which the process ends, as one sentence. Mistakes in a configuration come before it, each with its
/// line.
pub(crate) fn last_words(failure: &Failure, format: LogFormat, to: &mut impl Write) {
    let mistakes = Mistakes::behind(failure);
    let line = match (format, mistakes) {
        (LogFormat::Text, Some(mistakes)) => format!("{}leasehold: {}\n", mistakes.text(), mistakes.count()),
        (LogFormat::Text, None) => format!("leasehold: {}\n", failure.sentence()),
        (LogFormat::Json, _) => {
            let line = json!({ "level": "ERROR", "message": failure.sentence(), "exit_code": failure.code() });
            let found = mistakes.map(|mistakes| json!({ "mistakes": mistakes.list() }));
            format!("{}\n", joined(line, found))
        }
    };
    // Stderr may be closed.
    let _ = to.write_all(line.as_bytes());
}

/// An object with the entries of another one.
fn joined(mut line: Value, more: Option<Value>) -> Value {
    if let (Value::Object(line), Some(Value::Object(more))) = (&mut line, more) {
        line.extend(more);
    }
    line
}
