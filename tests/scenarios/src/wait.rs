//! Waiting for a state, in virtual or in real time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Interval between two evaluations of the predicate.
const STEP: Duration = Duration::from_millis(20);

/// Waits until a predicate holds.
///
/// # Panics
/// If it does not hold in time; the message contains `what`.
pub async fn wait_for(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    loop {
        let seen = tokio::time::timeout_at(deadline, holds()).await;
        if seen == Ok(true) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        sleep(STEP).await;
    }
}
