//! Deadlines that a thread without a processor does not miss.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};

/// A timer that goes off this much too late was not looked at: the thread had no processor, or the machine none to give.
const LATE: Duration = Duration::from_millis(50);
/// Time in which a thread that runs again reads what its sockets hold, and sends what it had to.
const GRACE: Duration = Duration::from_millis(250);

/// Waits for `call` until `patience` is over. Where this thread stood still beyond that, the answer may lie in the socket
/// unread, or the request was never sent: it is waited for a little longer. Otherwise a busy machine would take etcd for
/// silent, and a write without an answer costs a lease.
pub(super) async fn within<T>(patience: Duration, call: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut call = pin!(call);
    let until = Instant::now() + patience;
    match timeout_at(until, &mut call).await {
        Err(_) if until.elapsed() >= LATE => timeout(GRACE.min(patience), call).await,
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use tokio::{sync::oneshot, time::sleep};
    use tokio_util::task::TaskTracker;

    use super::within;

    const PATIENCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn an_answer_that_came_while_the_thread_stood_still_is_taken() {
        let (answer, answered) = oneshot::channel();
        // As a connection's task: it has to run before the answer can be read.
        TaskTracker::new().spawn(async move {
            sleep(PATIENCE / 2).await;
            tokio::task::yield_now().await;
            answer.send(7).unwrap();
        });
        TaskTracker::new().spawn(async { thread::sleep(4 * PATIENCE) });
        assert_eq!(within(PATIENCE, answered).await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn silence_is_borne_for_as_long_as_was_said() {
        let begun = tokio::time::Instant::now();
        assert!(within(PATIENCE, std::future::pending::<()>()).await.is_err());
        assert!(begun.elapsed() >= PATIENCE);
    }
}
