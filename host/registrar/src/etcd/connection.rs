//! The connections to one endpoint, as one channel: the connection in use, and a fresh connection that is dialled when the
//! former falls silent. The first to answer is used.
//!
//! A TCP flow can die without a word, when a NAT, a firewall or a balancer on its way forgets it: what is sent then vanishes,
//! and only a new connection helps. A request that is not answered for a while says little by itself, since etcd may be slow. So
//! the same small request is sent on the connection in use and on a fresh one. The connection in use is kept if anything at all
//! arrives on it, however slowly. If it stays silent while the fresh one answers, it is given up, and everything open on it ends.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use etcd_client::{Channel, Client, Error as ClientError};
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic::{Status, body::Body};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};
use tracing::info;

/// Makes a channel to one endpoint that dials when it is first used. Needs to run on the runtime that will drive it.
pub(super) type Dial = Arc<dyn Fn() -> Channel + Send + Sync>;

/// Longest and shortest silence before a connection is checked; between them a quarter of the time that a request has.
const MAX_SILENCE: Duration = Duration::from_millis(750);
const MIN_SILENCE: Duration = Duration::from_millis(20);
/// Shortest head start of the connection in use over the fresh one.
const MIN_HEAD_START: Duration = Duration::from_millis(20);
/// Shortest time for which the connection in use may still be heard once the fresh one has answered: whatever had held up both
/// may have ended in that moment.
const MIN_GRACE: Duration = Duration::from_millis(50);
/// Shortest pause between two connections that are made beside one in use.
const REDIAL: Duration = Duration::from_millis(500);
/// Requests that fail one after the other on a connection until another one is made: what is heard of it may make no sense,
/// as when a flipped bit has spoilt the table with which headers are compressed.
const STRIKES: u32 = 3;

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// The connections to one endpoint. Cloning clones the handle.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    url: Arc<str>,
    dial: Dial,
    state: Mutex<State>,
    checks: TaskTracker,
}

struct State {
    current: Connection,
    /// The one before, where requests on it may still be answered.
    former: Option<Connection>,
    is_checked: bool,
    dialled_at: Option<Instant>,
    /// Usual time to an answer.
    usual: Duration,
    /// Requests that failed in a row.
    strikes: u32,
}

impl Connections {
    pub(super) fn new(url: Arc<str>, dial: Dial) -> Self {
        let state = State {
            current: Connection::new(dial()),
            former: None,
            is_checked: false,
            dialled_at: None,
            usual: Duration::ZERO,
            strikes: 0,
        };
        Self(Arc::new(Shared { url, dial, state: Mutex::new(state), checks: TaskTracker::new() }))
    }

    /// Returns all of them as a channel whose requests take the connection that is current when they are made.
    pub(super) fn channel(&self) -> Channel {
        Channel::Custom(BoxCloneSyncService::new(self.clone()))
    }

    /// The connection that the next request takes.
    pub(super) fn current(&self) -> Arc<Life> {
        self.0.state.lock().current.life.clone()
    }

    /// Waits for an answer that is to come over a connection within `deadline`, or later if the caller waits on. Where nothing is
    /// heard of the connection meanwhile, it is checked.
    pub(super) async fn attend<T>(&self, life: &Arc<Life>, deadline: Duration, answer: impl Future<Output = T>) -> T {
        let silence = (deadline / 4).clamp(MIN_SILENCE, MAX_SILENCE);
        let end = Instant::now() + deadline;
        let mut answer = pin!(answer);
        loop {
            let since = Instant::now();
            if let Ok(answer) = timeout(silence, answer.as_mut()).await {
                return answer;
            }
            if !life.was_heard_since(since) {
                self.check(life, end.saturating_duration_since(Instant::now()).max(deadline / 2));
            }
        }
    }

    /// A request was answered, so long after it was made.
    pub(super) fn answered(&self, after: Duration) {
        let mut state = self.0.state.lock();
        state.strikes = 0;
        state.usual = (state.usual * 7 + after) / 8;
    }

    /// A request failed in a way that may be its connection's. One on which nothing succeeds is not used for further requests,
    /// and may still answer those that it has.
    pub(super) fn failed(&self, life: &Arc<Life>) {
        let mut state = self.0.state.lock();
        if !state.current.is(life) {
            return;
        }
        state.strikes += 1;
        if state.strikes >= STRIKES && state.may_dial(Instant::now()) {
            state.strikes = 0;
            state.dialled_at = Some(Instant::now());
            let former = std::mem::replace(&mut state.current, Connection::new((self.0.dial)()));
            if let Some(older) = state.former.replace(former) {
                older.life.give_up();
            }
        }
    }

    /// Has a silent connection checked, within `limit`, unless that is under way.
    fn check(&self, life: &Arc<Life>, limit: Duration) {
        let mut state = self.0.state.lock();
        if !state.current.is(life) {
            // Another one is in use already.
            return life.give_up();
        }
        if std::mem::replace(&mut state.is_checked, true) {
            return;
        }
        let head_start = (state.usual * 2).clamp(MIN_HEAD_START, MAX_SILENCE);
        let (connections, connection) = (self.clone(), state.current.clone());
        self.0.checks.spawn(async move {
            let _ = timeout(limit, connections.compare(connection, head_start)).await; // Neither answers: nothing is known.
            connections.0.state.lock().is_checked = false;
        });
    }

    /// Sends one request on the connection in use and, a head start later, on a fresh one.
    async fn compare(&self, used: Connection, head_start: Duration) {
        let begun = Instant::now();
        let mut is_alive = Box::pin(used.answers());
        let redial = async {
            sleep(head_start).await;
            let earliest = self.0.state.lock().dialled_at.map(|at| at + REDIAL);
            sleep_until(earliest.unwrap_or(begun)).await;
            // Whatever else was open on it may have been answered.
            if used.life.was_heard_since(begun) {
                return None;
            }
            self.0.state.lock().dialled_at = Some(Instant::now());
            let fresh = Connection::new((self.0.dial)());
            Box::pin(fresh.answers()).await;
            Some(fresh)
        };
        let fresh = tokio::select! {
            biased;
            () = &mut is_alive => None,
            fresh = redial => fresh,
        };
        let Some(fresh) = fresh else { return };
        let grace = begun.elapsed().clamp(MIN_GRACE, MAX_SILENCE);
        if timeout(grace, is_alive).await.is_ok() || used.life.was_heard_since(begun) {
            return;
        }
        let mut state = self.0.state.lock();
        if state.current.is(&used.life) {
            info!(endpoint = %self.0.url, "a connection went silent; a new one answers and replaces it");
            (state.current, state.strikes) = (fresh, 0);
        }
        used.life.give_up();
    }
}

impl State {
    fn may_dial(&self, now: Instant) -> bool {
        self.dialled_at.is_none_or(|at| now - at >= REDIAL)
    }
}

impl Service<Request> for Connections {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let mut current = self.0.state.lock().current.clone();
        current.call(request)
    }
}

/// One connection. The transport makes another one in its place when it breaks, but not when it falls silent.
#[derive(Clone)]
struct Connection {
    channel: Channel,
    life: Arc<Life>,
}

/// Signs of life of one connection, and its end.
pub(super) struct Life {
    begun: Instant,
    /// Microseconds from `begun` until the connection was last heard of.
    heard: AtomicU64,
    given_up: CancellationToken,
}

impl Life {
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    /// Ends everything that is open on the connection.
    fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Returns true if anything has arrived on the connection since then.
    pub(super) fn was_heard_since(&self, since: Instant) -> bool {
        self.heard.load(Ordering::Relaxed) >= self.micros(since)
    }

    fn hear(&self) {
        self.heard.store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    fn micros(&self, at: Instant) -> u64 {
        // From 1: it was never heard of before that.
        u64::try_from(at.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Connection {
    fn new(channel: Channel) -> Self {
        let life = Life { begun: Instant::now(), heard: AtomicU64::new(0), given_up: CancellationToken::new() };
        Self { channel, life: Arc::new(life) }
    }

    fn is(&self, life: &Arc<Life>) -> bool {
        Arc::ptr_eq(&self.life, life)
    }

    /// Returns once it answers, be it with a refusal. The request costs etcd nothing: a member's own status.
    async fn answers(&self) {
        let begun = Instant::now();
        let channel = Channel::Custom(BoxCloneSyncService::new(self.clone()));
        // Without a user this sends nothing yet.
        let Ok(mut client) = Client::from_channel(channel, None).await else { return };
        loop {
            let answer: Result<_, ClientError> = client.status().await;
            if answer.is_ok() || self.life.was_heard_since(begun) {
                return;
            }
            // The transport dials again for the next one.
            sleep(REDIAL).await;
        }
    }
}

impl Service<Request> for Connection {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self { channel, life } = self.clone();
        Box::pin(async move {
            let response = tokio::select! {
                biased;
                response = channel.oneshot(request) => response?,
                () = life.given_up.cancelled() => return Err(went_silent().into()),
            };
            life.hear();
            Ok(response.map(|body| {
                let given_up = Box::pin(life.given_up.clone().cancelled_owned());
                Body::new(Heard { body, life, given_up })
            }))
        })
    }
}

fn went_silent() -> Status {
    Status::unavailable("the connection went silent, and another one is in use")
}

/// A body that tells of its connection's life, and ends with it.
struct Heard {
    body: Body,
    life: Arc<Life>,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match frame {
            Poll::Ready(Some(Ok(_))) => self.life.hear(),
            Poll::Ready(_) => {}
            Poll::Pending if self.given_up.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(Some(Err(went_silent())));
            }
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
