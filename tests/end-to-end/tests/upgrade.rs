//! Upgrade of a running host: a new process takes over its listeners and its keys.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use etcd_client::{EventType, WatchOptions};
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, greeter, hostile, plain, program, with},
    follower::{Call, Follower},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Requests before and after the upgrade.
const ANSWERS: usize = 50;

async fn leasehold(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-upgrade-").expect("a temporary directory");
    Program::spawn(Path::new(&paths::leasehold()), arguments, folder.path()).ends().await
}

async fn host(world: &World, services: impl IntoIterator<Item = Value>) -> Host {
    Host::ready(&with(config(world, services), json!({ "admin": { "listen": free_address() } }))).await
}

/// The process that answers at an admin endpoint.
async fn pid(admin: &str) -> u64 {
    get(&format!("{admin}status")).await.json()["pid"].as_u64().unwrap_or_default()
}

/// The address, the component and the beginning of the phase of the service `drained`, as `status` has them.
async fn shown_of_drained(admin: &str) -> Vec<Value> {
    let status = get(&format!("{admin}status/drained")).await.json();
    let row = &status["services"][0];
    assert_eq!(row["component_sha256"].as_str().map(str::len), Some(64), "{row}");
    ["url", "listen", "component_sha256", "component_since", "since"].map(|key| row[key].clone()).into()
}

/// Ends a successor, which is nobody's child any more, and waits until it is gone.
async fn end(pid: u64) {
    let pid = pid.to_string();
    let signal =
        |name: &str| std::process::Command::new("kill").args([name, &pid]).output().expect("kill can be started");
    assert!(signal("-TERM").status.success());
    wait_for("the successor ends", SOON, async || !signal("-0").status.success()).await;
}

/// Counts the deletions of keys below `/`, until it is stopped.
async fn deletions(world: &World) -> (JoinHandle<()>, Arc<AtomicUsize>) {
    let mut client = world.client().await;
    let mut watch = client.watch("/", Some(WatchOptions::new().with_prefix())).await.expect("etcd answers");
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let task = tokio::spawn(async move {
        let _client = client;
        while let Ok(Some(answer)) = watch.message().await {
            let gone = answer.events().iter().filter(|event| event.event_type() == EventType::Delete).count();
            counted.fetch_add(gone, SeqCst);
        }
    });
    (task, count)
}

#[tokio::test]
async fn upgrade_fails_no_request_and_deletes_no_key() {
    let world = World::real().await;
    let mut host = host(&world, [plain("plain"), greeter(), plain("drained")]).await;
    let admin = host.admin();
    let keys = [format!("/plain/{}", host.addr("plain")), format!("/greeter/v1/{}", host.addr("greeter"))];
    assert_eq!(leasehold(&["drain", "drained", "--admin", &admin]).await.code, Some(0));
    let drained = shown_of_drained(&admin).await;
    assert!(drained[0].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")), "{drained:?}");
    assert_eq!(leasehold(&["weight", "plain", "9", "--admin", &admin]).await.code, Some(0));
    let mut followers =
        [Follower::of(&world, "plain", Duration::ZERO).await, Follower::of(&world, "greeter", Duration::ZERO).await];
    for follower in &mut followers {
        [Call::Http1, Call::Http1, Call::Http2].into_iter().for_each(|call| follower.calls(call));
    }
    world.key_is(&keys[0], "weighed", |found| found.is_some_and(|key| key.value.contains(r#""weight":"9""#))).await;
    let before = [world.stands(&keys[0]).await, world.stands(&keys[1]).await];
    let (watching, deleted) = deletions(&world).await;
    let former = pid(&admin).await;

    let upgraded = leasehold(&["upgrade", "--admin", &admin]).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    assert!(upgraded.stdout.ends_with("serves; the former one drains\n"), "{upgraded:?}");
    host.says("another process serves from now on, and this one ends").await;
    host.says("the registration has ended: ").await;
    let taken: Vec<_> = host.log().into_iter().filter(|line| line["event"] == "took_over").collect();
    assert!(taken.is_empty(), "a successor is no other host: {taken:?}");
    assert_eq!(host.exits().await, Some(0));
    for follower in &followers {
        let so_far = follower.answered();
        wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
    }
    for follower in followers {
        let tally = follower.ends().await;
        assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    }
    assert_eq!(deleted.load(SeqCst), 0, "a key was deleted");
    watching.abort();
    let after = [world.stands(&keys[0]).await, world.stands(&keys[1]).await];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.created, &before.value), (after.created, &after.value), "the key stays");
        assert_ne!(before.lease, after.lease);
    }
    let status = get(&format!("{admin}status")).await.json();
    let successor = status["pid"].as_u64().expect("it has a number");
    assert_ne!(former, successor);
    let phases: Vec<_> = status["services"].as_array().unwrap().iter().map(|row| row["phase"].clone()).collect();
    assert_eq!(phases, ["serving", "serving", "drained"]);
    assert_eq!(status["services"][0]["weight"], 9);
    assert_eq!(shown_of_drained(&admin).await, drained, "a drained service is shown as before");
    let table = leasehold(&["status", "--admin", &admin]).await.stdout;
    assert!(table.contains(drained[0].as_str().expect("a URL")), "{table}");
    assert_eq!(leasehold(&["resume", "drained", "--admin", &admin]).await.code, Some(0));
    // A successor is a host like any other.
    let again = leasehold(&["upgrade", "--admin", &admin, "--json"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    wait_for("the next one answers", SOON, async || ![former, successor, 0].contains(&pid(&admin).await)).await;
    end(pid(&admin).await).await;
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn upgrade_that_does_not_come_up_leaves_the_host_as_it_was() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-upgrade-").expect("a temporary directory");
    let file = folder.path().join("component.wasm");
    fs::copy(paths::component("greeter"), &file).expect("it was built");
    let host = host(&world, [plain("plain"), with(greeter(), json!({ "component": file }))]).await;
    let admin = host.admin();
    let keys = [format!("/plain/{}", host.addr("plain")), format!("/greeter/v1/{}", host.addr("greeter"))];
    let (watching, deleted) = deletions(&world).await;
    let mut follower = Follower::of(&world, "plain", Duration::ZERO).await;
    [Call::Http1, Call::Http2].into_iter().for_each(|call| follower.calls(call));
    // One service does not start in the new process, and the other one does.
    fs::write(&file, "no component").expect("the directory is our own");
    let failed = leasehold(&["upgrade", "--admin", &admin]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("the new process does not serve greeter: "), "{failed:?}");
    // The configuration is wrong.
    let good = fs::read(host.file()).expect("it was written");
    fs::write(host.file(), "services: [").expect("the directory is our own");
    let failed = leasehold(&["upgrade", "--admin", &admin]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let expected = format!("the new process does not come up: {}:1:", host.file().display());
    assert!(failed.stderr.contains(&expected), "{failed:?}");
    fs::write(host.file(), good).expect("the directory is our own");

    assert_eq!(pid(&admin).await, u64::from(host.pid()));
    for key in &keys {
        world.stands(key).await;
    }
    wait_for("every key is held again", SOON, async || get(&format!("{admin}readyz")).await.body == "ready\n").await;
    let tally = follower.ends().await;
    assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    assert_eq!(deleted.load(SeqCst), 0, "a key was deleted");
    watching.abort();
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn upgrade_whose_component_registers_and_then_fails_takes_no_key_away() {
    let world = World::real().await;
    let started = |act: &str| json!({ "config": { "start": act }, "limits": { "start_timeout": "3s" } });
    let addr = free_address();
    let service = with(with(hostile("hostile"), started("register")), json!({ "listen": addr }));
    let host = host(&world, [service, plain("plain")]).await;
    let (admin, key) = (host.admin(), format!("/hostile/{addr}"));
    let before = world.stands(&key).await;
    let (watching, deleted) = deletions(&world).await;
    let mut config: Value =
        serde_json::from_slice(&fs::read(host.file()).expect("it was written")).expect("it is JSON");
    for act in ["register-and-fail", "register-and-trap"] {
        config["services"][0] = with(config["services"][0].clone(), started(act));
        fs::write(host.file(), config.to_string()).expect("the directory is our own");
        let failed = leasehold(&["upgrade", "--admin", &admin]).await;
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.stderr.contains("the new process does not serve hostile: lifecycle.start"), "{failed:?}");
        wait_for("every key is held again", SOON, async || get(&format!("{admin}readyz")).await.body == "ready\n")
            .await;
    }
    assert_eq!(world.stands(&key).await.created, before.created);
    assert_eq!(get(&host.url("hostile")).await.status, 200);
    assert_eq!(deleted.load(SeqCst), 0, "a key was deleted");
    watching.abort();
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn upgrade_ends_with_a_host_that_is_stopped_meanwhile() {
    let world = World::real().await;
    let addr = free_address();
    let service = with(hostile("hostile"), json!({ "listen": addr, "register": "host" }));
    let mut host = host(&world, [service]).await;
    let admin = host.admin();
    let mut config: Value =
        serde_json::from_slice(&fs::read(host.file()).expect("it was written")).expect("it is JSON");
    config["services"][0]["config"]["start"] = json!("sleep");
    fs::write(host.file(), config.to_string()).expect("the directory is our own");
    let upgrading = tokio::spawn({
        let admin = admin.clone();
        async move { leasehold(&["upgrade", "--admin", &admin]).await }
    });
    // The new process says it: both have one log.
    host.says("sleeping").await;
    let refused = leasehold(&["drain", "hostile", "--admin", &admin]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the host is being upgraded"), "{refused:?}");
    assert_eq!(get(&format!("http://{addr}/")).await.body, "hostile\n");
    // The output ends, so the successor has ended as well.
    assert_eq!(host.stop().await.code, Some(0));
    assert_ne!(upgrading.await.expect("it does not panic").code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn upgrade_refuses_what_cannot_be_handed_over() {
    let world = World::real().await;
    let mut host = host(&world, [program("serve"), plain("plain")]).await;
    let admin = host.admin();
    let refused = leasehold(&["upgrade", "--admin", &admin]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("program: a program holds its own listener"), "{refused:?}");
    host.signal("USR2");
    host.says("SIGUSR2: program: a program holds its own listener").await;
    // A drained program is no obstacle.
    assert_eq!(leasehold(&["drain", "program", "--admin", &admin]).await.code, Some(0));
    host.signal("USR2");
    host.says("another process serves from now on, and this one ends").await;
    assert_eq!(host.exits().await, Some(0));
    assert_eq!(leasehold(&["resume", "program", "--admin", &admin]).await.code, Some(0));
    end(pid(&admin).await).await;
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn upgrade_keeps_the_socket_of_the_admin_endpoint() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-upgrade-").expect("a temporary directory");
    let socket = format!("unix:{}/admin.sock", folder.path().display());
    let config = with(config(&world, [plain("plain")]), json!({ "admin": { "listen": socket } }));
    let mut host = Host::ready(&config).await;
    let upgraded = leasehold(&["upgrade", "--admin", &socket, "--json"]).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let upgraded: Value = serde_json::from_str(&upgraded.stdout).expect("it is JSON");
    host.says("another process serves from now on, and this one ends").await;
    assert_eq!(host.exits().await, Some(0));
    let status = leasehold(&["status", "--admin", &socket, "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).expect("it is JSON");
    assert_eq!(status["pid"], upgraded["pid"]);
    end(status["pid"].as_u64().expect("it has a number")).await;
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0, "the socket is removed");
}

/// Sockets as systemd holds them: open before the first host, and after the last.
fn sockets(number: usize) -> Vec<TcpListener> {
    (0..number).map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports")).collect()
}

/// A host with duplicates of these sockets.
async fn activated(config: &Value, sockets: &[TcpListener]) -> Host {
    let passed = sockets.iter().map(|socket| OwnedFd::from(socket.try_clone().expect("a socket can be duplicated")));
    Host::spawn_activated(config, passed.collect())
}

#[tokio::test]
async fn sockets_of_systemd_are_served_by_one_host_after_the_other() {
    let world = World::real().await;
    let held = sockets(3);
    let [addr, admin, unused] = [0, 1, 2].map(|index: usize| held[index].local_addr().unwrap().to_string());
    let config = with(
        config(&world, [with(plain("plain"), json!({ "listen": addr })), plain("other")]),
        json!({ "admin": { "listen": admin } }),
    );
    let mut host = activated(&config, &held).await;
    host.says(&format!("systemd has opened a socket at {unused}, and no `listen` says {unused}")).await;
    host.event("ready").await;
    let (url, admin) = (format!("http://{addr}/"), format!("http://{admin}/"));
    assert_eq!(get(&url).await.status, 200);
    assert_eq!(pid(&admin).await, u64::from(host.pid()));
    assert_eq!(host.stop().await.code, Some(0));

    // Between two hosts a client waits, and is not refused.
    let waiting = tokio::spawn({
        let url = url.clone();
        async move { get(&url).await.status }
    });
    let mut host = activated(&config, &held).await;
    host.event("ready").await;
    assert_eq!(waiting.await.unwrap(), 200);

    // A service that goes and comes again has the socket again, also in a successor.
    let written: Value = serde_json::from_slice(&fs::read(host.file()).expect("it was written")).expect("it is JSON");
    let mut without = written.clone();
    without["services"].as_array_mut().unwrap().remove(0);
    let goes_and_comes = async |file: &Path| {
        for config in [&without, &written] {
            fs::write(file, config.to_string()).expect("the directory is our own");
            let reloaded = leasehold(&["reload", "--admin", &admin]).await;
            assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        }
        assert_eq!(get(&url).await.status, 200);
    };
    goes_and_comes(&host.file()).await;
    host.says(&format!("systemd has opened a socket at {addr}, and no `listen` says {addr}")).await;
    let upgraded = leasehold(&["upgrade", "--admin", &admin]).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    wait_for("the successor answers", SOON, async || ![u64::from(host.pid()), 0].contains(&pid(&admin).await)).await;
    goes_and_comes(&host.file()).await;
    end(pid(&admin).await).await;
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn a_program_is_refused_a_socket_of_systemd() {
    let world = World::real().await;
    let held = sockets(1);
    let addr = held[0].local_addr().unwrap().to_string();
    let program = with(program("serve"), json!({ "listen": addr, "args": [addr, "serve"] }));
    let host = activated(&config(&world, [program]), &held).await;
    let ended = host.ends().await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("and a program opens its own listener"), "{ended:?}");
}

#[tokio::test]
async fn a_socket_of_systemd_that_is_no_listener_is_not_used() {
    let world = World::real().await;
    let held = sockets(1);
    let addr = held[0].local_addr().unwrap();
    let client = TcpStream::connect(addr).expect("it listens");
    let (connection, _) = held[0].accept().expect("a client has connected");
    let file = fs::File::open("/dev/null").expect("it is there");
    let passed = vec![OwnedFd::from(file), OwnedFd::from(connection), OwnedFd::from(held[0].try_clone().unwrap())];
    let config = config(&world, [with(plain("plain"), json!({ "listen": addr.to_string() }))]);
    let mut host = Host::spawn_activated(&config, passed);
    for index in [0, 1] {
        host.says(&format!("socket {index} of systemd is no TCP listener, and is not used")).await;
    }
    host.event("ready").await;
    assert_eq!(get(&host.url("plain")).await.status, 200);
    drop(client);
    assert_eq!(host.stop().await.code, Some(0));
}
