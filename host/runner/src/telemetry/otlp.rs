//! Export of spans: one bounded queue for all services, sent to a collector in batches. Spans are lost while the collector
//! does not respond.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use leasehold::Source;
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
use parking_lot::Mutex;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Status,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    config::{self, Spec},
    error::one_line,
    telemetry::span::Tracer,
};

/// Longest wait for a connection to the collector.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the response to one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the rest of the queue at the end of the host.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Characters of a collector's error message in the log, at most.
const MAX_SAID: usize = 200;

/// The queue and its collector.
#[derive(Clone)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    /// Exports and reads of files, each awaited by its batch.
    tasks: TaskTracker,
}

impl Traces {
    /// Starts the queue; it connects with the first batch. The error names the part of the configuration that cannot be
    /// used.
    pub(crate) fn start(config: config::Traces) -> anyhow::Result<Self> {
        let tasks = TaskTracker::new();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample)));
        let exporter = Exporter {
            collector: Arc::new(Mutex::new(Collector::open(&config)?)),
            config: Arc::new(config),
            resource: Resource::builder_empty().build(),
            away: AtomicBool::new(false),
            runtime: Handle::current(),
            tasks: tasks.clone(),
        };
        let provider = SdkTracerProvider::builder().with_sampler(sampler).with_batch_exporter(exporter).build();
        Ok(Self { provider, tasks })
    }

    /// Tracer of one service, with a resource of its own.
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

    /// Sends the rest of the queue, if the collector takes it in time.
    pub(crate) async fn flush(self) {
        let Self { provider, tasks } = self;
        // The shutdown blocks for this time at most, on a thread of its own.
        let flushed = tasks.spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::debug!(%error, "the last spans are lost");
        }
    }
}

impl config::Traces {
    /// Lazy connection to the collector, with the authority that signed its certificate.
    pub(crate) fn channel(&self, ca_pem: Option<&[u8]>) -> anyhow::Result<Channel> {
        let wrong = || format!("traces.endpoint: {} cannot be used", self.endpoint);
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).with_context(wrong)?;
        if let Some(ca) = ca_pem {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            endpoint = endpoint.tls_config(tls).context("traces.ca: cannot be used")?;
        }
        Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy())
    }

    /// Checks the files.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        Collector::open(self).map(drop)
    }
}

/// Client of the collector, with the content of its files as last read.
struct Collector {
    client: TraceServiceClient<Channel>,
    ca_pem: Option<Vec<u8>>,
    headers: MetadataMap,
}

impl Collector {
    fn open(config: &config::Traces) -> anyhow::Result<Self> {
        let ca_pem = config.ca_pem.as_ref().map(Source::read).transpose().context("traces.ca")?;
        let client = TraceServiceClient::new(config.channel(ca_pem.as_deref())?);
        let mut collector = Self { client, ca_pem, headers: MetadataMap::new() };
        collector.read_headers(config)?;
        Ok(collector)
    }

    /// Reads the files again. Unusable content is logged, and the former content stays in use.
    fn refresh(&mut self, config: &config::Traces) {
        let headers = self.read_headers(config);
        let ca_pem = config.ca_pem.as_ref().map(Source::read).transpose().context("traces.ca");
        let channel = ca_pem.and_then(|ca_pem| match ca_pem == self.ca_pem {
            true => Ok(()),
            false => {
                self.client = TraceServiceClient::new(config.channel(ca_pem.as_deref())?);
                self.ca_pem = ca_pem;
                Ok(())
            }
        });
        for error in [headers, channel].into_iter().filter_map(Result::err) {
            tracing::debug!("the files of traces are used as they were: {error:#}");
        }
    }

    fn read_headers(&mut self, config: &config::Traces) -> anyhow::Result<()> {
        if let Some(source) = &config.headers {
            let text = source.read().context("traces.headers_file")?;
            let headers = config::parse_headers(&text);
            let wrong = |line| anyhow::anyhow!("traces.headers_file: line {line} of {source} must be NAME: VALUE");
            self.headers = MetadataMap::from_headers(headers.map_err(wrong)?);
        }
        Ok(())
    }
}

/// Sends batches to the collector, each span under the resource of its service.
struct Exporter {
    config: Arc<config::Traces>,
    /// Locked while the files are read, which is done for one batch at a time.
    collector: Arc<Mutex<Collector>>,
    /// Resource that all services share, from the environment.
    resource: Resource,
    /// The last batch was lost.
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
        let mut request = self.request(batch);
        let (collector, config, tasks) = (self.collector.clone(), self.config.clone(), self.tasks.clone());
        let sending = async move {
            let exporting = async {
                let read = tasks.spawn_blocking(move || {
                    // While the file system does not respond, one thread that waits for it is enough.
                    let mut collector = collector.try_lock()?;
                    collector.refresh(&config);
                    Some((collector.client.clone(), collector.headers.clone()))
                });
                let read = read.await.ok().flatten();
                let (mut client, headers) = read.ok_or_else(|| Status::internal("the files cannot be read"))?;
                *request.metadata_mut() = headers;
                client.export(request).await
            };
            let sent = timeout(EXPORT_TIMEOUT, exporting).await;
            let sent = sent.map_err(|_| format!("no answer within {EXPORT_TIMEOUT:?}"))?;
            let answer = sent.map_err(|status| format!("{}: {}", status.code(), status.message()))?.into_inner();
            match answer.partial_success.filter(|partial| partial.rejected_spans > 0) {
                Some(partial) => Err(format!("{} spans rejected: {}", partial.rejected_spans, partial.error_message)),
                None => Ok(()),
            }
        };
        // The queue has a thread of its own, without a reactor for sockets.
        let sent = self.tasks.spawn_on(sending, &self.runtime).await;
        let sent = sent.unwrap_or_else(|_| Err("the host ends".to_owned()));
        match (&sent, self.away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(message), false) => {
                let message: String = one_line(message).chars().take(MAX_SAID).collect();
                tracing::warn!("the collector of traces takes no spans, and they are lost until it does: {message}");
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
        Request::new(ExportTraceServiceRequest { resource_spans: resource_spans.collect() })
    }
}
