//! hyper's ways to spawn what connections need.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::rt::timers::Timers;

/// Spawns the connections of a client. Each ends with the pool of its client, or by itself; the end of a service or of
/// the process does not wait for it.
#[derive(Clone, Copy)]
pub(crate) struct Pooled;

impl<F> hyper::rt::Executor<F> for Pooled
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "the pool of the client knows its connections")]
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

/// Spawns through a tracker, with a deadline after which a task is dropped. The streams of HTTP/2 are spawned so, since a
/// client that does not read them would keep them open.
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
