//! Requests in flight: their clients, which may have left, and the end of their instance.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{outbound::callers::CallerDeadline, telemetry::request::RequestIdentity, wasm::idle::IdleDetector};

/// One request, from the queue until its response is sent or its client has left.
#[derive(Default)]
pub(crate) struct InFlightRequest {
    stage: Mutex<Stage>,
    pub(crate) identity: RequestIdentity,
    /// Number of the request among those of its instance, from 1; 0 before an instance has taken it.
    number: AtomicUsize,
    /// Time in the admission queue, in microseconds.
    queued: AtomicU64,
    /// Longest time until its response begins.
    pub(crate) within: Duration,
    pub(crate) deadline: CallerDeadline,
}

#[derive(Default)]
enum Stage {
    /// No instance has taken it yet.
    #[default]
    Queue,
    Instance(Arc<InFlightRequests>),
    /// The client has left.
    Left,
}

/// Requests in flight of one instance.
#[derive(Default)]
pub(crate) struct InFlightRequests {
    state: Mutex<State>,
    /// Mirror of the state for readers without the lock: all clients have left, and at least one early.
    abandoned: AtomicBool,
    waker: AtomicWaker,
    pub(crate) idle: IdleDetector,
}

#[derive(Default)]
struct State {
    open: usize,
    /// A client left before its response was complete; the component may work on it without end.
    abandoned: bool,
    /// Longest time until the response to one of them begins.
    longest: Duration,
    end: Option<InstanceEnd>,
    /// Requests that the instance has taken so far, and the latest of them.
    taken: usize,
    latest: Option<Arc<InFlightRequest>>,
    /// The instance serves one request at a time.
    is_exclusive: bool,
    /// A request at which the component returned without a response, until that is logged.
    unanswered: Option<RequestIdentity>,
    /// The instance has ended, well or not.
    has_finished: bool,
}

/// Summary of an instance that has ended, for the log.
pub(crate) struct InstanceSummary {
    /// A request at which the component returned without a response.
    pub(crate) unanswered: Option<RequestIdentity>,
    /// The latest request, and the number of open ones.
    pub(crate) latest: RequestIdentity,
    pub(crate) open: usize,
}

/// Reason for which an instance ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceEnd {
    TimedOut,
    Failed,
    Abandoned,
}

impl InFlightRequest {
    pub(crate) fn new(identity: RequestIdentity, within: Duration, deadline: CallerDeadline) -> Self {
        Self { identity, within, deadline, ..Self::default() }
    }

    /// Notes the time that the request has spent in the admission queue.
    pub(crate) fn waited(&self, queued: Duration) {
        self.queued.store(u64::try_from(queued.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Time that the request has spent in the admission queue.
    pub(crate) fn queued(&self) -> Duration {
        Duration::from_micros(self.queued.load(Relaxed))
    }

    /// Assigns the request to the instance that has taken it; `is_exclusive` if that serves one request at a time.
    pub(crate) fn assign(self: &Arc<Self>, requests: &Arc<InFlightRequests>, is_exclusive: bool) {
        let mut stage = self.stage.lock();
        match *stage {
            Stage::Left => requests.change(|state| state.abandoned = true),
            _ => {
                requests.change(|state| {
                    state.open += 1;
                    state.taken += 1;
                    state.latest = Some(Arc::clone(self));
                    state.is_exclusive = is_exclusive;
                    state.longest = state.longest.max(self.within);
                    self.number.store(state.taken, Relaxed);
                });
                *stage = Stage::Instance(Arc::clone(requests));
            }
        }
    }

    /// Returns true while its instance works on it and its client waits.
    fn is_open(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Instance(_))
    }

    /// Returns true if its instance had served other requests before.
    pub(crate) fn is_reuse(&self) -> bool {
        self.number.load(Relaxed) > 1
    }

    /// Notes that there is no response, perhaps because of a trap that the instance is about to report. Returns true if the
    /// caller logs this; otherwise the instance does so at its end.
    pub(crate) fn is_unanswered(&self) -> bool {
        let Stage::Instance(requests) = &*self.stage.lock() else { return true };
        let mut state = requests.state.lock();
        if !state.has_finished {
            state.unanswered = Some(self.identity.clone());
        }
        state.has_finished && state.end.is_none()
    }

    /// Reason for which its instance ended early, if it has.
    pub(crate) fn end(&self) -> Option<InstanceEnd> {
        match &*self.stage.lock() {
            Stage::Instance(requests) => requests.state.lock().end,
            _ => None,
        }
    }

    /// Ready when its instance is idle, or computes for too long.
    pub(crate) fn poll_idle(&self, cx: &Context<'_>, until: &mut Option<Instant>) -> Poll<()> {
        match &*self.stage.lock() {
            Stage::Instance(requests) => requests.idle.poll(cx, &requests.waker, until),
            _ => Poll::Ready(()),
        }
    }

    /// The client leaves; `complete` if it has the whole response.
    pub(crate) fn leave(&self, complete: bool) {
        if let Stage::Instance(requests) = mem::replace(&mut *self.stage.lock(), Stage::Left) {
            requests.change(|state| {
                state.open -= 1;
                state.abandoned |= !complete;
            });
        }
    }
}

impl InFlightRequests {
    /// Ready once all clients have left, and at least one early: further work of the instance is wasted.
    pub(crate) fn poll_abandoned(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_abandoned() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns true when all clients have left, and at least one early.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Longest time until the response to one of them begins.
    pub(crate) fn longest(&self) -> Duration {
        self.state.lock().longest
    }

    /// Marks the instance as ended. Its reason was set before.
    pub(crate) fn finish(&self) -> InstanceSummary {
        let mut state = self.state.lock();
        state.has_finished = true;
        let latest = state.latest.take().map(|request| request.identity.clone()).unwrap_or_default();
        InstanceSummary { unanswered: state.unanswered.take(), latest, open: state.open }
    }

    /// The request that the component works on, where that is known: the latest one of an instance that serves one request
    /// at a time, or the only one in flight.
    pub(crate) fn current(&self) -> Option<Arc<InFlightRequest>> {
        let (latest, is_exclusive, is_only) = {
            let state = self.state.lock();
            (state.latest.clone()?, state.is_exclusive, state.open == 1)
        };
        (is_exclusive || (is_only && latest.is_open())).then_some(latest)
    }

    /// Sets the reason of an early end. The first one counts.
    pub(crate) fn set_end(&self, end: InstanceEnd) -> InstanceEnd {
        *self.state.lock().end.get_or_insert(end)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let is_abandoned = {
            let mut state = self.state.lock();
            change(&mut state);
            let is_abandoned = state.abandoned && state.open == 0;
            self.abandoned.store(is_abandoned, Relaxed);
            is_abandoned
        };
        // Nothing else ends the instance, and its task is not woken in vain.
        if is_abandoned {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{InFlightRequest, InFlightRequests, InstanceEnd};

    fn new() -> (Arc<InFlightRequests>, Arc<InFlightRequest>) {
        (Arc::default(), Arc::default())
    }

    #[test]
    fn an_instance_is_abandoned_when_all_clients_have_left_and_one_of_them_early() {
        let ((requests, first), second) = (new(), Arc::<InFlightRequest>::default());
        assert!(!requests.is_abandoned());
        first.assign(&requests, false);
        second.assign(&requests, false);
        first.leave(false);
        assert!(!requests.is_abandoned(), "a client waits");
        second.leave(true);
        assert!(requests.is_abandoned());
    }

    #[test]
    fn an_instance_with_complete_responses_is_not_abandoned() {
        let (requests, request) = new();
        request.assign(&requests, false);
        request.leave(true);
        request.leave(false);
        assert!(!requests.is_abandoned());
    }

    #[test]
    fn a_request_whose_client_left_while_it_was_queued_abandons_the_instance_that_takes_it() {
        let (requests, request) = new();
        request.leave(false);
        request.assign(&requests, false);
        assert!(requests.is_abandoned());
    }

    #[test]
    fn a_request_without_a_response_is_logged_once_however_its_instance_ends() {
        for (ends_first, end, by_instance, by_caller) in [
            (false, None, true, false),
            (true, None, false, true),
            (false, Some(InstanceEnd::Failed), true, false),
            (true, Some(InstanceEnd::Failed), false, false),
        ] {
            let (requests, request) = new();
            request.assign(&requests, false);
            let over = || {
                if let Some(end) = end {
                    requests.set_end(end);
                }
                requests.finish().unanswered.is_some()
            };
            let (caller, instance) = match ends_first {
                true => {
                    let instance = over();
                    (request.is_unanswered(), instance)
                }
                false => (request.is_unanswered(), over()),
            };
            assert_eq!((instance, caller), (by_instance, by_caller), "{ends_first} {end:?}");
        }
    }

    #[test]
    fn the_current_request_is_the_only_one_or_the_latest_of_an_exclusive_instance() {
        let ((requests, first), second) = (new(), Arc::<InFlightRequest>::default());
        let is = |expected: Option<&Arc<InFlightRequest>>| match (requests.current(), expected) {
            (Some(current), Some(expected)) => Arc::ptr_eq(&current, expected),
            (current, expected) => current.is_none() && expected.is_none(),
        };
        assert!(is(None));
        first.assign(&requests, false);
        assert!(is(Some(&first)));
        second.assign(&requests, false);
        assert!(is(None), "either");
        second.leave(true);
        assert!(is(None), "the first is not known to be the only one");
        first.leave(true);
        let third = Arc::<InFlightRequest>::default();
        third.assign(&requests, true);
        third.leave(true);
        assert!(is(Some(&third)), "it may still work on it");
    }

    #[test]
    fn the_first_end_counts() {
        let (requests, request) = new();
        requests.set_end(InstanceEnd::TimedOut);
        assert_eq!(requests.set_end(InstanceEnd::Failed), InstanceEnd::TimedOut);
        assert_eq!(request.end(), None);
        request.assign(&requests, false);
        assert_eq!(request.end(), Some(InstanceEnd::TimedOut));
    }
}
