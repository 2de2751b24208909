//! The level of the log while the process runs: changed for a while, by a signal or through the admin endpoint.

use std::{future::pending, sync::Arc, time::Duration};

use strum::{Display, EnumIter, EnumString};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Duration of a change by signal.
const BY_SIGNAL: Duration = Duration::from_secs(600);

/// A level of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumIter, EnumString)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Another level than the usual one, until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Override {
    level: Level,
    until: Instant,
}

/// Handle to the level of the log. [`Levels::follow`] applies what others request.
#[derive(Clone)]
pub(crate) struct Levels {
    wanted: watch::Sender<Option<Override>>,
    /// Sets the level, or the usual one for `None`.
    apply: Arc<dyn Fn(Option<Level>) + Send + Sync>,
}

impl Levels {
    pub(crate) fn new(apply: impl Fn(Option<Level>) + Send + Sync + 'static) -> Self {
        Self { wanted: watch::Sender::default(), apply: Arc::new(apply) }
    }

    /// Requests a level for a while.
    pub(crate) fn change(&self, level: Level, lasting: Duration) {
        self.wanted.send_replace(Some(Override { level, until: Instant::now() + lasting }));
    }

    /// Requests the usual level.
    pub(crate) fn restore(&self) {
        self.wanted.send_replace(None);
    }

    /// Requests debug for ten minutes; or the usual level, if it is changed.
    pub(crate) fn toggle(&self) {
        let is_changed = self.wanted.borrow().is_some();
        match is_changed {
            true => self.restore(),
            false => self.change(Level::Debug, BY_SIGNAL),
        }
    }

    /// Applies requests, and ends them in time, until `done`.
    pub(crate) async fn follow(self, done: CancellationToken) {
        let mut wanted = self.wanted.subscribe();
        let mut current: Option<Override> = None;
        loop {
            let over = async {
                match current {
                    Some(current) => sleep_until(current.until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = done.cancelled() => return,
                Ok(()) = wanted.changed() => {
                    current = *wanted.borrow_and_update();
                    self.set(current);
                }
                () = over => self.restore(),
            }
        }
    }

    /// Sets a level. The line about it is logged while the more verbose level is set.
    fn set(&self, wanted: Option<Override>) {
        match wanted {
            Some(Override { level, until }) => {
                let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
                tracing::info!(event = "log_level", level = %level, seconds, "the level of the log is changed for a while");
                (self.apply)(Some(level));
            }
            None => {
                (self.apply)(None);
                tracing::info!(event = "log_level", "the level of the log is the usual one again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use parking_lot::Mutex;
    use tokio::time::{sleep, timeout};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::{Level, Levels};

    #[tokio::test]
    async fn a_change_ends_in_time_or_with_the_second_signal() {
        let set = Arc::new(Mutex::new(Vec::new()));
        let levels = Levels::new({
            let set = Arc::clone(&set);
            move |level| set.lock().push(level)
        });
        let (done, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(levels.clone().follow(done.clone()));
        let becomes = async |expected: Option<Level>| {
            let is = async {
                while set.lock().last() != Some(&expected) {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(10), is).await.unwrap_or_else(|_| panic!("never {expected:?}"));
        };
        sleep(Duration::from_millis(1)).await;
        levels.toggle();
        becomes(Some(Level::Debug)).await;
        levels.toggle();
        becomes(None).await;
        levels.change(Level::Trace, Duration::from_secs(60));
        becomes(Some(Level::Trace)).await;
        levels.change(Level::Error, Duration::from_millis(20));
        becomes(Some(Level::Error)).await;
        becomes(None).await;
        assert_eq!(set.lock().len(), 5);
        done.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
