//! Reload of the configuration: services come, change, move and go while the host runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::GetOptions;
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, greeter, hostile, plain, program, with},
    follower::{Call, Follower},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, Standing, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Requests between two reloads.
const ANSWERS: usize = 50;

/// A host, and its configuration as it is written.
struct Site {
    host: Host,
    config: Value,
}

impl Site {
    async fn of(world: &World, services: impl IntoIterator<Item = Value>) -> Self {
        let services = services.into_iter().map(at_an_address);
        let config = with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }));
        let host = Host::ready(&config).await;
        // As the host has written it: with the token of the tests.
        let config =
            serde_json::from_str(&fs::read_to_string(host.file()).expect("it was written")).expect("it is JSON");
        Self { host, config }
    }

    fn write(&self) {
        fs::write(self.host.file(), self.config.to_string()).expect("the directory is our own");
    }

    async fn leasehold(&self, arguments: &[&str]) -> Ended {
        let folder = TempDir::with_prefix("leasehold-reconfigure-").expect("a temporary directory");
        let admin = self.host.admin();
        let all = arguments.iter().copied().chain(["--admin", &admin]);
        Program::spawn(Path::new(&paths::leasehold()), all, folder.path()).ends().await
    }

    /// Changes the services of the file, and lets the host read it.
    async fn reload(&mut self, change: impl FnOnce(&mut Vec<Value>)) -> Ended {
        change(self.config["services"].as_array_mut().expect("services are a list"));
        self.write();
        self.leasehold(&["reload"]).await
    }

    /// The same with an expectation: every service is as configured.
    async fn reloads(&mut self, change: impl FnOnce(&mut Vec<Value>)) -> String {
        let ended = self.reload(change).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout
    }

    async fn status(&self) -> Value {
        get(&format!("{}services", self.host.admin())).await.json()
    }

    async fn end(self, world: &World) {
        let ended = self.host.stop().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!((world.count().await, world.leases().await.len()), (0, 0));
    }
}

/// A service with a listener that is known before it starts.
fn at_an_address(service: Value) -> Value {
    match service["listen"].as_str() {
        Some("127.0.0.1:0") => with(service, json!({ "listen": free_address() })),
        _ => service,
    }
}

fn listen(service: &Value) -> String {
    service["listen"].as_str().expect("an address").to_owned()
}

/// Prefix of the keys of a layout that carries metadata.
const KRATOS: &str = "/microservices/";

/// Keys below a prefix, with their creation and their values.
async fn under(world: &World, prefix: &str) -> Vec<(String, i64, String)> {
    let all = Some(GetOptions::new().with_prefix());
    let found = world.client().await.get(prefix, all).await.expect("etcd answers");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    found.kvs().iter().map(|key| (text(key.key()), key.create_revision(), text(key.value()))).collect()
}

async fn body(addr: &str) -> String {
    get(&format!("http://{addr}/")).await.body
}

#[tokio::test]
async fn reconfigure_services_come_change_and_go_without_a_failed_request() {
    let world = World::real().await;
    let mut site = Site::of(&world, [plain("a"), greeter(), plain("c")]).await;
    let services = site.config["services"].as_array().unwrap().clone();
    let keys = [format!("/a/{}", listen(&services[0])), format!("/greeter/v1/{}", listen(&services[1]))];
    let before = [world.stands(&keys[0]).await, world.stands(&keys[1]).await];
    let mut followers =
        [Follower::of(&world, "a", Duration::ZERO).await, Follower::of(&world, "greeter", Duration::ZERO).await];
    for follower in &mut followers {
        [Call::Http1, Call::Http1, Call::Http2].into_iter().for_each(|call| follower.calls(call));
    }

    let dry = {
        site.config["services"][0]["limits"] = json!({ "memory": "32MiB", "concurrency": 77 });
        site.write();
        site.leasehold(&["reload", "--dry-run"]).await
    };
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let expected = format!(
        "~ a on {}\n    limits.concurrency: absent -> 77\n    limits.memory: absent -> 32MiB\n\
         2 services stay as they are; this was a dry run\n",
        listen(&services[0])
    );
    assert_eq!(dry.stdout, expected);

    let added = at_an_address(plain("d"));
    let d = listen(&added);
    let shown = site
        .reloads(|services| {
            services[1]["config"]["greeting"] = json!("good day");
            services.remove(2);
            services.push(added);
        })
        .await;
    assert!(
        shown.contains(&format!("~ a on {}\n    limits.concurrency: absent -> 77\n", listen(&services[0]))),
        "{shown}"
    );
    assert!(shown.contains("    config.greeting: another value\n"), "no value of config is shown: {shown}");
    assert!(!shown.contains("good day"), "{shown}");
    assert!(shown.contains(&format!("+ d on {d}\n")), "{shown}");
    assert!(shown.contains(&format!("- c on {}\n", listen(&services[2]))), "{shown}");
    assert!(shown.ends_with("0 services stay as they are\n"), "{shown}");

    assert_eq!(body(&listen(&services[1])).await, "good day\n");
    assert_eq!(body(&d).await, "hello\n");
    world.stands(&format!("/d/{d}")).await;
    assert_eq!(world.get(&format!("/c/{}", listen(&services[2]))).await, None);
    assert!(TcpStream::connect(listen(&services[2])).await.is_err(), "it listens still");
    let names: Vec<_> = site.status().await.as_array().unwrap().iter().map(|row| row["service"].clone()).collect();
    assert_eq!(names, ["a", "greeter", "d"]);
    for follower in &followers {
        let so_far = follower.answered();
        wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
    }
    for follower in followers {
        let tally = follower.ends().await;
        assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    }
    assert_eq!(before, [world.stands(&keys[0]).await, world.stands(&keys[1]).await], "a key was written anew");
    let again = site.reloads(|_| ()).await;
    assert_eq!(again, "3 services are as configured\n");
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_metadata_version_and_layouts_change_in_place() {
    let world = World::real().await;
    let mut site = Site::of(&world, [plain("user")]).await;
    let addr = listen(&site.config["services"][0]);
    let seed = format!("/user/{addr}");
    let first = world.stands(&seed).await;

    // A further layout: the key of the first one stays.
    let shown = site.reloads(|services| services[0]["layout"] = json!(["seed", "kratos"])).await;
    assert!(shown.contains("layout: absent -> [seed, kratos]"), "{shown}");
    assert_eq!(world.stands(&seed).await.created, first.created, "it was deleted");
    let further = under(&world, KRATOS).await;
    assert_eq!((world.count().await, further.len()), (2, 1));
    // Metadata: the value changes, the keys stay.
    site.reloads(|services| services[0]["metadata"] = json!({ "zone": "b" })).await;
    let has_zone = async || under(&world, KRATOS).await.iter().any(|(_, _, value)| value.contains(r#""zone":"b""#));
    wait_for("the metadata is published", SOON, has_zone).await;
    assert_eq!(under(&world, KRATOS).await[0].1, further[0].1, "it was deleted");
    // Another layout with the same key: the value changes.
    assert!(world.stands(&seed).await.value.contains(r#""weight":"73""#));
    site.reloads(|services| services[0]["layout"] = json!(["grpc-todolist", "kratos"])).await;
    let is_number = |found: Option<&Standing>| found.is_some_and(|key| key.value.contains(r#""weight":73"#));
    world.key_is(&seed, "a number", is_number).await;
    assert_eq!(world.stands(&seed).await.created, first.created, "it was deleted");
    // Without the first layout: its key goes.
    site.reloads(|services| services[0]["layout"] = json!("kratos")).await;
    assert_eq!((world.get(&seed).await, world.count().await), (None, 1));
    assert_eq!(under(&world, KRATOS).await[0].1, further[0].1, "it was deleted");
    // Another version: another key, and no moment without one.
    site.reloads(|services| {
        services[0]["layout"] = json!("seed");
        services[0]["version"] = json!("v2");
    })
    .await;
    world.stands(&format!("/user/v2/{addr}")).await;
    assert_eq!(world.count().await, 1);
    assert_eq!(body(&addr).await, "hello\n");
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_listener_moves_without_a_failed_request() {
    let world = World::real().await;
    let mut site = Site::of(&world, [plain("user")]).await;
    let former = listen(&site.config["services"][0]);
    let mut follower = Follower::of(&world, "user", Duration::ZERO).await;
    [Call::Http1, Call::Http1, Call::Http2].into_iter().for_each(|call| follower.calls(call));
    assert_eq!(site.leasehold(&["weight", "user", "9"]).await.code, Some(0));
    let next = free_address();
    let shown = site.reloads(|services| services[0]["listen"] = json!(next)).await;
    assert!(shown.contains(&format!("~ user on {next}\n    listen: {former} -> {next}\n")), "{shown}");
    world.stands(&format!("/user/{next}")).await;
    assert_eq!(world.get(&format!("/user/{former}")).await, None);
    assert!(TcpStream::connect(&former).await.is_err(), "it listens still");
    let so_far = follower.answered();
    wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
    let tally = follower.ends().await;
    assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    assert_eq!(site.status().await[0]["weight"], 9, "the weight of the operator stays");
    assert_eq!(site.status().await.as_array().unwrap().len(), 1);
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_file_with_a_mistake_changes_nothing() {
    let world = World::real().await;
    let mut site = Site::of(&world, [plain("a"), plain("b")]).await;
    let before = site.status().await;
    let revision = world.revision().await;
    let good = site.config["services"].clone();
    let missing = PathBuf::from("/nowhere/user.wasm");
    for (mistake, message) in [
        (json!({ "limits": { "memory": "much" } }), "services.yaml"),
        (json!({ "limits": { "memroy": "1MiB" } }), "memory"),
        (json!({ "component": missing }), "cannot read /nowhere/user.wasm"),
        (json!({ "limits": { "memory": "1MiB" } }), "more than limits.memory of a lets it have"),
        (json!({ "tls": { "cert": "none.pem", "key": "none.key" } }), "none.pem"),
    ] {
        site.config["services"] = good.clone();
        let ended = site
            .reload(|services| {
                services[0] = with(services[0].clone(), mistake.clone());
                services[1]["metadata"] = json!({ "zone": "x" });
                services.push(at_an_address(plain("c")));
            })
            .await;
        assert_eq!(ended.code, Some(64), "{mistake}: {ended:?}");
        assert!(ended.stderr.contains(message), "{mistake}: {ended:?}");
    }
    site.config["services"] = good.clone();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("it is bound").to_string();
    let ended = site.reload(|services| services.push(with(plain("c"), json!({ "listen": addr })))).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains(&format!("c: cannot listen on {addr}")), "{ended:?}");

    assert_eq!(world.revision().await, revision, "etcd was written");
    let after = site.status().await;
    for (before, after) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        assert_eq!(before["component_since"], after["component_since"], "{after}");
    }
    assert_eq!(after.as_array().unwrap().len(), 2);
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_service_that_does_not_start_again_goes_on_as_it_was() {
    let world = World::real().await;
    let mut site = Site::of(&world, [greeter(), plain("b")]).await;
    let addr = listen(&site.config["services"][0]);
    let key = format!("/greeter/v1/{addr}");
    let before = world.stands(&key).await;
    let ended = site
        .reload(|services| {
            services[0]["config"]["start"] = json!("fail");
            services[0]["component"] = json!(paths::component("hostile"));
            services[1]["version"] = json!("v2");
        })
        .await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("failed: greeter: lifecycle.start"), "{ended:?}");
    assert_eq!(body(&addr).await, "hello\n");
    assert_eq!(world.stands(&key).await, before);
    world.stands(&format!("/b/v2/{}", listen(&site.config["services"][1]))).await;
    // What has failed is tried once more by the next reload, since it is not as configured.
    let again = site.reload(|_| ()).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_drained_service_stays_drained_and_is_resumed_as_configured() {
    let world = World::real().await;
    let mut site = Site::of(&world, [greeter(), plain("b")]).await;
    assert_eq!(site.leasehold(&["drain", "greeter"]).await.code, Some(0));
    let next = free_address();
    let shown = site
        .reloads(|services| {
            services[0]["config"]["greeting"] = json!("good day");
            services[0]["listen"] = json!(next);
        })
        .await;
    assert!(shown.contains(&format!("~ greeter on {next}, drained\n")), "{shown}");
    assert_eq!(world.count().await, 1);
    assert_eq!(site.leasehold(&["resume", "greeter"]).await.code, Some(0));
    assert_eq!(body(&next).await, "good day\n");
    world.stands(&format!("/greeter/v1/{next}")).await;
    assert_eq!(site.leasehold(&["drain", "greeter"]).await.code, Some(0));
    let shown = site.reloads(|services| drop(services.remove(0))).await;
    assert!(shown.contains(&format!("- greeter on {next}\n")), "{shown}");
    let unknown = site.leasehold(&["resume", "greeter"]).await;
    assert_eq!(unknown.code, Some(64), "{unknown:?}");
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_limits_beyond_the_pool_of_the_start_get_a_pool_of_their_own() {
    let world = World::real().await;
    let small = json!({ "limits": { "memory": "8MiB", "concurrency": 2, "instance_requests": 1000 } });
    let mut site = Site::of(&world, [with(hostile("h"), small)]).await;
    let addr = listen(&site.config["services"][0]);
    let fill = format!("http://{addr}/act/fill");
    assert_ne!(get(&fill).await.status, 200, "40 MB are more than 8 MiB");
    for (memory, concurrency) in [("64MiB", 20), ("48MiB", 40), ("8MiB", 2)] {
        site.reloads(|services| services[0]["limits"] = json!({ "memory": memory, "concurrency": concurrency })).await;
        assert_eq!(get(&fill).await.status == 200, memory != "8MiB", "{memory}");
    }
    let names: Vec<_> = (0..8).map(|n| format!("more-{n}")).collect();
    site.reloads(|services| services.extend(names.iter().map(|name| at_an_address(plain(name))))).await;
    for service in site.config["services"].as_array().unwrap().iter().skip(1) {
        assert_eq!(body(&listen(service)).await, "hello\n");
    }
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_by_signal_says_in_the_log_what_it_did() {
    let world = World::real().await;
    let mut site = Site::of(&world, [plain("a")]).await;
    site.config["services"][0]["metadata"] = json!({ "zone": "x" });
    site.config["registry"]["ttl"] = json!("7s");
    site.write();
    site.host.signal("HUP");
    let line = site.host.says("the configuration is reloaded").await;
    assert_eq!((&line["changed"], &line["failed"]), (&json!(1), &json!(0)), "{line}");
    let log = site.host.log();
    let restart = "these keys take effect with the next start of the host: registry.ttl";
    assert!(log.iter().any(|line| line["message"] == restart), "{log:#?}");
    fs::write(site.host.file(), "services: [").expect("the directory is our own");
    site.host.signal("HUP");
    let line = site.host.says("SIGHUP: ").await;
    assert!(line["message"].as_str().is_some(), "{line}");
    wait_for("the mistake is logged", SOON, async || {
        site.host.log().iter().any(|line| line["event"] == "not_reconfigured" && line["level"] == "ERROR")
    })
    .await;
    assert_eq!(body(&listen(&site.config["services"][0])).await, "hello\n");
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_program_runs_again_with_other_arguments_and_unchanged_programs_stay() {
    let world = World::real().await;
    let mut site = Site::of(&world, [program("serve"), plain("b")]).await;
    let (addr, since) = (listen(&site.config["services"][0]), site.status().await[0]["component_since"].clone());
    site.reloads(|services| services[1]["metadata"] = json!({ "zone": "x" })).await;
    assert_eq!(site.status().await[0]["component_since"], since, "an unchanged program is left alone");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    site.reloads(|services| services[0]["version"] = json!("v2")).await;
    world.stands(&format!("/program/v2/{addr}")).await;
    assert_eq!(world.get(&format!("/program/{addr}")).await, None);
    assert_ne!(site.status().await[0]["component_since"], since);
    site.end(&world).await;
}

#[tokio::test]
async fn reconfigure_a_service_that_waits_for_etcd_starts_as_configured_then() {
    let mut world = World::real().await;
    let free = free_address();
    let service = with(plain("user"), json!({ "listen": free }));
    let config = with(config(&world, [service]), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    world.kill();
    let mut host = Host::spawn(&config, &[]);
    host.says("the admin endpoint listens").await;
    let config = serde_json::from_str(&fs::read_to_string(host.file()).expect("it was written")).expect("it is JSON");
    let mut site = Site { host, config };
    wait_for("it waits for etcd", SOON, async || site.status().await[0]["phase"] == "starting").await;
    let next = free_address();
    site.reloads(|services| {
        services[0]["listen"] = json!(next);
        services[0]["version"] = json!("v2");
    })
    .await;
    world.restart(true).await;
    site.host.event("ready").await;
    world.stands(&format!("/user/v2/{next}")).await;
    assert_eq!((world.count().await, body(&next).await), (1, "hello\n".to_owned()));
    // A lease that etcd granted while it ended is nobody's, and ends by itself.
    assert_eq!(site.host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}
