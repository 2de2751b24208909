//! Spans: one for each response of a service, one for each request that a component sends. Contexts are passed in the
//! headers of W3C Trace Context.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, response};
use leasehold::{Addr, ServiceName};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span as Recorded},
};

use crate::{grpc, rejection::Rejection};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");
/// Length of a `traceparent` of the present version, and the longest of a future one.
const PARENT_LENGTH: usize = 55;
const MAX_PARENT: usize = 128;
/// Length of a `tracestate` that must be passed on; a longer one is dropped.
const MAX_STATE: usize = 512;
/// Characters of a name, a path or an address in a span, at most.
const MAX_TEXT: usize = 256;

/// Tracer of one service.
#[derive(Clone)]
pub(crate) struct Tracer {
    sdk: SdkTracer,
    scheme: &'static str,
}

/// One span. It ends with its drop, and has an event if that is too early.
pub(crate) struct Span {
    recorded: Recorded,
    kind: SpanKind,
    settled: bool,
}

impl Tracer {
    pub(crate) fn new(sdk: SdkTracer, tls: bool) -> Self {
        Self { sdk, scheme: if tls { "https" } else { "http" } }
    }

    /// The span of a response. From here on it is the parent in the request's headers, as the component sees them.
    pub(crate) fn server_span<B>(&self, request: &mut Request<B>) -> Span {
        let parent = extract(request.headers()).unwrap_or_default();
        let mut span = self.begin(SpanKind::Server, &parent, request);
        if span.recorded.is_recording() {
            let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
            if let Some(authority) = request.uri().authority().cloned().or(host) {
                span.address(authority.host(), authority.port_u16());
            }
            span.set("url.scheme", self.scheme);
            span.set("url.path", bounded(request.uri().path()));
            let version = match request.version() {
                Version::HTTP_2 => "2",
                Version::HTTP_10 => "1.0",
                _ => "1.1",
            };
            span.set("network.protocol.version", version);
        }
        span
    }

    /// The span of a request that the component sends. Its parent is named by the request's headers, otherwise `parent`, the
    /// request that the component answers. Without either there is no span.
    pub(crate) fn client_span<B>(&self, parent: Option<SpanContext>, request: &mut Request<B>) -> Option<Span> {
        let remote = |parent| Context::new().with_remote_span_context(parent);
        let parent = extract(request.headers()).or_else(|| parent.map(remote))?;
        let mut span = self.begin(SpanKind::Client, &parent, request);
        if span.recorded.is_recording() {
            if let Some(authority) = request.uri().authority() {
                span.address(authority.host(), authority.port_u16());
            }
            span.set("url.full", bounded(&without_query(request.uri())));
        }
        Some(span)
    }

    fn begin<B>(&self, kind: SpanKind, parent: &Context, request: &mut Request<B>) -> Span {
        let method = method(request.method());
        let grpc = grpc::is_spoken(request.headers()).then(|| bounded(request.uri().path().trim_start_matches('/')));
        let name = match &grpc {
            Some(call) => Cow::Owned(call.clone()),
            None => Cow::Borrowed(method.unwrap_or("HTTP")),
        };
        let recorded = self.sdk.span_builder(name).with_kind(kind.clone()).start_with_context(&self.sdk, parent);
        let mut span = Span { recorded, kind, settled: false };
        if span.recorded.is_recording() {
            span.set("http.request.method", method.unwrap_or("_OTHER"));
            if let Some(call) = grpc {
                span.set("rpc.system", "grpc");
                if let Some((service, method)) = call.rsplit_once('/') {
                    span.set("rpc.service", service.to_owned());
                    span.set("rpc.method", method.to_owned());
                }
            }
        }
        inject(span.context(), request.headers_mut());
        span
    }
}

impl Span {
    pub(crate) fn context(&self) -> SpanContext {
        self.recorded.span_context().clone()
    }

    fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.recorded.set_attribute(KeyValue::new(key, value));
    }

    fn address(&mut self, host: &str, port: Option<u16>) {
        self.set("server.address", bounded(host));
        if let Some(port) = port {
            self.set("server.port", i64::from(port));
        }
    }

    /// Records the service of a call by name.
    pub(crate) fn record_service(&mut self, name: &ServiceName) {
        self.set("peer.service", name.to_string());
    }

    /// Records the node of a call by name, and the number of nodes before it.
    pub(crate) fn record_attempt(&mut self, node: &Addr, others: usize) {
        if let Some((host, port)) = node.as_str().rsplit_once(':') {
            self.address(host, port.parse().ok());
        }
        self.set("leasehold.node", node.to_string());
        self.set("leasehold.attempts", i64::try_from(others + 1).unwrap_or(i64::MAX));
    }

    /// Records that a node took no connection, and that the call may go to another node.
    pub(crate) fn record_skip(&mut self, node: &Addr) {
        self.recorded.add_event("retried on another node", vec![KeyValue::new("leasehold.node", node.to_string())]);
    }

    /// Records the beginning of a response.
    pub(crate) fn record_response(&mut self, head: &response::Parts) {
        let status = head.status.as_u16();
        self.set("http.response.status_code", i64::from(status));
        if status >= if self.kind == SpanKind::Client { 400 } else { 500 } {
            self.record_error(status.to_string(), head.status.canonical_reason().unwrap_or_default());
        }
        if grpc::is_trailers_only(&head.headers) {
            self.record_trailers(&head.headers);
        }
    }

    /// Records the gRPC status of the call.
    pub(crate) fn record_trailers(&mut self, trailers: &HeaderMap) {
        let Some(code) = grpc::status(trailers) else { return };
        self.set("rpc.grpc.status_code", i64::from(code));
        let failed = grpc::is_failure(code) || (self.kind == SpanKind::Client && code != 0);
        if failed {
            self.record_error(code.to_string(), "");
        }
        self.settled = true;
    }

    /// Records a response of the host in the component's place.
    pub(crate) fn record_rejection(&mut self, rejection: &Rejection, grpc: bool) {
        let sent = if grpc { StatusCode::OK } else { rejection.status };
        self.set("http.response.status_code", i64::from(sent.as_u16()));
        if grpc {
            self.set("rpc.grpc.status_code", i64::from(rejection.grpc_status as u16));
        }
        if rejection.status.is_server_error() {
            self.record_error(<&str>::from(rejection.reason).to_owned(), rejection.text);
        }
        self.settled = true;
    }

    /// Records an error.
    pub(crate) fn record_error(&mut self, kind: String, message: &'static str) {
        self.set("error.type", kind);
        self.recorded.set_status(Status::error(message));
    }

    /// Records an error of `wasi:http` by its name.
    pub(crate) fn record_wasi_error(&mut self, error: &wasmtime_wasi_http::Error) {
        let name: String = format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect();
        self.record_error(name, "");
        self.settled = true;
    }

    /// Marks the span as finished.
    pub(crate) fn finish(&mut self) {
        self.settled = true;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if !self.settled {
            self.recorded.add_event("abandoned by the client", Vec::new());
        }
    }
}

/// Well-known methods; custom names would have too many values.
fn method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Removes the query, which may hold private data.
fn without_query(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    format!("{scheme}://{host}{}", uri.path())
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let (limit, mut all) = match key {
            "traceparent" => (MAX_PARENT, self.0.get_all(PARENT).iter()),
            _ => (MAX_STATE, self.0.get_all(STATE).iter()),
        };
        // Two headers count as none.
        let (only, None) = (all.next()?.to_str().ok()?, all.next()) else { return None };
        (only.len() <= limit).then_some(only)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = if key == PARENT.as_str() { PARENT } else { STATE };
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => self.0.insert(name, value),
            _ => self.0.remove(name),
        };
    }
}

/// The parent in a request's headers, if it is valid.
fn extract(headers: &HeaderMap) -> Option<Context> {
    // The library accepts shorter numbers.
    let legal = |at, byte: u8| if [2, 35, 52].contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() };
    let headers = Incoming(headers);
    let parent = headers.get(PARENT.as_str())?.as_bytes();
    let (known, rest) = parent.split_at_checked(PARENT_LENGTH)?;
    if !known.iter().enumerate().all(|(at, byte)| legal(at, *byte)) || !(rest.is_empty() || rest[0] == b'-') {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    context.span().span_context().is_valid().then_some(context)
}

/// Writes a span into the headers as the parent, in the place of any other.
fn inject(span: SpanContext, headers: &mut HeaderMap) {
    let context = Context::new().with_remote_span_context(span);
    TraceContextPropagator::new().inject_context(&context, &mut Outgoing(headers));
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};
    use opentelemetry::trace::TraceContextExt;

    use super::{extract, inject};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_parent_is_passed_on_with_its_state() {
        let given = headers(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]);
        let context = extract(&given).unwrap().span().span_context().clone();
        let mut passed = headers(&[("traceparent", "other"), ("tracestate", "c=3")]);
        inject(context.clone(), &mut passed);
        assert_eq!(passed, given);

        let state = "a=".to_owned() + &"1".repeat(600);
        let long = headers(&[("traceparent", PARENT), ("tracestate", &state)]);
        inject(extract(&long).unwrap().span().span_context().clone(), &mut passed);
        assert_eq!(passed, headers(&[("traceparent", PARENT)]));
        assert!(extract(&headers(&[("traceparent", &format!("cc{}-more", &PARENT[2..]))])).is_some());
    }

    #[test]
    fn an_invalid_parent_is_ignored() {
        let long = format!("{PARENT}-{}", "a".repeat(100));
        for bad in [
            "",
            "00-1-1-01",
            &PARENT[..54],
            &long,
            &format!("{PARENT}-00"),
            &format!("{PARENT}0"),
            &PARENT.to_uppercase(),
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replace("0af7", "+af7"),
            &PARENT.replacen("00", "ff", 1),
        ] {
            assert!(extract(&headers(&[("traceparent", bad)])).is_none(), "{bad:?}");
        }
        assert!(extract(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)])).is_none());
        assert!(extract(&HeaderMap::new()).is_none());
    }
}
