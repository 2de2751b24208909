//! Where spans go: one bounded queue for all services, sent to a collector in batches, and lost while it is away.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider};
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    transform::trace::tonic::group_spans_by_resource_and_scope,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use tonic::{
    Request,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    config::{self, Spec},
    error::one_line,
    telemetry::span::Tracer,
};

/// How long a collector may take to be connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the host waits for what is left.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that is told of what a collector says.
const MAX_SAID: usize = 200;

/// The queue and its collector.
#[derive(Clone)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tasks: TaskTracker,
}

impl Traces {
    /// Connects when there is something to send. The error names what of the configuration cannot be used.
    pub(crate) fn start(config: config::Traces) -> anyhow::Result<Self> {
        let tasks = TaskTracker::new();
        let exporter = Exporter {
            client: TraceServiceClient::new(config.channel()?),
            headers: MetadataMap::from_headers(config.headers),
            resource: Resource::builder_empty().build(),
            away: AtomicBool::new(false),
            runtime: Handle::current(),
            tasks: tasks.clone(),
        };
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample)));
        let provider = SdkTracerProvider::builder().with_sampler(sampler).with_batch_exporter(exporter).build();
        Ok(Self { provider, tasks })
    }

    /// What begins the spans of one service, which has a resource of its own.
    pub(crate) fn tracer(&self, spec: &Spec, bound: SocketAddr) -> Tracer {
        let instance = spec.advertised(bound).map_or_else(|| bound.to_string(), |addr| addr.to_string());
        let mut resource =
            vec![KeyValue::new("service.name", spec.name.to_string()), KeyValue::new("service.instance.id", instance)];
        if !spec.version.as_str().is_empty() {
            resource.push(KeyValue::new("service.version", spec.version.to_string()));
        }
        // The exporter finds the resource here.
        let scope = InstrumentationScope::builder("leasehold").with_version(env!("CARGO_PKG_VERSION"));
        let scope = scope.with_attributes(resource).build();
        Tracer::new(self.provider.tracer_with_scope(scope), spec.tls.is_some())
    }

    /// Sends what is left, if the collector takes it in time.
    pub(crate) async fn flush(self) {
        let Self { provider, tasks } = self;
        // It waits, and no longer than this, on a thread of its own.
        let flushed = tasks.spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::debug!(%error, "the last spans are lost");
        }
    }
}

impl config::Traces {
    /// The connection to the collector, not made yet.
    pub(crate) fn channel(&self) -> anyhow::Result<Channel> {
        let wrong = || format!("traces.endpoint: {} cannot be used", self.endpoint);
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).with_context(wrong)?;
        if let Some(ca) = &self.ca_pem {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            endpoint = endpoint.tls_config(tls).context("traces.ca: cannot be used")?;
        }
        Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy())
    }
}

/// Sends batches to the collector, each span under the resource of its service.
struct Exporter {
    client: TraceServiceClient<Channel>,
    headers: MetadataMap,
    /// What all services share, from the environment.
    resource: Resource,
    /// Whether the last batch was lost.
    away: AtomicBool,
    runtime: Handle,
    tasks: TaskTracker,
}

/// The headers may hold a token.
impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter")
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut client = self.client.clone();
        let request = self.request(batch);
        let sending = async move {
            let sent = timeout(EXPORT_TIMEOUT, client.export(request)).await;
            let sent = sent.map_err(|_| format!("no answer within {EXPORT_TIMEOUT:?}"))?;
            let answer = sent.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner();
            match answer.partial_success.filter(|partial| partial.rejected_spans > 0) {
                Some(partial) => Err(format!("{} spans rejected: {}", partial.rejected_spans, partial.error_message)),
                None => Ok(()),
            }
        };
        // The queue has a thread of its own, which knows no sockets.
        let sent = self.tasks.spawn_on(sending, &self.runtime).await;
        let sent = sent.unwrap_or_else(|_| Err("the host ends".to_owned()));
        match (&sent, self.away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(said), false) => {
                let said: String = one_line(said).chars().take(MAX_SAID).collect();
                tracing::warn!("the collector of traces takes no spans, and they are lost until it does: {said}");
            }
            (Ok(()), true) => tracing::info!("the collector of traces takes spans again"),
            _ => {}
        }
        sent.map_err(OTelSdkError::InternalFailure)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.clone();
    }
}

impl Exporter {
    fn request(&self, batch: Vec<SpanData>) -> Request<ExportTraceServiceRequest> {
        let mut services = HashMap::<InstrumentationScope, Vec<SpanData>>::new();
        for span in batch {
            services.entry(span.instrumentation_scope.clone()).or_default().push(span);
        }
        let resource_spans = services.into_iter().flat_map(|(scope, spans)| {
            let shared = self.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
            let own = scope.attributes().cloned();
            let resource = Resource::builder_empty().with_attributes(shared).with_attributes(own).build();
            let mut grouped = group_spans_by_resource_and_scope(spans, &(&resource).into());
            let scopes = grouped.iter_mut().flat_map(|resource| &mut resource.scope_spans);
            scopes.filter_map(|spans| spans.scope.as_mut()).for_each(|scope| scope.attributes.clear());
            grouped
        });
        let mut request = Request::new(ExportTraceServiceRequest { resource_spans: resource_spans.collect() });
        *request.metadata_mut() = self.headers.clone();
        request
    }
}
