//! Timers for what nearly always ends in time. Setting one and taking it back goes through a lock that all threads share, so
//! whoever needs one after the other keeps it, set for when it was first needed: it wakes its user once too early, and is put
//! off then.

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

/// As many are kept; the others are taken back.
const MAX_KEPT: usize = 8;

/// The timers of one connection, or of one instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers(Arc<Mutex<Vec<Pin<Box<time::Sleep>>>>>);

/// Waits until its deadline.
#[derive(Debug)]
pub(crate) struct Sleep {
    timers: Timers,
    deadline: Instant,
    /// Set for the deadline at the latest, once something waits for it.
    timer: Option<Pin<Box<time::Sleep>>>,
}

/// It took too long.
#[derive(Debug)]
pub(crate) struct Elapsed;

impl Timers {
    pub(crate) fn sleep(&self, within: Duration) -> Sleep {
        let now = Instant::now();
        // What is as good as for ever for tokio, too.
        self.sleep_until(now.checked_add(within).unwrap_or_else(|| time::sleep(within).deadline()))
    }

    pub(crate) fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { timers: self.clone(), deadline, timer: None }
    }

    /// What is done by then. What is not is dropped.
    pub(crate) async fn timeout_at<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        match select(pin!(work), self.sleep_until(deadline)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(Elapsed),
        }
    }

    /// What these guard is whole after every statement, so a panic elsewhere spoils nothing.
    fn kept(&self) -> MutexGuard<'_, Vec<Pin<Box<time::Sleep>>>> {
        self.0.lock()
    }
}

impl Sleep {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits for another deadline instead.
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
            // What it is to end may have used up the budget of its task, every time.
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

    /// Not before that, and not as late as any other timer of these tests.
    fn assert_waited(begun: Instant, expected: Duration) {
        let waited = begun.elapsed();
        assert!(waited >= expected && waited < expected + FAR / 2, "{waited:?} instead of {expected:?}");
    }

    /// Begins to wait with these, and gives up.
    async fn given_up(timers: &Timers, within: Duration) {
        assert!(poll!(pin!(timers.sleep(within))).is_pending());
    }

    #[tokio::test]
    async fn who_gets_anothers_timer_waits_until_its_own_deadline() {
        for others in [Duration::from_millis(1), SOON, FAR, Duration::MAX] {
            let (timers, begun) = (Timers::default(), Instant::now());
            given_up(&timers, others).await;
            timers.sleep(SOON).await;
            assert_waited(begun, SOON);
            assert_eq!(timers.kept().len(), 1);
        }
    }

    #[tokio::test]
    async fn one_that_has_gone_off_unused_is_set_again() {
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
    async fn what_takes_too_long_is_late_and_what_is_done_is_done() {
        let (timers, begun) = (Timers::default(), Instant::now());
        assert!(matches!(timers.timeout_at(begun + SOON, pending::<()>()).await, Err(Elapsed)));
        assert_waited(begun, SOON);
        // Also when its time is up already.
        assert!(matches!(timers.timeout_at(begun, async { 7 }).await, Ok(7)));
    }
}
