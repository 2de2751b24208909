//! Client of external hosts: pooled connections, and no name that resolves to this machine or its link.

use std::{error::Error as _, fmt, io, iter::successors, net::SocketAddr, sync::Arc, time::Duration, vec};

use futures::{
    future::{BoxFuture, Either, select},
    pin_mut,
};
use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client, Error as ClientError,
        connect::{HttpConnector, capture_connection, dns::Name},
    },
    rt::TokioTimer,
};
use tokio::{net::lookup_host, time::timeout};
use tower::util::{ServiceFn, service_fn};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use crate::{
    config::destination::is_local,
    error::{chain, one_line},
    outbound::{
        body::{RequestBody, UpstreamBody, drain},
        denial::Denials,
        reserved::{Guarded, LeadsToAdmin, Reserved},
    },
    rt::executor::Pooled,
    telemetry::request_id::RequestId,
};

/// Time for which an idle connection is kept, and number of idle connections to one host.
const IDLE: Duration = Duration::from_secs(30);
const MAX_IDLE: usize = 32;
/// Connect timeout of requests without one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Addresses = BoxFuture<'static, Result<vec::IntoIter<SocketAddr>, ResolveError>>;
type Resolver = ServiceFn<fn(Name) -> Addresses>;

/// A client of one service's component.
#[derive(Clone)]
pub(crate) struct ExternalClient {
    client: Client<HttpsConnector<Guarded<HttpConnector<Resolver>>>, RequestBody>,
    denials: Arc<Denials>,
}

impl ExternalClient {
    /// Makes a client. With `local`, a name may resolve to this machine or its link. Addresses, and `localhost`, may always:
    /// an entry of the policy lists them.
    pub(crate) fn new(local: bool, reserved: Reserved, denials: Arc<Denials>) -> Self {
        let resolver: fn(Name) -> Addresses = if local { resolve } else { resolve_remote };
        let mut http = HttpConnector::new_with_resolver(service_fn(resolver));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1();
        let mut builder = Client::builder(Pooled);
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
        builder.pool_idle_timeout(IDLE).pool_max_idle_per_host(MAX_IDLE);
        Self { client: builder.build(https.wrap_connector(Guarded::new(http, reserved))), denials }
    }

    /// Sends a request to the host that it names. Errors are those of `wasi:http`; the log says more.
    pub(crate) async fn send(
        &self,
        mut request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        if request.uri().scheme().is_none() {
            let mut parts = request.uri().clone().into_parts();
            parts.scheme = Some(Scheme::HTTP);
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)?;
        }
        let (head, body) = request.into_parts();
        let body = RequestBody::new(body);
        let answered = self.response(Request::from_parts(head, body.clone()), options).await;
        if answered.is_err() {
            drain(body.clone()).await;
        }
        answered
    }

    async fn response(
        &self,
        mut request: Request<RequestBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let (to, id) = (request.uri().authority().cloned(), RequestId::sent(request.headers()));
        let failed = |error: ClientError| {
            let to = to.as_ref().map_or("", Authority::as_str);
            tracing::debug!(to, "a request failed: {}", one_line(&chain(&error)));
            match denied(&error) {
                Some(Denied::Local) => {
                    self.denials.report_request(to, ResolveError::Local, Some("local: true"), id.as_ref());
                }
                Some(Denied::Admin) => self.denials.report_request(to, LeadsToAdmin, None, id.as_ref()),
                None => return wasi_error(&error),
            }
            Error::DestinationIpProhibited
        };
        let mut connection = capture_connection(&mut request);
        let within = options.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let connected = timeout(within, async { drop(connection.wait_for_connection_metadata().await) });
        let answered = timeout(options.first_byte_timeout.unwrap_or(Duration::MAX), self.client.request(request));
        pin_mut!(connected, answered);
        let answered = match select(answered, connected).await {
            Either::Left((answered, _)) => answered,
            Either::Right((Ok(()), answered)) => answered.await,
            Either::Right((Err(_), _)) => return Err(Error::ConnectionTimeout),
        };
        let response = answered.map_err(|_| Error::HttpResponseTimeout)?.map_err(failed)?;
        Ok(response.map(|body| UpstreamBody::new(body, options.between_bytes_timeout, None).boxed_unsync()))
    }
}

/// Address of a permitted name that no component reaches.
enum Denied {
    Local,
    Admin,
}

fn denied(error: &ClientError) -> Option<Denied> {
    successors(error.source(), |&cause| cause.source()).find_map(|cause| match cause.downcast_ref() {
        Some(ResolveError::Local) => Some(Denied::Local),
        _ => cause.is::<LeadsToAdmin>().then_some(Denied::Admin),
    })
}

/// The error of `wasi:http` for a failure.
fn wasi_error(error: &ClientError) -> Error {
    let mut kind = None;
    for cause in successors(error.source(), |&cause| cause.source()) {
        match cause.downcast_ref() {
            Some(ResolveError::Unknown(_)) => return Error::DnsError { rcode: None, info_code: None },
            _ => kind = kind.or_else(|| cause.downcast_ref().map(innermost)),
        }
    }
    match kind {
        Some(io::ErrorKind::TimedOut) => Error::ConnectionTimeout,
        Some(io::ErrorKind::ConnectionRefused) => Error::ConnectionRefused,
        // As rustls has it.
        Some(io::ErrorKind::InvalidData) => Error::TlsProtocolError,
        _ if error.is_connect() => Error::DestinationUnavailable,
        _ => Error::ConnectionTerminated,
    }
}

fn innermost(error: &io::Error) -> io::ErrorKind {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(inner) => innermost(inner),
        None => error.kind(),
    }
}

/// Reason for which a name cannot be used.
#[derive(Debug)]
enum ResolveError {
    /// All of its addresses are local to this machine or its link.
    Local,
    Unknown(io::Error),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("the name leads to this machine or its link"),
            Self::Unknown(error) => write!(f, "the name is not known: {error}"),
        }
    }
}

impl std::error::Error for ResolveError {}

fn resolve(name: Name) -> Addresses {
    Box::pin(async move {
        let found = lookup_host((name.as_str(), 0)).await.map_err(ResolveError::Unknown)?;
        Ok(found.collect::<Vec<_>>().into_iter())
    })
}

fn resolve_remote(name: Name) -> Addresses {
    Box::pin(async move {
        let listed = name.as_str() == "localhost";
        let found = resolve(name).await?;
        let fit: Vec<_> = found.filter(|addr| listed || !is_local(addr.ip())).collect();
        if fit.is_empty() { Err(ResolveError::Local) } else { Ok(fit.into_iter()) }
    })
}
