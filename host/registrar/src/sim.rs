//! A host whose tasks stand still while time goes on, as those of a process that was sent SIGSTOP: for simulations.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Poll, Waker},
};

use parking_lot::Mutex;

/// Suspension of the tasks of one registrar.
#[derive(Debug, Clone, Default)]
pub(crate) struct Suspension(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    suspended: bool,
    /// Those that were woken meanwhile.
    woken: Vec<Waker>,
}

impl Suspension {
    /// Suspends, or lets everything go on.
    pub(crate) fn set(&self, suspended: bool) {
        let mut held = self.0.lock();
        held.suspended = suspended;
        if !suspended {
            held.woken.drain(..).for_each(Waker::wake);
        }
    }

    /// The task, under this suspension.
    pub(crate) async fn hold<F: Future>(self, task: F) -> F::Output {
        let mut task = pin!(task);
        poll_fn(|cx| {
            let mut held = self.0.lock();
            if held.suspended {
                held.woken.push(cx.waker().clone());
                return Poll::Pending;
            }
            drop(held);
            task.as_mut().poll(cx)
        })
        .await
    }
}
