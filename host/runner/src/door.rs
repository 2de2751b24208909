//! What stands between a request and the component: the queue, the deadline, and what is said when it goes wrong.

use std::{sync::Arc, time::Duration};

use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use leasehold::ServiceName;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::{
    Error,
    handler::{ExpirationError, InstantiationError, ProxyHandler, TrapOrPanicError},
};

use crate::{
    answer::{Answer, Refusal, Waiting},
    call::Call,
    component::cause,
    config::Limits,
    grpc,
    instances::Instances,
    stats::{Hit, Stats},
};

/// How long a request waits for its turn, at most.
const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// The way into one service.
pub(crate) struct Door {
    name: ServiceName,
    handler: ProxyHandler<Instances>,
    request_timeout: Duration,
    stats: Arc<Stats>,
    most: u32,
    /// Requests that are answered or wait.
    hall: Arc<Semaphore>,
    /// Requests that are answered.
    room: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(name: ServiceName, instances: Instances, limits: &Limits) -> Self {
        let most = limits.concurrency.saturating_mul(2);
        Self {
            name,
            stats: Arc::clone(&instances.guest.stats),
            handler: ProxyHandler::new(instances),
            request_timeout: limits.request_timeout,
            most,
            hall: Arc::new(Semaphore::new(most as usize)),
            room: Arc::new(Semaphore::new(limits.concurrency as usize)),
        }
    }

    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Requests that are neither refused nor answered yet, at most.
    pub(crate) fn most_requests(&self) -> u32 {
        self.most
    }

    /// The component's answer, or what is said in its place.
    pub(crate) async fn answer(&self, request: hyper::Request<Incoming>) -> Response<Answer> {
        let begun = Instant::now();
        let grpc = grpc::is_spoken(request.headers());
        let (status, response) = match self.attempt(request, grpc).await {
            Ok(response) => (response.status(), response),
            // Where gRPC is spoken, a failure is a 200.
            Err(refusal) => (refusal.status(), refusal.response(grpc)),
        };
        self.stats.answered(status, begun.elapsed());
        response
    }

    async fn attempt(&self, request: hyper::Request<Incoming>, grpc: bool) -> Result<Response<Answer>, Refusal> {
        let arrived = Instant::now();
        // A caller may wait shorter than the host does, not longer.
        let asked = if grpc { grpc::timeout(request.headers()) } else { None };
        let deadline = asked.and_then(|asked| arrived.checked_add(asked));
        let by = |ours: Instant| deadline.map_or(ours, |theirs| theirs.min(ours));

        let entered = Arc::clone(&self.hall).try_acquire_owned().map_err(|_| self.busy(Hit::Full))?;
        let patience = by(arrived + QUEUE_WAIT.min(self.request_timeout));
        let Ok(Ok(turn)) = timeout_at(patience, Arc::clone(&self.room).acquire_owned()).await else {
            let theirs = deadline.is_some_and(|deadline| deadline <= Instant::now());
            return Err(if theirs { self.late(arrived) } else { self.busy(Hit::Waited) });
        };
        if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
            return Err(Refusal::NoHost);
        }
        let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
        let waiting = Waiting::begin();
        let begun = Instant::now();
        let end = by(begun + self.request_timeout);
        let answered = timeout_at(end, self.handler.handle(Arc::clone(&waiting.call), request)).await;
        match answered {
            Ok(Ok(response)) => Ok(Answer::component(response, waiting, (entered, turn), deadline)),
            // An instance that is ended for being late fails in more than one way.
            Ok(Err(error)) if error.is::<ExpirationError>() || Instant::now() >= end => Err(self.late(begun)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.late(begun)),
        }
    }

    fn failed(&self, error: &wasmtime::Error) -> Refusal {
        if let Some(failed) = error.downcast_ref::<InstantiationError<Arc<Call>>>() {
            if failed.error.is::<PoolConcurrencyLimitError>() {
                return self.busy(Hit::Waited);
            }
            self.stats.hit(Hit::Instantiation);
            tracing::warn!(service = %self.name, "the component could not be instantiated: {}", cause(&failed.error));
        } else if error.is::<TrapOrPanicError>() {
            self.stats.hit(Hit::Failed);
            tracing::debug!(service = %self.name, "a request ended with its instance");
        } else {
            self.stats.hit(Hit::Failed);
            tracing::warn!(service = %self.name, "the component failed: {}", cause(error));
        }
        Refusal::Failed
    }

    fn busy(&self, hit: Hit) -> Refusal {
        self.stats.hit(hit);
        Refusal::Busy
    }

    fn late(&self, begun: Instant) -> Refusal {
        self.stats.hit(Hit::Late);
        if begun.elapsed() >= self.request_timeout {
            tracing::warn!(service = %self.name, "a request took longer than {:?}", self.request_timeout);
        } else {
            tracing::debug!(service = %self.name, "a request took longer than its caller waits");
        }
        Refusal::Late
    }
}
