//! A request on its way through an instance: whether somebody still waits for its answer, and how the instance ended.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use http::{Method, Request, Uri};
use opentelemetry::trace::SpanContext;

use crate::{error::shown, wasm::scheduler::IdleDetector};

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

/// One request, from the queue until its answer has been sent or nobody wants it any more.
#[derive(Default)]
pub(crate) struct Call {
    place: Mutex<Place>,
    pub(crate) line: RequestLine,
    /// Number of the request among those of its instance, from 1; 0 before an instance has taken it.
    number: AtomicUsize,
    /// How long its answer may take to begin.
    pub(crate) within: Duration,
    /// Its span, where requests are traced.
    pub(crate) span: Option<SpanContext>,
}

#[derive(Default)]
enum Place {
    /// No instance has taken it yet.
    #[default]
    Queue,
    Instance(Arc<Calls>),
    /// Nobody waits for it.
    Left,
}

/// The calls of one instance.
#[derive(Default)]
pub(crate) struct Calls {
    state: Mutex<State>,
    /// Mirror of the state for readers without the lock: all clients have left, and at least one early.
    abandoned: AtomicBool,
    waker: AtomicWaker,
    pub(crate) idle: IdleDetector,
}

#[derive(Default)]
struct State {
    open: usize,
    /// Somebody left before the answer was whole; the component may be at work on it for ever.
    abandoned: bool,
    /// How long one of them may take to be answered, at most.
    longest: Duration,
    end: Option<End>,
    /// Requests that the instance has taken so far, and the latest of them.
    taken: usize,
    latest: RequestLine,
    /// A request at which the component returned without a response, until that is logged.
    unanswered: Option<RequestLine>,
    /// The instance has ended, well or not.
    is_over: bool,
}

/// What there is to log when an instance has ended.
pub(crate) struct Over {
    /// A request at which the component returned without a response.
    pub(crate) unanswered: Option<RequestLine>,
    /// The latest request, and how many were open.
    pub(crate) latest: RequestLine,
    pub(crate) open: usize,
}

/// How an instance ended that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Late,
    Failed,
    Abandoned,
}

impl Call {
    pub(crate) fn new(line: RequestLine, within: Duration, span: Option<SpanContext>) -> Self {
        Self { line, within, span, ..Self::default() }
    }

    /// An instance has taken the request.
    pub(crate) fn enter(&self, calls: &Arc<Calls>) {
        let mut place = locked(&self.place);
        match *place {
            Place::Left => calls.change(|state| state.abandoned = true),
            _ => {
                calls.change(|state| {
                    state.open += 1;
                    state.taken += 1;
                    state.latest = self.line.clone();
                    state.longest = state.longest.max(self.within);
                    self.number.store(state.taken, Relaxed);
                });
                *place = Place::Instance(Arc::clone(calls));
            }
        }
    }

    /// Whether its instance had answered others before it.
    pub(crate) fn is_reuse(&self) -> bool {
        self.number.load(Relaxed) > 1
    }

    /// There is no response, and that may be for a trap, which the instance is about to tell of. Returns whether it is the
    /// caller who logs this; otherwise the instance does so when it ends.
    pub(crate) fn is_unanswered(&self) -> bool {
        let Place::Instance(calls) = &*locked(&self.place) else { return true };
        let mut state = locked(&calls.state);
        if !state.is_over {
            state.unanswered = Some(self.line.clone());
        }
        state.is_over && state.end.is_none()
    }

    /// How the instance ended, if it has, and not well.
    pub(crate) fn end(&self) -> Option<End> {
        match &*locked(&self.place) {
            Place::Instance(calls) => locked(&calls.state).end,
            _ => None,
        }
    }

    /// Ready when its instance is idle, or has run for so long that output is sent anyway.
    pub(crate) fn poll_idle(&self, cx: &Context<'_>, until: &mut Option<Instant>) -> Poll<()> {
        match &*locked(&self.place) {
            Place::Instance(calls) => calls.idle.poll(cx, &calls.waker, until),
            _ => Poll::Ready(()),
        }
    }

    /// Nobody waits any more; `whole` when that is because all of the answer has come.
    pub(crate) fn leave(&self, whole: bool) {
        if let Place::Instance(calls) = mem::replace(&mut *locked(&self.place), Place::Left) {
            calls.change(|state| {
                state.open -= 1;
                state.abandoned |= !whole;
            });
        }
    }
}

impl Calls {
    /// Ready once everybody has left and somebody did so early: what goes on in the instance is for nobody.
    pub(crate) fn poll_abandoned(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_abandoned() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns true when all clients have left, and at least one early.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// How long one of them may take to be answered, at most.
    pub(crate) fn longest(&self) -> Duration {
        locked(&self.state).longest
    }

    /// The instance is over. What is to be said of how it ended was said before.
    pub(crate) fn over(&self) -> Over {
        let mut state = locked(&self.state);
        state.is_over = true;
        Over { unanswered: state.unanswered.take(), latest: state.latest.clone(), open: state.open }
    }

    /// The instance has ended. Of several words on how, the first counts.
    pub(crate) fn ended(&self, end: End) -> End {
        *locked(&self.state).end.get_or_insert(end)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = locked(&self.state);
        change(&mut state);
        self.abandoned.store(state.abandoned && state.open == 0, Relaxed);
        drop(state);
        self.waker.wake();
    }
}

/// What these locks guard is whole after every statement, so a panic elsewhere spoils nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::{Call, Calls, End, RequestLine};

    #[test]
    fn a_request_is_logged_without_its_query_and_cut() {
        let line = |uri: &str| RequestLine::of(&Request::post(uri).body(()).unwrap()).to_string();
        assert_eq!(line("http://here/a/b?secret=1"), "POST /a/b");
        assert_eq!(line(&format!("/{}", "a".repeat(300))), format!("POST /{}...", "a".repeat(255)));
    }

    #[test]
    fn an_instance_is_abandoned_when_all_have_left_and_one_of_them_early() {
        let (calls, first, second) = (Arc::new(Calls::default()), Call::default(), Call::default());
        assert!(!calls.is_abandoned());
        first.enter(&calls);
        second.enter(&calls);
        first.leave(false);
        assert!(!calls.is_abandoned(), "somebody waits");
        second.leave(true);
        assert!(calls.is_abandoned());
    }

    #[test]
    fn an_instance_whose_answers_were_whole_is_not_abandoned() {
        let (calls, call) = (Arc::new(Calls::default()), Call::default());
        call.enter(&calls);
        call.leave(true);
        call.leave(false);
        assert!(!calls.is_abandoned());
    }

    #[test]
    fn a_request_whose_client_left_while_it_was_queued_abandons_the_instance_that_takes_it() {
        let (calls, call) = (Arc::new(Calls::default()), Call::default());
        call.leave(false);
        call.enter(&calls);
        assert!(calls.is_abandoned());
    }

    #[test]
    fn a_request_without_a_response_is_logged_once_however_its_instance_ends() {
        for (ends_first, end, by_instance, by_caller) in [
            (false, None, true, false),
            (true, None, false, true),
            (false, Some(End::Failed), true, false),
            (true, Some(End::Failed), false, false),
        ] {
            let (calls, call) = (Arc::new(Calls::default()), Call::default());
            call.enter(&calls);
            let over = || {
                if let Some(end) = end {
                    calls.ended(end);
                }
                calls.over().unanswered.is_some()
            };
            let (caller, instance) = match ends_first {
                true => {
                    let instance = over();
                    (call.is_unanswered(), instance)
                }
                false => (call.is_unanswered(), over()),
            };
            assert_eq!((instance, caller), (by_instance, by_caller), "{ends_first} {end:?}");
        }
    }

    #[test]
    fn the_first_end_counts() {
        let (calls, call) = (Arc::new(Calls::default()), Call::default());
        calls.ended(End::Late);
        assert_eq!(calls.ended(End::Failed), End::Late);
        assert_eq!(call.end(), None);
        call.enter(&calls);
        assert_eq!(call.end(), Some(End::Late));
    }
}
