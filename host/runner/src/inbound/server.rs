//! The listener of one service: connections, their limits, and their orderly end.

use std::{
    convert::Infallible,
    error::Error,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, select},
    stream::FuturesUnordered,
};
use http::{HeaderValue, Response, Version, header, uri::Scheme};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use leasehold::ServiceName;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{either::Either, io::InspectReader, sync::CancellationToken, task::TaskTracker};

use crate::{
    certificate,
    config::Limits,
    inbound::{
        authority::Frames,
        dispatch::{CurrentDispatcher, Dispatcher, MAX_QUEUE_WAIT},
        lingering_close::Lingering,
        target::Origin,
        tls::Tls,
    },
    process::activation,
    rejection::RejectReason,
    rt::{executor::Bounded, timers::Timers},
    telemetry::service_metrics::Incident,
    wasm::admission::Permits,
};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 1024;
/// Silence of an HTTP/2 connection after which it is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a failed accept: without file descriptors, the next attempt would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Interval between two warnings about the same error of `accept`, at least.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes that distinguish HTTP/2 from HTTP/1.1.
const PREFACE_BYTES: usize = 24;
/// Largest header block in which an authority is replaced: beyond it the h2 crate ends the connection.
const HEADER_BLOCKS: usize = 4;
const SMALLEST_BLOCK: usize = 16 << 10;
/// Longest wait for connections that were cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Binds a listener, or takes the socket of systemd with this address; the error is for the operator.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    if let Some(listener) = activation::listener(addr) {
        return TcpListener::from_std(listener?);
    }
    let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    // A port whose last owner just ended is free; a port in use is still refused.
    socket.set_reuseaddr(true)?;
    socket.bind(addr).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => {
            io::Error::new(error.kind(), format!("{error}; ports below 1024 need CAP_NET_BIND_SERVICE"))
        }
        _ => error,
    })?;
    socket.listen(BACKLOG)
}

/// A listener that is being served. Dropping it closes the listener and cuts the connections.
pub(crate) struct Server {
    settings: Arc<ArcSwap<Settings>>,
    /// Permits for open connections.
    permits: Permits,
    /// Set when clients are to use other hosts.
    leaving: Arc<AtomicBool>,
    /// Cancelled at `close`: no further connections.
    closing: CancellationToken,
    /// Cancelled at the deadline: connections are cut.
    cut: CancellationToken,
    /// Connections of this listener, for which its drain waits alone.
    tasks: TaskTracker,
}

/// Settings of a listener that may change while it is served: they hold for connections from then on.
struct Settings {
    tls: Option<Arc<Tls>>,
    limits: Limits,
    /// Cancelled once other settings hold: the certificate is no longer followed.
    replaced: CancellationToken,
}

impl Server {
    /// Serves `listener` from `open` until `close`, in plain text or with `tls`, each request through the dispatcher that is
    /// current when it arrives.
    pub(crate) fn start(
        listener: Arc<TcpListener>,
        current: CurrentDispatcher,
        tls: Option<Arc<Tls>>,
        limits: &Limits,
        open: CancellationToken,
    ) -> Self {
        let settings = Settings { tls, limits: *limits, replaced: CancellationToken::new() };
        let server = Self {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            permits: Permits::new(limits.connections),
            leaving: Arc::default(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        server.follow_certificate(current.load().name().clone());
        let connections = Connections {
            current,
            settings: Arc::clone(&server.settings),
            permits: server.permits.clone(),
            leaving: Arc::clone(&server.leaving),
            closing: server.closing.clone(),
            cut: server.cut.clone(),
            tasks: server.tasks.clone(),
        };
        server.tasks.spawn(async move {
            if connections.closing.run_until_cancelled(open.cancelled()).await.is_some() {
                connections.accept(listener).await;
            }
        });
        server
    }

    /// Serves connections from now on with other settings. Open ones go on with their own.
    pub(crate) fn change(&self, name: ServiceName, tls: Option<Arc<Tls>>, limits: &Limits) {
        let settings = Settings { tls, limits: *limits, replaced: CancellationToken::new() };
        self.settings.swap(Arc::new(settings)).replaced.cancel();
        self.permits.resize(limits.connections);
        self.follow_certificate(name);
    }

    /// Reads the files of the certificate again when they change.
    fn follow_certificate(&self, name: ServiceName) {
        let settings = self.settings.load_full();
        if let Some(tls) = settings.tls.clone() {
            let closing = self.closing.clone();
            self.tasks.spawn(async move {
                let followed = settings.replaced.run_until_cancelled(tls.follow(name));
                closing.run_until_cancelled(followed).await
            });
        }
    }

    /// Serves on, and asks clients with each response to send their next request elsewhere.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Accepts no more connections, closes idle ones, and waits for requests in flight. Returns true if all were answered.
    ///
    /// May be called again if it was broken off.
    pub(crate) async fn close(&self, deadline: Duration) -> bool {
        self.closing.cancel();
        self.tasks.close();
        let all = timeout(deadline, self.tasks.wait()).await.is_ok();
        if !all {
            self.cut.cancel();
            // Connections that do not notice in time end with the process.
            let _ = timeout(CUT_TIMEOUT, self.tasks.wait()).await;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.cancel();
        if !self.tasks.is_closed() {
            self.cut.cancel();
        }
    }
}

/// The accepting task.
struct Connections {
    current: CurrentDispatcher,
    settings: Arc<ArcSwap<Settings>>,
    permits: Permits,
    leaving: Arc<AtomicBool>,
    closing: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Connections {
    async fn accept(self, listener: Arc<TcpListener>) {
        let mut last_warning: Option<(io::ErrorKind, Instant)> = None;
        loop {
            let next = async {
                let permits = self.permits.get();
                if permits.available_permits() == 0 {
                    self.current.load().stats().incident(Incident::ConnectionLimit);
                }
                let permit = permits.acquire_owned().await.expect("the permits are never closed");
                listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
            };
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, peer, permit)) => self.connection(stream, peer, permit),
                Err(error) => {
                    let is_news =
                        last_warning.is_none_or(|(kind, when)| kind != error.kind() || when.elapsed() > WARN_INTERVAL);
                    if is_news {
                        tracing::warn!(service = %self.current.load().name(), %error, "a connection could not be accepted");
                        last_warning = Some((error.kind(), Instant::now()));
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        // Small pieces of a response are not held back for larger ones.
        let _ = stream.set_nodelay(true);
        let settings = self.settings.load_full();
        let (current, leaving) = (self.current.clone(), Arc::clone(&self.leaving));
        let counts = self.current.clone();
        // Cancelled once the requests that the client has sent are its last on this connection.
        let last = self.closing.child_token();
        let progress = Arc::new(Progress::new());
        let timers = Timers::default();
        let protocols = self.protocols(&timers, &settings.limits);
        let scheme = if settings.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let origin = Origin::new(scheme, stream.local_addr().ok(), Some(peer));
        let (has_replaced, caller) = (Arc::clone(&origin.has_replaced), Arc::clone(&origin.caller));
        let requests = service_fn({
            let (last, progress) = (last.clone(), Arc::clone(&progress));
            move |request: hyper::Request<Incoming>| {
                let dispatcher = current.load_full();
                let (leaving, last, origin) = (Arc::clone(&leaving), last.clone(), origin.clone());
                let timers = timers.clone();
                let (version, now) = (request.version(), Instant::now());
                let open = progress.begin(version, now);
                async move {
                    let mut response = dispatcher.dispatch(request, now, &timers, &origin).await;
                    if leaving.load(Ordering::Relaxed) {
                        ask_to_leave(version, &mut response, &last);
                    }
                    // The request is open until its response has been sent.
                    Ok::<_, Infallible>(response.map(|body| {
                        body.map_err(move |error| {
                            let _ = &open;
                            error
                        })
                    }))
                }
            }
        });
        let (tls, cut, name) = (settings.tls.clone(), self.cut.clone(), self.current.load().name().clone());
        let stream = Lingering::new(stream, permit, self.tasks.clone(), self.closing.clone());
        let (within, client_timeout) = (longest_request(&settings.limits), settings.limits.client_timeout);
        let header_block = HEADER_BLOCKS * settings.limits.header_size + SMALLEST_BLOCK;
        self.tasks.spawn(async move {
            let stream = match tls {
                None => Either::Left(stream),
                Some(tls) => match last.run_until_cancelled(tls.accept(stream)).await {
                    Some(Ok(stream)) => {
                        if let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                            let _ = caller.set(certificate::names(certificate)); // It is not set yet.
                        }
                        Either::Right(stream)
                    }
                    Some(Err(error)) => return tracing::debug!(service = %name, %peer, %error, "a handshake failed"),
                    None => return,
                },
            };
            let read = Arc::clone(&progress);
            let stream = InspectReader::new(stream, move |bytes: &[u8]| read.read(bytes));
            let stream = Frames::new(stream, Origin::replaced(), header_block, has_replaced);
            let mut stream = Box::pin(TimeoutStream::new(stream));
            stream.as_mut().set_write_timeout_pinned(Some(client_timeout));
            let mut connection = pin!(protocols.serve_connection(TokioIo::new(stream), requests));
            // Polled when one of them is woken, and not with every byte of the connection.
            let watches: [BoxFuture<'_, ConnectionEvent>; 3] = [
                cut.cancelled().map(|()| ConnectionEvent::Cut).boxed(),
                progress.overdue(client_timeout, within).map(|()| ConnectionEvent::Slow).boxed(),
                // Later than the cut of half an HTTP/1.1 request.
                select(Box::pin(last.cancelled()), Box::pin(progress.idle(2 * client_timeout)))
                    .map(|_| ConnectionEvent::LastRequest)
                    .boxed(),
            ];
            let mut watched: FuturesUnordered<_> = watches.into_iter().collect();
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => break ended,
                    Some(news) = watched.next() => match news {
                        ConnectionEvent::LastRequest => connection.as_mut().graceful_shutdown(),
                        ConnectionEvent::Cut => return,
                        ConnectionEvent::Slow => {
                            counts.load().stats().incident(Incident::SlowClient);
                            return tracing::debug!(service = %name, %peer, "a connection was cut: its client goes too slowly");
                        }
                    },
                }
            };
            if let Err(error) = ended {
                count(error.as_ref(), &counts.load(), peer);
                tracing::debug!(service = %name, %peer, error, "a connection broke");
            }
        });
    }

    /// HTTP/1.1 and HTTP/2 on one port: the first bytes distinguish them, with TLS or without.
    fn protocols(&self, timers: &Timers, limits: &Limits) -> auto::Builder<Bounded> {
        let Limits { header_size, client_timeout, .. } = *limits;
        // Silence and the time for a pong add up to the client timeout.
        let ping_interval = PING_INTERVAL.min(client_timeout / 2);
        let (tasks, within) = (self.tasks.clone(), longest_request(limits));
        let mut builder = auto::Builder::new(Bounded { tasks, timers: timers.clone(), within });
        builder
            .http1()
            .timer(timers.clone())
            // A client that has sent all of its request still waits for its response (RFC 9112, section 9.6).
            .half_close(true)
            .header_read_timeout(client_timeout)
            // One write of a copy is cheaper than a vectored write of pieces, which are mostly small.
            .writev(false)
            .max_buf_size(header_size);
        builder
            .http2()
            .timer(timers.clone())
            .keep_alive_interval(ping_interval)
            .keep_alive_timeout(client_timeout.saturating_sub(ping_interval))
            .max_header_list_size(u32::try_from(header_size).unwrap_or(u32::MAX))
            .max_concurrent_streams(self.current.load().max_requests());
        builder
    }
}

/// Longest life of a request, its time in the queue and its whole response included.
fn longest_request(limits: &Limits) -> Duration {
    let Limits { request_timeout, client_timeout, .. } = *limits;
    MAX_QUEUE_WAIT.min(request_timeout) + limits.longest_wait() + limits.stream_timeout() + client_timeout
}

/// Event of a connection beside its requests.
enum ConnectionEvent {
    Cut,
    Slow,
    /// The requests that were sent are its last.
    LastRequest,
}

/// Progress of a connection's client, as far as hyper does not watch it.
struct Progress {
    /// Bytes that were read.
    read: AtomicUsize,
    requests: Mutex<Requests>,
}

struct Requests {
    /// Number of requests without a complete response.
    open: usize,
    /// Time of the last change of that number, or of the connection, in HTTP/2.
    since: Instant,
    /// Time of the latest request in HTTP/1.1; streams of HTTP/2 have deadlines of their own.
    latest: Option<Instant>,
}

/// A request, until its response has been sent.
struct Open(Arc<Progress>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.open -= 1;
        if requests.latest.is_none() {
            requests.since = Instant::now();
        }
    }
}

impl Progress {
    fn new() -> Self {
        let requests = Requests { open: 0, since: Instant::now(), latest: None };
        Self { read: AtomicUsize::new(0), requests: Mutex::new(requests) }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock()
    }

    fn read(&self, bytes: &[u8]) {
        self.read.fetch_add(bytes.len(), Ordering::Relaxed);
    }

    fn begin(self: &Arc<Self>, version: Version, now: Instant) -> Open {
        let mut requests = self.requests();
        requests.open += 1;
        if version != Version::HTTP_2 {
            requests.latest = Some(now);
        }
        Open(Arc::clone(self))
    }

    /// Ends after `client_timeout` without a request over HTTP/2. hyper watches HTTP/1.1 only.
    async fn idle(&self, client_timeout: Duration) {
        loop {
            let until = {
                let Requests { open, since, latest } = *self.requests();
                let is_idle = open == 0 && latest.is_none();
                if is_idle { since + client_timeout } else { Instant::now() + client_timeout }
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Ends for a client that sends no preface, or does not read a response: once the latest request is older than any may
    /// be. If that had been answered, the next one would have begun by then, or the connection been closed as idle.
    async fn overdue(&self, client_timeout: Duration, within: Duration) {
        sleep(client_timeout).await;
        if self.read.load(Ordering::Relaxed) < PREFACE_BYTES && self.requests().latest.is_none() {
            return;
        }
        loop {
            let until = self.requests().latest.unwrap_or_else(Instant::now) + within;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Counts a connection that ended because of a limit or a malformed request, as far as hyper reports either.
fn count(error: &(dyn Error + 'static), dispatcher: &Dispatcher, peer: SocketAddr) {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return };
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    if error.is_parse_too_large() {
        dispatcher.refused(RejectReason::HeadersTooLarge, peer);
    } else if error.is_parse() {
        dispatcher.refused(RejectReason::Malformed, peer);
    } else if error.is_timeout() || cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
        dispatcher.stats().incident(Incident::SlowClient);
    }
}

/// Asks a client to use another host: by a header in HTTP/1.1, by GOAWAY in HTTP/2.
fn ask_to_leave<B>(version: Version, response: &mut Response<B>, last: &CancellationToken) {
    match version {
        Version::HTTP_2 => last.cancel(),
        _ => drop(response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"))),
    }
}
