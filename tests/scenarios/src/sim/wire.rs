//! The network between one host and the simulated etcd: a gRPC channel without sockets, with faults.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;
use tonic::body::Body;
use tonic::{ConnectError, Status};
use tower::{BoxError, Service};

use super::failure::Failure;
use super::fault::{Fate, FaultPlan};
use super::history::{Call, Cause};
use super::service::Services;
use super::state::{REQUEST_TIMEOUT, Shared};

type Request = http::Request<Body>;
type Response = http::Response<Body>;
type Answer = Result<Response, BoxError>;

/// Time after which a caller without a deadline counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// One host's network link to etcd.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) host: Arc<str>,
    line: Mutex<Line>,
    /// Wakes waiters in order. A `watch` channel would wake them in a random order, and no run would repeat.
    changed: Notify,
}

/// State of the link.
#[derive(Debug)]
struct Line {
    plan: FaultPlan,
    blackholed: bool,
    /// Number of cuts; calls and streams that were open during a cut are broken.
    cuts: u64,
    /// Number of flows; messages on flows before `forgotten` are lost silently.
    flows: u64,
    forgotten: u64,
}

impl Link {
    pub(crate) fn new(host: &str, plan: FaultPlan) -> Self {
        let line = Line { plan, blackholed: false, cuts: 0, flows: 0, forgotten: 0 };
        Self { host: Arc::from(host), line: Mutex::new(line), changed: Notify::new() }
    }

    pub(crate) fn plan(&self) -> FaultPlan {
        self.line().plan.clone()
    }

    pub(crate) fn set_plan(&self, plan: FaultPlan) {
        self.line().plan = plan;
    }

    pub(crate) fn set_blackholed(&self, blackholed: bool) {
        self.line().blackholed = blackholed;
        self.changed.notify_waiters();
    }

    /// Cuts every open call and stream; a blackholed host sees it after `heal`.
    pub(crate) fn break_open(&self) {
        self.line().cuts += 1;
        self.changed.notify_waiters();
    }

    /// Loses every flow there is; new ones are fine.
    pub(crate) fn forget_flows(&self) {
        let mut line = self.line();
        line.forgotten = line.flows;
        drop(line);
        self.changed.notify_waiters();
    }

    /// Number of a new flow: what a connection is to the way between.
    pub(crate) fn new_flow(&self) -> u64 {
        let mut line = self.line();
        line.flows += 1;
        line.flows - 1
    }

    /// One call's or one stream's view of the line.
    pub(crate) fn open(self: &Arc<Self>, shared: &Arc<Shared>, flow: u64) -> Connection {
        Connection { shared: Arc::clone(shared), link: Arc::clone(self), cuts: self.line().cuts, flow }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_until(&self, seen: impl Fn(&Line) -> bool + Send) {
        loop {
            let changed = self.changed.notified();
            if seen(&self.line()) {
                return;
            }
            changed.await;
        }
    }
}

/// The connection that a call or a stream uses; it ends with the first cut.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    cuts: u64,
    flow: u64,
}

/// The connection is gone.
#[derive(Debug)]
pub(crate) struct Cut;

impl Connection {
    /// Waits until the link works.
    pub(crate) async fn clear(&self) -> Result<(), Cut> {
        self.link.wait_until(|line| !line.blackholed && !self.is_lost(line)).await;
        if self.link.line().cuts == self.cuts { Ok(()) } else { Err(Cut) }
    }

    /// Waits until the host can see the cut.
    pub(crate) async fn cut(&self) {
        let cuts = self.cuts;
        self.link.wait_until(|line| !line.blackholed && !self.is_lost(line) && line.cuts != cuts).await;
    }

    /// Waits until the way between has forgotten the flow.
    pub(crate) async fn forgotten(&self) {
        self.link.wait_until(|line| self.is_lost(line)).await;
    }

    fn is_lost(&self, line: &Line) -> bool {
        self.flow < line.forgotten
    }

    /// Carries one message in one direction.
    pub(crate) async fn transit(&self) -> Result<(), Cut> {
        let delay = {
            let mut state = self.shared.lock();
            self.link.plan().transit(&mut state.rng)
        };
        sleep(delay).await;
        self.clear().await
    }

    /// Draws whether the next message breaks its stream.
    pub(crate) fn breaks(&self) -> bool {
        let mut state = self.shared.lock();
        self.link.plan().stream_breaks(&mut state.rng)
    }

    /// Waits for a leader, as long as etcd lets a request wait; returns true if there was none before.
    pub(crate) async fn leader(&self) -> Result<bool, Failure> {
        let mut patience = REQUEST_TIMEOUT;
        let mut waited = false;
        while let Some(left) = self.election_left() {
            if patience.is_zero() {
                return Err(Failure::TimedOut);
            }
            let pause = left.min(patience).max(Duration::from_millis(1));
            patience = patience.saturating_sub(pause);
            sleep(pause).await;
            waited = true;
        }
        Ok(waited)
    }

    pub(crate) fn election_left(&self) -> Option<Duration> {
        self.shared.lock().election_left()
    }

    /// Error of an open stream at the end of its connection, in tonic's forms.
    pub(crate) fn broken_stream(&self) -> Status {
        match self.shared.lock().rng.u8(0..3) {
            0 => Status::unavailable("etcdserver: server stopped"),
            _ => Status::unknown("h2 protocol error: error reading a body from connection"),
        }
    }

    /// Error of a pending call at the end of its connection.
    fn broken_call(&self) -> Status {
        match self.shared.lock().rng.u8(0..4) {
            0 => Status::unavailable("etcdserver: server stopped"),
            1 => Status::cancelled("operation was canceled"),
            _ => Status::unknown("transport error"),
        }
    }
}

/// The caller of a request; it travels in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) connection: Connection,
    pub(crate) call: Call,
    late: bool,
}

impl Caller {
    pub(crate) fn cause(&self) -> Cause {
        Cause::Call { host: Arc::clone(&self.connection.link.host), call: self.call, late: self.late }
    }
}

/// The service behind `Channel::Custom`.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    pub(crate) flow: u64,
    pub(crate) services: Services,
}

impl Service<Request> for Wire {
    type Response = Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    /// Spawns the request, which goes on if its caller disconnects.
    fn call(&mut self, request: Request) -> Self::Future {
        let (reply, answer) = oneshot::channel();
        let call = Call::of_path(request.uri().path());
        let (fate, boot) = {
            let mut state = self.shared.lock();
            let now = state.now;
            state.history.record(now, &self.link.host, call);
            (self.link.plan().fate(&mut state.rng), state.boot)
        };
        let delivery = Delivery {
            connection: self.link.open(&self.shared, self.flow),
            services: self.services.clone(),
            call,
            boot,
            needs_leader: request.headers().contains_key("hasleader"),
            fate,
            reply,
        };
        self.shared.spawn(delivery.run(request));
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(BoxError::from("the simulation has ended"))) })
    }
}

/// One call on its way.
struct Delivery {
    connection: Connection,
    services: Services,
    call: Call,
    boot: u64,
    /// The client requires a leader and does not wait for one.
    needs_leader: bool,
    fate: Fate,
    reply: oneshot::Sender<Answer>,
}

/// End of a delivery without etcd's own response.
enum Lost {
    /// The host sees an error.
    Error(BoxError),
    /// The host sees nothing.
    Silence,
}

impl From<Failure> for Lost {
    fn from(failure: Failure) -> Self {
        Self::Error(Box::new(failure.status()))
    }
}

impl Delivery {
    async fn run(mut self, request: Request) {
        let line = self.connection.clone();
        let outcome = tokio::select! {
            biased;
            outcome = self.deliver(request) => outcome,
            () = line.forgotten() => Err(Lost::Silence),
        };
        match outcome {
            // The caller may have given up.
            Ok(response) => drop(self.reply.send(Ok(response))),
            Err(Lost::Error(error)) => drop(self.reply.send(Err(error))),
            Err(Lost::Silence) => {
                let Self { connection, mut reply, .. } = self;
                tokio::select! {
                    biased;
                    () = reply.closed() => {}
                    () = connection.cut() => {
                        let error = Box::new(connection.broken_call());
                        drop(reply.send(Err(error)));
                    }
                }
            }
        }
    }

    async fn deliver(&mut self, request: Request) -> Result<Response, Lost> {
        self.there().await?;
        let answer = self.apply(request).await;
        self.back(answer).await
    }

    /// The way to etcd.
    async fn there(&mut self) -> Result<(), Lost> {
        let carried = self.connection.transit().await;
        if let Fate::Late(hold) = self.fate {
            tokio::select! {
                biased;
                () = self.reply.closed() => {}
                () = sleep(PATIENCE) => {}
            }
            sleep(hold).await;
        } else if carried.is_err() {
            return Err(self.broken());
        }
        let alone = self.connection.election_left().is_some();
        if alone && self.needs_leader && self.running() {
            return Err(Failure::NoLeader.into());
        }
        let waited = self.connection.leader().await;
        let (running, boot, lucky) = {
            let mut state = self.connection.shared.lock();
            (state.running, state.boot, state.rng.bool())
        };
        if !running {
            return Err(refused());
        }
        if boot != self.boot {
            // It was sent to a process that has ended.
            return Err(self.broken());
        }
        if self.fate == Fate::ErrorBefore {
            return Err(if lucky { refused() } else { Failure::TimedOut.into() });
        }
        if self.fate == Fate::Clean && lucky && self.reply.is_closed() {
            // If a caller disconnects while the link is slow, its request may be lost.
            return Err(Lost::Silence);
        }
        if waited? && self.fate == Fate::Clean && lucky {
            return Err(Failure::LeaderChanged.into());
        }
        Ok(())
    }

    async fn apply(&mut self, mut request: Request) -> Response {
        let caller = Caller { connection: self.connection.clone(), call: self.call, late: self.reply.is_closed() };
        request.extensions_mut().insert(caller);
        self.services.route(request).await
    }

    /// Delivers the response to the host. The messages of a stream are delivered one by one.
    async fn back(&mut self, response: Response) -> Result<Response, Lost> {
        match self.fate {
            Fate::ErrorAfter => return Err(Failure::TimedOut.into()),
            Fate::AnswerLost => return Err(Lost::Silence),
            Fate::Clean | Fate::ErrorBefore | Fate::Late(_) => {}
        }
        let carried =
            if self.call.is_stream() { self.connection.clear().await } else { self.connection.transit().await };
        carried.map_err(|Cut| self.broken())?;
        Ok(response)
    }

    fn running(&self) -> bool {
        self.connection.shared.lock().running
    }

    fn broken(&self) -> Lost {
        Lost::Error(Box::new(self.connection.broken_call()))
    }
}

/// Error of hyper for a port without a listener.
#[derive(Debug)]
struct TcpConnectError(io::Error);

impl fmt::Display for TcpConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tcp connect error")
    }
}

impl Error for TcpConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Error of a refused connection: the only failure that proves that the request did not arrive.
fn refused() -> Lost {
    let refused = TcpConnectError(io::Error::from(io::ErrorKind::ConnectionRefused));
    Lost::Error(Box::new(ConnectError(Box::new(refused))))
}
