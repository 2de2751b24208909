//! Whether an instance has said what it has to say for now, and waits for something. What it says until then is sent in one
//! piece.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;

/// For so long what an instance has said is kept back while it goes on, and until it gives back its thread then.
const PATIENCE: Duration = Duration::from_millis(1);

/// The rest of one instance, which is always at rest where nobody tells that it runs.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Its code has run since it was looked at.
    has_run: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    goes_on: bool,
    waiting: Vec<Waker>,
    /// How long the first of them waits.
    until: Option<Instant>,
}

impl Rest {
    /// The instance's code runs.
    pub(crate) fn runs(&self) {
        self.has_run.store(true, Relaxed);
    }

    /// The instance has given back its thread, and is at rest if it did nothing with it. Otherwise, if somebody waits for
    /// that, it is asked whether there is more to do.
    pub(crate) fn look(&self, instance: &Waker) {
        let has_run = self.has_run.swap(false, Relaxed);
        let mut state = self.state();
        state.goes_on = has_run;
        match state.until {
            None => {}
            Some(until) if has_run && Instant::now() < until => {
                drop(state);
                instance.wake_by_ref();
            }
            Some(_) => Self::tell(state),
        }
    }

    /// The instance has ended.
    pub(crate) fn ended(&self) {
        self.has_run.store(false, Relaxed);
        let mut state = self.state();
        state.goes_on = false;
        Self::tell(state);
    }

    fn tell(mut state: MutexGuard<'_, State>) {
        state.until = None;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ready when the instance is at rest, or has gone on for long enough: `until` is the caller's, `None` at first. The
    /// instance is asked for its thread, and who waits is woken once it gives that back.
    pub(crate) fn poll(&self, cx: &Context<'_>, instance: &AtomicWaker, until: &mut Option<Instant>) -> Poll<()> {
        let mut state = self.state();
        if !state.goes_on && !self.has_run.load(Relaxed) {
            return Poll::Ready(());
        }
        let now = Instant::now();
        let until = *until.get_or_insert(now + PATIENCE);
        if now >= until {
            return Poll::Ready(());
        }
        state.waiting.push(cx.waker().clone());
        if state.until.is_none() {
            state.until = Some(until);
            drop(state);
            instance.wake();
        }
        Poll::Pending
    }

    /// What this guards is whole after every statement, so a panic elsewhere spoils nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::{Context, Wake, Waker},
        thread,
        time::{Duration, Instant},
    };

    use futures::task::AtomicWaker;

    use super::{PATIENCE, Rest};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// The rest of an instance, who waits for it, and how often the two were woken.
    struct Scene {
        rest: Rest,
        instance: AtomicWaker,
        woken: Arc<Woken>,
        told: Arc<Woken>,
    }

    impl Scene {
        /// The instance's code has run.
        fn new() -> Self {
            let scene = Self {
                rest: Rest::default(),
                instance: AtomicWaker::new(),
                woken: Arc::default(),
                told: Arc::default(),
            };
            assert!(scene.is_ready());
            scene.instance.register(&Waker::from(Arc::clone(&scene.woken)));
            scene.rest.runs();
            scene
        }

        fn is_ready(&self) -> bool {
            // However slow this machine is.
            self.is_ready_for(&mut Some(Instant::now() + Duration::from_secs(60)))
        }

        fn is_ready_for(&self, until: &mut Option<Instant>) -> bool {
            let told = Waker::from(Arc::clone(&self.told));
            self.rest.poll(&Context::from_waker(&told), &self.instance, until).is_ready()
        }

        fn look(&self) {
            self.rest.look(&Waker::from(Arc::clone(&self.woken)));
        }

        fn woken(&self) -> (usize, usize) {
            (self.woken.0.load(Relaxed), self.told.0.load(Relaxed))
        }
    }

    #[test]
    fn who_waits_is_told_once_the_instance_has_nothing_more_to_do() {
        let scene = Scene::new();
        assert!(!scene.is_ready());
        assert_eq!(scene.woken(), (1, 0), "the instance is asked");
        scene.look();
        assert_eq!(scene.woken(), (2, 0), "it has run, and is asked again");
        scene.look();
        assert_eq!(scene.woken(), (2, 1));
        assert!(scene.is_ready());
        scene.rest.runs();
        assert!(!scene.is_ready());
    }

    #[test]
    fn an_instance_for_which_nobody_waits_is_left_alone() {
        let scene = Scene::new();
        scene.look();
        assert!(scene.woken() == (0, 0) && !scene.is_ready());
        scene.look();
        scene.look();
        assert_eq!(scene.woken(), (1, 1));
    }

    #[test]
    fn one_that_goes_on_is_waited_for_only_so_long() {
        let scene = Scene::new();
        let mut until = None;
        assert!(!scene.is_ready_for(&mut until));
        thread::sleep(PATIENCE);
        scene.look();
        assert_eq!(scene.woken(), (1, 1));
        assert!(scene.is_ready_for(&mut until) && !scene.is_ready());
    }

    #[test]
    fn all_who_wait_are_told_at_its_end() {
        let scene = Scene::new();
        assert!(!scene.is_ready() && !scene.is_ready());
        scene.rest.ended();
        assert_eq!(scene.woken(), (1, 2));
        assert!(scene.is_ready());
    }
}
