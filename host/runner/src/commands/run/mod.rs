//! `leasehold run`: from the configuration to the last revoked lease.

pub(crate) mod private_etcd;
pub(crate) mod progress;

use std::{sync::Arc, time::Duration};

use futures::future::{join, join_all, select_all, try_join, try_join_all};
use leasehold::Registrar;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{
        metrics::Events,
        server::{Admin, Desk},
    },
    cli::RunArgs,
    config::{Config, Register},
    connect,
    error::Failure,
    outbound::reserved::Reserved,
    process::{rlimit, signals, systemd},
    service::{Service, handle::Roster},
    telemetry::otlp::Traces,
    wasm::{loader::Loading, scheduler::Turns},
};
use private_etcd::PrivateEtcd;

/// How long leases may take to be revoked at the end; what is left ends with its time to live.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything from the configuration to the last revoked lease.
pub(crate) async fn run(args: RunArgs, turns: Arc<Turns>) -> Result<(), Failure> {
    rlimit::raise();
    let mut config = args.config()?;
    let tasks = TaskTracker::new();
    let ending = signals::on_signal(&tasks)?;
    // What takes long goes on side by side, and a start is as long as the longest of it.
    let loading = Loading::begin(&config.services, turns, &tasks);

    let mut etcd = if config.dev { Some(PrivateEtcd::start()?) } else { None };
    if let Some(etcd) = &etcd {
        config.registrar.endpoints = vec![etcd.endpoint().to_owned()];
    }
    let registrar = connect::start(&config.registrar)?;
    let told = CancellationToken::new();
    if config.dev {
        tasks.spawn(progress::tell(registrar.events(), told.clone()));
    }
    let roster = Arc::new(Roster::new(ending.clone()));
    let admin = config.admin.as_ref().map(|admin| {
        let events = Arc::<Events>::default();
        tasks.spawn(Arc::clone(&events).count(registrar.events(), told.clone()));
        let roster = Arc::clone(&roster);
        Admin::start(admin, Desk { roster, events, registrar: registrar.clone(), remote: admin.remote })
    });
    let admin = admin.transpose()?;
    if let (Some(configured), Some(admin)) = (&mut config.admin, &admin) {
        configured.listen = admin.bound;
    }
    let traces = config.traces.take().map(Traces::start).transpose().map_err(Failure::Usage)?;
    tasks.spawn(systemd::alive(registrar.clone(), tasks.clone(), told.clone()));

    let mut services = Vec::new();
    let outcome = tokio::select! {
        biased;
        failure = ended(etcd.as_mut()) => Err(failure),
        () = ending.cancelled() => Ok(()),
        outcome = live(&config, loading, &registrar, traces.as_ref(), &tasks, &roster, &mut services) => outcome,
    };

    // Whatever it was that ended.
    roster.ending.cancel();
    systemd::stopping(&tasks);
    join_all(services.iter_mut().map(Service::drain)).await;
    if config.dev && outcome.is_ok() {
        progress::show_gone(&registrar, &config.services).await;
    }
    let flushed = async {
        if let Some(traces) = traces {
            traces.flush().await;
        }
    };
    let (revoked, ()) = join(registrar.shutdown(REVOKE_TIMEOUT), flushed).await;
    if let Err(error) = revoked {
        tracing::warn!("leases were not revoked and end with their time to live: {error}");
    }
    told.cancel();
    if let Some(admin) = admin {
        admin.close().await;
    }
    if let Some(etcd) = etcd {
        etcd.stop().await;
    }
    outcome
}

/// Starts the services and serves them for ever. What is in `services` at the end, however it comes, is to be drained.
async fn live(
    config: &Config,
    loading: Loading,
    registrar: &Registrar,
    traces: Option<&Traces>,
    tasks: &TaskTracker,
    roster: &Roster,
    services: &mut Vec<Service>,
) -> Result<(), Failure> {
    let registers = config.services.iter().any(|spec| spec.register != Register::Off);
    // On which TTL a component registers itself it says when it does.
    let registered_here = config.services.iter().filter(|spec| spec.register == Register::Host);
    if let Some(longest) = registered_here.map(|spec| spec.limits.start_timeout).max() {
        registrar.grant_ahead(longest);
    }
    let etcd = async {
        match registers || config.etcd_required {
            true => connect::etcd(registrar, &config.registrar, config.etcd_required, config.dev).await,
            false => Ok(()),
        }
    };
    let reserved = Reserved::new(config.admin.map(|admin| admin.listen));
    let bound = async {
        for (spec, loaded, engine) in loading.end().await? {
            services.push(Service::bind(spec, loaded, &engine, registrar, traces, reserved)?);
        }
        roster.fill(services.iter().map(Service::face).collect());
        Ok(())
    };
    try_join(bound, etcd).await?;
    try_join_all(services.iter_mut().map(Service::start)).await?;
    if config.dev {
        progress::show(registrar, services).await;
    }
    tracing::info!(services = services.len(), "ready");
    systemd::ready(tasks);
    let (never, ..) = select_all(services.iter_mut().map(|service| Box::pin(service.live()))).await;
    match never {}
}

async fn ended(etcd: Option<&mut PrivateEtcd>) -> Failure {
    match etcd {
        Some(etcd) => etcd.ended().await,
        None => std::future::pending().await,
    }
}
