//! `leasehold watch`: what is registered in etcd, and what changes, until Ctrl-C.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, stdout},
    time::Duration,
};

use leasehold::{Options, Registrar, ServiceName};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    ls::{HEADINGS, Row, read, rows},
    print, table,
};
use crate::{
    cli::{WatchArgs, parse},
    failure::Failure,
    reach,
};

/// Moves to the upper left corner and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// A changed line stands out for so long.
const FRESH: Duration = Duration::from_secs(3);

/// One change, a line of `--json`.
#[derive(Serialize)]
struct Change<'a> {
    change: What,
    #[serde(flatten)]
    row: &'a Row,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    /// Was there before the watch began.
    Present,
    Joined,
    Changed,
    Left,
}

impl What {
    fn mark(self) -> &'static str {
        match self {
            Self::Present => " ",
            Self::Joined => "+",
            Self::Changed => "~",
            Self::Left => "-",
        }
    }
}

/// A table that keeps itself up to date on a terminal, else a line for each change.
pub(crate) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let name = args.name.as_deref().map(|name| parse::<ServiceName>("NAME", name)).transpose()?;
    let options = args.etcd.registrar()?;
    let registrar = reach::start(&options)?;
    let live = !args.json && stdout().is_terminal();
    let shown = Shown { rows: BTreeMap::new(), fresh: BTreeMap::new(), begun: false, json: args.json, live };
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.map_err(|error| Failure::other(format!("cannot wait for Ctrl-C: {error}"))),
        outcome = follow(&registrar, &options, name.as_ref(), args.every.0, shown) => outcome,
    }
}

/// Reads again and again. What cannot be read for a while is said, and stays as it was known.
async fn follow(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
    every: Duration,
    mut shown: Shown,
) -> Result<(), Failure> {
    let mut lost = false;
    loop {
        match read(registrar, options, name).await {
            Ok(listed) => {
                if lost {
                    tracing::info!("etcd is back");
                }
                lost = false;
                shown.show(rows(listed).0)?;
            }
            // Never read: the mistake may be in the arguments.
            Err(failure) if !shown.begun => return Err(failure),
            Err(failure) if !lost => {
                lost = true;
                tracing::warn!("{}; what is shown is what was known", failure.sentence());
            }
            Err(_) => {}
        }
        sleep(every).await;
    }
}

/// Rows by their keys.
type Rows = BTreeMap<String, Row>;

/// What has been shown.
struct Shown {
    rows: Rows,
    /// When each row changed, and how.
    fresh: BTreeMap<String, (Instant, What)>,
    begun: bool,
    json: bool,
    live: bool,
}

impl Shown {
    fn show(&mut self, rows: Vec<Row>) -> Result<(), Failure> {
        let now: Rows = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        let before = std::mem::replace(&mut self.rows, now);
        let begins = !std::mem::replace(&mut self.begun, true);
        let changes = changes(&before, &self.rows, begins);
        for (what, row) in &changes {
            self.fresh.insert(row.key.clone(), (Instant::now(), *what));
        }
        self.fresh.retain(|_, (since, _)| since.elapsed() < FRESH);
        if self.live {
            return print(&self.screen(&before));
        }
        if self.json {
            let write = |(what, row): &(What, &Row)| serde_json::to_string(&Change { change: *what, row });
            let lines: Result<Vec<String>, _> = changes.iter().map(write).collect();
            let lines = lines.map_err(|error| Failure::other(format!("cannot write: {error}")))?;
            return print(&lines.into_iter().map(|line| line + "\n").collect::<String>());
        }
        let text = table(headings(), &changes.iter().map(|(what, row)| marked(*what, row)).collect::<Vec<_>>());
        let (_, without_headings) = text.split_once('\n').unwrap_or_default();
        print(if begins { &text } else { without_headings })
    }

    /// The whole table, what just left included, in place of what the terminal shows.
    fn screen(&self, before: &Rows) -> String {
        let what = |row: &Row| self.fresh.get(&row.key).map_or(What::Present, |(_, what)| *what);
        let left = before.values().filter(|row| !self.rows.contains_key(&row.key));
        let all: Vec<_> = self.rows.values().chain(left).map(|row| marked(what(row), row)).collect();
        let count = self.rows.len();
        format!("{CLEAR}{}\n{count} registered; + came, ~ changed, - went; Ctrl-C ends\n", table(headings(), &all))
    }
}

/// What differs, in the order of the keys. The time that is left is no difference.
fn changes<'a>(before: &'a Rows, now: &'a Rows, begins: bool) -> Vec<(What, &'a Row)> {
    let came = now.values().filter_map(|row| match before.get(&row.key) {
        None => Some((if begins { What::Present } else { What::Joined }, row)),
        Some(before) if !before.is_like(row) => Some((What::Changed, row)),
        Some(_) => None,
    });
    let left = before.values().filter(|row| !now.contains_key(&row.key)).map(|row| (What::Left, row));
    let mut all: Vec<_> = came.chain(left).collect();
    all.sort_by(|(_, a), (_, b)| a.key.cmp(&b.key));
    all
}

fn headings() -> [&'static str; 7] {
    let [name, version, addr, weight, lease, ttl] = HEADINGS;
    ["", name, version, addr, weight, lease, ttl]
}

fn marked(what: What, row: &Row) -> [String; 7] {
    let [name, version, addr, weight, lease, ttl] = row.cells();
    [what.mark().to_owned(), name, version, addr, weight, lease, ttl]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Row, Rows, What, changes};

    fn row(key: &str, weight: u32, ttl: u64) -> Row {
        Row {
            key: key.to_owned(),
            name: "user".to_owned(),
            version: String::new(),
            addr: "h:1".to_owned(),
            weight: Some(weight),
            lease: Some("1f".to_owned()),
            ttl_seconds: Some(ttl),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn a_change_is_told_once_and_time_that_passes_is_none() {
        let of = |rows: &[Row]| -> Rows { rows.iter().map(|row| (row.key.clone(), row.clone())).collect() };
        let told = |before: &Rows, now: &Rows, begins| -> Vec<(What, String)> {
            changes(before, now, begins).into_iter().map(|(what, row)| (what, row.key.clone())).collect()
        };
        let expected =
            |all: &[(What, &str)]| all.iter().map(|(what, key)| (*what, (*key).to_owned())).collect::<Vec<_>>();
        let first = of(&[row("a", 1, 9), row("b", 1, 9)]);
        assert_eq!(told(&Rows::new(), &first, true), expected(&[(What::Present, "a"), (What::Present, "b")]));
        let then = of(&[row("b", 2, 8), row("c", 1, 9)]);
        let changed = [(What::Left, "a"), (What::Changed, "b"), (What::Joined, "c")];
        assert_eq!(told(&first, &then, false), expected(&changed));
        assert_eq!(told(&then, &of(&[row("b", 2, 3), row("c", 1, 1)]), false), []);
    }
}
