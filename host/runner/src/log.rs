//! What is logged and how it looks: readable on a terminal, JSON for machines, always on stderr.

use std::{
    fmt,
    io::{IsTerminal, stderr},
    time::{SystemTime, UNIX_EPOCH},
};

use tracing_subscriber::{
    EnvFilter,
    fmt::{
        format::Writer,
        time::{FormatTime, SystemTime as Timestamp},
    },
};

use crate::{
    cli::{LogArgs, LogFormat},
    failure::Failure,
};

/// Libraries speak up at warnings only; what they say below that is of no use to an operator.
const FILTERS: [&str; 3] = [
    "warn,leasehold=info,leasehold_wasmtime=info",
    "info,leasehold=debug,leasehold_wasmtime=debug",
    "debug,leasehold=trace",
];

/// Starts logging. Called once.
pub(crate) fn init(args: &LogArgs) {
    let fallback = if args.quiet { "error" } else { FILTERS[usize::from(args.verbose).min(FILTERS.len() - 1)] };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    match args.log_format {
        LogFormat::Json => base.json().flatten_event(true).with_timer(Timestamp).init(),
        LogFormat::Text if stderr().is_terminal() => base.compact().with_timer(TimeOfDay).init(),
        LogFormat::Text => base.compact().with_ansi(false).with_timer(Timestamp).init(),
    }
}

/// Says why the process ends, as one sentence on stderr.
pub(crate) fn last_words(failure: &Failure, format: LogFormat) {
    let sentence = failure.sentence();
    // Stderr may be closed; there is nobody left to tell.
    let _ = match format {
        LogFormat::Text => write_line(format_args!("leasehold: {sentence}")),
        LogFormat::Json => {
            let line = serde_json::json!({ "level": "ERROR", "message": sentence, "exit_code": failure.code() });
            write_line(format_args!("{line}"))
        }
    };
}

fn write_line(line: fmt::Arguments<'_>) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(stderr().lock(), "{line}")
}

/// `21:48:46.123`, in UTC: on a terminal the date is known.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = now.as_secs() % 86_400;
        write!(writer, "{:02}:{:02}:{:02}.{:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60, now.subsec_millis())
    }
}
