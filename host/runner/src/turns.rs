//! Whose turn it is to compute. Components that compute for long take turns with one another on all processors but one, each
//! on a thread that nothing else waits for, so that those which answer at once do not wait behind them.

use std::{
    sync::{Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use tokio::{
    task::{block_in_place, spawn_blocking, yield_now},
    time::sleep_until,
};

/// How long a component computes before its neighbours get their turn; also how exact its deadlines are.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// Turns that a request may take until it is one of those that compute for long. The first may be as short as one likes,
/// since it ends at the next tick.
const SHORT: u32 = 1;
/// How long a thread may take to find another one for what it has to do besides.
const HAND_OVER: Duration = Duration::from_millis(1);

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
            match long.flatten() {
                None => yield_now().await,
                Some(begins) => sleep_until(begins.into()).await,
            }
            if long.is_some() {
                hand_over();
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

/// Lets another thread do what this one has to do besides: tasks that are ready, the network and the timers. This one then
/// computes until the end of the turn, and is a thread of the kernel's among others.
fn hand_over() {
    block_in_place(|| {
        // Taking it back is tried for at the end of this block. What is spawned now is begun after the other thread is.
        let (begun, begins) = mpsc::channel();
        drop(spawn_blocking(move || begun.send(())));
        let _ = begins.recv_timeout(HAND_OVER); // Without another thread it goes on as it was.
    });
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
