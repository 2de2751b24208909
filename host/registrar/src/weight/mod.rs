//! Weight computed from load, and the damping of its writes.

#[cfg(feature = "load")]
pub(crate) mod load;

use std::time::Duration;

use crate::node::Weight;

/// Load of the machine, or of the container's share of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Processor time in use, 0 to 100 percent of what this process may use.
    pub cpu_percent: f64,
    /// Memory in use, 0 to 100 percent of what this process may use.
    pub memory_percent: f64,
}

/// The weight of a load: half from the idle processor, half from the free memory, rounded half away from zero, as the
/// services of the seed layout compute it.
pub fn weight_of(load: Load) -> Weight {
    let free = |percent: f64| 100.0 - percent.clamp(0.0, 100.0);
    Weight::clamped((free(load.cpu_percent) * 0.5 + free(load.memory_percent) * 0.5).round())
}

/// Damping of computed weights: small changes are not written, and large ones not too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// A computed weight is written when it differs from the published one by at least this much.
    /// 0 and 1 write every change.
    pub dead_band: u32,
    /// Shortest time between two writes of computed weights of one registration. Zero writes at every sample.
    pub min_interval: Duration,
}

impl Default for Damping {
    fn default() -> Self {
        Self { dead_band: 5, min_interval: Duration::from_secs(10) }
    }
}

impl Damping {
    /// Returns true if `computed` should replace `published`, which was written `age` ago.
    pub fn lets_through(self, published: Weight, computed: Weight, age: Duration) -> bool {
        let change = published.value().abs_diff(computed.value());
        change > 0 && change >= self.dead_band && age >= self.min_interval
    }
}

/// Share of a new sample in the smoothed load. The last four samples make up about three quarters of it, so a burst shorter
/// than a sample hardly moves the weight.
#[cfg(feature = "load")]
const NEW_SHARE: f64 = 0.3;

/// Exponentially weighted moving average of load.
#[cfg(feature = "load")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Smoothed(Option<Load>);

#[cfg(feature = "load")]
impl Smoothed {
    /// Adds a sample, and returns the new average.
    pub(crate) fn add(&mut self, sample: Load) -> Load {
        let blend = |old: f64, new: f64| old + (new - old) * NEW_SHARE;
        let next = match self.0 {
            None => sample,
            Some(old) => Load {
                cpu_percent: blend(old.cpu_percent, sample.cpu_percent),
                memory_percent: blend(old.memory_percent, sample.memory_percent),
            },
        };
        self.0 = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Damping, Load, Smoothed, weight_of};

    fn weight(cpu_percent: f64, memory_percent: f64) -> u32 {
        weight_of(Load { cpu_percent, memory_percent }).value()
    }

    #[test]
    fn weight_follows_the_formula() {
        assert_eq!(weight(0.0, 0.0), 100);
        assert_eq!(weight(100.0, 100.0), 1);
        assert_eq!(weight(54.0, 0.0), 73);
        assert_eq!(weight(20.0, 40.0), 70);
    }

    #[test]
    fn a_half_rounds_away_from_zero() {
        assert_eq!(weight(1.0, 0.0), 100); // 99.5
        assert_eq!(weight(3.0, 0.0), 99); // 98.5
    }

    #[test]
    fn absurd_loads_stay_in_range() {
        assert_eq!(weight(-5.0, 250.0), 50);
        assert_eq!(weight(f64::NAN, 0.0), 1);
    }

    #[test]
    fn small_moves_and_quick_moves_are_not_written() {
        let damping = Damping { dead_band: 5, min_interval: Duration::from_secs(10) };
        let passes = |from: u32, to: u32, seconds| {
            damping.lets_through(from.try_into().unwrap(), to.try_into().unwrap(), Duration::from_secs(seconds))
        };
        assert!(passes(50, 55, 10));
        assert!(passes(55, 50, 60));
        assert!(!passes(50, 54, 60));
        assert!(!passes(50, 90, 9));
    }

    #[test]
    fn an_equal_weight_is_never_written() {
        let damping = Damping { dead_band: 0, min_interval: Duration::ZERO };
        let fifty = 50.try_into().unwrap();
        assert!(!damping.lets_through(fifty, fifty, Duration::MAX));
    }

    #[test]
    fn a_burst_is_smoothed() {
        let mut smoothed = Smoothed::default();
        let idle = Load { cpu_percent: 0.0, memory_percent: 10.0 };
        smoothed.add(idle);
        let after_burst = smoothed.add(Load { cpu_percent: 100.0, ..idle });
        assert!((after_burst.cpu_percent - 30.0).abs() < 0.001);
    }
}
