//! Which request a component answers when it sends one of its own, so that the two are one trace.

use std::collections::HashMap;

use opentelemetry::trace::SpanContext;
use wasmtime::{
    AsContextMut,
    component::{Accessor, GuestTaskId, HasData, Linker, Resource},
};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi_http::{
    WasiHttp, WasiHttpCtxView, WasiHttpView,
    p3::bindings::http::{
        client::{self, HostWithStore},
        types::{ErrorCode, Request, Response},
    },
};

use crate::wasm::context::Host;

/// The requests of one instance that are traced.
#[derive(Clone, Default)]
pub(crate) struct Asked {
    /// By their tasks, whose numbers are given again when they have ended.
    spans: HashMap<GuestTaskId, SpanContext>,
    /// The latest, in an instance that answers one at a time.
    only: Option<SpanContext>,
    /// That of the task that is about to send, where this is said.
    sender: Option<Option<SpanContext>>,
}

impl Asked {
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
}

/// `wasi:http/client` 0.3, which takes down which task sends and then does what it always does.
pub(crate) fn add_client_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    client::add_to_linker::<_, Client>(linker, Host::http)
}

struct Client;

impl HasData for Client {
    type Data<'a> = WasiHttpCtxView<'a>;
}

impl HostWithStore<Host> for Client {
    async fn send(
        store: &Accessor<Host, Self>,
        request: Resource<Request>,
    ) -> Result<Resource<Response>, TrappableError<ErrorCode>> {
        store.with(|mut access| {
            let mut store = access.as_context_mut();
            if store.data().outbound.asked.spans.is_empty() {
                return;
            }
            let tasks: Vec<_> = store.async_call_stack().into_iter().flatten().collect();
            let asked = &mut store.data_mut().outbound.asked;
            // The oldest is the one that was given the request.
            asked.sender = Some(tasks.iter().rev().find_map(|task| asked.spans.get(task).cloned()));
        });
        // The first thing that this does, before it waits for anything, is to take what was taken down.
        WasiHttp::send(&store.with_getter::<WasiHttp>(Host::http), request).await
    }
}
