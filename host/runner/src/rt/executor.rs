//! hyper's way to spawn what a connection needs, through a tracker like everything else.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::rt::timers::Timers;

#[derive(Clone)]
pub(crate) struct Tracked(pub(crate) TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// The same with an end: what has not come to its own by then is dropped. A server's streams of HTTP/2 are spawned so,
/// since a client that does not read them would keep them for ever.
#[derive(Clone)]
pub(crate) struct Bounded {
    pub(crate) tasks: TaskTracker,
    pub(crate) timers: Timers,
    pub(crate) within: Duration,
}

impl<F> hyper::rt::Executor<F> for Bounded
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let (timers, end) = (self.timers.clone(), Instant::now() + self.within);
        self.tasks.spawn(async move { timers.timeout_at(end, task).await });
    }
}
