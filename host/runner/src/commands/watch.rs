//! `leasehold watch`: the nodes in etcd and their changes, until Ctrl-C.

use std::{
    collections::{BTreeMap, HashMap},
    io::{IsTerminal, stdout},
    pin::pin,
    time::Duration,
};

use futures::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use leasehold::{Error, KeyEvent, LeaseId, LeaseTtl, Options, Registrar, ServiceName, WatchEvent};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    ls::{HEADINGS, NodeRow},
    print, table,
};
use crate::{
    cli::{WatchArgs, parse},
    connect,
    error::Failure,
};

/// Moves to the upper left corner and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Time for which a changed line is marked.
const FRESH: Duration = Duration::from_secs(3);

/// One change, a line of `--json`.
#[derive(Serialize)]
struct Change<'a> {
    change: ChangeKind,
    #[serde(flatten)]
    row: &'a NodeRow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum ChangeKind {
    /// Existed before the watch began.
    Present,
    Joined,
    Changed,
    Left,
}

impl ChangeKind {
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
    let registrar = connect::start(&options)?;
    let live = !args.json && stdout().is_terminal();
    let shown = Shown { lines: BTreeMap::new(), begun: false, json: args.json, live };
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.map_err(|error| Failure::other(format!("cannot wait for Ctrl-C: {error}"))),
        outcome = follow(&registrar, &options, name.as_ref(), args.every.0, shown) => outcome,
    }
}

/// Watches etcd. While etcd cannot be watched the last known state stays, and a warning says so.
async fn follow(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
    every: Duration,
    mut shown: Shown,
) -> Result<(), Failure> {
    let prefix = connect::prefix(options, name);
    let unavailable = |error: Error| connect::failure(&error, options, prefix.as_deref());
    connect::attempt(registrar, options, Vec::new()).await.map_err(unavailable)?;
    let mut stream = registrar.watch_keys(name).await.map_err(unavailable)?;
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Leases send no events: they are polled, and events do not wait for that.
    let mut asking = pin!(Fuse::terminated());
    loop {
        tokio::select! {
            told = stream.next() => match told.map_err(unavailable)? {
                WatchEvent::Changes(events) => {
                    let changes = shown.turn(events);
                    if shown.begun {
                        show(&mut shown, changes, registrar, options).await?;
                    }
                }
                WatchEvent::Synced if shown.begun => tracing::info!("etcd is back"),
                WatchEvent::Synced => {
                    let all = shown.lines.values().map(|line| (line.what, line.row.clone())).collect();
                    show(&mut shown, all, registrar, options).await?;
                }
                // Without a first read the arguments may be wrong.
                WatchEvent::Interrupted(why) if !shown.begun => return Err(unavailable(Error::Unavailable(why))),
                WatchEvent::Interrupted(why) => {
                    let message = connect::message(&Error::Unavailable(why), options);
                    tracing::warn!("{message}; the last known state is shown");
                }
            },
            _ = tick.tick(), if shown.live && shown.begun && asking.is_terminated() => {
                let leases = shown.lines.values().filter_map(|line| line.row.lease).collect();
                asking.set(registrar.lease_ttls(leases, options.request_timeout).fuse());
            }
            left = &mut asking => {
                shown.take_times(&left.unwrap_or_default());
                shown.print(&[])?;
            }
        }
    }
}

/// Shows changes, with the remaining time of their leases as far as etcd reports it.
async fn show(
    shown: &mut Shown,
    mut changes: Vec<(ChangeKind, NodeRow)>,
    registrar: &Registrar,
    options: &Options,
) -> Result<(), Failure> {
    let there = changes.iter().filter(|(what, _)| *what != ChangeKind::Left);
    let leases = there.filter_map(|(_, row)| row.lease).collect();
    let left = registrar.lease_ttls(leases, options.request_timeout).await.unwrap_or_default();
    shown.take_times(&left);
    changes.iter_mut().for_each(|(_, row)| row.set_ttl(&left));
    shown.print(&changes)
}

/// One line of the table.
struct Line {
    row: NodeRow,
    what: ChangeKind,
    since: Instant,
}

/// Lines by their keys, with those of nodes that just left.
struct Shown {
    lines: BTreeMap<String, Line>,
    begun: bool,
    json: bool,
    live: bool,
}

impl Shown {
    /// Applies events, and returns the changes. A key that was put again without a difference is no change.
    fn turn(&mut self, events: Vec<KeyEvent>) -> Vec<(ChangeKind, NodeRow)> {
        let mut changes = Vec::new();
        for event in events {
            let (key, row) = match event {
                KeyEvent::Put(listed) => (listed.key.clone(), NodeRow::of(listed)),
                KeyEvent::Deleted(key) => (key, None),
            };
            let before = self.lines.get(&key).filter(|line| line.what != ChangeKind::Left).map(|line| &line.row);
            let (what, row) = match (before, row) {
                (None, None) => continue,
                (Some(before), Some(row)) if before.equals_but_ttl(&row) => continue,
                (None, Some(row)) => (if self.begun { ChangeKind::Joined } else { ChangeKind::Present }, row),
                (Some(_), Some(row)) => (ChangeKind::Changed, row),
                (Some(before), None) => (ChangeKind::Left, before.clone()),
            };
            changes.push((what, row.clone()));
            self.lines.insert(key, Line { row, what, since: Instant::now() });
        }
        changes
    }

    fn take_times(&mut self, left: &HashMap<LeaseId, LeaseTtl>) {
        self.lines.values_mut().for_each(|line| line.row.set_ttl(left));
    }

    fn print(&mut self, changes: &[(ChangeKind, NodeRow)]) -> Result<(), Failure> {
        let begins = !std::mem::replace(&mut self.begun, true);
        self.forget();
        if self.live {
            return print(&self.screen());
        }
        if self.json {
            let write = |(what, row): &(ChangeKind, NodeRow)| serde_json::to_string(&Change { change: *what, row });
            let lines: Result<Vec<String>, _> = changes.iter().map(write).collect();
            let lines = lines.map_err(|error| Failure::other(format!("cannot write: {error}")))?;
            return print(&lines.into_iter().map(|line| line + "\n").collect::<String>());
        }
        let text = table(headings(), &changes.iter().map(|(what, row)| marked(*what, row)).collect::<Vec<_>>());
        let (_, without_headings) = text.split_once('\n').unwrap_or_default();
        print(if begins { &text } else { without_headings })
    }

    /// Drops lines of nodes that left a while ago.
    fn forget(&mut self) {
        let live = self.live;
        self.lines.retain(|_, line| line.what != ChangeKind::Left || (live && line.is_fresh()));
    }

    /// The whole table, in the place of the terminal's content.
    fn screen(&self) -> String {
        let what = |line: &Line| if line.is_fresh() { line.what } else { ChangeKind::Present };
        let all: Vec<_> = self.lines.values().map(|line| marked(what(line), &line.row)).collect();
        let count = self.lines.values().filter(|line| line.what != ChangeKind::Left).count();
        format!("{CLEAR}{}\n{count} registered; + came, ~ changed, - went; Ctrl-C ends\n", table(headings(), &all))
    }
}

impl Line {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < FRESH
    }
}

fn headings() -> [&'static str; 8] {
    let [name, version, addr, weight, state, lease, ttl] = HEADINGS;
    ["", name, version, addr, weight, state, lease, ttl]
}

fn marked(what: ChangeKind, row: &NodeRow) -> [String; 8] {
    let [name, version, addr, weight, state, lease, ttl] = row.cells();
    [what.mark().to_owned(), name, version, addr, weight, state, lease, ttl]
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use leasehold::{KeyEvent, Layout, LeaseId, LeaseTtl, RawEntry};

    use super::{CLEAR, ChangeKind, FRESH, Shown};

    fn found(name: &str, value: &str, lease: i64) -> KeyEvent {
        let (key, value) = (format!("/{name}/h:1"), value.as_bytes().to_vec());
        let node = Layout::default().parse(key.as_bytes(), &value);
        KeyEvent::Put(RawEntry { key, value, node, lease: LeaseId::new(lease), revision: 1 })
    }

    fn put(name: &str, weight: u32, lease: i64) -> KeyEvent {
        found(name, &format!(r#"{{"name":"{name}","addr":"h:1","version":"","weight":"{weight}"}}"#), lease)
    }

    fn garbage(name: &str) -> KeyEvent {
        found(name, "{", 0)
    }

    #[test]
    fn a_change_is_shown_once_and_a_key_put_again_is_no_change() {
        let mut shown = Shown { lines: BTreeMap::new(), begun: false, json: false, live: false };
        let mut told = |begun: bool, events: Vec<KeyEvent>| -> Vec<(ChangeKind, String)> {
            shown.begun = begun;
            shown.turn(events).into_iter().map(|(what, row)| (what, row.name)).collect()
        };
        let gone = |name: &str| KeyEvent::Deleted(format!("/{name}/h:1"));
        let expected = |all: &[(ChangeKind, &str)]| -> Vec<_> {
            all.iter().map(|(what, name)| (*what, (*name).to_owned())).collect()
        };
        let first = vec![put("a", 1, 7), put("b", 1, 7), garbage("x")];
        assert_eq!(told(false, first), expected(&[(ChangeKind::Present, "a"), (ChangeKind::Present, "b")]));
        let then = vec![gone("a"), put("b", 2, 7), put("c", 1, 7), put("c", 1, 7)];
        let differs = [(ChangeKind::Left, "a"), (ChangeKind::Changed, "b"), (ChangeKind::Joined, "c")];
        assert_eq!(told(true, then), expected(&differs));
        assert_eq!(told(true, vec![gone("a"), gone("x"), put("b", 2, 7)]), []);
        let last = vec![put("b", 2, 8), garbage("b"), gone("b"), put("a", 1, 7)];
        assert_eq!(
            told(true, last),
            expected(&[(ChangeKind::Changed, "b"), (ChangeKind::Left, "b"), (ChangeKind::Joined, "a")])
        );
    }

    #[test]
    fn the_table_marks_changes_for_a_while() {
        let mut shown = Shown { lines: BTreeMap::new(), begun: false, json: false, live: true };
        shown.turn(vec![put("a", 1, 7), put("b", 1, 8), put("c", 1, 0)]);
        shown.begun = true;
        let seconds =
            |granted, left| LeaseTtl { granted: Duration::from_secs(granted), remaining: Duration::from_secs(left) };
        let table = |shown: &Shown| {
            let screen = shown.screen();
            let text = screen.strip_prefix(CLEAR).unwrap();
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
            text.lines().map(words).collect::<Vec<_>>()
        };
        let headings = "NAME VERSION ADDR WEIGHT STATE LEASE TTL";
        let foot = |count| format!("{count} registered; + came, ~ changed, - went; Ctrl-C ends");
        let first = ["a - h:1 1 ? 7 ?", "b - h:1 1 ? 8 ?", "c - h:1 1 no-lease - -"];
        assert_eq!(table(&shown), [&[headings][..], &first, &["", &foot(3)]].concat());
        let lease = |id| LeaseId::new(id).unwrap();
        shown.take_times(&[(lease(7), seconds(9, 8)), (lease(8), seconds(9, 1))].into());
        shown.turn(vec![put("a", 2, 7), KeyEvent::Deleted("/b/h:1".to_owned()), put("d", 1, 7)]);
        shown.take_times(&[(lease(7), seconds(9, 7)), (lease(8), seconds(0, 0))].into());
        let then =
            ["~ a - h:1 2 ok 7 7s", "- b - h:1 1 lease-gone 8 0s", "c - h:1 1 no-lease - -", "+ d - h:1 1 ok 7 7s"];
        assert_eq!(table(&shown), [&[headings][..], &then, &["", &foot(3)]].concat());
        shown.lines.values_mut().for_each(|line| line.since -= FRESH);
        shown.forget();
        let last = ["a - h:1 2 ok 7 7s", "c - h:1 1 no-lease - -", "d - h:1 1 ok 7 7s"];
        assert_eq!(table(&shown), [&[headings][..], &last, &["", &foot(3)]].concat());
    }
}
