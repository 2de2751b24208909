//! `leasehold check`: whether a configuration would run, without running it.

use std::time::Duration;

use serde::Serialize;

use super::{print, print_json, table};
use crate::{
    admin::server::Admin,
    cli::CheckArgs,
    config::{Config, Spec, TlsFiles},
    connect,
    error::Failure,
    inbound::server,
    process::rlimit,
    wasm::{
        component::{ComponentInfo, Loaded},
        engine::{Demand, Engine, MAX_POOLED_SLOTS},
        initial_memory,
    },
};

/// How long the registrar's thread may take to end; it holds no lease.
const END_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Report {
    ok: bool,
    etcd: Etcd,
    /// Why the admin endpoint could not listen, if it is there and could not.
    admin: Option<String>,
    demand: Demand,
    /// Why there is no pool, although the instances would fit into one.
    unpooled: Option<String>,
    /// File descriptors that the process may have.
    files: Option<u64>,
    services: Vec<Checked>,
}

#[derive(Serialize)]
struct Etcd {
    endpoints: Vec<String>,
    required: bool,
    /// Why it did not answer, if it did not; or what it refused.
    problem: Option<String>,
    /// Whether it answered, and the answer was no: then `run` would not get any further by waiting.
    refused: bool,
}

#[derive(Serialize)]
struct Checked {
    name: String,
    component: String,
    listen: String,
    facts: Option<ComponentInfo>,
    problems: Vec<String>,
}

/// Reports on stdout; the exit code says what would be that of `run`.
pub(crate) async fn check(args: CheckArgs) -> Result<(), Failure> {
    let config = Config::load(&args.file)?;
    if let Some(traces) = &config.traces {
        traces.check().map_err(Failure::Usage)?;
    }
    let registrar = connect::start(&config.registrar)?;
    let engine = Engine::new(&config.services)?;
    let services: Vec<Checked> = config.services.iter().map(|spec| look(&engine, spec)).collect();
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
    let endpoints = config.registrar.endpoints.clone();
    let etcd = Etcd { endpoints, required: config.etcd_required, problem, refused };
    let bound = config.admin.map_or(Ok(()), |admin| Admin::bind(&admin).map(drop));
    let failure = verdict(&services, &etcd).or(bound.as_ref().err().map(|failure| Failure::other(failure.sentence())));
    let admin = bound.err().map(|failure| failure.sentence());
    let mut demand = Demand::of(&config.services);
    demand.pooled &= engine.unpooled.is_none();
    let report = Report {
        ok: failure.is_none(),
        etcd,
        admin,
        demand,
        unpooled: engine.unpooled.clone(),
        files: rlimit::most(),
        services,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    failure.map_or(Ok(()), Err)
}

fn verdict(services: &[Checked], etcd: &Etcd) -> Option<Failure> {
    let bad = services.iter().filter(|service| !service.problems.is_empty()).count();
    match (&etcd.problem, bad) {
        (Some(problem), 0) if etcd.refused => Some(Failure::refused(problem)),
        (Some(problem), 0) if etcd.required => Some(Failure::unavailable(problem)),
        (_, 0) => None,
        (_, bad) => Some(Failure::usage(format!("{bad} of {} services would not run", services.len()))),
    }
}

fn look(engine: &Engine, spec: &Spec) -> Checked {
    let mut problems = Vec::new();
    let mut note = |outcome: Result<(), Failure>| problems.extend(outcome.err().map(|failure| failure.sentence()));
    let loaded = initial_memory::check(spec, initial_memory::declared(&spec.component))
        .and_then(|()| Loaded::load(engine, &spec.component, spec.precompiled));
    let facts = match loaded {
        Ok(loaded) => {
            note(loaded.check(spec));
            Some(loaded.info)
        }
        Err(failure) => {
            note(Err(failure));
            None
        }
    };
    let tls = spec.tls.as_ref().map_or(Ok(()), TlsFiles::check);
    note(tls.map_err(|message| Failure::usage(format!("tls: {message}"))));
    let bound = server::bind(spec.listen).map(drop);
    note(bound.map_err(|error| Failure::other(format!("cannot listen on {}: {error}", spec.listen))));
    Checked {
        name: spec.name.to_string(),
        component: spec.component.display().to_string(),
        listen: spec.listen.to_string(),
        facts,
        problems,
    }
}

fn text(report: &Report) -> String {
    let rows: Vec<[String; 5]> = report
        .services
        .iter()
        .map(|service| {
            let served = service.facts.as_ref().map_or_else(String::new, ComponentInfo::served);
            let message = if service.problems.is_empty() { "ok".to_owned() } else { service.problems.join("; ") };
            [service.name.clone(), service.component.clone(), service.listen.clone(), served, message]
        })
        .collect();
    let etcd = match &report.etcd.problem {
        None => "etcd answers".to_owned(),
        Some(problem) if report.etcd.required || report.etcd.refused => problem.clone(),
        Some(problem) => format!("{problem}; not required, so `run` would wait for it"),
    };
    let admin = report.admin.as_ref().map_or_else(String::new, |problem| format!("{problem}\n"));
    let table = table(["NAME", "COMPONENT", "LISTEN", "SERVED", ""], &rows);
    let demand = demanded(report);
    format!("{table}\n{demand}\n{etcd}\n{admin}")
}

fn demanded(report: &Report) -> String {
    let Demand { instances, memory, pooled, .. } = report.demand;
    let gib = memory as f64 / f64::from(1 << 30);
    let message = format!("instances: {instances} at most, with {gib:.1} GiB of memory if all of them are full");
    let message = match &report.unpooled {
        Some(why) => format!("{message}; there is no pool for them ({why}), so each one reserves its memory by itself"),
        None if pooled => message,
        None => format!(
            "{message}; the pool has room for {MAX_POOLED_SLOTS}, so each one reserves its memory by itself, which takes \
             longer: a smaller limits.concurrency makes them fit"
        ),
    };
    match rlimit::lacking(report.demand.files) {
        Some(lack) => format!("{message}\n{lack}"),
        None => message,
    }
}
