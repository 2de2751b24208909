//! A line for each change: text for pipes, or JSON.

use std::io::{IsTerminal, stdout};

use anstyle::Style;
use jiff::Timestamp;
use leasehold::{Error, WatchEvent};
use serde::Serialize;

use super::{
    known::{Change, ChangeKind, Known},
    session::{Signals, Watch},
};
use crate::{
    commands::{
        node_row::{self, NodeRow, not_nodes},
        output::print,
        table::{self, Column},
    },
    connect,
    error::Failure,
};

/// One change, a line of `--json`.
#[derive(Serialize)]
struct Event<'a> {
    time: &'a str,
    revision: i64,
    change: ChangeKind,
    #[serde(flatten)]
    row: &'a NodeRow,
}

/// Writes lines until a signal. While etcd cannot be watched a warning says so.
pub(super) async fn run(watch: &Watch, json: bool, signals: &mut Signals) -> Result<(), Failure> {
    let outcome = tokio::select! {
        outcome = follow(watch, Lines::new(json, watch.known())) => outcome,
        () = signals.end() => Ok(()),
    };
    if outcome.is_ok() && stdout().is_terminal() {
        // The terminal has echoed ^C.
        print("\n")?;
    }
    outcome
}

async fn follow(watch: &Watch, mut lines: Lines) -> Result<(), Failure> {
    let Watch { registrar, options, names } = watch;
    let mut stream = registrar.watch_keys(names.scope()).await.map_err(|error| watch.failure(&error))?;
    let mut first = Vec::new();
    loop {
        let changes = match stream.next().await.map_err(|error| watch.failure(&error))? {
            WatchEvent::Changes(events) => {
                let changes = lines.known.apply(events, names);
                if !lines.known.is_complete {
                    first.extend(changes);
                    continue;
                }
                changes
            }
            WatchEvent::Synced if lines.known.is_complete => {
                tracing::info!("etcd is back");
                continue;
            }
            WatchEvent::Synced => {
                lines.known.is_complete = true;
                first.sort_by_cached_key(|change: &Change| change.row.order());
                if lines.known.invalid() > 0 {
                    tracing::warn!("{}", not_nodes(lines.known.invalid()));
                }
                print(&lines.start())?;
                std::mem::take(&mut first)
            }
            // Without a first read the arguments may be wrong.
            WatchEvent::Interrupted(why) if !lines.known.is_complete => {
                return Err(watch.failure(&Error::Unavailable(why)));
            }
            WatchEvent::Interrupted(why) => {
                let message = connect::message(&Error::Unavailable(why), options);
                tracing::warn!("{message}; the last known state is shown");
                continue;
            }
        };
        let changes = with_times(watch, changes).await;
        print(&lines.of(&changes, Timestamp::now())?)?;
    }
}

/// Changes with the remaining time of their leases, as far as etcd reports it.
async fn with_times(watch: &Watch, mut changes: Vec<Change>) -> Vec<Change> {
    let there = changes.iter().filter(|change| change.kind != ChangeKind::Left);
    let leases = there.filter_map(|change| change.row.lease).collect();
    let left = watch.registrar.lease_ttls(leases, watch.options.request_timeout).await.unwrap_or_default();
    changes.iter_mut().for_each(|change| change.row.set_ttl(&left));
    changes
}

/// Writer of lines.
struct Lines {
    known: Known,
    json: bool,
    columns: Vec<Column>,
    /// Widths so far, so that columns move seldom.
    widths: Vec<usize>,
}

impl Lines {
    fn new(json: bool, known: Known) -> Self {
        let start = [Column::text("TIME"), Column::text("")];
        let columns: Vec<_> = start.into_iter().chain(node_row::columns(known.has_layouts())).collect();
        let time = format_time(Timestamp::UNIX_EPOCH).len();
        Self { known, json, columns, widths: vec![time, 1] }
    }

    /// The headings, where lines are text.
    fn start(&mut self) -> String {
        if self.json {
            return String::new();
        }
        let rows: Vec<_> = self.known.nodes().map(|row| self.cells("", ChangeKind::Present, row)).collect();
        self.widths = table::widths(&self.columns, &self.widths, &rows);
        let headings: Vec<_> = self.columns.iter().map(|column| column.heading.to_owned()).collect();
        table::line(&self.columns, &self.widths, &headings, None, |_| Style::new())
    }

    /// A line for each change.
    fn of(&mut self, changes: &[Change], now: Timestamp) -> Result<String, Failure> {
        let time = format_time(now);
        if self.json {
            let line = |change: &Change| {
                let (revision, kind) = (change.revision, change.kind);
                serde_json::to_string(&Event { time: &time, revision, change: kind, row: &change.row })
            };
            let lines: Result<Vec<String>, _> = changes.iter().map(line).collect();
            let lines = lines.map_err(|error| Failure::other(format!("cannot write: {error}")))?;
            return Ok(lines.into_iter().map(|line| line + "\n").collect());
        }
        let rows: Vec<_> = changes.iter().map(|change| self.cells(&time, change.kind, &change.row)).collect();
        self.widths = table::widths(&self.columns, &self.widths, &rows);
        let line = |row: &Vec<String>| table::line(&self.columns, &self.widths, row, None, |_| Style::new());
        Ok(rows.iter().map(line).collect())
    }

    fn cells(&self, time: &str, kind: ChangeKind, row: &NodeRow) -> Vec<String> {
        let start = [time.to_owned(), kind.mark().to_owned()];
        start.into_iter().chain(row.cells(self.known.has_layouts())).collect()
    }
}

/// RFC 3339 in UTC, as in the log.
fn format_time(time: Timestamp) -> String {
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use leasehold::Layout;

    use super::{
        super::known::{
            Known,
            events::{gone, put},
        },
        Lines,
    };
    use crate::commands::filter::Names;

    #[test]
    fn lines_have_a_time_and_stay_in_their_columns() {
        let mut lines = Lines::new(false, Known::new(vec![Layout::default()]));
        let mut text = String::new();
        let at: Timestamp = "2026-11-28T20:54:55.5Z".parse().unwrap();
        let present = lines.known.apply(vec![put("user", 9, 0)], &Names::All);
        text.push_str(&lines.start());
        text.push_str(&lines.of(&present, at).unwrap());
        lines.known.is_complete = true;
        for events in [vec![put("a", 100, 0)], vec![gone("user")]] {
            let changes = lines.known.apply(events, &Names::All);
            text.push_str(&lines.of(&changes, at).unwrap());
        }
        let expected = "\
TIME                         NAME  VERSION  ADDR  WEIGHT  STATE     LEASE  TTL
2026-11-28T20:54:55.500Z     user  -        h:1        9  no-lease  -        -
2026-11-28T20:54:55.500Z  +  a     -        h:1      100  no-lease  -        -
2026-11-28T20:54:55.500Z  -  user  -        h:1        9  no-lease  -        -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn events_have_a_time_and_a_revision() {
        let mut lines = Lines::new(true, Known::new(vec![Layout::default()]));
        let at: Timestamp = "2026-11-28T20:54:55Z".parse().unwrap();
        let mut events = lines.known.apply(vec![put("a", 1, 7)], &Names::All);
        events.extend(lines.known.apply(vec![gone("a")], &Names::All));
        let text = lines.of(&events, at).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["change"], &lines[0]["revision"]), (&"present".into(), &5.into()));
        assert_eq!((&lines[1]["change"], &lines[1]["revision"]), (&"left".into(), &6.into()));
        assert_eq!((&lines[1]["time"], &lines[1]["name"]), (&"2026-11-28T20:54:55.000Z".into(), &"a".into()));
    }
}
