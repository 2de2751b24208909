//! State of the full-screen view: keys, changes in etcd and the time go in, the rows to draw come out. Does no I/O and reads no
//! clock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use jiff::{Timestamp, tz::TimeZone};
use leasehold::{LeaseId, LeaseTtl, WatchEvent};

use super::{
    known::{Change, ChangeKind, Known},
    sort::Sort,
};
use crate::{
    cli::lease_state::LeaseState,
    commands::{
        filter::Names,
        node_row::{self, NodeRow, grouped, invalid_keys, not_nodes, plural, totals},
        table::{self, Column},
    },
};

/// Time for which a changed row is marked and comes first.
const FRESH: Duration = Duration::from_secs(5);
/// Silence of etcd from which on the age of the rows is shown; it is probed every second.
const SILENCE: Duration = Duration::from_secs(3);
/// Lines around the rows: the totals, the headings, the state of etcd, the keys.
const FRAME_LINES: u16 = 4;
/// Longest filter.
const MAX_FILTER: usize = 100;

/// The time, as both clocks have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) time: Timestamp,
}

/// Event for the view.
#[derive(Debug)]
pub(super) enum Input {
    Key(KeyEvent),
    /// The terminal has so many lines.
    Resized(u16),
    Watch(WatchEvent),
    /// The connection to etcd failed, with the reason.
    Interrupted(String),
    /// Remaining times of leases.
    Ttls(HashMap<LeaseId, LeaseTtl>),
    /// etcd has responded.
    Responded,
    Tick,
}

/// Effect of an event on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    /// Draw everything anew: another program may have written to the terminal.
    Clear,
    Leave,
}

/// A node that changed a moment ago.
#[derive(Debug)]
struct Recent {
    kind: ChangeKind,
    since: Instant,
    /// The last known row of a node that left.
    left: Option<NodeRow>,
}

/// A row to draw.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: ChangeKind,
    pub(super) state: LeaseState,
    pub(super) cells: Vec<String>,
}

/// Everything that the view shows.
#[derive(Debug)]
pub(super) struct State {
    names: Names,
    known: Known,
    recent: BTreeMap<String, Recent>,
    endpoint: String,
    zone: TimeZone,
    now: Now,
    /// The last sign of life of etcd; none before the first read.
    heard: Option<Now>,
    /// Reason for which the watch is interrupted.
    trouble: Option<String>,
    sort: Sort,
    filter: String,
    is_editing: bool,
    /// Number of rows above the first one that is shown, and number of rows that have room.
    offset: usize,
    page: usize,
    /// Keys in the order of the rows.
    order: Vec<String>,
    columns: Vec<Column>,
    /// Widths of the columns so far, so that they move seldom.
    widths: Vec<usize>,
}

impl State {
    /// A view without rows, of a terminal with so many lines.
    pub(super) fn new(known: Known, names: Names, endpoint: String, zone: TimeZone, lines: u16, now: Now) -> Self {
        let columns = [Column::text("")].into_iter().chain(node_row::columns(known.has_layouts()));
        Self {
            names,
            recent: BTreeMap::new(),
            endpoint,
            zone,
            now,
            heard: None,
            trouble: None,
            sort: Sort::Name,
            filter: String::new(),
            is_editing: false,
            offset: 0,
            page: page(lines),
            order: Vec::new(),
            columns: columns.collect(),
            widths: vec![1],
            known,
        }
    }

    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// Applies an event. [`arrange`](Self::arrange) follows before the next drawing.
    pub(super) fn on(&mut self, input: Input, now: Now) -> Flow {
        self.now = now;
        match input {
            Input::Key(key) if key.kind == KeyEventKind::Release => {}
            Input::Key(key) => return self.on_key(key),
            Input::Resized(lines) => self.page = page(lines),
            Input::Watch(event) => self.on_watch(event),
            Input::Interrupted(why) => self.trouble = Some(why),
            Input::Ttls(left) => self.known.set_ttls(&left),
            // Another endpoint may respond while the watch waits for its own.
            Input::Responded if self.trouble.is_none() => self.heard = Some(now),
            Input::Responded | Input::Tick => {}
        }
        Flow::Continue
    }

    fn on_watch(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Changes(events) => {
                let changes = self.known.apply(events, &self.names);
                changes.into_iter().for_each(|change| self.remember(change));
            }
            WatchEvent::Synced => {
                self.known.is_complete = true;
                self.trouble = None;
            }
            WatchEvent::Interrupted(why) => self.trouble = Some(why.to_string()),
        }
        if self.trouble.is_none() {
            self.heard = Some(self.now);
        }
    }

    fn remember(&mut self, change: Change) {
        let (key, since) = (change.row.key.clone(), self.now.instant);
        let left = (change.kind == ChangeKind::Left).then_some(change.row);
        if change.kind != ChangeKind::Present {
            self.recent.insert(key, Recent { kind: change.kind, since, left });
        }
    }

    fn on_key(&mut self, key: KeyEvent) -> Flow {
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if has_control => return Flow::Leave,
            KeyCode::Char('l') if has_control => return Flow::Clear,
            KeyCode::Char(_) if has_control => {}
            _ if self.is_editing => self.edit(key.code),
            KeyCode::Char('q') | KeyCode::Esc => return Flow::Leave,
            KeyCode::Char('/') => self.is_editing = true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            code => self.scroll(code),
        }
        Flow::Continue
    }

    fn edit(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_editing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_editing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() < MAX_FILTER => self.filter.push(c),
            KeyCode::Char(_) => {}
            code => return self.scroll(code),
        }
        self.offset = 0;
    }

    fn scroll(&mut self, code: KeyCode) {
        let page = self.page.max(1);
        self.offset = match code {
            KeyCode::Up | KeyCode::Char('k') => self.offset.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.offset + 1,
            KeyCode::PageUp => self.offset.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.offset + page,
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => usize::MAX,
            _ => return,
        };
        self.clamp();
    }

    fn clamp(&mut self) {
        self.offset = self.offset.min(self.order.len().saturating_sub(self.page));
    }

    /// Puts the rows in order: those that changed just now first, the latest at the top.
    pub(super) fn arrange(&mut self) {
        let now = self.now.instant;
        self.recent.retain(|_, recent| now.saturating_duration_since(recent.since) < FRESH);
        let mut rest: Vec<_> =
            self.known.nodes().filter(|row| !self.recent.contains_key(&row.key) && self.shows(row)).collect();
        rest.sort_by_cached_key(|row| (self.sort.key(row), row.order()));
        let recent = self.recent.iter().filter_map(|(key, recent)| Some((key, recent, self.row(key)?)));
        let mut recent: Vec<_> = recent.filter(|(.., row)| self.shows(row)).collect();
        recent.sort_by_key(|(_, recent, row)| (Reverse(recent.since), row.order()));
        let order = recent.into_iter().map(|(key, ..)| key).chain(rest.into_iter().map(|row| &row.key));
        self.order = order.cloned().collect();
        let cells: Vec<_> = self.known.nodes().map(|row| self.cells(ChangeKind::Present, row)).collect();
        self.widths = table::widths(&self.columns, &self.widths, &cells);
        self.clamp();
    }

    /// The row of a key, also of a node that left a moment ago.
    fn row(&self, key: &str) -> Option<&NodeRow> {
        self.known.node(key).or_else(|| self.recent.get(key)?.left.as_ref())
    }

    fn shows(&self, row: &NodeRow) -> bool {
        let filter = self.filter.to_lowercase();
        let has_layouts = self.known.has_layouts();
        filter.is_empty() || row.cells(has_layouts).any(|cell| cell.to_lowercase().contains(&filter))
    }

    fn cells(&self, kind: ChangeKind, row: &NodeRow) -> Vec<String> {
        [kind.mark().to_owned()].into_iter().chain(row.cells(self.known.has_layouts())).collect()
    }

    /// The rows that have room, from the first one on.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row> {
        let silent = self.silence().unwrap_or_default();
        let keys = self.order.iter().skip(self.offset).take(self.page);
        keys.filter_map(move |key| {
            let mut row = self.row(key)?.clone();
            let kind = self.recent.get(key).map_or(ChangeKind::Present, |recent| recent.kind);
            // Nothing is known of renewals meanwhile.
            row.ttl_seconds = row.ttl_seconds.map(|left| left.saturating_sub(silent.as_secs()));
            Some(Row { kind, state: row.state, cells: self.cells(kind, &row) })
        })
    }

    /// Time without a sign of life of etcd, where it is long enough to be shown.
    pub(super) fn silence(&self) -> Option<Duration> {
        let silent = self.now.instant.saturating_duration_since(self.heard?.instant);
        (silent >= SILENCE || self.trouble.is_some()).then_some(silent)
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub(super) fn widths(&self) -> &[usize] {
        &self.widths
    }

    pub(super) fn sort(&self) -> Sort {
        self.sort
    }

    /// The filter while it is edited.
    pub(super) fn editing(&self) -> Option<&str> {
        self.is_editing.then_some(self.filter.as_str())
    }

    /// The first line: what is registered, behind the number that the filter leaves.
    pub(super) fn title(&self) -> String {
        if !self.known.is_complete {
            return format!("reading the keys in {}", self.endpoint);
        }
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!("{} with {filter:?} of ", grouped(self.order.len())),
        };
        format!("{filter}{}", totals(self.known.nodes()))
    }

    /// The line about etcd, or the age of what is shown.
    pub(super) fn contact(&self) -> String {
        match (self.heard, self.silence(), &self.trouble) {
            (Some(heard), Some(silent), _) if silent >= SILENCE => {
                let at = heard.time.to_zoned_datetime(self.zone.clone()).strftime("%H:%M:%S").to_string();
                format!("etcd has not responded for {} s; this is from {at}", silent.as_secs())
            }
            (.., Some(why)) => format!("the watch is interrupted: {why}"),
            _ => format!("etcd at {} responds", self.endpoint),
        }
    }

    /// Sentence about invalid keys and conflicts that fits into so many columns, or the shortest; empty without any.
    pub(super) fn warnings(&self, room: usize) -> String {
        let (invalid, conflicts) = (self.known.invalid(), self.known.conflicts());
        if invalid + conflicts == 0 {
            return String::new();
        }
        let counted =
            [(conflicts > 0).then(|| plural(conflicts, "conflict")), (invalid > 0).then(|| invalid_keys(invalid))];
        let counted = counted.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let hinted = format!("{counted}: leasehold doctor");
        let fits = |text: &String| text.chars().count() <= room;
        [self.sentence(), hinted].into_iter().find(fits).unwrap_or(counted)
    }

    fn sentence(&self) -> String {
        let (invalid, conflicts) = (self.known.invalid(), self.known.conflicts());
        let conflicts = (conflicts > 0).then(|| format!("{} under several leases", plural_address(conflicts)));
        match (invalid, conflicts) {
            (0, None) => String::new(),
            (0, Some(conflicts)) => format!("{conflicts}; leasehold doctor says why"),
            (invalid, None) => not_nodes(invalid),
            (invalid, Some(conflicts)) => format!("{conflicts}; {}", not_nodes(invalid)),
        }
    }

    /// Numbers of the rows that are shown, such as `1-20 of 2,000`.
    pub(super) fn position(&self) -> String {
        let last = (self.offset + self.page).min(self.order.len());
        match self.order.len() {
            0 => plural(0, "row"),
            all => format!("{}-{} of {}", grouped(self.offset + 1), grouped(last), grouped(all)),
        }
    }
}

/// Rows that have room between the lines around them.
fn page(lines: u16) -> usize {
    usize::from(lines.saturating_sub(FRAME_LINES))
}

fn plural_address(count: usize) -> String {
    format!("{} address{}", grouped(count), if count == 1 { "" } else { "es" })
}

#[cfg(test)]
mod tests;
