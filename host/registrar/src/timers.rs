//! Deadlines of calls, kept by the timers of the registrar's own thread: a caller needs no runtime, nor one with timers.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

/// Stands for a time that cannot be added to the clock.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The timers of a registrar; none without a runtime, or once it ends.
#[derive(Debug, Default)]
pub(crate) struct Timers(Mutex<Option<Handle>>);

/// Guard of a runtime whose timers are in use: nothing polls them any more once it is dropped, since a timer panics that is
/// polled after its runtime.
#[derive(Debug)]
pub(crate) struct RunningTimers(Arc<Timers>);

impl Timers {
    /// The timers of the current runtime.
    pub(crate) fn current() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Handle::current()))))
    }

    /// Lets the timers go as long as the guard lives, which has to be dropped before their runtime.
    pub(crate) fn while_running(self: &Arc<Self>) -> RunningTimers {
        RunningTimers(Arc::clone(self))
    }

    /// Waits for `call` as long as `limit`; `None` if that passes.
    pub(crate) async fn timeout<T>(&self, limit: Duration, call: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        // A limit without end is none.
        let far = || Instant::now() + FAR;
        self.timeout_at(Instant::now().checked_add(limit).unwrap_or_else(far), call).await
    }

    /// Waits for `call` until `deadline`; `None` if it passes.
    ///
    /// Once the runtime has ended, no deadline passes: calls to its tasks end with them.
    pub(crate) async fn timeout_at<T>(
        &self,
        deadline: Instant,
        mut call: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        let mut sleep = pin!(self.sleep_until(deadline).map(unconstrained));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            let running = self.0.lock();
            match sleep.as_mut().as_pin_mut() {
                Some(sleep) if running.is_some() => sleep.poll(cx).map(|()| None),
                _ => Poll::Pending,
            }
        })
        .await
    }

    fn sleep_until(&self, deadline: Instant) -> Option<Sleep> {
        let running = self.0.lock();
        let _entered = running.as_ref()?.enter();
        Some(sleep_until(deadline))
    }
}

impl Drop for RunningTimers {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        pin::pin,
        task::Poll,
        time::Duration,
    };

    use futures::{executor::block_on, poll};
    use tokio::time::Instant;

    use super::Timers;

    /// Timers of a thread that ends once `end` is called.
    fn on_a_thread() -> (std::sync::Arc<Timers>, impl FnOnce()) {
        let (send, timers) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let timers = runtime.block_on(async { Timers::current() });
            let _running = timers.while_running();
            send.send(timers).unwrap();
            runtime.block_on(ended).unwrap();
        });
        (timers.recv().unwrap(), move || {
            end.send(()).unwrap();
            thread.join().unwrap();
        })
    }

    #[test]
    fn a_deadline_passes_without_a_runtime_of_the_caller() {
        let (timers, end) = on_a_thread();
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(block_on(timers.timeout_at(soon, pin!(pending::<()>()))), None);
        assert!(soon.elapsed() < Duration::from_secs(5));
        assert_eq!(block_on(timers.timeout_at(soon, pin!(ready(7)))), Some(7), "what is there is not late");
        end();
    }

    #[test]
    fn a_call_that_outlives_the_runtime_does_not_panic() {
        let (timers, end) = on_a_thread();
        let soon = Instant::now() + Duration::from_millis(20);
        let mut is_ready = false;
        // The second poll finds the runtime gone, and its timers with it.
        let mut late = pin!(poll_fn(|_| match std::mem::replace(&mut is_ready, true) {
            true => Poll::Ready(7),
            false => Poll::Pending,
        }));
        let (mut never, mut never_either) = (pin!(pending::<()>()), pin!(pending::<()>()));
        block_on(async {
            let mut waiting = pin!(timers.timeout_at(soon, never.as_mut()));
            let mut timed = pin!(timers.timeout_at(soon, late.as_mut()));
            assert!(poll!(&mut waiting).is_pending() && poll!(&mut timed).is_pending());
            end();
            assert!(poll!(&mut waiting).is_pending(), "no deadline passes any more");
            assert_eq!(timed.await, Some(7));
            let mut begun_late = pin!(timers.timeout_at(soon, never_either.as_mut()));
            assert!(poll!(&mut begun_late).is_pending());
        });
    }
}
