//! Outgoing HTTP requests of a component: to the hosts and services that its policy lists, and nowhere else.

pub(crate) mod body;
pub(crate) mod callers;
pub(crate) mod denial;
pub(crate) mod external;
pub(crate) mod reserved;
pub(crate) mod service;

use std::{future::ready, sync::Arc, time::Duration};

use http::{Response, uri::Scheme};
use tokio::{sync::Semaphore, time::timeout};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::{
    config::{
        Allow, Limits,
        destination::{Destination, Target, Unlisted},
    },
    outbound::{
        body::{TracedBody, drain},
        callers::{Caller, Callers},
        denial::Denials,
        external::ExternalClient,
        reserved::Reserved,
        service::ServiceClient,
    },
    telemetry::{
        request_id::{REQUEST_ID, RequestId},
        service_metrics::{Incident, Stats},
        span::{Span, Tracer},
    },
};

/// Bytes of a body that are read at a time.
const CHUNK: usize = 64 << 10;

/// The outbound part of a policy, as a hook of `wasi:http`. Each instance has a clone, which costs two references.
#[derive(Clone)]
pub(crate) struct Outbound {
    rules: Arc<Rules>,
    pub(crate) callers: Callers,
}

/// Destinations, limits and clients of one revision of a service.
struct Rules {
    destinations: Arc<[Destination]>,
    /// Permits local targets without an entry of their own.
    local: bool,
    denials: Arc<Denials>,
    external: ExternalClient,
    services: ServiceClient,
    /// Permits of requests in flight, until their responses are read.
    permits: Arc<Semaphore>,
    /// Longest wait of an outgoing request for a connection, and for its response.
    timeout: Duration,
    /// Longest wait for the next bytes of a response.
    between_bytes: Duration,
    stats: Arc<Stats>,
    tracer: Option<Tracer>,
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Io)>;

impl Outbound {
    pub(crate) fn new(
        allow: &Allow,
        limits: &Limits,
        services: ServiceClient,
        (reserved, denials): (Reserved, Arc<Denials>),
        stats: Arc<Stats>,
        tracer: Option<Tracer>,
    ) -> Self {
        let rules = Rules {
            destinations: allow.outbound.as_slice().into(),
            local: allow.local,
            external: ExternalClient::new(allow.local, reserved, Arc::clone(&denials)),
            denials,
            services,
            permits: Arc::new(Semaphore::new(limits.outgoing as usize)),
            timeout: limits.request_timeout,
            between_bytes: limits.longest_wait(),
            stats,
            tracer,
        };
        Self { rules: Arc::new(rules), callers: Callers::default() }
    }
}

impl Rules {
    /// Returns the entry of `allow.outbound` that permits a request to a host; otherwise reports the denial.
    fn permit<B>(&self, request: &http::Request<B>) -> Result<String, Error> {
        let (authority, scheme) = (request.uri().authority(), request.uri().scheme());
        let id = RequestId::sent(request.headers());
        let report = |target: &str, why, cure| self.denials.report_request(target, why, cure, id.as_ref());
        let Some(authority) = authority else { return Err(Error::HttpRequestUriInvalid) };
        // A user in the authority would be parsed by others in other ways.
        if authority.as_str().contains('@') {
            report("a host behind a user", "no user is sent; headers can carry credentials", None);
            return Err(Error::HttpRequestDenied);
        }
        let Some(target) = Target::of(authority, scheme) else { return Err(Error::HttpRequestUriInvalid) };
        let entry = format!("outbound: [{:?}]", target.entry());
        match Destination::permitting(&self.destinations, target, self.local) {
            Ok(destination) => Ok(destination.to_string()),
            Err(Unlisted::Local) => {
                let why = "it is local, which only an entry for it permits";
                report(authority.as_str(), why, Some(&entry));
                Err(Error::DestinationIpProhibited)
            }
            Err(Unlisted::Absent) => {
                match self.services.named(authority) {
                    Some(name) if scheme.is_none_or(|scheme| *scheme == Scheme::HTTP) => {
                        let entry = format!("discover: [{name:?}]");
                        report(authority.as_str(), "allow.discover does not list it", Some(&entry));
                    }
                    Some(_) => {
                        report(authority.as_str(), "services are called by name over http alone", None);
                    }
                    None => report(authority.as_str(), "allow.outbound does not list it", Some(&entry)),
                }
                Err(Error::HttpRequestDenied)
            }
        }
    }

    fn bounded(&self, options: Option<RequestOptions>) -> RequestOptions {
        let bound =
            |requested: Option<Duration>, max: Duration| Some(requested.map_or(max, |requested| requested.min(max)));
        let requested = options.unwrap_or_default();
        RequestOptions {
            connect_timeout: bound(requested.connect_timeout, self.timeout),
            first_byte_timeout: bound(requested.first_byte_timeout, self.timeout),
            between_bytes_timeout: bound(requested.between_bytes_timeout, self.between_bytes),
        }
    }
}

impl WasiHttpHooks for Outbound {
    // The host buffers a body that a component writes until it is sent.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let Caller { id, span: parent, deadline } = self.callers.take().unwrap_or_default();
        if let Some(id) = id {
            // One that the component sets itself stays.
            request.headers_mut().entry(REQUEST_ID).or_insert_with(|| id.header());
        }
        let rules = Arc::clone(&self.rules);
        let mut span = rules.tracer.as_ref().and_then(|tracer| tracer.client_span(parent, &mut request));
        let uri = request.uri();
        let options = rules.bounded(options);
        let target = uri.authority().and_then(|authority| rules.services.target(authority, uri.scheme()));
        let to = match &target {
            Some(target) => Ok(target.name().to_string()),
            None => rules.permit(&request),
        };
        let to = match to {
            Ok(to) => to,
            Err(error) => {
                rules.stats.incident(Incident::OutgoingDenied);
                return Box::new(async move {
                    drain(request.into_body()).await;
                    Err(failed(span, error))
                });
            }
        };
        let patience = options.connect_timeout.unwrap_or(rules.timeout);
        Box::new(async move {
            let Rules { external, services, permits, stats, .. } = &*rules;
            let Ok(Ok(permit)) = timeout(patience, Arc::clone(permits).acquire_owned()).await else {
                tracing::debug!(to, "an outgoing request waited for as many others as limits.outgoing allows");
                stats.incident(Incident::OutgoingLimit);
                stats.sent(&to, false);
                drain(request.into_body()).await;
                return Err(failed(span, Error::ConnectionLimitReached));
            };
            let sent = match target {
                Some(target) => services.send(target, request, options, deadline, span.as_mut()).await,
                None => external.send(request, options).await,
            };
            stats.sent(&to, sent.is_ok());
            match sent {
                Ok(response) => Ok((TracedBody::response(response, span, permit), Box::new(ready(Ok(()))) as Io)),
                Err(error) => Err(failed(span, error)),
            }
        })
    }
}

/// Records the error in the span.
fn failed(span: Option<Span>, error: Error) -> Error {
    if let Some(mut span) = span {
        span.record_wasi_error(&error);
    }
    error
}
