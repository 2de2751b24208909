//! Calls by name: a component sends a request to `http://NAME.leasehold/`, and the host finds a node.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::HashMap;

use leasehold_end_to_end::{
    Host,
    config::{config, greeter, hostile, service, with},
    http::get,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};

/// A greeter that says who it is.
fn greeting(greeting: &str, version: &str) -> Value {
    with(greeter(), json!({ "config": { "greeting": greeting, "version": version } }))
}

/// A service that calls what it is told to, and may call these names.
fn caller(names: &[&str]) -> Value {
    with(hostile("caller"), json!({ "allow": { "discover": names } }))
}

/// What a caller got from a host: the case, and the text.
async fn call(host: &Host, authority: &str) -> (String, String) {
    let answer = get(&format!("{}call/{authority}", host.url("caller"))).await;
    assert_eq!(answer.status, 200, "{authority}: {answer:?}");
    let answer = answer.json();
    (answer["case"].as_str().unwrap().to_owned(), answer["text"].as_str().unwrap().to_owned())
}

/// How often each greeting answered.
async fn greetings(host: &Host, authority: &str, calls: usize) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for _ in 0..calls {
        let (case, text) = call(host, authority).await;
        assert_eq!(case, "ok", "{text}");
        *times.entry(text.trim().to_owned()).or_insert(0) += 1;
    }
    times
}

async fn sees(host: &Host, authority: &str, greetings: &[&str]) {
    wait_for(&format!("{authority} is {greetings:?}"), SOON, async || {
        let mut seen: Vec<_> = self::greetings(host, authority, 8).await.into_keys().collect();
        seen.sort();
        seen == greetings
    })
    .await;
}

#[tokio::test]
async fn calls_are_spread_over_the_nodes_and_follow_etcd() {
    let world = World::real().await;
    let caller = Host::of(&world, [caller(&["greeter"])]).await;
    let one = Host::of(&world, [greeting("one", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one"]).await;
    let two = Host::of(&world, [greeting("two", "v2")]).await;
    sees(&caller, "greeter.leasehold", &["one", "two"]).await;
    // The weights are the same.
    let times = greetings(&caller, "greeter.leasehold", 40).await;
    assert!(times.values().all(|times| (18..=22).contains(times)), "{times:?}");
    sees(&caller, "v2.greeter.leasehold", &["two"]).await;
    assert_eq!(one.stop().await.code, Some(0));
    // Not one call fails meanwhile.
    sees(&caller, "greeter.leasehold", &["two"]).await;
    assert_eq!(two.stop().await.code, Some(0));
    let told = call(&caller, "greeter.leasehold").await;
    assert_eq!(told.0, "failed");
    assert!(told.1.contains("nobody is registered as greeter"), "{}", told.1);
    assert_eq!(caller.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_node_that_is_dead_is_passed_over() {
    let world = World::real().await;
    let caller = Host::of(&world, [caller(&["greeter"])]).await;
    let one = Host::of(&world, [greeting("one", "v1")]).await;
    let _two = Host::of(&world, [greeting("two", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one", "two"]).await;
    let key = format!("/greeter/v1/{}", one.addr("greeter"));
    one.signal("KILL");
    wait_for("it is dead", SOON, async || !is_listening(&one.addr("greeter")).await).await;
    // Its key stands for a TTL, and nobody notices.
    assert!(world.get(&key).await.is_some());
    assert_eq!(greetings(&caller, "greeter.leasehold", 20).await, HashMap::from([("two".to_owned(), 20)]));
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert_eq!(greetings(&caller, "greeter.leasehold", 5).await, HashMap::from([("two".to_owned(), 5)]));
}

async fn is_listening(addr: &str) -> bool {
    tokio::net::TcpStream::connect(addr).await.is_ok()
}

#[tokio::test]
async fn calls_go_on_while_etcd_is_down() {
    let mut world = World::real().await;
    let caller = Host::of(&world, [caller(&["greeter"])]).await;
    let _greeter = Host::of(&world, [greeting("one", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one"]).await;
    world.kill();
    assert_eq!(greetings(&caller, "greeter.leasehold", 20).await, HashMap::from([("one".to_owned(), 20)]));
    world.restart(false).await;
    assert_eq!(greetings(&caller, "greeter.leasehold", 20).await, HashMap::from([("one".to_owned(), 20)]));
}

#[tokio::test]
async fn only_what_the_policy_lists_is_called() {
    let world = World::real().await;
    let _greeter = Host::of(&world, [greeting("one", "v1")]).await;
    let caller = Host::of(&world, [caller(&["nobody"])]).await;
    for authority in
        ["greeter.leasehold", "v1.greeter.leasehold", "nobody.leasehold:80", "leasehold", "a@nobody.leasehold"]
    {
        let (case, text) = call(&caller, authority).await;
        assert_eq!(case, "failed", "{authority}");
        assert!(text.contains("HttpRequestDenied"), "{authority}: {text}");
    }
    let (case, text) = call(&caller, "nobody.leasehold").await;
    assert!(case == "failed" && text.contains("nobody is registered as nobody"), "{text}");
    let (_, text) = call(&caller, "v1.nobody.leasehold").await;
    assert!(text.contains("nobody is registered as nobody in version v1"), "{text}");
}

#[tokio::test]
async fn grpc_goes_the_same_way() {
    let world = World::real().await;
    let greeter = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    let host = Host::of(&world, [greeter, caller(&["grpc-greeter"])]).await;
    let answer = get(&format!("{}greet/grpc-greeter.leasehold", host.url("caller"))).await.json();
    assert_eq!(answer["case"], "ok", "{answer}");
    // A message of gRPC: five bytes before it, and Ada is in it.
    assert!(
        answer["text"].as_str().unwrap().starts_with('\0') && answer["text"].as_str().unwrap().contains("Ada"),
        "{answer}"
    );
}

/// A service of another ecosystem, under a suffix of choice.
#[tokio::test]
async fn services_of_other_layouts_are_called() {
    let world = World::real().await;
    let greeter = Host::of(&world, [greeting("one", "v1")]).await;
    let value = json!({
        "id": "1", "name": "shop", "version": "v3", "metadata": {},
        "endpoints": [format!("grpc://{}", greeter.addr("greeter"))],
    });
    world.put("/microservices/shop/1", &value.to_string(), 0).await;
    let registry = json!({ "registry": { "layout": ["seed", "kratos"], "suffix": "svc.local" } });
    let caller = Host::ready(&with(config(&world, [caller(&["*"])]), registry)).await;
    sees(&caller, "shop.svc.local", &["one"]).await;
    sees(&caller, "greeter.svc.local", &["one"]).await;
    let (_, text) = call(&caller, "shop.leasehold").await;
    assert!(text.contains("HttpRequestDenied"), "{text}");
}

/// Nodes of one's own zone as long as there are some.
#[tokio::test]
async fn nodes_with_the_preferred_metadata_come_first() {
    let world = World::real().await;
    let one = Host::of(&world, [greeting("one", "v1")]).await;
    let two = Host::of(&world, [greeting("two", "v1")]).await;
    let put = async |id: u8, zone: &str, host: &Host| {
        let value = json!({
            "id": id.to_string(), "name": "shop", "version": "", "metadata": { "zone": zone },
            "endpoints": [format!("grpc://{}", host.addr("greeter"))],
        });
        world.put(&format!("/microservices/shop/{id}"), &value.to_string(), 0).await;
    };
    put(1, "a", &one).await;
    put(2, "b", &two).await;
    let registry = json!({ "registry": { "layout": "kratos", "prefer": { "zone": "a" } } });
    let caller = Host::ready(&with(config(&world, [caller(&["shop"])]), registry)).await;
    let only = |greeting: &str| HashMap::from([(greeting.to_owned(), 20)]);
    sees(&caller, "shop.leasehold", &["one"]).await;
    assert_eq!(greetings(&caller, "shop.leasehold", 20).await, only("one"));
    world.delete("/microservices/shop/1").await;
    sees(&caller, "shop.leasehold", &["two"]).await;
    put(1, "a", &one).await;
    sees(&caller, "shop.leasehold", &["one"]).await;
    // The only one of the zone takes no connection any more.
    one.signal("KILL");
    wait_for("it is dead", SOON, async || !is_listening(&one.addr("greeter")).await).await;
    assert_eq!(greetings(&caller, "shop.leasehold", 20).await, only("two"));
}
