//! Limits: requests, open connections and unread responses cost no more than the configuration allows, and clients get an error.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Version, header};
use http_body_util::{BodyExt, Channel, Empty, Full};
use hyper::body::Body;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use leasehold_end_to_end::{
    Host,
    config::{config, hostile, service, with},
    http::{BOTH, Kept, Protocol, get, get_over},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

fn limited(limits: &Value) -> Value {
    with(hostile("hostile"), json!({ "register": "host", "limits": limits }))
}

async fn connect(host: &Host, service: &str) -> TcpStream {
    TcpStream::connect(host.addr(service)).await.unwrap()
}

/// Bytes from the host until it closes the connection.
async fn received(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let ended = timeout(SOON, stream.read_to_end(&mut text)).await.expect("the host closes the connection");
    let _ = ended; // A reset is an end, too.
    String::from_utf8_lossy(&text).into_owned()
}

fn client<B>(protocol: Protocol) -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new()).http2_only(protocol == Protocol::Http2).build_http()
}

#[tokio::test]
async fn limits_connections_beyond_the_limit_wait() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({ "connections": 2 }))]).await;
    let (first, second) = (connect(&host, "hostile").await, connect(&host, "hostile").await);
    let mut third = connect(&host, "hostile").await;
    third.write_all(b"GET / HTTP/1.0\r\nhost: here\r\n\r\n").await.unwrap();
    let mut byte = [0];
    let early = timeout(Duration::from_secs(1), third.read(&mut byte)).await;
    assert!(early.is_err(), "it was answered beside two others");
    drop(first);
    assert!(received(&mut third).await.starts_with("HTTP/1.0 200"));
    drop(second);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_headers_and_bodies_that_are_too_large_are_refused() {
    let world = World::real().await;
    let limits = json!({ "limits": { "header_size": "16KiB", "body_size": "1MiB" } });
    let host = Host::of(&world, [with(plain_p3(), limits)]).await;
    let url = format!("{}echo", host.url("plain-p3"));
    for protocol in BOTH {
        let path =
            |size: usize| Request::get(&url).header("x-large", "x".repeat(size)).body(Empty::<Bytes>::new()).unwrap();
        let version = |mut request: Request<_>| {
            *request.version_mut() = if protocol == Protocol::Http2 { Version::HTTP_2 } else { Version::HTTP_11 };
            request
        };
        let small = client(protocol).request(version(path(8 << 10))).await.unwrap();
        assert_eq!(small.status(), 200, "{protocol:?}");
        let large = client(protocol).request(version(path(32 << 10))).await.unwrap();
        assert_eq!(large.status(), 431, "{protocol:?}");

        let body = |size: usize| Full::new(Bytes::from(vec![b'x'; size]));
        let whole = client(protocol).request(Request::post(&url).body(body(1 << 20)).unwrap()).await.unwrap();
        assert_eq!(whole.status(), 200, "{protocol:?}");
        assert_eq!(whole.into_body().collect().await.unwrap().to_bytes().len(), 1 << 20, "{protocol:?}");
        let large = client(protocol).request(Request::post(&url).body(body((1 << 20) + 1)).unwrap()).await.unwrap();
        assert_eq!(large.status(), 413, "{protocol:?}");
    }
    let grpc = Request::post(&url).header(header::CONTENT_TYPE, "application/grpc");
    let grpc = grpc.body(Full::new(Bytes::from(vec![0; 2 << 20]))).unwrap();
    let refused = client(Protocol::Http2).request(grpc).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "8", "{refused:?}");
    assert_eq!(get(&host.url("plain-p3")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

/// The host closes the connection only when its client had time to read the response.
#[tokio::test]
async fn limits_clients_that_still_send_can_read_the_refusal() {
    let world = World::real().await;
    let host =
        Host::of(&world, [limited(&json!({ "body_size": "64KiB", "header_size": "8KiB", "connections": 1 }))]).await;
    let body = "POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1048576\r\n\r\n".to_owned();
    let header = format!("GET / HTTP/1.1\r\nhost: here\r\nx-large: {}", "x".repeat(9 << 10));
    for (begin, refused) in [(body, "HTTP/1.1 413"), (header, "HTTP/1.1 431")] {
        let mut client = connect(&host, "hostile").await;
        client.write_all(begin.as_bytes()).await.unwrap();
        for _ in 0..16 {
            sleep(Duration::from_millis(20)).await;
            client.write_all(&[b'x'; 64 << 10]).await.unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(refused), "{answer}");
    }
    // A client that sends without end does not hold its connection without end.
    let mut endless = connect(&host, "hostile").await;
    endless.write_all(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1048576\r\n\r\n").await.unwrap();
    let url = host.url("hostile");
    let next = get(&url);
    let sends = async {
        while endless.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (next, ()) = timeout(SOON, async { tokio::join!(next, sends) }).await.expect("the place becomes free");
    assert_eq!(next.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

/// A body of that many times 4 KiB, without a `content-length`.
fn pieces(count: usize) -> Channel<Bytes> {
    let (mut sender, channel) = Channel::new(1);
    tokio::spawn(async move {
        for _ in 0..count {
            if sender.send_data(Bytes::from(vec![0; 4 << 10])).await.is_err() {
                return;
            }
        }
    });
    channel
}

#[tokio::test]
async fn limits_a_body_without_a_length_breaks_off_at_the_limit() {
    let world = World::real().await;
    let small = json!({ "register": "host", "limits": { "body_size": "64KiB" } });
    let services = ["plain-p3", "grpc-greeter"].map(|name| with(service(name, name), small.clone()));
    let host = Host::of(&world, services).await;
    for protocol in BOTH {
        // Its response begins with the body, and breaks off with it.
        for (count, whole) in [(16, true), (17, false)] {
            let echo = Request::post(format!("{}echo", host.url("plain-p3"))).body(pieces(count)).unwrap();
            let answer = client(protocol).request(echo).await.unwrap();
            assert_eq!(answer.into_body().collect().await.is_ok(), whole, "{protocol:?}: {count}");
        }
    }
    // The component reads a whole message before it responds.
    let greet = Request::post(format!("{}greeter.v1.Greeter/Greet", host.url("grpc-greeter")));
    let greet = greet.header(header::CONTENT_TYPE, "application/grpc").body(large_message()).unwrap();
    let refused = client(Protocol::Http2).request(greet).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "8", "{refused:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

/// One gRPC message of 128 KiB.
fn large_message() -> Channel<Bytes> {
    let (mut sender, channel) = Channel::new(1);
    tokio::spawn(async move {
        let mut message = vec![0; 5 + (128 << 10)];
        message[..5].copy_from_slice(&[0, 0, 2, 0, 0]);
        for piece in message.chunks(4 << 10) {
            if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
        }
    });
    channel
}

#[tokio::test]
async fn limits_requests_that_are_not_http_get_an_error() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({}))]).await;
    for nonsense in ["NONSENSE\r\n\r\n", "GET / HTTP/1.1\r\nhost here\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let mut stream = connect(&host, "hostile").await;
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        let said = received(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 400"), "{nonsense:?}: {said:?}");
    }
    let mut stream = connect(&host, "hostile").await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense, and more of it").await.unwrap();
    received(&mut stream).await;
    assert_eq!(get(&host.url("hostile")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

/// A component that fails too often is withdrawn; a client must not be able to cause that.
#[tokio::test]
async fn limits_client_errors_are_no_failures_of_the_component() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(&world, [limited(&json!({}))]), admin)).await;
    let get_it: &[u8] = b"GET / HTTP/1.1\r\n";
    let hosts: [&[u8]; 5] = [b"", b"host: \xff\r\n", b"host:\r\n", b"host: he re\r\n", b"host: a\r\nhost: a\r\n"];
    let tunnel: (&[u8], &[u8]) = (b"CONNECT here:80 HTTP/1.1\r\n", b"host: here:80\r\n");
    for (line, named) in hosts.map(|named| (get_it, named)).into_iter().chain([tunnel]) {
        let mut stream = connect(&host, "hostile").await;
        stream.write_all(&[line, named, b"connection: close\r\n\r\n"].concat()).await.unwrap();
        let said = received(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 400"), "{}: {said:?}", named.escape_ascii());
    }
    let half = b"POST /read HTTP/1.1\r\nhost: here\r\ncontent-length: 10\r\n\r\nhalf";
    let nonsense = b"POST /read HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n";
    for broken in [&half[..], nonsense] {
        let mut stream = connect(&host, "hostile").await;
        stream.write_all(broken).await.unwrap();
        stream.shutdown().await.unwrap();
        let said = received(&mut stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{}: {said:?}", broken.escape_ascii());
    }
    let mut stream = connect(&host, "hostile").await;
    let whole = b"POST http://here/read HTTP/1.1\r\nconnection: close\r\ncontent-length: 5\r\n\r\nwhole";
    stream.write_all(whole).await.unwrap();
    let said = received(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("\r\n5"), "{said}");
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    for counted in ["reason=\"component_failed\"} 0", "reason=\"no_host\"} 6"] {
        assert!(metrics.contains(counted), "{counted} in {metrics}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_clients_that_send_nothing_or_half_are_cut() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({ "client_timeout": "1s" }))]).await;
    for begun in ["", "PRI * HTT", "GET / HTTP/1.1\r\nhost: he"] {
        let mut stream = connect(&host, "hostile").await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        received(&mut stream).await;
    }
    // An idle connection after a request.
    let mut stream = connect(&host, "hostile").await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    assert!(received(&mut stream).await.contains("hostile\n"));
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_an_idle_http_2_connection_is_closed() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({ "client_timeout": "1s" }))]).await;
    let (addr, url) = (host.addr("hostile"), host.url("hostile"));
    let unused = Kept::open(Protocol::Http2, &addr).await;
    let mut used = Kept::open(Protocol::Http2, &addr).await;
    // The request takes longer than a connection may be idle.
    assert_eq!(used.get(&format!("{url}act/slow")).await.0, 200);
    assert_eq!(used.get(&url).await.0, 200);
    let answered = Instant::now();
    used.is_closed().await;
    assert!(answered.elapsed() > Duration::from_millis(900), "{:?}", answered.elapsed());
    unused.is_closed().await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_a_missing_body_is_awaited_for_the_request_timeout() {
    let world = World::real().await;
    let host =
        Host::of(&world, [with(plain_p3(), json!({ "limits": { "request_timeout": "1s", "client_timeout": "1s" } }))])
            .await;
    let mut stream = connect(&host, "plain-p3").await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: here\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    received(&mut stream).await;
    assert_eq!(get(&host.url("plain-p3")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

fn plain_p3() -> Value {
    with(service("plain-p3", "plain-p3"), json!({ "register": "host" }))
}

#[tokio::test]
async fn limits_clients_that_do_not_read_release_their_permit() {
    let world = World::real().await;
    let limits = json!({ "concurrency": 1, "memory": "256MiB", "request_timeout": "1s", "client_timeout": "1s" });
    let host = Host::of(&world, [limited(&limits)]).await;
    let url = format!("{}act/flood", host.url("hostile"));
    // The client reads a little now and then, so it is never silent for `client_timeout`.
    let mut dripping = connect(&host, "hostile").await;
    dripping.write_all(b"GET /act/flood HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    let drip = tokio::spawn(async move {
        let mut some = [0; 4096];
        while dripping.read(&mut some).await.is_ok_and(|read| read > 0) {
            sleep(Duration::from_millis(200)).await;
        }
    });
    is_free(&host).await;
    drip.abort();
    for protocol in BOTH {
        let kept = client::<Empty<Bytes>>(protocol).get(url.parse().unwrap()).await.unwrap();
        assert_eq!(kept.status(), 200, "{protocol:?}");
        is_free(&host).await;
        let whole = kept.into_body().collect().await.is_ok();
        assert!(!whole, "{protocol:?}: the answer was kept for a client that does not read");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

/// Waits until the permit is free.
async fn is_free(host: &Host) {
    wait_for("the place is free", SOON, async || {
        get_over(Protocol::Http2, &host.url("hostile")).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// One permit and a queue of one: the third request is refused at once, and a queued request after its timeout.
#[tokio::test]
async fn limits_requests_beyond_the_limit_get_retry_after() {
    let world = World::real().await;
    let limits = limited(&json!({ "concurrency": 1, "request_timeout": "4s" }));
    let host = Host::ready(&with(config(&world, [limits]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    let (url, sleep_url) = (host.url("hostile"), format!("{}act/sleep", host.url("hostile")));
    let ask = |url: &str| client::<Empty<Bytes>>(Protocol::Http1).get(url.parse().unwrap());
    let first = tokio::spawn(ask(&sleep_url));
    let second = tokio::spawn(ask(&sleep_url));
    wait_for("both are there", SOON, async || {
        let metrics = get(&format!("{}metrics", host.admin())).await.body;
        metrics.lines().any(|line| line.starts_with("leasehold_requests_in_flight{") && line.ends_with(" 2.0"))
    })
    .await;
    let third = ask(&url).await.unwrap();
    assert_eq!((third.status().as_u16(), &third.headers()[header::RETRY_AFTER].to_str().unwrap()), (503, &"1"));
    // Either request came first. The other waited in the queue for the request timeout, and may have got the permit in the end.
    let mut both = [first.await, second.await].map(|answer| answer.unwrap().unwrap().status().as_u16());
    both.sort_unstable();
    assert!(both == [503, 504] || both == [504, 504], "{both:?}");
    assert_eq!(get(&url).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_an_instance_serves_concurrent_requests_up_to_its_limit() {
    let world = World::real().await;
    // The component responds after a while, so that requests overlap.
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = slow.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = slow.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                sleep(Duration::from_millis(300)).await;
                stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
            });
        }
    });
    let limits = json!({ "allow": { "outbound": [addr] }, "limits": { "instance_concurrency": 2 } });
    let host = Host::of(&world, [with(plain_p3(), limits)]).await;
    let url = format!("{}relay/{addr}/", host.url("plain-p3"));
    let requests: Vec<_> = (0..12)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { get(&url).await }
            })
        })
        .collect();
    let mut most = 0;
    for request in requests {
        let answer = request.await.unwrap();
        // The number of requests in the instance when this request arrived.
        let (status, inside) = answer.body.trim().split_once(' ').unwrap();
        assert_eq!(status, "204", "{answer:?}");
        most = most.max(inside.parse::<u32>().unwrap());
    }
    assert_eq!(most, 2);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_an_instance_serves_requests_up_to_its_limit() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({ "concurrency": 1, "instance_requests": 3 }))]).await;
    let url = format!("{}act/count", host.url("hostile"));
    let mut counts = Vec::new();
    // On a slow machine an instance may idle for a second, and is replaced for that.
    wait_for("an instance has answered three requests", SOON, async || {
        let count = get(&url).await.json()["text"].as_str().unwrap().to_owned();
        assert!(["0", "1", "2"].contains(&count.as_str()), "{count} after {counts:?}");
        counts.push(count);
        counts.ends_with(&["0", "1", "2", "0"].map(str::to_owned))
    })
    .await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_by_default_a_component_of_0_2_starts_afresh_for_each_request() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({}))]).await;
    for _ in 0..3 {
        assert_eq!(get(&format!("{}act/count", host.url("hostile"))).await.json()["text"], "0");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

fn messages(host: &Host, level: &str) -> Vec<Value> {
    host.log().into_iter().filter(|line| line["level"] == level).collect()
}

#[tokio::test]
async fn limits_a_trap_is_one_line_that_names_its_request() {
    let world = World::real().await;
    let host = Host::of(&world, [limited(&json!({})), plain_p3()]).await;
    for (service, path) in [("hostile", "act/trap?secret"), ("plain-p3", "fail")] {
        assert_eq!(get(&format!("{}{path}", host.url(service))).await.status, 500);
        assert_eq!(get(&host.url(service)).await.status, 200);
        let warnings =
            || messages(&host, "WARN").into_iter().filter(|line| line["service"] == service).collect::<Vec<_>>();
        wait_for("it is logged", SOON, async || !warnings().is_empty()).await;
        let [line] = &warnings()[..] else { panic!("{:?}", warnings()) };
        assert!(line["message"].as_str().unwrap().starts_with("an instance ended: wasm trap: "), "{line}");
        assert_eq!(line["request"], format!("GET /{}", path.trim_end_matches("?secret")), "{line}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_a_component_that_prints_without_end_is_cut_short() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let limits = limited(&json!({ "output_lines": 20 }));
    let mut host = Host::ready(&with(config(&world, [limits]), admin)).await;
    let printed: u64 =
        get(&format!("{}act/chatter", host.url("hostile"))).await.json()["text"].as_str().unwrap().parse().unwrap();
    host.says("output beyond 20 lines a second is dropped (limits.output_lines)").await;
    let logged = || host.log().iter().filter(|line| line["stream"] == "stdout").count() as u64;
    // What may be printed at once, and what a slow machine lets through meanwhile.
    assert!((200..1000).contains(&logged()), "{}", logged());
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    let left_out = printed - logged();
    assert!(metrics.contains(&format!("kind=\"output_limit\"}} {left_out}")), "{left_out}: {metrics}");
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains(&format!("{left_out} lines of output were dropped")), "{ended:?}");
}

#[tokio::test]
async fn limits_a_component_that_answers_once_an_instance_is_not_reused() {
    let world = World::real().await;
    let mut host = Host::of(&world, [limited(&json!({ "instance_requests": 1000 }))]).await;
    let url = format!("{}act/once", host.url("hostile"));
    let key = format!("/hostile/{}", host.addr("hostile"));
    let before = world.stands(&key).await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(get(&url).await.status == 500);
    }
    assert!((1..=3).contains(&failed), "{failed}");
    host.says("an instance of this component answers one request and fails at the next").await;
    for _ in 0..20 {
        assert_eq!(get(&url).await.status, 200);
    }
    let warnings = messages(&host, "WARN").into_iter();
    assert_eq!(
        warnings.filter(|line| line["message"].as_str().unwrap().contains("limits.instance_requests")).count(),
        1
    );
    assert_eq!(world.stands(&key).await, before);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_that_are_reached_are_named_by_their_key() {
    let world = World::real().await;
    let limits = json!({ "memory": "16MiB", "header_size": "8KiB", "body_size": "1KiB", "request_timeout": "1s" });
    let mut host = Host::of(&world, [limited(&limits)]).await;
    let url = host.url("hostile");
    assert_eq!(get(&format!("{url}act/grow")).await.status, 500);
    host.says("an instance was refused memory beyond limits.memory").await;
    assert_eq!(get(&format!("{url}act/hoard")).await.status, 500);
    host.says("an instance ended: it made headers larger than limits.header_size").await;
    assert_eq!(get(&format!("{url}act/hoard-handles")).await.status, 500);
    let kept = "an instance ended: it keeps more than 2048 requests, responses, headers and streams at a time";
    host.says(kept).await;
    assert_eq!(get(&format!("{url}act/sleep")).await.status, 504);
    host.says("a request took longer than 1s (limits.request_timeout)").await;
    let large = Request::post(&url).body(Full::new(Bytes::from(vec![b'x'; 2 << 10]))).unwrap();
    assert_eq!(client(Protocol::Http1).request(large).await.unwrap().status(), 413);
    host.says("requests are rejected: their bodies exceed limits.body_size").await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn limits_a_component_with_too_much_memory_is_refused_with_the_key_and_the_size() {
    let world = World::real().await;
    let small = limited(&json!({ "memory": "1MiB" }));
    // Another one has the size of the pool.
    let ended = Host::spawn(&config(&world, [small, plain_p3()]), &["--strict"]).ends().await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let said = ended.stderr.lines().last().unwrap();
    assert!(said.contains("MiB from the start, more than limits.memory of hostile lets it have, 1MiB"), "{said}");
}
