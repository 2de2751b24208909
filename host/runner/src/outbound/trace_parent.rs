//! Which request a component answers when it sends one of its own, so that the two are one trace.

use std::collections::HashMap;

use opentelemetry::trace::SpanContext;
use wasmtime::component::GuestTaskId;

/// The requests of one instance that are traced.
#[derive(Clone, Default)]
pub(crate) struct TraceParents {
    /// By their tasks, whose numbers are given again when they have ended.
    spans: HashMap<GuestTaskId, SpanContext>,
    /// The latest, in an instance that answers one at a time.
    only: Option<SpanContext>,
    /// That of the task that is about to send, where this is said.
    sender: Option<Option<SpanContext>>,
}

impl TraceParents {
    /// A task of the component begins to answer a request, which may not be traced, perhaps beside others.
    pub(crate) fn begin(&mut self, task: GuestTaskId, span: Option<SpanContext>, alone: bool) {
        self.only = span.clone().filter(|_| alone);
        match span {
            Some(span) => self.spans.insert(task, span),
            None => self.spans.remove(&task),
        };
    }

    /// The request behind what is sent now; `None` where it cannot be told for certain.
    pub(crate) fn take(&mut self) -> Option<SpanContext> {
        // 0.2 does not say who sends.
        self.sender.take().unwrap_or_else(|| self.only.clone())
    }

    /// Notes the tasks behind the request that is sent next, the innermost first.
    pub(crate) fn sending(&mut self, tasks: &[GuestTaskId]) {
        // The oldest is the one that was given the request.
        self.sender = Some(tasks.iter().rev().find_map(|task| self.spans.get(task).cloned()));
    }

    /// Returns true if no request of the instance is traced.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}
