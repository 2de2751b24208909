//! Where a component may send HTTP requests to: the hosts and the services that its policy lists, and nowhere else.

use std::{
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Response,
    uri::{Authority, Scheme},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::{
    asked::Asked,
    config::{Allow, Host},
    exit::Exit,
    mesh::Mesh,
    span::{Span, Tracer},
    stats::{Hit, Stats},
};

/// How long the rest of a request that goes nowhere is taken.
const DRAIN: Duration = Duration::from_millis(100);

/// Bytes that are taken of a body at a time.
const CHUNK: usize = 64 << 10;

/// The outbound part of a policy, as a hook of `wasi:http`.
#[derive(Clone)]
pub(crate) struct Outbound {
    hosts: Arc<[Host]>,
    exit: Exit,
    mesh: Arc<Mesh>,
    /// No outgoing request waits longer than this for anything.
    timeout: Duration,
    stats: Arc<Stats>,
    tracer: Option<Tracer>,
    pub(crate) asked: Asked,
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Io)>;

impl Outbound {
    pub(crate) fn new(allow: &Allow, mesh: Mesh, timeout: Duration, stats: Arc<Stats>, tracer: Option<Tracer>) -> Self {
        Self {
            hosts: allow.outbound.as_slice().into(),
            exit: Exit::new(allow.local),
            mesh: Arc::new(mesh),
            timeout,
            stats,
            tracer,
            asked: Asked::default(),
        }
    }

    fn bounded(&self, options: Option<RequestOptions>) -> RequestOptions {
        let bound = |asked: Option<Duration>| Some(asked.map_or(self.timeout, |asked| asked.min(self.timeout)));
        let asked = options.unwrap_or_default();
        RequestOptions {
            connect_timeout: bound(asked.connect_timeout),
            first_byte_timeout: bound(asked.first_byte_timeout),
            between_bytes_timeout: bound(asked.between_bytes_timeout),
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
        if let Some(target) = uri.authority().and_then(|authority| self.mesh.target(authority, uri.scheme())) {
            let mesh = Arc::clone(&self.mesh);
            let to = target.name().to_string();
            return Box::new(async move {
                let sent = mesh.send(target, request, options, span.as_mut()).await;
                stats.sent(&to, sent.is_ok());
                traced(span, sent.map(|response| (response, Box::new(ready(Ok(()))) as Io)))
            });
        }
        // A user in the authority would be parsed by others in other ways.
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let Some(host) = authority.and_then(|authority| allowed(&self.hosts, authority, uri.scheme())) else {
            let authority = uri.authority().map_or("", Authority::as_str);
            tracing::debug!(to = authority, "an outgoing request is in neither allow.outbound nor allow.discover");
            stats.hit(Hit::Denied);
            return Box::new(async move {
                drain(request.into_body()).await;
                traced(span, Err(Error::HttpRequestDenied))
            });
        };
        let (exit, to) = (self.exit.clone(), host.to_string());
        Box::new(async move {
            let sent = exit.send(request, options).await;
            stats.sent(&to, sent.is_ok());
            traced(span, sent.map(|response| (response, Box::new(ready(Ok(()))) as Io)))
        })
    }
}

/// What came of a request, told to its span, which goes with the answer.
fn traced(span: Option<Span>, sent: Sent) -> Sent {
    let Some(mut span) = span else { return sent };
    match sent {
        Ok((response, io)) => {
            let (head, body) = response.into_parts();
            span.begins(&head);
            Ok((Response::from_parts(head, Traced { body, span }.boxed_unsync()), io))
        }
        Err(error) => {
            span.breaks(&error);
            Err(error)
        }
    }
}

/// The body of an answer, and the span that ends with it.
struct Traced {
    body: WasiBody,
    span: Span,
}

impl Body for Traced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.span.ends(),
            Some(Err(error)) => self.span.breaks(error),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.span.trailers(trailers);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.span.ends();
        }
    }
}

/// Takes what a component writes of a request that goes nowhere, for a moment. Many components write it before they look
/// at the answer, and would be told that the writing broke off, and not why.
pub(crate) async fn drain(mut body: impl Body + Unpin) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(DRAIN, all).await; // What has not come by then is not waited for.
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
