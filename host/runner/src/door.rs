//! What stands between a request and the component: the queue, the deadline, and what is said when it goes wrong.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use leasehold::ServiceName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi_http::{
    Error, WasiBody,
    handler::{ExpirationError, InstantiationError, ProxyHandler, TrapOrPanicError},
};

use crate::{
    component::cause,
    config::Limits,
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

    /// The component's answer, or what is said in its place: a status and a sentence that tells nothing of the host.
    pub(crate) async fn answer(&self, request: hyper::Request<Incoming>) -> Response<Answer> {
        let begun = Instant::now();
        let response = self.turn(request).await;
        self.stats.answered(response.status(), begun.elapsed());
        response
    }

    async fn turn(&self, request: hyper::Request<Incoming>) -> Response<Answer> {
        let Ok(entered) = Arc::clone(&self.hall).try_acquire_owned() else { return self.busy(Hit::Full) };
        let wait = QUEUE_WAIT.min(self.request_timeout);
        let Ok(Ok(turn)) = timeout(wait, Arc::clone(&self.room).acquire_owned()).await else {
            return self.busy(Hit::Waited);
        };
        if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
            return plain(StatusCode::BAD_REQUEST, "the request names no host\n");
        }
        let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
        let begun = Instant::now();
        match timeout(self.request_timeout, self.handler.handle((), request)).await {
            Ok(Ok(response)) => response.map(|body| Answer { body, _permits: Some((entered, turn)) }),
            Ok(Err(error)) => self.failed(&error, begun.elapsed()),
            Err(_) => self.late(),
        }
    }

    fn failed(&self, error: &wasmtime::Error, after: Duration) -> Response<Answer> {
        // An instance that is ended for being late fails in more than one way.
        if error.is::<ExpirationError>() || after >= self.request_timeout {
            return self.late();
        }
        if let Some(failed) = error.downcast_ref::<InstantiationError<()>>() {
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
        plain(StatusCode::INTERNAL_SERVER_ERROR, "the service failed\n")
    }

    fn busy(&self, hit: Hit) -> Response<Answer> {
        self.stats.hit(hit);
        let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "the service is busy\n");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    fn late(&self) -> Response<Answer> {
        self.stats.hit(Hit::Late);
        tracing::warn!(service = %self.name, "a request took longer than {:?}", self.request_timeout);
        plain(StatusCode::GATEWAY_TIMEOUT, "the service took too long\n")
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Answer> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(Answer { body, _permits: None });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer's body, which holds its place in the room until it has been sent.
pub(crate) struct Answer {
    body: WasiBody,
    _permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
