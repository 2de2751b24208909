//! What is counted of one service: the requests it answers, how long they take, and what it runs into.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use leasehold::ServiceName;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::telemetry::throttle::Throttle;

/// Upper bounds of the times in which answers begin, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Targets of outgoing requests that are told apart; a component that may call any service makes up names as it likes.
const MAX_TARGETS: usize = 256;
/// What the rest of them is called.
const OTHERS: &str = "others";

/// The counters of one service. They outlive its instances and its versions.
#[derive(Debug)]
pub(crate) struct Stats {
    service: ServiceName,
    /// By the first digit of the status, from 1.
    classes: [Counter; 5],
    /// Until the answer begins.
    pub(crate) duration: Histogram,
    hits: [Counter; HITS.len()],
    reminders: [Throttle; HITS.len()],
    /// Requests that failed since their instance trapped.
    trapped: Counter,
    /// Requests that failed, and are not counted against the component.
    excused: Counter,
    within: Gauge,
    /// Attempts to start the service that failed.
    pub(crate) start_failures: Counter,
    outgoing: Mutex<BTreeMap<String, Outgoing>>,
}

/// What came of the requests that a component sent to one target.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
}

/// Number of requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Those that the component failed to answer.
    pub(crate) failed: u64,
    /// Those of them whose instance trapped.
    pub(crate) trapped: u64,
    /// All that were answered, by whomever.
    pub(crate) all: u64,
}

impl Tally {
    /// What came since an earlier one.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            failed: self.failed.saturating_sub(before.failed),
            trapped: self.trapped.saturating_sub(before.trapped),
            all: self.all.saturating_sub(before.all),
        }
    }
}

/// A request that was let in, until its answer has been sent.
pub(crate) struct Within(Arc<Stats>);

impl Drop for Within {
    fn drop(&mut self) {
        self.0.within.dec();
    }
}

/// What a request or an instance can run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hit {
    /// Refused, since as many are answered and wait as may.
    Full,
    /// Refused after it had waited for its turn, or for an instance, too long.
    Waited,
    /// Refused, since the policy does not let the component send it.
    Denied,
    /// Refused, since the component has as many requests of its own under way as it may.
    Outgoing,
    /// A listener had as many connections as it may.
    Connections,
    /// A connection was cut, since its client was too slow.
    Slow,
    /// Refused, since its headers are larger than `header_size`.
    Headers,
    /// An instance was refused memory.
    Memory,
    /// Refused, since it named no host, or a malformed one.
    NoHost,
    /// Refused, since its target is malformed or not allowed for its method.
    Target,
    /// Refused, since its body has a transfer coding beside `chunked`.
    Coding,
    /// Not answered, since the client broke it off.
    Broken,
    /// Refused, since its body is larger than `body_size`.
    Large,
    /// Given up, since the component took longer than `request_timeout`.
    Late,
    /// The component failed to answer: it trapped, or broke off.
    Failed,
    /// An instance trapped.
    Trap,
    /// An instance could not be made.
    Instantiation,
    /// A program ended by itself.
    Fell,
    /// The component returned an error code in the place of a response.
    ErrorCode,
    /// A line that a component printed was left out.
    Output,
    /// The service was not withdrawn although it fails, since too few others would remain.
    TooFewRemain,
}

/// All of them, as they are called in metrics.
pub(crate) const HITS: [(Hit, &str); 21] = [
    (Hit::Full, "full"),
    (Hit::Waited, "waited"),
    (Hit::Denied, "denied"),
    (Hit::Outgoing, "outgoing"),
    (Hit::Connections, "connections"),
    (Hit::Slow, "slow"),
    (Hit::Headers, "headers"),
    (Hit::Memory, "memory"),
    (Hit::NoHost, "no_host"),
    (Hit::Target, "bad_target"),
    (Hit::Coding, "transfer_coding"),
    (Hit::Broken, "broken"),
    (Hit::Large, "large"),
    (Hit::Late, "late"),
    (Hit::Failed, "failed"),
    (Hit::Trap, "trap"),
    (Hit::Instantiation, "instantiation"),
    (Hit::Fell, "fell"),
    (Hit::ErrorCode, "error_code"),
    (Hit::Output, "output"),
    (Hit::TooFewRemain, "too_few_remain"),
];

/// How often it is logged that one limit is hit, at most.
const REMINDER: Duration = Duration::from_secs(30);

impl Hit {
    pub(crate) fn name(self) -> &'static str {
        HITS[self as usize].1
    }

    /// Sentence about a limit of the configuration that was hit.
    fn limit(self) -> Option<&'static str> {
        match self {
            Self::Full => {
                Some("a request is refused: as many are answered, and as many wait, as limits.concurrency lets")
            }
            Self::Waited => Some("a request is refused: it waited too long for one of limits.concurrency to end"),
            Self::Outgoing => {
                Some("a request of the component's own waits: as many are under way as limits.outgoing lets")
            }
            Self::Connections => Some("new connections wait: there are as many as limits.connections lets"),
            Self::Slow => Some("a connection is cut: its client said or took nothing for limits.client_timeout"),
            Self::Headers => Some("a request is refused: its headers are larger than limits.header_size"),
            Self::Large => Some("a request is refused: its body is larger than limits.body_size"),
            Self::Memory => Some("an instance is refused memory: it would have more than limits.memory"),
            _ => None,
        }
    }
}

impl Stats {
    pub(crate) fn new(service: ServiceName) -> Self {
        Self {
            service,
            reminders: [const { Throttle::new(REMINDER) }; HITS.len()],
            trapped: Counter::default(),
            excused: Counter::default(),
            classes: Default::default(),
            duration: Histogram::new(BOUNDS),
            hits: Default::default(),
            within: Gauge::default(),
            start_failures: Counter::default(),
            outgoing: Mutex::default(),
        }
    }

    /// A request whose answer begins, whoever gives it.
    pub(crate) fn responded(&self, status: StatusCode, after: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, self.classes.len());
        self.classes[class - 1].inc();
        self.duration.observe(after.as_secs_f64());
    }

    /// A request that is let in.
    pub(crate) fn enter(self: &Arc<Self>) -> Within {
        self.within.inc();
        Within(Arc::clone(self))
    }

    /// Requests that are answered or wait for their turn.
    pub(crate) fn within(&self) -> i64 {
        self.within.get()
    }

    /// A request of the component's own, to a host or a service.
    pub(crate) fn sent(&self, to: &str, answered: bool) {
        let mut outgoing = self.outgoing();
        let is_told_apart = outgoing.len() < MAX_TARGETS || outgoing.contains_key(to);
        let target = outgoing.entry(if is_told_apart { to } else { OTHERS }.to_owned()).or_default();
        *(if answered { &mut target.answered } else { &mut target.failed }) += 1;
    }

    /// What came of requests to others, by target.
    pub(crate) fn outgoing(&self) -> MutexGuard<'_, BTreeMap<String, Outgoing>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts it. Of a limit it is logged which one that is, now and then.
    pub(crate) fn hit(&self, hit: Hit) {
        self.hits[hit as usize].inc();
        if let Some(said) = hit.limit()
            && let Some(left_out) = self.reminders[hit as usize].admit(Instant::now())
        {
            tracing::warn!(service = %self.service, "{said}{left_out}");
        }
    }

    /// Requests that failed since their instance trapped.
    pub(crate) fn trapped(&self, requests: usize) {
        self.trapped.inc_by(requests as u64);
    }

    /// A request that failed, and is not counted against the component.
    pub(crate) fn excuse(&self) {
        self.excused.inc();
    }

    /// The service that is counted.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Requests so far.
    pub(crate) fn tally(&self) -> Tally {
        let failed: u64 = [Hit::Failed, Hit::Instantiation].iter().map(|hit| self.hits[*hit as usize].get()).sum();
        Tally {
            // Of a request at this moment the one is counted already and the other is not.
            failed: failed.saturating_sub(self.excused.get()),
            trapped: self.trapped.get(),
            all: self.classes.iter().map(|count| count.get()).sum(),
        }
    }

    /// Answers by class: `2xx` and so on.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&self.classes)
    }

    pub(crate) fn hits(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        HITS.iter().map(|(hit, name)| (*name, &self.hits[*hit as usize]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::{HITS, MAX_TARGETS, OTHERS, Stats, Tally};

    #[test]
    fn what_happened_is_counted_under_its_own_name() {
        let stats = Stats::new("greeter".parse().unwrap());
        stats.responded(StatusCode::NOT_FOUND, Duration::from_millis(3));
        stats.responded(StatusCode::from_u16(999).unwrap(), Duration::ZERO);
        let classes: Vec<_> = stats.classes().map(|(class, count)| (class, count.get())).collect();
        assert_eq!(classes, [("1xx", 0), ("2xx", 0), ("3xx", 0), ("4xx", 1), ("5xx", 1)]);
        assert_eq!(stats.tally(), Tally { all: 2, ..Tally::default() });
        for (number, (hit, name)) in HITS.into_iter().enumerate() {
            assert_eq!(hit as usize, number);
            stats.hit(hit);
            assert!(stats.hits().any(|(found, count)| found == name && count.get() == 1));
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
