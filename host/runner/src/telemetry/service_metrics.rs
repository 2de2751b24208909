//! Metrics of one service: its requests with their durations, rejections, and incidents.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use http::StatusCode;
use leasehold::ServiceName;
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use strum::{EnumCount, EnumIter, IntoEnumIterator, IntoStaticStr};

use crate::{
    rejection::RejectReason,
    telemetry::{
        request::{RequestIdentity, log_request},
        throttle::Throttle,
    },
};

/// Buckets of the time until a response begins, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Targets of outgoing requests with a counter of their own; a component that may call any service can invent names.
const MAX_TARGETS: usize = 256;
/// Label of all further targets.
const OTHERS: &str = "others";

/// Processor time of a component, in seconds.
pub(crate) type CpuTime = Counter<f64, AtomicU64>;

/// Metrics of one service. They outlive its instances and its revisions.
#[derive(Debug)]
pub(crate) struct Stats {
    service: ServiceName,
    /// Responses by the first digit of the status, from 1.
    classes: [Counter; 5],
    /// Time until the response begins.
    pub(crate) duration: Histogram,
    rejections: Counters<{ RejectReason::COUNT }>,
    incidents: Counters<{ Incident::COUNT }>,
    /// Requests that failed since their instance trapped.
    trapped: Counter,
    /// Requests that failed, and are not counted against the component.
    excused: Counter,
    within: Gauge,
    /// Attempts to start the service that failed.
    pub(crate) start_failures: Counter,
    outgoing: Mutex<BTreeMap<String, Outgoing>>,
    pub(crate) cpu: CpuTime,
    /// Bytes of linear memory of all instances.
    pub(crate) memory: Gauge,
}

/// Outcomes of the requests that a component sent to one target.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Events of calls by name; none for a host.
    calls: Option<[u64; CallEvent::COUNT]>,
}

impl Outgoing {
    /// Events of calls by name, by kind.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.calls;
        counts.into_iter().flat_map(|counts| CallEvent::iter().map(move |event| (event.into(), counts[event as usize])))
    }
}

/// Event of a call by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum CallEvent {
    /// The call ended with a response that does not count against its node.
    Succeeded,
    /// The call ended with a response that counts against its node.
    Failed,
    /// The call ended without a response.
    NoResponse,
    /// The call was not made, since too many were in flight.
    Refused,
    /// The call was sent to one more node.
    Retried,
    /// The call was not sent to one more node, since the budget of retries was spent.
    BudgetSpent,
    /// The node of the call was ejected, or another one for its success rate.
    Ejected,
}

/// Numbers of requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Requests that the component failed to answer.
    pub(crate) failed: u64,
    /// Failed requests whose instance trapped.
    pub(crate) trapped: u64,
    /// All requests with a response, including the host's own.
    pub(crate) all: u64,
}

impl Tally {
    /// Difference to an earlier tally.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            failed: self.failed.saturating_sub(before.failed),
            trapped: self.trapped.saturating_sub(before.trapped),
            all: self.all.saturating_sub(before.all),
        }
    }
}

/// An admitted request, until its response has been sent.
pub(crate) struct Within(Arc<Stats>);

impl Drop for Within {
    fn drop(&mut self) {
        self.0.within.dec();
    }
}

/// An event that an operator may want to know of, beside rejected requests; its name is that of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Incident {
    /// The policy does not allow a request of the component.
    OutgoingDenied,
    /// The component had as many requests of its own in flight as it may.
    OutgoingLimit,
    /// The listener had as many connections as it may.
    ConnectionLimit,
    /// A connection was cut because its client was too slow.
    SlowClient,
    /// An instance was refused memory.
    MemoryLimit,
    /// An instance trapped.
    Trap,
    /// A program ended by itself.
    ProgramExit,
    /// A line that the component printed was left out of the log.
    OutputLimit,
    /// The service was not withdrawn although it fails: too few other nodes would remain.
    TooFewNodes,
}

/// Interval between two log lines about one limit, at least.
const REMINDER: Duration = Duration::from_secs(30);

/// Sentence about a limit of the configuration that rejected a request.
fn rejecting_limit(reason: RejectReason) -> Option<&'static str> {
    match reason {
        RejectReason::QueueFull => Some("requests are rejected: limits.concurrency lets no more be served or queued"),
        RejectReason::QueueTimeout => {
            Some("requests are rejected: they waited too long for a slot of limits.concurrency")
        }
        RejectReason::HeadersTooLarge => Some("requests are rejected: their headers exceed limits.header_size"),
        RejectReason::BodyTooLarge => Some("requests are rejected: their bodies exceed limits.body_size"),
        _ => None,
    }
}

impl Incident {
    /// Sentence about a limit of the configuration that was reached.
    fn limit(self) -> Option<&'static str> {
        match self {
            Self::OutgoingLimit => Some("requests of the component wait: limits.outgoing lets no more be in flight"),
            Self::ConnectionLimit => Some("new connections wait: limits.connections lets no more be open"),
            Self::SlowClient => Some("a connection was cut: its client was silent for limits.client_timeout"),
            Self::MemoryLimit => Some("an instance was refused memory beyond limits.memory"),
            _ => None,
        }
    }
}

/// Counters of one enum, with a throttle for the log line of each.
#[derive(Debug)]
struct Counters<const N: usize> {
    counts: [Counter; N],
    reminders: [Throttle; N],
}

impl<const N: usize> Counters<N> {
    fn new() -> Self {
        Self { counts: std::array::from_fn(|_| Counter::default()), reminders: [const { Throttle::new(REMINDER) }; N] }
    }
}

impl Stats {
    pub(crate) fn new(service: ServiceName) -> Self {
        Self {
            service,
            rejections: Counters::new(),
            incidents: Counters::new(),
            trapped: Counter::default(),
            excused: Counter::default(),
            classes: Default::default(),
            duration: Histogram::new(BOUNDS),
            within: Gauge::default(),
            start_failures: Counter::default(),
            outgoing: Mutex::default(),
            cpu: CpuTime::default(),
            memory: Gauge::default(),
        }
    }

    /// Counts a response that begins.
    pub(crate) fn responded(&self, status: StatusCode, after: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, self.classes.len());
        self.classes[class - 1].inc();
        self.duration.observe(after.as_secs_f64());
    }

    /// Counts an admitted request.
    pub(crate) fn enter(self: &Arc<Self>) -> Within {
        self.within.inc();
        Within(Arc::clone(self))
    }

    /// Admitted requests whose response is not complete.
    pub(crate) fn within(&self) -> i64 {
        self.within.get()
    }

    /// Counts a request that the component sent to a host or a service.
    pub(crate) fn sent(&self, to: &str, answered: bool) {
        self.count_outgoing(to, |target| *(if answered { &mut target.answered } else { &mut target.failed }) += 1);
    }

    /// Counts events of calls by name to a service.
    pub(crate) fn called(&self, to: &str, event: CallEvent, times: usize) {
        let add = |target: &mut Outgoing| target.calls.get_or_insert_default()[event as usize] += times as u64;
        if times > 0 {
            self.count_outgoing(to, add);
        }
    }

    fn count_outgoing(&self, to: &str, count: impl FnOnce(&mut Outgoing)) {
        let mut outgoing = self.outgoing();
        let key = if outgoing.len() < MAX_TARGETS || outgoing.contains_key(to) { to } else { OTHERS };
        match outgoing.get_mut(key) {
            Some(target) => count(target),
            None => count(outgoing.entry(key.to_owned()).or_default()),
        }
    }

    /// Outcomes of outgoing requests, by target.
    pub(crate) fn outgoing(&self) -> MutexGuard<'_, BTreeMap<String, Outgoing>> {
        self.outgoing.lock()
    }

    /// Counts a rejected request, and logs now and then which limit rejects requests, with one of them if it is known.
    pub(crate) fn reject(&self, reason: RejectReason, request: Option<&RequestIdentity>) {
        self.rejections.counts[reason as usize].inc();
        let (limit, reminder) = (rejecting_limit(reason), &self.rejections.reminders[reason as usize]);
        match (limit, request) {
            (Some(limit), Some(request)) => {
                if let Some(suppressed) = reminder.admit(Instant::now()) {
                    log_request!(warn, self.service, request, "{limit}{suppressed}");
                }
            }
            (limit, _) => self.remind(limit, reminder),
        }
    }

    /// Counts an incident, and logs now and then which limit was reached.
    pub(crate) fn incident(&self, incident: Incident) {
        self.incidents.counts[incident as usize].inc();
        self.remind(incident.limit(), &self.incidents.reminders[incident as usize]);
    }

    fn remind(&self, limit: Option<&str>, reminder: &Throttle) {
        if let Some(limit) = limit
            && let Some(suppressed) = reminder.admit(Instant::now())
        {
            tracing::warn!(service = %self.service, "{limit}{suppressed}");
        }
    }

    /// Requests that failed since their instance trapped.
    pub(crate) fn trapped(&self, requests: usize) {
        self.trapped.inc_by(requests as u64);
    }

    /// Counts a failed request that is not held against the component.
    pub(crate) fn excuse(&self) {
        self.excused.inc();
    }

    /// The service of these metrics.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Requests until now.
    pub(crate) fn tally(&self) -> Tally {
        let failures = [RejectReason::ComponentFailed, RejectReason::InstantiationFailed];
        let failed: u64 = failures.iter().map(|reason| self.rejections.counts[*reason as usize].get()).sum();
        Tally {
            // A concurrent request may have increased one counter and not yet the other.
            failed: failed.saturating_sub(self.excused.get()),
            trapped: self.trapped.get(),
            all: self.classes.iter().map(|count| count.get()).sum(),
        }
    }

    /// Responses by class: `2xx` and so on.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&self.classes)
    }

    /// Rejected requests by reason.
    pub(crate) fn rejections(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        RejectReason::iter().map(|reason| (reason.into(), &self.rejections.counts[reason as usize]))
    }

    /// Incidents by kind.
    pub(crate) fn incidents(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        Incident::iter().map(|incident| (incident.into(), &self.incidents.counts[incident as usize]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use strum::IntoEnumIterator;

    use super::{Incident, MAX_TARGETS, OTHERS, RejectReason, Stats, Tally};

    #[test]
    fn each_event_is_counted_under_its_own_name() {
        let stats = Stats::new("greeter".parse().unwrap());
        stats.responded(StatusCode::NOT_FOUND, Duration::from_millis(3));
        stats.responded(StatusCode::from_u16(999).unwrap(), Duration::ZERO);
        let classes: Vec<_> = stats.classes().map(|(class, count)| (class, count.get())).collect();
        assert_eq!(classes, [("1xx", 0), ("2xx", 0), ("3xx", 0), ("4xx", 1), ("5xx", 1)]);
        assert_eq!(stats.tally(), Tally { all: 2, ..Tally::default() });
        for reason in RejectReason::iter() {
            stats.reject(reason, None);
            let name = <&str>::from(reason);
            assert!(stats.rejections().any(|(found, count)| found == name && count.get() == 1), "{name}");
        }
        for incident in Incident::iter() {
            stats.incident(incident);
            let name = <&str>::from(incident);
            assert!(stats.incidents().any(|(found, count)| found == name && count.get() == 1), "{name}");
        }
        stats.trapped(1);
        assert_eq!(stats.tally(), Tally { failed: 2, trapped: 1, all: 2 });
    }

    #[test]
    fn made_up_targets_are_counted_together() {
        let stats = Stats::new("greeter".parse().unwrap());
        for number in 0..2 * MAX_TARGETS {
            stats.sent(&number.to_string(), true);
        }
        stats.sent("0", false);
        let outgoing = stats.outgoing();
        assert_eq!((outgoing["0"].answered, outgoing["0"].failed), (1, 1));
        assert_eq!((outgoing.len(), outgoing[OTHERS].answered), (MAX_TARGETS + 1, MAX_TARGETS as u64));
    }
}
