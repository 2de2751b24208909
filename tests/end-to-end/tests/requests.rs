//! Requests as no library writes them: authorities, targets and codings, half-closed clients, and clients that disconnect.

use std::time::{Duration, Instant};

use leasehold_end_to_end::{
    Host,
    config::{config, greeter, plain, service, with},
    http::get,
    raw::{Connection, Outcome, authority, exchange, field},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ENCODED: &str = "user%2Fv1";
/// More streams than the server's library resets before it ends their connection.
const MANY: usize = 1100;

fn raw() -> Value {
    with(service("raw", "raw"), json!({ "register": "host" }))
}

fn plain_p3() -> Value {
    with(service("plain-p3", "plain-p3"), json!({ "register": "host" }))
}

fn grpc_greeter() -> Value {
    with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }))
}

/// `GET` for a path, with its authority last of what comes first.
fn request(path: &str, authority: &[u8]) -> Vec<u8> {
    [&[0x82, 0x86][..], &field(":path", path), authority].concat()
}

fn is_answered(outcome: &Outcome, text: &str) {
    let Outcome::Answered(fields, body) = outcome else { panic!("{outcome:?}") };
    assert_eq!((fields[":status"].as_str(), body.as_str()), ("200", text));
}

/// The messages that warn, and what the component says of its own.
fn warnings(host: &Host) -> Vec<String> {
    let log = host.log();
    let warnings = log.iter().filter(|line| line["level"] == "WARN" || line.to_string().contains("panicked"));
    warnings.map(Value::to_string).collect()
}

#[tokio::test]
async fn an_authority_may_be_percent_encoded() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain"), raw(), plain_p3()]).await;
    let encoded = "user-2Fv1 user%2Fv1";
    for (name, path, text) in
        [("plain", "/", "hello\n"), ("raw", "/authority", encoded), ("plain-p3", "/authority", encoded)]
    {
        let addr = host.addr(name);
        let get = format!("GET {path} HTTP/1.1\r\nhost: {ENCODED}\r\nconnection: close\r\n\r\n");
        let response = exchange(&addr, get.as_bytes(), false).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.contains(text.trim()), "{name}: {response}");
        let mut connection = Connection::open(&addr).await;
        // Not inserted, inserted, and by its index.
        let forms = [field(":authority", ENCODED), authority(ENCODED), vec![0xbe], field("host", ENCODED)];
        for form in forms {
            is_answered(&connection.ask(&request(path, &form)).await, text);
        }
        is_answered(
            &connection.ask(&request(path, &authority("here:80"))).await,
            text.replace(encoded, "here:80 ").as_str(),
        );
        is_answered(&connection.ask(&request(path, &[0xbf])).await, text);
    }
    assert_eq!(warnings(&host), [""; 0]);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn clients_of_grpc_with_a_target_that_has_a_slash_are_answered() {
    let world = World::real().await;
    let host = Host::of(&world, [grpc_greeter()]).await;
    let mut connection = Connection::open(&host.addr("grpc-greeter")).await;
    // As gRPC encodes it, and as grpc-go sends the `ServerName` of an address.
    for sent in [ENCODED, "foo/user", "/user/v1:80"] {
        let mut call = [0x83, 0x86].to_vec();
        call.extend(field(":path", "/grpc.health.v1.Health/Check"));
        call.extend(authority(sent));
        call.extend(field("content-type", "application/grpc"));
        call.extend(field("te", "trailers"));
        connection.send(&call, Some(&[0; 5])).await;
        let (_, Outcome::Answered(fields, body)) = connection.next().await else { panic!("it is answered") };
        assert_eq!((fields["grpc-status"].as_str(), body.as_bytes()), ("0", &b"\0\0\0\0\x02\x08\x01"[..]), "{sent}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_malformed_authority_costs_its_own_request_alone() {
    let world = World::real().await;
    let host =
        Host::ready(&with(config(&world, [plain("plain")]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    let mut connection = Connection::open(&host.addr("plain")).await;
    let here = request("/", &field(":authority", "here"));
    let malformed = [
        field(":authority", "100%"),
        field(":authority", "a b"),
        field(":authority", "a@b"),
        field(":authority", "here:http"),
        field(":authority", "\u{1}"),
        field(":authority", ""),
        authority("user%2"),
        vec![0x81],
    ];
    for round in 0..MANY / malformed.len() + 1 {
        for authority in &malformed {
            let outcome = connection.ask(&request("/", authority)).await;
            assert_eq!(outcome.status(), "400", "{round} {}: {outcome:?}", authority.escape_ascii());
        }
        is_answered(&connection.ask(&here).await, "hello\n");
    }
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    assert!(metrics.contains("reason=\"component_failed\"} 0"), "{metrics}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_thousand_encoded_authorities_cost_no_connection() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain")]).await;
    let mut connection = Connection::open(&host.addr("plain")).await;
    for number in 0..MANY {
        let encoded = request("/", &authority(&format!("user%2Fv{number}")));
        is_answered(&connection.ask(&encoded).await, "hello\n");
        is_answered(&connection.ask(&request("/", &field(":authority", "here"))).await, "hello\n");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_malformed_target_is_refused_before_the_component() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(&world, [plain("plain"), plain_p3()]), admin)).await;
    for name in ["plain", "plain-p3"] {
        for target in ["GET foo", "GET foo:80", "GET x:", "POST foo", "GET *", "GET ?", "GET ?a=b", "GET /a b"] {
            let request = format!("{target} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
            let response = exchange(&host.addr(name), request.as_bytes(), false).await;
            assert!(response.starts_with("HTTP/1.1 400"), "{name} {target}: {response}");
        }
        let response =
            exchange(&host.addr(name), b"OPTIONS * HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n", false).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{name}: {response}");
        let mut connection = Connection::open(&host.addr(name)).await;
        for path in ["*", "?a=b"] {
            let outcome = connection.ask(&request(path, &field(":authority", "here"))).await;
            assert_eq!(outcome.status(), "400", "{name} {path}");
        }
        is_answered(&connection.ask(&request("/", &field(":authority", "here"))).await, "hello\n");
    }
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    assert!(
        metrics.contains("reason=\"component_failed\"} 0") && !metrics.contains("reason=\"component_failed\"} 1"),
        "{metrics}"
    );
    assert_eq!(warnings(&host), [""; 0]);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn what_old_clients_leave_out_is_made_up_for() {
    let world = World::real().await;
    let host = Host::of(&world, [raw(), plain_p3()]).await;
    for name in ["raw", "plain-p3"] {
        let addr = host.addr(name);
        let response = exchange(&addr, b"GET /authority HTTP/1.0\r\n\r\n", false).await;
        assert!(response.starts_with("HTTP/1.0 200") && response.contains(&addr), "{response}");
        let response = exchange(&addr, b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", false).await;
        assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_body_whose_coding_is_unknown_is_not_implemented() {
    let world = World::real().await;
    let host = Host::of(&world, [plain_p3()]).await;
    for codings in ["transfer-encoding: gzip, chunked", "transfer-encoding: gzip\r\ntransfer-encoding: chunked"] {
        let request = format!("POST /echo HTTP/1.1\r\nhost: here\r\n{codings}\r\n\r\n5\r\nwhole\r\n0\r\n\r\n");
        let response = exchange(&host.addr("plain-p3"), request.as_bytes(), false).await;
        assert!(response.starts_with("HTTP/1.1 501") && response.contains("connection: close"), "{response}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_body_that_breaks_off_closes_its_connection_and_says_so() {
    let world = World::real().await;
    let host = Host::of(&world, [with(service("hostile", "hostile"), json!({ "register": "host" }))]).await;
    let request = b"POST /read HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n";
    let response = exchange(&host.addr("hostile"), request, false).await;
    assert!(response.starts_with("HTTP/1.1 400") && response.contains("connection: close"), "{response}");
    assert_eq!(warnings(&host), [""; 0]);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_client_that_says_no_more_is_answered() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(&world, [greeter(), raw(), plain_p3()]), admin)).await;
    let admin = host.admin();
    let admin = admin.trim_start_matches("http://").trim_end_matches('/');
    let (greeter, raw, plain_p3) = (host.addr("greeter"), host.addr("raw"), host.addr("plain-p3"));
    let cases = [
        (greeter.as_str(), "GET /", "hello"),
        (&raw, "GET /slow", "slow"),
        (&plain_p3, "GET /yield", "hello"),
        (admin, "GET /healthz", ""),
    ];
    for (addr, line, text) in cases {
        for _ in 0..if text == "hello" { 5 } else { 20 } {
            let response = exchange(addr, format!("{line} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes(), true).await;
            assert!(response.starts_with("HTTP/1.1 200") && response.contains(text), "{line}: {response}");
        }
    }
    // A client that sends two requests before it closes its side.
    let twice = "GET /slow HTTP/1.1\r\nhost: here\r\n\r\n".repeat(2);
    assert_eq!(exchange(&raw, twice.as_bytes(), true).await.matches("HTTP/1.1 200").count(), 2);
    let whole = b"POST /pass HTTP/1.1\r\nhost: here\r\ncontent-length: 5\r\n\r\nwhole";
    let response = exchange(&plain_p3, whole, true).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("whole"), "{response}");
    assert_eq!(warnings(&host), [""; 0]);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn clients_that_leave_are_no_failure_and_no_panic() {
    let world = World::real().await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(&world, [greeter(), raw(), plain_p3()]), admin)).await;
    for name in ["greeter", "raw", "plain-p3"] {
        let path = if name == "raw" { "/slow" } else { "/" };
        for _ in 0..50 {
            let mut stream = TcpStream::connect(host.addr(name)).await.unwrap();
            let get = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
            stream.write_all(get.as_bytes()).await.unwrap();
            // With a reset behind it, which is heard at once.
            stream.set_zero_linger().unwrap();
        }
        // The h2 crate ends a connection that resets more than 20 streams before they are accepted.
        for _ in 0..10 {
            let mut connection = Connection::open(&host.addr(name)).await;
            for _ in 0..15 {
                let stream = connection.send(&request(path, &field(":authority", "here")), None).await;
                connection.cancel(stream).await;
            }
            let last = connection.send(&request("/", &field(":authority", "here")), None).await;
            while connection.next().await.0 != last {}
        }
    }
    wait_for("all have ended", SOON, async || {
        let metrics = get(&format!("{}metrics", host.admin())).await.body;
        let inside = metrics.lines().filter(|line| line.starts_with("leasehold_requests_in_flight{"));
        inside.filter(|line| line.ends_with(" 0.0")).count() == 3
    })
    .await;
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    for label in ["kind=\"trap\"}", "reason=\"component_failed\"}"] {
        assert!(!metrics.lines().any(|line| line.contains(label) && !line.ends_with(" 0")), "{metrics}");
    }
    assert_eq!(warnings(&host), [""; 0]);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_missing_response_has_its_reason() {
    let world = World::real().await;
    let host = Host::of(&world, [raw()]).await;
    let cases = [
        ("/unfinished", "the component dropped its outgoing-body without outgoing-body.finish"),
        ("/length/10/5", "the component wrote 5 bytes, and its content-length is 10"),
        ("/status/101", "the component answered 101, which is no final response"),
        ("/status/103", "the component answered 103, which is no final response"),
    ];
    for (path, _) in cases {
        let response = get(&format!("{}{}", host.url("raw"), &path[1..])).await;
        assert_eq!((response.status, response.body.as_str()), (500, "the service failed\n"), "{path}");
        let mut connection = Connection::open(&host.addr("raw")).await;
        let outcome = connection.ask(&request(path, &field(":authority", "here"))).await;
        assert_eq!(outcome.status(), "500", "{path}");
    }
    for (path, why) in cases {
        wait_for(&format!("{path} is logged twice"), SOON, async || {
            warnings(&host).iter().filter(|line| line.contains(why)).count() == 2
        })
        .await;
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_peer_of_http_2_that_never_reads_is_cut_in_time() {
    let world = World::real().await;
    let slow = with(plain_p3(), json!({ "limits": { "client_timeout": "2s" } }));
    let host = Host::of(&world, [slow]).await;
    let begun = Instant::now();
    let mut connection = Connection::open(&host.addr("plain-p3")).await;
    // A request is open, so that the connection does not count as idle.
    let echo = [&[0x83, 0x86][..], &field(":path", "/echo"), &field(":authority", "here")].concat();
    connection.send_half(&echo).await;
    connection.is_closed().await;
    let after = begun.elapsed();
    assert!(after < Duration::from_secs(8), "{after:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

/// As `nc` has it, and HAProxy's check.
#[tokio::test]
async fn half_a_request_with_an_end_behind_it_is_no_request() {
    let world = World::real().await;
    let host = Host::of(&world, [raw()]).await;
    let mut stream = TcpStream::connect(host.addr("raw")).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: he").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response).await;
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 400"), "{response}");
    assert_eq!(host.stop().await.code, Some(0));
}
