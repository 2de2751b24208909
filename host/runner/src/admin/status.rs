//! Status of the host and of its services, as JSON shows it.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    config::Register,
    service::handle::{Readiness, Services, Snapshot},
};

/// Facts of the process that do not change.
#[derive(Clone, Serialize)]
pub(crate) struct HostInfo {
    version: &'static str,
    commit: &'static str,
    pid: u32,
    since: String,
    /// Path of the configuration file; of the component, where that is run alone.
    configuration: String,
    /// Endpoints of etcd.
    etcd: Vec<String>,
}

impl HostInfo {
    /// The facts of this process, which starts now.
    pub(crate) fn new(configuration: String, etcd: Vec<String>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("LEASEHOLD_COMMIT"),
            pid: std::process::id(),
            since: shown(SystemTime::now()),
            configuration,
            etcd,
        }
    }
}

/// The host as `/status` shows it.
#[derive(Serialize)]
pub(crate) struct HostStatus<'a> {
    #[serde(flatten)]
    host: &'a HostInfo,
    /// `starting`, `running` or `ending`.
    phase: &'static str,
    /// Faults of etcd, a sentence each.
    faults: Vec<String>,
    services: Vec<ServiceRow<'a>>,
}

impl<'a> HostStatus<'a> {
    pub(crate) fn of(
        host: &'a HostInfo,
        all: &Services,
        faults: Vec<String>,
        services: &'a [Snapshot],
    ) -> HostStatus<'a> {
        let phase = match (all.ending.is_cancelled(), all.are_known()) {
            (true, _) => "ending",
            (false, true) => "running",
            (false, false) => "starting",
        };
        HostStatus { host, phase, faults, services: services.iter().map(ServiceRow::of).collect() }
    }
}

/// A service as `/services` and `/status` show it.
#[derive(Serialize)]
pub(crate) struct ServiceRow<'a> {
    service: &'a str,
    version: &'a str,
    listen: &'a str,
    url: &'a str,
    component: String,
    /// SHA-256 of the component file as it was loaded; null before.
    component_sha256: Option<&'a str>,
    /// Begin of the service of that component.
    component_since: Option<String>,
    phase: String,
    /// Begin of the phase.
    since: String,
    /// `ready`, `unknown` or `not ready`.
    readiness: &'static str,
    /// Reason for which it is not known to be ready.
    why: Option<String>,
    requests: Requests,
    instances: usize,
    /// Weight that an operator has set; null for the weight as configured.
    weight: Option<u32>,
    registrations: Vec<RegistrationRow>,
    /// The services that it watches.
    views: Vec<ViewRow>,
}

/// Numbers of requests since the host began.
#[derive(Serialize)]
struct Requests {
    all: u64,
    /// Requests that the component failed to answer.
    failed: u64,
    /// Requests that the host responded to in the component's place.
    rejected: u64,
    in_flight: i64,
}

#[derive(Serialize)]
struct ViewRow {
    name: String,
    version: String,
    nodes: usize,
    invalid_keys: usize,
    /// Null before etcd was read.
    age_seconds: Option<f64>,
    /// Error of the watch; null while the view is up to date.
    error: Option<String>,
}

#[derive(Serialize)]
struct RegistrationRow {
    /// The key; under several layouts the first.
    key: String,
    /// The keys of all layouts.
    keys: Vec<String>,
    /// The lease of that key, in hexadecimal as etcdctl has it; null while the key is under no lease of this host.
    lease: Option<String>,
    /// The leases of the keys of all layouts.
    leases: Vec<Option<String>>,
    state: String,
    weight: u32,
    ttl_remaining_seconds: f64,
    lease_age_seconds: f64,
    renewals: u64,
    recoveries: u64,
}

impl<'a> ServiceRow<'a> {
    pub(crate) fn of(service: &'a Snapshot) -> Self {
        let (handle, status) = (&service.handle, &service.status);
        let (readiness, why) = match service.readiness() {
            Readiness::Ready => ("ready", None),
            Readiness::Unknown(message) => ("unknown", Some(message)),
            Readiness::NotReady(message) => ("not ready", Some(message)),
        };
        let revision = status.revision.as_ref();
        let weight = *handle.weight.borrow();
        Self {
            service: handle.name.as_str(),
            version: status.spec.version.as_str(),
            listen: &status.listen,
            url: &status.url,
            component: status.spec.component.display().to_string(),
            component_sha256: revision.map(|revision| &*revision.digest),
            component_since: revision.map(|revision| shown(revision.since)),
            phase: status.phase.to_string(),
            since: shown(status.since),
            readiness,
            why,
            requests: Requests::of(service),
            instances: service.instances().0,
            weight: weight.filter(|_| status.spec.register != Register::Off).map(|weight| weight.value()),
            registrations: registrations(service),
            views: views(service),
        }
    }
}

impl Requests {
    fn of(service: &Snapshot) -> Self {
        let (stats, tally) = (&service.handle.stats, service.handle.stats.tally());
        Self {
            all: tally.all,
            failed: tally.failed,
            rejected: stats.rejections().map(|(_, count)| count.get()).sum(),
            in_flight: stats.within(),
        }
    }
}

fn registrations(service: &Snapshot) -> Vec<RegistrationRow> {
    let rows = service.registrations().into_iter().map(|registration| {
        let status = registration.status();
        let leases: Vec<_> = registration.leases().map(|lease| lease.map(|lease| lease.to_string())).collect();
        RegistrationRow {
            key: registration.key().to_string(),
            keys: registration.keys().map(ToString::to_string).collect(),
            lease: leases.first().cloned().flatten(),
            leases,
            state: status.state.to_string(),
            weight: status.weight.value(),
            ttl_remaining_seconds: status.ttl_remaining.as_secs_f64(),
            lease_age_seconds: status.lease_age.as_secs_f64(),
            renewals: status.renewals,
            recoveries: status.recoveries,
        }
    });
    rows.collect()
}

fn views(service: &Snapshot) -> Vec<ViewRow> {
    let rows = service.views().into_iter().map(|view| ViewRow {
        name: view.name().to_string(),
        version: view.version().to_string(),
        nodes: view.nodes().len(),
        invalid_keys: view.invalid_keys(),
        age_seconds: view.age().map(|age| age.as_secs_f64()),
        error: view.error().map(|why| why.to_string()),
    });
    rows.collect()
}

/// A time in UTC, in whole seconds, as RFC 3339 writes it.
fn shown(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| format!("{time:.0}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::shown;

    #[test]
    fn a_time_is_shown_in_utc() {
        assert_eq!(shown(SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_403_200_999)), "2025-11-29T08:00:00Z");
    }
}
