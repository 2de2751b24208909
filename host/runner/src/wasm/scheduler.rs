//! Whose turn it is to compute. Components that compute for long take turns with one another on all processors but one, each
//! on a thread that nothing else waits for, so that those which answer at once do not wait behind them.
//!
//! To the kernel such a thread is one among others. Linux lets one that has just begun go on until its next tick, 4 ms later
//! at worst, whoever was woken on the same processor meanwhile, and also where another processor idles. So it offers its
//! processor to others whenever a worker of the runtime wakes up or goes to sleep, and a few times a millisecond besides.

use std::{
    cell::RefCell,
    future::poll_fn,
    io, mem,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use futures::{
    executor::block_on,
    future::{Either, select},
    task::AtomicWaker,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{block_in_place, spawn_blocking, yield_now},
};
use wasmtime::EngineWeak;

/// How long a component computes before its neighbours get their turn.
const TURN: Duration = Duration::from_millis(5);
/// The same of those that compute for long, among each other: every change costs whoever is woken in that moment.
const LONG_TURN: Duration = Duration::from_millis(20);
/// How often one that computes for long looks up at least.
const LOOK: Duration = Duration::from_micros(500);

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
/// Processor time that a component takes between two interruptions where an instruction or a call of the host's cannot be
/// interrupted: one that fills a large memory, or asks for very many random bytes. Interruptions are half of that apart.
const STRIDE: Duration = Duration::from_millis(10);
/// Ticks for which the requests of such a component have a thread of their own from their beginning: ten seconds.
const REMEMBERED: u64 = 2000;
/// How long a thread waits for another one that does what it has to do besides. There are enough, but a busy machine.
const HAND_OVER: Duration = Duration::from_millis(20);
/// How many that compute for long have a thread on which they wait for their turn. Others wait for a thread.
const WAITING: usize = 16;
/// For so long they have one where others wait for it.
const HELD: Duration = Duration::from_millis(100);

/// The ticks that end turns, and the places of long computations.
pub(crate) struct Turns {
    begun: Instant,
    ticks: AtomicU64,
    /// When the latest of them was, in nanoseconds since the beginning.
    latest: AtomicU64,
    /// One for each processor but one; at least one.
    places: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    /// How many have one.
    long: AtomicUsize,
    engine: OnceLock<EngineWeak>,
}

/// What an instance has computed of late.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    turns: u32,
    /// It is to have a thread of its own before it computes.
    at_once: bool,
    strides: Strides,
    pub(crate) summons: Arc<Summons>,
}

/// Whether a component computes in long strides, between which alone it can be interrupted: the tick until which that is
/// remembered. Shared by all instances of a service.
#[derive(Debug, Default, Clone)]
pub(crate) struct Strides(Arc<AtomicU64>);

/// Whether an instance is to give back its thread because somebody else wants to see to its task: its time is up, say.
#[derive(Debug, Default)]
pub(crate) struct Summons {
    wanted: AtomicBool,
    /// Whether its task is at work on nothing else. Otherwise it gives its thread back after every turn.
    is_alone: AtomicBool,
    /// The tick in which its turn began, and the processor time of its thread then, in nanoseconds.
    since: AtomicU64,
    since_cpu: AtomicU64,
    /// Whether it has had its thread since then.
    is_held: AtomicBool,
    task: AtomicWaker,
    /// The thread on which it waits.
    thread: AtomicWaker,
}

/// The turn of a long computation, on the thread that it has.
struct Turn {
    turns: Arc<Turns>,
    summons: Arc<Summons>,
    /// Since when it has the thread.
    held: Instant,
    /// Since when it has the place.
    begun: Instant,
    place: Option<OwnedSemaphorePermit>,
    _thread: OwnedSemaphorePermit,
}

thread_local! {
    static HERE: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

impl Turns {
    /// For that many processors; at least one computes.
    pub(crate) fn new(cores: usize) -> Arc<Self> {
        let most = cores.saturating_sub(1).max(1);
        Arc::new(Self {
            begun: Instant::now(),
            ticks: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(most)),
            threads: Arc::new(Semaphore::new(most + WAITING)),
            long: AtomicUsize::new(0),
            engine: OnceLock::new(),
        })
    }

    /// Interrupts the components of this engine until it is gone.
    pub(crate) fn interrupt(self: &Arc<Self>, engine: EngineWeak) -> io::Result<()> {
        let turns = Arc::clone(self);
        let engine = self.engine.get_or_init(|| engine).clone();
        let ticks = move || {
            while let Some(engine) = engine.upgrade() {
                turns.tick();
                engine.increment_epoch();
                drop(engine);
                turns.sleep();
            }
        };
        thread::Builder::new().name("epoch".to_owned()).spawn(ticks).map(drop)
    }

    fn tick(&self) {
        self.latest.store(self.elapsed(), Relaxed);
        self.ticks.fetch_add(1, Relaxed);
    }

    /// Until the next tick.
    fn sleep(&self) {
        let next = Instant::now() + TURN;
        while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let pause = match self.long.load(Relaxed) {
                0 => left,
                _ => LOOK.min(left),
            };
            thread::sleep(pause);
            self.look_up();
        }
    }

    /// Lets those who compute for long offer their processors to others.
    pub(crate) fn look_up(&self) {
        if self.long.load(Relaxed) > 0
            && let Some(engine) = self.engine.get().and_then(EngineWeak::upgrade)
        {
            engine.increment_epoch();
        }
    }

    /// An instance is made.
    pub(crate) fn begin(&self, computed: &mut Computed) {
        computed.forget();
        self.begin_turn(&computed.summons);
    }

    /// A request begins: what was before is another one's. Returns whether it is to be interrupted at once, for a thread of
    /// its own.
    pub(crate) fn begin_request(&self, computed: &mut Computed) -> bool {
        self.begin(computed);
        computed.at_once = computed.strides.0.load(Relaxed) > self.ticks.load(Relaxed);
        computed.at_once
    }

    fn begin_turn(&self, summons: &Summons) {
        summons.since.store(self.ticks.load(Relaxed), Relaxed);
        summons.since_cpu.store(thread_cpu(), Relaxed);
        summons.is_held.store(true, Relaxed);
    }

    /// What an instance waits for that was interrupted; nothing where it goes on.
    pub(crate) fn next(self: &Arc<Self>, computed: &mut Computed) -> Option<impl Future<Output = ()> + Send + use<>> {
        let summons = Arc::clone(&computed.summons);
        let goes_on = HERE.with_borrow_mut(|here| {
            let turn = here.as_mut().filter(|turn| Arc::ptr_eq(&turn.summons, &summons))?;
            Some(turn.goes_on())
        });
        let goes_on = goes_on.unwrap_or_else(|| {
            if mem::take(&mut computed.at_once) {
                computed.turns = MOST;
                return false;
            }
            let ticks = self.ticks.load(Relaxed);
            let is_interrupted = summons.since.load(Relaxed) == ticks;
            if !is_interrupted {
                let late = Duration::from_nanos(self.elapsed().saturating_sub(self.latest.load(Relaxed)));
                let is_held = summons.is_held.load(Relaxed);
                computed.turns = after(computed.turns, is_held || late <= AT_ONCE);
                if is_held && summons.computed() >= STRIDE {
                    computed.turns = MOST;
                    computed.strides.0.store(ticks + REMEMBERED, Relaxed);
                }
            }
            is_interrupted
        });
        if goes_on {
            return None;
        }
        end();
        let (turns, is_long) = (Arc::clone(self), computed.turns > SHORT);
        Some(async move {
            // Others on this thread, and who looks after the end of this one.
            yield_now().await;
            if is_long && let Ok(thread) = Arc::clone(&turns.threads).acquire_owned().await {
                hand_over(&turns, &summons, thread);
            }
            turns.begin_turn(&summons);
        })
    }

    /// Waits on this thread for a place; none for one that is wanted.
    fn place(&self, summons: &Summons) -> Option<OwnedSemaphorePermit> {
        let wanted = poll_fn(|cx| {
            summons.thread.register(cx.waker());
            if summons.wanted.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        });
        let place = pin!(Arc::clone(&self.places).acquire_owned());
        match block_on(select(wanted, place)) {
            Either::Left(_) => None,
            Either::Right((place, _)) => {
                // Whoever was put behind this thread while it waited.
                thread::yield_now();
                place.ok()
            }
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Processor time of this thread, in nanoseconds.
fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(Duration::try_from(time).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// What is remembered after one more turn.
fn after(computed: u32, whole: bool) -> u32 {
    if whole { MOST.min(computed + WHOLE) } else { computed.saturating_sub(1) }
}

/// Lets another thread do what this one has to do besides: tasks that are ready, the network and the timers. This one then
/// computes, and is a thread of the kernel's among others.
fn hand_over(turns: &Arc<Turns>, summons: &Arc<Summons>, thread: OwnedSemaphorePermit) {
    block_in_place(|| {
        // Taking it back is tried for at the end of this block. What is spawned now is begun after the other thread is.
        let (begun, begins) = mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "it ends at once, and is waited for below")]
        drop(spawn_blocking(move || begun.send(())));
        if begins.recv_timeout(HAND_OVER).is_err() {
            // Without another thread this one has to look after the others soon.
            return;
        }
        let Some(place) = turns.place(summons) else { return };
        turns.long.fetch_add(1, Relaxed);
        let (turns, summons, now) = (Arc::clone(turns), Arc::clone(summons), Instant::now());
        HERE.set(Some(Turn { turns, summons, held: now, begun: now, place: Some(place), _thread: thread }));
    });
}

impl Turn {
    /// After others had theirs, if its turn is over.
    fn goes_on(&mut self) -> bool {
        let others_wait = self.turns.threads.available_permits() == 0;
        let most = match self.summons.is_alone.load(Relaxed) {
            false => TURN,
            true if others_wait => HELD,
            true => Duration::MAX,
        };
        if self.summons.wanted.load(Relaxed) || self.held.elapsed() >= most {
            return false;
        }
        // In a block, in which the thread is handed over again if it has not been.
        block_in_place(|| {
            if self.begun.elapsed() < LONG_TURN {
                thread::yield_now();
            } else {
                drop(self.place.take());
                self.place = self.turns.place(&self.summons);
                self.begun = Instant::now();
            }
        });
        self.place.is_some()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.long.fetch_sub(1, Relaxed);
    }
}

/// Ends the turn of what has computed for long on this thread, if something has. Owed whenever a component gives its thread
/// back.
pub(crate) fn end() {
    HERE.take();
}

impl Computed {
    /// Of an instance of the service of which these are.
    pub(crate) fn new(strides: Strides) -> Self {
        Self { strides, ..Self::default() }
    }

    /// What was, was of another request.
    pub(crate) fn forget(&mut self) {
        (self.turns, self.at_once) = (0, false);
    }
}

impl Summons {
    /// The task of the instance is at work on nothing else.
    pub(crate) fn alone(self: Arc<Self>) -> Arc<Self> {
        self.is_alone.store(true, Relaxed);
        self
    }

    /// Processor time since its turn began, of an instance that has had its thread since then.
    fn computed(&self) -> Duration {
        Duration::from_nanos(thread_cpu().saturating_sub(self.since_cpu.load(Relaxed)))
    }

    /// Polls what may end the work of the instance, which is interrupted once that is to be polled again.
    pub(crate) fn poll<T>(
        self: &Arc<Self>,
        cx: &Context<'_>,
        end: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.wanted.store(false, Relaxed);
        self.is_held.store(false, Relaxed);
        self.task.register(cx.waker());
        end(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    /// Works until that is done, or ended, which the error says.
    pub(crate) async fn until<T, E>(
        self: Arc<Self>,
        ended: impl Future<Output = E>,
        work: impl Future<Output = T>,
    ) -> Result<T, E> {
        let (mut ended, mut work) = (pin!(ended), pin!(work));
        poll_fn(|cx| {
            let worked = work.as_mut().poll(cx);
            end();
            match worked {
                Poll::Ready(worked) => Poll::Ready(Ok(worked)),
                Poll::Pending => self.poll(cx, |cx| ended.as_mut().poll(cx)).map(Err),
            }
        })
        .await
    }
}

impl Wake for Summons {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wanted.store(true, Relaxed);
        self.thread.wake();
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Poll,
        time::{Duration, Instant},
    };

    use futures::future::join;
    use tokio::{
        sync::{Mutex, MutexGuard},
        task::JoinSet,
        time::{sleep, timeout},
    };
    use tokio_util::sync::CancellationToken;
    use wasmtime::Engine;

    use super::{Computed, HERE, SHORT, STRIDE, Strides, TURN, Turns, WAITING, after, end, thread_cpu};

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

    /// Those that burn all processors do so one after the other.
    static ONE: Mutex<()> = Mutex::const_new(());
    /// Deadline of a test on a busy machine.
    const SOON: Duration = Duration::from_secs(60);
    /// Computing time between two looks for an interrupt.
    const STEP: Duration = Duration::from_micros(100);

    /// Computations on that many processors.
    struct Machine {
        turns: Arc<Turns>,
        _engine: Engine,
        _one: MutexGuard<'static, ()>,
        /// How many compute on a thread of their own, and how many did at most.
        at_work: AtomicUsize,
        most: AtomicUsize,
        /// Ends all computations.
        end: CancellationToken,
    }

    /// Progress of one computation.
    #[derive(Default)]
    struct Work {
        /// Turns on a thread of its own.
        turns: AtomicUsize,
        /// Steps on a thread of its own after the end of all.
        late: AtomicUsize,
    }

    impl Machine {
        async fn new(cores: usize) -> Arc<Self> {
            let _one = ONE.lock().await;
            let (turns, engine) = (Turns::new(cores), Engine::default());
            turns.interrupt(engine.weak()).unwrap();
            let (at_work, most, end) = (AtomicUsize::new(0), AtomicUsize::new(0), CancellationToken::new());
            Arc::new(Self { turns, _engine: engine, _one, at_work, most, end })
        }

        /// Computes as a component does, interrupted more often; `step` hears of each step on a thread of its own.
        async fn compute(&self, computed: &mut Computed, work: &Work, step: impl Fn()) {
            self.turns.begin(computed);
            let mut turn = None;
            loop {
                let now = HERE.with_borrow(|here| here.as_ref().map(|here| here.begun));
                if now.is_some() {
                    self.most.fetch_max(self.at_work.fetch_add(1, Relaxed) + 1, Relaxed);
                    work.turns.fetch_add(usize::from(turn != now), Relaxed);
                    work.late.fetch_add(usize::from(self.end.is_cancelled()), Relaxed);
                    step();
                }
                turn = now;
                let begun = Instant::now();
                while begun.elapsed() < STEP {}
                if now.is_some() {
                    self.at_work.fetch_sub(1, Relaxed);
                }
                if let Some(next) = self.turns.next(computed) {
                    next.await;
                }
            }
        }

        /// As many computations side by side, until what they have come to is enough.
        async fn run(self: &Arc<Self>, computations: usize, enough: impl Fn(&[Arc<Work>]) -> bool) -> Vec<Arc<Work>> {
            let works: Vec<_> = (0..computations).map(|_| Arc::<Work>::default()).collect();
            let mut tasks = JoinSet::new();
            for work in &works {
                let work = Arc::clone(work);
                let (machine, mut computed) = (Arc::clone(self), Computed::default());
                let summons = Arc::clone(&computed.summons).alone();
                tasks.spawn(async move {
                    let computing = machine.compute(&mut computed, &work, || ());
                    summons.until(machine.end.cancelled(), computing).await
                });
            }
            let until = Instant::now() + SOON;
            while !enough(&works) {
                assert!(Instant::now() < until, "the computations have not come to enough");
                sleep(Duration::from_millis(1)).await;
            }
            self.end.cancel();
            assert!(tasks.join_all().await.iter().all(Result::is_err));
            works
        }
    }

    fn turns(works: &[Arc<Work>]) -> impl Iterator<Item = usize> {
        works.iter().map(|work| work.turns.load(Relaxed))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn those_who_compute_for_long_share_all_processors_but_one() {
        let machine = Machine::new(3).await;
        let works = machine.run(5, |works| turns(works).all(|turns| turns >= 8)).await;
        assert!(machine.most.load(Relaxed) <= 2);
        let counted: Vec<_> = turns(&works).collect();
        let (least, most) = (counted.iter().min().unwrap(), counted.iter().max().unwrap());
        assert!(*most < least * 3, "{counted:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_processor_is_better_than_none() {
        let machine = Machine::new(1).await;
        machine.run(2, |works| turns(works).all(|turns| turns > 0)).await;
        assert_eq!(machine.most.load(Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn also_who_has_no_thread_to_wait_on_has_turns() {
        let machine = Machine::new(1).await;
        machine.run(WAITING + 3, |works| turns(works).all(|turns| turns > 0)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_wanted_gives_its_thread_back_at_once() {
        let machine = Machine::new(1).await;
        let waiting = Arc::clone(&machine.turns.threads);
        // All but one of them wait on their threads for turns that would come much later.
        let works = machine.run(WAITING, |_| waiting.available_permits() <= 1).await;
        let late: usize = works.iter().map(|work| work.late.load(Relaxed)).sum();
        assert!(late <= WAITING / 4, "{late} steps after the end");
        assert!(HERE.with_borrow(Option::is_none));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_shares_a_task_lets_the_rest_of_it_go_on() {
        let (machine, mut computed, work) = (Machine::new(3).await, Computed::default(), Work::default());
        let summons = Arc::clone(&computed.summons);
        // Steps on a thread of its own since the rest of the task was last at work, and the most of them.
        let (steps, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let beside = poll_fn(|cx| {
            steps.store(0, Relaxed);
            cx.waker().wake_by_ref();
            if work.turns.load(Relaxed) < 20 {
                return Poll::Pending;
            }
            machine.end.cancel();
            Poll::Ready(())
        });
        let computing = machine.compute(&mut computed, &work, || {
            most.fetch_max(steps.fetch_add(1, Relaxed) + 1, Relaxed);
        });
        let both = join(summons.until(machine.end.cancelled(), computing), beside);
        timeout(SOON, both).await.expect("both go on").0.unwrap_err();
        // As many as a turn has time for.
        let fit = (TURN.as_micros() / STEP.as_micros()) as usize + 1;
        assert!((1..=fit).contains(&most.load(Relaxed)), "{most:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_cannot_be_interrupted_for_long_has_a_thread_after_the_first_stride_and_later_from_the_beginning() {
        let (machine, strides) = (Machine::new(3).await, Strides::default());
        for is_known in [false, true] {
            let mut computed = Computed::new(strides.clone());
            let summons = Arc::clone(&computed.summons).alone();
            assert_eq!(machine.turns.begin_request(&mut computed), is_known);
            let work = async {
                if is_known && let Some(next) = machine.turns.next(&mut computed) {
                    next.await;
                }
                let mut on_workers = 0;
                for _ in 0..8 {
                    on_workers += usize::from(HERE.with_borrow(Option::is_none));
                    let begun = thread_cpu();
                    while thread_cpu() - begun < 2 * STRIDE.as_nanos() as u64 {}
                    if let Some(next) = machine.turns.next(&mut computed) {
                        next.await;
                    }
                }
                on_workers
            };
            let on_workers = summons.until(sleep(Duration::from_secs(60)), work).await.unwrap();
            // One, or none. Where the machine is busy, a thread may not be there in time.
            assert!(on_workers <= 3, "{on_workers}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_has_ended_has_no_place_any_more() {
        let machine = Machine::new(3).await;
        machine.run(4, |works| turns(works).any(|turns| turns > 0)).await;
        end();
        assert_eq!(machine.turns.long.load(Relaxed), 0);
        assert_eq!(machine.turns.places.available_permits(), 2);
        assert_eq!(machine.turns.threads.available_permits(), 2 + WAITING);
    }
}
