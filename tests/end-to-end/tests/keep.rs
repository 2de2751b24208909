//! `leasehold keep`: processes of any kind, kept in etcd with their health and their end.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, plain, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, Standing, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const ADDR: &str = "10.0.0.7:8080";
const KEY: &str = "/user/10.0.0.7:8080";

/// A running `leasehold keep`, with a folder for its command.
struct Keeper {
    program: Program,
    folder: TempDir,
}

impl Keeper {
    fn start(world: &World, arguments: &[&str]) -> Self {
        Self::at(&world.options().endpoints[0], arguments)
    }

    fn at(etcd: &str, arguments: &[&str]) -> Self {
        let folder = TempDir::with_prefix("leasehold-keep-").expect("a temporary directory");
        let first = ["--name", "user", "--addr", ADDR, "--weight", "9", "--etcd", etcd];
        Self::within(folder, &[&first, arguments].concat())
    }

    /// Keeps the nodes of a file.
    fn of(world: &World, text: &str) -> Self {
        let folder = TempDir::with_prefix("leasehold-keep-").expect("a temporary directory");
        let file = folder.path().join("nodes.yaml");
        fs::write(&file, text).expect("the directory is our own");
        let file = file.to_str().expect("a temporary directory has a plain name").to_owned();
        Self::within(folder, &[&file, "--etcd", &world.options().endpoints[0]])
    }

    fn within(folder: TempDir, arguments: &[&str]) -> Self {
        let all = ["--log-format", "json", "keep"].into_iter().chain(arguments.iter().copied());
        let variables = [("FOLDER", folder.path().to_str().expect("a temporary directory has a plain name"))];
        let program = Program::spawn_with(&paths::leasehold(), all, folder.path(), &variables);
        Self { program, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits until a file of the command says this.
    async fn has(&self, name: &str, text: &str) {
        let file = self.file(name);
        let found = async || fs::read_to_string(&file).is_ok_and(|found| found.contains(text));
        wait_for(&format!("{name} says {text}"), SOON, found).await;
    }

    async fn says(&self, start: &str) {
        let message = |line: String| serde_json::from_str::<Value>(&line).ok()?["message"].as_str().map(str::to_owned);
        let fits = |line: String| message(line).is_some_and(|message| message.starts_with(start));
        let said = async || self.program.stderr().into_iter().any(fits);
        wait_for(&format!("it says {start:?}"), SOON, said).await;
    }

    /// Reloads another content of the file.
    fn reload(&self, text: &str) {
        fs::write(self.file("nodes.yaml"), text).expect("the directory is our own");
        self.program.signal("HUP");
    }

    async fn stop(self) -> Ended {
        self.program.signal("TERM");
        self.program.ends().await
    }
}

#[tokio::test]
async fn keep_registers_beside_a_process_and_takes_the_key_back() {
    let world = World::real().await;
    let arguments =
        ["--version", "v1", "--metadata", "zone=a", "--layout", "seed", "--layout", "kratos", "--ttl", "5s"];
    let keeper = Keeper::start(&world, &arguments);
    let key = "/user/v1/10.0.0.7:8080";
    let found = world.stands(key).await;
    assert_eq!(found.value, r#"{"name":"user","addr":"10.0.0.7:8080","version":"v1","weight":"9"}"#);
    assert_eq!(world.count().await, 2, "one key a layout");
    let ended = keeper.stop().await;
    assert_eq!((ended.code, world.count().await), (Some(0), 0), "{ended:?}");
}

#[tokio::test]
async fn keep_ends_in_order_with_its_command() {
    let world = World::real().await;
    // It writes down the signals that it gets.
    let script = "trap 'echo hup >> $FOLDER/got' HUP; trap 'echo term >> $FOLDER/got; exit 7' TERM; echo up > $FOLDER/got; \
                  while :; do sleep 0.05; done";
    let keeper = Keeper::start(&world, &["--settle-time", "1s", "--", "sh", "-c", script]);
    world.stands(KEY).await;
    keeper.has("got", "up").await;
    keeper.program.signal("HUP");
    keeper.has("got", "hup").await;
    keeper.program.signal("TERM");
    wait_for("the key is gone", SOON, async || world.count().await == 0).await;
    let got = fs::read_to_string(keeper.file("got")).expect("it was written");
    assert_eq!(got, "up\nhup\n", "the command serves on until clients know");
    let ended = keeper.program.ends().await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.contains("sh has ended: exit status: 7"), "{ended:?}");
}

#[tokio::test]
async fn keep_passes_other_signals_on_while_it_ends() {
    let world = World::real().await;
    let script = "trap 'echo hup >> $FOLDER/got' HUP; trap 'echo term >> $FOLDER/got; exit 0' TERM; echo up > $FOLDER/got; \
                  while :; do sleep 0.05; done";
    let keeper = Keeper::start(&world, &["--settle-time", "3s", "--", "sh", "-c", script]);
    world.stands(KEY).await;
    keeper.has("got", "up").await;
    keeper.program.signal("TERM");
    wait_for("the key is gone", SOON, async || world.count().await == 0).await;
    keeper.program.signal("HUP");
    keeper.has("got", "hup").await;
    let got = fs::read_to_string(keeper.file("got")).expect("it was written");
    assert_eq!(got, "up\nhup\n", "another signal does not cut the settle time short");
    // The same signal again does, unless it is the echo of the first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    keeper.program.signal("TERM");
    let Keeper { program, folder } = keeper;
    let ended = program.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(fs::read_to_string(folder.path().join("got")).expect("it was written"), "up\nhup\nterm\n");
}

#[tokio::test]
async fn keep_ends_with_a_command_that_ends() {
    let world = World::real().await;
    for (script, code) in [("sleep 3", 0), ("sleep 3; exit 3", 3), ("sleep 3; kill -s KILL $$", 137)] {
        let keeper = Keeper::start(&world, &["--", "sh", "-c", script]);
        world.stands(KEY).await;
        let ended = keeper.program.ends().await;
        assert_eq!((ended.code, world.count().await), (Some(code), 0), "{script}: {ended:?}");
    }
}

#[tokio::test]
async fn keep_kills_a_command_that_does_not_end_with_its_children() {
    let world = World::real().await;
    // The command does not end, or it does, and leaves a child that does not.
    for (script, code) in [
        ("trap '' TERM; sleep 1000 & echo $! > $FOLDER/child; while :; do sleep 0.05; done", 137),
        ("(trap '' TERM; exec sleep 1000) & echo $! > $FOLDER/child; trap 'exit 4' TERM; wait", 4),
    ] {
        let keeper = Keeper::start(&world, &["--settle-time", "1ms", "--stop-timeout", "1s", "--", "sh", "-c", script]);
        world.stands(KEY).await;
        keeper.has("child", "\n").await;
        let child = fs::read_to_string(keeper.file("child")).expect("it was written").trim().to_owned();
        let ended = keeper.stop().await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains("sh has not ended within 1s after its signal, and is killed"), "{ended:?}");
        wait_for("its child is gone", SOON, async || !Path::new("/proc").join(&child).exists()).await;
    }
}

#[tokio::test]
async fn keep_follows_the_health_of_its_process() {
    let world = World::real().await;
    // A component stands for the process: it can be taken away and brought back.
    let addr = free_address();
    let service = with(plain("plain"), json!({ "listen": addr, "register": "off" }));
    let fast = ["--health-interval", "100ms", "--fall", "2"];
    for url in [format!("http://{addr}/healthz"), format!("tcp://{addr}")] {
        let keeper = Keeper::start(&world, &[&["--health", url.as_str()], &fast[..]].concat());
        keeper.says(&format!("not registered yet: {addr}: ")).await;
        assert_eq!(world.count().await, 0);
        let host = Host::ready(&config(&world, [service.clone()])).await;
        world.stands(KEY).await;
        assert_eq!(host.stop().await.code, Some(0));
        keeper.says(&format!("withdrawn: {addr}: ")).await;
        wait_for("the key is gone", SOON, async || world.count().await == 0).await;
        let host = Host::ready(&config(&world, [service.clone()])).await;
        world.stands(KEY).await;
        assert_eq!(get(&format!("http://{addr}/")).await.status, 200);
        assert_eq!(keeper.stop().await.code, Some(0));
        assert_eq!(world.count().await, 0);
        assert_eq!(host.stop().await.code, Some(0));
    }
    // A connection that is taken is no answer.
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let url = format!("http://{}/", silent.local_addr().expect("it is bound"));
    let keeper = Keeper::start(&world, &["--health", &url, "--health-timeout", "200ms"]);
    keeper.says("not registered yet: ").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.count().await, 0);
    assert_eq!(keeper.stop().await.code, Some(0));
}

#[tokio::test]
async fn keep_keeps_the_nodes_of_a_file_and_reloads_it() {
    let world = World::real().await;
    let closed = free_address();
    let keeper = Keeper::of(
        &world,
        &format!(
            "registry: {{ ttl: 5s }}
nodes:
  - {{ name: user, addr: 10.0.0.7:8080, weight: 9, metadata: {{ zone: a }} }}
  - {{ name: mail, addr: 10.0.0.7:25, weight: 9 }}
  - {{ name: down, addr: {closed}, health: {{ url: 'tcp://{closed}', interval: 100ms, fall: 1 }} }}
"
        ),
    );
    let user = world.stands(KEY).await;
    assert_eq!(user.value, r#"{"name":"user","addr":"10.0.0.7:8080","version":"","weight":"9"}"#);
    let mail = world.stands("/mail/10.0.0.7:25").await;
    assert_eq!(user.lease, mail.lease, "one lease for all");
    keeper.says(&format!("not registered yet: {closed}: ")).await;
    assert_eq!(world.count().await, 2, "a node whose check fails is not registered");

    keeper.reload("nodes: [{ name: user, addr: 10.0.0.7:8080 }, { name: user, addr: nowhere }]");
    keeper.says("the nodes stay as they are: ").await;
    keeper.reload("registry: { layout: kratos }\nnodes: [{ name: user, addr: 10.0.0.7:8080 }]");
    keeper.says("the nodes stay as they are: registry.layout needs a restart").await;
    assert_eq!((world.count().await, world.stands(KEY).await.value), (2, user.value));

    let listening = TcpListener::bind(&closed).expect("it was free");
    world.stands(&format!("/down/{closed}")).await;
    drop(listening);
    keeper.says(&format!("withdrawn: {closed}: ")).await;

    keeper.reload(&format!(
        "nodes: [{{ name: user, addr: 10.0.0.7:8080, weight: 3 }}, {{ name: new, addr: 10.0.0.8:1 }}, {{ name: down, addr: {closed} }}]"
    ));
    keeper.says("reloaded: 1 added, 1 removed, 2 changed").await;
    let changed = |found: Option<&Standing>| found.is_some_and(|found| found.value.contains(r#""weight":"3""#));
    world.key_is(KEY, "written in place", changed).await;
    let after = world.stands(KEY).await;
    assert_eq!((after.created, after.lease), (user.created, user.lease), "the key of a node that stays is not deleted");
    world.stands("/new/10.0.0.8:1").await;
    // Its check is gone, and so it is registered.
    world.stands(&format!("/down/{closed}")).await;
    assert!(world.get("/mail/10.0.0.7:25").await.is_none());
    assert_eq!((keeper.stop().await.code, world.count().await), (Some(0), 0));
}

#[tokio::test]
async fn one_command_has_several_nodes() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-keep-").expect("a temporary directory");
    let file = folder.path().join("nodes.yaml");
    fs::write(&file, "nodes: [{ name: user, addr: 10.0.0.7:8080 }, { name: user-grpc, addr: 10.0.0.7:9000 }]")
        .expect("the directory is our own");
    let file = file.to_str().expect("a temporary directory has a plain name").to_owned();
    let etcd = &world.options().endpoints[0];
    let script = "trap 'echo hup >> $FOLDER/got' HUP; echo up > $FOLDER/got; while [ ! -e $FOLDER/end ]; do sleep 0.05; done; exit 3";
    let keeper = Keeper::within(folder, &[&file, "--etcd", etcd, "--", "sh", "-c", script]);
    world.stands(KEY).await;
    world.stands("/user-grpc/10.0.0.7:9000").await;
    keeper.has("got", "up").await;
    keeper.program.signal("HUP");
    keeper.has("got", "hup").await;
    fs::write(keeper.file("end"), "").expect("the directory is our own");
    let ended = keeper.program.ends().await;
    assert_eq!((ended.code, world.count().await), (Some(3), 0), "{ended:?}");
}

#[tokio::test]
async fn a_file_of_keep_is_checked_without_etcd() {
    let folder = TempDir::with_prefix("leasehold-keep-").expect("a temporary directory");
    let file = folder.path().join("nodes.yaml");
    let check = async |text: &str, more: &[&str]| {
        fs::write(&file, text).expect("the directory is our own");
        let path = file.to_str().expect("a temporary directory has a plain name");
        let all = ["keep", path, "--check"].into_iter().chain(more.iter().copied());
        Program::spawn(&paths::leasehold(), all, folder.path()).ends().await
    };
    let good = "registry: { layout: [seed, rpcx] }\nnodes: [{ name: user, addr: 10.0.0.7:8080, version: v1 }]\n";
    let ended = check(good, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "/user/v1/10.0.0.7:8080\n/rpcx/user/tcp@10.0.0.7:8080\n");
    let ended = check("nodes:\n  - { name: user, adr: 10.0.0.7:8080 }\n  - { name: a/b, addr: c:1 }\n", &[]).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    for expected in ["unknown key \"adr\"; did you mean \"addr\"?", "a/b", ":2:", ":3:"] {
        assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
    }
    let ended = check(good, &["--name", "user"]).await;
    assert!(ended.code == Some(64) && ended.stderr.contains("cannot be used with"), "{ended:?}");
}

#[tokio::test]
async fn keep_waits_for_etcd_and_for_a_key_of_another_host() {
    let world = World::real().await;
    let first = Keeper::start(&world, &[]);
    world.stands(KEY).await;
    let second = Keeper::start(&world, &["--ownership", "refuse"]);
    second.says("not registered yet: /user/10.0.0.7:8080 is held by lease ").await;
    let before = world.stands(KEY).await;
    assert_eq!(first.stop().await.code, Some(0));
    world.key_is(KEY, "taken over", |found| found.is_some_and(|found| found.lease != before.lease)).await;
    assert_eq!(second.stop().await.code, Some(0));
    let nowhere = Keeper::at("127.0.0.1:9", &["--", "sh", "-c", "echo up > $FOLDER/got; sleep 1000"]);
    nowhere.has("got", "up").await;
    nowhere.says("not registered yet: ").await;
    let ended = nowhere.stop().await;
    assert_eq!(ended.code, Some(143), "{ended:?}");
}

#[tokio::test]
async fn keep_refuses_mistakes_before_it_starts_anything() {
    let folder = TempDir::with_prefix("leasehold-keep-").expect("a temporary directory");
    let started = folder.path().join("started");
    let command = ["--", "touch", started.to_str().expect("a temporary directory has a plain name")];
    for (arguments, expected) in [
        (vec!["--name", "a/b", "--addr", ADDR], "--name: "),
        (vec!["--name", "user", "--addr", "10.0.0.256:80"], "--addr: "),
        (vec!["--name", "user", "--addr", ADDR, "--weight", "101"], "must be 1 to 100, or auto, not \"101\""),
        (vec!["--name", "user", "--addr", ADDR, "--metadata", "zone"], "--metadata: must be KEY=VALUE"),
        (vec!["--name", "user", "--addr", ADDR, "--health", "https://db:1/"], "--health: the scheme is unknown"),
        (vec!["--name", "user", "--addr", ADDR, "--ttl", "ten"], "--ttl: must be a duration"),
        (vec!["--name", "user", "--addr", ADDR, "--ttl", "1500ms"], "--ttl: "),
        (vec!["--name", "user", "--addr", ADDR, "--ownership", "steal"], "--ownership: "),
        (vec!["--addr", ADDR], "--name"),
    ] {
        let all = ["keep"].into_iter().chain(arguments).chain(command);
        let ended = Program::spawn(&paths::leasehold(), all, folder.path()).ends().await;
        assert!(ended.code == Some(64) && ended.stderr.contains(expected), "{expected}: {ended:?}");
        assert!(!started.exists());
    }
    let all = ["keep", "--name", "user", "--addr", ADDR, "--etcd", "127.0.0.1:9", "--", "./nowhere"];
    let ended = Program::spawn(&paths::leasehold(), all, folder.path()).ends().await;
    assert!(ended.code == Some(64) && ended.stderr.contains("./nowhere: cannot be started: "), "{ended:?}");
}
