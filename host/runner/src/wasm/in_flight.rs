//! Requests in flight: their clients, which may have left, and the end of their instance.

use std::{
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use http::{Method, Request, Uri};
use opentelemetry::trace::SpanContext;
use parking_lot::Mutex;

use crate::{error::shown, wasm::idle::IdleDetector};

/// Method and path of a request, for the log.
#[derive(Debug, Default, Clone)]
pub(crate) struct RequestLine {
    method: Method,
    uri: Uri,
}

/// Longest part of a path that is logged.
const MAX_PATH: usize = 256;

impl RequestLine {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone() }
    }
}

/// Without the query, which may hold a secret.
impl fmt::Display for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.uri.path();
        let cut = path.floor_char_boundary(MAX_PATH);
        let more = if cut < path.len() { "..." } else { "" };
        write!(f, "{} {}{more}", self.method, shown(&path[..cut]))
    }
}

/// One request, from the queue until its response is sent or its client has left.
#[derive(Default)]
pub(crate) struct InFlightRequest {
    stage: Mutex<Stage>,
    pub(crate) line: RequestLine,
    /// Number of the request among those of its instance, from 1; 0 before an instance has taken it.
    number: AtomicUsize,
    /// Longest time until its response begins.
    pub(crate) within: Duration,
    /// Its span, if the request is traced.
    pub(crate) span: Option<SpanContext>,
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
    latest: RequestLine,
    /// A request at which the component returned without a response, until that is logged.
    unanswered: Option<RequestLine>,
    /// The instance has ended, well or not.
    has_finished: bool,
}

/// Summary of an instance that has ended, for the log.
pub(crate) struct InstanceSummary {
    /// A request at which the component returned without a response.
    pub(crate) unanswered: Option<RequestLine>,
    /// The latest request, and the number of open ones.
    pub(crate) latest: RequestLine,
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
    pub(crate) fn new(line: RequestLine, within: Duration, span: Option<SpanContext>) -> Self {
        Self { line, within, span, ..Self::default() }
    }

    /// Assigns the request to the instance that has taken it.
    pub(crate) fn assign(&self, requests: &Arc<InFlightRequests>) {
        let mut stage = self.stage.lock();
        match *stage {
            Stage::Left => requests.change(|state| state.abandoned = true),
            _ => {
                requests.change(|state| {
                    state.open += 1;
                    state.taken += 1;
                    state.latest = self.line.clone();
                    state.longest = state.longest.max(self.within);
                    self.number.store(state.taken, Relaxed);
                });
                *stage = Stage::Instance(Arc::clone(requests));
            }
        }
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
            state.unanswered = Some(self.line.clone());
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
        InstanceSummary { unanswered: state.unanswered.take(), latest: state.latest.clone(), open: state.open }
    }

    /// Sets the reason of an early end. The first one counts.
    pub(crate) fn set_end(&self, end: InstanceEnd) -> InstanceEnd {
        *self.state.lock().end.get_or_insert(end)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.abandoned.store(state.abandoned && state.open == 0, Relaxed);
        drop(state);
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::{InFlightRequest, InFlightRequests, InstanceEnd, RequestLine};

    #[test]
    fn a_request_is_logged_without_its_query_and_cut() {
        let line = |uri: &str| RequestLine::of(&Request::post(uri).body(()).unwrap()).to_string();
        assert_eq!(line("http://here/a/b?secret=1"), "POST /a/b");
        assert_eq!(line(&format!("/{}", "a".repeat(300))), format!("POST /{}...", "a".repeat(255)));
    }

    #[test]
    fn an_instance_is_abandoned_when_all_clients_have_left_and_one_of_them_early() {
        let (requests, first, second) =
            (Arc::new(InFlightRequests::default()), InFlightRequest::default(), InFlightRequest::default());
        assert!(!requests.is_abandoned());
        first.assign(&requests);
        second.assign(&requests);
        first.leave(false);
        assert!(!requests.is_abandoned(), "a client waits");
        second.leave(true);
        assert!(requests.is_abandoned());
    }

    #[test]
    fn an_instance_with_complete_responses_is_not_abandoned() {
        let (requests, request) = (Arc::new(InFlightRequests::default()), InFlightRequest::default());
        request.assign(&requests);
        request.leave(true);
        request.leave(false);
        assert!(!requests.is_abandoned());
    }

    #[test]
    fn a_request_whose_client_left_while_it_was_queued_abandons_the_instance_that_takes_it() {
        let (requests, request) = (Arc::new(InFlightRequests::default()), InFlightRequest::default());
        request.leave(false);
        request.assign(&requests);
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
            let (requests, request) = (Arc::new(InFlightRequests::default()), InFlightRequest::default());
            request.assign(&requests);
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
    fn the_first_end_counts() {
        let (requests, request) = (Arc::new(InFlightRequests::default()), InFlightRequest::default());
        requests.set_end(InstanceEnd::TimedOut);
        assert_eq!(requests.set_end(InstanceEnd::Failed), InstanceEnd::TimedOut);
        assert_eq!(request.end(), None);
        request.assign(&requests);
        assert_eq!(request.end(), Some(InstanceEnd::TimedOut));
    }
}
