//! The lease service of the simulated etcd, and its two streams: keepalive and watch.

use std::sync::Arc;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseStatus,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbWatchRequest, PbWatchResponse, PbWatchService,
};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::sleep;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::failure::Failure;
use super::history::{Call, Cause, EventKind};
use super::lessor::{Renewal, TICK};
use super::service::{Member, Session};
use super::state::State;
use super::wire::{self, Cut};

/// Sender of messages to the host.
type Outbound<T> = UnboundedSender<Result<T, Status>>;
type Body<T> = UnboundedReceiverStream<Result<T, Status>>;

#[async_trait]
impl PbLeaseService for Member {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let session = Session::of(&request);
        let request = request.into_inner();
        let grant = move |state: &mut State| {
            session.check_given(state)?;
            if state.no_space {
                return Err(Failure::NoSpace.into());
            }
            let (id, ttl) = state.grant(session.cause(), request.id, request.ttl)?;
            let header = Some(state.header());
            Ok(PbLeaseGrantResponse { header, id, ttl: seconds(ttl.as_secs()), error: String::new() })
        };
        self.shared.write(grant).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let session = Session::of(&request);
        let id = request.get_ref().id;
        let revoke = move |state: &mut State| {
            session.check_given(state)?;
            if state.lessor.get(id).is_some_and(|lease| !lease.keys.is_empty()) {
                session.check(state)?;
            }
            state.revoke(&session.cause(), id)?;
            Ok(PbLeaseRevokeResponse { header: Some(state.header()) })
        };
        self.shared.write(revoke).await.map(Response::new)
    }

    type LeaseKeepAliveStream = Body<PbLeaseKeepAliveResponse>;

    /// Opens a keepalive stream. As in etcd, the response begins only with the first renewal.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let connection = Session::of(&request).caller.connection;
        let mut inbound = request.into_inner();
        let (outbound, body) = mpsc::unbounded_channel();
        if let Some(first) = inbound.message().await? {
            let mut renewals = Renewals { connection, outbound };
            if renewals.answer(first).await.is_continue() {
                let shared = Arc::clone(&self.shared);
                shared.spawn(renewals.run(inbound));
            }
        }
        Ok(Response::new(UnboundedReceiverStream::new(body)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let session = Session::of(&request);
        let request = request.into_inner();
        let mut state = self.shared.lock();
        if request.keys {
            session.check(&mut state)?;
        }
        let mut response = PbLeaseTimeToLiveResponse {
            header: Some(state.header()),
            id: request.id,
            ttl: -1,
            ..PbLeaseTimeToLiveResponse::default()
        };
        if let Some(lease) = state.lessor.get(request.id) {
            response.ttl = seconds(lease.left(state.now).as_secs());
            response.granted_ttl = seconds(lease.ttl.as_secs());
            if request.keys {
                response.keys = lease.keys.iter().map(|key| key.to_vec()).collect();
            }
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let session = Session::of(&request);
        let mut state = self.shared.lock();
        session.check_given(&mut state)?;
        let leases = state.lessor.by_expiry();
        let leases = leases.iter().map(|(id, _)| PbLeaseStatus { id: *id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header: Some(state.header()), leases }))
    }
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).expect("a TTL is below etcd's maximum")
}

/// One open keepalive stream.
struct Renewals {
    connection: wire::Connection,
    outbound: Outbound<PbLeaseKeepAliveResponse>,
}

/// Continuation or end of a stream.
type Flow = std::ops::ControlFlow<()>;

impl Renewals {
    async fn run(mut self, inbound: Streaming<PbLeaseKeepAliveRequest>) {
        let (line, outbound) = (self.connection.clone(), self.outbound.clone());
        tokio::select! {
            biased;
            () = self.answer_all(inbound) => {}
            // The host hears nothing of that.
            () = line.forgotten() => outbound.closed().await,
        }
    }

    async fn answer_all(&mut self, mut inbound: Streaming<PbLeaseKeepAliveRequest>) {
        loop {
            let line = self.connection.clone();
            tokio::select! {
                biased;
                () = self.outbound.closed() => return,
                () = line.cut() => return self.end(),
                message = inbound.message() => match message {
                    Ok(Some(request)) => {
                        let arrived = self.connection.transit().await;
                        if arrived.is_err() {
                            return self.end();
                        }
                        if self.answer(request).await.is_break() {
                            return;
                        }
                    }
                    // The host closed its half, or has ended.
                    Ok(None) | Err(_) => return,
                },
            }
        }
    }

    /// Renews and responds, unless the stream breaks before or after.
    async fn answer(&mut self, request: PbLeaseKeepAliveRequest) -> Flow {
        let breaks = self.connection.breaks();
        let before = breaks && self.connection.shared.lock().rng.bool();
        if before {
            self.end();
            return Flow::Break(());
        }
        if let Err(failure) = self.connection.leader().await {
            // The host may have ended; then the reason is lost.
            let _ = self.outbound.send(Err(failure.status()));
            return Flow::Break(());
        }
        let Ok(response) = self.renew(request.id).await else {
            self.end();
            return Flow::Break(());
        };
        if breaks || self.connection.transit().await.is_err() {
            self.end();
            return Flow::Break(());
        }
        // A host that has ended closes the stream; the next iteration notices.
        let _ = self.outbound.send(Ok(response));
        Flow::Continue(())
    }

    /// Renews at the leader. A lease that has just expired makes the renewal wait until it is revoked.
    async fn renew(&mut self, id: i64) -> Result<PbLeaseKeepAliveResponse, Cut> {
        let host = Arc::clone(&self.connection.link.host);
        {
            let mut state = self.connection.shared.lock();
            let now = state.now;
            state.history.record(now, &host, Call::Renew);
        }
        loop {
            {
                let mut state = self.connection.shared.lock();
                if !state.running {
                    return Err(Cut);
                }
                let now = state.now;
                let ttl = match state.lessor.renew(id, now) {
                    Renewal::Renewed { ttl, left } => {
                        let cause =
                            Cause::Call { host: Arc::clone(&host), call: Call::Renew, late: self.outbound.is_closed() };
                        let renewed = EventKind::Renewed { lease: id, ttl, left };
                        state.record(cause, renewed);
                        Some(seconds(ttl.as_secs()))
                    }
                    Renewal::Unknown => Some(0),
                    Renewal::Expiring => None,
                };
                if let Some(ttl) = ttl {
                    let header = Some(state.header());
                    return Ok(PbLeaseKeepAliveResponse { header, id, ttl });
                }
            }
            sleep(TICK / 5).await;
        }
    }

    /// Ends the stream with the reason; the host may have ended already.
    fn end(&self) {
        let _ = self.outbound.send(Err(self.connection.broken_stream()));
    }
}

#[async_trait]
impl PbWatchService for Member {
    type WatchStream = Body<PbWatchResponse>;

    /// Opens a watch stream. As in etcd, the response begins only with the first message.
    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let session = Session::of(&request);
        let mut inbound = request.into_inner();
        let (outbound, body) = mpsc::unbounded_channel();
        if let Some(first) = inbound.message().await? {
            let (outlet, feed) = mpsc::unbounded_channel();
            let stream = self.shared.lock().watches.open(outlet);
            let watching = Watching { line: session.caller.connection.clone(), session, stream, outbound };
            watching.request(first);
            self.shared.spawn(watching.run(inbound, feed));
        }
        Ok(Response::new(UnboundedReceiverStream::new(body)))
    }
}

/// One open watch stream.
struct Watching {
    line: wire::Connection,
    session: Session,
    stream: u64,
    outbound: Outbound<PbWatchResponse>,
}

impl Watching {
    async fn run(self, inbound: Streaming<PbWatchRequest>, feed: UnboundedReceiver<PbWatchResponse>) {
        tokio::select! {
            biased;
            () = self.tell(inbound, feed) => {}
            // The host hears nothing of that.
            () = self.line.forgotten() => self.outbound.closed().await,
        }
        self.line.shared.lock().watches.close(self.stream);
    }

    async fn tell(&self, mut inbound: Streaming<PbWatchRequest>, mut feed: UnboundedReceiver<PbWatchResponse>) {
        let mut open = true;
        loop {
            let line = self.line.clone();
            tokio::select! {
                biased;
                () = self.outbound.closed() => break,
                () = line.cut() => break self.end(),
                response = feed.recv() => {
                    let Some(response) = response else {
                        // etcd stopped; the host sees it when its network works again.
                        line.cut().await;
                        break self.end();
                    };
                    if self.line.breaks() || self.line.transit().await.is_err() {
                        break self.end();
                    }
                    // A host that has ended closes the stream; the next iteration notices.
                    let _ = self.outbound.send(Ok(response));
                }
                message = inbound.message(), if open => match message {
                    Ok(Some(request)) => {
                        if self.line.transit().await.is_err() {
                            break self.end();
                        }
                        self.request(request);
                    }
                    // The host closed its half and may go on reading.
                    Ok(None) => open = false,
                    Err(_) => break,
                },
            }
        }
    }

    fn request(&self, request: PbWatchRequest) {
        let mut state = self.line.shared.lock();
        let permitted = self.session.check(&mut state);
        let header = state.header();
        let state = &mut *state;
        let union = request.request_union;
        state.watches.request(self.stream, union, permitted, &state.store, &header);
    }

    /// Ends the stream with the reason; the host may have ended already.
    fn end(&self) {
        let _ = self.outbound.send(Err(self.line.broken_stream()));
    }
}
