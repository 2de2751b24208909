//! Trace parents of outgoing requests: the request that the component answers when it sends one, so that both are in one
//! trace.

use std::collections::HashMap;

use opentelemetry::trace::SpanContext;
use wasmtime::component::GuestTaskId;

/// The requests of one instance that are traced.
#[derive(Clone, Default)]
pub(crate) struct TraceParents {
    /// Spans by task. The number of an ended task is reused.
    spans: HashMap<GuestTaskId, SpanContext>,
    /// The latest span, in an instance that serves one request at a time.
    only: Option<SpanContext>,
    /// The span of the task that is about to send, if it is known.
    sender: Option<Option<SpanContext>>,
}

impl TraceParents {
    /// Notes that a task begins to serve a request, which may not be traced.
    pub(crate) fn begin(&mut self, task: GuestTaskId, span: Option<SpanContext>, alone: bool) {
        self.only = span.clone().filter(|_| alone);
        match span {
            Some(span) => self.spans.insert(task, span),
            None => self.spans.remove(&task),
        };
    }

    /// The parent of the request that is sent now; `None` if it is unknown.
    pub(crate) fn take(&mut self) -> Option<SpanContext> {
        // 0.2 does not name the sending task.
        self.sender.take().unwrap_or_else(|| self.only.clone())
    }

    /// Notes the tasks behind the request that is sent next, the innermost first.
    pub(crate) fn sending(&mut self, tasks: &[GuestTaskId]) {
        // The oldest task was given the request.
        self.sender = Some(tasks.iter().rev().find_map(|task| self.spans.get(task).cloned()));
    }

    /// Returns true if no request of the instance is traced.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}
