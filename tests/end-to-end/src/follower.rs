//! A client that watches the instances of one service in etcd, and calls them in turn.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use etcd_client::{EventType, GetOptions, WatchOptions};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use leasehold_scenarios::world::World;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// Timeout of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two requests of one caller.
const PACE: Duration = Duration::from_millis(5);

/// The addresses of one service.
#[derive(Clone, Debug, Default)]
pub struct Instances(Arc<Mutex<BTreeSet<String>>>);

impl Instances {
    /// The currently known addresses.
    pub fn known(&self) -> BTreeSet<String> {
        self.0.lock().expect("nothing panics while it holds the addresses").clone()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<String>)) {
        change(&mut self.0.lock().expect("nothing panics while it holds the addresses"));
    }
}

/// Results of all callers.
#[derive(Debug)]
pub struct Tally {
    /// Successful requests.
    pub answered: usize,
    /// One line per failure.
    pub failures: Vec<String>,
}

/// Protocol of a caller.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// `GET` over HTTP/1.1, on persistent connections.
    Http1,
    /// `GET` over one HTTP/2 connection per instance.
    Http2,
    /// A unary gRPC call to the example, over one HTTP/2 connection per instance.
    Grpc,
    /// A gRPC call to the example with a stream of greetings as its response.
    GrpcStream,
}

/// `greeter.v1`'s `GreetRequest` for Ada, after its header.
const GREET: &[u8] = b"\0\0\0\0\x05\x0a\x03Ada";
/// `RepeatRequest` for Ada: three times, with 20 ms before each.
const REPEAT: &[u8] = b"\0\0\0\0\x09\x0a\x03Ada\x10\x03\x18\x14";
/// `GreetReply` to Ada.
const HELLO: &[u8] = b"\0\0\0\0\x0b\x0a\x09hello Ada";

impl Call {
    /// Path and message of a gRPC call, and its number of replies.
    fn grpc(self) -> Option<(&'static str, &'static [u8], usize)> {
        match self {
            Self::Http1 | Self::Http2 => None,
            Self::Grpc => Some(("greeter.v1.Greeter/Greet", GREET, 1)),
            Self::GrpcStream => Some(("greeter.v1.Greeter/Repeat", REPEAT, 3)),
        }
    }
}

/// The client.
#[derive(Debug)]
pub struct Follower {
    instances: Instances,
    watch: JoinHandle<()>,
    callers: JoinSet<Vec<String>>,
    answered: Arc<AtomicUsize>,
    over: tokio::sync::watch::Sender<bool>,
}

impl Follower {
    /// Watches a service. The client acts on each change after `lag`, like a busy client.
    ///
    /// # Panics
    /// If etcd does not respond.
    pub async fn of(world: &World, name: &str, lag: Duration) -> Self {
        let prefix = format!("/{name}/");
        let mut client = world.client().await;
        let options = GetOptions::new().with_prefix();
        let found = client.get(prefix.as_str(), Some(options)).await.expect("etcd answers");
        let next = found.header().expect("an answer has a header").revision() + 1;
        let instances = Instances::default();
        instances.change(|known| known.extend(found.kvs().iter().map(|kv| addr(kv.key()))));
        let options = WatchOptions::new().with_prefix().with_start_revision(next);
        let mut changes = client.watch(prefix, Some(options)).await.expect("etcd can be watched");
        let sink = instances.clone();
        let watch = tokio::spawn(async move {
            while let Ok(Some(news)) = changes.message().await {
                sleep(lag).await;
                sink.change(|known| {
                    for event in news.events() {
                        let addr = addr(event.kv().expect("an event has a key").key());
                        match event.event_type() {
                            EventType::Put => drop(known.insert(addr)),
                            EventType::Delete => drop(known.remove(&addr)),
                        }
                    }
                });
            }
        });
        let over = tokio::sync::watch::Sender::new(false);
        Self { instances, watch, callers: JoinSet::new(), answered: Arc::default(), over }
    }

    /// The instances that this client knows.
    pub fn instances(&self) -> &Instances {
        &self.instances
    }

    /// Number of successful requests so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Calls the instances in turn, one request after the other, until the end.
    pub fn calls(&mut self, call: Call) {
        let (instances, over, answered) = (self.instances.clone(), self.over.subscribe(), Arc::clone(&self.answered));
        let client = Client::builder(TokioExecutor::new()).http2_only(!matches!(call, Call::Http1)).build_http();
        self.callers.spawn(async move {
            let mut failures = Vec::new();
            for turn in 0_usize.. {
                if *over.borrow() {
                    break;
                }
                let known: Vec<String> = instances.known().into_iter().collect();
                match known.get(turn % known.len().max(1)) {
                    None => failures.push("no instance is known".to_owned()),
                    Some(addr) => match ask(&client, call, addr).await {
                        Ok(()) => _ = answered.fetch_add(1, Ordering::Relaxed),
                        Err(said) => failures.push(format!("{call:?} to {addr}: {said}")),
                    },
                }
                sleep(PACE).await;
            }
            failures
        });
    }

    /// Stops all callers, and returns their results.
    ///
    /// # Panics
    /// If a caller panicked.
    pub async fn ends(self) -> Tally {
        self.over.send_replace(true);
        let failures = self.callers.join_all().await.concat();
        self.watch.abort();
        Tally { answered: self.answered.load(Ordering::Relaxed), failures }
    }
}

/// The last part of a key.
fn addr(key: &[u8]) -> String {
    let key = String::from_utf8_lossy(key);
    key.rsplit('/').next().unwrap_or_default().to_owned()
}

async fn ask(client: &Client<HttpConnector, Full<Bytes>>, call: Call, addr: &str) -> Result<(), String> {
    let request = match call.grpc() {
        None => Request::get(format!("http://{addr}/")).body(Full::default()),
        Some((path, message, _)) => Request::post(format!("http://{addr}/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(message)),
    };
    let asking = async {
        let response = client.request(request.expect("a request")).await;
        let (head, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
        let body = body.collect().await.map_err(|error| format!("the answer broke off: {error:?}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let status = head.headers.get("grpc-status").or(trailers.get("grpc-status")).map(HeaderValue::as_bytes);
        let body = body.to_bytes();
        let is_good = match call.grpc() {
            None => head.status == 200,
            Some((_, _, times)) => head.status == 200 && status == Some(b"0") && body == HELLO.repeat(times),
        };
        if is_good { Ok(()) } else { Err(format!("{}, gRPC {status:?}, {body:?}", head.status)) }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}
