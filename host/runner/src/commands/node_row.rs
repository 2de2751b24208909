//! A node in etcd as `ls` and `watch` show it: a row of a table, or an object in JSON.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use leasehold::{Layout, LeaseId, LeaseTtl, RawEntry};
use serde::{Serialize, Serializer};

use super::{
    order::{AddressOrder, Natural},
    table::Column,
};
use crate::cli::lease_state::LeaseState;

/// One node as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct NodeRow {
    pub(super) key: String,
    /// The layout of the key and the value.
    pub(super) layout: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) addr: String,
    pub(super) weight: Option<u32>,
    pub(super) state: LeaseState,
    /// As etcdctl writes it; null for a key that outlives its host.
    #[serde(serialize_with = "hexadecimal")]
    pub(super) lease: Option<LeaseId>,
    pub(super) ttl_seconds: Option<u64>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Revision that wrote the key last; not in JSON, where an event has its own.
    #[serde(skip)]
    pub(super) revision: i64,
}

/// Heading of the column with [`NodeRow::state`].
pub(super) const STATE: &str = "STATE";
/// Columns of every node.
const COLUMNS: [Column; 7] = [
    // Names of one team often begin alike, and all leases of one etcd do.
    Column::cut_in_the_middle("NAME", 3),
    Column::cut("VERSION", 2),
    Column::cut_in_the_middle("ADDR", 3),
    Column::number("WEIGHT"),
    Column::text(STATE),
    Column::cut_at_the_start("LEASE", 1),
    Column::number("TTL"),
];
/// Column after the others, where several layouts are read.
const LAYOUT: Column = Column::cut("LAYOUT", 1);

/// The columns, with that of the layout if there are several.
pub(super) fn columns(has_layouts: bool) -> impl Iterator<Item = Column> {
    COLUMNS.into_iter().chain(has_layouts.then_some(LAYOUT))
}

/// Order of rows by service, version and address.
type Order = (String, Natural, AddressOrder, String);

impl NodeRow {
    /// The row of a node, without the remaining time of its lease; `None` for another key.
    pub(super) fn of(found: RawEntry, layouts: &[Layout]) -> Option<Self> {
        let layout = layout(&found, layouts);
        let node = found.node.ok()?;
        Some(Self {
            key: found.key,
            layout,
            name: node.name.to_string(),
            version: node.version.to_string(),
            addr: node.addr.to_string(),
            weight: node.weight.map(leasehold::Weight::value),
            state: if found.lease.is_none() { LeaseState::NoLease } else { LeaseState::Unknown },
            lease: found.lease,
            ttl_seconds: None,
            metadata: node.metadata.pairs().iter().cloned().collect(),
            revision: found.revision,
        })
    }

    pub(super) fn order(&self) -> Order {
        (self.name.clone(), Natural(self.version.clone()), AddressOrder::of(&self.addr), self.key.clone())
    }

    /// The cells of [`columns`].
    pub(super) fn cells(&self, has_layouts: bool) -> impl Iterator<Item = String> {
        let dash = || "-".to_owned();
        let cells = [
            self.name.clone(),
            if self.version.is_empty() { dash() } else { self.version.clone() },
            self.addr.clone(),
            self.weight.map_or_else(dash, |weight| weight.to_string()),
            self.state.to_string(),
            self.lease.map_or_else(dash, |lease| lease.to_string()),
            match (self.lease, self.ttl_seconds) {
                (_, Some(seconds)) => format!("{seconds}s"),
                (Some(_), None) => "?".to_owned(),
                (None, None) => dash(),
            },
        ];
        cells.into_iter().chain(has_layouts.then(|| self.layout.clone()))
    }

    /// Sets the remaining time of the lease, if etcd reported it.
    pub(super) fn set_ttl(&mut self, left: &HashMap<LeaseId, LeaseTtl>) {
        if let Some(left) = self.lease.and_then(|lease| left.get(&lease)) {
            self.state = state(*left);
            self.ttl_seconds = Some(left.remaining.as_secs());
        }
    }

    /// Keeps the remaining time that was reported before, if the lease is the same.
    pub(super) fn keep_ttl(&mut self, before: &Self) {
        if self.lease == before.lease {
            (self.state, self.ttl_seconds) = (before.state, before.ttl_seconds);
        }
    }

    /// Returns true if the rows differ in the remaining time and the revision at most.
    pub(super) fn shows_as(&self, other: &Self) -> bool {
        let timeless = |row: &Self| Self { state: LeaseState::Unknown, ttl_seconds: None, revision: 0, ..row.clone() };
        timeless(self) == timeless(other)
    }
}

/// Name of the layout that a key and a value are of: the first of those that are read, or the only one.
fn layout(found: &RawEntry, layouts: &[Layout]) -> String {
    let reads = |layout: &&Layout| layout.parse(found.key.as_bytes(), &found.value).is_ok();
    let of = match layouts {
        [layout] => Some(layout),
        several => several.iter().find(reads),
    };
    of.map(ToString::to_string).unwrap_or_default()
}

/// State of a lease by the time that is left to it.
fn state(left: LeaseTtl) -> LeaseState {
    // etcd reports whole seconds; almost one more may be left.
    match (left.remaining + Duration::from_secs(1)) * 3 <= left.granted {
        _ if left.granted.is_zero() => LeaseState::LeaseGone,
        true => LeaseState::Expiring,
        false => LeaseState::Ok,
    }
}

/// Color of a state in a terminal.
pub(super) fn color(state: LeaseState) -> Style {
    let color = match state {
        LeaseState::Ok => AnsiColor::Green,
        LeaseState::Unknown => return Style::new().dimmed(),
        LeaseState::Expiring => AnsiColor::Yellow,
        LeaseState::NoLease => AnsiColor::Magenta,
        LeaseState::LeaseGone => AnsiColor::Red,
    };
    Style::new().fg_color(Some(color.into()))
}

/// One sentence with the number of nodes, of services, and of nodes in each state, such as `3 nodes of 2 services: 2 ok, 1
/// no-lease`.
pub(super) fn totals<'a>(rows: impl IntoIterator<Item = &'a NodeRow>) -> String {
    let (mut states, mut names, mut count) = (BTreeMap::new(), BTreeSet::new(), 0);
    for row in rows {
        *states.entry(row.state).or_insert(0) += 1;
        names.insert(row.name.as_str());
        count += 1;
    }
    let states: Vec<_> = states.into_iter().map(|(state, count)| format!("{} {state}", grouped(count))).collect();
    let colon = if states.is_empty() { "" } else { ": " };
    format!("{} of {}{colon}{}", plural(count, "node"), plural(names.len(), "service"), states.join(", "))
}

/// A number and its noun.
pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A number with its thousands apart.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Sentence about keys under the layouts that are not nodes.
pub(super) fn not_nodes(count: usize) -> String {
    let are = if count == 1 { "is" } else { "are" };
    format!("{} {are} not a node; leasehold doctor says why", plural(count, "key"))
}

/// The same in few words.
pub(super) fn invalid_keys(count: usize) -> String {
    plural(count, "invalid key")
}

fn hexadecimal<S: Serializer>(lease: &Option<LeaseId>, serializer: S) -> Result<S::Ok, S::Error> {
    lease.map(|lease| lease.to_string()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::{Layout, LeaseId, LeaseTtl, RawEntry};

    use super::{NodeRow, grouped, state, totals};
    use crate::cli::lease_state::LeaseState;

    fn row(name: &str, addr: &str, lease: i64) -> NodeRow {
        let (key, layout) = (format!("/{name}/{addr}"), Layout::default());
        let value = format!(r#"{{"name":"{name}","addr":"{addr}","version":"","weight":"9"}}"#).into_bytes();
        let node = layout.parse(key.as_bytes(), &value);
        let found = RawEntry { key, value, node, lease: LeaseId::new(lease), revision: 1 };
        NodeRow::of(found, &[layout]).unwrap()
    }

    #[test]
    fn a_lease_expires_when_less_than_a_third_of_its_time_is_left_for_certain() {
        let of = |granted, left| {
            state(LeaseTtl { granted: Duration::from_secs(granted), remaining: Duration::from_secs(left) })
        };
        for (granted, left, expected) in [
            (10, 9, LeaseState::Ok),
            (10, 3, LeaseState::Ok),
            (10, 2, LeaseState::Expiring),
            (3, 1, LeaseState::Ok),
            (3, 0, LeaseState::Expiring),
            (2, 0, LeaseState::Ok), // It may have 0.9 s.
            (0, 0, LeaseState::LeaseGone),
        ] {
            assert_eq!(of(granted, left), expected, "{left} of {granted}");
        }
    }

    #[test]
    fn rows_are_in_the_order_of_names_and_numbers() {
        let sorted = [("order", "h:1"), ("user", "10.0.0.9:8000"), ("user", "10.0.0.10:8000"), ("user", "h:1")];
        let mut all = sorted.map(|(name, addr)| row(name, addr, 7));
        all.reverse();
        all.sort_by_cached_key(NodeRow::order);
        assert_eq!(all.map(|row| row.addr), sorted.map(|(_, addr)| addr.to_owned()));
    }

    #[test]
    fn totals_count_nodes_services_and_states() {
        let rows = [row("a", "h:1", 7), row("a", "h:2", 0), row("b", "h:3", 0)];
        assert_eq!(totals(&rows), "3 nodes of 2 services: 1 ?, 2 no-lease");
        assert_eq!(totals(&rows[..1]), "1 node of 1 service: 1 ?");
        assert_eq!(totals(&[]), "0 nodes of 0 services");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_row_names_its_layout() {
        let layouts: Vec<Layout> = ["kratos", "seed"].iter().map(|name| name.parse().unwrap()).collect();
        let value = br#"{"name":"a","addr":"h:1","version":"","weight":"9"}"#.to_vec();
        let node = layouts[1].parse(b"/a/h:1", &value);
        let found = RawEntry { key: "/a/h:1".to_owned(), value, node, lease: None, revision: 1 };
        assert_eq!(NodeRow::of(found, &layouts).unwrap().layout, "seed");
    }
}
