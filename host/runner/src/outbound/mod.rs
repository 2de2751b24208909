//! Where a component may send HTTP requests to: the hosts and the services that its policy lists, and nowhere else.

pub(crate) mod body;
pub(crate) mod external;
pub(crate) mod service;
pub(crate) mod trace_parent;

use std::{future::ready, sync::Arc, time::Duration};

use http::{
    Response,
    uri::{Authority, Scheme},
};
use tokio::{sync::Semaphore, time::timeout};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::{
    config::{Allow, Host, Limits},
    outbound::{
        body::{Incoming, drain},
        external::Exit,
        service::Mesh,
        trace_parent::Asked,
    },
    telemetry::{
        service_metrics::{Hit, Stats},
        span::{Span, Tracer},
    },
};

/// Bytes that are taken of a body at a time.
const CHUNK: usize = 64 << 10;

/// The outbound part of a policy, as a hook of `wasi:http`.
#[derive(Clone)]
pub(crate) struct Outbound {
    hosts: Arc<[Host]>,
    exit: Exit,
    mesh: Arc<Mesh>,
    /// Of requests that are under way, until their answers are read.
    places: Arc<Semaphore>,
    /// No outgoing request waits longer than this for anything.
    timeout: Duration,
    /// Nor, once its answer has begun, for the next of it.
    between_bytes: Duration,
    stats: Arc<Stats>,
    tracer: Option<Tracer>,
    pub(crate) asked: Asked,
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Io)>;

impl Outbound {
    pub(crate) fn new(allow: &Allow, limits: &Limits, mesh: Mesh, stats: Arc<Stats>, tracer: Option<Tracer>) -> Self {
        Self {
            hosts: allow.outbound.as_slice().into(),
            exit: Exit::new(allow.local),
            mesh: Arc::new(mesh),
            places: Arc::new(Semaphore::new(limits.outgoing as usize)),
            timeout: limits.request_timeout,
            between_bytes: limits.longest_wait(),
            stats,
            tracer,
            asked: Asked::default(),
        }
    }

    fn bounded(&self, options: Option<RequestOptions>) -> RequestOptions {
        let bound = |asked: Option<Duration>, most: Duration| Some(asked.map_or(most, |asked| asked.min(most)));
        let asked = options.unwrap_or_default();
        RequestOptions {
            connect_timeout: bound(asked.connect_timeout, self.timeout),
            first_byte_timeout: bound(asked.first_byte_timeout, self.timeout),
            between_bytes_timeout: bound(asked.between_bytes_timeout, self.between_bytes),
        }
    }
}

impl WasiHttpHooks for Outbound {
    // What a component writes of a body is kept for it until it is sent.
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
        let asked = self.asked.take();
        let mut span = self.tracer.as_ref().and_then(|tracer| tracer.send(asked, &mut request));
        let (uri, stats) = (request.uri(), Arc::clone(&self.stats));
        let options = self.bounded(options);
        let target = uri.authority().and_then(|authority| self.mesh.target(authority, uri.scheme()));
        // A user in the authority would be parsed by others in other ways.
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let host = || authority.and_then(|authority| allowed(&self.hosts, authority, uri.scheme()));
        let Some(to) = target.as_ref().map(|target| target.name().to_string()).or_else(|| host().map(Host::to_string))
        else {
            let authority = uri.authority().map_or("", Authority::as_str);
            tracing::debug!(to = authority, "an outgoing request is in neither allow.outbound nor allow.discover");
            stats.hit(Hit::Denied);
            return Box::new(async move {
                drain(request.into_body()).await;
                Err(failed(span, Error::HttpRequestDenied))
            });
        };
        let (exit, mesh, places) = (self.exit.clone(), Arc::clone(&self.mesh), Arc::clone(&self.places));
        let patience = options.connect_timeout.unwrap_or(self.timeout);
        Box::new(async move {
            let Ok(Ok(place)) = timeout(patience, places.acquire_owned()).await else {
                tracing::debug!(to, "an outgoing request waited for as many others as limits.outgoing allows");
                stats.hit(Hit::Outgoing);
                stats.sent(&to, false);
                drain(request.into_body()).await;
                return Err(failed(span, Error::ConnectionLimitReached));
            };
            let sent = match target {
                Some(target) => mesh.send(target, request, options, span.as_mut()).await,
                None => exit.send(request, options).await,
            };
            stats.sent(&to, sent.is_ok());
            match sent {
                Ok(response) => Ok((Incoming::answer(response, span, place), Box::new(ready(Ok(()))) as Io)),
                Err(error) => Err(failed(span, error)),
            }
        })
    }
}

/// Tells the span of a request why there is no answer.
fn failed(span: Option<Span>, error: Error) -> Error {
    if let Some(mut span) = span {
        span.breaks(&error);
    }
    error
}

fn allowed<'a>(hosts: &'a [Host], authority: &Authority, scheme: Option<&Scheme>) -> Option<&'a Host> {
    let default_port = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(default_port);
    let name = authority.host();
    hosts.iter().find(|host| host.name.eq_ignore_ascii_case(name) && host.port.is_none_or(|only| only == port))
}

#[cfg(test)]
mod tests {
    use http::uri::Scheme;

    use super::allowed;

    #[test]
    fn only_listed_hosts_are_reached() {
        let hosts = ["api.example", "127.0.0.1:8080", "[::1]:80"].map(|host| host.parse().unwrap());
        let allows = |authority: &str, scheme| allowed(&hosts, &authority.parse().unwrap(), Some(&scheme)).is_some();
        assert!(allows("api.example", Scheme::HTTPS));
        assert!(allows("API.example:8443", Scheme::HTTP));
        assert!(allows("127.0.0.1:8080", Scheme::HTTP));
        assert!(allows("[::1]", Scheme::HTTP));
        assert!(!allows("[::1]", Scheme::HTTPS));
        assert!(!allows("127.0.0.1", Scheme::HTTP));
        assert!(!allows("127.0.0.1:8081", Scheme::HTTP));
        assert!(!allows("evil.api.example", Scheme::HTTP));
        assert!(!allows("api.example.evil", Scheme::HTTP));
    }
}
