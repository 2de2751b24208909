//! Dispatch of a request to the component: admission queue, deadline, and error responses.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, Version, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use leasehold::ServiceName;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::{
    Error, WasiBody,
    handler::{ExpirationError, InstantiationError, ProxyHandler, ProxyPre, TrapOrPanicError},
};

use crate::{
    config::Limits,
    error::one_line,
    grpc,
    inbound::{
        access_record::AccessRecord,
        error_code,
        response::{RequestGuard, ResponseBody},
        target::Origin,
    },
    outbound::{callers::CallerDeadline, service::DEADLINE},
    rejection::{RejectReason, Rejection},
    rt::timers::Timers,
    telemetry::{
        access_log::AccessLog,
        request::{RequestIdentity, log_request},
        service_metrics::Stats,
        span::{Span, Tracer},
        throttle::Throttle,
    },
    wasm::{
        admission::Admission,
        error::cause,
        in_flight::{InFlightRequest, InstanceEnd},
        instance::{Instances, NO_RESPONSE},
        reuse::Reusable,
    },
};

/// Interval between two log lines about returned error codes, at least.
const CODE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait of a request in the admission queue.
pub(crate) const MAX_QUEUE_WAIT: Duration = Duration::from_secs(5);

/// The dispatcher of the current revision of a service, replaced by a reload.
pub(crate) type CurrentDispatcher = Arc<ArcSwap<Dispatcher>>;

/// Dispatcher of one revision of a service.
pub(crate) struct Dispatcher {
    name: ServiceName,
    handler: ProxyHandler<Instances>,
    /// The component uses `wasi:http` 0.3.
    is_async: bool,
    request_timeout: Duration,
    stream_timeout: Duration,
    body_size: usize,
    /// Names in certificates of the clients that may send requests; `None` for every client.
    callers: Option<Arc<[String]>>,
    stats: Arc<Stats>,
    codes: Throttle,
    reusable: Arc<Reusable>,
    tracer: Option<Tracer>,
    access_log: Arc<AccessLog>,
    pub(crate) admission: Admission,
    /// Requests whose response is not complete.
    unanswered: TaskTracker,
}

impl Dispatcher {
    pub(crate) fn new(name: ServiceName, instances: Instances, limits: &Limits) -> Self {
        Self {
            name,
            admission: instances.context.admission().clone(),
            unanswered: TaskTracker::new(),
            access_log: Arc::clone(&instances.context.access_log),
            callers: instances.context.callers.clone(),
            stats: Arc::clone(instances.context.stats()),
            codes: Throttle::new(CODE_LOG_INTERVAL),
            reusable: Arc::clone(&instances.reusable),
            tracer: instances.context.tracer.clone(),
            is_async: matches!(instances.pre, ProxyPre::P3(_)),
            handler: ProxyHandler::new(instances),
            request_timeout: limits.request_timeout,
            stream_timeout: limits.stream_timeout(),
            body_size: limits.body_size,
        }
    }

    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Metrics of the service.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts and logs bytes of a client that the HTTP server refused, before there was a request.
    pub(crate) fn refused(&self, reason: RejectReason, peer: SocketAddr) {
        self.stats.reject(reason, None);
        self.access_log.write_refused(peer, reason);
    }

    /// Requests in the slots and in the queue, at most.
    pub(crate) fn max_requests(&self) -> u32 {
        self.admission.queue.total()
    }

    /// Returns the component's response to a request that arrived at this time on a connection with these timers and this
    /// origin, or the host's own response in its place.
    pub(crate) async fn dispatch(
        &self,
        mut request: hyper::Request<Incoming>,
        arrived: Instant,
        timers: &Timers,
        origin: &Origin,
    ) -> Response<ResponseBody> {
        let grpc = grpc::is_spoken(request.headers());
        let version = request.version();
        let located = origin.locate(&mut request);
        let permitted = origin.pass_caller(&mut request, self.callers.as_deref());
        let id = self.access_log.identify(request.headers_mut());
        let mut span = self.tracer.as_ref().map(|tracer| tracer.server_span(&mut request));
        let identity = RequestIdentity {
            peer: origin.peer,
            id,
            span: span.as_ref().map(Span::context),
            ..RequestIdentity::of(&request)
        };
        let in_flight = self.in_flight(identity, grpc, request.headers(), arrived);
        let mut record = AccessRecord::begin(&self.access_log, &in_flight, &request, arrived);
        let attempted = async {
            located?;
            permitted?;
            if request.body().size_hint().lower() > self.body_size as u64 {
                return Err(RejectReason::BodyTooLarge.into());
            }
            if request.body().is_end_stream() {
                // An empty body has no size to check.
                let request = request.map(|body| body.map_err(|_| Error::ConnectionTerminated).boxed_unsync());
                return self.attempt(request, &in_flight, arrived, timers, &self.admission, &mut span).await;
            }
            let (large, broken) = (CancellationToken::new(), CancellationToken::new());
            let mut request = request.map(|body| self.bounded(body, large.clone(), broken.clone()));
            request.extensions_mut().insert(ClientAborted(broken.clone()));
            tokio::select! {
                biased;
                // The response to half a body is discarded.
                () = large.cancelled() => Err(RejectReason::BodyTooLarge.into()),
                outcome = self.attempt(request, &in_flight, arrived, timers, &self.admission, &mut span) => outcome.map_err(|no_response| match no_response {
                    NoResponse::Rejected(RejectReason::ComponentFailed) | NoResponse::ErrorCode(_) if broken.is_cancelled() => RejectReason::ClientAborted.into(),
                    no_response => no_response,
                }),
            }
        };
        let (status, mut response) = match attempted.await {
            Ok(response) => (response.status(), response),
            Err(no_response) => {
                let rejection = self.reject(no_response, &in_flight.identity, record.as_mut());
                if let Some(span) = &mut span {
                    span.record_rejection(&rejection, grpc);
                }
                let mut response = rejection.response(grpc).map(ResponseBody::of);
                if rejection.closes_connection() && version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                // In gRPC the status in HTTP is always 200.
                (rejection.status, response)
            }
        };
        self.stats.responded(status, arrived.elapsed());
        if let Some(record) = record {
            ResponseBody::record(&mut response, record);
        }
        response
    }

    /// Counts a request without a response of the component, and returns the host's own response.
    fn reject(
        &self,
        no_response: NoResponse,
        identity: &RequestIdentity,
        record: Option<&mut AccessRecord>,
    ) -> Rejection {
        let rejection = match no_response {
            NoResponse::Rejected(reason) => Rejection::from(reason),
            NoResponse::ErrorCode(code) => {
                self.log_code(&code, identity);
                error_code::rejection(&code)
            }
        };
        self.stats.reject(rejection.reason, Some(identity));
        if let Some(record) = record {
            record.reject(rejection.reason);
        }
        rejection
    }

    /// Limits a request body, and signals that it is too large or that the client broke it off.
    fn bounded(&self, body: Incoming, large: CancellationToken, broken: CancellationToken) -> WasiBody {
        let size = self.body_size;
        let failed = move |error: Box<dyn std::error::Error + Send + Sync>| {
            if error.is::<LengthLimitError>() {
                large.cancel();
                return Error::HttpRequestBodySize(Some(size as u64));
            }
            // Neither a warning for the operator nor a failure of the component, which cannot use half a request.
            broken.cancel();
            Error::ConnectionTerminated
        };
        Limited::new(body, size).map_err(failed).boxed_unsync()
    }

    /// The component's response to a probe of the host, which is not counted.
    pub(crate) async fn probe(
        &self,
        request: http::Request<Full<Bytes>>,
        admission: &Admission,
    ) -> Result<Response<ResponseBody>, RejectReason> {
        let grpc = grpc::is_spoken(request.headers());
        let request = request.map(|body| body.map_err(|never| match never {}).boxed_unsync());
        let now = Instant::now();
        let in_flight = self.in_flight(RequestIdentity::of(&request), grpc, request.headers(), now);
        match self.attempt(request, &in_flight, now, &Timers::default(), admission, &mut None).await {
            Ok(response) => Ok(response),
            Err(NoResponse::ErrorCode(code)) => Ok(error_code::rejection(&code).response(grpc).map(ResponseBody::of)),
            Err(NoResponse::Rejected(reason)) => Err(reason),
        }
    }

    /// Waits until every request of a replaced dispatcher has its response.
    pub(crate) async fn drained(&self) {
        self.unanswered.close();
        self.unanswered.wait().await;
    }

    /// A request that has arrived, with the time that it may take.
    fn in_flight(
        &self,
        identity: RequestIdentity,
        grpc: bool,
        headers: &HeaderMap,
        arrived: Instant,
    ) -> Arc<InFlightRequest> {
        // A caller in gRPC may wait shorter than the host does, or longer as far as streams may last.
        let whole = if grpc { grpc::timeout(headers) } else { None };
        let within =
            whole.map_or(self.request_timeout, |whole| whole.min(self.stream_timeout)).max(self.request_timeout);
        let begin = if grpc { None } else { begin_timeout(headers) };
        let at = |timeout: Option<Duration>| timeout.and_then(|timeout| arrived.checked_add(timeout));
        Arc::new(InFlightRequest::new(identity, within, CallerDeadline::new(at(begin), at(whole))))
    }

    /// Waits for admission and for the component. The span is moved into the response.
    async fn attempt(
        &self,
        request: http::Request<WasiBody>,
        in_flight: &Arc<InFlightRequest>,
        arrived: Instant,
        timers: &Timers,
        admission: &Admission,
        span: &mut Option<Span>,
    ) -> Result<Response<ResponseBody>, NoResponse> {
        let InFlightRequest { deadline, within, .. } = &**in_flight;
        let by = |ours: Instant| deadline.until().map_or(ours, |callers| callers.min(ours));
        let end_by = |ours: Instant| deadline.end.map_or(ours, |callers| callers.min(ours));

        let entered = admission.queue.get().try_acquire_owned().map_err(|_| RejectReason::QueueFull)?;
        let counted = (self.stats.enter(), self.unanswered.token());
        let (slot, begun) = match admission.slots.get().try_acquire_owned() {
            Ok(slot) => (slot, arrived),
            Err(_) => {
                let patience = by(arrived + MAX_QUEUE_WAIT.min(self.request_timeout));
                let waited = timers.timeout_at(patience, admission.slots.get().acquire_owned()).await;
                let now = Instant::now();
                in_flight.waited(now - arrived);
                let Ok(Ok(slot)) = waited else {
                    let is_callers = deadline.until().is_some_and(|until| until <= now);
                    let reason = if is_callers { self.late(arrived, in_flight) } else { RejectReason::QueueTimeout };
                    return Err(reason.into());
                };
                (slot, now)
            }
        };
        let broken = request.extensions().get::<ClientAborted>().cloned();
        let guard = RequestGuard::begin(self.name.clone(), Arc::clone(in_flight));
        let end = by(begun + *within);
        let outcome = timers.timeout_at(end, self.handler.handle(Arc::clone(in_flight), request)).await;
        match outcome {
            Ok(Ok(response)) => {
                deadline.begun();
                let late = timers.sleep_until(end_by(Instant::now() + self.stream_timeout));
                let permits = (entered, slot, counted);
                match ResponseBody::component(response, guard, permits, late, span).await {
                    Ok(response) => {
                        if in_flight.is_reuse() {
                            self.reusable.answered();
                        }
                        Ok(response)
                    }
                    Err(InstanceEnd::TimedOut) => Err(self.late(begun, in_flight).into()),
                    Err(InstanceEnd::Failed | InstanceEnd::Abandoned) => {
                        self.count_reuse(in_flight);
                        Err(RejectReason::ComponentFailed.into())
                    }
                }
            }
            // A timeout of the instance appears as one of several errors.
            Ok(Err(error)) if error.is::<ExpirationError>() || Instant::now() >= end => {
                Err(self.late(begun, in_flight).into())
            }
            Ok(Err(error)) => Err(match error_code::returned(&error) {
                Some(code) => NoResponse::ErrorCode(code),
                None => {
                    let is_broken = broken.is_some_and(|broken| broken.0.is_cancelled());
                    self.failed(&error, in_flight, is_broken).into()
                }
            }),
            Err(_) => Err(self.late(begun, in_flight).into()),
        }
    }

    fn log_code(&self, code: &Error, request: &RequestIdentity) {
        if let Some(suppressed) = self.codes.admit(Instant::now().into_std()) {
            let code = one_line(&code.to_string());
            log_request!(warn, self.name, request, "the component returned an error code: {code}{suppressed}");
        }
    }

    fn failed(&self, error: &wasmtime::Error, in_flight: &InFlightRequest, is_broken: bool) -> RejectReason {
        let request = &in_flight.identity;
        if let Some(failed) = error.downcast_ref::<InstantiationError<Arc<InFlightRequest>>>() {
            if failed.error.is::<PoolConcurrencyLimitError>() {
                return RejectReason::QueueTimeout;
            }
            let cause = cause(&failed.error);
            log_request!(warn, self.name, request, "the component could not be instantiated: {cause}");
            return RejectReason::InstantiationFailed;
        }
        // Any other error ends the instance, which logs it.
        let has_returned = !self.is_async && !error.is::<TrapOrPanicError>() && error.chain().nth(1).is_none();
        if is_broken {
            log_request!(debug, self.name, request, "the client broke off the request: {}", cause(error));
        } else if has_returned && in_flight.is_unanswered() {
            log_request!(warn, self.name, request, "{NO_RESPONSE}");
        } else {
            log_request!(debug, self.name, request, "a request ended without a response");
        }
        self.count_reuse(in_flight);
        RejectReason::ComponentFailed
    }

    /// Counts a failure of a reused instance as the host's, if the component cannot be reused.
    fn count_reuse(&self, in_flight: &InFlightRequest) {
        if in_flight.is_reuse() && self.reusable.failed() {
            self.stats.excuse();
        }
    }

    fn late(&self, begun: Instant, in_flight: &InFlightRequest) -> RejectReason {
        let request = &in_flight.identity;
        if begun.elapsed() >= self.request_timeout {
            let limit = self.request_timeout;
            log_request!(warn, self.name, request, "a request took longer than {limit:?} (limits.request_timeout)");
        } else {
            log_request!(debug, self.name, request, "a request took longer than its caller waits");
        }
        RejectReason::Timeout
    }
}

/// Time within which the response has to begin, as a calling host says.
fn begin_timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(DEADLINE)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// Reason why a request has no response of the component's.
enum NoResponse {
    Rejected(RejectReason),
    /// The component returned an error code.
    ErrorCode(Error),
}

impl From<RejectReason> for NoResponse {
    fn from(reason: RejectReason) -> Self {
        Self::Rejected(reason)
    }
}

/// Extension of a request, cancelled when the client breaks off its body.
#[derive(Clone)]
struct ClientAborted(CancellationToken);
