//! Whose turn it is to compute. Components that compute for long take turns with one another on all processors but one, so
//! that those which answer at once do not wait behind them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    task::{spawn_blocking, yield_now},
    time::sleep_until,
};

/// How long a component computes before its neighbours get their turn; also how exact its deadlines are.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// Turns that a request may take until it is one of those that compute for long.
const SHORT: u32 = 4;

/// The processors that may be at work on long computations, by when each is free again.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<Vec<Instant>>);

impl Turns {
    /// For that many processors; at least one computes.
    pub(crate) fn new(cores: usize) -> Self {
        Self(Mutex::new(vec![Instant::now(); cores.saturating_sub(1).max(1)]))
    }

    /// Waits for the next turn of a request that has had so many.
    pub(crate) fn next(&self, taken: u32) -> impl Future<Output = ()> + Send + 'static {
        let long = (taken > SHORT).then(|| self.take(Instant::now()));
        async move {
            let Some(begins) = long else { return yield_now().await };
            match begins {
                None => yield_now().await,
                Some(begins) => sleep_until(begins.into()).await,
            }
            // A task that comes from outside of the runtime wakes another thread, which then looks after the network and
            // the timers. Otherwise nobody might until the turn is over.
            let runtime = Handle::current();
            drop(spawn_blocking(move || runtime.spawn(async {})));
        }
    }

    /// When the turn begins; at once where it says nothing. A turn that is taken by nobody in the end is lost.
    fn take(&self, now: Instant) -> Option<Instant> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = free.iter_mut().min()?;
        let begins = now.max(*first);
        *first = begins + TURN;
        (begins > now).then_some(begins)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{TURN, Turns};

    #[test]
    fn who_computes_alone_never_waits() {
        let (turns, begun) = (Turns::new(2), Instant::now() + TURN);
        for turn in 0..5 {
            assert_eq!(turns.take(begun + TURN * turn), None);
        }
    }

    #[test]
    fn those_who_compute_share_all_processors_but_one() {
        let (turns, now) = (Turns::new(3), Instant::now() + TURN);
        let begins: Vec<_> = (0..6).map(|_| turns.take(now)).collect();
        assert_eq!(
            begins,
            [None, None, Some(now + TURN), Some(now + TURN), Some(now + TURN * 2), Some(now + TURN * 2)]
        );
    }

    #[test]
    fn one_processor_is_better_than_none() {
        let (turns, now) = (Turns::new(1), Instant::now() + TURN);
        assert_eq!(turns.take(now), None);
        assert_eq!(turns.take(now), Some(now + TURN));
    }
}
