//! The log: readable on a terminal, JSON for machines, always on stderr. A slow or missing reader of it blocks nothing and
//! ends nothing.

use std::{
    env, fmt,
    io::{IsTerminal, Write, stderr},
};

use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Value, json};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, SubscriberBuilder,
        format::Writer,
        time::{FormatTime, SystemTime as Timestamp},
    },
    registry::LookupSpan,
};

use crate::{
    config::mistake::Mistakes,
    error::Failure,
    telemetry::log_level::{Level, Levels},
};

/// Filters by verbosity. Libraries log from warnings on, and never their frames: those lines are of no use to an operator.
const FILTERS: [&str; 3] = ["warn,leasehold=info", "warn,leasehold=debug", "info,leasehold=trace"];

/// Lines that wait for their reader. Further ones are lost.
pub(crate) const MAX_LINES: usize = 10_000;

/// Arguments of the log: how much is logged, and how.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// Format of log lines, on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    /// Log more of this program; twice for everything of it
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
    is_journal: bool,
    levels: Levels,
    lines: NonBlocking,
    _writer: WorkerGuard,
}

/// Starts logging. Called once.
pub(crate) fn init(args: &LogArgs) -> Log {
    let fallback = if args.quiet { "error" } else { FILTERS[usize::from(args.verbose).min(FILTERS.len() - 1)] };
    let usual =
        env::var(EnvFilter::DEFAULT_ENV).ok().filter(|text| !text.is_empty() && EnvFilter::try_new(text).is_ok());
    let usual = usual.unwrap_or_else(|| fallback.to_owned());
    let (lines, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES).thread_name("log").finish(stderr());
    let is_journal = is_journal();
    let base = tracing_subscriber::fmt().with_writer(lines.clone()).with_target(false);
    let levels = match (args.log_format, is_journal) {
        (LogFormat::Json, false) => start(base.json().flatten_event(true).with_timer(Timestamp), usual),
        (LogFormat::Json, true) => {
            start(base.json().flatten_event(true).without_time().map_event_format(WithPriority), usual)
        }
        (LogFormat::Text, false) => {
            start(base.compact().with_ansi(stderr().is_terminal()).with_timer(Timestamp), usual)
        }
        (LogFormat::Text, true) => {
            start(base.compact().with_ansi(false).without_time().map_event_format(WithPriority), usual)
        }
    };
    Log { format: args.log_format, is_journal, levels, lines, _writer: writer }
}

/// Starts logging with a filter that can be replaced.
fn start<N, E, F>(builder: SubscriberBuilder<N, E, F, NonBlocking>, usual: String) -> Levels
where
    N: for<'w> FormatFields<'w> + Send + Sync + 'static,
    E: FormatEvent<tracing_subscriber::Registry, N> + Send + Sync + 'static,
{
    let builder = builder.with_env_filter(EnvFilter::new(&usual)).with_filter_reloading();
    let filter = builder.reload_handle();
    builder.init();
    Levels::new(move |level| {
        let directives = level.map_or_else(|| usual.clone(), directives);
        let _ = filter.reload(EnvFilter::new(directives)); // It fails without a subscriber, which stays until the end.
    })
}

/// The filter of a level that was requested while the process runs.
fn directives(level: Level) -> String {
    match level {
        Level::Error => "error".to_owned(),
        level => format!("warn,leasehold={level}"),
    }
}

/// Returns true if systemd's journal reads standard error: it has times of its own, and takes priorities.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let found = rustix::fs::fstat(stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    found.is_ok_and(|found| found == stream)
}

/// A line behind its priority, as sd-daemon(3) has it.
struct WithPriority<E>(E);

impl<S, N, E> FormatEvent<S, N> for WithPriority<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The prefix of a line for the journal.
fn priority(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        _ => "<7>",
    }
}

impl Log {
    /// Handle to the level.
    pub(crate) fn levels(&self) -> Levels {
        self.levels.clone()
    }

    /// Writes the reason for which the process ends.
    pub(crate) fn last_words(mut self, failure: &Failure) {
        let text = last_words(failure, self.format, !self.is_journal);
        let prefix = if self.is_journal { priority(tracing::Level::ERROR) } else { "" };
        let text: String = text.lines().map(|line| format!("{prefix}{line}\n")).collect();
        // Stderr may be closed.
        let _ = self.lines.write_all(text.as_bytes());
    }
}

/// The reason for which the process ends, as one sentence. Mistakes in a configuration come before it, each with its line.
pub(crate) fn last_words(failure: &Failure, format: LogFormat, with_time: bool) -> String {
    let mistakes = Mistakes::behind(failure);
    match (format, mistakes) {
        (LogFormat::Text, Some(mistakes)) => format!("{}leasehold: {}\n", mistakes.text(), mistakes.count()),
        (LogFormat::Text, None) => format!("leasehold: {}\n", failure.sentence()),
        (LogFormat::Json, _) => {
            let line = json!({ "level": "ERROR", "message": failure.sentence(), "exit_code": failure.code() });
            let line = if with_time { joined(line, Some(json!({ "timestamp": now() }))) } else { line };
            let found = mistakes.map(|mistakes| json!({ "mistakes": mistakes.list() }));
            format!("{}\n", joined(line, found))
        }
    }
}

/// The time as in a line of the log.
pub(crate) fn now() -> String {
    let mut text = String::new();
    let written = Timestamp.format_time(&mut Writer::new(&mut text));
    debug_assert!(written.is_ok(), "a string can be written to");
    text
}

/// An object with the entries of another one.
fn joined(mut line: Value, more: Option<Value>) -> Value {
    if let (Value::Object(line), Some(Value::Object(more))) = (&mut line, more) {
        line.extend(more);
    }
    line
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;
    use tracing_subscriber::EnvFilter;

    use super::{FILTERS, directives, now};
    use crate::telemetry::log_level::Level;

    #[test]
    fn every_filter_is_valid_and_shows_no_frames() {
        for filter in FILTERS.into_iter().map(str::to_owned).chain(Level::iter().map(directives)) {
            assert!(EnvFilter::try_new(&filter).is_ok(), "{filter}");
            let (libraries, _) = filter.split_once(',').unwrap_or((&filter, ""));
            assert!(matches!(libraries, "error" | "warn" | "info"), "{filter}");
        }
    }

    #[test]
    fn a_time_has_a_date_and_a_zone() {
        let now = now();
        assert_eq!(now.len(), "2026-11-28T20:36:28.589899Z".len(), "{now}");
        assert!(now.starts_with("20") && now.ends_with('Z') && now.as_bytes()[10] == b'T', "{now}");
    }
}
