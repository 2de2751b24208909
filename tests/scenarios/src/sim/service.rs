//! The unary calls of the simulated etcd: KV, Maintenance and Authenticate.

use std::sync::Arc;

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbAuthenticateRequest, PbAuthenticateResponse, PbCompactionRequest,
    PbCompactionResponse, PbDefragmentRequest, PbDefragmentResponse, PbDeleteRequest, PbDeleteResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbKvServer, PbKvService, PbLeaseServer, PbMaintenanceServer, PbMaintenanceService, PbMoveLeaderRequest,
    PbMoveLeaderResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse, PbTxnOpResponse, PbTxnRequest,
    PbTxnResponse, PbWatchServer,
};
use fastrand::Rng;
use tokio_stream::Empty;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, async_trait};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::failure::Failure;
use super::history::Cause;
use super::state::{MEMBER, Shared, State};
use super::wire::Caller;
use super::{apply, check};

/// The version in `Maintenance.Status`.
const VERSION: &str = "3.5.0";
/// The number of the alarm NOSPACE.
const NO_SPACE: i32 = 1;

/// The generated services over the shared state.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    kv: PbKvServer<Member>,
    lease: PbLeaseServer<Member>,
    watch: PbWatchServer<Member>,
    maintenance: PbMaintenanceServer<Member>,
    member: Arc<Member>,
}

/// The only member, as its services see it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
}

impl Services {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let member = Arc::new(Member { shared });
        let of = || Arc::clone(&member);
        Self {
            kv: PbKvServer::from_arc(of()).max_decoding_message_size(usize::MAX),
            lease: PbLeaseServer::from_arc(of()),
            watch: PbWatchServer::from_arc(of()),
            maintenance: PbMaintenanceServer::from_arc(of()),
            member,
        }
    }

    /// Routes a request, as a gRPC server does. Auth is routed by hand: two of the types in its trait are private in
    /// `etcd_client`.
    pub(crate) async fn route(&mut self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path();
        let routed = if path.starts_with("/etcdserverpb.KV/") {
            self.kv.call(request).await
        } else if path.starts_with("/etcdserverpb.Lease/") {
            self.lease.call(request).await
        } else if path.starts_with("/etcdserverpb.Watch/") {
            self.watch.call(request).await
        } else if path.starts_with("/etcdserverpb.Maintenance/") {
            self.maintenance.call(request).await
        } else if path == "/etcdserverpb.Auth/Authenticate" {
            Ok(self.authenticate(request).await)
        } else {
            Ok(Failure::NotSupported.status().into_http())
        };
        match routed {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn authenticate(&self, request: http::Request<Body>) -> http::Response<Body> {
        let member = Arc::clone(&self.member);
        let service = service_fn(move |request: Request<PbAuthenticateRequest>| {
            let response = member.authenticate(request.get_ref());
            async move { response.map(Response::new).map_err(Status::from) }
        });
        Grpc::new(ProstCodec::default()).unary(service, request).await
    }
}

/// Empties one operation of a response, or of a transaction within it.
fn damage(response: &mut PbTxnResponse, rng: &mut Rng) {
    let count = response.responses.len();
    if count == 0 {
        return;
    }
    let operation = &mut response.responses[rng.usize(..count)];
    match &mut operation.response {
        Some(PbTxnOpResponse::ResponseTxn(nested)) if rng.bool() => damage(nested, rng),
        content => *content = None,
    }
}

/// The caller and its token.
pub(crate) struct Session {
    pub(crate) caller: Caller,
    pub(crate) token: Option<String>,
}

impl Session {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let caller = request.extensions().get::<Caller>();
        let token = request.metadata().get("token");
        Self {
            caller: caller.expect("the wire names every caller").clone(),
            token: token.and_then(|token| token.to_str().ok()).map(str::to_owned),
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        self.caller.cause()
    }

    /// Check for calls that read or write keys.
    pub(crate) fn check(&self, state: &mut State) -> Result<(), Failure> {
        let now = state.now;
        state.auth.check(self.token.as_deref(), now)?;
        match state.forbidden.contains(&*self.caller.connection.link.host) {
            true => Err(Failure::PermissionDenied),
            false => Ok(()),
        }
    }

    /// Check for calls on leases only.
    pub(crate) fn check_given(&self, state: &mut State) -> Result<(), Failure> {
        let now = state.now;
        state.auth.check_given(self.token.as_deref(), now)
    }
}

impl Member {
    fn authenticate(&self, request: &PbAuthenticateRequest) -> Result<PbAuthenticateResponse, Failure> {
        let mut state = self.shared.lock();
        let State { auth, rng, now, .. } = &mut *state;
        let token = auth.authenticate(&request.name, &request.password, rng, *now)?;
        Ok(PbAuthenticateResponse { header: Some(state.header()), token })
    }
}

#[async_trait]
impl PbKvService for Member {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        check::range(request.get_ref())?;
        let session = Session::of(&request);
        let mut state = self.shared.lock();
        session.check(&mut state)?;
        let revision = state.store.revision();
        let mut response = apply::range(&state.store, request.get_ref(), revision)?;
        response.header = Some(state.header());
        Ok(Response::new(response))
    }

    type RangeStreamStream = Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Failure::NotSupported.into())
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let session = Session::of(&request);
        let request = request.into_inner();
        check::put(&request)?;
        let mut state = self.shared.lock();
        session.check(&mut state)?;
        check::size(&request)?;
        if state.no_space {
            return Err(Failure::NoSpace.into());
        }
        apply::check_put(&state.store, &state.lessor, &request)?;
        let mut response = state.write(&session.cause(), |writer| apply::put(writer, &request));
        response.header = Some(state.header());
        Ok(Response::new(response))
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        let session = Session::of(&request);
        let request = request.into_inner();
        check::delete(&request)?;
        let mut state = self.shared.lock();
        session.check(&mut state)?;
        check::size(&request)?;
        let mut response = state.write(&session.cause(), |writer| apply::delete(writer, &request));
        response.header = Some(state.header());
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let session = Session::of(&request);
        let request = request.into_inner();
        check::txn(&request)?;
        let is_write = check::writes(&request);
        let apply = move |state: &mut State| {
            session.check(state)?;
            check::size(&request)?;
            state.history.largest_transaction = state.history.largest_transaction.max(check::measure(&request));
            if state.no_space && check::cost(&request) > 0 {
                return Err(Failure::NoSpace.into());
            }
            let branches = apply::decide(&state.store, &state.lessor, &request)?;
            let mut response = state.write(&session.cause(), |writer| apply::txn(writer, &request, &branches))?;
            response.header = Some(state.header());
            if session.caller.connection.link.plan().is_damaged(&mut state.rng) {
                damage(&mut response, &mut state.rng);
            }
            Ok(Response::new(response))
        };
        // One that only reads does not go through the log.
        if is_write { self.shared.write(apply).await } else { apply(&mut self.shared.lock()) }
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        let session = Session::of(&request);
        let mut state = self.shared.lock();
        session.check(&mut state)?;
        state.store.compact(request.get_ref().revision)?;
        Ok(Response::new(PbCompactionResponse { header: Some(state.header()) }))
    }
}

#[async_trait]
impl PbMaintenanceService for Member {
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        const ACTIVATE: i32 = 1;
        const DEACTIVATE: i32 = 2;
        let request = request.into_inner();
        let mut state = self.shared.lock();
        if request.alarm == NO_SPACE {
            match request.action {
                ACTIVATE => state.no_space = true,
                DEACTIVATE => state.no_space = false,
                _ => {}
            }
        }
        let alarm = PbAlarmMember { member_id: MEMBER, alarm: NO_SPACE };
        Ok(Response::new(PbAlarmResponse {
            header: Some(state.header()),
            alarms: state.no_space.then_some(alarm).into_iter().collect(),
        }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let state = self.shared.lock();
        let leader = if state.election_left().is_none() { MEMBER } else { 0 };
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push("etcdserver: no leader".to_owned());
        }
        if state.no_space {
            errors.push(format!("memberID:{MEMBER} alarm:NOSPACE "));
        }
        Ok(Response::new(PbStatusResponse {
            header: Some(state.header()),
            version: VERSION.to_owned(),
            leader,
            raft_term: state.term,
            raft_index: state.log,
            errors,
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Result<Response<PbDefragmentResponse>, Status> {
        let header = Some(self.shared.lock().header());
        Ok(Response::new(PbDefragmentResponse { header }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(Failure::NotSupported.into())
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(Failure::NotSupported.into())
    }

    type SnapshotStream = Empty<Result<PbSnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Failure::NotSupported.into())
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Failure::NotSupported.into())
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Failure::NotSupported.into())
    }
}
