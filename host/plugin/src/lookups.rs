//! Services that a component watches, bounded in number; services without nodes are few, and kept for a while.
//!
//! A watched service costs a stream of etcd and the tasks behind it, even without nodes. A component that looks up many
//! names that do not exist keeps those that it used last, and none of them for long.

use std::{collections::HashMap, sync::Arc, time::Duration};

use leasehold::{Balancer, ServiceName, Version, View};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::budget::Budget;

/// Services that one component watches at a time, at most.
pub(crate) const MAX_VIEWS: usize = 1000;
/// Of these, those without nodes, at most.
const MAX_EMPTY: usize = 128;
/// The time after its last use at which a service without nodes is dropped.
const IDLE: Duration = Duration::from_secs(60);
/// Interval at which a component may look up further services, once it has looked up [`MAX_VIEWS`].
const PACE: Duration = Duration::from_millis(100);

/// A service and a version, which is empty for all versions.
pub(crate) type Service = (ServiceName, Version);

/// A watched service. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct WatchedService {
    pub(crate) view: View,
    /// Present once the component has picked a node of it, or called it by name.
    pub(crate) balancer: Option<Arc<Balancer>>,
}

/// Property of an entry that the table depends on.
pub(crate) trait Entry: Clone {
    /// Detects a service that has no nodes at the moment.
    fn is_empty(&self) -> bool;
}

impl Entry for WatchedService {
    fn is_empty(&self) -> bool {
        self.view.nodes().is_empty()
    }
}

/// The table of one component.
#[derive(Debug)]
pub(crate) struct Lookups<E> {
    table: Mutex<HashMap<Service, Used<E>>>,
    pub(crate) budget: Budget,
}

#[derive(Debug)]
struct Used<E> {
    entry: E,
    last: Instant,
}

/// The limit of watched services is reached, and each has nodes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<E: Entry> Lookups<E> {
    pub(crate) fn new() -> Self {
        Self { table: Mutex::default(), budget: Budget::new(u32::try_from(MAX_VIEWS).unwrap_or(u32::MAX), PACE) }
    }

    /// The entry of a service, which counts as used now.
    pub(crate) fn get(&self, service: &Service, now: Instant) -> Option<E> {
        self.table().get_mut(service).map(|used| {
            used.last = now;
            used.entry.clone()
        })
    }

    /// Keeps an entry unless the service has one already, and returns the entry that is kept. Entries without nodes make
    /// room, the least recently used first.
    pub(crate) fn keep(&self, service: Service, entry: E, now: Instant) -> Result<E, Full> {
        let mut table = self.table();
        if let Some(used) = table.get_mut(&service) {
            used.last = now;
            return Ok(used.entry.clone());
        }
        if table.len() >= MAX_EMPTY {
            let mut empty: Vec<_> = table
                .iter()
                .filter(|(_, used)| used.entry.is_empty())
                .map(|(key, used)| (used.last, key.clone()))
                .collect();
            empty.sort();
            let excess = (empty.len() + 1).saturating_sub(MAX_EMPTY).max((table.len() + 1).saturating_sub(MAX_VIEWS));
            for (_, key) in empty.into_iter().take(excess) {
                table.remove(&key);
            }
        }
        if table.len() >= MAX_VIEWS {
            return Err(Full);
        }
        Ok(table.entry(service).or_insert(Used { entry, last: now }).entry.clone())
    }

    /// Changes the entry of a service, and returns it; `None` if it was dropped meanwhile.
    pub(crate) fn change(&self, service: &Service, change: impl FnOnce(&mut E)) -> Option<E> {
        self.table().get_mut(service).map(|used| {
            change(&mut used.entry);
            used.entry.clone()
        })
    }

    /// Drops entries without nodes that were not used for [`IDLE`]. False when no entry is left.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut table = self.table();
        table.retain(|_, used| now.saturating_duration_since(used.last) < IDLE || !used.entry.is_empty());
        !table.is_empty()
    }

    /// Every entry, in the order of the services.
    pub(crate) fn all(&self) -> Vec<E> {
        let table = self.table();
        let mut all: Vec<_> = table.iter().collect();
        all.sort_by_key(|(service, _)| *service);
        all.into_iter().map(|(_, used)| used.entry.clone()).collect()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Service, Used<E>>> {
        self.table.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Entry, Full, IDLE, Lookups, MAX_EMPTY, MAX_VIEWS, Service};

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Nodes(usize);

    impl Entry for Nodes {
        fn is_empty(&self) -> bool {
            self.0 == 0
        }
    }

    fn service(number: usize) -> Service {
        (format!("service-{number}").parse().unwrap(), "".parse().unwrap())
    }

    #[test]
    fn services_without_nodes_are_few_and_those_in_use_stay() {
        let (lookups, begun) = (Lookups::new(), Instant::now());
        lookups.keep(service(0), Nodes(3), begun).unwrap();
        for number in 1..10 * MAX_EMPTY {
            let now = begun + Duration::from_millis(number as u64);
            lookups.keep(service(number), Nodes(0), now).unwrap();
            assert!(lookups.get(&service(1), now).is_some(), "it is used all the time");
        }
        assert_eq!(lookups.all().len(), MAX_EMPTY + 1);
        assert!(lookups.get(&service(0), begun).is_some() && lookups.get(&service(2), begun).is_none());
    }

    #[test]
    fn services_with_nodes_are_never_dropped_for_others() {
        let (lookups, now) = (Lookups::new(), Instant::now());
        for number in 0..MAX_VIEWS {
            lookups.keep(service(number), Nodes(1), now).unwrap();
        }
        assert_eq!(lookups.keep(service(MAX_VIEWS), Nodes(1), now), Err(Full));
        assert_eq!(lookups.keep(service(7), Nodes(2), now), Ok(Nodes(1)), "it is there already");
        lookups.change(&service(7), |nodes| *nodes = Nodes(0)).unwrap();
        assert_eq!(lookups.keep(service(MAX_VIEWS), Nodes(1), now), Ok(Nodes(1)), "a service without nodes makes room");
        assert_eq!(lookups.all().len(), MAX_VIEWS);
    }

    #[test]
    fn a_service_without_nodes_is_dropped_once_it_is_not_looked_up() {
        let (lookups, begun) = (Lookups::new(), Instant::now());
        for number in 0..3 {
            lookups.keep(service(number), Nodes(number / 2), begun).unwrap();
        }
        assert!(lookups.sweep(begun + IDLE / 2));
        lookups.get(&service(1), begun + IDLE / 2);
        assert!(lookups.sweep(begun + IDLE));
        assert!(lookups.get(&service(0), begun + IDLE).is_none());
        assert!(lookups.sweep(begun + 2 * IDLE));
        assert_eq!(lookups.all(), [Nodes(1)]);
        lookups.change(&service(2), |nodes| *nodes = Nodes(0)).unwrap();
        assert!(!lookups.sweep(begun + 2 * IDLE));
    }
}
