//! Responses as clients receive them, and their timing, over either protocol.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use leasehold_end_to_end::{
    Host,
    config::{config, hostile, plain, service, with},
    http::{BOTH, Protocol, get, get_over},
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tokio::time::sleep;

fn plain_p3() -> Value {
    with(service("plain-p3", "plain-p3"), json!({ "register": "host" }))
}

fn client(protocol: Protocol) -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(protocol == Protocol::Http2).build_http()
}

#[tokio::test]
async fn a_response_that_breaks_off_never_looks_complete() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3()]).await;
    for protocol in BOTH {
        let url = host.url("plain-p3");
        assert_eq!(get_over(protocol, &url).await.unwrap().body, "hello\n");
        let begun = client(protocol).get(format!("{url}break").parse().unwrap()).await.unwrap();
        assert_eq!(begun.status(), 200);
        assert!(begun.into_body().collect().await.is_err(), "{protocol:?}");
        // No part of this response was sent.
        let failed = get_over(protocol, &format!("{url}fail")).await.unwrap();
        assert_eq!((failed.status, failed.body.as_str()), (500, "the service failed\n"), "{protocol:?}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_small_response_has_its_length() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3(), plain("plain")]).await;
    for name in ["plain", "plain-p3"] {
        for protocol in BOTH {
            let (client, uri) = (client(protocol), host.url(name).parse::<Uri>().unwrap());
            let mut sized = 0;
            for _ in 0..100 {
                let answer = client.get(uri.clone()).await.unwrap();
                sized += usize::from(answer.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length == "6"));
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello\n");
            }
            // The host does not wait for an instance that waits for a processor.
            assert!(sized >= 50, "{name} {protocol:?}: {sized}");
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_response_with_its_own_length_is_unchanged() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3()]).await;
    for protocol in BOTH {
        // On one connection: surplus bytes of a response would become the beginning of the next.
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).http2_only(protocol == Protocol::Http2).build_http();
        for length in [0, 1, 6, 70_000, 300_000, 6] {
            let url = format!("{}length/{length}", host.url("plain-p3"));
            let answer = client.get(url.parse().unwrap()).await.unwrap();
            assert_eq!(answer.headers()[header::CONTENT_LENGTH], length.to_string(), "{protocol:?}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(
                body.len() == length && body.iter().all(|byte| *byte == b'x'),
                "{protocol:?} {length}: {}",
                body.len()
            );

            let sent: Bytes = (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
            let passed = Request::post(format!("{}pass", host.url("plain-p3"))).body(Full::new(sent.clone())).unwrap();
            let body = client.request(passed).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(body == sent, "{protocol:?} {length}: {} passed", body.len());
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn the_head_of_a_response_does_not_wait_for_a_computed_body() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3()]).await;
    for protocol in BOTH {
        for path in ["yield", "compute"] {
            let (client, begun) = (client(protocol), Instant::now());
            let answer = client.get(format!("{}{path}", host.url("plain-p3")).parse().unwrap()).await.unwrap();
            let head = begun.elapsed();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello\n");
            // The component computes for a second.
            assert!(head < begun.elapsed() - Duration::from_millis(500), "{path} {protocol:?}: {head:?}");
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
}

/// Error codes, each with its status in HTTP and in gRPC.
const CODES: [(&str, u16, &str); 5] = [
    ("connection-refused", 502, "14"),
    ("dns-timeout", 504, "4"),
    ("http-request-denied", 403, "7"),
    ("http-request-body-size", 413, "8"),
    ("internal-error", 500, "13"),
];

/// Of neither a component's failures nor a reason to withdraw it: an outage of what it calls would spread to its callers.
#[tokio::test]
async fn an_error_code_of_a_component_is_an_answer_with_the_status_of_its_case() {
    let world = World::real().await;
    let services = [with(hostile("hostile"), json!({ "register": "host" })), plain_p3()];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    let keys = ["hostile", "plain-p3"].map(|name| format!("/{name}/{}", host.addr(name)));
    let before = [world.stands(&keys[0]).await, world.stands(&keys[1]).await];
    for name in ["hostile", "plain-p3"] {
        for (code, http, grpc) in CODES {
            let url = format!("{}code/{code}", host.url(name));
            for protocol in BOTH {
                assert_eq!(get_over(protocol, &url).await.unwrap().status, http, "{name} {code} {protocol:?}");
            }
            let call = Request::post(&url).header(header::CONTENT_TYPE, "application/grpc").body(Empty::new()).unwrap();
            let answer = client(Protocol::Http2).request(call).await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &grpc.parse().unwrap()));
            // The component has seen the request and may have acted on it, so the response does not suggest a retry.
            assert!(!answer.headers().contains_key("grpc-retry-pushback-ms"), "{answer:?}");
        }
    }
    // Twice as long as failures take to be seen.
    sleep(Duration::from_secs(1)).await;
    assert_eq!([world.stands(&keys[0]).await, world.stands(&keys[1]).await], before);
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    let counted = |what: &str| metrics.lines().filter(|line| line.contains(what)).count();
    assert_eq!((counted("reason=\"error_code\"} 15"), counted("reason=\"component_failed\"} 0")), (2, 2), "{metrics}");
    let log = host.log();
    let is_error_code =
        |line: &&Value| line["message"].as_str().is_some_and(|said| said.contains("returned an error code"));
    let logged: Vec<_> = log.iter().filter(is_error_code).collect();
    assert_eq!(logged.len(), 2, "{logged:?}");
    assert!(logged.iter().all(|line| line["request"] == "GET /code/connection-refused"), "{logged:?}");
    assert_eq!(host.stop().await.code, Some(0));
}
