//! Calls by name: a component sends a request to `http://NAME.leasehold/`, and the host finds a node.

use std::{collections::HashMap, time::Duration};

use etcd_client::{Txn, TxnOp};
use leasehold_end_to_end::{
    Host, Program,
    config::{config, free_address, greeter, hostile, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// A greeter with a distinct greeting.
fn greeting(greeting: &str, version: &str) -> Value {
    with(greeter(), json!({ "config": { "greeting": greeting, "version": version } }))
}

/// A service that makes calls on command, and may call these names.
fn caller(names: &[&str]) -> Value {
    with(hostile("caller"), json!({ "allow": { "discover": names } }))
}

/// Result of a call to a host: the case, and the text.
async fn call(host: &Host, authority: &str) -> (String, String) {
    let answer = get(&format!("{}call/{authority}", host.url("caller"))).await;
    assert_eq!(answer.status, 200, "{authority}: {answer:?}");
    let answer = answer.json();
    (answer["case"].as_str().unwrap().to_owned(), answer["text"].as_str().unwrap().to_owned())
}

/// Number of responses with each greeting.
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
    let registry = json!({ "registry": { "calls": [{ "slow_start": "off" }] } });
    let caller = Host::ready(&with(config(&world, [caller(&["greeter"])]), registry)).await;
    let one = Host::of(&world, [greeting("one", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one"]).await;
    let two = Host::of(&world, [greeting("two", "v2")]).await;
    sees(&caller, "greeter.leasehold", &["one", "two"]).await;
    // The weights are equal.
    let times = greetings(&caller, "greeter.leasehold", 40).await;
    assert!(times.values().all(|times| (18..=22).contains(times)), "{times:?}");
    sees(&caller, "v2.greeter.leasehold", &["two"]).await;
    assert_eq!(one.stop().await.code, Some(0));
    // No call fails meanwhile.
    sees(&caller, "greeter.leasehold", &["two"]).await;
    assert_eq!(two.stop().await.code, Some(0));
    let failed = call(&caller, "greeter.leasehold").await;
    assert_eq!(failed.0, "failed");
    assert!(failed.1.contains("no node is registered as greeter, under /greeter/ (seed)"), "{}", failed.1);
    assert_eq!(caller.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_dead_node_is_skipped() {
    let world = World::real().await;
    let caller = Host::of(&world, [caller(&["greeter"])]).await;
    let one = Host::of(&world, [greeting("one", "v1")]).await;
    let _two = Host::of(&world, [greeting("two", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one", "two"]).await;
    let key = format!("/greeter/v1/{}", one.addr("greeter"));
    one.signal("KILL");
    wait_for("it is dead", SOON, async || !is_listening(&one.addr("greeter")).await).await;
    // Its key stays for a TTL; callers do not notice.
    assert!(world.get(&key).await.is_some());
    assert_eq!(greetings(&caller, "greeter.leasehold", 20).await, HashMap::from([("two".to_owned(), 20)]));
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert_eq!(greetings(&caller, "greeter.leasehold", 5).await, HashMap::from([("two".to_owned(), 5)]));
}

async fn is_listening(addr: &str) -> bool {
    TcpStream::connect(addr).await.is_ok()
}

/// The host's data on the service that its caller looks up.
async fn view(host: &Host) -> Value {
    let mut services = get(&format!("{}services", host.admin())).await.json();
    services[0]["views"][0].take()
}

#[tokio::test]
async fn calls_go_on_while_etcd_is_down() {
    let mut world = World::real().await;
    world.put("/greeter/garbage", "", 0).await;
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let mut caller = Host::ready(&with(config(&world, [caller(&["greeter"])]), admin)).await;
    let _greeter = Host::of(&world, [greeting("one", "v1")]).await;
    sees(&caller, "greeter.leasehold", &["one"]).await;
    let well = view(&caller).await;
    assert_eq!((&well["name"], &well["nodes"], &well["invalid_keys"]), (&json!("greeter"), &json!(1), &json!(1)));
    assert!(well["error"].is_null() && well["age_seconds"].as_f64().is_some_and(|age| age < 6.0), "{well}");
    world.kill();
    assert_eq!(greetings(&caller, "greeter.leasehold", 20).await, HashMap::from([("one".to_owned(), 20)]));
    caller.says("watch failed; the view keeps the last known nodes").await;
    assert!(view(&caller).await["error"].is_string());
    let metrics = get(&format!("{}metrics", caller.admin())).await.body;
    assert!(
        metrics.lines().any(|line| line.starts_with("leasehold_view_nodes{") && line.ends_with(" 1.0")),
        "{metrics}"
    );
    assert!(metrics.contains("leasehold_view_age_seconds{"), "{metrics}");
    world.restart(false).await;
    caller.says("the watch is established again").await;
    assert!(view(&caller).await["error"].is_null());
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
    assert!(case == "failed" && text.contains("no node is registered as nobody"), "{text}");
    let (_, text) = call(&caller, "v1.nobody.leasehold").await;
    assert!(text.contains("no node is registered as nobody in version v1, under /nobody/v1/ (seed)"), "{text}");
}

#[tokio::test]
async fn an_unknown_service_is_an_error_that_names_the_nodes_found_instead() {
    let world = World::real().await;
    world.put("/shop/h:1", "half a no", 0).await;
    let shop = |id: u8, scheme: &str| {
        let endpoints = [format!("{scheme}://127.0.0.1:9")];
        json!({ "id": id.to_string(), "name": "shop", "version": "", "metadata": {}, "endpoints": endpoints })
            .to_string()
    };
    world.put("/microservices/shop/1", &shop(1, "grpcs"), 0).await;
    let registry = json!({ "registry": { "layout": ["seed", "kratos"] } });
    let caller = Host::ready(&with(config(&world, [caller(&["shop"])]), registry)).await;
    let (case, text) = call(&caller, "shop.leasehold").await;
    let said = "no node is registered as shop, under /shop/ (seed), /microservices/shop/ (kratos); 1 key there is not a node; \
                1 node there speaks TLS, which this host does not: registry.calls.tls";
    assert!(case == "failed" && text.contains(said), "{text}");
}

/// Puts a node of the layout `seed` that is picked at least as often as others.
async fn put_node(world: &World, name: &str, addr: &str) {
    let value = json!({ "name": name, "addr": addr, "version": "", "weight": "100" });
    world.put(&format!("/{name}/{addr}"), &value.to_string(), 0).await;
}

/// A listener that neither accepts nor refuses further connections: its backlog is full.
async fn deaf() -> (TcpListener, Vec<TcpStream>, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
        waiting.push(connected.unwrap());
    }
    (listener, waiting, addr.to_string())
}

#[tokio::test]
async fn a_call_with_a_body_is_retried_past_dead_and_full_nodes() {
    let world = World::real().await;
    let deaf = deaf().await;
    put_node(&world, "grpc-greeter", &deaf.2).await;
    put_node(&world, "grpc-greeter", &free_address()).await;
    let greeter = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    let host = Host::of(&world, [greeter, caller(&["grpc-greeter"])]).await;
    for _ in 0..8 {
        let answer = get(&format!("{}greet/grpc-greeter.leasehold", host.url("caller"))).await.json();
        assert!(answer["case"] == "ok" && answer["text"].as_str().unwrap().contains("Ada"), "{answer}");
    }
}

#[tokio::test]
async fn a_component_may_wait_less_for_a_connection() {
    let world = World::real().await;
    let deaf = deaf().await;
    put_node(&world, "deaf", &deaf.2).await;
    let host = Host::of(&world, [caller(&["deaf"])]).await;
    let url = format!("{}hurried/deaf.leasehold", host.url("caller"));
    // The host's own timeout is 3 s.
    let answer = timeout(Duration::from_millis(2500), get(&url)).await.expect("the component's own limit holds").json();
    assert!(answer["text"].as_str().unwrap().contains("ConnectionTimeout"), "{answer}");
}

#[tokio::test]
async fn a_node_that_hangs_is_ejected() {
    let world = World::real().await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap(); // Connections stay in its backlog.
    put_node(&world, "greeter", &hanging.local_addr().unwrap().to_string()).await;
    let _greeter = Host::of(&world, [greeting("one", "v1")]).await;
    let limits = json!({ "limits": { "request_timeout": "1s" } });
    let caller = Host::of(&world, [with(caller(&["greeter"]), limits)]).await;
    let mut failed = 0;
    for _ in 0..30 {
        let answer = get(&format!("{}call/greeter.leasehold", caller.url("caller"))).await;
        let is_answered = answer.status == 200 && answer.json()["case"] == "ok";
        failed += usize::from(!is_answered);
    }
    // Without ejection half of the calls would fail. Ejected for 1 s, then 2 and 4 s, the node is tried only that often.
    assert!((1..=4).contains(&failed), "{failed}");
}

#[tokio::test]
async fn a_component_resolves_the_nodes_themselves() {
    let world = World::real().await;
    for (id, version, zone) in [(1, "v1", "a"), (2, "v2", "b")] {
        let value = json!({
            "id": id.to_string(), "name": "shop", "version": version, "metadata": { "zone": zone, "weight": "7" },
            "endpoints": [format!("grpc://10.0.0.{id}:80")],
        });
        world.put(&format!("/microservices/shop/{id}"), &value.to_string(), 0).await;
    }
    let registry = json!({ "registry": { "layout": ["seed", "kratos"] } });
    let few = json!({ "name": "told-few", "listen": "127.0.0.1:0", "limits": { "nodes": 3 } });
    let callers = [caller(&["shop", "crowd", "nobody"]), with(caller(&["crowd"]), few)];
    let host = Host::ready(&with(config(&world, callers), registry)).await;
    let resolve_as = async |service: &str, what: &str| {
        let answer = get(&format!("{}act/resolve/{what}", host.url(service))).await.json();
        assert_eq!(answer["case"], "ok", "{answer}");
        answer["text"].as_str().unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let resolve = async |what: &str| resolve_as("caller", what).await;
    let one = r#"shop v1 10.0.0.1:80 Some(7) [("zone", "a")]"#;
    let two = r#"shop v2 10.0.0.2:80 Some(7) [("zone", "b")]"#;
    assert_eq!(resolve("shop").await, [one, two]);
    assert_eq!(resolve("shop/v2").await, [two]);
    assert!(resolve("nobody").await.is_empty());
    world.delete("/microservices/shop/1").await;
    wait_for("it is gone", SOON, async || resolve("shop").await == [two]).await;

    // More nodes than one result holds: the same nodes each time, and remaining nodes stay when others leave.
    let mut client = world.client().await;
    for block in 0..12 {
        let value = |addr: &str| json!({ "name": "crowd", "addr": addr, "version": "", "weight": "1" }).to_string();
        let puts = (0..100).map(|one| format!("10.0.{block}.{one}:80"));
        let puts = puts.map(|addr| TxnOp::put(format!("/crowd/{addr}"), value(&addr), None));
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
    let seen = resolve("crowd").await;
    assert_eq!(seen.len(), 1000);
    assert_eq!(resolve("crowd").await, seen);
    let few = resolve_as("told-few", "crowd").await;
    assert_eq!(few.len(), 3);
    assert_eq!(resolve_as("told-few", "crowd").await, few);
    let addr = seen[500].split_whitespace().find(|word| word.ends_with(":80")).unwrap();
    world.delete(&format!("/crowd/{addr}")).await;
    wait_for("it is gone", SOON, async || !resolve("crowd").await.contains(&seen[500])).await;
    let later = resolve("crowd").await;
    assert_eq!(later.len(), 1000);
    let stayed = later.iter().filter(|node| seen.contains(node)).count();
    assert!(stayed >= 997, "{stayed} stayed");
}

#[tokio::test]
async fn grpc_goes_the_same_way() {
    let world = World::real().await;
    let greeter = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    let host = Host::of(&world, [greeter, caller(&["grpc-greeter"])]).await;
    let answer = get(&format!("{}greet/grpc-greeter.leasehold", host.url("caller"))).await.json();
    assert_eq!(answer["case"], "ok", "{answer}");
    // A gRPC message: a header of five bytes, and the name Ada in it.
    assert!(
        answer["text"].as_str().unwrap().starts_with('\0') && answer["text"].as_str().unwrap().contains("Ada"),
        "{answer}"
    );
}

/// A service of another ecosystem, under a custom suffix.
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

/// Lookups read the layout of a single service, too.
#[tokio::test]
async fn a_service_with_a_layout_of_its_own_is_found() {
    let world = World::real().await;
    let greeter = with(greeting("one", "v1"), json!({ "layout": "kitex" }));
    let config = config(&world, [greeter, caller(&["greeter"])]);
    let host = Host::ready(&config).await;
    sees(&host, "greeter.leasehold", &["one"]).await;
    let file = host.temporary().join("services.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let ls = Program::spawn(&paths::leasehold(), ["ls", "--config", file.to_str().unwrap()], &host.temporary());
    let ls = ls.ends().await;
    std::fs::remove_file(&file).unwrap();
    assert!(ls.stdout.lines().any(|line| line.starts_with("greeter ")), "{ls:?}");
}

/// Nodes of the same zone, as long as there are such nodes.
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
    // The only node of the zone accepts no connection any more.
    one.signal("KILL");
    wait_for("it is dead", SOON, async || !is_listening(&one.addr("greeter")).await).await;
    assert_eq!(greetings(&caller, "shop.leasehold", 20).await, only("two"));
}
