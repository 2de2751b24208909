//! Pauses between attempts.

use std::time::Duration;

/// Longest first pause.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(200);

/// Draws the pause after a number of failures: exponential backoff with full jitter ("Exponential Backoff And Jitter", AWS
/// Architecture Blog, 2015).
pub(crate) fn backoff(rng: &mut fastrand::Rng, failures: u32, cap: Duration) -> Duration {
    let ceiling = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(cap);
    ceiling.mul_f64(rng.f64())
}
