//! The text of `/metrics`, made at the moment of a scrape.

use std::{fmt, sync::Arc, time::Duration};

use leasehold::{Event, EventKind, Latency, Registrar, Registration, State, View};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
    },
    registry::Registry,
};
use strum::IntoEnumIterator;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    service::handle::{Phase, Readiness, ServiceHandle, Services, Snapshot},
    telemetry::process_metrics::ProcessSample,
};

/// Largest number of services that are shown in full. A host with more shows of each service what is not zero, so that the
/// page stays readable and small.
const MAX_FULL: usize = 100;

/// Content type of OpenMetrics.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of Prometheus' text format, which precedes OpenMetrics.
pub(crate) const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns true if a reader accepts the text format, and not OpenMetrics.
pub(crate) fn wants_text_format(accept: &str) -> bool {
    accept.contains("text/plain") && !accept.contains("application/openmetrics-text")
}

/// Converts a page to the text format, in which the description of a counter has its full name, too, and no line marks the end.
/// prometheus-client writes OpenMetrics alone.
pub(crate) fn text_format(page: &str) -> String {
    let described = |line: &str| match line.split_once(' ').and_then(|(_, rest)| rest.split_once(' ')) {
        Some(("TYPE", rest)) => rest.strip_suffix(" counter").map(str::to_owned),
        _ => None,
    };
    let counters: Vec<String> = page.lines().filter_map(described).collect();
    let mut text = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word), Some(name), Some(rest)) if counters.iter().any(|counter| counter == name) => {
                text.extend(["# ", word, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Longest wait for etcd in one scrape.
const ETCD_TIMEOUT: Duration = Duration::from_secs(1);

/// States of a registration that has not ended, in the order in which they are shown. The registrar's enum has more.
const STATES: [State; 6] =
    [State::Pending, State::Registered, State::Suspect, State::Recovering, State::Conflict, State::Draining];

/// Kinds of events with their names in metrics; the registrar has other names for the log.
const EVENTS: [(EventKind, &str); 12] = [
    (EventKind::Registered, "registered"),
    (EventKind::TookOver, "took_over"),
    (EventKind::Renewed, "renewed"),
    (EventKind::Suspect, "suspect"),
    (EventKind::Confirmed, "confirmed"),
    (EventKind::Recovering, "recovering"),
    (EventKind::Recovered, "recovered"),
    (EventKind::Healed, "healed"),
    (EventKind::Conflict, "conflict"),
    (EventKind::Weighed, "weighed"),
    (EventKind::Updated, "updated"),
    (EventKind::Stopped, "stopped"),
];

/// Counters of the registrar's events.
#[derive(Debug, Default)]
pub(crate) struct Events([Counter; EVENTS.len()]);

impl Events {
    /// Counts until the registrar ends, or `done`.
    pub(crate) async fn count(self: Arc<Self>, mut events: Receiver<Event>, done: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = done.cancelled() => return,
            };
            match event {
                Ok(event) => {
                    let counted = EVENTS.iter().position(|(kind, _)| *kind == event.kind);
                    counted.map(|kind| self.0[kind].inc());
                }
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "events went by too fast to be counted"),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// The text of a scrape. Sends etcd one request, and waits for a second at most.
pub(crate) async fn scrape(services: &Arc<Services>, events: &Arc<Events>, registrar: &Registrar) -> String {
    let etcd_is_up = timeout(ETCD_TIMEOUT, registrar.reach()).await.is_ok_and(|answer| answer.is_ok());
    let latencies = registrar.latencies();
    let (services, events) = (Arc::clone(services), Arc::clone(events));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics));
    let leasehold = registry.sub_registry_with_prefix("leasehold");
    leasehold.register_collector(Box::new(Scrape { services, events, etcd_is_up, latencies }));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("a string takes all that is written");
    page
}

/// The metrics of the process, whose names have no prefix.
#[derive(Debug)]
struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(sample) = ProcessSample::read() else { return Ok(()) };
        let mut page = Page(encoder);
        let cpu = page.0.encode_descriptor(
            "process_cpu_seconds",
            "Processor time of the host, user and system",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(sample.cpu_seconds).encode(cpu)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory of the host", sample.resident_bytes),
            ("process_open_fds", "Open file descriptors of the host", sample.open_fds),
            ("process_max_fds", "Limit of open file descriptors", sample.max_fds),
            ("process_start_time_seconds", "Start of the host, in seconds since 1970", sample.start_time),
        ] {
            ConstGauge::new(value).encode(page.0.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

struct Scrape {
    services: Arc<Services>,
    events: Arc<Events>,
    /// etcd answered this scrape.
    etcd_is_up: bool,
    latencies: Vec<Latency>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.process(&mut page)?;
        self.latencies(&mut page)?;
        let snapshots: Vec<_> = self.services.all().iter().map(ServiceHandle::snapshot).collect();
        let services = ServiceSamples { is_full: snapshots.len() <= MAX_FULL, snapshots };
        services.phases(&mut page)?;
        services.requests(&mut page)?;
        services.instances(&mut page)?;
        services.views(&mut page)?;
        services.registrations(&mut page)
    }
}

impl Scrape {
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(
            "build_info",
            "Version and commit of the host, with the value 1",
            [(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", env!("LEASEHOLD_COMMIT"))], 1.0)],
        )?;
        let up = f64::from(u8::from(self.etcd_is_up));
        page.gauge("etcd_up", "1 if etcd responded to this scrape", [(vec![], up)])?;
        let counts = EVENTS.iter().zip(&self.events.0);
        let counts = counts.map(|((_, name), count)| (vec![("event", *name)], count.get()));
        page.counter("lease_events", "Events of leases and keys", counts)
    }

    fn latencies(&self, page: &mut Page<'_>) -> fmt::Result {
        let verbs: Vec<_> = self.latencies.iter().map(|latency| (latency, latency.verb.to_string())).collect();
        let (name, help) = ("etcd_request_duration_seconds", "Duration of requests to etcd");
        let mut family = page.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let seconds = |bound: Duration| if bound == Duration::MAX { f64::INFINITY } else { bound.as_secs_f64() };
        for (latency, verb) in &verbs {
            let buckets: Vec<_> = latency.buckets.iter().map(|(bound, count)| (seconds(*bound), *count)).collect();
            let all = latency.buckets.iter().map(|(_, count)| count).sum();
            let labels: Labels<'_> = vec![("verb", verb.as_str())];
            let mut series = family.encode_family(&labels)?;
            series.encode_histogram::<NoLabelSet>(latency.total.as_secs_f64(), all, &buckets, None)?;
        }
        let failed = verbs.iter().map(|(latency, verb)| (vec![("verb", verb.as_str())], latency.failed));
        page.counter("etcd_requests_failed", "Requests to etcd that failed or timed out", failed)
    }
}

/// The services at the moment of the scrape.
struct ServiceSamples {
    snapshots: Vec<Snapshot>,
    /// Samples with the value zero are shown, too.
    is_full: bool,
}

impl ServiceSamples {
    fn phases(&self, page: &mut Page<'_>) -> fmt::Result {
        let names: Vec<_> = Phase::iter().map(|phase| (phase, phase.to_string())).collect();
        let phases = self.services().flat_map(|service| {
            let now = service.status.phase;
            let shown = names.iter().map(move |(phase, name)| (*phase == now, name));
            let shown = shown.filter(|(is, _)| self.is_full || *is);
            shown.map(move |(is, name)| (with(labels(service), "phase", name), f64::from(u8::from(is))))
        });
        page.gauge("service_phase", "1 for the current phase of the service", phases)?;
        let ready = self.services().map(|service| {
            let is_out = matches!(service.readiness(), Readiness::NotReady(_));
            (labels(service), f64::from(u8::from(!is_out)))
        });
        page.gauge("service_ready", "1 if the service is registered and served", ready)?;
        let failures = self.services().map(|service| (labels(service), service.handle.stats.start_failures.get()));
        page.counter("start_failures", "Failed attempts to start the service", failures)
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let classes = self.services().flat_map(|service| {
            let classes = service.handle.stats.classes();
            let shown = classes.filter(|(_, count)| self.is_full || count.get() > 0);
            shown.map(|(class, count)| (with(labels(service), "class", class), count.get()))
        });
        page.counter("requests", "Responses by status class, including the error responses of the host", classes)?;
        let rejections = self.services().flat_map(|service| {
            let rejections = service.handle.stats.rejections();
            let shown = rejections.filter(|(_, count)| self.is_full || count.get() > 0);
            shown.map(|(reason, count)| (with(labels(service), "reason", reason), count.get()))
        });
        page.counter("rejected_requests", "Requests without a response of the component, by reason", rejections)?;
        let incidents = self.services().flat_map(|service| {
            let incidents = service.handle.stats.incidents();
            let shown = incidents.filter(|(_, count)| self.is_full || count.get() > 0);
            shown.map(|(kind, count)| (with(labels(service), "kind", kind), count.get()))
        });
        page.counter("incidents", "Limits that were reached, traps and unexpected ends, by kind", incidents)?;
        let within = self.services().map(|service| (labels(service), service.handle.stats.within() as f64));
        page.gauge("requests_in_flight", "Requests that are queued or whose response is not complete", within)?;
        let outgoing: Vec<_> =
            self.services().map(|service| (service, service.handle.stats.outgoing().clone())).collect();
        let calls = outgoing.iter().flat_map(|(service, targets)| {
            targets.iter().flat_map(move |(target, count)| {
                let labels = move || with(labels(service), "target", target);
                count.calls().map(move |(event, count)| (with(labels(), "event", event), count))
            })
        });
        page.counter("calls", "Events of calls by name", calls)?;
        let outgoing = outgoing.iter().flat_map(|(service, targets)| {
            targets.iter().flat_map(move |(target, count)| {
                [("answered", count.answered), ("failed", count.failed)]
                    .map(|(result, count)| (with(with(labels(service), "target", target), "result", result), count))
            })
        });
        page.counter("outgoing_requests", "Requests sent by the component", outgoing)?;
        let help = "Time until the response begins";
        let mut family = page.0.encode_descriptor("request_duration_seconds", help, None, MetricType::Histogram)?;
        let has_requests = |service: &&Snapshot| self.is_full || service.handle.stats.tally().all > 0;
        for service in self.services().filter(has_requests) {
            service.handle.stats.duration.encode(family.encode_family(&labels(service))?)?;
        }
        Ok(())
    }

    fn instances(&self, page: &mut Page<'_>) -> fmt::Result {
        let used = self.services().map(|service| (labels(service), whole(service.instances().0)));
        page.gauge("instances", "Instances in use or kept for further requests", used)?;
        let most = self.services().map(|service| (labels(service), f64::from(service.instances().1)));
        page.gauge("instances_limit", "Limit of instances", most)?;
        let memory = self.services().map(|service| (labels(service), service.handle.stats.memory.get() as f64));
        page.gauge("instances_memory_bytes", "Linear memory of all instances", memory)?;
        let help = "Processor time of the component, sampled every 5 ms";
        let mut family = page.0.encode_descriptor("cpu_seconds", help, None, MetricType::Counter)?;
        for service in self.services() {
            service.handle.stats.cpu.encode(family.encode_family(&labels(service))?)?;
        }
        Ok(())
    }

    fn views(&self, page: &mut Page<'_>) -> fmt::Result {
        let all: Vec<(&Snapshot, Vec<View>)> = self.services().map(|service| (service, service.views())).collect();
        let each = || {
            let each = all.iter().flat_map(|(service, views)| views.iter().map(move |view| (*service, view)));
            each.map(|(service, view)| {
                let labels = with(labels(service), "name", view.name().as_str());
                (with(labels, "version", view.version().as_str()), view)
            })
        };
        let ages = each().filter_map(|(labels, view)| Some((labels, view.age()?.as_secs_f64())));
        page.gauge("view_age_seconds", "Time since etcd last confirmed the view of a service", ages)?;
        let nodes = each().map(|(labels, view)| (labels, whole(view.nodes().len())));
        page.gauge("view_nodes", "Nodes of a service that the component watches", nodes)?;
        let invalid = each().map(|(labels, view)| (labels, whole(view.invalid_keys())));
        page.gauge("view_invalid_keys", "Keys of a service whose value is not a node", invalid)?;
        let open = self.services().map(|service| (labels(service), whole(service.watches().0)));
        page.gauge("open_watches", "Watches of services that the component has open", open)?;
        let most = self.services().map(|service| (labels(service), whole(service.watches().1)));
        page.gauge("open_watches_limit", "Limit of open watches", most)
    }

    fn registrations(&self, page: &mut Page<'_>) -> fmt::Result {
        let all: Vec<(&Snapshot, Vec<Arc<Registration>>)> =
            self.services().map(|service| (service, service.registrations())).collect();
        let names = STATES.map(|state| (state, state.to_string()));
        let states = all.iter().flat_map(|(service, registrations)| {
            names.iter().map(move |(state, name)| {
                let count = registrations.iter().filter(|registration| registration.status().state == *state).count();
                (with(labels(service), "state", name), whole(count))
            })
        });
        let states = states.filter(|(_, count)| self.is_full || *count > 0.0);
        page.gauge("registrations", "Registrations by state", states)?;
        let each = || {
            let each =
                all.iter().flat_map(|(service, registrations)| registrations.iter().map(move |one| (*service, one)));
            each.map(|(service, one)| (with(labels(service), "key", one.key()), one.status()))
        };
        let weights = each().map(|(labels, status)| (labels, f64::from(status.weight.value())));
        page.gauge("weight", "Published weight", weights)?;
        let left = each().map(|(labels, status)| (labels, status.ttl_remaining.as_secs_f64()));
        page.gauge("ttl_remaining_seconds", "Time until the key expires if no further renewal is confirmed", left)?;
        let ages = each().map(|(labels, status)| (labels, status.lease_age.as_secs_f64()));
        page.gauge("lease_age_seconds", "Time since etcd granted the lease of the key", ages)?;
        let renewals = each().map(|(labels, status)| (labels, status.renewals));
        page.counter("renewals", "Renewals that etcd confirmed", renewals)?;
        let recoveries = each().map(|(labels, status)| (labels, status.recoveries));
        page.counter("recoveries", "Times that the key was lost and written again", recoveries)
    }

    fn services(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter()
    }
}

fn labels<'a>(service: &'a Snapshot) -> Labels<'a> {
    vec![("service", service.handle.name.as_str()), ("listen", &*service.status.listen)]
}

fn with<'a>(mut labels: Labels<'a>, name: &'static str, value: &'a str) -> Labels<'a> {
    labels.push((name, value));
    labels
}

fn whole(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// The page, while it is written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{text_format, wants_text_format};

    #[test]
    fn a_reader_without_openmetrics_gets_the_text_format() {
        for (accept, is) in [
            ("text/plain;version=0.0.4", true),
            ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(wants_text_format(accept), is, "{accept}");
        }
        let page = "# HELP a Help.\n# TYPE a counter\na_total{b=\"c d\"} 1\n# HELP e f\n# TYPE e gauge\ne 2\n# EOF\n";
        let text =
            "# HELP a_total Help.\n# TYPE a_total counter\na_total{b=\"c d\"} 1\n# HELP e f\n# TYPE e gauge\ne 2\n";
        assert_eq!(text_format(page), text);
    }
}
