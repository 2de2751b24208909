//! Faults of calls, and their probabilities.

use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;

/// Behaviour of one host's network. Probabilities are 0.0 to 1.0. Each call has at most one of `error_before`,
/// `error_after`, `answer_lost` and `late`; their sum must not exceed 1.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    /// Latency of every message in one direction, drawn evenly.
    pub latency: RangeInclusive<Duration>,
    /// Probability that a message is held on its way.
    pub slow: f64,
    /// Time that such a message is held.
    pub slow_for: RangeInclusive<Duration>,
    /// The caller gets an error, and the request is not applied.
    pub error_before: f64,
    /// The request is applied, and the caller gets an error.
    pub error_after: f64,
    /// The request is applied, and the caller never gets a response.
    pub answer_lost: f64,
    /// The caller waits until it gives up; the request is held longer, and then applied: a late write.
    pub late: f64,
    /// Delay of a late write after its caller gave up. A caller that never gives up counts as gone after 30 s.
    pub late_for: RangeInclusive<Duration>,
    /// A message on an open stream breaks the stream, before or after it was applied.
    pub stream_broken: f64,
    /// A transaction is applied, and its response lacks the content of one operation, as after a flipped bit.
    pub damaged: f64,
}

impl FaultPlan {
    /// A healthy network.
    pub fn none() -> Self {
        Self {
            latency: Duration::from_millis(1)..=Duration::from_millis(3),
            slow: 0.0,
            slow_for: Duration::ZERO..=Duration::from_secs(3),
            error_before: 0.0,
            error_after: 0.0,
            answer_lost: 0.0,
            late: 0.0,
            late_for: Duration::ZERO..=Duration::from_secs(40),
            stream_broken: 0.0,
            damaged: 0.0,
        }
    }

    /// Every fault, each with this probability, `damaged` with a quarter of it.
    pub fn all(probability: f64) -> Self {
        Self {
            slow: probability,
            error_before: probability,
            error_after: probability,
            answer_lost: probability,
            late: probability,
            stream_broken: probability,
            damaged: probability / 4.0,
            ..Self::none()
        }
    }

    pub(crate) fn fate(&self, rng: &mut Rng) -> Fate {
        let drawn = rng.f64();
        let mut bound = 0.0;
        let mut below = |probability: f64| {
            bound += probability;
            drawn < bound
        };
        if below(self.error_before) {
            Fate::ErrorBefore
        } else if below(self.error_after) {
            Fate::ErrorAfter
        } else if below(self.answer_lost) {
            Fate::AnswerLost
        } else if below(self.late) {
            Fate::Late(between(&self.late_for, rng))
        } else {
            Fate::Clean
        }
    }

    pub(crate) fn stream_breaks(&self, rng: &mut Rng) -> bool {
        rng.f64() < self.stream_broken
    }

    pub(crate) fn is_damaged(&self, rng: &mut Rng) -> bool {
        self.damaged > 0.0 && rng.f64() < self.damaged
    }

    /// Latency of one message in one direction.
    pub(crate) fn transit(&self, rng: &mut Rng) -> Duration {
        let held = if rng.f64() < self.slow { between(&self.slow_for, rng) } else { Duration::ZERO };
        held + between(&self.latency, rng)
    }
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self::none()
    }
}

/// Fault of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Clean,
    ErrorBefore,
    ErrorAfter,
    AnswerLost,
    Late(Duration),
}

pub(crate) fn between(range: &RangeInclusive<Duration>, rng: &mut Rng) -> Duration {
    let micros = |duration: &Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(rng.u64(micros(range.start())..=micros(range.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_network_has_no_faults_and_a_seed_repeats() {
        let mut rng = Rng::with_seed(7);
        let none = FaultPlan::none();
        assert!((0..1000).all(|_| none.fate(&mut rng) == Fate::Clean));
        let draw = |seed| {
            let mut rng = Rng::with_seed(seed);
            let plan = FaultPlan::all(0.2);
            (0..100).map(|_| plan.fate(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
