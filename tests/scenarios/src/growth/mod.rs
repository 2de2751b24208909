//! Fleets far larger than those of other scenarios: many hosts, each with thousands of registrations.

mod record;
mod report;
mod simulated;

use std::{fmt, fs, sync::Arc};

use leasehold::{LoadSource, Options, Registrar, Registration, ServerNode, Weight};
use tokio::task::JoinSet;

use crate::world::SOON;

pub use self::{
    record::Traffic,
    report::{Phase, Report},
    simulated::simulate,
};

/// Concurrent calls of `register` of one host: each of ten leases has a full transaction in progress while the next one fills.
const AT_A_TIME: usize = 3000;
/// Version of every service.
const VERSION: &str = "v1.4.2";

/// Size of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of hosts, each with a registrar of its own.
    pub hosts: usize,
    /// Number of registrations of each host, of as many services.
    pub keys: usize,
}

impl Size {
    /// Number of registrations in all.
    pub fn total(&self) -> usize {
        self.hosts * self.keys
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} registrations on {} hosts", self.total(), self.hosts)
    }
}

/// One host and its registrations.
#[derive(Debug)]
pub struct Host {
    index: usize,
    registrar: Registrar,
    registrations: Vec<Registration>,
}

impl Host {
    /// Registers every service on this host.
    ///
    /// # Panics
    /// If a registration fails.
    pub async fn register(index: usize, registrar: Registrar, keys: usize) -> Self {
        let mut calls = JoinSet::new();
        let mut registrations = Vec::with_capacity(keys);
        for service in 0..keys {
            if calls.len() == AT_A_TIME {
                registrations.extend(calls.join_next().await.map(|call| call.expect("no call panics")));
            }
            let (registrar, node) = (registrar.clone(), node(index, service));
            calls.spawn(async move { registrar.register(node).await.expect("etcd is there") });
        }
        registrations.extend(calls.join_all().await);
        Self { index, registrar, registrations }
    }

    /// Number of the host.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The registrations.
    pub fn registrations(&self) -> &[Registration] {
        &self.registrations
    }

    /// Ends the host in order: every registration is stopped, then the registrar is shut down.
    ///
    /// # Panics
    /// If etcd does not confirm it.
    pub async fn stop(self) {
        let mut calls = JoinSet::new();
        for registration in self.registrations {
            calls.spawn(async move { registration.stop().await.expect("etcd is there") });
        }
        calls.join_all().await;
        self.registrar.shutdown(SOON).await.expect("etcd is there");
    }
}

/// Options of every host: a fixed weight, and time enough for thousands of calls at once.
pub fn options(endpoints: Vec<String>) -> Options {
    let patience = std::time::Duration::from_secs(60);
    Options {
        load: LoadSource::Fixed(Weight::try_from(73).expect("a weight")),
        register_timeout: patience,
        stop_timeout: patience,
        ..Options::new(endpoints)
    }
}

/// Name of a service.
pub fn service(number: usize) -> String {
    format!("service-{number}")
}

/// Node of a service on a host.
fn node(host: usize, service: usize) -> ServerNode {
    let addr = format!("10.0.{}.{}:8080", host / 256, host % 256);
    let node = ServerNode::new(&self::service(service), &addr).expect("a good node");
    ServerNode { version: VERSION.parse().expect("a version"), ..node }
}

/// Name of a host in the simulated network.
fn name(host: usize) -> Arc<str> {
    format!("host-{host}").into()
}

/// Resident memory of a process: `self`, or its number.
///
/// # Panics
/// Without a `/proc` that shows it.
pub fn resident_bytes(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("/proc shows processes");
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a process has memory") * 1024
}
