//! Progress of what takes long: one line on stderr, if that is a terminal, after the first second.

use std::{future::Future, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::sleep;

/// Time without a line: most work is done by then.
const FIRST: Duration = Duration::from_secs(1);
/// Interval between two drawings.
const TICK: Duration = Duration::from_millis(100);

/// Progress of one piece of work.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Work of an unknown extent.
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self::styled(ProgressBar::no_length(), "{spinner} {msg}, {elapsed}", what.into())
    }

    /// Work on so many items.
    pub(super) fn counted(what: impl Into<String>, items: usize) -> Self {
        let bar = ProgressBar::new(u64::try_from(items).unwrap_or(u64::MAX));
        Self::styled(bar, "{spinner} {msg} {human_pos} of {human_len}, {elapsed}", what.into())
    }

    fn styled(bar: ProgressBar, template: &str, what: String) -> Self {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("a test parses every template");
        Self(bar.with_style(style).with_message(what))
    }

    /// Describes the work anew.
    pub(super) fn describe(&self, what: String) {
        self.0.set_message(what);
    }

    /// Counts one more item.
    pub(super) fn advance(&self) {
        self.0.inc(1);
    }

    /// Shows the progress until the work is done.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let showing = async {
            sleep(FIRST).await;
            // Stays hidden where stderr is no terminal.
            self.0.set_draw_target(ProgressDrawTarget::stderr());
            loop {
                self.0.tick();
                sleep(TICK).await;
            }
        };
        let done = tokio::select! {
            biased;
            done = work => done,
            never = showing => match never {},
        };
        self.0.finish_and_clear();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[tokio::test]
    async fn progress_gives_back_the_result_of_the_work() {
        assert_eq!(Progress::of("reading").during(async { 7 }).await, 7);
        let counted = Progress::counted("trying nodes", 2);
        counted.during(async { counted.advance() }).await;
    }
}
