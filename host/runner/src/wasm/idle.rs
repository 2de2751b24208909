//! Idle detector of an instance: what the instance writes before it waits for something is sent in one write.

use std::{
    mem,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

/// Longest time for which output is kept back while the instance runs.
const PATIENCE: Duration = Duration::from_millis(1);

/// Detects when an instance is idle, so that its output is sent in one write. An instance that never reports that it runs is
/// always idle.
#[derive(Debug, Default)]
pub(crate) struct IdleDetector {
    /// The instance's code has run since [`IdleDetector::on_yield`].
    has_run: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    waiting: Vec<Waker>,
    /// Deadline of the first of them.
    until: Option<Instant>,
}

impl IdleDetector {
    /// The instance's code runs.
    pub(crate) fn on_run(&self) {
        self.has_run.store(true, Relaxed);
    }

    /// The instance has given back its thread. It is idle if its code did not run meanwhile. Otherwise, if a response waits
    /// for that, the instance is polled again.
    pub(crate) fn on_yield(&self, instance: &Waker) {
        let has_run = self.has_run.swap(false, Relaxed);
        let mut state = self.state();
        state.is_running = has_run;
        match state.until {
            None => {}
            Some(until) if has_run && Instant::now() < until => {
                drop(state);
                instance.wake_by_ref();
            }
            Some(_) => Self::wake(state),
        }
    }

    /// The instance has ended.
    pub(crate) fn on_end(&self) {
        self.has_run.store(false, Relaxed);
        let mut state = self.state();
        state.is_running = false;
        Self::wake(state);
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        state.until = None;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ready when the instance is idle, or `until` has passed, which the caller keeps (`None` at first). Until then the
    /// instance is woken, so that it gives its thread back, and the caller is woken after that.
    pub(crate) fn poll(&self, cx: &Context<'_>, instance: &AtomicWaker, until: &mut Option<Instant>) -> Poll<()> {
        let mut state = self.state();
        if !state.is_running && !self.has_run.load(Relaxed) {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
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

    use super::{IdleDetector, PATIENCE};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// An instance and its idle detector, with the number of times that the instance and the response were woken.
    struct Scene {
        detector: IdleDetector,
        instance: AtomicWaker,
        woken: Arc<Woken>,
        response: Arc<Woken>,
    }

    impl Scene {
        /// The instance's code has run.
        fn new() -> Self {
            let scene = Self {
                detector: IdleDetector::default(),
                instance: AtomicWaker::new(),
                woken: Arc::default(),
                response: Arc::default(),
            };
            assert!(scene.is_ready());
            scene.instance.register(&Waker::from(Arc::clone(&scene.woken)));
            scene.detector.on_run();
            scene
        }

        fn is_ready(&self) -> bool {
            // However slow this machine is.
            self.is_ready_for(&mut Some(Instant::now() + Duration::from_secs(60)))
        }

        fn is_ready_for(&self, until: &mut Option<Instant>) -> bool {
            let response = Waker::from(Arc::clone(&self.response));
            self.detector.poll(&Context::from_waker(&response), &self.instance, until).is_ready()
        }

        fn yields(&self) {
            self.detector.on_yield(&Waker::from(Arc::clone(&self.woken)));
        }

        fn woken(&self) -> (usize, usize) {
            (self.woken.0.load(Relaxed), self.response.0.load(Relaxed))
        }
    }

    #[test]
    fn a_response_is_sent_once_the_instance_is_idle() {
        let scene = Scene::new();
        assert!(!scene.is_ready());
        assert_eq!(scene.woken(), (1, 0), "the instance is woken");
        scene.yields();
        assert_eq!(scene.woken(), (2, 0), "it has run, and is woken again");
        scene.yields();
        assert_eq!(scene.woken(), (2, 1));
        assert!(scene.is_ready());
        scene.detector.on_run();
        assert!(!scene.is_ready());
    }

    #[test]
    fn an_instance_without_a_waiting_response_is_not_woken() {
        let scene = Scene::new();
        scene.yields();
        assert!(scene.woken() == (0, 0) && !scene.is_ready());
        scene.yields();
        scene.yields();
        assert_eq!(scene.woken(), (1, 1));
    }

    #[test]
    fn output_of_a_running_instance_is_kept_back_only_so_long() {
        let scene = Scene::new();
        let mut until = None;
        assert!(!scene.is_ready_for(&mut until));
        thread::sleep(PATIENCE);
        scene.yields();
        assert_eq!(scene.woken(), (1, 1));
        assert!(scene.is_ready_for(&mut until) && !scene.is_ready());
    }

    #[test]
    fn all_waiting_responses_are_woken_at_the_end_of_the_instance() {
        let scene = Scene::new();
        assert!(!scene.is_ready() && !scene.is_ready());
        scene.detector.on_end();
        assert_eq!(scene.woken(), (1, 2));
        assert!(scene.is_ready());
    }
}
