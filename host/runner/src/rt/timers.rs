//! Pooled timers for work that nearly always ends in time. Setting and cancelling a tokio timer takes a lock that all
//! threads share. So a timer is kept, set for its first deadline: it wakes its next user once too early, and is set again
//! then (decision 14).

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::future::{Either, select};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    task::unconstrained,
    time::{self, Instant},
};

/// Timers that are kept, at most; others are cancelled.
const MAX_KEPT: usize = 8;

/// The timers of one connection, or of one instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers(Arc<Mutex<Vec<Pin<Box<time::Sleep>>>>>);

/// Waits until its deadline.
#[derive(Debug)]
pub(crate) struct Sleep {
    timers: Timers,
    deadline: Instant,
    /// A timer set for the deadline or earlier, once the future was polled.
    timer: Option<Pin<Box<time::Sleep>>>,
}

/// The deadline passed.
#[derive(Debug)]
pub(crate) struct Elapsed;

impl Timers {
    pub(crate) fn sleep(&self, within: Duration) -> Sleep {
        let now = Instant::now();
        // A deadline beyond tokio's range is far in the future for tokio, too.
        self.sleep_until(now.checked_add(within).unwrap_or_else(|| time::sleep(within).deadline()))
    }

    pub(crate) fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { timers: self.clone(), deadline, timer: None }
    }

    /// Runs work until a deadline, and drops it then.
    pub(crate) async fn timeout_at<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        match select(pin!(work), self.sleep_until(deadline)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(Elapsed),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Pin<Box<time::Sleep>>>> {
        self.0.lock()
    }
}

impl Sleep {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets another deadline.
    pub(crate) fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let timer = this.timer.get_or_insert_with(|| {
            let kept = this.timers.kept().pop();
            kept.unwrap_or_else(|| Box::pin(time::sleep_until(this.deadline)))
        });
        if timer.deadline() > this.deadline {
            timer.as_mut().reset(this.deadline);
        }
        loop {
            // The work under this deadline may have used up the budget of its task.
            ready!(Pin::new(&mut unconstrained(timer.as_mut())).poll(cx));
            if timer.deadline() >= this.deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(this.deadline);
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(timer) = self.timer.take() else { return };
        let mut kept = self.timers.kept();
        if kept.len() < MAX_KEPT {
            kept.push(timer);
        }
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for Timers {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.sleep(duration))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.sleep_until(deadline.into()))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, new_deadline: std::time::Instant) {
        if let Some(mut sleep) = sleep.as_mut().downcast_mut_pin::<Sleep>() {
            sleep.reset(new_deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::pin, time::Duration};

    use futures::{future::join_all, poll};
    use tokio::time::{Instant, sleep};

    use super::{Elapsed, MAX_KEPT, Timers};

    const SOON: Duration = Duration::from_millis(50);
    const LATER: Duration = Duration::from_millis(150);
    const FAR: Duration = Duration::from_secs(60);

    /// Asserts that the wait was not shorter, and not as long as other timers of these tests.
    fn assert_waited(begun: Instant, expected: Duration) {
        let waited = begun.elapsed();
        assert!(waited >= expected && waited < expected + FAR / 2, "{waited:?} instead of {expected:?}");
    }

    /// Begins a wait, and gives up.
    async fn given_up(timers: &Timers, within: Duration) {
        assert!(poll!(pin!(timers.sleep(within))).is_pending());
    }

    #[tokio::test]
    async fn a_reused_timer_waits_until_its_new_deadline() {
        for others in [Duration::from_millis(1), SOON, FAR, Duration::MAX] {
            let (timers, begun) = (Timers::default(), Instant::now());
            given_up(&timers, others).await;
            timers.sleep(SOON).await;
            assert_waited(begun, SOON);
            assert_eq!(timers.kept().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_timer_that_fired_unused_is_set_again() {
        let timers = Timers::default();
        given_up(&timers, SOON).await;
        sleep(LATER).await;
        let begun = Instant::now();
        timers.sleep(SOON).await;
        assert_waited(begun, SOON);
    }

    #[tokio::test]
    async fn a_deadline_may_be_changed_to_either_side() {
        let timers = Timers::default();
        for (first, second) in [(SOON, LATER), (FAR, SOON)] {
            let begun = Instant::now();
            let mut sleep = timers.sleep(first);
            assert!(poll!(&mut sleep).is_pending());
            sleep.reset(begun + second);
            sleep.await;
            assert_waited(begun, second);
        }
    }

    #[tokio::test]
    async fn several_wait_at_a_time_and_some_of_their_timers_are_kept() {
        let timers = Timers::default();
        for _ in 0..2 {
            let (begun, timers) = (Instant::now(), &timers);
            let waits = (1..=2 * MAX_KEPT as u32).map(|nth| async move {
                timers.sleep(nth * SOON / 4).await;
                assert_waited(begun, nth * SOON / 4);
            });
            join_all(waits).await;
            assert_eq!(timers.kept().len(), MAX_KEPT);
        }
    }

    #[tokio::test]
    async fn work_beyond_its_deadline_is_dropped_and_finished_work_returned() {
        let (timers, begun) = (Timers::default(), Instant::now());
        assert!(matches!(timers.timeout_at(begun + SOON, pending::<()>()).await, Err(Elapsed)));
        assert_waited(begun, SOON);
        // Finished work wins over a deadline in the past.
        assert!(matches!(timers.timeout_at(begun, async { 7 }).await, Ok(7)));
    }
}
