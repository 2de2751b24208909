//! A request on its way through an instance: whether somebody still waits for its answer, and how the instance ended.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use opentelemetry::trace::SpanContext;

use crate::wasm::idle::Rest;

/// One request, from the queue until its answer has been sent or nobody wants it any more.
#[derive(Default)]
pub(crate) struct Call {
    place: Mutex<Place>,
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
    waker: AtomicWaker,
    pub(crate) rest: Rest,
}

#[derive(Default)]
struct State {
    open: usize,
    /// Somebody left before the answer was whole; the component may be at work on it for ever.
    abandoned: bool,
    /// How long one of them may take to be answered, at most.
    longest: Duration,
    end: Option<End>,
}

/// How an instance ended that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Late,
    Failed,
    Abandoned,
}

impl Call {
    pub(crate) fn new(within: Duration, span: Option<SpanContext>) -> Self {
        Self { place: Mutex::default(), within, span }
    }

    /// An instance has taken the request.
    pub(crate) fn enter(&self, calls: &Arc<Calls>) {
        let mut place = locked(&self.place);
        match *place {
            Place::Left => calls.change(|state| state.abandoned = true),
            _ => {
                calls.change(|state| {
                    state.open += 1;
                    state.longest = state.longest.max(self.within);
                });
                *place = Place::Instance(Arc::clone(calls));
            }
        }
    }

    /// How the instance ended, if it has, and not well.
    pub(crate) fn end(&self) -> Option<End> {
        match &*locked(&self.place) {
            Place::Instance(calls) => locked(&calls.state).end,
            _ => None,
        }
    }

    /// Ready when its instance has said what it has to say for now, or takes too long.
    pub(crate) fn poll_rest(&self, cx: &Context<'_>, until: &mut Option<Instant>) -> Poll<()> {
        match &*locked(&self.place) {
            Place::Instance(calls) => calls.rest.poll(cx, &calls.waker, until),
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

    fn is_abandoned(&self) -> bool {
        let state = locked(&self.state);
        state.abandoned && state.open == 0
    }

    /// How long one of them may take to be answered, at most.
    pub(crate) fn longest(&self) -> Duration {
        locked(&self.state).longest
    }

    /// The instance has ended. Of several words on how, the first counts.
    pub(crate) fn ended(&self, end: End) -> End {
        *locked(&self.state).end.get_or_insert(end)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
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

    use super::{Call, Calls, End};

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
    fn the_first_end_counts() {
        let (calls, call) = (Arc::new(Calls::default()), Call::default());
        calls.ended(End::Late);
        assert_eq!(calls.ended(End::Failed), End::Late);
        assert_eq!(call.end(), None);
        call.enter(&calls);
        assert_eq!(call.end(), Some(End::Late));
    }
}
