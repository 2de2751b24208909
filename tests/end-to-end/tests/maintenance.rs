//! Maintenance of a running host: services are drained and resumed, weighed, and described.

use std::{fs, path::Path};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{WEIGHT, config, free_address, greeter, plain, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// A host with these services, each at an address that stays the same when the service starts again.
async fn host(world: &World, services: impl IntoIterator<Item = Value>) -> Host {
    let services = services.into_iter().map(|service| with(service, json!({ "listen": free_address() })));
    Host::ready(&with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

async fn leasehold(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-maintenance-").expect("a temporary directory");
    Program::spawn(Path::new(&paths::leasehold()), arguments, folder.path()).ends().await
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {ended:?}"))
}

/// The published weight under a key.
async fn weight(world: &World, key: &str) -> Option<u32> {
    let value: Value = serde_json::from_str(&world.get(key).await?.value).expect("a value is JSON");
    value["weight"].as_str()?.parse().ok()
}

fn sha256(path: &Path) -> String {
    let ended = std::process::Command::new("sha256sum").arg(path).output().expect("sha256sum can be started");
    String::from_utf8_lossy(&ended.stdout).split(' ').next().expect("a digest").to_owned()
}

#[tokio::test]
async fn maintenance_a_drained_service_survives_a_reload_and_is_resumed() {
    let world = World::real().await;
    let host = host(&world, [plain("plain"), greeter()]).await;
    let (admin, addr) = (host.admin(), host.addr("plain"));
    let keys = [format!("/plain/{addr}"), format!("/greeter/v1/{}", host.addr("greeter"))];
    assert_eq!(leasehold(&["drain", "plain", "--admin", &admin]).await.code, Some(0));
    assert_eq!(world.get(&keys[0]).await, None);
    assert!(TcpStream::connect(&addr).await.is_err(), "it listens still");
    assert_eq!(get(&host.url("greeter")).await.body, "hello\n", "the other service goes on");

    let all = leasehold(&["reload", "--admin", &admin]).await;
    assert_eq!((all.code, all.stdout.as_str()), (Some(0), "2 services are as configured\n"), "{all:?}");
    host.signal("HUP");
    let named = leasehold(&["reload", "plain", "--admin", &admin]).await;
    assert_eq!(named.code, Some(1), "{named:?}");
    assert_eq!(world.get(&keys[0]).await, None, "it stays drained");

    let resumed = leasehold(&["resume", "plain", "--admin", &admin]).await;
    assert_eq!(
        (resumed.code, resumed.stdout.as_str()),
        (Some(0), &*format!("plain on {addr} is served again\n")),
        "{resumed:?}"
    );
    world.stands(&keys[0]).await;
    world.stands(&keys[1]).await;
    assert_eq!(get(&format!("http://{addr}/")).await.body, "hello\n");
    assert_eq!(get(&format!("{admin}readyz")).await.body, "ready\n");
    // It is served already, which is no error.
    let again = leasehold(&["resume", "plain", "--admin", &admin, "--json"]).await;
    assert_eq!((again.code, &json(&again)[0]["resumed"]), (Some(0), &json!(true)), "{again:?}");
    assert_eq!(leasehold(&["drain", "plain", "--admin", &admin]).await.code, Some(0), "it can be drained again");
    assert_eq!(leasehold(&["resume", "plain", "--admin", &admin]).await.code, Some(0));
    world.stands(&keys[0]).await;
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!((world.count().await, world.leases().await.len()), (0, 0));
}

#[tokio::test]
async fn maintenance_a_service_that_cannot_be_resumed_is_tried_again() {
    let world = World::real().await;
    let required = with(plain("plain"), json!({ "required": true }));
    let host = host(&world, [required, greeter()]).await;
    let (admin, addr) = (host.admin(), host.addr("plain"));
    assert_eq!(leasehold(&["drain", "plain", "--admin", &admin]).await.code, Some(0));
    let taken = TcpListener::bind(&addr).await.expect("the port is free");
    let failed = leasehold(&["resume", "plain", "--admin", &admin]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("does not start, and is tried again: plain: cannot listen on"), "{failed:?}");
    assert_eq!(get(&host.url("greeter")).await.body, "hello\n", "the host goes on");
    drop(taken);
    wait_for("it is started after all", SOON, async || get(&format!("{admin}readyz")).await.status == 200).await;
    let unknown = leasehold(&["resume", "plane", "--admin", &admin]).await;
    assert_eq!((unknown.code, unknown.stderr.contains("no service is named plane; there is plain")), (Some(64), true));
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn maintenance_a_resumed_service_runs_the_present_component_and_a_component_registers_itself_again() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-maintenance-").expect("a temporary directory");
    let file = folder.path().join("component.wasm");
    fs::copy(paths::component("greeter"), &file).expect("it was built");
    let host = host(&world, [with(greeter(), json!({ "component": file }))]).await;
    let (admin, addr) = (host.admin(), host.addr("greeter"));
    let digest =
        async || get(&format!("{admin}status/greeter")).await.json()["services"][0]["component_sha256"].clone();
    assert_eq!(digest().await, sha256(&file));
    assert_eq!(leasehold(&["drain", "greeter", "--admin", &admin]).await.code, Some(0));
    assert_eq!(world.count().await, 0);
    fs::copy(paths::component("hostile"), folder.path().join("fresh")).expect("it was built");
    fs::rename(folder.path().join("fresh"), &file).expect("the directory is our own");
    assert_eq!(leasehold(&["resume", "greeter", "--admin", &admin]).await.code, Some(0));
    assert_eq!(digest().await, sha256(&file));
    assert_eq!(get(&format!("http://{addr}/")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn maintenance_the_weight_of_an_operator_stays_until_it_is_given_up() {
    let world = World::real().await;
    let off = with(plain("off"), json!({ "register": "off" }));
    let host = host(&world, [plain("plain"), greeter(), off]).await;
    let admin = host.admin();
    let keys = [format!("/plain/{}", host.addr("plain")), format!("/greeter/v1/{}", host.addr("greeter"))];
    let becomes = async |key: &str, expected: u32| {
        wait_for(&format!("{key} has the weight {expected}"), SOON, async || {
            weight(&world, key).await == Some(expected)
        })
        .await;
    };
    for (name, key) in ["plain", "greeter"].into_iter().zip(&keys) {
        becomes(key, WEIGHT).await;
        let set = leasehold(&["weight", name, "10", "--admin", &admin]).await;
        let expected = format!("{name} on {} has the weight 10, published within a second\n", host.addr(name));
        assert_eq!((set.code, set.stdout), (Some(0), expected), "{}", set.stderr);
        becomes(key, 10).await;
        assert_eq!(leasehold(&["reload", name, "--admin", &admin]).await.code, Some(0));
        assert_eq!(weight(&world, key).await, Some(10), "a reload leaves it alone");
        assert_eq!(leasehold(&["drain", name, "--admin", &admin]).await.code, Some(0));
        assert_eq!(leasehold(&["resume", name, "--admin", &admin]).await.code, Some(0));
        assert_eq!(weight(&world, key).await, Some(10), "a drained and resumed service has it from the first write");
        let status = get(&format!("{admin}status/{name}")).await.json();
        assert_eq!(status["services"][0]["weight"], 10);
        let given_up = leasehold(&["weight", name, "auto", "--admin", &admin, "--json"]).await;
        assert_eq!((given_up.code, &json(&given_up)[0]["weight"]), (Some(0), &Value::Null), "{given_up:?}");
        becomes(key, WEIGHT).await;
    }
    for (arguments, code, said) in [
        (["weight", "plain", "0"], 64, "must be 1 to 100, or auto, not \"0\""),
        (["weight", "plain", "much"], 64, "must be 1 to 100, or auto, not \"much\""),
        (["weight", "plane", "5"], 64, "no service is named plane"),
        (["weight", "off", "5"], 1, "off is not registered, and so has no weight"),
    ] {
        let ended = leasehold(&[&arguments[..], &["--admin", &admin]].concat()).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(said) && ended.stderr.lines().count() == 1, "{ended:?}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn maintenance_status_shows_what_runs_and_why_something_is_not_ready() {
    let world = World::real().await;
    let missing = with(plain("missing"), json!({ "component": "/does/not/exist.wasm" }));
    let changes = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let mut host = Host::spawn(&with(config(&world, [greeter(), missing]), changes), &[]);
    host.says("the host is ready, without missing").await;
    let admin = host.admin();
    assert_eq!(get(&host.url("greeter")).await.status, 200);
    let all = leasehold(&["status", "--admin", &admin, "--json"]).await;
    let status = json(&all);
    assert_eq!((&status["version"], &status["phase"]), (&json!("0.1.0"), &json!("running")), "{status}");
    assert_eq!(status["configuration"], host.file().to_str().expect("a plain name"));
    let row = &status["services"][0];
    let key = format!("/greeter/v1/{}", host.addr("greeter"));
    assert_eq!((&row["readiness"], &row["registrations"][0]["keys"]), (&json!("ready"), &json!([key])), "{row}");
    assert_eq!(row["component_sha256"], sha256(&paths::component("greeter")));
    let lease = format!("{:x}", world.stands(&key).await.lease);
    let registration = &row["registrations"][0];
    assert_eq!((&registration["lease"], &registration["leases"]), (&json!(lease), &json!([lease])), "{row}");
    assert_eq!((&row["requests"]["all"], &row["requests"]["failed"]), (&json!(1), &json!(0)), "{row}");
    assert!(row["since"].as_str().is_some_and(|since| since.ends_with('Z') && since.len() == 20), "{row}");
    let why = status["services"][1]["why"].as_str().expect("it is not ready");
    assert!(why.starts_with("it does not start: cannot read /does/not/exist.wasm"), "{why}");

    let text = leasehold(&["status", "--admin", &admin]).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    let has =
        ["configuration: /", "SERVICE ", " LEASE ", &lease, "greeter ", "missing: it does not start: cannot read"];
    assert!(has.into_iter().all(|part| text.stdout.contains(part)), "{}", text.stdout);
    let one = leasehold(&["status", "greeter", "--admin", &admin]).await;
    let digest = sha256(&paths::component("greeter"));
    assert!(one.stdout.contains(&format!("\n  lease       {lease}\n")), "{one:?}");
    let down = leasehold(&["status", "missing", "--admin", &admin]).await;
    assert!(down.stdout.contains("\n  listen      127.0.0.1:0\n") && !down.stdout.contains("  lease"), "{down:?}");
    assert!(one.stdout.contains(&digest) && one.stdout.contains(&key) && !one.stdout.contains("missing"), "{one:?}");
    let unknown = leasehold(&["status", "plane", "--admin", &admin]).await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (Some(64), ""), "{unknown:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn maintenance_commands_find_the_host_by_its_configuration() {
    let world = World::real().await;
    let services = [with(plain("plain"), json!({ "listen": free_address() }))];
    let host = Host::ready(&with(config(&world, services), json!({ "admin": { "listen": free_address() } }))).await;
    let file = host.file().display().to_string();
    for arguments in
        [&["status"][..], &["weight", "plain", "5"], &["reload"], &["drain", "plain"], &["resume", "plain"]]
    {
        let ended = leasehold(&[arguments, &["--config", &file]].concat()).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    }
    let both = leasehold(&["status", "--config", &file, "--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(both.code, Some(64), "{both:?}");
    let nowhere = leasehold(&["status", "--config", "/does/not/exist.yaml"]).await;
    assert!(nowhere.code == Some(64) && nowhere.stderr.contains("cannot read /does/not/exist.yaml"), "{nowhere:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_probe_is_an_exit_code_and_one_line() {
    let world = World::real().await;
    let host = host(&world, [plain("plain")]).await;
    let admin = host.admin();
    let probe = async |condition: &str| leasehold(&["status", "--probe", condition, "--admin", &admin]).await;
    for (condition, line) in [("live", "ok\n"), ("serving", "ready\n"), ("ready", "ready\n")] {
        let ended = probe(condition).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), line), "{condition}: {ended:?}");
    }
    assert_eq!(leasehold(&["drain", "plain", "--admin", &admin]).await.code, Some(0));
    assert_eq!(probe("live").await.code, Some(0));
    for condition in ["serving", "ready"] {
        let ended = probe(condition).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{condition}: {ended:?}");
        assert!(ended.stderr.starts_with("leasehold: not ready plain: "), "{condition}: {ended:?}");
    }
    assert_eq!(probe("well").await.code, Some(64));
    let both = leasehold(&["status", "--probe", "live", "--json", "--admin", &admin]).await;
    assert_eq!(both.code, Some(64), "{both:?}");
    assert_eq!(host.stop().await.code, Some(0));
    let silent = probe("live").await;
    assert!(silent.code == Some(1) && silent.stderr.contains("no host answers at "), "{silent:?}");
}

#[tokio::test]
async fn a_host_that_starts_without_etcd_is_live_and_not_ready_until_etcd_responds() {
    let mut world = World::real().await;
    world.kill();
    let site = with(config(&world, [plain("plain")]), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    let mut host = Host::spawn(&site, &[]);
    host.says("waiting for etcd").await;
    host.says("the admin endpoint listens").await;
    let page = async |path: &str| get(&format!("{}{path}", host.admin())).await.status;
    // A probe that restarts a host must not restart this one, and a rollout waits for it.
    assert_eq!((page("healthz").await, page("readyz?etcd=optional").await), (200, 503));
    world.restart(true).await;
    wait_for("it is ready", SOON, async || page("readyz?etcd=optional").await == 200).await;
    assert_eq!(host.stop().await.code, Some(0));
}
