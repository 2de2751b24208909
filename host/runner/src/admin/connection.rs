//! Connections to the admin endpoint: accepted, limited, and permitted one request each. The loop that accepts is not that of the
//! services: at its limit it closes the oldest idle connection instead of waiting, so that an operator is always heard.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{
        handlers::AdminState,
        listener::{Accepted, Caller, Listener, Stream},
        response::{AdminResponse, error_json, refused},
        routes::{Rights, Route, RouteError, Token},
    },
    config::AdminAddress,
    telemetry::throttle::Throttle,
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
/// Interval between two log lines about refused commands, at least.
const REMINDER: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// State that the listeners share.
pub(super) struct Shared {
    state: AdminState,
    /// The endpoint at an address, whose file has the token.
    address: Option<AdminAddress>,
    /// Log lines about commands that were refused.
    refusals: Throttle,
    /// Reads of the token. The end of the endpoint does not wait for them: a file system may hang.
    reads: TaskTracker,
}

/// Serves the clients of one listener until the endpoint closes.
pub(super) async fn accept(listener: Listener, shared: Arc<Shared>, closing: CancellationToken, tasks: TaskTracker) {
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
    pub(super) fn new(state: AdminState, address: Option<AdminAddress>) -> Self {
        Self { state, address, refusals: Throttle::new(REMINDER), reads: TaskTracker::new() }
    }

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
