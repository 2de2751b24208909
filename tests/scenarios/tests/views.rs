//! Watched views of services, on the simulated etcd and on a real etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_client::{PutOptions, Txn, TxnOp};
use leasehold::{Balancer, Choice, Error, NodeEvent, Options, Registrar, ServerNode, ServiceName, Version, View};
use leasehold_scenarios::{
    on_both,
    proxy::{Mode, Proxy},
    real::{Etcd, Options as EtcdOptions},
    sim::{FaultPlan, SimEtcd},
    wait_for,
    world::{SOON, World},
};
use tokio::time::{Instant, sleep, timeout};

on_both!(
    a_view_follows_puts_changes_and_deletes,
    a_view_of_one_version_has_no_other,
    a_view_reports_differences,
    a_view_keeps_its_nodes_while_etcd_is_down,
    a_view_keeps_its_nodes_until_services_are_back_in_an_etcd_without_its_data,
    a_view_accepts_lost_data_after_a_while,
    a_view_survives_a_compaction,
    a_view_skips_invalid_keys_and_counts_them,
    a_view_is_read_among_large_values_of_others,
    a_view_of_an_etcd_that_is_down_is_an_error_in_time_and_ready_later,
    a_view_of_several_layouts_has_a_node_once,
    a_view_takes_ten_thousand_changes_at_once,
    a_view_misses_nothing_that_happens_while_it_is_read,
    a_view_ends_with_its_registrar,
    views_of_one_service_are_shared,
    picks_follow_the_weights_and_eject_failed_nodes,
);

const SECOND: Duration = Duration::from_secs(1);

fn key(name: &str, port: u16) -> String {
    format!("/{name}/h:{port}")
}

fn value(name: &str, port: u16, weight: u32) -> String {
    format!(r#"{{"name":"{name}","addr":"h:{port}","version":"","weight":"{weight}"}}"#)
}

async fn view_of(registrar: &Registrar, name: &str) -> View {
    registrar.watch(&name.parse().unwrap(), &Version::default()).await.unwrap()
}

/// Ports and weights of the nodes in a view.
fn seen(view: &View) -> BTreeMap<u16, u32> {
    view.nodes().iter().map(|node| (node.addr.port(), node.weight.unwrap().value())).collect()
}

async fn sees<const N: usize>(view: &View, nodes: [(u16, u32); N]) {
    let nodes = BTreeMap::from(nodes);
    wait_for(&format!("the view is {nodes:?}"), SOON, async || seen(view) == nodes).await;
}

async fn put(world: &World, port: u16, weight: u32) {
    world.put(&key("user", port), &value("user", port, weight), 0).await;
}

async fn a_view_follows_puts_changes_and_deletes(world: World) {
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    assert_eq!(seen(&view), BTreeMap::from([(1, 10)]));
    put(&world, 2, 20).await;
    world.put("/users/h:3", &value("users", 3, 30), 0).await;
    sees(&view, [(1, 10), (2, 20)]).await;
    put(&world, 1, 11).await;
    sees(&view, [(1, 11), (2, 20)]).await;
    world.delete(&key("user", 2)).await;
    sees(&view, [(1, 11)]).await;
    assert!(view.age().unwrap() < SOON);
    let us = registrar.register(ServerNode::new("user", "h:9").unwrap()).await.unwrap();
    sees(&view, [(1, 11), (9, 73)]).await;
    us.stop().await.unwrap();
    sees(&view, [(1, 11)]).await;
}

async fn a_view_of_one_version_has_no_other(world: World) {
    let registrar = world.registrar("watcher").await;
    let version: Version = "v1".parse().unwrap();
    let one = registrar.watch(&"user".parse().unwrap(), &version).await.unwrap();
    let all = view_of(&registrar, "user").await;
    for version in ["v1", "v2"] {
        let node = ServerNode { version: version.parse().unwrap(), ..ServerNode::new("user", "h:1").unwrap() };
        std::mem::forget(registrar.register(node).await.unwrap());
    }
    let versions = |view: &View| view.nodes().iter().map(|node| node.version.to_string()).collect::<Vec<_>>();
    wait_for("both are seen", SOON, async || versions(&all) == ["v1", "v2"]).await;
    wait_for("one is seen", SOON, async || versions(&one) == ["v1"]).await;
}

async fn a_view_reports_differences(world: World) {
    put(&world, 1, 10).await;
    put(&world, 2, 20).await;
    let registrar = world.registrar("watcher").await;
    let mut view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    view.changed().await.unwrap();
    let before = view.nodes();
    assert_eq!(view.events_since(&before), []);
    world.delete(&key("user", 1)).await;
    put(&world, 2, 21).await;
    put(&world, 3, 30).await;
    while view.nodes().len() != 2 || seen(&view).get(&2) != Some(&21) {
        timeout(SOON, view.changed()).await.unwrap().unwrap();
    }
    let events: Vec<_> = view
        .events_since(&before)
        .into_iter()
        .map(|event| match event {
            NodeEvent::Left(node) => ("left", node.addr.port()),
            NodeEvent::Changed(node) => ("changed", node.addr.port()),
            NodeEvent::Joined(node) => ("joined", node.addr.port()),
        })
        .collect();
    assert_eq!(events, [("left", 1), ("changed", 2), ("joined", 3)]);
}

async fn a_view_keeps_its_nodes_while_etcd_is_down(mut world: World) {
    put(&world, 1, 10).await;
    put(&world, 2, 20).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    world.kill();
    wait_for("the view is in trouble", SOON, async || view.error().is_some()).await;
    sleep(8 * SECOND).await;
    assert_eq!(seen(&view), BTreeMap::from([(1, 10), (2, 20)]));
    assert!(view.age().unwrap() >= 8 * SECOND, "{:?}", view.age());
    view.ready().await.unwrap();
    world.restart(true).await;
    world.delete(&key("user", 1)).await;
    sees(&view, [(2, 20)]).await;
    wait_for("the view is well", SOON, async || view.error().is_none()).await;
    assert!(view.age().unwrap() < SOON);
}

async fn a_view_keeps_its_nodes_until_services_are_back_in_an_etcd_without_its_data(mut world: World) {
    let host = world.registrar("host").await;
    let mut registrations = Vec::new();
    for port in 1..=3 {
        registrations.push(host.register(ServerNode::new("user", &format!("h:{port}")).unwrap()).await.unwrap());
    }
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    let short = Duration::from_millis(5);
    let watched = async {
        loop {
            assert_eq!(view.nodes().len(), 3);
            sleep(short).await;
        }
    };
    let restarted = async {
        world.restart(false).await;
        for registration in &registrations {
            world.stands(registration.key()).await;
        }
        sleep(3 * SECOND).await;
    };
    tokio::select! {
        () = watched => {}
        () = restarted => {}
    }
    registrations[0].stop().await.unwrap();
    sees(&view, [(2, 73), (3, 73)]).await;
}

async fn a_view_accepts_lost_data_after_a_while(mut world: World) {
    for port in 1..=3 {
        put(&world, port, 10).await;
    }
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    let lost = Instant::now();
    world.restart(false).await;
    put(&world, 1, 11).await;
    sees(&view, [(1, 11), (2, 10), (3, 10)]).await;
    world.put(&key("user", 3), "gone bad", 0).await;
    world.delete(&key("user", 3)).await;
    sees(&view, [(1, 11), (2, 10)]).await;
    wait_for("what did not come back is gone", 2 * SOON, async || seen(&view) == BTreeMap::from([(1, 11)])).await;
    assert!(lost.elapsed() >= 15 * SECOND, "{:?}", lost.elapsed());
}

async fn a_view_survives_a_compaction(mut world: World) {
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    world.kill();
    wait_for("the view is in trouble", SOON, async || view.error().is_some()).await;
    world.restart(true).await;
    for weight in 11..=20 {
        put(&world, 1, weight).await;
    }
    let revision = world.revision().await;
    world.client().await.compact(revision, None).await.unwrap();
    put(&world, 2, 20).await;
    sees(&view, [(1, 20), (2, 20)]).await;
    world.delete(&key("user", 1)).await;
    sees(&view, [(2, 20)]).await;
}

async fn a_view_skips_invalid_keys_and_counts_them(world: World) {
    world.put("/user/x", "{\"name\":\"us", 0).await;
    world.put("/user/y", "", 0).await;
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    assert_eq!((seen(&view), view.invalid_keys()), (BTreeMap::from([(1, 10)]), 2));
    world.put(&key("user", 1), "half", 0).await;
    sees(&view, []).await;
    assert_eq!(view.invalid_keys(), 3);
    put(&world, 1, 10).await;
    sees(&view, [(1, 10)]).await;
    world.delete("/user/x").await;
    wait_for("one less", SOON, async || view.invalid_keys() == 1).await;
}

async fn a_view_of_an_etcd_that_is_down_is_an_error_in_time_and_ready_later(mut world: World) {
    put(&world, 1, 10).await;
    world.kill();
    let options = Options { request_timeout: SECOND, ..world.options() };
    let registrar = world.registrar_with("watcher", options).await;
    let view = view_of(&registrar, "user").await;
    let begun = Instant::now();
    let error = view.ready().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_) | Error::Timeout { .. }), "{error}");
    assert!(begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
    assert!(view.nodes().is_empty() && view.age().is_none());
    world.restart(true).await;
    sees(&view, [(1, 10)]).await;
    view.ready().await.unwrap();
}

async fn a_view_of_several_layouts_has_a_node_once(world: World) {
    let layouts = ["seed", "kratos"].map(|name| name.parse().unwrap()).to_vec();
    let registrar = world.registrar_with("watcher", Options { layouts, ..world.options() }).await;
    let view = view_of(&registrar, "user").await;
    let user = registrar.register(ServerNode::new("user", "h:1").unwrap()).await.unwrap();
    assert_eq!(user.keys().count(), 2);
    sees(&view, [(1, 73)]).await;
    put(&world, 2, 20).await;
    sees(&view, [(1, 73), (2, 20)]).await;
    world.delete(user.key()).await;
    world.stands(user.key()).await;
    user.stop().await.unwrap();
    sees(&view, [(2, 20)]).await;
    assert_eq!(view.nodes().len(), 1);
}

async fn a_view_is_read_among_large_values_of_others(world: World) {
    let mut client = world.client().await;
    put(&world, 1, 10).await;
    put(&world, 9, 90).await;
    for other in 2..5 {
        client.put(key("user", other), vec![b'x'; 1_400_000], None).await.unwrap();
    }
    // The first page of 1000 keys has 41 MiB, more than one read accepts.
    for block in 0..80 {
        let puts = (0..16).map(|one| TxnOp::put(format!("/user/x/{block}/{one}"), vec![b'x'; 42_000], None));
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    sees(&view, [(1, 10), (9, 90)]).await;
    assert_eq!(view.invalid_keys(), 3 + 80 * 16);
    assert!(view.error().is_none());
    client.put(key("user", 6), vec![b'x'; 1_400_000], None).await.unwrap();
    put(&world, 2, 20).await;
    sees(&view, [(1, 10), (2, 20), (9, 90)]).await;
}

async fn a_view_takes_ten_thousand_changes_at_once(world: World) {
    let mut client = world.client().await;
    let lease = world.grant(600).await;
    for block in 0..100 {
        let puts = (0..100).map(|one| {
            let port = 1 + block * 100 + one;
            TxnOp::put(key("user", port), value("user", port, 10), Some(PutOptions::new().with_lease(lease)))
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    assert_eq!(view.nodes().len(), 10_000);
    world.revoke(lease).await;
    sees(&view, []).await;
}

async fn a_view_misses_nothing_that_happens_while_it_is_read(world: World) {
    const NODES: u16 = 3000;
    let mut client = world.client().await;
    for ports in (1..=NODES).collect::<Vec<_>>().chunks(100) {
        let puts = ports.iter().map(|port| TxnOp::put(key("user", *port), value("user", *port, 1), None));
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
    let changes = async {
        // These keys are on the first page.
        for port in 1000..1500 {
            put(&world, port, 2).await;
        }
    };
    let reading = async {
        let mut views = Vec::new();
        for watcher in ["one", "two", "three"] {
            let registrar = world.registrar(watcher).await;
            let view = view_of(&registrar, "user").await;
            view.ready().await.unwrap();
            views.push((registrar, view));
        }
        views
    };
    let (views, ()) = tokio::join!(reading, changes);
    let changed = |view: &View| seen(view).values().filter(|weight| **weight == 2).count();
    for (_, view) in &views {
        wait_for("every change is seen", SOON, async || changed(view) == 500).await;
        assert_eq!(view.nodes().len(), usize::from(NODES));
    }
}

async fn a_view_ends_with_its_registrar(world: World) {
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let mut view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    view.changed().await.unwrap();
    registrar.shutdown(SOON).await.unwrap();
    assert!(matches!(timeout(SOON, view.changed()).await.unwrap(), Err(Error::Ended)));
    assert_eq!(seen(&view), BTreeMap::from([(1, 10)]));
    let again = registrar.watch(view.name(), view.version()).await;
    assert!(matches!(again, Err(Error::Ended)), "{again:?}");
}

async fn views_of_one_service_are_shared(world: World) {
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let one = view_of(&registrar, "user").await;
    one.ready().await.unwrap();
    let two = view_of(&registrar, "user").await;
    // The view is shared, so it is already read.
    assert_eq!(seen(&two), BTreeMap::from([(1, 10)]));
    drop(one);
    put(&world, 2, 20).await;
    sees(&two, [(1, 10), (2, 20)]).await;
    drop(two);
    sleep(SECOND).await;
    put(&world, 3, 30).await;
    let three = view_of(&registrar, "user").await;
    three.ready().await.unwrap();
    assert_eq!(seen(&three), BTreeMap::from([(1, 10), (2, 20), (3, 30)]));
}

async fn picks_follow_the_weights_and_eject_failed_nodes(world: World) {
    put(&world, 1, 60).await;
    put(&world, 2, 20).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    let balancer = Balancer::new(view.clone());
    let ports =
        |times: usize| -> Vec<u16> { (0..times).map(|_| balancer.pick(&[]).unwrap().node().addr.port()).collect() };
    let ones = ports(800).iter().filter(|port| **port == 1).count();
    assert!((590..=610).contains(&ones), "{ones}");
    let failed = loop {
        let pick = balancer.pick(&[]).unwrap();
        if pick.node().addr.port() == 1 {
            break pick;
        }
    };
    failed.failed();
    assert!(ports(100).iter().all(|port| *port == 2));
    // The only other node is excluded: a failed node is better than none.
    let other = balancer.pick(&["h:2".parse().unwrap()]).unwrap();
    assert_eq!(other.node().addr.port(), 1);
    assert!(balancer.pick(&["h:1".parse().unwrap(), "h:2".parse().unwrap()]).is_none());
    // A new generation of the view keeps the ejection.
    put(&world, 3, 20).await;
    sees(&view, [(1, 60), (2, 20), (3, 20)]).await;
    assert!(ports(100).iter().all(|port| *port != 1));
    sleep(2 * SECOND).await;
    assert!(ports(100).contains(&1));
    world.delete(&key("user", 1)).await;
    sees(&view, [(2, 20), (3, 20)]).await;
    assert!(!ports(100).contains(&1));
    let quick = Balancer::new(view).with_choice(Choice::LeastLatency);
    for (port, latency) in [(2, 100), (3, 1)] {
        let other: Vec<_> = [5 - port].iter().map(|port| format!("h:{port}").parse().unwrap()).collect();
        quick.pick(&other).unwrap().succeeded(Duration::from_millis(latency));
    }
    let quicker = (0..100).filter(|_| quick.pick(&[]).unwrap().node().addr.port() == 3).count();
    assert!(quicker > 80, "{quicker}");
}

/// More nodes than a few pages hold; pages are read concurrently.
#[tokio::test]
async fn a_view_of_very_many_nodes_has_each_of_them_once() {
    const NODES: usize = 60_000;
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut rng = fastrand::Rng::with_seed(3);
    let ids: BTreeSet<String> = (0..NODES).map(|_| format!("{:x}", rng.u64(..))).collect();
    for (block, ids) in ids.iter().collect::<Vec<_>>().chunks(100).enumerate() {
        let addr = |at: usize| format!("h{}:{}", block, at + 1);
        let puts = ids.iter().enumerate().map(|(at, id)| TxnOp::put(format!("user/{id}"), addr(at), None));
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
    let layouts = vec!["go-zero".parse().unwrap()];
    let registrar = Registrar::start(Options { layouts, ..Options::new([etcd.endpoint()]) }).unwrap();
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    let nodes = view.nodes();
    assert_eq!((nodes.len(), view.invalid_keys()), (ids.len(), 0));
    // Addresses are in the order of the keys.
    let place = |node: &ServerNode| node.addr.host()[1..].parse::<usize>().unwrap() * 100 + node.addr.port() as usize;
    assert!(nodes.iter().map(place).eq(1..=ids.len()));
}

/// An etcd that stops responding while its connections stay open.
#[tokio::test]
async fn a_silent_etcd_is_noticed() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    client.put(key("user", 1), value("user", 1, 10), None).await.unwrap();
    let proxy = Proxy::start(&etcd.address()).await;
    let registrar = Registrar::start(Options { request_timeout: SECOND, ..Options::new([proxy.endpoint()]) }).unwrap();
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    proxy.set(Mode::Blackhole);
    wait_for("the silence is noticed", 2 * SOON, async || view.error().is_some()).await;
    client.put(key("user", 2), value("user", 2, 20), None).await.unwrap();
    assert_eq!(seen(&view), BTreeMap::from([(1, 10)]));
    proxy.set(Mode::Pass);
    sees(&view, [(1, 10), (2, 20)]).await;
}

/// Nodes that left while the view was cut off are removed, even if no known node is left: etcd has the history.
#[tokio::test(start_paused = true)]
async fn a_view_accepts_that_all_nodes_left_while_it_was_cut_off() {
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    put(&world, 1, 10).await;
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    view.ready().await.unwrap();
    etcd.stop();
    wait_for("the view is in trouble", SOON, async || view.error().is_some()).await;
    etcd.delete(&key("user", 1));
    etcd.put(&key("user", 2), &value("user", 2, 20), 0);
    etcd.start();
    wait_for("something is new", SOON, async || seen(&view).contains_key(&2)).await;
    assert_eq!(seen(&view), BTreeMap::from([(2, 20)]));
}

/// With any network faults, a view never has a node that never existed, and converges to the registered nodes.
#[tokio::test(start_paused = true)]
async fn a_view_converges_through_any_faults() {
    for seed in 0..300 {
        through_faults(seed).await;
    }
}

async fn through_faults(seed: u64) {
    let etcd = SimEtcd::new(seed);
    let world = World::Simulated(etcd.clone());
    let registrar = world.registrar("watcher").await;
    let view = view_of(&registrar, "user").await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ever = BTreeSet::new();
    let mut compacted = 0;
    for _ in 0..60 {
        let port = rng.u16(1..=6);
        match rng.u8(..12) {
            0..=4 => {
                let weight = rng.u32(1..=100);
                ever.insert((port, weight));
                etcd.put(&key("user", port), &value("user", port, weight), 0);
            }
            5 | 6 => drop(etcd.delete(&key("user", port))),
            7 => etcd.set_faults("watcher", FaultPlan::all(0.1)),
            8 => etcd.cut("watcher"),
            9 if etcd.revision() > compacted => {
                compacted = etcd.revision();
                etcd.compact(compacted);
            }
            9 | 10 => etcd.blackhole("watcher"),
            _ => {
                let keep_data = rng.bool();
                etcd.restart(keep_data);
                compacted = if keep_data { compacted } else { 0 };
            }
        }
        sleep(Duration::from_millis(rng.u64(..2000))).await;
        assert!(seen(&view).iter().all(|(port, weight)| ever.contains(&(*port, *weight))), "seed {seed}");
        if rng.bool() {
            etcd.heal("watcher");
        }
    }
    etcd.heal("watcher");
    etcd.set_faults("watcher", FaultPlan::none());
    let stands = || -> BTreeMap<u16, u32> {
        let parse = |value: &str| value.rsplit('"').nth(1).unwrap().parse().unwrap();
        let port = |key: &str| key.rsplit(':').next().unwrap().parse().unwrap();
        etcd.keys("/user/")
            .iter()
            .map(|(key, entry)| (port(key), parse(std::str::from_utf8(&entry.value).unwrap())))
            .collect()
    };
    let what = format!("seed {seed}: the view is {:?}", stands());
    wait_for(&what, 60 * SECOND, async || seen(&view) == stands() && view.error().is_none()).await;
    let name: ServiceName = "user".parse().unwrap();
    assert_eq!(registrar.resolve(&name, &Version::default()).await.unwrap().len(), view.nodes().len());
}

/// A user without read permission gets an error at once, and not after a timeout.
#[tokio::test]
async fn a_refusal_is_an_error_at_once() {
    let etcd = EtcdOptions::default().user("root", "secret").start().await;
    let registrar = Registrar::start(Options::new([etcd.endpoint()])).unwrap();
    let view = view_of(&registrar, "user").await;
    let begun = Instant::now();
    let Err(Error::Unavailable(unavailable)) = view.ready().await else { panic!("it is read") };
    assert!(unavailable.is_denied(), "{unavailable}");
    assert!(begun.elapsed() < 3 * SECOND);
}
