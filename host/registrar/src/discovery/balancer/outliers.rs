//! Outliers: nodes that respond, but badly or too late, are ejected for a while, though never more than half of them.
//!
//! The rules are those of Envoy's outlier detection, with its defaults: consecutive failures, and a success rate far below that
//! of the others.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::discovery::balancer::pick::EndpointStats;

/// Interval over which success rates are computed.
const INTERVAL: Duration = Duration::from_secs(10);
/// Calls in an interval that a node needs for a success rate.
const VOLUME: u32 = 100;
/// Nodes with a success rate that are needed to compare them.
const HOSTS: usize = 5;
/// Standard deviations below the mean from which a node is an outlier.
const DEVIATIONS: f64 = 1.9;

/// Rules by which a node that responds badly is ejected.
///
/// Written by struct update, `OutlierRules { consecutive, ..OutlierRules::default() }`, since a minor release may add a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierRules {
    /// Failures in a row that eject a node; at 0 they do not.
    ///
    /// By default 5.
    pub consecutive: u32,
    /// Ejects nodes whose success rate over ten seconds is far below the mean: by 1.9 standard deviations, among at least five nodes
    /// with a hundred calls each.
    ///
    /// By default true.
    pub by_success_rate: bool,
}

impl Default for OutlierRules {
    fn default() -> Self {
        Self { consecutive: 5, by_success_rate: true }
    }
}

/// The ejected outliers of one balancer.
#[derive(Debug, Default)]
pub(super) struct Outliers(Mutex<State>);

/// State of an interval over which success rates are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interval {
    Running,
    Over,
    /// It has begun long before, since no response was bad.
    Unwatched,
}

#[derive(Debug, Default)]
struct State {
    ejected: Vec<Weak<EndpointStats>>,
    /// End of the interval; `None` before the first failure.
    interval_ends: Option<Instant>,
}

impl Outliers {
    /// Ejects a node, unless half of the nodes are ejected already. Returns true if it is ejected now.
    pub(super) fn eject(&self, stats: &Arc<EndpointStats>, nodes: usize) -> bool {
        self.0.lock().eject(stats, nodes)
    }

    /// Looks if an interval is over, which begins the next one.
    pub(super) fn next_interval(&self, now: Instant) -> Interval {
        let mut state = self.0.lock();
        let interval = match state.interval_ends {
            Some(end) if now < end => return Interval::Running,
            Some(end) if now < end + INTERVAL => Interval::Over,
            _ => Interval::Unwatched,
        };
        state.interval_ends = Some(now + INTERVAL);
        interval
    }

    /// Takes the success rates of the nodes, and ejects those that are far below the mean, unless the time that they are of is too
    /// long. Returns the number of ejected nodes.
    pub(super) fn judge(&self, all: &[&Arc<EndpointStats>], nodes: usize, interval: Interval) -> usize {
        let rated = all.iter().filter_map(|stats| Some((*stats, stats.take_success_rate(VOLUME)?)));
        let rated: Vec<_> = rated.collect();
        if rated.len() < HOSTS || interval != Interval::Over {
            return 0;
        }
        let count = rated.len() as f64;
        let mean = rated.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rated.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - DEVIATIONS * variance.sqrt();
        let mut state = self.0.lock();
        rated.iter().filter(|(stats, rate)| *rate < threshold && state.eject(stats, nodes)).count()
    }
}

impl State {
    fn eject(&mut self, stats: &Arc<EndpointStats>, nodes: usize) -> bool {
        self.ejected.retain(|ejected| ejected.upgrade().is_some_and(|ejected| ejected.is_ejected()));
        if stats.is_ejected() || 2 * (self.ejected.len() + 1) > nodes {
            return false;
        }
        stats.eject_outlier();
        self.ejected.push(Arc::downgrade(stats));
        true
    }
}
