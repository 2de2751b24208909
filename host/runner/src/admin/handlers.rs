//! Handlers of the admin endpoint, one for each route.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::future::join_all;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use leasehold::{Registrar, Weight};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    admin::{
        metrics::{self, Events},
        response::{AdminResponse, error_json, json_response, plain},
        routes::Route,
        status::{HostInfo, HostStatus, ServiceRow},
    },
    config::Register,
    error::Failure,
    service::handle::{NotAccepted, Readiness, ReloadCommand, Reply, ServiceHandle, ServiceList, Services, Snapshot},
    telemetry::log_level::{Level, Levels},
};

/// Lines of `/readyz` about etcd, at most.
const MAX_FAULTS: usize = 20;

/// State behind the routes.
pub(crate) struct AdminState {
    pub(crate) services: Arc<Services>,
    pub(crate) events: Arc<Events>,
    pub(crate) registrar: Registrar,
    pub(crate) host: HostInfo,
    pub(crate) levels: Levels,
}

/// Reason why a command was sent to no service.
type CommandError = (StatusCode, String);

impl AdminState {
    /// Response to a permitted request.
    pub(super) async fn answer(&self, route: Route, headers: &HeaderMap) -> AdminResponse {
        match route {
            Route::Health => self.healthz(),
            Route::Readiness { without_etcd } => self.readyz(without_etcd),
            Route::Metrics => self.metrics(headers).await,
            Route::Services => self.services(),
            Route::Status(name) => self.status(name.as_deref()),
            Route::Drain(name) => self.drain(&name).await,
            Route::Resume(name) => self.resume(&name).await,
            Route::Weight(name, weight) => self.weight(&name, weight).await,
            Route::Reload(name) => self.reload(&name).await,
            Route::Reconfigure { dry_run } => self.reconfigure(dry_run).await,
            Route::Upgrade => self.upgrade().await,
            Route::LogLevel(level, lasting) => self.log_level(level, lasting),
        }
    }

    /// Liveness: 200 as long as a restart of the process would not help.
    fn healthz(&self) -> AdminResponse {
        match self.registrar.has_ended() && !self.services.ending.is_cancelled() {
            false => plain(StatusCode::OK, "ok\n".to_owned()),
            true => plain(StatusCode::INTERNAL_SERVER_ERROR, "the registrar has ended\n".to_owned()),
        }
    }

    /// Readiness of all services. With `etcd=optional` the state of etcd does not count.
    fn readyz(&self, without_etcd: bool) -> AdminResponse {
        let refuse = |message: String| plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{message}"));
        if self.services.ending.is_cancelled() {
            return refuse("the host is ending\n".to_owned());
        }
        if !self.services.are_known() {
            return refuse(format!("the host is starting\n{}", self.faults()));
        }
        let (mut unknown, mut not_ready) = (String::new(), String::new());
        let services: Vec<_> = self.services.all().iter().map(ServiceHandle::snapshot).collect();
        let all_out = services.iter().all(Snapshot::is_out);
        // A service that was drained by command does not count, unless there is no other.
        for service in services.iter().filter(|service| all_out || !service.is_out()) {
            let name = &service.handle.name;
            match service.readiness() {
                _ if without_etcd && service.is_served() => {}
                Readiness::Ready => {}
                Readiness::Unknown(message) => unknown += &format!("{name}: {message}\n"),
                Readiness::NotReady(message) => not_ready += &format!("{name}: {message}\n"),
            }
        }
        match (not_ready.is_empty(), unknown.is_empty()) {
            (true, true) => plain(StatusCode::OK, "ready\n".to_owned()),
            (true, false) => plain(StatusCode::OK, format!("unknown\n{unknown}")),
            (false, _) => refuse(format!("{not_ready}{unknown}{}", self.faults())),
        }
    }

    /// Lines about the wait for etcd, refusals of etcd, and awaited keys.
    fn faults(&self) -> String {
        let waits = self.services.etcd.borrow().as_ref().map(|message| format!("etcd: {message}\n"));
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        for fault in self.registrar.faults() {
            // Many leases have the same fault.
            lines.entry(fault.why.to_string()).or_insert_with(|| format!("{fault}\n"));
        }
        waits.into_iter().chain(lines.into_values().take(MAX_FAULTS)).collect()
    }

    async fn metrics(&self, headers: &HeaderMap) -> AdminResponse {
        let page = metrics::scrape(&self.services, &self.events, &self.registrar).await;
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let (page, kind) = match metrics::wants_text_format(accept) {
            true => (metrics::text_format(&page), metrics::TEXT_CONTENT_TYPE),
            false => (page, metrics::CONTENT_TYPE),
        };
        let mut answer = plain(StatusCode::OK, page);
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        answer
    }

    fn services(&self) -> AdminResponse {
        let services: Vec<_> = self.services.all().iter().map(ServiceHandle::snapshot).collect();
        json_response(StatusCode::OK, &services.iter().map(ServiceRow::of).collect::<Vec<_>>())
    }

    fn status(&self, name: Option<&str>) -> AdminResponse {
        let services: Vec<_> = match name {
            None => self.services.all().to_vec(),
            Some(name) => match self.named(name) {
                Ok(services) => services,
                Err((status, message)) => return error_json(status, &message),
            },
        };
        let services: Vec<_> = services.iter().map(ServiceHandle::snapshot).collect();
        let faults = self.faults().lines().map(ToOwned::to_owned).collect();
        json_response(StatusCode::OK, &HostStatus::of(&self.host, &self.services, faults, &services))
    }

    fn log_level(&self, level: Level, lasting: Duration) -> AdminResponse {
        match lasting.is_zero() {
            true => self.levels.restore(),
            false => self.levels.change(level, lasting),
        }
        let level = (!lasting.is_zero()).then(|| level.to_string());
        json_response(StatusCode::OK, &json!({ "level": level, "for_seconds": lasting.as_secs() }))
    }

    async fn drain(&self, name: &str) -> AdminResponse {
        let services = match self.named(name) {
            Ok(services) => services,
            Err((status, message)) => return error_json(status, &message),
        };
        self.command(
            services,
            |handle, reply| Ok(handle.drains.try_send(reply)?),
            |handle, drained| {
                row(handle, json!({ "keys_gone": drained.keys_gone, "all_answered": drained.all_answered }))
            },
        )
        .await
    }

    async fn resume(&self, name: &str) -> AdminResponse {
        let services = match self.named(name) {
            Ok(services) => services,
            Err((status, message)) => return error_json(status, &message),
        };
        self.command(
            services,
            |handle, reply| Ok(handle.resumes.try_send(reply)?),
            |handle, outcome| {
                let why = outcome.err().map(|failure| failure.sentence());
                row(handle, json!({ "resumed": why.is_none(), "why": why }))
            },
        )
        .await
    }

    async fn weight(&self, name: &str, weight: Option<Weight>) -> AdminResponse {
        let services = match self.named(name) {
            Ok(services) => services,
            Err((status, message)) => return error_json(status, &message),
        };
        if let Err((status, message)) = self.refuse_during_upgrade() {
            return error_json(status, &message);
        }
        if services.iter().all(|handle| handle.spec().register == Register::Off) {
            return error_json(StatusCode::CONFLICT, &format!("{name} is not registered, and so has no weight"));
        }
        let set = services.into_iter().map(|handle| async move {
            // A registration that ends meanwhile has no weight any more.
            let why = handle.set_weight(weight).await.err().map(|error| error.to_string());
            row(&handle, json!({ "weight": weight.map(Weight::value), "why": why }))
        });
        json_response(StatusCode::OK, &join_all(set).await)
    }

    /// Reads the configuration again.
    async fn reconfigure(&self, dry_run: bool) -> AdminResponse {
        if let Err((status, message)) = self.is_open() {
            return error_json(status, &message);
        }
        match self.services.reconfigure(dry_run).await {
            Ok(outcome) => json_response(StatusCode::OK, &outcome),
            Err(failure @ Failure::Usage(_)) => error_json(StatusCode::UNPROCESSABLE_ENTITY, &failure.sentence()),
            Err(failure) => error_json(StatusCode::CONFLICT, &failure.sentence()),
        }
    }

    /// Hands the host over to a new process.
    async fn upgrade(&self) -> AdminResponse {
        if let Err((status, message)) = self.is_open() {
            return error_json(status, &message);
        }
        match self.services.upgrade().await {
            Ok(pid) => json_response(StatusCode::OK, &json!({ "pid": pid })),
            Err(failure) => error_json(StatusCode::CONFLICT, &failure.sentence()),
        }
    }

    /// Reloads the services of that name from their component files.
    async fn reload(&self, name: &str) -> AdminResponse {
        let services = match self.named(name) {
            Ok(services) => services,
            Err((status, message)) => return error_json(status, &message),
        };
        self.command(
            services,
            |handle, reply| Ok(handle.reloads.try_send(ReloadCommand { next: None, reply })?),
            |handle, outcome: Result<(), Failure>| {
                let why = outcome.err().map(|failure| failure.sentence());
                row(handle, json!({ "reloaded": why.is_none(), "why": why }))
            },
        )
        .await
    }

    /// The services of that name.
    fn named(&self, name: &str) -> Result<ServiceList, CommandError> {
        self.is_open()?;
        let all = self.services.all();
        let named: ServiceList = all.iter().filter(|handle| handle.name.as_str() == name).cloned().collect();
        if named.is_empty() {
            let known: Vec<_> = all.iter().map(|handle| handle.name.as_str()).collect();
            let message = format!("no service is named {name}; there is {}", known.join(", "));
            return Err((StatusCode::NOT_FOUND, message));
        }
        Ok(named)
    }

    /// Fails before the services are known, and once the host ends.
    fn is_open(&self) -> Result<(), CommandError> {
        let message = match (self.services.ending.is_cancelled(), self.services.are_known()) {
            (true, _) => "the host is ending",
            (false, false) => "the host is starting",
            (false, true) => return Ok(()),
        };
        Err((StatusCode::SERVICE_UNAVAILABLE, message.to_owned()))
    }

    /// Refuses commands whose effect the successor would not know.
    fn refuse_during_upgrade(&self) -> Result<(), CommandError> {
        match self.services.is_upgrading.load(Relaxed) {
            true => Err((StatusCode::CONFLICT, "the host is being upgraded; try again after that".to_owned())),
            false => Ok(()),
        }
    }

    /// Sends a command to these services, and responds once all have replied.
    async fn command<T>(
        &self,
        services: ServiceList,
        send: impl Fn(&ServiceHandle, Reply<T>) -> Result<(), NotAccepted>,
        show: impl Fn(&Arc<ServiceHandle>, T) -> Value,
    ) -> AdminResponse {
        match self.replies(services, send, show).await {
            Ok(replies) => json_response(StatusCode::OK, &replies),
            Err((status, message)) => error_json(status, &message),
        }
    }

    /// Sends a command to these services, and waits for all replies, or until the host ends.
    async fn replies<T>(
        &self,
        services: ServiceList,
        send: impl Fn(&ServiceHandle, Reply<T>) -> Result<(), NotAccepted>,
        show: impl Fn(&Arc<ServiceHandle>, T) -> Value,
    ) -> Result<Vec<Value>, CommandError> {
        self.is_open()?;
        self.refuse_during_upgrade()?;
        let begin = |handle: Arc<ServiceHandle>| {
            let (reply, outcome) = oneshot::channel();
            match send(&handle, reply) {
                Ok(()) => Ok((handle, outcome)),
                Err(NotAccepted::Busy) => {
                    Err((StatusCode::CONFLICT, format!("{}: another command is in progress", handle.name)))
                }
                Err(NotAccepted::Ending) => Err((StatusCode::SERVICE_UNAVAILABLE, "the host is ending".to_owned())),
            }
        };
        let pending: Vec<_> = services.into_iter().map(begin).collect::<Result<_, _>>()?;
        let all = join_all(pending.into_iter().map(|(handle, outcome)| {
            let show = &show;
            async move { outcome.await.map(|outcome| show(&handle, outcome)) }
        }));
        let replies: Result<Vec<_>, _> = tokio::select! {
            replies = all => replies.into_iter().collect(),
            () = self.services.ending.cancelled() => {
                let message = "the host is ending, and all of its services with it";
                return Err((StatusCode::SERVICE_UNAVAILABLE, message.to_owned()));
            }
        };
        replies.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "a service did not reply".to_owned()))
    }
}

/// Outcome of a command for one service: the service, and what the command has to say.
fn row(handle: &Arc<ServiceHandle>, outcome: Value) -> Value {
    let mut row = json!({
        "service": handle.name.as_str(),
        "listen": &*handle.snapshot().status.listen,
        "phase": handle.phase().to_string(),
    });
    if let (Value::Object(row), Value::Object(outcome)) = (&mut row, outcome) {
        row.extend(outcome);
    }
    row
}
