//! What stands between a request and the component: the queue, the deadline, and what is said when it goes wrong.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, Version, header};
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
        error_code,
        response::{Answer, Waiting},
        target::Origin,
    },
    rejection::Rejection,
    rt::timers::Timers,
    telemetry::{
        service_metrics::{Hit, Stats},
        span::{Span, Tracer},
        throttle::Throttle,
    },
    wasm::{
        admission::Places,
        error::cause,
        in_flight::{Call, End, RequestLine},
        instance::{Instances, UNANSWERED},
        reuse::Reusable,
    },
};

/// How often it is logged that a component returns error codes, at most.
const CODES: Duration = Duration::from_secs(10);

/// How long a request waits for its turn, at most.
pub(crate) const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// The way into one service.
pub(crate) struct Door {
    name: ServiceName,
    handler: ProxyHandler<Instances>,
    /// Whether the component is of `wasi:http` 0.3.
    is_async: bool,
    request_timeout: Duration,
    stream_timeout: Duration,
    body_size: usize,
    stats: Arc<Stats>,
    codes: Throttle,
    reusable: Arc<Reusable>,
    tracer: Option<Tracer>,
    pub(crate) places: Places,
    /// Requests that are in here.
    inside: TaskTracker,
}

impl Door {
    pub(crate) fn new(name: ServiceName, instances: Instances, limits: &Limits) -> Self {
        Self {
            name,
            places: instances.guest.places.clone(),
            inside: TaskTracker::new(),
            stats: Arc::clone(&instances.guest.stats),
            codes: Throttle::new(CODES),
            reusable: Arc::clone(&instances.reusable),
            tracer: instances.guest.tracer.clone(),
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

    /// Counts what a connection ran into.
    pub(crate) fn hit(&self, hit: Hit) {
        self.stats.hit(hit);
    }

    /// Requests that are neither refused nor answered yet, at most.
    pub(crate) fn most_requests(&self) -> u32 {
        self.places.most
    }

    /// The component's response to a request that came at that time and on such a connection, with its timers; or the host's
    /// own in its place.
    pub(crate) async fn answer(
        &self,
        mut request: hyper::Request<Incoming>,
        arrived: Instant,
        timers: &Timers,
        origin: &Origin,
    ) -> Response<Answer> {
        let grpc = grpc::is_spoken(request.headers());
        let version = request.version();
        let located = origin.locate(&mut request);
        let mut span = self.tracer.as_ref().map(|tracer| tracer.answer(&mut request));
        let attempted = async {
            located?;
            if request.body().size_hint().lower() > self.body_size as u64 {
                return Err(Hit::Large.into());
            }
            if request.body().is_end_stream() {
                // There is nothing to count.
                let request = request.map(|body| body.map_err(|_| Error::ConnectionTerminated).boxed_unsync());
                return self.attempt(request, arrived, timers, &self.places, grpc, &mut span).await;
            }
            let (large, broken) = (CancellationToken::new(), CancellationToken::new());
            let mut request = request.map(|body| self.bounded(body, large.clone(), broken.clone()));
            request.extensions_mut().insert(Broken(broken.clone()));
            tokio::select! {
                biased;
                // What the component makes of half a body is of no interest.
                () = large.cancelled() => Err(Hit::Large.into()),
                answered = self.attempt(request, arrived, timers, &self.places, grpc, &mut span) => answered.map_err(|unanswered| match unanswered {
                    Unanswered::Hit(Hit::Failed) | Unanswered::Coded(..) if broken.is_cancelled() => Hit::Broken.into(),
                    unanswered => unanswered,
                }),
            }
        };
        let (status, response) = match attempted.await {
            Ok(response) => (response.status(), response),
            Err(unanswered) => {
                let (hit, rejection) = match unanswered {
                    Unanswered::Hit(hit) => (hit, Rejection::from(hit)),
                    Unanswered::Coded(code, line) => {
                        self.log_code(&code, &line);
                        (Hit::ErrorCode, error_code::rejection(&code))
                    }
                };
                self.stats.hit(hit);
                if let Some(span) = &mut span {
                    span.rejected(rejection, hit, grpc);
                }
                let mut response = rejection.response(grpc).map(Answer::of);
                if rejection.closes_connection() && version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                // Where gRPC is spoken, a failure is a 200.
                (rejection.status(), response)
            }
        };
        self.stats.answered(status, arrived.elapsed());
        response
    }

    /// A body that says when it breaks off: since it is larger than it may be, or by the client's doing.
    fn bounded(&self, body: Incoming, large: CancellationToken, broken: CancellationToken) -> WasiBody {
        let size = self.body_size;
        let failed = move |error: Box<dyn std::error::Error + Send + Sync>| {
            if error.is::<LengthLimitError>() {
                large.cancel();
                return Error::HttpRequestBodySize(Some(size as u64));
            }
            // Nothing to warn the operator of, and no failure of a component that can do nothing with half a request.
            broken.cancel();
            Error::ConnectionTerminated
        };
        Limited::new(body, size).map_err(failed).boxed_unsync()
    }

    /// The component's answer to a question of the host's own, which counts for nothing.
    pub(crate) async fn probe(
        &self,
        question: http::Request<Full<Bytes>>,
        places: &Places,
    ) -> Result<Response<Answer>, Hit> {
        let grpc = grpc::is_spoken(question.headers());
        let question = question.map(|body| body.map_err(|never| match never {}).boxed_unsync());
        match self.attempt(question, Instant::now(), &Timers::default(), places, grpc, &mut None).await {
            Ok(response) => Ok(response),
            Err(Unanswered::Coded(code, _)) => Ok(error_code::rejection(&code).response(grpc).map(Answer::of)),
            Err(Unanswered::Hit(hit)) => Err(hit),
        }
    }

    /// Waits until no request is in here, for a door to which nobody is sent any more.
    pub(crate) async fn emptied(&self) {
        self.inside.close();
        self.inside.wait().await;
    }

    /// The span goes with the answer, once there is one.
    async fn attempt(
        &self,
        request: http::Request<WasiBody>,
        arrived: Instant,
        timers: &Timers,
        places: &Places,
        grpc: bool,
        span: &mut Option<Span>,
    ) -> Result<Response<Answer>, Unanswered> {
        // A caller may wait shorter than the host does; longer as far as streams may last.
        let asked = if grpc { grpc::timeout(request.headers()) } else { None };
        let within =
            asked.map_or(self.request_timeout, |asked| asked.min(self.stream_timeout)).max(self.request_timeout);
        let deadline = asked.and_then(|asked| arrived.checked_add(asked));
        let by = |ours: Instant| deadline.map_or(ours, |theirs| theirs.min(ours));

        let line = RequestLine::of(&request);
        let entered = Arc::clone(&places.hall).try_acquire_owned().map_err(|_| Hit::Full)?;
        let counted = (self.stats.enter(), self.inside.token());
        let (turn, begun) = match Arc::clone(&places.room).try_acquire_owned() {
            Ok(turn) => (turn, arrived),
            Err(_) => {
                let patience = by(arrived + QUEUE_WAIT.min(self.request_timeout));
                let waited = timers.timeout_at(patience, Arc::clone(&places.room).acquire_owned()).await;
                let now = Instant::now();
                let Ok(Ok(turn)) = waited else {
                    let theirs = deadline.is_some_and(|deadline| deadline <= now);
                    return Err(if theirs { self.late(arrived, &line) } else { Hit::Waited }.into());
                };
                (turn, now)
            }
        };
        let broken = request.extensions().get::<Broken>().cloned();
        let waiting = Waiting::begin(self.name.clone(), line, within, span.as_ref());
        let call = Arc::clone(&waiting.call);
        let end = by(begun + within);
        let answered = timers.timeout_at(end, self.handler.handle(Arc::clone(&call), request)).await;
        match answered {
            Ok(Ok(response)) => {
                let late = timers.sleep_until(by(Instant::now() + self.stream_timeout));
                let permits = (entered, turn, counted);
                match Answer::component(response, waiting, permits, late, span).await {
                    Ok(answer) => {
                        if call.is_reuse() {
                            self.reusable.answered();
                        }
                        Ok(answer)
                    }
                    Err(End::Late) => Err(self.late(begun, &call.line).into()),
                    Err(End::Failed | End::Abandoned) => {
                        self.count_reuse(&call);
                        Err(Hit::Failed.into())
                    }
                }
            }
            // An instance that is ended for being late fails in more than one way.
            Ok(Err(error)) if error.is::<ExpirationError>() || Instant::now() >= end => {
                Err(self.late(begun, &call.line).into())
            }
            Ok(Err(error)) => Err(match error_code::returned(&error) {
                Some(code) => Unanswered::Coded(code, call.line.clone()),
                None => {
                    let is_broken = broken.is_some_and(|broken| broken.0.is_cancelled());
                    self.failed(&error, &call, is_broken).into()
                }
            }),
            Err(_) => Err(self.late(begun, &call.line).into()),
        }
    }

    fn log_code(&self, code: &Error, line: &RequestLine) {
        if let Some(left_out) = self.codes.admit(Instant::now().into_std()) {
            let code = one_line(&code.to_string());
            tracing::warn!(service = %self.name, request = %line, "the component returned an error code: {code}{left_out}");
        }
    }

    fn failed(&self, error: &wasmtime::Error, call: &Call, is_broken: bool) -> Hit {
        let line = &call.line;
        if let Some(failed) = error.downcast_ref::<InstantiationError<Arc<Call>>>() {
            if failed.error.is::<PoolConcurrencyLimitError>() {
                return Hit::Waited;
            }
            let cause = cause(&failed.error);
            tracing::warn!(service = %self.name, request = %line, "the component could not be instantiated: {cause}");
            return Hit::Instantiation;
        }
        // Of any other error the instance ends, and that is logged where it does.
        let has_returned = !self.is_async && !error.is::<TrapOrPanicError>() && error.chain().nth(1).is_none();
        if is_broken {
            tracing::debug!(service = %self.name, request = %line, "the client broke off the request: {}", cause(error));
        } else if has_returned && call.is_unanswered() {
            tracing::warn!(service = %self.name, request = %line, "{UNANSWERED}");
        } else {
            tracing::debug!(service = %self.name, request = %line, "a request ended without a response");
        }
        self.count_reuse(call);
        Hit::Failed
    }

    /// The failure of an instance that cannot be reused is the host's, which reused it.
    fn count_reuse(&self, call: &Call) {
        if call.is_reuse() && self.reusable.failed() {
            self.stats.excuse();
        }
    }

    fn late(&self, begun: Instant, line: &RequestLine) -> Hit {
        if begun.elapsed() >= self.request_timeout {
            let limit = self.request_timeout;
            tracing::warn!(service = %self.name, request = %line, "a request took longer than {limit:?} (limits.request_timeout)");
        } else {
            tracing::debug!(service = %self.name, request = %line, "a request took longer than its caller waits");
        }
        Hit::Late
    }
}

/// Reason why a request has no response of the component's.
enum Unanswered {
    Hit(Hit),
    /// The component's own error code in the place of a response.
    Coded(Error, RequestLine),
}

impl From<Hit> for Unanswered {
    fn from(hit: Hit) -> Self {
        Self::Hit(hit)
    }
}

/// Extension of a request, cancelled when the client breaks off its body.
#[derive(Clone)]
struct Broken(CancellationToken);

impl From<Hit> for Rejection {
    fn from(hit: Hit) -> Self {
        match hit {
            Hit::Full | Hit::Waited => Self::Busy,
            Hit::NoHost => Self::NoHost,
            Hit::Target => Self::BadTarget,
            Hit::Coding => Self::TransferCoding,
            Hit::Broken => Self::ClientAborted,
            Hit::Large => Self::TooLarge,
            Hit::Late => Self::Timeout,
            // Some are of no request, or are answered elsewhere.
            Hit::Denied
            | Hit::Outgoing
            | Hit::Connections
            | Hit::Slow
            | Hit::Headers
            | Hit::Memory
            | Hit::Failed
            | Hit::Instantiation
            | Hit::Trap
            | Hit::Fell
            | Hit::ErrorCode
            | Hit::Output
            | Hit::TooFewRemain => Self::Failed,
        }
    }
}
