//! Traces: a real OTLP receiver gets requests and the component's outgoing requests as one trace.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Channel, Full};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use leasehold_end_to_end::{
    Host,
    config::{config, greeter, hostile, plain, service, with},
    http::{ask, get},
    raw::{Connection, field},
};
use leasehold_scenarios::{
    real::Authority,
    wait_for,
    world::{SOON, World},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value as Any},
    trace::v1::span::SpanKind,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A client's `traceparent` with the decision to sample this request.
fn sampled(trace: &str) -> String {
    format!("00-{trace}-{PARENT}-01")
}

/// A span as the collector received it.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    resource: HashMap<String, String>,
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    state: String,
    attributes: HashMap<String, String>,
    events: Vec<String>,
    /// The message of an error.
    error: Option<String>,
}

impl Span {
    fn is(&self, service: &str, kind: SpanKind) -> bool {
        self.service == service && self.kind == kind
    }

    fn has(&self, attributes: &[(&str, &str)]) {
        for (key, value) in attributes {
            assert_eq!(self.attributes.get(*key).map(String::as_str), Some(*value), "{key} of {self:#?}");
        }
    }
}

/// A collector on loopback.
struct Collector {
    addr: SocketAddr,
    received: Arc<Mutex<Received>>,
    _server: Ended,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    token: Option<String>,
}

/// A task that ends with the test.
struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Receiver(Arc<Mutex<Received>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut received = self.0.lock().unwrap();
        received.token = request.metadata().get("x-token").map(|token| token.to_str().unwrap().to_owned());
        for resource in request.into_inner().resource_spans {
            let about = texts(resource.resource.unwrap().attributes);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let status = span.status.clone().unwrap_or_default();
                received.spans.push(Span {
                    service: about["service.name"].clone(),
                    resource: about.clone(),
                    kind: span.kind(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    attributes: texts(span.attributes),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                    error: (status.code == 2).then_some(status.message),
                    name: span.name,
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(pairs: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    pairs.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

impl Collector {
    async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), Server::builder()).await
    }

    async fn at(addr: SocketAddr, mut builder: Server) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Received>>::default();
        let service = TraceServiceServer::new(Receiver(Arc::clone(&received)));
        let server = tokio::spawn(async move {
            builder.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { addr, received, _server: Ended(server) }
    }

    fn spans(&self) -> Vec<Span> {
        self.received.lock().unwrap().spans.clone()
    }

    /// Waits for a span that fits.
    async fn span(&self, what: &str, fits: impl Fn(&Span) -> bool) -> Span {
        let mut found = None;
        wait_for(&format!("the collector is told of {what}"), SOON, async || {
            found = self.spans().into_iter().find(|span| fits(span));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Waits for the span of this service's response to that path.
    async fn answer(&self, service: &str, path: &str) -> Span {
        let fits = |span: &Span| span.is(service, SpanKind::Server) && span.attributes["url.path"] == path;
        self.span(&format!("the answer of {service} to {path}"), fits).await
    }
}

/// A host that sends every request to this collector, soon.
async fn traced(world: &World, collector: SocketAddr, services: impl IntoIterator<Item = Value>) -> Host {
    let traces = json!({ "traces": { "endpoint": format!("http://{collector}") } });
    ready(&with(config(world, services), traces)).await
}

async fn ready(config: &Value) -> Host {
    let mut host = Host::spawn_with(config, &[], &[("OTEL_BSP_SCHEDULE_DELAY", "50")]);
    host.event("ready").await;
    host
}

fn caller() -> Value {
    with(hostile("caller"), json!({ "allow": { "discover": ["*"] }, "limits": { "instance_requests": 100 } }))
}

/// A 0.3 component, which serves concurrent requests, and may send requests to this address.
fn relay(to: &str) -> Value {
    with(service("relay", "plain-p3"), json!({ "register": "host", "allow": { "outbound": [to] } }))
}

#[tokio::test]
async fn a_request_and_its_outgoing_requests_are_one_trace() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let here = traced(&world, collector.addr, [caller()]).await;
    let there = traced(&world, collector.addr, [greeter()]).await;
    let url = here.url("caller");
    let called = async || {
        let headers = [("traceparent", &*sampled(TRACE)), ("tracestate", "a=1")];
        ask("GET", &format!("{url}call/greeter.leasehold?token=secret"), &headers).await
    };
    wait_for("greeter is known", SOON, async || called().await.body.contains("hello")).await;
    let greeted = |span: &Span| span.is("greeter", SpanKind::Server);
    let served = collector.span("the greeting", greeted).await;
    let sent = collector.span("the call", |span| span.id == served.parent).await;
    let client = collector.span("the request", |span| span.id == sent.parent).await;

    for span in [&served, &sent, &client] {
        assert_eq!((span.name.as_str(), span.trace.as_str(), span.state.as_str()), ("GET", TRACE, "a=1"));
        assert_eq!((&span.error, span.events.is_empty()), (&None, true), "{span:#?}");
        span.has(&[("http.request.method", "GET"), ("http.response.status_code", "200")]);
        assert!(!format!("{span:?}").contains("secret"), "{span:#?}");
    }
    assert!(client.is("caller", SpanKind::Server) && client.parent == PARENT, "{client:#?}");
    client.has(&[
        ("url.path", "/call/greeter.leasehold"),
        ("url.scheme", "http"),
        ("server.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
    ]);
    let node = there.addr("greeter");
    let port = node.rsplit_once(':').unwrap().1;
    assert!(sent.is("caller", SpanKind::Client), "{sent:#?}");
    sent.has(&[
        ("peer.service", "greeter"),
        ("leasehold.node", &node),
        ("leasehold.attempts", "1"),
        ("server.port", port),
        ("url.full", "http://greeter.leasehold/"),
    ]);
    // The instance that served earlier requests serves the next.
    let next = "4bf92f3577b34da6a3ce929d0e0e4736";
    ask("GET", &format!("{url}call/greeter.leasehold"), &[("traceparent", &sampled(next))]).await;
    let second = collector.span("the next greeting", |span| greeted(span) && span.trace == next).await;
    let sent = collector.span("its call", |span| span.id == second.parent).await;
    let client = collector.span("its request", |span| span.id == sent.parent).await;
    assert_eq!((client.parent.as_str(), client.trace.as_str()), (PARENT, next));
    assert_eq!(served.resource["service.instance.id"], node);
    assert!(!served.resource.contains_key("service.version"));
    assert_eq!(here.stop().await.code, Some(0));
    assert_eq!(there.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_skipped_node_is_an_event() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let host = traced(&world, collector.addr, [caller(), plain("user")]).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let value = json!({ "name": "user", "addr": gone.to_string(), "version": "", "weight": "100" }).to_string();
    world.put(&format!("/user/{gone}"), &value, 0).await;
    let url = format!("{}call/user.leasehold", host.url("caller"));
    let passed = |span: &Span| span.events == ["retried on another node"];
    wait_for("a call meets the dead node first", SOON, async || {
        assert!(get(&url).await.body.contains("hello"));
        collector.spans().iter().any(passed)
    })
    .await;
    let sent = collector.span("that call", passed).await;
    sent.has(&[("leasehold.attempts", "2"), ("leasehold.node", &host.addr("user"))]);
    assert_eq!(sent.error, None);
}

#[tokio::test]
async fn a_grpc_call_has_its_method_and_status() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let greeter = with(service("grpc", "grpc-greeter"), json!({ "register": "host" }));
    let host = traced(&world, collector.addr, [caller(), greeter]).await;
    let url = format!("{}greet/grpc.leasehold", host.url("caller"));
    wait_for("grpc is known", SOON, async || get(&url).await.body.contains("hello Ada")).await;
    let served = collector.span("the answer", |span| span.is("grpc", SpanKind::Server)).await;
    let sent = collector.span("the call", |span| span.id == served.parent).await;
    for span in [&served, &sent] {
        assert_eq!((span.name.as_str(), &span.error), ("greeter.v1.Greeter/Greet", &None));
        span.has(&[
            ("rpc.system", "grpc"),
            ("rpc.service", "greeter.v1.Greeter"),
            ("rpc.method", "Greet"),
            ("rpc.grpc.status_code", "0"),
        ]);
    }
    served.has(&[("network.protocol.version", "2")]);
}

#[tokio::test]
async fn concurrent_requests_in_one_instance_are_distinguished() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let there = traced(&world, collector.addr, [plain("there")]).await;
    let target = there.addr("there");
    let here = traced(&world, collector.addr, [relay(&target)]).await;
    let url = here.url("relay");
    let client: Client<_, Channel<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let begin = |number: usize| {
        let (sender, body) = Channel::new(1);
        let request = Request::post(format!("{url}relay/{target}/{number}"));
        let request = request.header("traceparent", sampled(&format!("{number:032x}"))).body(body).unwrap();
        (sender, tokio::spawn(client.request(request)))
    };
    // The last request is relayed first; a response that has begun shows that its request is in the instance.
    let mut begun: Vec<_> = (1..=6).map(begin).collect();
    for (sender, _) in &mut begun {
        sender.send_data(Bytes::from_static(b"begun")).await.unwrap();
        sender.send_data(Bytes::from_static(b"on")).await.unwrap();
    }
    let mut most = 0;
    for (sender, answer) in begun.into_iter().rev() {
        drop(sender);
        let body = answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let (status, inside) = text.trim().split_once(' ').unwrap();
        assert_eq!(status, "200");
        most = most.max(inside.parse().unwrap());
    }
    assert!(most > 1, "each request had an instance of its own");
    for number in 1..=6 {
        let served = collector.answer("there", &format!("/{number}")).await;
        let sent = collector.span("the request", |span| span.id == served.parent).await;
        let client = collector.answer("relay", &format!("/relay/{target}/{number}")).await;
        assert_eq!(served.trace, format!("{number:032x}"));
        assert_eq!((sent.trace, sent.parent), (client.trace, client.id));
        assert_eq!(sent.attributes["url.full"], format!("http://{target}/{number}"));
    }
}

#[tokio::test]
async fn the_parent_that_a_component_sets_is_kept() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let there = traced(&world, collector.addr, [plain("there")]).await;
    let target = there.addr("there");
    let here = traced(&world, collector.addr, [relay(&target)]).await;
    let own = "00-0af7651916cd43dd8448eb211c80319d-00f067aa0ba902b7-01";
    let url = format!("{}relay/{target}/own", here.url("relay"));
    let answer = ask("GET", &url, &[("traceparent", &sampled(TRACE)), ("own-parent", own)]).await;
    assert_eq!(answer.body, "200 1\n");
    let served = collector.answer("there", "/own").await;
    let sent = collector.span("the request", |span| span.id == served.parent).await;
    assert_eq!((sent.parent.as_str(), sent.trace.as_str()), ("00f067aa0ba902b7", "0af7651916cd43dd8448eb211c80319d"));
    // An unreadable header counts as absent.
    let answer = ask("GET", &url, &[("traceparent", &sampled(TRACE)), ("own-parent", "00-1-1-01")]).await;
    assert_eq!(answer.body, "200 1\n");
    let fits = |span: &Span| span.kind == SpanKind::Client && span.trace == TRACE;
    let sent = collector.span("the second request", fits).await;
    let client = collector.span("its answer", |span| span.id == sent.parent).await;
    assert_eq!(client.parent, PARENT);
}

#[tokio::test]
async fn failures_and_limits_are_reported() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let slow = with(hostile("slow"), json!({ "limits": { "request_timeout": "500ms" } }));
    let host = traced(&world, collector.addr, [hostile("failing"), slow, relay("127.0.0.1:1")]).await;
    let failing = host.url("failing");
    assert_eq!(get(&format!("{failing}act/trap")).await.status, 500);
    let span = collector.answer("failing", "/act/trap").await;
    span.has(&[("error.type", "component_failed"), ("http.response.status_code", "500")]);
    assert_eq!(span.error.as_deref(), Some("the service failed"));

    assert_eq!(get(&format!("{}act/spin", host.url("slow"))).await.status, 504);
    let span = collector.answer("slow", "/act/spin").await;
    span.has(&[("error.type", "timeout"), ("http.response.status_code", "504")]);

    assert_eq!(ask("GET", &format!("{failing}call/{}", "evil.example"), &[]).await.status, 200);
    let sent = collector.span("a request that is denied", |span| span.is("failing", SpanKind::Client)).await;
    sent.has(&[("error.type", "HttpRequestDenied"), ("server.address", "evil.example")]);
    assert!(sent.error.is_some());
    assert_eq!(collector.answer("failing", "/call/evil.example").await.error, None);

    // A response that breaks off, and an abandoned response.
    let mut client = TcpStream::connect(host.addr("relay")).await.unwrap();
    client.write_all(b"GET /break HTTP/1.1\r\nhost: relay\r\n\r\n").await.unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();
    let span = collector.answer("relay", "/break").await;
    span.has(&[("error.type", "component_failed"), ("http.response.status_code", "200"), ("server.address", "relay")]);
    // A failure before any part of the response was sent.
    assert_eq!(get(&format!("{}fail", host.url("relay"))).await.status, 500);
    let span = collector.answer("relay", "/fail").await;
    span.has(&[("error.type", "component_failed"), ("http.response.status_code", "500")]);
    // Over HTTP/2: in HTTP/1.1 the host notices an abandoned request with the next write, since a client may close its
    // sending side and still wait.
    let mut client = Connection::open(&host.addr("failing")).await;
    let head = [(":method", "MINE"), (":scheme", "http"), (":path", "/act/sleep"), (":authority", "failing")];
    let stream = client.send(&head.map(|(name, value)| field(name, value)).concat(), None).await;
    // The connection serves requests in order of their arrival.
    let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "failing")];
    assert_eq!(client.ask(&head.map(|(name, value)| field(name, value)).concat()).await.status(), "200");
    client.cancel(stream).await;
    let span = collector.answer("failing", "/act/sleep").await;
    assert_eq!((span.name.as_str(), span.events.len(), span.error.is_some()), ("HTTP", 1, false), "{span:#?}");
    span.has(&[("http.request.method", "_OTHER")]);
}

#[tokio::test]
async fn the_caller_decides_on_sampling_and_otherwise_the_rate() {
    let (world, collector) = (World::real().await, Collector::start().await);
    let echo = Echo::start().await;
    let traces = json!({ "traces": { "endpoint": format!("http://{}", collector.addr), "sample": 0 } });
    let host = ready(&with(config(&world, [relay(&echo.addr.to_string())]), traces)).await;
    let url = format!("{}relay/{}/", host.url("relay"), echo.addr);
    // Unsampled, and passed on as such; so are requests without a decision.
    ask("GET", &url, &[("traceparent", &sampled(TRACE).replace("-01", "-00"))]).await;
    let parent = echo.parent().unwrap();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    get(&url).await;
    assert!(echo.parent().unwrap().ends_with("-00"));
    // An invalid parent counts as absent.
    for bad in ["00-1-1-01", &"0".repeat(4000), &format!("{}-{}", sampled(TRACE), "0".repeat(200))] {
        assert_eq!(ask("GET", &url, &[("traceparent", bad)]).await.status, 200);
        assert!(echo.parent().unwrap().ends_with("-00"), "{bad}");
    }
    // The sampled request is the first that the collector receives.
    ask("GET", &url, &[("traceparent", &sampled(TRACE))]).await;
    assert!(echo.parent().unwrap().ends_with("-01"));
    assert_eq!(host.stop().await.code, Some(0));
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
}

#[tokio::test]
async fn without_a_collector_nothing_is_added() {
    let (world, echo) = (World::real().await, Echo::start().await);
    let host = Host::of(&world, [relay(&echo.addr.to_string())]).await;
    let url = format!("{}relay/{}/", host.url("relay"), echo.addr);
    ask("GET", &url, &[("traceparent", &sampled(TRACE))]).await;
    assert_eq!(echo.parent(), None);
    ask("GET", &url, &[("own-parent", "anything")]).await;
    assert_eq!(echo.parent().as_deref(), Some("anything"));
}

#[tokio::test]
async fn an_unreachable_collector_costs_only_the_spans() {
    let world = World::real().await;
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut host = traced(&world, addr, [plain("user")]).await;
    let url = host.url("user");
    let said = "the collector of traces takes no spans";
    get(&url).await;
    host.says(said).await;
    for _ in 0..3000 {
        assert_eq!(get(&url).await.status, 200);
    }
    let warned = host.log().iter().filter(|line| line["message"].as_str().unwrap().starts_with(said)).count();
    assert_eq!(warned, 1);
    // The collector returns, and receives later spans.
    let collector = Collector::at(addr, Server::builder()).await;
    wait_for("a span comes", SOON, async || {
        get(&url).await;
        !collector.spans().is_empty()
    })
    .await;
    host.says("the collector of traces takes spans again").await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_hold_up_the_end() {
    let world = World::real().await;
    // The kernel accepts connections; they stay silent.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = traced(&world, listener.local_addr().unwrap(), [plain("user")]).await;
    for _ in 0..10 {
        assert_eq!(get(&host.url("user")).await.status, 200);
    }
    let begun = Instant::now();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    // The drain delay is half a second, and the collector has two seconds.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn remaining_spans_are_sent_at_the_end_over_tls_with_the_token() {
    let (world, authority) = (World::real().await, Authority::new("ours"));
    let pair = authority.server();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&pair.certificate, &pair.key));
    let collector = Collector::at("127.0.0.1:0".parse().unwrap(), Server::builder().tls_config(tls).unwrap()).await;
    let folder = TempDir::with_prefix("leasehold-traces-").unwrap();
    let file = folder.path().join("headers");
    fs::write(&file, "x-token: s3cret\n").unwrap();
    fs::write(folder.path().join("ca.pem"), authority.certificate()).unwrap();
    let endpoint = format!("https://{}", collector.addr);
    let traces = json!({ "endpoint": endpoint, "headers_file": file, "ca": folder.path().join("ca.pem") });
    let traces = json!({ "traces": traces });
    let config = with(config(&world, [plain("user"), with(plain("other"), json!({ "version": "v7" }))]), traces);
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "600000"), ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=t")];
    let mut host = Host::spawn_with(&config, &["-vv"], &variables);
    host.event("ready").await;
    get(&host.url("user")).await;
    get(&host.url("other")).await;
    assert!(collector.spans().is_empty());
    // The file is read for each batch: a token that was rotated meanwhile goes with this one.
    fs::write(&file, "x-token: r0tated\n").unwrap();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.wrote("s3cret") && !ended.wrote("r0tated"));
    let spans = collector.spans();
    let other = spans.iter().find(|span| span.service == "other").unwrap();
    assert_eq!((spans.len(), &*other.resource["service.version"]), (2, "v7"));
    assert!(spans.iter().all(|span| span.resource["deployment.environment"] == "t"), "{spans:#?}");
    assert_eq!(collector.received.lock().unwrap().token.as_deref(), Some("r0tated"));
}

/// A server that stores the parent of the last request.
struct Echo {
    addr: SocketAddr,
    parent: Arc<Mutex<Option<String>>>,
    _server: Ended,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let parent = Arc::<Mutex<Option<String>>>::default();
        let seen = Arc::clone(&parent);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                let answer = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let parent = request.headers().get("traceparent");
                    *seen.lock().unwrap() = parent.map(|parent| parent.to_str().unwrap().to_owned());
                    async { Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::default())) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self { addr, parent, _server: Ended(server) }
    }

    /// The parent of the last request.
    fn parent(&self) -> Option<String> {
        self.parent.lock().unwrap().take()
    }
}
