//! `leasehold status`: what a running host runs, since when, and why something is not ready.

use std::collections::BTreeSet;

use anstyle::Style;
use http::StatusCode;
use serde::Deserialize;

use super::{
    output::{print, print_json},
    table::{self, Column},
    terminal,
};
use crate::{
    cli::{AdminArgs, Probe, StatusArgs},
    commands::admin_client::{Endpoint, part},
    error::{Failure, shown},
};

/// Digits of a digest in the table; the whole digest is shown for one service.
const DIGITS: usize = 12;

/// The host as it describes itself.
#[derive(Deserialize)]
struct Host {
    version: String,
    commit: String,
    pid: u32,
    since: String,
    configuration: String,
    etcd: Vec<String>,
    phase: String,
    faults: Vec<String>,
    services: Vec<Service>,
}

/// One service of the host.
#[derive(Deserialize)]
struct Service {
    service: String,
    version: String,
    listen: String,
    url: String,
    component: String,
    component_sha256: Option<String>,
    component_since: Option<String>,
    phase: String,
    since: String,
    readiness: String,
    why: Option<String>,
    requests: Requests,
    instances: u64,
    weight: Option<u32>,
    registrations: Vec<Registration>,
}

#[derive(Deserialize)]
struct Requests {
    all: u64,
    failed: u64,
    rejected: u64,
    in_flight: i64,
}

#[derive(Deserialize)]
struct Registration {
    keys: Vec<String>,
    /// The lease of each key; none of a host that does not report them.
    #[serde(default)]
    leases: Vec<Option<String>>,
    state: String,
    weight: u32,
    ttl_remaining_seconds: f64,
    lease_age_seconds: f64,
    recoveries: u64,
}

const COLUMNS: [Column; 12] = [
    Column::cut("SERVICE", 3).legible(12),
    Column::cut("VERSION", 2).legible(7),
    Column::cut_in_the_middle("URL", 4).legible(22),
    Column::text("PHASE"),
    Column::text("SINCE").left_out(3),
    Column::text("READY"),
    Column::number("WEIGHT").left_out(1),
    Column::number("REQUESTS"),
    Column::number("FAILED"),
    Column::number("KEYS").left_out(2),
    Column::text("LEASE").left_out(5),
    Column::text("SHA-256").left_out(4),
];

/// Reads the status and shows it on stdout.
pub(crate) async fn status(args: StatusArgs) -> Result<(), Failure> {
    if let Some(condition) = args.probe {
        return probe(&args.host, condition).await;
    }
    let path = args.name.as_deref().map_or_else(String::new, |name| format!("/{}", part(name)));
    let (host, answer): (Host, _) = Endpoint::of(&args.host).await?.get(&format!("/status{path}")).await?;
    match (args.json, args.name) {
        (true, _) => print_json(&answer),
        (false, None) => print(&overview(&host)),
        (false, Some(_)) => print(&host.services.iter().map(details).collect::<String>()),
    }
}

/// Shows the page of a probe as one line. Fails unless the host is in the condition.
async fn probe(host: &AdminArgs, condition: Probe) -> Result<(), Failure> {
    match Endpoint::of(host).await?.probe(condition.path()).await? {
        (StatusCode::OK, page) => print(&format!("{page}\n")),
        (_, page) => Err(Failure::other(page)),
    }
}

/// The host, a table of its services, and a line for each that is not ready.
fn overview(host: &Host) -> String {
    let mut text = format!(
        "leasehold {} ({}), process {}, {} since {}\nconfiguration: {}\netcd: {}\n\n",
        shown(&host.version),
        shown(&host.commit),
        host.pid,
        shown(&host.phase),
        shown(&host.since),
        shown(&host.configuration),
        shown(&host.etcd.join(", ")),
    );
    let rows: Vec<_> = host.services.iter().map(row).collect();
    text.push_str(&table::text(&COLUMNS, &rows, terminal::width(), |_, _| Style::new()));
    for service in &host.services {
        if let Some(why) = &service.why {
            text.push_str(&format!("\n{}: {}", shown(&service.service), shown(why)));
        }
    }
    for fault in &host.faults {
        text.push_str(&format!("\netcd: {}", shown(fault.trim_start_matches("etcd: "))));
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn row(service: &Service) -> Vec<String> {
    let weights: Vec<_> = service.registrations.iter().map(|registration| registration.weight.to_string()).collect();
    let leases = service.registrations.iter().flat_map(|registration| registration.leases.iter().flatten());
    let leases: BTreeSet<&str> = leases.map(String::as_str).collect();
    let digest = service.component_sha256.as_deref().unwrap_or_default();
    vec![
        shown(&service.service),
        shown(&service.version),
        shown(if service.url.is_empty() { &service.listen } else { &service.url }),
        shown(&service.phase),
        shown(&service.since),
        shown(&service.readiness),
        weights.join(","),
        service.requests.all.to_string(),
        service.requests.failed.to_string(),
        service.registrations.iter().map(|registration| registration.keys.len()).sum::<usize>().to_string(),
        shown(&leases.into_iter().collect::<Vec<_>>().join(",")),
        shown(digest.get(..DIGITS).unwrap_or(digest)),
    ]
}

/// Everything about one service.
fn details(service: &Service) -> String {
    let mut lines = vec![
        format!("{}, {} since {}", service.service, service.phase, service.since),
        format!(
            "  ready       {}{}",
            service.readiness,
            service.why.as_ref().map_or_else(String::new, |why| format!(": {why}"))
        ),
        match service.url.is_empty() {
            true => format!("  listen      {}", service.listen),
            false => format!("  url         {}", service.url),
        },
        match service.version.as_str() {
            "" => "  version     none".to_owned(),
            version => format!("  version     {version}"),
        },
        format!("  component   {}", service.component),
    ];
    if let (Some(digest), Some(since)) = (&service.component_sha256, &service.component_since) {
        lines.push(format!("  sha256      {digest}, since {since}"));
    }
    let Requests { all, failed, rejected, in_flight } = service.requests;
    lines.push(format!(
        "  requests    {all}, failed {failed}, rejected {rejected}, in flight {in_flight}; instances {}",
        service.instances
    ));
    if let Some(weight) = service.weight {
        lines.push(format!("  weight      {weight}, set by an operator"));
    }
    for Registration { keys, leases, state, weight, ttl_remaining_seconds, lease_age_seconds, recoveries } in
        &service.registrations
    {
        for (index, key) in keys.iter().enumerate() {
            lines.push(format!("  key         {key}"));
            lines.extend(leases.get(index).into_iter().flatten().map(|lease| format!("  lease       {lease}")));
        }
        lines.push(format!(
            "              {state}, weight {weight}; lease: {lease_age_seconds:.0} s old, {ttl_remaining_seconds:.0} s left; \
             recoveries {recoveries}"
        ));
    }
    lines.iter().map(|line| shown(line) + "\n").collect()
}
