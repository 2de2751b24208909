//! gRPC: its own clients call components, and the host's errors reach them as gRPC statuses.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use http_body_util::{BodyExt, Channel, Full, channel::Sender};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use leasehold_end_to_end::{
    Host, Program,
    config::{config, hostile, service, with},
    http::get,
    paths,
    raw::{Connection, field},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};

/// Longer than any deadline of a caller in these tests.
const LONG: Duration = Duration::from_secs(20);

/// `Repeat` for Ada, a hundred times, a second apart, as a message on the wire.
const REPEAT: &[u8] = b"\0\0\0\0\x0a\x0a\x03Ada\x10\x64\x18\xe8\x07";

fn greeter() -> Value {
    with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }))
}

/// A service with one permit, a queue of one request, and a timeout of one second.
fn failing() -> Value {
    let limits = json!({ "concurrency": 1, "request_timeout": "1s" });
    with(hostile("hostile"), json!({ "register": "host", "limits": limits }))
}

fn plain_p3() -> Value {
    with(service("plain-p3", "plain-p3"), json!({ "register": "host" }))
}

/// Runs a client in another language, which prints its checks.
async fn client(program: &str, arguments: &[&str], host: &Host) {
    let descriptors = paths::client("greeter.binpb");
    let (greeter, failing) = (host.addr("grpc-greeter"), host.addr("hostile"));
    let arguments = arguments.iter().copied().chain([descriptors.to_str().unwrap(), &greeter, &failing]);
    let ended = Program::spawn(&paths::client(program), arguments, &host.temporary()).ends().await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 13, "{}", ended.stdout);
}

#[tokio::test]
async fn grpc_go_makes_every_kind_of_call() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter(), failing()]).await;
    client("grpc-go", &[], &host).await;
    // One of the calls was cancelled halfway.
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.wrote("hyper"), "{ended:?}");
}

#[tokio::test]
async fn grpc_python_makes_every_kind_of_call() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter(), failing()]).await;
    let script = paths::workspace().join("tests/clients/grpc-python/client.py");
    client("python/bin/python", &[script.to_str().unwrap()], &host).await;
    assert_eq!(host.stop().await.code, Some(0));
}

/// A request whose body is still to be sent.
async fn open(url: &str) -> (Sender<Bytes>, Response<Incoming>) {
    let client: Client<HttpConnector, Channel<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let (body, channel) = Channel::new(1);
    let request = Request::post(url).version(Version::HTTP_2).body(channel).unwrap();
    (body, client.request(request).await.unwrap())
}

/// A gRPC call with one message, whose caller sends a timeout but does not enforce it.
async fn patient(url: &str, message: &'static [u8], timeout: &str) -> (HeaderMap, HeaderMap) {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::post(url).version(Version::HTTP_2).header(header::CONTENT_TYPE, "application/grpc+proto");
    let request = request.header(header::TE, "trailers").header("grpc-timeout", timeout);
    let response = client.request(request.body(Bytes::from_static(message).into()).unwrap()).await.unwrap();
    let headers = response.headers().clone();
    let collected = response.into_body().collect().await.unwrap();
    (headers, collected.trailers().cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_callers_deadline_holds_even_if_the_caller_does_not_enforce_it() {
    let world = World::real().await;
    let host = Host::of(&world, [greeter(), with(hostile("hostile"), json!({ "register": "host" }))]).await;
    let begun = Instant::now();
    let (headers, _) = patient(&format!("{}act/sleep", host.url("hostile")), b"", "300m").await;
    assert_eq!(headers["grpc-status"], "4", "{headers:?}");
    // The response has begun when the timeout expires.
    let (headers, trailers) =
        patient(&format!("{}greeter.v1.Greeter/Repeat", host.url("grpc-greeter")), REPEAT, "1500m").await;
    assert!(!headers.contains_key("grpc-status"), "{headers:?}");
    assert_eq!(trailers["grpc-status"], "4", "{trailers:?}");
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_stream_that_goes_on_for_too_long_ends_with_its_status() {
    let world = World::real().await;
    let host = Host::of(&world, [with(greeter(), json!({ "limits": { "request_timeout": "2s" } }))]).await;
    let begun = Instant::now();
    let url = format!("{}greeter.v1.Greeter/Repeat", host.url("grpc-greeter"));
    let (_, trailers) = patient(&url, REPEAT, "1H").await;
    assert_eq!(trailers["grpc-status"], "4", "{trailers:?}");
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());
    assert_eq!(host.stop().await.code, Some(0));
}

/// `Repeat` for Ada, four times, 500 ms apart.
const SHORT_REPEAT: &[u8] = b"\0\0\0\0\x0a\x0a\x03Ada\x10\x04\x18\xf4\x03";

#[tokio::test]
async fn a_stream_may_last_longer_than_a_request_if_the_limits_allow_it() {
    let world = World::real().await;
    let limits = json!({ "limits": { "request_timeout": "1s", "stream_timeout": "5s" } });
    let host = Host::of(&world, [with(greeter(), limits)]).await;
    let url = format!("{}greeter.v1.Greeter/Repeat", host.url("grpc-greeter"));
    let begun = Instant::now();
    let (short, (_, long)) = tokio::join!(patient(&url, SHORT_REPEAT, "1H"), patient(&url, REPEAT, "1H"));
    assert_eq!(short.1["grpc-status"], "0", "{short:?}");
    assert_eq!(long["grpc-status"], "4", "{long:?}");
    assert!((Duration::from_secs(5)..LONG).contains(&begun.elapsed()), "it took {:?}", begun.elapsed());
    // Requests to the same instance meanwhile change nothing.
    let begun = Instant::now();
    let others = async {
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(patient(&url, SHORT_REPEAT, "600m").await.1["grpc-status"], "4");
        }
    };
    let ((_, long), ()) = tokio::join!(patient(&url, REPEAT, "4S"), others);
    assert_eq!(long["grpc-status"], "4", "{long:?}");
    assert!(begun.elapsed() >= Duration::from_millis(3900), "it took {:?}", begun.elapsed());
    assert_eq!(host.stop().await.code, Some(0));
}

/// A caller's timeout extends the time until the response begins.
#[tokio::test]
async fn a_callers_timeout_may_be_as_long_as_the_stream_timeout() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "request_timeout": "1s", "stream_timeout": "20s" } });
    let host = Host::of(&world, [with(hostile("hostile"), limits)]).await;
    let url = format!("{}act/slow", host.url("hostile"));
    assert_eq!(get(&url).await.status, 504);
    let (headers, _) = patient(&url, b"", "1500m").await;
    assert_eq!(headers["grpc-status"], "4", "{headers:?}");
    let (headers, _) = patient(&url, b"", "15S").await;
    assert!(!headers.contains_key("grpc-status"), "{headers:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_body_and_its_trailers_pass_in_both_directions_while_both_are_open() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3()]).await;
    let (mut body, response) = open(&format!("{}echo", host.url("plain-p3"))).await;
    assert_eq!(response.status(), 200);
    let mut answer = response.into_body();
    for word in ["one", "two", "three"] {
        body.send_data(word.into()).await.unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    let trailers: HeaderMap = [("checksum".parse().unwrap(), "abc".parse().unwrap())].into_iter().collect();
    body.send_trailers(trailers.clone()).await.unwrap();
    drop(body);
    let last = answer.frame().await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(answer.frame().await.is_none());
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn an_abandoned_instance_ends() {
    let world = World::real().await;
    let patient = with(hostile("hostile"), json!({ "register": "host" }));
    let mut host = Host::spawn(&config(&world, [patient]), &["-v"]);
    host.event("ready").await;
    for (act, said) in [("spin", "spinning"), ("sleep", "sleeping")] {
        let mut client = Connection::open(&host.addr("hostile")).await;
        let get = [&[0x82, 0x86][..], &field(":path", &format!("/act/{act}")), &field(":authority", "here")].concat();
        let stream = client.send(&get, None).await;
        host.says(said).await;
        client.cancel(stream).await;
    }
    let ended = |line: &&Value| line["message"] == "an instance ended: its client has left";
    wait_for("the instances end", SOON, async || host.log().iter().filter(ended).count() == 2).await;
    assert_eq!(get(&host.url("hostile")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}
