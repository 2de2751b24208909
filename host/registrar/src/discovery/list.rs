//! Every key of the layouts, whether a node stands there or not.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::time::sleep;

use crate::{
    etcd::{Etcd, Failure, Found},
    layout::Layout,
    node::{Invalid, ServerNode, ServiceName, Version},
};

/// Leases that are asked about at a time.
const LOOKS: usize = 32;

/// One key in etcd, as [`Registrar::list`](crate::Registrar::list) found it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The key; bytes that are not UTF-8 are replaced.
    pub key: String,
    /// The value as it stands there.
    pub value: Vec<u8>,
    /// The node, or why the value is not one.
    pub node: Result<ServerNode, Invalid>,
    /// The lease, 0 for none: such a key outlives its host.
    pub lease: i64,
}

/// How long a lease lasts, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft {
    /// From a renewal on; zero for a lease that is gone.
    pub granted: Duration,
    /// If it is not renewed.
    pub left: Duration,
}

/// The layouts, each with what the keys begin with that are looked at.
#[derive(Clone)]
pub(crate) struct Ranges(Vec<(Layout, String)>);

impl Ranges {
    /// All keys, or those of one service, or of one version of it.
    pub(crate) fn new(layouts: &[Layout], what: Option<&(ServiceName, Version)>) -> Self {
        let prefix = |layout: &Layout| match what {
            None => layout.root(),
            Some((name, version)) => layout.prefix(name, version),
        };
        Self(layouts.iter().map(|layout| (layout.clone(), prefix(layout))).collect())
    }

    /// What every key begins with; no key begins with two of them.
    pub(super) fn prefixes(&self) -> Vec<String> {
        let mut prefixes: Vec<_> = self.0.iter().map(|(_, prefix)| prefix.clone()).collect();
        prefixes.sort();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(&*shorter));
        prefixes
    }

    /// A key, and which layout it belongs to. Garbage to one may be a node to another that shares its prefix.
    pub(super) fn listed(&self, found: Found) -> (usize, Listed) {
        let here = self.0.iter().enumerate().filter(|(_, (_, prefix))| found.key.starts_with(prefix.as_bytes()));
        let mut parsed = here.map(|(index, (layout, _))| (index, layout.parse(&found.key, &found.value)));
        let first = parsed.next().expect("it was read under one of them");
        let (index, node) = match first {
            (_, Ok(_)) => first,
            garbage => parsed.find(|(_, node)| node.is_ok()).unwrap_or(garbage),
        };
        let key = String::from_utf8_lossy(&found.key).into_owned();
        (index, Listed { key, value: found.value, node, lease: found.lease })
    }
}

/// Every key, those of the first layout first.
pub(crate) async fn list(etcd: &Etcd, ranges: &Ranges) -> Result<Vec<Listed>, Failure> {
    let mut all = Vec::new();
    for prefix in ranges.prefixes() {
        all.extend(etcd.read(&prefix, |_, found| ranges.listed(found)).await?.found);
    }
    all.sort_by_key(|(layout, _)| *layout);
    Ok(all.into_iter().map(|(_, listed)| listed).collect())
}

/// How long leases last without a renewal, as far as etcd tells `within` that time.
pub(crate) async fn times_left(etcd: &Etcd, leases: HashSet<i64>, within: Duration) -> HashMap<i64, TimeLeft> {
    let looks = leases.into_iter().map(|lease| async move {
        match etcd.look_at(lease, false, within).await {
            Ok(view) => Some((lease, TimeLeft { granted: view.ttl, left: view.remaining })),
            Err(Failure::LeaseGone) => Some((lease, TimeLeft { granted: Duration::ZERO, left: Duration::ZERO })),
            Err(_) => None,
        }
    });
    let looks = stream::iter(looks).buffer_unordered(LOOKS).take_until(sleep(within));
    looks.filter_map(std::future::ready).collect().await
}
