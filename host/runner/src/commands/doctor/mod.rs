//! `leasehold doctor`: problems of the registry in etcd, and their cures.

mod clock;
mod etcd;
mod finding;
mod fix;
mod keys;
mod leases;

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, future::join4, stream};
use leasehold::{Addr, Error, Options, RawEntry, Registrar};
use serde::Serialize;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use self::{
    finding::Finding,
    fix::{Fixed, Outcome},
    leases::Leases,
};
use super::{
    ls::{END_TIMEOUT, read},
    output::{print, print_json},
    progress::Progress,
    shell::Etcdctl,
};
use crate::{
    cli::DoctorArgs,
    connect,
    error::{Failure, shown},
};

/// A node that takes no connection within this time counts as unreachable.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Nodes that are dialled at a time.
const MAX_DIALS: usize = 64;

/// The report, as `--json` shows it.
#[derive(Serialize)]
struct Report {
    endpoint: String,
    etcd: String,
    round_trip_ms: u128,
    /// Lead of this machine's clock over etcd's; null if etcd does not report its time.
    clock_skew_seconds: Option<i64>,
    keys: usize,
    nodes: usize,
    /// Null without the right to list them.
    leases: Option<Leases>,
    findings: Vec<Finding>,
    /// Possible problems, which are no failure.
    notes: Vec<Finding>,
    /// Outcomes of `--fix`; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fixed: Option<Vec<Fixed>>,
}

/// Reports on stdout, and applies `--fix`. Remaining findings are a failure, so that a script notices.
pub(crate) async fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    if args.fix && args.json && !args.yes {
        return Err(Failure::usage("--fix with --json asks nothing and so needs --yes"));
    }
    let (options, files) = args.etcd.examined()?;
    let registrar = connect::start(&options)?;
    let outcome = report(&args, &registrar, &options, &Etcdctl::new(&options, &files)).await;
    let _ = registrar.shutdown(END_TIMEOUT).await; // The registrar holds nothing.
    match outcome? {
        0 => Ok(()),
        1 => Err(Failure::other("1 finding")),
        many => Err(Failure::other(format!("{many} findings"))),
    }
}

/// Prints the report, applies `--fix`, and returns the number of findings that are left.
async fn report(
    args: &DoctorArgs,
    registrar: &Registrar,
    options: &Options,
    etcdctl: &Etcdctl,
) -> Result<usize, Failure> {
    let mut report = examine(registrar, options, etcdctl, !args.no_dial).await?;
    if !args.json {
        print(&text(&report))?;
    }
    if args.fix {
        report.fixed = Some(fix::apply(registrar, options, &report.findings, args.yes).await?);
    }
    let fixed = report.fixed.as_deref().unwrap_or_default();
    if args.json {
        print_json(&report)?;
    } else {
        print(&fixed.iter().map(|fixed| format!("{}: {}\n", fixed.key, fixed.outcome.message())).collect::<String>())?;
    }
    let is_deleted = |key: &str| fixed.iter().any(|fixed| fixed.outcome == Outcome::Deleted && fixed.key == key);
    let left = report.findings.iter().filter(|finding| !finding.key.as_deref().is_some_and(is_deleted));
    Ok(left.count())
}

async fn examine(registrar: &Registrar, options: &Options, etcdctl: &Etcdctl, dial: bool) -> Result<Report, Failure> {
    let listed = Progress::of("reading the keys").during(read(registrar, options, None)).await?;
    let begun = Instant::now();
    let prefix = connect::prefix(options, None);
    let unavailable = |error: Error| connect::failure(&error, options, prefix.as_deref());
    let status = registrar.reach().await.map_err(unavailable)?;
    let round_trip = begun.elapsed();
    let progress = match dial {
        true => Progress::counted("trying nodes:", addresses(&listed).len()),
        false => Progress::of("examining leases"),
    };
    let dials = async { if dial { Some(unreachable(&listed, &progress).await) } else { None } };
    let held = listed.iter().filter_map(|found| found.lease).collect();
    let examined =
        join4(dials, leases::examine(registrar, &held), clock::skew(&status.endpoint, options), registrar.health());
    let (unreachable, leases, skew, health) = progress.during(examined).await;
    let (leases, notes) = leases.map_err(unavailable)?.unzip();
    let health = health.map_err(unavailable)?;
    let releases = etcd::releases(&health);
    // Known only if the nodes were dialled.
    let answers = |addr: &Addr| unreachable.as_ref().is_some_and(|dead| !dead.contains_key(addr));
    let mut findings = keys::findings(&listed, &options.read_layouts(), etcdctl, answers);
    findings.extend(unreachable.into_iter().flatten().map(|(_, finding)| finding));
    findings.sort_by(|a, b| a.key.cmp(&b.key));
    findings.extend(etcd::slow(&status.endpoint, round_trip));
    findings.extend(etcd::findings(&health, etcdctl));
    findings.extend(skew.and_then(|skew| clock::finding(skew, &status.endpoint)));
    Ok(Report {
        endpoint: status.endpoint,
        etcd: status.version,
        round_trip_ms: round_trip.as_millis(),
        clock_skew_seconds: skew,
        keys: listed.len(),
        nodes: listed.iter().filter(|found| found.node.is_ok()).count(),
        leases,
        findings,
        notes: notes.into_iter().flatten().chain(releases).collect(),
        fixed: None,
    })
}

/// Addresses of nodes, each with the first key that has it.
fn addresses(listed: &[RawEntry]) -> BTreeMap<Addr, String> {
    let mut addrs: BTreeMap<Addr, String> = BTreeMap::new();
    for found in listed {
        if let Ok(node) = &found.node {
            addrs.entry(node.addr.clone()).or_insert_with(|| shown(&found.key));
        }
    }
    addrs
}

/// Nodes that take no connection from here.
async fn unreachable(listed: &[RawEntry], progress: &Progress) -> BTreeMap<Addr, Finding> {
    let dials = addresses(listed).into_iter().map(|(addr, key)| async move {
        let connected = timeout(DIAL_TIMEOUT, TcpStream::connect((addr.host(), addr.port()))).await;
        progress.advance();
        let why = match connected {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing within {DIAL_TIMEOUT:?}"),
        };
        let finding = Finding {
            kind: "unreachable",
            key: Some(key),
            found: format!("{addr} takes no connection from here: {why}"),
            cure:
                "if its host is dead the key goes with its lease; else look at its firewall and its advertised address"
                    .to_owned(),
            ..Finding::default()
        };
        Some((addr, finding))
    });
    stream::iter(dials).buffer_unordered(MAX_DIALS).filter_map(std::future::ready).collect().await
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "etcd {} at {}, {} ms away; keys: {}, nodes: {}\n",
        report.etcd, report.endpoint, report.round_trip_ms, report.keys, report.nodes
    );
    if let Some(leases) = &report.leases {
        let shown = report.notes.iter().filter(|note| note.kind != etcd::RELEASE).count();
        for (kind, count) in [
            ("without keys, not renewed during the check", leases.unrenewed_without_keys),
            ("without keys, renewed, beside those below", leases.renewed_without_keys - shown),
            ("beyond the number that is examined", leases.left_out),
        ] {
            if count > 0 {
                text.push_str(&format!("leases {kind}: {count}\n"));
            }
        }
    }
    let mut add = |finding: &Finding, mark: &str| {
        let key = finding.key.as_deref().unwrap_or("etcd");
        text.push_str(&format!("\n{key}\n  {mark}{}: {}\n  cure: {}\n", finding.kind, finding.found, finding.cure));
        if let Some(command) = &finding.command {
            text.push_str(&format!("  command: {command}\n"));
        }
    };
    report.findings.iter().for_each(|finding| add(finding, ""));
    report.notes.iter().for_each(|note| add(note, "note, "));
    match (report.findings.is_empty(), report.notes.is_empty()) {
        (true, true) => text.push_str("nothing is wrong\n"),
        (true, false) => text.push_str("\nnothing else is wrong\n"),
        (false, _) => {}
    }
    text
}
