//! The access log, and identifiers of requests: in the log, at the component, and on its own requests.

use std::time::Duration;

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, hostile, plain, service, with},
    http::{ask, get},
    paths,
    raw::{Connection, exchange, field},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const ID: &str = "7b5c1f0e-3a51-4f0e-9d0c-2f8f6a3b1c55";

/// A service with this access log.
fn logged(service: Value, access_log: impl Into<Value>) -> Value {
    with(service, json!({ "access_log": access_log.into() }))
}

fn raw() -> Value {
    with(service("raw", "raw"), json!({ "register": "host" }))
}

/// The lines of the access log of a service so far.
fn lines(host: &Host, service: &str) -> Vec<Value> {
    let is_line = |line: &Value| line["event"] == "request" && line["service"] == service;
    host.log().into_iter().filter(is_line).collect()
}

/// The access log of a service once it has so many lines.
async fn has(host: &Host, service: &str, number: usize) -> Vec<Value> {
    wait_for("the requests are logged", SOON, async || lines(host, service).len() >= number).await;
    let lines = lines(host, service);
    assert_eq!(lines.len(), number, "{lines:?}");
    lines
}

#[tokio::test]
async fn by_default_errors_are_logged_alone_each_with_what_its_warning_has() {
    let world = World::real().await;
    let limits = json!({ "limits": { "request_timeout": "1s" } });
    let mut host = Host::of(&world, [with(hostile("hostile"), limits)]).await;
    let url = host.url("hostile");
    for path in ["", "act/idle", "nowhere"] {
        assert_eq!(get(&format!("{url}{path}")).await.status, 200);
    }
    assert_eq!(ask("GET", &format!("{url}act/trap?token=s3cret"), &[("x-request-id", ID)]).await.status, 500);
    let line = &has(&host, "hostile", 1).await[0];
    for (field, expected) in [
        ("level", json!("INFO")),
        ("message", json!("a request has ended")),
        ("method", json!("GET")),
        ("path", json!("/act/trap")),
        ("status", json!(500)),
        ("reason", json!("component_failed")),
        ("outcome", json!("complete")),
        ("request_id", json!(ID)),
        ("reused", json!(false)),
        ("bytes", json!("the service failed\n".len())),
    ] {
        assert_eq!(line[field], expected, "{field}: {line}");
    }
    assert!(line["duration"].as_f64().unwrap() > 0.0 && line["queued"].as_f64() == Some(0.0), "{line}");
    let warning = host.says("an instance ended: wasm trap: ").await;
    for field in ["peer", "request_id"] {
        assert_eq!(warning[field], line[field], "{field}: {warning}");
    }
    assert_eq!(warning["request"], "GET /act/trap");
    assert!(warning["message"].as_str().unwrap().ends_with("told to trap"), "{warning}");

    assert_eq!(get(&format!("{url}act/sleep")).await.status, 504);
    let late = has(&host, "hostile", 2).await.pop().unwrap();
    assert_eq!((&late["status"], &late["reason"]), (&json!(504), &json!("timeout")));
    assert!((1.0..10.0).contains(&late["duration"].as_f64().unwrap()), "{late}");
    let warning = host.says("a request took longer than 1s").await;
    assert_eq!(warning["request_id"], late["request_id"], "the host has made one");
    assert_eq!(late["request_id"].as_str().map(str::len), Some(32));
    let said = host.says("sleeping").await;
    assert_eq!(said["request_id"], late["request_id"], "output of a component has the request: {said}");

    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.stderr.matches("panicked").count(), 1, "a panic is one line: {ended:?}");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
}

#[tokio::test]
async fn every_request_is_logged_if_that_is_configured_and_its_identifier_is_passed_on() {
    let world = World::real().await;
    let relay = with(service("plain-p3", "plain-p3"), json!({ "register": "host", "allow": { "discover": ["raw"] } }));
    let host = Host::of(&world, [logged(raw(), "all"), logged(relay, json!({ "log": "all", "query": true }))]).await;
    let (raw, relay) = (host.url("raw"), host.url("plain-p3"));

    // Kept, whatever its form; replaced where it is none.
    for kept in [ID, "a", "Root=1-67891233-abcdef012345678912345678"] {
        assert_eq!(ask("GET", &format!("{raw}id"), &[("x-request-id", kept)]).await.body, kept);
    }
    let long = "x".repeat(129);
    for replaced in ["", "a b", "a\"b", "<b>", &long] {
        let answer = ask("GET", &format!("{raw}id"), &[("x-request-id", replaced)]).await;
        assert!(answer.body.len() == 32 && answer.body != replaced, "{replaced:?}: {answer:?}");
    }
    let two = ask("GET", &format!("{raw}id"), &[("x-request-id", "one"), ("x-request-id", "two")]).await;
    assert_eq!(two.body.len(), 32, "{two:?}");
    assert_eq!(has(&host, "raw", 9).await[8]["request_id"], two.body);

    // From one component to the next.
    for (number, sent) in [(1, &[("x-request-id", "passed-on")][..]), (2, &[])] {
        let answer = ask("GET", &format!("{relay}relay/raw.leasehold/id?a=b"), sent).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let line = has(&host, "plain-p3", number).await.pop().unwrap();
        assert!(sent.is_empty() || line["request_id"] == "passed-on", "{line}");
        let passed = lines(&host, "raw").iter().filter(|other| other["request_id"] == line["request_id"]).count();
        assert_eq!(passed, 1, "{line}");
    }
    let line = lines(&host, "plain-p3").pop().unwrap();
    assert_eq!((&line["path"], &line["query"]), (&json!("/relay/raw.leasehold/id"), &json!("a=b")));
    assert_eq!((&line["status"], &line["outcome"]), (&json!(200), &json!("complete")));
    assert!(lines(&host, "raw").iter().all(|line| line.get("query").is_none()));
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_sample_is_logged_and_every_error() {
    let world = World::real().await;
    let host = Host::of(&world, [logged(hostile("hostile"), json!({ "log": "all", "sample": 0 }))]).await;
    for path in ["", "act/idle", "act/trap", ""] {
        get(&format!("{}{path}", host.url("hostile"))).await;
    }
    assert_eq!(has(&host, "hostile", 1).await[0]["path"], "/act/trap");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_client_that_does_not_wait_is_logged() {
    let world = World::real().await;
    let host = Host::of(&world, [hostile("hostile")]).await;
    let mut connection = Connection::open(&host.addr("hostile")).await;
    let request = [&[0x82, 0x86][..], &field(":path", "/act/slow"), &field(":authority", "here")].concat();
    wait_for("it is logged", SOON, async || {
        let stream = connection.send(&request, None).await;
        sleep(Duration::from_millis(100)).await;
        connection.cancel(stream).await;
        !lines(&host, "hostile").is_empty()
    })
    .await;
    let line = &lines(&host, "hostile")[0];
    assert_eq!((&line["outcome"], line.get("status")), (&json!("no_response"), None), "{line}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn without_an_access_log_nothing_is_logged_and_no_identifier_is_made() {
    let world = World::real().await;
    let defaults = json!({ "defaults": { "access_log": "off" } });
    let mut host = Host::ready(&with(config(&world, [hostile("hostile"), raw()]), defaults)).await;
    assert_eq!(get(&format!("{}id", host.url("raw"))).await.body, "");
    assert_eq!(ask("GET", &format!("{}id", host.url("raw")), &[("x-request-id", ID)]).await.body, ID);
    let trap = format!("{}act/trap", host.url("hostile"));
    assert_eq!(ask("GET", &trap, &[("x-request-id", ID)]).await.status, 500);
    assert_eq!(host.says("an instance ended: wasm trap: ").await["request_id"], ID);
    assert!(lines(&host, "hostile").is_empty() && lines(&host, "raw").is_empty());
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn bytes_that_are_no_request_have_a_line() {
    let world = World::real().await;
    let small = with(plain("plain"), json!({ "limits": { "header_size": "8KiB" } }));
    let host = Host::of(&world, [logged(small, "all")]).await;
    let addr = host.addr("plain");
    let large = format!("GET / HTTP/1.1\r\nhost: here\r\nx-large: {}\r\n\r\n", "x".repeat(9 << 10));
    let no_request = "220 mail.example ready\r\n\r\n";
    let second = format!("GET / HTTP/1.1\r\nhost: here\r\n\r\n{no_request}");
    for (sent, lines, status, reason) in [
        (no_request, 1, 400, "malformed"),
        (second.as_str(), 3, 400, "malformed"),
        (large.as_str(), 4, 431, "headers_too_large"),
    ] {
        let received = exchange(&addr, sent.as_bytes(), false).await;
        assert!(received.contains(&format!("HTTP/1.1 {status}")), "{received}");
        let logged = has(&host, "plain", lines).await;
        let line = &logged[lines - 1];
        assert_eq!((&line["status"], &line["reason"]), (&json!(status), &json!(reason)), "{line}");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        for absent in ["method", "path", "request_id", "duration"] {
            assert!(line.get(absent).is_none(), "{absent}: {line}");
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
}

/// Standard output of a host with this format of its access log, after a request.
async fn printed(format: &str) -> Ended {
    let world = World::real().await;
    let access_log = json!({ "log": "all", "format": format });
    let host = Host::of(&world, [logged(plain("plain"), access_log)]).await;
    let headers = [("user-agent", "tester \"1\""), ("referer", "http://here/?token=s3cret")];
    assert_eq!(ask("GET", &format!("{}a/b?token=s3cret", host.url("plain")), &headers).await.status, 200);
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.stderr.contains("\"request\"") && !ended.wrote("s3cret"), "{ended:?}");
    ended
}

#[tokio::test]
async fn web_servers_and_machines_have_formats_of_their_own() {
    let combined = printed("combined").await.stdout;
    let parts: Vec<_> = combined.trim_end().split(['[', ']']).collect();
    assert_eq!(parts[0], "127.0.0.1 - - ", "{combined}");
    assert!(parts[1].len() == "10/Oct/2000:13:55:36 +0000".len() && parts[1].ends_with(" +0000"), "{combined}");
    assert_eq!(parts[2], r#" "GET /a/b HTTP/1.1" 200 6 "http://here/" "tester \"1\"""#, "{combined}");

    let lines = printed("json").await.stdout;
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&line["path"], &line["status"], &line["bytes"]), (&json!("/a/b"), &json!(200), &json!(6)));
    assert_eq!((&line["user_agent"], &line["protocol"]), (&json!("tester \"1\""), &json!("HTTP/1.1")));
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
}

#[tokio::test]
async fn lines_beyond_the_rate_are_left_out_and_counted() {
    let world = World::real().await;
    let access_log = json!({ "log": "all", "lines": 1 });
    let mut host = Host::of(&world, [logged(plain("plain"), access_log)]).await;
    for _ in 0..30 {
        assert_eq!(get(&host.url("plain")).await.status, 200);
    }
    host.says("the access log has no more than 1 lines a second (access_log.lines)").await;
    let number = lines(&host, "plain").len();
    assert!((10..30).contains(&number), "{number}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_wrong_access_log_is_one_sentence() {
    let folder = TempDir::with_prefix("leasehold-access-").unwrap();
    let file = folder.path().join("c.yaml");
    let component = paths::component("plain");
    for (wrong, sentence) in [
        ("access_log: full", "access_log: must be one of: off, errors, all; not \"full\""),
        ("access_log: { log: all, format: clf }", "format: must be one of: log, json, combined; not \"clf\""),
        ("access_log: { level: all }", "unknown key \"level\"; known here: log, format, sample, query, lines"),
        ("access_log: { sample: 2 }", "sample: must be from 0 to 1 such as 0.1, not \"2\""),
        ("access_log: { lines: 0 }", "lines: must be 1 to 100000, not 0"),
    ] {
        let service =
            format!("name: plain, component: {}, listen: \"127.0.0.1:0\", register: host", component.display());
        std::fs::write(&file, format!("services:\n  - {{ {service}, {wrong} }}\n")).unwrap();
        let check = Program::spawn(&paths::leasehold(), ["check", "--offline", file.to_str().unwrap()], folder.path());
        let ended = timeout(Duration::from_secs(60), check.ends()).await.unwrap();
        assert!(ended.code == Some(64) && ended.stderr.contains(sentence), "{wrong}: {ended:?}");
    }
}
