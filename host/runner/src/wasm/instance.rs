//! The instances that answer the requests of one service: made when needed, reused where that is safe, ended in time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use leasehold::ServiceName;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::{
    CallHook, Store, StoreContextMut, Trap,
    component::{GuestTaskId, ResourceTableError},
    format_err,
};
use wasmtime_wasi_http::{
    FieldMapError, WasiHttpView,
    handler::{HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus},
};

use crate::{
    outbound::callers::Caller,
    rt::timers::{Sleep, Timers},
    telemetry::{request::log_request, service_metrics::Incident},
    wasm::{
        context::{ServiceContext, StoreState},
        engine::Engine,
        in_flight::{InFlightRequest, InFlightRequests, InstanceEnd},
        reuse::Reusable,
        scheduler::{InterruptHandle, Scheduler},
    },
};

/// Said of a request for which there is neither a response nor the end of an instance.
pub(crate) const NO_RESPONSE: &str = "the component returned without a response";

/// Time for which an idle instance is kept for a further request.
const IDLE: Duration = Duration::from_secs(1);

/// Delay of an instance's end after the deadline of its last request, which has its own error.
const GRACE: Duration = Duration::from_millis(100);

/// Factory of instances for `ProxyHandler`.
pub(crate) struct Instances {
    pub(crate) name: ServiceName,
    pub(crate) engine: Engine,
    pub(crate) pre: ProxyPre<StoreState>,
    pub(crate) context: Arc<ServiceContext>,
    pub(crate) request_timeout: Duration,
    pub(crate) stream_timeout: Duration,
    pub(crate) reusable: Arc<Reusable>,
}

impl HandlerState for Instances {
    type StoreData = StoreState;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<StoreState, Expiration, Worker>> {
        let deadline = Instant::now() + self.request_timeout;
        let late = || format_err!("instantiation took longer than {:?}", self.request_timeout);
        let state = timeout_at(deadline.into(), self.context.store_for_requests()).await.map_err(|_| late())?;
        let mut store = self.engine.store(state);
        let interrupt = Arc::clone(&store.data().usage.interrupt).exclusive();
        store.call_hook(move |store, call| {
            let requests = &store.data().requests;
            if matches!(call, CallHook::CallingWasm) {
                requests.idle.on_run();
            }
            // All clients have left: further work is wasted, and writing the response would fail.
            if requests.is_abandoned() && matches!(call, CallHook::CallingWasm | CallHook::ReturningFromHost) {
                requests.set_end(InstanceEnd::Abandoned);
                return Err(format_err!("the instance is abandoned"));
            }
            Ok(())
        });
        let made = self.pre.instantiate_async(&mut store);
        let proxy = Arc::clone(&interrupt).until(sleep_until(deadline.into()), made).await.map_err(|()| late())??;
        let (requests, timers) = (Arc::clone(&store.data().requests), Timers::default());
        Ok(Instance {
            store,
            proxy,
            view: WasiHttpView::http,
            expiration: Expiration {
                stream_timeout: self.stream_timeout,
                sleep: timers.sleep(IDLE),
                replaced: Box::pin(self.context.replaced.clone().cancelled_owned()),
                requests: Arc::clone(&requests),
                interrupt: Arc::clone(&interrupt),
            },
            state: Worker {
                name: self.name.clone(),
                scheduler: self.engine.scheduler(),
                interrupt,
                context: Arc::clone(&self.context),
                reusable: Arc::clone(&self.reusable),
                requests,
                timers,
            },
        })
    }
}

/// End of an instance: it idles too long or belongs to a replaced revision, its last request or response is overdue, or its
/// clients have all left. It is polled outside of the component, so that an endless loop ends as well.
pub(crate) struct Expiration {
    stream_timeout: Duration,
    sleep: Sleep,
    replaced: Pin<Box<WaitForCancellationFutureOwned>>,
    requests: Arc<InFlightRequests>,
    interrupt: Arc<InterruptHandle>,
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        // The component has given its thread back, and is interrupted when the end is due.
        let (interrupt, requests) = (Arc::clone(&self.interrupt), Arc::clone(&self.requests));
        let due = interrupt.poll(cx, |cx| self.as_mut().poll_due(cx, status, start));
        requests.idle.on_yield(cx.waker());
        due
    }
}

impl Expiration {
    fn poll_due(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        if self.requests.poll_abandoned(cx).is_ready() {
            self.requests.set_end(InstanceEnd::Abandoned);
            return Poll::Ready(());
        }
        if matches!(status, WorkerStatus::Idle) && self.replaced.as_mut().poll(cx).is_ready() {
            // The next revision needs its slot.
            return Poll::Ready(());
        }
        let allowed = match status {
            WorkerStatus::Idle => IDLE,
            WorkerStatus::Requests => self.requests.longest() + GRACE,
            WorkerStatus::PostReturn => self.stream_timeout + GRACE,
        };
        self.sleep.reset((start + allowed).into());
        ready!(Pin::new(&mut self.sleep).poll(cx));
        if !matches!(status, WorkerStatus::Idle) {
            self.requests.set_end(InstanceEnd::TimedOut);
        }
        Poll::Ready(())
    }
}

/// Reason for which an instance ended, with the limit that was exceeded.
fn ended(error: &wasmtime::Error, store: &Store<StoreState>) -> String {
    if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
        let most = store.data().table.max_capacity();
        return format!(
            "it keeps more than {most} requests, responses, headers and streams at a time; it has to drop them, or \
             limits.instance_requests has to be smaller"
        );
    }
    match error.downcast_ref() {
        Some(FieldMapError::TotalSizeTooBig) => "it made headers larger than limits.header_size".to_owned(),
        _ => store.data().cause(error),
    }
}

/// One instance as `ProxyHandler` drives it.
pub(crate) struct Worker {
    name: ServiceName,
    scheduler: Arc<Scheduler>,
    interrupt: Arc<InterruptHandle>,
    context: Arc<ServiceContext>,
    reusable: Arc<Reusable>,
    requests: Arc<InFlightRequests>,
    timers: Timers,
}

impl WorkerState for Worker {
    type StoreData = StoreState;
    type RequestData = Arc<InFlightRequest>;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        self.reusable.accepts(concurrent, total)
    }

    fn on_request_start(
        &self,
        mut store: StoreContextMut<'_, StoreState>,
        request: Arc<InFlightRequest>,
        task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        // A whole slice for each request: otherwise a request that comes between two ticks would yield at once.
        let at_once = self.scheduler.on_request(&mut store.data_mut().usage);
        store.set_epoch_deadline(u64::from(!at_once));
        let is_exclusive = self.reusable.is_exclusive();
        request.assign(&self.requests, is_exclusive);
        store.data_mut().outbound.callers.begin(
            task,
            Caller::of(&request.identity, request.deadline.clone()),
            is_exclusive,
        );
        Box::pin(self.timers.sleep(request.within))
    }

    fn drop(&self, store: Store<StoreState>, result: wasmtime::Result<()>) {
        let end = result.as_ref().err().map(|_| self.requests.set_end(InstanceEnd::Failed));
        let summary = self.requests.finish();
        match (result, end) {
            (Ok(()), _) => {
                if let Some(request) = summary.unanswered {
                    log_request!(warn, self.name, request, "{NO_RESPONSE}");
                }
            }
            (Err(error), Some(InstanceEnd::Abandoned)) => {
                // A component that could not respond any more may have panicked.
                let cause = store.data().cause(&error);
                tracing::debug!(service = %self.name, cause, "an instance ended: its client has left");
            }
            (Err(error), _) if self.context.ended.is_cancelled() => drop(store.data().cause(&error)),
            (Err(error), _) => {
                if error.is::<Trap>() {
                    self.context.stats().incident(Incident::Trap);
                    self.context.stats().trapped(summary.open.max(1));
                }
                log_request!(warn, self.name, summary.latest, "an instance ended: {}", ended(&error, &store));
            }
        }
        // Answers that are not whole yet break off here, and then ask how the instance ended. Memory that was written to is
        // given back, which takes long where it is much, and is done on the thread that the instance had.
        drop(store);
        self.interrupt.release();
        self.requests.idle.on_end();
    }
}
