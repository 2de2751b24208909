//! One open watch of a component: the nodes of a service at first, and after each change, for as long as the component reads.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use leasehold::View;
use parking_lot::Mutex;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use wasmtime::{
    StoreContextMut,
    component::{Destination, StreamProducer, StreamResult},
};

use crate::bindings::v0_2::leasehold::registry::async_discovery::Snapshot;

/// Time between two states that the watches of one component hand over. After a change, all of them are due at once, and wasmtime
/// copies each state into the component only after it has taken those of all watches: the host would hold all of them.
const PAUSE: Duration = Duration::from_millis(1);

/// The pace of the watches of one component.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Takes the next turn if it has come; otherwise returns the time at which it may.
    fn take(&self, now: Instant) -> Result<(), Instant> {
        let mut next = self.0.lock();
        match *next {
            Some(at) if at > now => Err(at),
            _ => {
                *next = Some(now + PAUSE);
                Ok(())
            }
        }
    }
}

/// Source of a component's stream. It reads the view when the component reads it, so that nothing is queued.
pub(crate) struct Watch {
    view: View,
    /// Limit and offset of the nodes in one state.
    subset: (usize, u32),
    /// Changes of the view, until the component ends.
    changes: BoxStream<'static, ()>,
    /// The component has not read the state since the last change.
    is_due: bool,
    pace: Arc<Pace>,
    /// Ends at the time at which the next turn may come.
    waiting: Option<Pin<Box<Sleep>>>,
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
        pace: Arc<Pace>,
    ) -> Self {
        let changed = |mut view: View| async move { view.changed().await.ok().map(|()| ((), view)) };
        let changes = stream::unfold(view.fresh(), changed).take_until(ended).boxed();
        Self { view, subset, changes, is_due: true, pace, waiting: None, _permit: permit }
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

    /// Waits until the component's other watches have handed over what they had.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
            }
            match self.pace.take(Instant::now()) {
                Ok(()) => {
                    self.waiting = None;
                    return Poll::Ready(());
                }
                Err(at) => self.waiting = Some(Box::pin(sleep_until(at))),
            }
        }
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
            if self.poll_turn(cx).is_pending() {
                return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
            }
            let snapshot = self.read();
            destination.set_buffer(Some(snapshot));
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{PAUSE, Pace};

    #[test]
    fn turns_are_a_pause_apart_and_none_is_saved_up() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.take(now), Ok(()));
        assert_eq!(pace.take(now), Err(now + PAUSE));
        let later = now + Duration::from_secs(9);
        assert_eq!(pace.take(later), Ok(()));
        assert_eq!(pace.take(later), Err(later + PAUSE));
    }
}
