//! Health of a service: its probes and its failures, and when it is to leave etcd or return.

pub(crate) mod outlier;
pub(crate) mod panic_threshold;
pub(crate) mod probe;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use leasehold::ServiceName;
use tokio::time::{Instant, sleep_until};

use crate::{
    config::Health,
    inbound::dispatch::CurrentDispatcher,
    service::health::{
        outlier::{FIRST_PAUSE, LONGEST_PAUSE, OutlierDetector},
        panic_threshold::{Decision, PanicThreshold},
        probe::{probe, probe_at},
    },
    telemetry::{
        service_metrics::{Incident, Stats},
        throttle::Throttle,
    },
};

/// Interval between two samples of the failures.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two log lines about a failing component that is not withdrawn.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Interval between two connections to a program without a health check, and the failures in a row that make it unhealthy.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);
const CONNECT_FAILURES: u32 = 3;

/// A change of a service's health.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The service is to leave etcd, for this reason.
    Unhealthy(String),
    /// The service may be in etcd.
    Healthy,
}

/// Recipient of the probes.
pub(crate) enum ProbeTarget {
    /// The component behind the current dispatcher, by the service's address.
    Dispatcher(CurrentDispatcher, String),
    /// The address at which a program listens. Without a health check a connection passes.
    Address(SocketAddr),
}

/// Watches the health of one service.
pub(crate) struct HealthMonitor {
    health: Option<Health>,
    target: ProbeTarget,
    stats: Arc<Stats>,
    panic_threshold: PanicThreshold,
    /// Log lines about a failing component that is not withdrawn.
    not_withdrawn: Throttle,
    condition: Condition,
    probes: ProbeThreshold,
    outliers: OutlierDetector,
    next_probe: Instant,
    next_sample: Instant,
    /// Reason of the latest failed probe.
    pub(crate) last_failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Healthy,
    /// The health check fails.
    Unhealthy,
    /// Too many requests fail.
    Quarantined,
}

impl HealthMonitor {
    /// A service with a health check is unhealthy until its first probe passes, unless it is `trusted` until then.
    pub(crate) fn new(
        health: Option<Health>,
        target: ProbeTarget,
        stats: Arc<Stats>,
        panic_threshold: PanicThreshold,
        trusted: bool,
    ) -> Self {
        let now = Instant::now();
        let is_healthy = trusted || health.is_none();
        Self {
            condition: if is_healthy { Condition::Healthy } else { Condition::Unhealthy },
            probes: ProbeThreshold::new(is_healthy),
            outliers: OutlierDetector::new(now, stats.tally()),
            panic_threshold,
            not_withdrawn: Throttle::new(LOG_INTERVAL),
            health,
            target,
            stats,
            next_probe: now,
            next_sample: now + SAMPLE_INTERVAL,
            last_failure: None,
        }
    }

    /// Returns true if the service may be in etcd.
    pub(crate) fn is_healthy(&self) -> bool {
        self.condition == Condition::Healthy
    }

    /// Waits for the next change. Dropped halfway, it loses none.
    pub(crate) async fn next(&mut self) -> Verdict {
        loop {
            let has_check = self.health.is_some() || matches!(self.target, ProbeTarget::Address(_));
            let is_probed = has_check || self.condition != Condition::Healthy;
            tokio::select! {
                () = sleep_until(self.next_sample), if self.condition != Condition::Unhealthy => {
                    self.next_sample = Instant::now() + SAMPLE_INTERVAL;
                    let verdict = match self.condition {
                        Condition::Quarantined => self.on_quarantine_sample(),
                        _ => self.on_sample().await,
                    };
                    if let Some(verdict) = verdict {
                        return verdict;
                    }
                }
                () = sleep_until(self.next_probe), if is_probed => {
                    if let Some(verdict) = self.on_probe_due().await {
                        return verdict;
                    }
                }
            }
        }
    }

    /// Looks at the failures of a service that is healthy so far.
    async fn on_sample(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        let requests = self.outliers.sample(now, self.stats.tally());
        match requests.failed {
            0 => self.panic_threshold.rest(now),
            _ => self.panic_threshold.watch(now).await,
        }
        if !self.outliers.is_outlier(now, requests) {
            return None;
        }
        let why = format!("{} of its last {} requests failed", requests.failed, requests.all);
        let mostly_traps = requests.trapped.saturating_mul(2) >= requests.failed;
        if !(mostly_traps && self.panic_threshold.excepts_traps()) {
            match self.panic_threshold.decide(now) {
                Decision::Withdraw => {}
                Decision::Wait => return None,
                Decision::Keep(reason) => {
                    if let Some(suppressed) = self.not_withdrawn.admit(now.into_std()) {
                        self.stats.incident(Incident::TooFewNodes);
                        tracing::warn!(service = %self.service(), "not withdrawn, although {why}: {reason}{suppressed}");
                    }
                    return None;
                }
            }
        }
        self.outliers.quarantine();
        self.condition = Condition::Quarantined;
        self.next_probe = now + self.outliers.pause;
        Some(Verdict::Unhealthy(why))
    }

    /// Brings back a service of which too few other nodes remain by now. It is not withdrawn again for a while.
    fn on_quarantine_sample(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        if !self.panic_threshold.is_needed(now) {
            return None;
        }
        tracing::warn!(service = %self.service(), "brought back, although it failed: too few others remain (health.panic_threshold)");
        self.outliers.excuse(now);
        Some(self.release(now))
    }

    async fn on_probe_due(&mut self) -> Option<Verdict> {
        let outcome = self.probe().await;
        self.last_failure = outcome.as_ref().err().cloned().or(self.last_failure.take());
        let now = Instant::now();
        let (interval, rise, fall) = match (&self.health, &self.target) {
            (Some(health), _) => (health.interval, health.rise, health.fall),
            (None, ProbeTarget::Address(_)) => (CONNECT_INTERVAL, 1, CONNECT_FAILURES),
            (None, ProbeTarget::Dispatcher(..)) => (LONGEST_PAUSE, 1, 1),
        };
        self.next_probe = now + interval;
        if self.condition == Condition::Quarantined {
            if let Err(why) = outcome {
                tracing::debug!("still in quarantine: {why}");
                self.next_probe = now + self.outliers.extend_pause();
                return None;
            }
            return Some(self.release(now));
        }
        if !self.probes.add(outcome.is_ok(), rise, fall) {
            return None;
        }
        match outcome {
            Ok(()) => {
                self.condition = Condition::Healthy;
                Some(Verdict::Healthy)
            }
            Err(why) => {
                self.condition = Condition::Unhealthy;
                Some(Verdict::Unhealthy(format!("its health check fails: {why}")))
            }
        }
    }

    /// Ends a quarantine.
    fn release(&mut self, now: Instant) -> Verdict {
        self.outliers.release(now, self.stats.tally());
        self.probes = ProbeThreshold::new(true);
        self.condition = Condition::Healthy;
        Verdict::Healthy
    }

    /// Treats the service as unhealthy: it could not be announced, or has to pass a probe first.
    pub(crate) fn again(&mut self) {
        self.condition = Condition::Unhealthy;
        self.probes = ProbeThreshold::new(false);
        self.next_probe = Instant::now() + FIRST_PAUSE;
    }

    /// Forgets the failures of a former revision, and probes the new one at once. A revision whose health check has passed
    /// is healthy.
    pub(crate) fn reset(&mut self, is_proven: bool) {
        let now = Instant::now();
        if is_proven {
            (self.condition, self.probes) = (Condition::Healthy, ProbeThreshold::new(true));
        }
        self.outliers = OutlierDetector::new(now, self.stats.tally());
        self.next_probe = now;
    }

    /// Sends one probe. The error says what is wrong with the response.
    async fn probe(&self) -> Result<(), String> {
        match &self.target {
            ProbeTarget::Dispatcher(current, authority) => {
                let dispatcher = current.load_full();
                probe(&dispatcher, &dispatcher.admission, self.health.as_ref(), authority).await
            }
            ProbeTarget::Address(addr) => probe_at(*addr, None, self.health.as_ref()).await,
        }
    }

    fn service(&self) -> &ServiceName {
        self.stats.service()
    }
}

/// Health by the probes: changes after enough results in a row that speak against it.
#[derive(Debug, PartialEq, Eq)]
struct ProbeThreshold {
    is_healthy: bool,
    against: u32,
}

impl ProbeThreshold {
    fn new(is_healthy: bool) -> Self {
        Self { is_healthy, against: 0 }
    }

    /// Adds a result. Returns true if it changes the health: `rise` passed probes in a row, or `fall` failed ones.
    fn add(&mut self, passed: bool, rise: u32, fall: u32) -> bool {
        if passed == self.is_healthy {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let changes = self.against >= if self.is_healthy { fall } else { rise };
        if changes {
            *self = Self::new(passed);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::ProbeThreshold;

    #[test]
    fn only_results_in_a_row_change_the_health() {
        let mut probes = ProbeThreshold::new(true);
        let changes = [false, false, true, false, false, false].map(|passed| probes.add(passed, 2, 3));
        assert_eq!(changes, [false, false, false, false, false, true]);
        let changes = [true, false, true, true].map(|passed| probes.add(passed, 2, 3));
        assert_eq!(changes, [false, false, false, true]);
        assert_eq!(probes, ProbeThreshold::new(true));
    }
}
