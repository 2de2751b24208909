//! Probes of a service: requests like those of a client, and the verdict on each response.

use std::{error::Error, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    config::{Health, Probe},
    error::one_line,
    inbound::dispatch::Dispatcher,
    rejection::Rejection,
    rt::executor::Pooled,
    wasm::admission::Admission,
};

/// Longest wait for a response where the configuration has no health check.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a connection where the configuration has no health check.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a response that are read, at most.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// `grpc.health.v1.HealthCheckRequest` for the whole server: an empty message, behind its header.
const GRPC_REQUEST: &[u8] = &[0, 0, 0, 0, 0];
/// `grpc.health.v1.HealthCheckResponse` with `SERVING`.
const GRPC_SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// Probes a component through its dispatcher, with a permit of `admission`. Without a health check any response passes
/// except for a failure. The error says what is wrong with the response.
pub(crate) async fn probe(
    dispatcher: &Dispatcher,
    admission: &Admission,
    health: Option<&Health>,
    authority: &str,
) -> Result<(), String> {
    let patience = health.map_or(DEFAULT_TIMEOUT, |health| health.timeout);
    let probe = health.map(|health| &health.probe);
    let response = async {
        let response = dispatcher.probe(request(probe, authority), admission).await;
        let response = response.map_err(|reason| Rejection::from(reason).text.to_owned())?;
        judge(probe, response).await
    };
    timeout(patience, response).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

/// Probes an address. Without a health check a connection passes. Over HTTP the header `host` is `host`, or the address.
pub(crate) async fn probe_at(addr: SocketAddr, host: Option<&str>, health: Option<&Health>) -> Result<(), String> {
    let patience = health.map_or(CONNECT_TIMEOUT, |health| health.timeout);
    let response = async {
        let Some(Health { probe, .. }) = health else {
            return TcpStream::connect(addr).await.map(drop).map_err(|error| one_line(&error.to_string()));
        };
        let mut client = Client::builder(Pooled);
        let client = client.http2_only(matches!(probe, Probe::Grpc)).build_http();
        let mut request = request(Some(probe), &addr.to_string());
        if let (Probe::Http(_), Some(Ok(host))) = (probe, host.map(HeaderValue::from_str)) {
            request.headers_mut().insert(header::HOST, host);
        }
        let response = client.request(request).await;
        let response = response
            .map_err(|error| one_line(&error.source().map_or_else(|| error.to_string(), ToString::to_string)))?;
        judge(Some(probe), response).await
    };
    timeout(patience, response).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

async fn judge<B>(probe: Option<&Probe>, response: Response<B>) -> Result<(), String>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned();
    match probe {
        None => Ok(()),
        Some(Probe::Http(_)) if head.status.is_success() => Ok(()),
        Some(Probe::Http(path)) => Err(format!("{path} answers {}", head.status)),
        Some(Probe::Grpc) => serving(&head.headers, trailers.as_ref(), &body.to_bytes()),
    }
}

fn request(probe: Option<&Probe>, authority: &str) -> Request<Full<Bytes>> {
    let path = match probe {
        None => "/",
        Some(Probe::Http(path)) => path.as_str(),
        Some(Probe::Grpc) => "/grpc.health.v1.Health/Check",
    };
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    let request = Request::builder().uri(uri.expect("a path is checked when it is read"));
    let built = match probe {
        Some(Probe::Grpc) => request
            .method(Method::POST)
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(GRPC_REQUEST)),
        _ => request.header("host", authority).body(Full::default()),
    };
    built.expect("these are headers")
}

fn serving(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Result<(), String> {
    let status = trailers.and_then(|trailers| trailers.get("grpc-status")).or_else(|| headers.get("grpc-status"));
    match (status.and_then(|status| status.to_str().ok()), body) {
        (Some("0"), GRPC_SERVING) => Ok(()),
        (Some("0"), _) => Err("grpc.health.v1 does not say SERVING".to_owned()),
        (Some(status), _) => Err(format!("grpc.health.v1 answers status {}", status.escape_debug())),
        (None, _) => Err("grpc.health.v1 is not answered as gRPC".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{GRPC_SERVING, HeaderMap, serving};

    #[test]
    fn only_serving_is_healthy() {
        let status = |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        assert_eq!(serving(&HeaderMap::new(), Some(&status("0")), GRPC_SERVING), Ok(()));
        assert!(serving(&HeaderMap::new(), Some(&status("0")), &[0, 0, 0, 0, 2, 8, 2]).is_err());
        assert!(serving(&status("12"), None, &[]).is_err());
        assert!(serving(&HeaderMap::new(), None, GRPC_SERVING).is_err());
    }
}
