//! Computations that take the place of components, on real threads: the kernel schedules dedicated threads, and tokio hands their
//! duties over, and neither follows a virtual clock. Slices and the decisions about them take time as an argument; their tests are
//! in `usage`.

use std::{
    future::{pending, poll_fn},
    mem,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::future::join;
use tokio::{
    sync::{Mutex, MutexGuard, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;

use super::{Scheduler, Strides, Usage, signal::thread_cpu, tuning::TUNING};
use crate::telemetry::service_metrics::CpuTime;

/// Tests that use up every processor run one at a time.
static ONE: Mutex<()> = Mutex::const_new(());
/// Deadline of a test on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Computing time between two looks for an interrupt.
const STEP: Duration = Duration::from_micros(100);

/// Computations on that many processors.
struct Machine {
    scheduler: Arc<Scheduler>,
    _engine: Engine,
    _one: MutexGuard<'static, ()>,
    /// Number of computations on dedicated threads, and the largest so far.
    at_work: AtomicUsize,
    most: AtomicUsize,
    /// Free processors and threads at first.
    free: (usize, usize),
    /// Ends all computations, and whether each of them has been interrupted for that.
    end: CancellationToken,
    interrupted: AtomicBool,
}

/// Progress of one computation.
#[derive(Default)]
struct Work {
    /// Slices on a dedicated thread.
    slices: AtomicUsize,
    /// Steps on a dedicated thread after all computations were interrupted.
    late: AtomicUsize,
}

impl Machine {
    async fn new(processors: usize) -> Arc<Self> {
        let _one = ONE.lock().await;
        let (scheduler, engine) = (Scheduler::new(processors), Engine::default());
        scheduler.start(&engine.weak()).unwrap();
        let (at_work, most, end) = (AtomicUsize::new(0), AtomicUsize::new(0), CancellationToken::new());
        let free = (scheduler.capacity.processors.available_permits(), scheduler.capacity.threads.available_permits());
        let interrupted = AtomicBool::new(false);
        Arc::new(Self { scheduler, _engine: engine, _one, at_work, most, free, end, interrupted })
    }

    /// Computes as a component does, but interrupted more often. Calls `step` at each step on a dedicated thread.
    async fn compute(&self, usage: &mut Usage, work: &Work, step: impl Fn()) {
        self.scheduler.on_instance(usage);
        let mut slice = None;
        loop {
            let now = usage.interrupt.slice_begun_at();
            if now.is_some() {
                self.most.fetch_max(self.at_work.fetch_add(1, Relaxed) + 1, Relaxed);
                work.slices.fetch_add(usize::from(slice != now), Relaxed);
                work.late.fetch_add(usize::from(self.interrupted.load(Relaxed)), Relaxed);
                step();
            }
            slice = now;
            let begun = Instant::now();
            while begun.elapsed() < STEP {}
            if now.is_some() {
                self.at_work.fetch_sub(1, Relaxed);
            }
            if let Some(next) = self.scheduler.on_epoch(usage) {
                next.await;
            }
        }
    }

    /// Waits until no computation has a processor or a dedicated thread.
    async fn is_free(&self) {
        let scheduler = &self.scheduler;
        loop {
            let free =
                (scheduler.capacity.processors.available_permits(), scheduler.capacity.threads.available_permits());
            if !scheduler.capacity.is_used() && free == self.free {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs computations side by side until `enough` holds for their progress.
    async fn run(self: &Arc<Self>, computations: usize, enough: impl Fn(&[Arc<Work>]) -> bool) -> Vec<Arc<Work>> {
        let works: Vec<_> = (0..computations).map(|_| Arc::<Work>::default()).collect();
        let mut tasks = JoinSet::new();
        for work in &works {
            let work = Arc::clone(work);
            let (machine, mut usage) = (Arc::clone(self), Usage::default());
            let interrupt = Arc::clone(&usage.interrupt).exclusive();
            tasks.spawn(async move {
                let computing = machine.compute(&mut usage, &work, || ());
                interrupt.until(machine.end.cancelled(), computing).await
            });
        }
        let until = Instant::now() + SOON;
        while !enough(&works) {
            assert!(Instant::now() < until, "the computations make no progress");
            sleep(Duration::from_millis(1)).await;
        }
        // Wakes, and so interrupts, all of them before it returns.
        self.end.cancel();
        self.interrupted.store(true, Relaxed);
        assert!(tasks.join_all().await.iter().all(Result::is_err));
        works
    }
}

fn slices(works: &[Arc<Work>]) -> impl Iterator<Item = usize> {
    works.iter().map(|work| work.slices.load(Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn computations_share_all_processors_but_one() {
    let machine = Machine::new(3).await;
    let works = machine.run(5, |works| slices(works).all(|slices| slices >= 8)).await;
    assert!(machine.most.load(Relaxed) <= 2);
    let counted: Vec<_> = slices(&works).collect();
    let (least, most) = (counted.iter().min().unwrap(), counted.iter().max().unwrap());
    assert!(*most < least * 3, "{counted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_processor_is_enough() {
    let machine = Machine::new(1).await;
    machine.run(2, |works| slices(works).all(|slices| slices > 0)).await;
    assert_eq!(machine.most.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_computation_without_a_thread_to_wait_on_gets_slices() {
    let machine = Machine::new(1).await;
    machine.run(TUNING.waiting_threads + 3, |works| slices(works).all(|slices| slices > 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_computation_gives_its_thread_back_at_once() {
    let machine = Machine::new(1).await;
    let waiting = Arc::clone(&machine.scheduler.capacity.threads);
    // All but one of them wait on their threads for slices that would come much later.
    let works = machine.run(TUNING.waiting_threads, |_| waiting.available_permits() <= 1).await;
    let late: usize = works.iter().map(|work| work.late.load(Relaxed)).sum();
    assert!(late <= TUNING.waiting_threads / 4, "{late} steps after the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_computation_that_shares_its_task_lets_the_rest_of_it_go_on() {
    let (machine, mut usage, work) = (Machine::new(3).await, Usage::default(), Work::default());
    let interrupt = Arc::clone(&usage.interrupt);
    // Steps on a dedicated thread since the rest of the task was last polled, and the most of them.
    let (steps, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let beside = poll_fn(|cx| {
        steps.store(0, Relaxed);
        cx.waker().wake_by_ref();
        if work.slices.load(Relaxed) < 20 {
            return Poll::Pending;
        }
        machine.end.cancel();
        Poll::Ready(())
    });
    let computing = machine.compute(&mut usage, &work, || {
        most.fetch_max(steps.fetch_add(1, Relaxed) + 1, Relaxed);
    });
    let both = join(interrupt.until(machine.end.cancelled(), computing), beside);
    timeout(SOON, both).await.expect("both go on").0.unwrap_err();
    // As many as a slice has time for.
    let fit = (TUNING.slice.as_micros() / STEP.as_micros()) as usize + 1;
    assert!((1..=fit).contains(&most.load(Relaxed)), "{most:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninterruptible_computation_gets_a_thread_after_its_first_stride_and_later_from_its_beginning() {
    let (machine, strides) = (Machine::new(3).await, Strides::default());
    for is_known in [false, true] {
        let mut usage = Usage::new(strides.clone(), CpuTime::default());
        let interrupt = Arc::clone(&usage.interrupt).exclusive();
        assert_eq!(machine.scheduler.on_request(&mut usage), is_known);
        let work = async {
            if is_known && let Some(next) = machine.scheduler.on_epoch(&mut usage) {
                next.await;
            }
            let mut on_workers = 0;
            for _ in 0..8 {
                on_workers += usize::from(usage.interrupt.slice_begun_at().is_none());
                let begun = thread_cpu();
                while thread_cpu() - begun < 2 * TUNING.stride.as_nanos() as u64 {}
                if let Some(next) = machine.scheduler.on_epoch(&mut usage) {
                    next.await;
                }
            }
            on_workers
        };
        let on_workers = interrupt.until(sleep(Duration::from_secs(60)), work).await.unwrap();
        // One, or none. Where the machine is busy, a thread may not be there in time.
        assert!(on_workers <= 3, "{on_workers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_computations_give_back_processors_and_threads() {
    let machine = Machine::new(3).await;
    machine.run(4, |works| slices(works).any(|slices| slices > 0)).await;
    machine.is_free().await;
}

/// wasmtime's `ProxyHandler` polls an instance a second time in the same poll of its task, after the expiration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_waits_after_a_second_poll_gives_back_its_processor() {
    let (machine, strides) = (Machine::new(1).await, Strides::default());
    strides.set_for_test();
    let end = Instant::now() + SOON;
    loop {
        let mut usage = Usage::new(strides.clone(), CpuTime::default());
        let interrupt = Arc::clone(&usage.interrupt).exclusive();
        assert!(machine.scheduler.on_request(&mut usage));
        let (yielded, is_dedicated) = oneshot::channel();
        let of = Arc::clone(&machine);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut work = pin!(async {
                of.scheduler.on_epoch(&mut usage).expect("it yields").await;
                let _ = yielded.send(usage.interrupt.slice_begun_at().is_some()); // The test waits for it.
                pending::<()>().await;
            });
            let mut polls_again = true;
            poll_fn(|cx| {
                let poll = work.as_mut().poll(cx);
                let _: Poll<()> = interrupt.poll(cx, |_| Poll::Pending);
                if mem::take(&mut polls_again) { work.as_mut().poll(cx) } else { poll }
            })
            .await;
        });
        // Where the machine is busy, a thread may not be there in time.
        if is_dedicated.await.expect("the task runs") {
            // Much less than the time after which an idle thread of the runtime ends.
            timeout(Duration::from_secs(5), machine.is_free()).await.expect("the processor is given back");
            return;
        }
        assert!(Instant::now() < end, "no instance gets a dedicated thread");
    }
}
