//! `leasehold ls`.

use leasehold_end_to_end::{
    Host, Program,
    config::{endpoint, greeter, plain},
    paths,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::{leasehold, one_sentence};

#[tokio::test]
async fn an_unknown_name_is_reported_with_similar_ones() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let none = leasehold(["ls", "user", "--etcd", &etcd]).await;
    assert!(none.stderr.contains("no service is registered as user; there is none at all"), "{none:?}");
    for name in ["greeter", "ledger"] {
        let value = json!({ "name": name, "addr": "h:1", "version": "", "weight": "9" }).to_string();
        world.put(&format!("/{name}/h:1"), &value, 0).await;
    }
    let near = leasehold(["ls", "greter", "--etcd", &etcd]).await;
    assert_eq!(near.code, Some(0));
    assert!(near.stderr.contains("no service is registered as greter; there is greeter"), "{near:?}");
    let far = leasehold(["ls", "zzz", "--etcd", &etcd]).await;
    assert!(far.stderr.contains("no service is registered as zzz; there are 2 others"), "{far:?}");
}

#[tokio::test]
async fn ls_lists_registered_nodes() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let empty = leasehold(["ls", "--etcd", &etcd]).await;
    assert_eq!(
        (empty.code, empty.stdout.as_str()),
        (Some(0), "NAME  VERSION  ADDR  WEIGHT  STATE  LEASE  TTL\n0 nodes of 0 services\n")
    );

    let host = Host::of(&world, [greeter(), plain("plain")]).await;
    world.put("/stranger", "not a node", 0).await;
    let ownerless = json!({ "name": "ownerless", "addr": "h:1", "version": "", "weight": "9" }).to_string();
    world.put("/ownerless/h:1", &ownerless, 0).await;
    let lease = format!("{:x}", world.get(&format!("/greeter/v1/{}", host.addr("greeter"))).await.unwrap().lease);
    let table = leasehold(["ls", "--etcd", &etcd]).await;
    assert_eq!(table.code, Some(0), "{table:?}");
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "VERSION", "ADDR", "WEIGHT", "STATE", "LEASE", "TTL"]);
    assert_eq!(rows[1][..6], ["greeter", "v1", &host.addr("greeter"), "73", "ok", &lease]);
    assert_eq!(rows[2], ["ownerless", "-", "h:1", "9", "no-lease", "-", "-"]);
    assert_eq!(rows[3][..5], ["plain", "-", &host.addr("plain"), "73", "ok"]);
    assert_eq!(rows.len(), 5);
    assert!(table.stdout.ends_with("3 nodes of 3 services: 2 ok, 1 no-lease\n"), "{table:?}");
    assert!(table.stderr.contains("1 key is not a node; leasehold doctor says why"), "{table:?}");

    let one = leasehold(["ls", "plain", "--etcd", &etcd]).await;
    assert_eq!(one.stdout.lines().count(), 3, "{one:?}");
    let json = leasehold(["ls", "greeter", "--json", "--etcd", &etcd]).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let row = &json[0];
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(row["key"], format!("/greeter/v1/{}", host.addr("greeter")));
    assert_eq!((&row["name"], &row["version"], &row["weight"]), (&json!("greeter"), &json!("v1"), &json!(73)));
    assert_eq!(row["lease"], lease);
    assert!((1..=10).contains(&row["ttl_seconds"].as_u64().unwrap()) && row["state"] == "ok", "{row}");
    let none = leasehold(["ls", "nobody", "--json", "--etcd", &etcd]).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), "[]\n"));
}

#[tokio::test]
async fn ls_filters_and_sorts() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let lease = world.grant(60).await;
    for (name, version, addr, lease) in [
        ("user", "v1", "10.0.0.10:80", lease),
        ("user", "v2", "10.0.0.9:80", lease),
        ("user", "v10", "10.0.0.8:80", 0),
        ("user-cache", "", "h:1", 0),
        ("order", "v1", "h:2", lease),
    ] {
        let value = json!({ "name": name, "addr": addr, "version": version, "weight": "9" }).to_string();
        let slash = if version.is_empty() { "" } else { "/" };
        world.put(&format!("/{name}/{version}{slash}{addr}"), &value, lease).await;
    }
    let listed = async |arguments: &[&str]| {
        let all = ["ls", "--json", "--etcd", &etcd].into_iter().chain(arguments.iter().copied());
        let ended = Program::spawn(&paths::leasehold(), all, TempDir::new().unwrap().path()).ends().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let rows: Value = serde_json::from_str(&ended.stdout).unwrap();
        let addrs = rows.as_array().unwrap().iter().map(|row| row["addr"].as_str().unwrap().to_owned());
        (addrs.collect::<Vec<_>>().join(" "), ended.stderr)
    };
    for (arguments, expected) in [
        (&[][..], "h:2 10.0.0.10:80 10.0.0.9:80 10.0.0.8:80 h:1"),
        (&["user"], "10.0.0.10:80 10.0.0.9:80 10.0.0.8:80"),
        (&["user*"], "10.0.0.10:80 10.0.0.9:80 10.0.0.8:80 h:1"),
        (&["{order,user-*}"], "h:2 h:1"),
        (&["--version", "v1"], "h:2 10.0.0.10:80"),
        (&["user", "--version", "v1*", "--state", "no-lease"], "10.0.0.8:80"),
        (&["--state", "no-lease,lease-gone"], "10.0.0.8:80 h:1"),
    ] {
        assert_eq!(listed(arguments).await, (expected.to_owned(), String::new()), "{arguments:?}");
    }
    for (arguments, sentence) in [
        (&["users*"][..], "no service matches users*; there is user"),
        (&["user", "--version", "v3"], "3 nodes are of another version or state"),
    ] {
        let (rows, said) = listed(arguments).await;
        assert!(rows.is_empty() && said.contains(sentence), "{said}");
    }
    one_sentence(&leasehold(["ls", "user["]).await, 64, "NAME: \"user[\" is no pattern: unclosed character class");
    let state = leasehold(["ls", "--state", "good"]).await;
    assert_eq!(state.code, Some(64), "{state:?}");
    assert!(state.stderr.contains("possible values: ok, unknown, expiring, no-lease, lease-gone"), "{state:?}");
}
