//! What stands between a request and the component: the queue, the deadline, and what is said when it goes wrong.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use leasehold::ServiceName;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::{
    Error, WasiBody,
    handler::{ExpirationError, InstantiationError, ProxyHandler, TrapOrPanicError},
};

use crate::{
    answer::{Answer, Refusal, Waiting},
    call::Call,
    component::cause,
    config::Limits,
    grpc,
    instances::Instances,
    span::{Span, Tracer},
    stats::{Hit, Stats},
};

/// How long a request waits for its turn, at most.
pub(crate) const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// The way into one service.
pub(crate) struct Door {
    name: ServiceName,
    handler: ProxyHandler<Instances>,
    request_timeout: Duration,
    body_size: usize,
    stats: Arc<Stats>,
    tracer: Option<Tracer>,
    pub(crate) places: Places,
    /// Requests that are in here.
    inside: TaskTracker,
}

/// What a service has for requests, whichever version answers them.
#[derive(Clone)]
pub(crate) struct Places {
    most: u32,
    /// Requests that are answered or wait.
    hall: Arc<Semaphore>,
    /// Requests that are answered.
    room: Arc<Semaphore>,
}

impl Places {
    /// For so many requests that are answered at a time, and as many that wait.
    pub(crate) fn new(concurrency: u32) -> Self {
        let most = concurrency.saturating_mul(2);
        Self {
            most,
            hall: Arc::new(Semaphore::new(most as usize)),
            room: Arc::new(Semaphore::new(concurrency as usize)),
        }
    }
}

impl Door {
    pub(crate) fn new(name: ServiceName, instances: Instances, limits: &Limits) -> Self {
        Self {
            name,
            places: instances.guest.places.clone(),
            inside: TaskTracker::new(),
            stats: Arc::clone(&instances.guest.stats),
            tracer: instances.guest.tracer.clone(),
            handler: ProxyHandler::new(instances),
            request_timeout: limits.request_timeout,
            body_size: limits.body_size,
        }
    }

    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Requests that are neither refused nor answered yet, at most.
    pub(crate) fn most_requests(&self) -> u32 {
        self.places.most
    }

    /// The component's answer, or what is said in its place.
    pub(crate) async fn answer(&self, mut request: hyper::Request<Incoming>) -> Response<Answer> {
        let begun = Instant::now();
        let grpc = grpc::is_spoken(request.headers());
        let mut span = self.tracer.as_ref().map(|tracer| tracer.answer(&mut request));
        let attempted = async {
            if request.body().size_hint().lower() > self.body_size as u64 {
                return Err(Hit::Large);
            }
            if request.body().is_end_stream() {
                // There is nothing to count.
                let request = request.map(|body| body.map_err(|_| Error::ConnectionTerminated).boxed_unsync());
                return self.attempt(request, &self.places, grpc, &mut span).await;
            }
            let large = CancellationToken::new();
            let request = request.map(|body| self.bounded(body, large.clone()));
            tokio::select! {
                biased;
                // What the component makes of half a body is of no interest.
                () = large.cancelled() => Err(Hit::Large),
                answered = self.attempt(request, &self.places, grpc, &mut span) => answered,
            }
        };
        let (status, response) = match attempted.await {
            Ok(response) => (response.status(), response),
            Err(hit) => {
                self.stats.hit(hit);
                if let Some(span) = &mut span {
                    span.refused(hit, grpc);
                }
                let refusal = Refusal::from(hit);
                // Where gRPC is spoken, a failure is a 200.
                (refusal.status(), refusal.response(grpc))
            }
        };
        self.stats.answered(status, begun.elapsed());
        response
    }

    /// A body that breaks off, and says so, once it is larger than it may be.
    fn bounded(&self, body: Incoming, large: CancellationToken) -> WasiBody {
        let size = self.body_size;
        let failed = move |error: Box<dyn std::error::Error + Send + Sync>| {
            if error.is::<LengthLimitError>() {
                large.cancel();
                return Error::HttpRequestBodySize(Some(size as u64));
            }
            // Whatever broke off the request is the client's doing, and nothing to warn the operator of.
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
        self.attempt(question, places, grpc, &mut None).await
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
        places: &Places,
        grpc: bool,
        span: &mut Option<Span>,
    ) -> Result<Response<Answer>, Hit> {
        let arrived = Instant::now();
        // A caller may wait shorter than the host does, not longer.
        let asked = if grpc { grpc::timeout(request.headers()) } else { None };
        let deadline = asked.and_then(|asked| arrived.checked_add(asked));
        let by = |ours: Instant| deadline.map_or(ours, |theirs| theirs.min(ours));

        let entered = Arc::clone(&places.hall).try_acquire_owned().map_err(|_| Hit::Full)?;
        let within = (self.stats.enter(), self.inside.token());
        let patience = by(arrived + QUEUE_WAIT.min(self.request_timeout));
        let Ok(Ok(turn)) = timeout_at(patience, Arc::clone(&places.room).acquire_owned()).await else {
            let theirs = deadline.is_some_and(|deadline| deadline <= Instant::now());
            return Err(if theirs { self.late(arrived) } else { Hit::Waited });
        };
        if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
            return Err(Hit::NoHost);
        }
        let waiting = Waiting::begin(span.as_ref());
        let begun = Instant::now();
        let end = by(begun + self.request_timeout);
        let answered = timeout_at(end, self.handler.handle(Arc::clone(&waiting.call), request)).await;
        match answered {
            Ok(Ok(response)) => {
                Ok(Answer::component(response, waiting, (entered, turn, within), deadline, span.take()))
            }
            // An instance that is ended for being late fails in more than one way.
            Ok(Err(error)) if error.is::<ExpirationError>() || Instant::now() >= end => Err(self.late(begun)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.late(begun)),
        }
    }

    fn failed(&self, error: &wasmtime::Error) -> Hit {
        if let Some(failed) = error.downcast_ref::<InstantiationError<Arc<Call>>>() {
            if failed.error.is::<PoolConcurrencyLimitError>() {
                return Hit::Waited;
            }
            tracing::warn!(service = %self.name, "the component could not be instantiated: {}", cause(&failed.error));
            return Hit::Instantiation;
        }
        if error.is::<TrapOrPanicError>() {
            tracing::debug!(service = %self.name, "a request ended with its instance");
        } else {
            tracing::warn!(service = %self.name, "the component failed: {}", cause(error));
        }
        Hit::Failed
    }

    fn late(&self, begun: Instant) -> Hit {
        if begun.elapsed() >= self.request_timeout {
            tracing::warn!(service = %self.name, "a request took longer than {:?}", self.request_timeout);
        } else {
            tracing::debug!(service = %self.name, "a request took longer than its caller waits");
        }
        Hit::Late
    }
}

impl From<Hit> for Refusal {
    fn from(hit: Hit) -> Self {
        match hit {
            Hit::Full | Hit::Waited => Self::Busy,
            Hit::NoHost => Self::NoHost,
            Hit::Large => Self::Large,
            Hit::Late => Self::Late,
            Hit::Denied | Hit::Failed | Hit::Instantiation | Hit::Trap | Hit::Fell => Self::Failed,
        }
    }
}
