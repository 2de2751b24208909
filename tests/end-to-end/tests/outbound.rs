//! Requests of a component to external hosts: only as its policy allows.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use leasehold_end_to_end::{
    Host,
    config::{config, hostile, with},
    http::get,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// An HTTP/1.1 server that responds with `it is me`, and closes each connection without notice after that many responses. Returns
/// its address, and the number of connections.
async fn server(answers: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (addr, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                for _ in 0..answers {
                    if stream.read(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nit is me").await.unwrap();
                }
            });
        }
    });
    (addr, taken)
}

#[tokio::test]
async fn a_component_has_a_bounded_number_of_outgoing_requests() {
    let world = World::real().await;
    let ((greets, _), mute) = (server(4).await, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    let (greets, mute) = (greets.to_string(), mute.local_addr().unwrap().to_string());
    let limits = json!({ "limits": { "outgoing": 2 } });
    let host = limited_host(&world, &json!({ "outbound": [greets, mute] }), limits).await;
    let fan = async |authority: &str| {
        let outcomes = get(&format!("{}fan/4/{authority}", host.url("caller"))).await.json();
        outcomes.as_array().unwrap().iter().map(|outcomes| outcomes.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let outcomes = fan(&mute).await;
    let limited = outcomes.iter().filter(|outcomes| outcomes.contains("ConnectionLimitReached")).count();
    assert_eq!(limited, 2, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcomes| outcomes.contains("Timeout")).count(), 2, "{outcomes:?}");
    assert_eq!(fan(&greets).await, ["it is me"; 4], "places become free");
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    assert!(metrics.contains("kind=\"outgoing_limit\"} 2"), "{metrics}");
}

async fn host(world: &World, allow: &Value) -> Host {
    limited_host(world, allow, json!({})).await
}

async fn limited_host(world: &World, allow: &Value, limits: Value) -> Host {
    let caller = with(with(hostile("caller"), json!({ "register": "host", "allow": allow })), limits);
    Host::ready(&with(config(world, [caller]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

/// Result of a `call` or `secure` request to a host: the case, and the text.
async fn ask(host: &Host, how: &str, authority: &str) -> (String, String) {
    let answer = get(&format!("{}{how}/{authority}", host.url("caller"))).await;
    assert_eq!(answer.status, 200, "{authority}: {answer:?}");
    let answer = answer.json();
    (answer["case"].as_str().unwrap().to_owned(), answer["text"].as_str().unwrap().to_owned())
}

async fn answers(host: &Host, authority: &str) {
    assert_eq!(ask(host, "call", authority).await, ("ok".to_owned(), "it is me".to_owned()), "{authority}");
}

async fn fails(host: &Host, how: &str, authority: &str, why: &str) {
    let (case, text) = ask(host, how, authority).await;
    assert_eq!(case, "failed", "{authority}: {text}");
    assert!(text.contains(why), "{authority}: {text}");
}

#[tokio::test]
async fn a_name_does_not_lead_to_this_machine_unless_the_policy_allows_it() {
    let world = World::real().await;
    let (addr, taken) = server(1).await;
    let port = addr.port();
    // Resolvers map these names to 127.0.0.1, and neither is an address literal.
    let names = ["127.1", "2130706433"].map(|name| format!("{name}:{port}"));
    let others = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let listed: Vec<_> = names.iter().chain(&others).collect();
    let strict = host(&world, &json!({ "outbound": listed })).await;
    for name in &names {
        fails(&strict, "call", name, "DestinationIpProhibited").await;
    }
    assert_eq!(taken.load(Ordering::Relaxed), 0);
    for other in &others {
        answers(&strict, other).await;
    }
    let lenient = host(&world, &json!({ "outbound": listed, "local": true })).await;
    for name in names.iter().chain(&others) {
        answers(&lenient, name).await;
    }
    // It does not allow hosts that are not listed.
    fails(&lenient, "call", "127.0.0.1:1", "HttpRequestDenied").await;
}

#[tokio::test]
async fn wildcards_and_networks_permit_what_they_cover_but_nothing_local_that_is_not_meant() {
    let world = World::real().await;
    let addr = server(usize::MAX).await.0.to_string();
    let port = addr.rsplit(':').next().unwrap();
    let meant = host(&world, &json!({ "outbound": ["127.0.0.0/8"] })).await;
    answers(&meant, &addr).await;
    fails(&meant, "call", &format!("localhost:{port}"), "HttpRequestDenied").await;
    let wide = host(&world, &json!({ "outbound": ["*", "0.0.0.0/0"] })).await;
    for local in
        [addr.clone(), format!("localhost:{port}"), format!("127.1:{port}"), format!("[::ffff:127.0.0.1]:{port}")]
    {
        fails(&wide, "call", &local, "DestinationIpProhibited").await;
    }
    fails(&wide, "call", "nobody.invalid", "DnsError").await;
    answers(&host(&world, &json!({ "outbound": ["*"], "local": true })).await, &addr).await;
}

#[tokio::test]
async fn a_port_that_is_none_is_not_taken_for_the_default_one() {
    let world = World::real().await;
    let host = host(&world, &json!({ "outbound": ["127.0.0.1"] })).await;
    for authority in ["127.0.0.1:99999", "127.0.0.1:0"] {
        fails(&host, "call", authority, "HttpRequestUriInvalid").await;
    }
}

/// It can drain every service of the host.
#[tokio::test]
async fn a_component_never_reaches_the_admin_endpoint_of_its_host() {
    let world = World::real().await;
    let listed = json!({ "outbound": ["127.0.0.1", "localhost", "127.1", "0.0.0.0"], "local": true });
    let mut host = host(&world, &listed).await;
    let port = host.admin().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    for name in ["127.0.0.1", "localhost", "127.1", "0.0.0.0"] {
        fails(&host, "call", &format!("{name}:{port}"), "DestinationIpProhibited").await;
    }
    host.says(&format!("denied a request to 127.0.0.1:{port}: it is this host's own admin endpoint")).await;
    // A node in etcd that leads there leads nowhere either.
    let by_name = self::host(&world, &json!({ "discover": ["user"] })).await;
    let admin = by_name.admin().trim_end_matches('/').trim_start_matches("http://").to_owned();
    let node = json!({ "name": "user", "addr": admin, "version": "", "weight": "9" });
    world.put(&format!("/user/{admin}"), &node.to_string(), 0).await;
    fails(&by_name, "call", "user.leasehold", "ConnectionRefused").await;
}

#[tokio::test]
async fn a_denial_is_logged_once_with_the_entry_that_would_permit_it() {
    let world = World::real().await;
    let mut host = host(&world, &json!({ "outbound": ["api.example", "*"] })).await;
    let denied = [
        ("169.254.169.254", "it is local", r#"outbound: ["169.254.169.254:80"]"#),
        ("127.1:81", "the name leads to this machine", "local: true"),
    ];
    for (authority, why, cure) in denied {
        for _ in 0..3 {
            assert_eq!(ask(&host, "call", authority).await.0, "failed");
        }
        let line = host.says(&format!("denied a request to {authority}: {why}")).await;
        let said = line["message"].as_str().unwrap();
        assert!(said.ends_with(&format!("to permit it: allow: {{ {cure} }}")), "{said}");
        assert_eq!(line["service"], "caller", "{line}");
        assert_eq!(line["request_id"].as_str().map(str::len), Some(32), "{line}");
        let starts = format!("denied a request to {authority}");
        let count = host
            .log()
            .iter()
            .filter(|line| line["message"].as_str().is_some_and(|said| said.starts_with(&starts)))
            .count();
        assert_eq!(count, 1, "{authority}");
    }
    let mut strict = self::host(&world, &json!({})).await;
    for (authority, cure) in
        [("Example.com", r#"outbound: ["example.com:80"]"#), ("user.leasehold", r#"discover: ["user"]"#)]
    {
        fails(&strict, "call", authority, "HttpRequestDenied").await;
        let said = strict.says(&format!("denied a request to {authority}")).await;
        assert!(said["message"].as_str().unwrap().ends_with(&format!("allow: {{ {cure} }}")), "{said}");
    }
}

#[tokio::test]
async fn connections_are_reused_and_closed_ones_cost_no_request() {
    let world = World::real().await;
    let ((keeps, kept), (closes, closed)) = (server(usize::MAX).await, server(1).await);
    let [keeps, closes] = [keeps, closes].map(|addr| addr.to_string());
    let host = host(&world, &json!({ "outbound": [keeps, closes] })).await;
    for _ in 0..20 {
        answers(&host, &keeps).await;
        answers(&host, &closes).await;
    }
    assert_eq!((kept.load(Ordering::Relaxed), closed.load(Ordering::Relaxed)), (1, 20));
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    for to in [keeps, closes] {
        let counted = format!(r#"target="{to}",result="answered"}} 20"#);
        assert!(metrics.contains(&counted), "{counted} in {metrics}");
    }
}

#[tokio::test]
async fn a_component_gets_the_reason_why_a_host_does_not_respond() {
    let world = World::real().await;
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let ((plain, _), (silent, _)) = (server(usize::MAX).await, server(0).await);
    let [plain, silent] = [plain, silent].map(|addr| addr.to_string());
    let unknown = "nobody.invalid".to_owned();
    let host = host(&world, &json!({ "outbound": [closed, plain, silent, unknown] })).await;
    fails(&host, "call", &closed, "ConnectionRefused").await;
    fails(&host, "call", &unknown, "DnsError").await;
    fails(&host, "call", &silent, "ConnectionTerminated").await;
    fails(&host, "secure", &plain, "TlsProtocolError").await;
    fails(&host, "call", "example.com", "HttpRequestDenied").await;
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    for counted in [format!(r#"target="{closed}",result="failed"}} 1"#), r#"kind="outgoing_denied"} 1"#.to_owned()] {
        assert!(metrics.contains(&counted), "{counted} in {metrics}");
    }
}
