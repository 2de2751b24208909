//! Whose turn it is to compute. Components that compute for long take turns with one another on all processors but one, each
//! on a thread that nothing else waits for, so that those which answer at once do not wait behind them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{
    task::{block_in_place, spawn_blocking, yield_now},
    time::sleep_until,
};

/// How long a component computes before its neighbours get their turn; also how exact its deadlines are.
pub(crate) const TURN: Duration = Duration::from_millis(5);

/// What a turn counts that was computed through; one of waiting takes one back. So a request that waits for others time and
/// again, and finds a tick by chance now and then, is none of those that compute for long, and one that computes, and has to
/// wait for the processor half of the time, is.
const WHOLE: u32 = 2;
/// Up to here a request is short: two whole turns, of which the first may be as short as one likes.
const SHORT: u32 = 2 * WHOLE;
/// As much is remembered.
const MOST: u32 = 4 * WHOLE;
/// A component that computes finds its turn over so soon after the tick. One that waited meanwhile finds that at any time.
const AT_ONCE: Duration = Duration::from_micros(250);
/// How long a thread may take to find another one for what it has to do besides.
const HAND_OVER: Duration = Duration::from_millis(1);

/// The ticks that end turns, and the processors that may be at work on long computations.
#[derive(Debug)]
pub(crate) struct Turns {
    begun: Instant,
    /// The latest tick, in nanoseconds since then.
    tick: AtomicU64,
    /// When each of the processors is free again.
    free: Mutex<Vec<Instant>>,
}

impl Turns {
    /// For that many processors; at least one computes.
    pub(crate) fn new(cores: usize) -> Self {
        let begun = Instant::now();
        Self { begun, tick: AtomicU64::new(0), free: Mutex::new(vec![begun; cores.saturating_sub(1).max(1)]) }
    }

    /// All turns end now.
    pub(crate) fn tick(&self) {
        self.tick.store(self.elapsed(), Ordering::Relaxed);
    }

    /// Waits for the next turn of a request, of which it is remembered how much it `computed`.
    pub(crate) fn next(&self, computed: &mut u32) -> impl Future<Output = ()> + Send + 'static {
        let late = Duration::from_nanos(self.elapsed().saturating_sub(self.tick.load(Ordering::Relaxed)));
        *computed = after(*computed, late <= AT_ONCE);
        let long = (*computed > SHORT).then(|| self.take(Instant::now()));
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

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the turn begins; at once where it says nothing. A turn that is taken by nobody in the end is lost.
    fn take(&self, now: Instant) -> Option<Instant> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = free.iter_mut().min()?;
        let begins = now.max(*first);
        *first = begins + TURN;
        (begins > now).then_some(begins)
    }
}

/// What is remembered after one more turn.
fn after(computed: u32, whole: bool) -> u32 {
    if whole { MOST.min(computed + WHOLE) } else { computed.saturating_sub(1) }
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

    use super::{SHORT, TURN, Turns, after};

    /// How many of these turns are those of a request that computes for long.
    fn long(turns: impl IntoIterator<Item = bool>) -> usize {
        let mut computed = 0;
        let mut is_long = |whole| {
            computed = after(computed, whole);
            computed > SHORT
        };
        turns.into_iter().filter(|whole| is_long(*whole)).count()
    }

    #[test]
    fn who_waits_for_others_time_and_again_never_computes_for_long() {
        assert_eq!(long((0..1000).map(|turn| turn % 3 == 0)), 0);
    }

    #[test]
    fn who_computes_does_so_for_long_also_where_the_processor_is_others_half_of_the_time() {
        assert_eq!(long([true; 1000]), 998);
        assert!(long((0..1000).map(|turn| turn % 2 == 0)) > 980);
        // And no longer once it waits.
        assert_eq!(long([[true; 10], [false; 10], [false; 10]].concat()), 8 + 3);
    }

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
