//! The admin endpoint for operators, supervisors and scrapers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use leasehold::{Registrar, Weight};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{
        listener::{Accepted, Caller, Listener, Stream},
        metrics::{self, Events},
        routes::{Rights, Route, RouteError, Token},
        status::{HostInfo, HostStatus, ServiceRow},
    },
    config::{self, AdminAddress, Register, SocketFile},
    error::Failure,
    inbound::{server::bind, tls::Tls},
    process::{
        handover::{Inheritance, Place},
        runtime_folder,
    },
    service::handle::{NotAccepted, Readiness, ReloadCommand, Reply, ServiceHandle, ServiceList, Services, Snapshot},
    telemetry::{
        log_level::{Level, Levels},
        throttle::Throttle,
    },
};

/// Limit on requests at a time, those for health excepted; further ones are refused.
const MAX_REQUESTS: usize = 64;
/// Limit on connections without such a request: beyond it the oldest is closed. It exceeds the number of connections that
/// the runtime accepts in a row, so that a request which was sent with its connection is read before the connection can
/// be the oldest.
const MAX_IDLE: usize = 256;
/// Longest time that a client may take to send a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that a client may take to read any of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of headers, at most.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Longest life of a connection, which has one request. A drain takes as long as its requests in flight.
const LONGEST: Duration = Duration::from_secs(600);
/// Longest time for a read of the token.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of `/readyz` about etcd, at most.
const MAX_FAULTS: usize = 20;
/// Interval between two log lines about refused commands, at least.
const REMINDER: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The endpoint, until it is closed. Its connections have a tracker of their own: `close` waits for them alone.
pub(crate) struct Admin {
    closing: CancellationToken,
    tasks: TaskTracker,
    /// The address at which it listens, if it is at one.
    pub(crate) addr: Option<SocketAddr>,
    /// The address of the listener for health and metrics alone.
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// Descriptors of the listeners at addresses, to hand them over.
    pub(crate) listeners: Vec<(Place, OwnedFd)>,
}

/// State behind the routes.
pub(crate) struct AdminState {
    pub(crate) services: Arc<Services>,
    pub(crate) events: Arc<Events>,
    pub(crate) registrar: Registrar,
    pub(crate) host: HostInfo,
    pub(crate) levels: Levels,
}

/// The endpoint before it listens.
pub(crate) struct AdminStart {
    pub(crate) admin: config::Admin,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) state: AdminState,
}

impl AdminStart {
    /// Listens and responds, also while services start and while they drain.
    pub(crate) fn start(self, inheritance: Option<&Inheritance>) -> Result<Admin, Failure> {
        Admin::start(&self.admin, self.metrics, self.state, inheritance)
    }
}

/// The routes with what their listeners share.
struct Shared {
    state: AdminState,
    /// The endpoint at an address, whose file has the token.
    address: Option<AdminAddress>,
    /// Log lines about commands that were refused.
    refusals: Throttle,
    /// Reads of the token. The end of the endpoint does not wait for them: a file system may hang.
    reads: TaskTracker,
}

type AdminResponse = Response<Full<Bytes>>;
/// Reason why a command was sent to no service.
type CommandError = (StatusCode, String);

impl Admin {
    fn start(
        admin: &config::Admin,
        metrics: Option<SocketAddr>,
        state: AdminState,
        inheritance: Option<&Inheritance>,
    ) -> Result<Self, Failure> {
        let metrics_configured = metrics;
        let listener = listener(admin, inheritance, &state.services.succeeded)?;
        let metrics = metrics.map(|addr| metrics_listener(addr, inheritance)).transpose()?;
        let address = match admin {
            config::Admin::Tcp(address) => Some(address.clone()),
            _ => None,
        };
        let addr = listener.as_ref().and_then(Listener::addr);
        let metrics_addr = metrics.as_ref().and_then(Listener::addr);
        let descriptor = |listener: &Option<Listener>| listener.as_ref()?.descriptor();
        let admin_place = admin.addr().map(Place::Admin).zip(descriptor(&listener));
        let metrics_place = metrics_configured.map(Place::Metrics).zip(descriptor(&metrics));
        let listeners = admin_place.into_iter().chain(metrics_place).collect();
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let started = Self { closing, tasks, addr, metrics_addr, listeners };
        let shared = Shared { state, address, refusals: Throttle::new(REMINDER), reads: TaskTracker::new() };
        let shared = Arc::new(shared);
        for (listener, name) in [(listener, "admin"), (metrics, "metrics")] {
            let Some(listener) = listener else { continue };
            match (admin, name) {
                // Commands find it without its name.
                (config::Admin::Suggested { .. }, "admin") => tracing::debug!(url = listener.url(), "{name}"),
                _ => tracing::info!(url = listener.url(), "{name}"),
            }
            if let Some(tls) = listener.tls() {
                let closing = started.closing.clone();
                started.tasks.spawn(async move { closing.run_until_cancelled(tls.follow(name)).await });
            }
            let (closing, tasks) = (started.closing.clone(), started.tasks.clone());
            started.tasks.spawn(accept(listener, Arc::clone(&shared), closing, tasks));
        }
        Ok(started)
    }

    /// Closes the listeners and cuts the remaining connections: their commands have ended.
    pub(crate) async fn close(self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The listener of the endpoint, as configured.
fn listener(
    admin: &config::Admin,
    inheritance: Option<&Inheritance>,
    succeeded: &CancellationToken,
) -> Result<Option<Listener>, Failure> {
    let failed = |message: String| Failure::other(format!("admin: {message}"));
    match admin {
        config::Admin::Off => Ok(None),
        config::Admin::Unix(file) => {
            Listener::unix(file, inheritance.is_some(), succeeded.clone()).map(Some).map_err(failed)
        }
        config::Admin::Tcp(address) => address_listener(address, inheritance).map(Some),
        config::Admin::Suggested { mode, group } => {
            let listen = |path| {
                let file = SocketFile { path, mode: *mode, group: group.clone() };
                Listener::unix(&file, inheritance.is_some(), succeeded.clone())
            };
            let listener = runtime_folder::socket().and_then(listen);
            // The services do not need it.
            let listener = listener.inspect_err(|message| {
                tracing::warn!("no admin endpoint: {message}; admin.listen names another place, or says off");
            });
            Ok(listener.ok())
        }
    }
}

fn address_listener(address: &AdminAddress, inheritance: Option<&Inheritance>) -> Result<Listener, Failure> {
    let tls = address.tls.clone().map(Tls::open_http1).transpose();
    let tls = tls.map_err(|message| Failure::usage(format!("admin: tls: {message}")))?;
    let rights = if address.token.is_some() { Rights::Token } else { Rights::Read };
    let bound = bind_or_take(address.listen, &Place::Admin(address.listen), inheritance)
        .and_then(|listener| Listener::tcp(listener, rights, tls.map(Arc::new)));
    bound.map_err(|error| Failure::other(format!("admin: cannot listen on {}: {error}", address.listen)))
}

fn metrics_listener(addr: SocketAddr, inheritance: Option<&Inheritance>) -> Result<Listener, Failure> {
    let bound = bind_or_take(addr, &Place::Metrics(addr), inheritance)
        .and_then(|listener| Listener::tcp(listener, Rights::Probes, None));
    bound.map_err(|error| Failure::other(format!("metrics: cannot listen on {addr}: {error}")))
}

/// Binds a listener, or takes the listener that a former host has handed over.
fn bind_or_take(addr: SocketAddr, place: &Place, inheritance: Option<&Inheritance>) -> io::Result<TcpListener> {
    match inheritance.and_then(|inheritance| inheritance.take(place)) {
        Some(listener) => TcpListener::from_std(listener),
        None => bind(addr),
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>, closing: CancellationToken, tasks: TaskTracker) {
    let idle = Arc::<Idle>::default();
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    let listener = Arc::new(listener);
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            // From here on its clients are those of another process.
            () = shared.state.services.succeeded.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let connection = Connection {
                    slot: Arc::new(idle.enter()),
                    requests: Arc::clone(&requests),
                    listener: Arc::clone(&listener),
                    shared: Arc::clone(&shared),
                };
                tasks.spawn(connection.serve(accepted, closing.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin endpoint could not be accepted");
                // There may be no file descriptors; an idle connection holds one.
                idle.evict();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections without a request, or whose request is answered at once, the oldest first.
#[derive(Default)]
struct Idle(Mutex<IdleSlots>);

#[derive(Default)]
struct IdleSlots {
    next: u64,
    open: BTreeMap<u64, CancellationToken>,
}

/// The slot of one connection among the idle ones, until it is dropped.
struct IdleSlot {
    idle: Arc<Idle>,
    number: u64,
    evicted: CancellationToken,
}

impl Idle {
    /// Adds a connection. Beyond the limit the oldest one is closed.
    fn enter(self: &Arc<Self>) -> IdleSlot {
        let evicted = CancellationToken::new();
        let mut slots = self.slots();
        let number = slots.next;
        slots.next += 1;
        slots.open.insert(number, evicted.clone());
        let is_full = slots.open.len() > MAX_IDLE;
        drop(slots);
        if is_full {
            self.evict();
        }
        IdleSlot { idle: Arc::clone(self), number, evicted }
    }

    /// Closes the oldest, if there is one.
    fn evict(&self) {
        if let Some((_, oldest)) = self.slots().open.pop_first() {
            oldest.cancel();
        }
    }

    fn slots(&self) -> MutexGuard<'_, IdleSlots> {
        self.0.lock()
    }
}

impl IdleSlot {
    /// Removes the connection: it is not closed for a newer one any more.
    fn leave(&self) {
        self.idle.slots().open.remove(&self.number);
    }
}

impl Drop for IdleSlot {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One client, for one request.
#[derive(Clone)]
struct Connection {
    slot: Arc<IdleSlot>,
    requests: Arc<Semaphore>,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
}

impl Connection {
    async fn serve(self, accepted: Accepted, closing: CancellationToken) {
        let evicted = self.slot.evicted.clone();
        let served = async {
            // An error is the client's own.
            if let Ok((stream, caller)) = accepted.open(self.listener.tls()).await {
                self.exchange(stream, caller).await;
            }
        };
        tokio::select! {
            () = closing.cancelled() => {}
            () = evicted.cancelled() => {}
            _ = timeout(LONGEST, served) => {}
        }
    }

    async fn exchange(&self, stream: Pin<Box<dyn Stream>>, caller: Caller) {
        // A permit is held until the response has been sent.
        let held = Arc::<OnceLock<OwnedSemaphorePermit>>::default();
        let requests = service_fn(|request| {
            let (connection, held, caller) = (self.clone(), Arc::clone(&held), caller.clone());
            async move { Ok::<_, Infallible>(connection.answer(request, &held, caller).await) }
        });
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(WRITE_TIMEOUT));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .half_close(true)
            .max_buf_size(MAX_HEADER_BYTES)
            // A connection holds no slot for a request that may never come.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), requests);
        drop(served.await); // An error is the client's own.
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        held: &OnceLock<OwnedSemaphorePermit>,
        caller: Caller,
    ) -> AdminResponse {
        // Health is answered at once, and never rejected: a supervisor would end a host that works.
        if !matches!(request.uri().path(), "/healthz" | "/readyz") {
            let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
                let message = format!("{MAX_REQUESTS} requests are under way; try again later");
                return error_json(StatusCode::SERVICE_UNAVAILABLE, &message);
            };
            let _ = held.set(permit); // A connection has one request.
            self.slot.leave();
        }
        // Commands have no body.
        let request = request.map(drop);
        match self.permitted(&request, caller).await {
            Ok(route) => self.shared.state.answer(route, request.headers()).await,
            Err(refusal) => refused(&refusal),
        }
    }

    /// The route of a request whose client may have it. The log has each command, and who sent it.
    async fn permitted(&self, request: &Request<()>, caller: Caller) -> Result<Route, RouteError> {
        let route = Route::of(request, self.listener.takes_any_name())?;
        let rights = self.listener.rights(&caller);
        let token = match route.is_command() && rights == Rights::Token {
            true => self.shared.token(request.headers()).await?,
            false => Token::Absent,
        };
        match route.permit(rights, token) {
            Ok(()) if route.is_command() => {
                let caller = if token == Token::Right { caller.with_token() } else { caller };
                tracing::info!(by = %caller, "command: {route}");
                Ok(route)
            }
            Ok(()) => Ok(route),
            Err(refusal) => {
                if route.is_command()
                    && let Some(suppressed) = self.shared.refusals.admit(Instant::now())
                {
                    tracing::warn!(by = %caller, "command refused: {route}: {}{suppressed}", refusal.message);
                }
                Err(refusal)
            }
        }
    }
}

impl Shared {
    /// Compares the token of a request with the one in the file, which may have changed.
    async fn token(&self, headers: &HeaderMap) -> Result<Token, RouteError> {
        let Some(address) = self.address.clone() else { return Ok(Token::Absent) };
        if Token::of(headers, b"") == Token::Absent {
            return Ok(Token::Absent);
        }
        // Reads that hang are bounded, too.
        if self.reads.len() >= MAX_REQUESTS {
            return Err(RouteError::unreadable_token());
        }
        let read = self.reads.spawn_blocking(move || address.read_token().map_err(|message| (address.token, message)));
        let Ok(read) = timeout(READ_TIMEOUT, read).await else { return Err(RouteError::unreadable_token()) };
        match read {
            Ok(Ok(expected)) => Ok(Token::of(headers, &expected)),
            Ok(Err((source, message))) => {
                let file = source.map_or_else(String::new, |source| source.to_string());
                tracing::error!("no command is permitted: admin.token_file: {file} {message}");
                Err(RouteError::unreadable_token())
            }
            Err(_) => Err(RouteError::unreadable_token()),
        }
    }
}

fn refused(refusal: &RouteError) -> AdminResponse {
    let mut refused = error_json(refusal.status, &refusal.message);
    if let Some(method) = &refusal.allow {
        let allowed = HeaderValue::from_str(method.as_str()).expect("a method is a header's value");
        refused.headers_mut().insert(header::ALLOW, allowed);
    }
    if refusal.status == StatusCode::UNAUTHORIZED {
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    refused
}

impl AdminState {
    async fn answer(&self, route: Route, headers: &HeaderMap) -> AdminResponse {
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

fn plain(status: StatusCode, text: String) -> AdminResponse {
    response(status, "text/plain; charset=utf-8", text)
}

fn error_json(status: StatusCode, message: &str) -> AdminResponse {
    json_response(status, &json!({ "error": message }))
}

fn json_response(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    let text = serde_json::to_string_pretty(value).expect("what is shown has no keys but text");
    response(status, "application/json", text + "\n")
}

fn response(status: StatusCode, kind: &'static str, text: String) -> AdminResponse {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
