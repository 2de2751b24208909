//! `leasehold check`: whether a configuration would run, without running it.

use std::{io::ErrorKind, net::SocketAddr, path::Path, time::Duration};

use anstyle::Style;
use leasehold_artifacts::Former;
use serde::Serialize;
use serde_json::json;

use super::{
    output::{print, print_json},
    table::{self, Column},
};
use crate::{
    admin::listener::refuse_occupied,
    cli::CheckArgs,
    config::{Admin, AdminAddress, Config, Spec, TlsFiles, mistake::Mistakes},
    connect,
    error::Failure,
    inbound::server,
    process::rlimit,
    wasm::{
        artifact,
        component::{ComponentInfo, Loaded},
        engine::{Demand, Engine, MAX_POOLED_SLOTS},
        initial_memory,
    },
};

/// Time for the registrar's thread to end; it holds no lease.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Services up to which each has a row. Of more, those with a problem or a remark have one.
const MAX_ROWS: usize = 20;

/// Keys that say how much a service takes.
const DEMANDING: [&str; 2] = ["limits.concurrency", "limits.memory"];

#[derive(Serialize)]
struct Report {
    ok: bool,
    /// Absent where nothing was connected to.
    etcd: Option<Etcd>,
    /// Reason why the admin endpoint could not listen; absent without one, or if it could.
    admin: Option<String>,
    /// Remarks that do not keep the host from running.
    notes: Vec<String>,
    demand: Demand,
    by_default: ByDefault,
    /// Reason why there is no pool, although the instances would fit into one.
    unpooled: Option<String>,
    /// File descriptors that the process may have.
    files: Option<u64>,
    services: Vec<Checked>,
}

/// Part of the demand that is not written in the configuration: that of services without `limits.concurrency` and without `limits.memory`.
#[derive(Serialize)]
struct ByDefault {
    services: usize,
    instances: u64,
    memory: u64,
}

#[derive(Serialize)]
struct Etcd {
    endpoints: Vec<String>,
    required: bool,
    /// Reason of a missing response, or the refusal.
    problem: Option<String>,
    /// True if it answered, and the answer was no: then waiting would not help `run`.
    refused: bool,
}

#[derive(Serialize)]
struct Checked {
    name: String,
    component: String,
    listen: String,
    inspected: Option<ComponentInfo>,
    problems: Vec<String>,
    /// Remarks that do not keep the service from running.
    notes: Vec<String>,
}

/// Reports on stdout; the exit code says what would be that of `run`.
pub(crate) async fn check(args: CheckArgs) -> Result<(), Failure> {
    let config = args.connection.load_with_components(&args.file).inspect_err(|failure| {
        if let (true, Some(mistakes)) = (args.json, Mistakes::behind(failure)) {
            // The sentence on stderr follows.
            let _ = print_json(&json!({ "ok": false, "mistakes": mistakes.list() }));
        }
    })?;
    if let Some(traces) = &config.traces {
        traces.check().map_err(Failure::Usage)?;
    }
    let engine = Engine::new(&config.services)?;
    let mut services = Vec::with_capacity(config.services.len());
    for spec in &config.services {
        services.push(look(&engine, spec, args.offline).await);
    }
    let etcd = if args.offline { None } else { Some(ask(&config).await?) };
    let mut notes = config.notes;
    let (admin_problem, admin_notes) = admin(&config.admin, config.metrics, args.offline);
    notes.extend(admin_notes);
    let failure = verdict(&services, etcd.as_ref()).or(admin_problem.as_ref().map(Failure::other));
    let mut demand = Demand::of(&config.services);
    demand.pooled &= engine.unpooled.is_none();
    let report = Report {
        ok: failure.is_none(),
        etcd,
        admin: admin_problem,
        notes,
        demand,
        by_default: ByDefault::of(&config.services),
        unpooled: engine.unpooled.clone(),
        files: rlimit::most(),
        services,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report, args.all))?;
    }
    failure.map_or(Ok(()), Err)
}

/// Connects to etcd, with the user and for the keys of the configuration.
async fn ask(config: &Config) -> Result<Etcd, Failure> {
    let registrar = connect::start(&config.registrar)?;
    let keys = connect::keys(&registrar, &config.services);
    let reached = connect::attempt(&registrar, &config.registrar, keys).await;
    // Nothing is registered, so nothing is lost when the thread does not end in time.
    let _ = registrar.shutdown(END_TIMEOUT).await;
    let (problem, refused) = match reached {
        Ok(forbidden) => {
            let message = connect::not_permitted(&forbidden);
            (message.as_ref().map(|message| format!("etcd: {message}")), message.is_some())
        }
        Err(error) => {
            let failure = connect::explained(&error, &config.registrar).await;
            (Some(failure.sentence()), matches!(failure, Failure::Refused(_)))
        }
    };
    Ok(Etcd { endpoints: config.registrar.endpoints.clone(), required: config.etcd_required, problem, refused })
}

/// Tries the listeners of the host's own: the first problem, and remarks.
fn admin(admin: &Admin, metrics: Option<SocketAddr>, is_offline: bool) -> (Option<String>, Vec<String>) {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    let mut tried = |name: &str, outcome: Result<Option<String>, String>| match outcome {
        Ok(note) => notes.extend(note.map(|note| format!("{name}: {note}"))),
        Err(problem) => problems.push(format!("{name}: {problem}")),
    };
    match admin {
        Admin::Tcp(AdminAddress { tls, listen, .. }) => {
            let tls = tls.as_ref().map_or(Ok(()), TlsFiles::check);
            tried("admin", tls.map(|()| None).map_err(|message| format!("tls: {message}")));
            if !is_offline {
                tried("admin", listens(*listen));
            }
        }
        Admin::Unix(file) if !is_offline => {
            let folder = file.path.parent().unwrap_or(Path::new("/"));
            tried(
                "admin",
                match refuse_occupied(&file.path) {
                    Err(occupied) => Ok(Some(occupied)),
                    Ok(()) if !folder.is_dir() => Err(format!("there is no folder {}", folder.display())),
                    Ok(()) => Ok(None),
                },
            );
        }
        Admin::Unix(_) | Admin::Suggested { .. } | Admin::Off => {}
    }
    if let Some(addr) = metrics.filter(|_| !is_offline) {
        tried("metrics", listens(addr));
    }
    (problems.into_iter().next(), notes)
}

/// Tries an address: a remark where it is in use, as it is beside a host that runs, and an error where no host can have it.
fn listens(addr: SocketAddr) -> Result<Option<String>, String> {
    match server::bind(addr) {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(Some(format!("{addr} is in use at the moment"))),
        Err(error) => Err(format!("cannot listen on {addr}: {error}")),
    }
}

impl ByDefault {
    fn of(services: &[Spec]) -> Self {
        let is_default = |spec: &&Spec| !DEMANDING.iter().any(|key| spec.written.has(key));
        let services: Vec<_> = services.iter().filter(is_default).cloned().collect();
        let Demand { instances, memory, .. } = Demand::of(&services);
        Self { services: services.len(), instances, memory }
    }

    /// A line for people; none where it would repeat the whole demand of one service.
    fn line(&self, all: usize) -> Option<String> {
        let Self { services, instances, memory } = self;
        (*services > 0 && all > 1).then(|| {
            format!(
                "of these {instances}, with {:.1} GiB, by default: services without {}: {services}",
                gib(*memory),
                DEMANDING.join(" and ")
            )
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn verdict(services: &[Checked], etcd: Option<&Etcd>) -> Option<Failure> {
    let bad = services.iter().filter(|service| !service.problems.is_empty()).count();
    let problem = etcd.and_then(|etcd| Some((etcd, etcd.problem.as_ref()?)));
    match (problem, bad) {
        (Some((etcd, problem)), 0) if etcd.refused => Some(Failure::refused(problem)),
        (Some((etcd, problem)), 0) if etcd.required => Some(Failure::unavailable(problem)),
        (_, 0) => None,
        (_, bad) => Some(Failure::usage(format!("{bad} of {} services would not run", services.len()))),
    }
}

async fn look(engine: &Engine, spec: &Spec, is_offline: bool) -> Checked {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    let mut note =
        |outcome: Result<(), Failure>| problems.extend(outcome.err().map(|failure| spec.located(&failure.sentence())));
    let loaded = match &spec.artifact {
        Some(_) if is_offline => {
            notes.push("the registry was not contacted (--offline)".to_owned());
            None
        }
        _ => Some(artifact::locate(spec, Former::StandsIn).await.and_then(|(file, _)| {
            initial_memory::check(spec, initial_memory::declared(&file))?;
            Loaded::load(engine, &file, spec.precompiled).map_err(|failure| artifact::named(spec, failure))
        })),
    };
    let inspected = match loaded {
        Some(Ok(loaded)) => {
            note(loaded.check(spec));
            Some(loaded.info)
        }
        Some(Err(failure)) => {
            note(Err(failure));
            None
        }
        None => None,
    };
    let tls = spec.tls.as_ref().map_or(Ok(()), TlsFiles::check);
    note(tls.map_err(|message| Failure::usage(format!("tls: {message}"))));
    match if is_offline { Ok(None) } else { listens(spec.listen) } {
        Ok(remark) => notes.extend(remark),
        Err(problem) => problems.push(spec.located(&problem)),
    }
    Checked {
        name: spec.name.to_string(),
        component: spec.component.display().to_string(),
        listen: spec.listen.to_string(),
        inspected,
        problems,
        notes,
    }
}

fn text(report: &Report, all: bool) -> String {
    let is_listed = |service: &&Checked| {
        all || report.services.len() <= MAX_ROWS || !service.problems.is_empty() || !service.notes.is_empty()
    };
    let rows: Vec<Vec<String>> = report
        .services
        .iter()
        .filter(is_listed)
        .map(|service| {
            let served = service.inspected.as_ref().map_or_else(String::new, ComponentInfo::served);
            let message = match (service.problems.is_empty(), service.notes.is_empty()) {
                (false, _) => service.problems.join("; "),
                (true, false) => format!("ok; note: {}", service.notes.join("; ")),
                (true, true) => "ok".to_owned(),
            };
            vec![service.name.clone(), service.component.clone(), service.listen.clone(), served, message]
        })
        .collect();
    let etcd = match report.etcd.as_ref().map(|etcd| (etcd, &etcd.problem)) {
        None => "etcd and ports were not tried".to_owned(),
        Some((_, None)) => "etcd answers".to_owned(),
        Some((etcd, Some(problem))) if etcd.required || etcd.refused => problem.clone(),
        Some((_, Some(problem))) => format!("{problem}; not required, so `run` would wait for it"),
    };
    let notes: String = report.notes.iter().map(|note| format!("note: {note}\n")).collect();
    let admin = report.admin.as_ref().map_or_else(String::new, |problem| format!("{problem}\n"));
    let columns = ["NAME", "COMPONENT", "LISTEN", "SERVED", ""].map(Column::text);
    let table = match rows.is_empty() {
        true => String::new(),
        false => table::text(&columns, &rows, None, |_, _| Style::new()),
    };
    let rest = match report.services.len() - rows.len() {
        0 => String::new(),
        number if rows.is_empty() => format!("{number} services: ok (--all lists them)\n"),
        number => format!("{number} other services: ok (--all lists them)\n"),
    };
    let demand = demanded(report);
    format!("{table}{rest}\n{demand}\n{notes}{etcd}\n{admin}")
}

fn demanded(report: &Report) -> String {
    let Demand { instances, memory, pooled, .. } = report.demand;
    let gib = gib(memory);
    let message = format!("instances: {instances} at most, with {gib:.1} GiB of memory if all of them are full");
    let message = match &report.unpooled {
        Some(why) => format!("{message}; there is no pool for them ({why}), so each one reserves its memory by itself"),
        None if pooled => message,
        None => format!(
            "{message}; the pool has room for {MAX_POOLED_SLOTS}, so each one reserves its memory by itself, which takes \
             longer: a smaller limits.concurrency makes them fit"
        ),
    };
    let lines = [Some(message), report.by_default.line(report.services.len()), rlimit::lacking(report.demand.files)];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}
