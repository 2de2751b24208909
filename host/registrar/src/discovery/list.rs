//! Lists every key of the layouts, valid or not.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::time::sleep;

use crate::{
    etcd::{Etcd, Failure, Found},
    layout::Layout,
    lease_id::LeaseId,
    node::{Invalid, ServerNode, ServiceName, Version},
};

/// Number of concurrent requests about leases.
const CONCURRENT_LOOKUPS: usize = 32;

/// A key in etcd with its value, parsed or not.
#[derive(Debug, Clone)]
pub struct RawEntry {
    /// The key; bytes that are not UTF-8 are replaced.
    pub key: String,
    /// The value, byte for byte.
    pub value: Vec<u8>,
    /// The node, or the rule that the key or value breaks.
    pub node: Result<ServerNode, Invalid>,
    /// The lease; `None` for a key without one, which outlives its host.
    pub lease: Option<LeaseId>,
    /// The revision of etcd that wrote the key last.
    pub revision: i64,
}

/// Time to live of a lease, in whole seconds; zero for a lease that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTtl {
    /// Granted time to live, which a renewal restores.
    pub granted: Duration,
    /// Remaining time to live.
    pub remaining: Duration,
}

/// The layouts, each with the beginning of the keys to read.
#[derive(Clone)]
pub(crate) struct Ranges(Vec<(Layout, String)>);

impl Ranges {
    /// Covers all keys, or those of one service and version.
    pub(crate) fn new(layouts: &[Layout], service: Option<&(ServiceName, Version)>) -> Self {
        let prefix = |layout: &Layout| match service {
            None => layout.root(),
            Some((name, version)) => layout.prefix(name, version),
        };
        Self(layouts.iter().map(|layout| (layout.clone(), prefix(layout))).collect())
    }

    /// Prefixes to read, none of which begins with another.
    pub(super) fn prefixes(&self) -> Vec<String> {
        let mut prefixes: Vec<_> = self.0.iter().map(|(_, prefix)| prefix.clone()).collect();
        prefixes.sort();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(&*shorter));
        prefixes
    }

    /// Parses a key, and returns the index of its layout. A key that is invalid under one layout may be a node of another one
    /// with the same prefix.
    pub(super) fn parse(&self, found: Found) -> (usize, RawEntry) {
        let layouts = self.0.iter().enumerate().filter(|(_, (_, prefix))| found.key.starts_with(prefix.as_bytes()));
        let mut parsed = layouts.map(|(index, (layout, _))| (index, layout.parse(&found.key, &found.value)));
        let first = parsed.next().expect("the key was read under one of the prefixes");
        let (index, node) = match first {
            (_, Ok(_)) => first,
            invalid => parsed.find(|(_, node)| node.is_ok()).unwrap_or(invalid),
        };
        let key = String::from_utf8_lossy(&found.key).into_owned();
        (index, RawEntry { key, value: found.value, node, lease: found.lease, revision: found.modified })
    }
}

/// Lists every key in the order of the layouts.
pub(crate) async fn list(etcd: &Etcd, ranges: &Ranges) -> Result<Vec<RawEntry>, Failure> {
    let mut all = Vec::new();
    for prefix in ranges.prefixes() {
        all.extend(etcd.read(&prefix, || move |found| ranges.parse(found)).await?.entries);
    }
    all.sort_by_key(|(layout, _)| *layout);
    Ok(all.into_iter().map(|(_, entry)| entry).collect())
}

/// Reads the time to live of leases. Leases that etcd says nothing about `within` that time are missing in the result.
pub(crate) async fn lease_ttls(etcd: &Etcd, leases: HashSet<LeaseId>, within: Duration) -> HashMap<LeaseId, LeaseTtl> {
    let lookups = leases.into_iter().map(|lease| async move {
        match etcd.look_at(lease, false, within).await {
            Ok(view) => Some((lease, LeaseTtl { granted: view.ttl, remaining: view.remaining })),
            Err(Failure::LeaseGone) => Some((lease, LeaseTtl { granted: Duration::ZERO, remaining: Duration::ZERO })),
            Err(_) => None,
        }
    });
    let lookups = stream::iter(lookups).buffer_unordered(CONCURRENT_LOOKUPS).take_until(sleep(within));
    lookups.filter_map(std::future::ready).collect().await
}
