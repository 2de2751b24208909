//! `leasehold ls`: what is registered in etcd.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use leasehold::{Error, LeaseId, LeaseTtl, Options, RawEntry, Registrar, ServiceName};
use serde::{Serialize, Serializer};
use tokio::time::timeout;

use super::{print, print_json, table};
use crate::{
    cli::{LsArgs, parse},
    connect,
    error::Failure,
};

/// Longest wait for the end of the registrar's thread, which holds no lease.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Smallest similarity of a suggested name, from 0 to 1, and number of suggestions, at most.
const MIN_SIMILARITY: f64 = 0.8;
const MAX_SUGGESTIONS: usize = 5;

/// One node as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct NodeRow {
    pub(super) key: String,
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
}

/// State of the lease that keeps a key in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LeaseState {
    /// A lease that is renewed.
    Ok,
    /// A lease whose renewal is overdue: less than a third of its time is left.
    Expiring,
    /// A lease that etcd has ended; the key is about to go.
    LeaseGone,
    /// No lease: the key outlives its host.
    NoLease,
    /// A lease whose state etcd did not report in time.
    Unknown,
}

impl LeaseState {
    fn of(left: LeaseTtl) -> Self {
        // etcd reports whole seconds; almost one more may be left.
        match (left.remaining + Duration::from_secs(1)) * 3 <= left.granted {
            _ if left.granted.is_zero() => Self::LeaseGone,
            true => Self::Expiring,
            false => Self::Ok,
        }
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Expiring => "expiring",
            Self::LeaseGone => "lease-gone",
            Self::NoLease => "no-lease",
            Self::Unknown => "?",
        })
    }
}

/// Headings of [`NodeRow::cells`].
pub(super) const HEADINGS: [&str; 7] = ["NAME", "VERSION", "ADDR", "WEIGHT", "STATE", "LEASE", "TTL"];

/// Lists nodes on stdout; keys that are not nodes are counted on stderr.
pub(crate) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let name = args.name.as_deref().map(|name| parse::<ServiceName>("NAME", name)).transpose()?;
    let options = args.etcd.registrar()?;
    let registrar = connect::start(&options)?;
    let listed = timed(&registrar, &options, name.as_ref()).await;
    let near = match (&name, &listed) {
        (Some(name), Ok((rows, 0))) if rows.is_empty() => Some(suggestion(&registrar, &options, name).await),
        _ => None,
    };
    // Nothing is registered, so nothing is lost if the thread does not end in time.
    let _ = registrar.shutdown(END_TIMEOUT).await;
    let (rows, others) = listed?;
    if args.json {
        print_json(&rows)?;
    } else {
        print(&table(HEADINGS, &rows.iter().map(NodeRow::cells).collect::<Vec<_>>()))?;
    }
    let unknown = rows.iter().filter(|row| row.state == LeaseState::Unknown).count();
    if unknown > 0 {
        tracing::warn!("etcd did not report the remaining time of {unknown} of {} leases", rows.len());
    }
    if let (Some(name), Some(near)) = (&name, near) {
        tracing::warn!("no service is registered as {name}{near}");
    }
    if others > 0 {
        tracing::warn!("{others} {} not a node", if others == 1 { "key is" } else { "keys are" });
    }
    Ok(())
}

/// Registered names that are similar to this one, as the end of a sentence; empty if etcd does not list them.
async fn suggestion(registrar: &Registrar, options: &Options, name: &ServiceName) -> String {
    let Ok(Ok(all)) = timeout(options.register_timeout, registrar.list(None)).await else { return String::new() };
    let names: BTreeSet<_> = all.into_iter().filter_map(|listed| listed.node.ok()).map(|node| node.name).collect();
    match (similar(name.as_str(), names.iter().map(ServiceName::as_str)), names.len()) {
        (_, 0) => "; there is none at all under this layout".to_owned(),
        (like, _) if !like.is_empty() => format!("; there is {}", like.join(", ")),
        (_, count) => format!("; there are {count} others"),
    }
}

/// Names that are similar to another one, the most similar first.
fn similar<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let likeness = |other: &str| match other.contains(name) || name.contains(other) {
        true => 1.0,
        false => strsim::jaro_winkler(name, other),
    };
    let mut like: Vec<_> =
        all.map(|other| (likeness(other), other)).filter(|(like, _)| *like >= MIN_SIMILARITY).collect();
    like.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    like.into_iter().map(|(_, other)| other).take(MAX_SUGGESTIONS).collect()
}

/// Nodes with the remaining time of their leases, as far as etcd reports it, and the number of keys that are not nodes.
async fn timed(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
) -> Result<(Vec<NodeRow>, usize), Failure> {
    let (mut rows, others) = rows(read(registrar, options, name).await?);
    let leases = rows.iter().filter_map(|row| row.lease).collect();
    // The list is shown even if this fails.
    let left = registrar.lease_ttls(leases, options.register_timeout).await.unwrap_or_default();
    rows.iter_mut().for_each(|row| row.set_ttl(&left));
    Ok((rows, others))
}

pub(super) async fn read(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
) -> Result<Vec<RawEntry>, Failure> {
    // A first request checks that etcd responds at all; the list itself may take longer than one request.
    let prefix = connect::prefix(options, name);
    let unavailable = |error: Error| connect::failure(&error, options, prefix.as_deref());
    connect::attempt(registrar, options, Vec::new()).await.map_err(unavailable)?;
    let deadline = options.register_timeout;
    let listed = timeout(deadline, registrar.list(name)).await;
    listed.unwrap_or(Err(Error::Timeout { what: "the list", after: deadline, why: None })).map_err(unavailable)
}

fn rows(listed: Vec<RawEntry>) -> (Vec<NodeRow>, usize) {
    let all = listed.len();
    let rows: Vec<NodeRow> = listed.into_iter().filter_map(NodeRow::of).collect();
    let others = all - rows.len();
    (rows, others)
}

impl NodeRow {
    /// The row of a node, without the remaining time of its lease; `None` for another key.
    pub(super) fn of(found: RawEntry) -> Option<Self> {
        let node = found.node.ok()?;
        Some(Self {
            key: found.key,
            name: node.name.to_string(),
            version: node.version.to_string(),
            addr: node.addr.to_string(),
            weight: node.weight.map(leasehold::Weight::value),
            state: if found.lease.is_none() { LeaseState::NoLease } else { LeaseState::Unknown },
            lease: found.lease,
            ttl_seconds: None,
            metadata: node.metadata.pairs().iter().cloned().collect(),
        })
    }

    pub(super) fn cells(&self) -> [String; 7] {
        let dash = || "-".to_owned();
        [
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
        ]
    }

    pub(super) fn set_ttl(&mut self, left: &HashMap<LeaseId, LeaseTtl>) {
        if let Some(left) = self.lease.and_then(|lease| left.get(&lease)) {
            self.state = LeaseState::of(*left);
            self.ttl_seconds = Some(left.remaining.as_secs());
        }
    }

    /// Returns true if the rows differ in the remaining time at most.
    pub(super) fn equals_but_ttl(&self, other: &Self) -> bool {
        let timeless = |row: &Self| Self { state: LeaseState::Unknown, ttl_seconds: None, ..row.clone() };
        timeless(self) == timeless(other)
    }
}

fn hexadecimal<S: Serializer>(lease: &Option<LeaseId>, serializer: S) -> Result<S::Ok, S::Error> {
    lease.map(|lease| lease.to_string()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::LeaseTtl;

    use super::{LeaseState, similar};

    #[test]
    fn similar_names_are_suggested_for_an_unknown_one() {
        let all = ["order", "orders", "user", "user-cache", "greeter"];
        let like = |name| similar(name, all.into_iter());
        assert_eq!(like("ordr"), ["order", "orders"]);
        assert_eq!(like("cache"), ["user-cache"]);
        assert_eq!(like("greter"), ["greeter"]);
        assert!(like("zzz").is_empty());
    }

    #[test]
    fn a_lease_expires_when_less_than_a_third_of_its_time_is_left_for_certain() {
        let standing = |granted, left| {
            LeaseState::of(LeaseTtl { granted: Duration::from_secs(granted), remaining: Duration::from_secs(left) })
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
            assert_eq!(standing(granted, left), expected, "{left} of {granted}");
        }
    }
}
