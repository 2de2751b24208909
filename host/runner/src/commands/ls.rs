//! `leasehold ls`: what is registered in etcd.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use leasehold::{Error, Listed, Options, Registrar, ServiceName};
use serde::{Serialize, Serializer};
use tokio::time::timeout;

use super::{print, print_json, table};
use crate::{
    cli::{LsArgs, parse},
    failure::Failure,
    reach,
};

/// How long the registrar's thread may take to end; it holds no lease.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(1);

/// One node as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) key: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) addr: String,
    pub(super) weight: Option<u32>,
    /// As etcdctl writes it; null for a key that outlives its host.
    #[serde(serialize_with = "hexadecimal")]
    pub(super) lease: Option<i64>,
    pub(super) ttl_seconds: Option<u64>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// What [`Row::cells`] are.
pub(super) const HEADINGS: [&str; 6] = ["NAME", "VERSION", "ADDR", "WEIGHT", "LEASE", "TTL"];

/// Lists nodes on stdout; keys that are not nodes are counted on stderr.
pub(crate) async fn ls(args: LsArgs) -> Result<(), Failure> {
    let name = args.name.as_deref().map(|name| parse::<ServiceName>("NAME", name)).transpose()?;
    let options = args.etcd.registrar()?;
    let registrar = reach::start(&options)?;
    let listed = read(&registrar, &options, name.as_ref()).await;
    // Nothing is registered, so nothing is lost when the thread does not end in time.
    let _ = registrar.shutdown(END_TIMEOUT).await;
    let (rows, others) = rows(listed?);
    if args.json {
        print_json(&rows)?;
    } else {
        print(&table(HEADINGS, &rows.iter().map(Row::cells).collect::<Vec<_>>()))?;
    }
    if others > 0 {
        tracing::warn!("{others} {} not a node", if others == 1 { "key is" } else { "keys are" });
    }
    Ok(())
}

pub(super) async fn read(
    registrar: &Registrar,
    options: &Options,
    name: Option<&ServiceName>,
) -> Result<Vec<Listed>, Failure> {
    // A first answer says whether etcd is there at all; the list itself may take longer than one request.
    let unavailable = |error: Error| Failure::unavailable(reach::said(&error, options));
    reach::attempt(registrar, options).await.map_err(unavailable)?;
    let deadline = options.register_timeout;
    let listed = timeout(deadline, registrar.list(name)).await;
    listed.unwrap_or(Err(Error::Timeout { what: "the list", after: deadline })).map_err(unavailable)
}

fn rows(listed: Vec<Listed>) -> (Vec<Row>, usize) {
    let all = listed.len();
    let rows: Vec<Row> = listed.into_iter().filter_map(Row::of).collect();
    let others = all - rows.len();
    (rows, others)
}

impl Row {
    /// A node, or nothing.
    pub(super) fn of(found: Listed) -> Option<Self> {
        let node = found.node.ok()?;
        Some(Self {
            key: found.key,
            name: node.name.to_string(),
            version: node.version.to_string(),
            addr: node.addr.to_string(),
            weight: node.weight.map(leasehold::Weight::value),
            lease: (found.lease != 0).then_some(found.lease),
            ttl_seconds: found.ttl_remaining.map(|left| left.as_secs()),
            metadata: node.metadata.pairs().iter().cloned().collect(),
        })
    }

    pub(super) fn cells(&self) -> [String; 6] {
        let dash = || "-".to_owned();
        [
            self.name.clone(),
            if self.version.is_empty() { dash() } else { self.version.clone() },
            self.addr.clone(),
            self.weight.map_or_else(dash, |weight| weight.to_string()),
            self.lease.map_or_else(dash, |lease| format!("{lease:x}")),
            self.ttl_seconds.map_or_else(dash, |seconds| format!("{seconds}s")),
        ]
    }

    pub(super) fn take_time(&mut self, left: &HashMap<i64, Duration>) {
        if let Some(left) = self.lease.and_then(|lease| left.get(&lease)) {
            self.ttl_seconds = Some(left.as_secs());
        }
    }

    /// Whether all but the time that is left is the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Self { ttl_seconds: None, ..self.clone() } == Self { ttl_seconds: None, ..other.clone() }
    }
}

fn hexadecimal<S: Serializer>(lease: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    lease.map(|lease| format!("{lease:x}")).serialize(serializer)
}
