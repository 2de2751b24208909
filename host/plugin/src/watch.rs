//! One open watch of a component: the nodes of a service at first, and after each change, for as long as the component reads.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use leasehold::View;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{
    StoreContextMut,
    component::{Destination, StreamProducer, StreamResult},
};

use crate::bindings::v0_2::leasehold::registry::async_discovery::Snapshot;

/// Source of a component's stream. It reads the view when the component reads it, so that nothing is queued.
pub(crate) struct Watch {
    view: View,
    /// Limit and offset of the nodes in one state.
    subset: (usize, u32),
    /// Changes of the view, until the component ends.
    changes: BoxStream<'static, ()>,
    /// The component has not read the state since the last change.
    is_due: bool,
    /// Given back when the watch is closed.
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// A watch of a view that has been read, until `ended`.
    pub(crate) fn new(
        view: View,
        subset: (usize, u32),
        ended: impl Future<Output = ()> + Send + 'static,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let changed = |mut view: View| async move { view.changed().await.ok().map(|()| ((), view)) };
        let changes = stream::unfold(view.fresh(), changed).take_until(ended).boxed();
        Self { view, subset, changes, is_due: true, _permit: permit }
    }

    /// Waits until there is something to read; false at the end.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // All changes so far are one; and the end goes before what is due.
        while let Poll::Ready(change) = self.changes.poll_next_unpin(cx) {
            match change {
                Some(()) => self.is_due = true,
                None => return Poll::Ready(false),
            }
        }
        if self.is_due { Poll::Ready(true) } else { Poll::Pending }
    }

    fn read(&mut self) -> Snapshot {
        self.is_due = false;
        let is_current = self.view.error().is_none();
        let (nodes, (limit, offset)) = (self.view.nodes(), self.subset);
        Snapshot {
            nodes: nodes.subset(limit, offset).map(Into::into).collect(),
            total: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            is_current,
        }
    }
}

impl<D> StreamProducer<D> for Watch {
    type Item = Snapshot;
    type Buffer = Option<Snapshot>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Snapshot, Option<Snapshot>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let due = self.poll_due(cx);
        if due.is_pending() && finish {
            return Poll::Ready(Ok(StreamResult::Cancelled));
        }
        if !ready!(due) {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        // A read of no length waits until there is something to read, and takes nothing.
        if destination.remaining(store) != Some(0) {
            let snapshot = self.read();
            destination.set_buffer(Some(snapshot));
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
