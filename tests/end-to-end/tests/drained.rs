//! Drained: keys first, then requests in flight, then the rest; a client that watches etcd sees no failure.

use std::time::{Duration, Instant};

use leasehold_end_to_end::{
    Host,
    config::{config, hostile, plain, with},
    http::{Kept, Protocol, begin, get, get_over, post},
};
use leasehold_scenarios::world::World;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// Age of a client's view up to which the client is served: the time that the host gives watchers to see the deletion.
const FRESH: Duration = Duration::from_millis(500);

#[tokio::test]
async fn drained_requests_in_flight_are_completed() {
    let world = World::real().await;
    let host = Host::of(&world, [with(hostile("hostile"), json!({ "register": "host" }))]).await;
    let slow = format!("{}act/slow", host.url("hostile"));
    let over_http2 = tokio::spawn({
        let slow = slow.clone();
        async move { get_over(Protocol::Http2, &slow).await }
    });
    let over_http1 = begin(&slow).await;
    let begun = Instant::now();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("cut off"), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "it ended before its requests");
    let expected = json!({ "case": "ok", "text": "slow" });
    assert_eq!(over_http1.answer().await.unwrap().json(), expected);
    assert_eq!(over_http2.await.unwrap().unwrap().json(), expected);
}

#[tokio::test]
async fn drained_by_sigquit_as_by_sigterm() {
    let world = World::real().await;
    for signal in ["TERM", "QUIT"] {
        let host = Host::of(&world, [with(hostile("hostile"), json!({ "register": "host" }))]).await;
        let slow = begin(&format!("{}act/slow", host.url("hostile"))).await;
        host.signal(signal);
        let ended = host.ends().await;
        assert_eq!(ended.code, Some(0), "{signal}: {ended:?}");
        assert_eq!(slow.answer().await.unwrap().status, 200, "{signal}");
        assert_eq!((world.count().await, world.leases().await.len()), (0, 0), "{signal}");
    }
}

#[tokio::test]
async fn drained_the_key_is_gone_before_the_listener_closes() {
    let world = World::real().await;
    let host = Host::of(&world, [with(hostile("hostile"), json!({ "register": "host" }))]).await;
    let (url, addr) = (host.url("hostile"), host.addr("hostile"));
    let key = format!("/hostile/{addr}");
    // Keeps the process running after the listener is closed.
    let slow = begin(&format!("{url}act/slow")).await;
    host.signal("TERM");
    let mut answered = 0;
    loop {
        if TcpStream::connect(&addr).await.is_err() {
            assert_eq!(world.get(&key).await, None, "the listener closed first");
            break;
        }
        let looked = Instant::now();
        if world.get(&key).await.is_some() && looked.elapsed() < FRESH {
            let answer = get_over(Protocol::Http1, &url).await;
            assert!(answer.is_ok() || looked.elapsed() >= FRESH, "{answer:?}");
            answered += 1;
        }
    }
    assert_eq!(slow.answer().await.unwrap().status, 200, "after {answered} others");
    assert_eq!(host.ends().await.code, Some(0));
}

#[tokio::test]
async fn drained_clients_are_sent_elsewhere_and_served_until_then() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "settle_time": "3s" } });
    let host = Host::of(&world, [with(hostile("hostile"), limits)]).await;
    let (url, addr) = (host.url("hostile"), host.addr("hostile"));
    let (mut over_http1, mut over_http2) =
        (Kept::open(Protocol::Http1, &addr).await, Kept::open(Protocol::Http2, &addr).await);
    assert_eq!(over_http1.get(&url).await, (200, None));
    assert_eq!(over_http2.get(&url).await, (200, None));
    host.signal("TERM");
    world.key_is(&format!("/hostile/{addr}"), "gone", |found| found.is_none()).await;
    // The deletion is visible before the host gets etcd's response.
    let seen = Instant::now();
    let said = loop {
        match over_http1.get(&url).await {
            (200, None) => assert!(seen.elapsed() < Duration::from_secs(1), "it was not asked to go elsewhere"),
            outcome => break outcome,
        }
    };
    assert_eq!(said, (200, Some("close".to_owned())));
    assert_eq!(over_http2.get(&url).await, (200, None));
    over_http1.is_closed().await;
    over_http2.is_closed().await;
    assert_eq!(get(&url).await.status, 200, "who has not heard of it is answered");
    assert_eq!(host.ends().await.code, Some(0));
}

#[tokio::test]
async fn drained_one_service_leaves_the_listeners_of_the_others_alone() {
    let world = World::real().await;
    let services = [with(hostile("hostile"), json!({ "register": "host" })), plain("plain")];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
    let (url, addr) = (host.url("plain"), host.addr("plain"));
    let slow = begin(&format!("{}act/slow", host.url("hostile"))).await;
    let drain = format!("{}drain/hostile", host.admin());
    let drained = tokio::spawn(async move { post(&drain).await });
    let mut kept = Kept::open(Protocol::Http1, &addr).await;
    let mut answered = 0;
    while !drained.is_finished() {
        assert_eq!(kept.get(&url).await, (200, None), "a connection is not closed, nor sent elsewhere");
        assert_eq!(get(&url).await.status, 200, "a new connection is accepted");
        answered += 1;
    }
    assert!(answered > 1, "{answered}");
    assert_eq!(drained.await.unwrap().json()[0]["all_answered"], true);
    assert_eq!(slow.answer().await.unwrap().status, 200);
    world.stands(&format!("/plain/{addr}")).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn drained_at_the_end_of_the_host_each_service_is_served_for_its_own_settle_time() {
    let world = World::real().await;
    let settled = with(plain("plain"), json!({ "limits": { "settle_time": "1s" } }));
    let busy = with(hostile("hostile"), json!({ "register": "host", "limits": { "drain_timeout": "6s" } }));
    let host = Host::of(&world, [busy, settled]).await;
    let (url, addr) = (host.url("plain"), host.addr("plain"));
    let stuck = begin(&format!("{}act/sleep", host.url("hostile"))).await;
    host.signal("TERM");
    world.key_is(&format!("/plain/{addr}"), "gone", |found| found.is_none()).await;
    let gone = Instant::now();
    // The slow request of the other service neither shortens nor prolongs that.
    while TcpStream::connect(&addr).await.is_ok() {
        assert!(gone.elapsed() < Duration::from_secs(5), "its listener is still open");
        let answer = get_over(Protocol::Http1, &url).await;
        assert!(answer.is_ok() || gone.elapsed() >= Duration::from_millis(800), "{answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(gone.elapsed() >= Duration::from_millis(800), "it was closed after {:?}", gone.elapsed());
    drop(TcpListener::bind(&addr).await.expect("its address is free for a successor"));
    assert!(gone.elapsed() < Duration::from_secs(6), "the host still waits for the slow request");
    assert_eq!(host.ends().await.code, Some(0));
    assert_eq!(stuck.answer().await, None);
}

#[tokio::test]
async fn drained_requests_beyond_the_timeout_are_cut_off() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "drain_timeout": "1s" } });
    let host = Host::of(&world, [with(hostile("hostile"), limits)]).await;
    let stuck = begin(&format!("{}act/sleep", host.url("hostile"))).await;
    assert_eq!(get(&host.url("hostile")).await.status, 200);
    let begun = Instant::now();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("requests were cut off after 1s"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    assert_eq!(stuck.answer().await, None);
}
