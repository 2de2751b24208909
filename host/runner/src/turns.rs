//! Whose turn it is to compute. Components that compute for long take turns with one another on all threads but one, so
//! that those which answer at once do not wait behind them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::yield_now, time::sleep_until};

/// How long a component computes before its neighbours get their turn; also how exact its deadlines are.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// Turns that a request may take until it is one of those that compute for long.
const SHORT: u32 = 4;

/// The threads that may be at work on long computations, by when each is free again.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<Vec<Instant>>);

impl Turns {
    /// For a runtime with that many threads; at least one computes.
    pub(crate) fn new(threads: usize) -> Self {
        Self(Mutex::new(vec![Instant::now(); threads.saturating_sub(1).max(1)]))
    }

    /// Waits for the next turn of a request that has had so many.
    pub(crate) fn next(&self, taken: u32) -> impl Future<Output = ()> + Send + 'static {
        let begins = if taken <= SHORT { None } else { self.take(Instant::now()) };
        async move {
            match begins {
                None => yield_now().await,
                Some(begins) => sleep_until(begins.into()).await,
            }
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
    fn those_who_compute_share_all_threads_but_one() {
        let (turns, now) = (Turns::new(3), Instant::now() + TURN);
        let begins: Vec<_> = (0..6).map(|_| turns.take(now)).collect();
        assert_eq!(
            begins,
            [None, None, Some(now + TURN), Some(now + TURN), Some(now + TURN * 2), Some(now + TURN * 2)]
        );
    }

    #[test]
    fn one_thread_is_better_than_none() {
        let (turns, now) = (Turns::new(1), Instant::now() + TURN);
        assert_eq!(turns.take(now), None);
        assert_eq!(turns.take(now), Some(now + TURN));
    }
}
