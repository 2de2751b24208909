//! Callers of outgoing requests: the request that the component answers when it sends one, so that both have one identifier
//! and are in one trace.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry::trace::SpanContext;
use tokio::time::Instant;
use wasmtime::component::GuestTaskId;

use crate::telemetry::{request::RequestIdentity, request_id::RequestId};

/// Part of a request that is passed on with outgoing ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) id: Option<RequestId>,
    pub(crate) span: Option<SpanContext>,
    pub(crate) deadline: CallerDeadline,
}

/// The time that the caller of a request has left, if it said so.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallerDeadline {
    /// Deadline of the response's beginning.
    begin: Option<Arc<Begin>>,
    /// Deadline of the whole response.
    pub(crate) end: Option<Instant>,
}

#[derive(Debug)]
struct Begin {
    at: Instant,
    has_begun: AtomicBool,
}

impl CallerDeadline {
    pub(crate) fn new(begin: Option<Instant>, end: Option<Instant>) -> Self {
        let begin = begin.map(|at| Arc::new(Begin { at, has_begun: AtomicBool::new(false) }));
        Self { begin, end }
    }

    /// Notes that the response has begun.
    pub(crate) fn begun(&self) {
        if let Some(begin) = &self.begin {
            begin.has_begun.store(true, Ordering::Relaxed);
        }
    }

    /// The time until which the response is of use, as it is now.
    pub(crate) fn until(&self) -> Option<Instant> {
        let begin = self.begin.as_ref().filter(|begin| !begin.has_begun.load(Ordering::Relaxed));
        begin.map(|begin| begin.at).into_iter().chain(self.end).min()
    }
}

impl Caller {
    /// `None` for a request of which nothing is passed on.
    pub(crate) fn of(identity: &RequestIdentity, deadline: CallerDeadline) -> Option<Self> {
        let caller = Self { id: identity.id.clone(), span: identity.span.clone(), deadline };
        let has_deadline = caller.deadline.until().is_some();
        (caller.id.is_some() || caller.span.is_some() || has_deadline).then_some(caller)
    }
}

/// The requests of one instance that have something to pass on.
#[derive(Clone, Default)]
pub(crate) struct Callers {
    /// Requests by task, in an instance that serves several at a time. The number of an ended task is reused.
    tasks: HashMap<GuestTaskId, Caller>,
    /// The latest request, in an instance that serves one at a time.
    only: Option<Caller>,
    /// The request of the task that is about to send, if it is known.
    sender: Option<Option<Caller>>,
}

impl Callers {
    /// Notes that a task begins to serve a request.
    pub(crate) fn begin(&mut self, task: GuestTaskId, caller: Option<Caller>, alone: bool) {
        match caller {
            caller if alone => self.only = caller,
            Some(caller) => drop(self.tasks.insert(task, caller)),
            None => drop(self.tasks.remove(&task)),
        }
    }

    /// The request for which one is sent now; `None` if it is unknown.
    pub(crate) fn take(&mut self) -> Option<Caller> {
        // 0.2 does not name the sending task.
        self.sender.take().unwrap_or_else(|| self.only.clone())
    }

    /// Notes the tasks behind the request that is sent next, the innermost first.
    pub(crate) fn sending(&mut self, tasks: &[GuestTaskId]) {
        // The oldest task was given the request.
        self.sender = Some(tasks.iter().rev().find_map(|task| self.tasks.get(task).cloned()));
    }

    /// Returns true if the sending task makes no difference.
    pub(crate) fn are_known(&self) -> bool {
        self.tasks.is_empty()
    }
}
