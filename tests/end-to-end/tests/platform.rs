//! The plugin in a platform that is not the runner: `host/plugin/examples/platform.rs`, on a real etcd.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{EventType, WatchOptions};
use leasehold_end_to_end::{
    Program,
    config::endpoint,
    http::{Protocol, get, get_over},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The platform under test.
struct Platform {
    program: Program,
    _folder: TempDir,
}

impl Platform {
    fn on(world: &World) -> Self {
        let folder = TempDir::new().unwrap();
        let program = Program::spawn_with_input(&paths::example("platform"), [endpoint(world)], folder.path());
        Self { program, _folder: folder }
    }

    /// Gives an order about a plugin, with a component of the tests.
    async fn order(&mut self, verb: &str, name: &str, component: &str, config: &str) {
        let path = paths::component(component);
        self.program.write(&format!("{verb} {name} {} {config}", path.display())).await;
    }

    /// Waits for the last word on a plugin, from the `count`th on.
    async fn says(&mut self, what: &str, count: usize) -> String {
        wait_for(&format!("the platform says {what:?}"), SOON, async || self.said(what).len() >= count).await;
        self.said(what).pop().unwrap()
    }

    fn said(&self, what: &str) -> Vec<String> {
        self.program.stdout().into_iter().filter(|line| line.contains(what)).collect()
    }

    /// Loads a plugin, and returns its address.
    async fn loads(&mut self, name: &str, component: &str, config: &str) -> String {
        let serves = format!("{name}: serves at ");
        let before = self.said(&serves).len();
        self.order("load", name, component, config).await;
        let line = self.says(&serves, before + 1).await;
        line.rsplit_once(' ').unwrap().1.to_owned()
    }

    /// Ends the input, and with it the platform.
    async fn ends(mut self) {
        self.program.end_input();
        let ended = self.program.ends().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

async fn body(addr: &str) -> String {
    get(&format!("http://{addr}/")).await.body
}

/// A key, its change, and the status of the response of its node.
type Heard = (String, EventType, Option<u16>);

/// A client that calls a node the moment it hears of a change of its key.
struct Client {
    heard: Arc<Mutex<Vec<Heard>>>,
    watch: JoinHandle<()>,
}

impl Client {
    async fn of(world: &World) -> Self {
        let mut changes = world.client().await.watch("/", Some(WatchOptions::new().with_prefix())).await.unwrap();
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let sink = Arc::clone(&heard);
        let watch = tokio::spawn(async move {
            while let Ok(Some(news)) = changes.message().await {
                for event in news.events() {
                    let key = event.kv().unwrap().key_str().unwrap().to_owned();
                    let url = format!("http://{}/", key.rsplit('/').next().unwrap());
                    let called = get_over(Protocol::Http1, &url).await;
                    sink.lock().unwrap().push((key, event.event_type(), called.ok().map(|answer| answer.status)));
                }
            }
        });
        Self { heard, watch }
    }

    /// Events at an address, without repetitions: the weight of a node follows the load.
    fn heard(&self, addr: &str) -> Vec<Heard> {
        let mut heard = self.heard.lock().unwrap().clone();
        heard.retain(|(key, ..)| key.ends_with(addr));
        heard.dedup();
        heard
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[tokio::test]
async fn keys_appear_after_the_route_stands_and_go_before_it_goes() {
    let world = World::real().await;
    let client = Client::of(&world).await;
    let mut platform = Platform::on(&world);
    let mut addrs = Vec::new();
    for (name, component) in [("one", "greeter"), ("two", "greeter"), ("three", "plain"), ("four", "greeter")] {
        addrs.push(platform.loads(name, component, "version=v1").await);
    }
    assert_eq!(world.count().await, 4);
    for (name, addr) in [("one", &addrs[0]), ("three", &addrs[2])] {
        platform.program.write(&format!("unload {name}")).await;
        platform.says(&format!("{name}: unloaded"), 1).await;
        assert!(TcpStream::connect(addr).await.is_err(), "nothing listens any more");
    }
    // Those that are left end with the platform.
    platform.ends().await;
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
    for addr in &addrs {
        wait_for("the client has heard of its end", SOON, async || client.heard(addr).len() > 1).await;
        let heard: Vec<_> = client.heard(addr).into_iter().map(|(_, change, status)| (change, status)).collect();
        assert_eq!(heard, [(EventType::Put, Some(200)), (EventType::Delete, Some(200))]);
    }
}

#[tokio::test]
async fn a_swap_deletes_no_key_and_fails_no_request() {
    let world = World::real().await;
    let client = Client::of(&world).await;
    let mut platform = Platform::on(&world);
    let addr = platform.loads("greeter", "greeter", "version=v1 greeting=0").await;
    let key = format!("/greeter/v1/{addr}");
    let created = world.stands(&key).await.created;
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let (sink, at) = (Arc::clone(&bodies), addr.clone());
    let calls = tokio::spawn(async move {
        loop {
            let said = body(&at).await;
            sink.lock().unwrap().push(said);
        }
    });
    for swap in 1..=5 {
        platform.order("swap", "greeter", "greeter", &format!("version=v1 greeting={swap}")).await;
        platform.says("greeter: swapped", swap).await;
        assert_eq!(body(&addr).await, format!("{swap}\n"));
        assert_eq!(world.stands(&key).await.created, created);
    }
    // A version that does not start leaves the former version as it is, also after it has registered.
    let failing = ["fail", "trap", "register-and-fail", "register-and-trap"];
    for (number, start) in failing.into_iter().enumerate() {
        platform.order("swap", "greeter", "hostile", &format!("start={start}")).await;
        platform.says("greeter: not swapped", number + 1).await;
        assert_eq!(body(&addr).await, "5\n");
        assert_eq!(world.stands(&key).await.created, created);
        assert_eq!(world.count().await, 1);
    }
    assert!(!calls.is_finished());
    calls.abort();
    let mut bodies = bodies.lock().unwrap().clone();
    bodies.dedup();
    assert_eq!(bodies, ["0\n", "1\n", "2\n", "3\n", "4\n", "5\n"]);
    // A version under another key: the key is written before the former one goes.
    platform.order("swap", "greeter", "greeter", "version=v2 greeting=6").await;
    platform.says("greeter: swapped", 6).await;
    let next = format!("/greeter/v2/{addr}");
    world.stands(&next).await;
    assert_eq!(world.get(&key).await, None);
    platform.ends().await;
    assert_eq!(world.count().await, 0);
    wait_for("the client has heard of the end", SOON, async || {
        client.heard(&addr).last().is_some_and(|(key, change, _)| *key == next && *change == EventType::Delete)
    })
    .await;
    let mut heard = client.heard(&addr);
    assert!(heard.iter().all(|(.., status)| *status == Some(200)), "{heard:?}");
    // Of the versions that failed, keys that no other version had came and went.
    heard.retain(|(key, ..)| key.starts_with("/greeter/v"));
    heard.dedup();
    let changes: Vec<_> = heard.iter().map(|(key, change, _)| (key.as_str(), *change)).collect();
    let (put, delete) = (EventType::Put, EventType::Delete);
    assert_eq!(changes, [(key.as_str(), put), (&next, put), (&key, delete), (&next, delete)]);
}

#[tokio::test]
async fn a_trap_or_a_panic_in_one_plugin_leaves_no_ghost_and_the_others_alone() {
    let world = World::real().await;
    let mut platform = Platform::on(&world);
    let others = [
        ("one", platform.loads("one", "greeter", "version=v1").await),
        ("two", platform.loads("two", "plain", "").await),
    ];
    let keys = [format!("/one/v1/{}", others[0].1), format!("/two/{}", others[1].1)];
    let before = [world.stands(&keys[0]).await.created, world.stands(&keys[1]).await.created];

    // It registers, and traps before the platform has heard of its success.
    platform.order("load", "trapping", "hostile", "start=register-and-trap").await;
    platform.says("trapping: failed", 1).await;
    assert_eq!(world.count().await, 2);

    // A request that traps costs itself alone.
    let hostile = platform.loads("hostile", "hostile", "start=register").await;
    let key = format!("/hostile/{hostile}");
    let created = world.stands(&key).await.created;
    assert_eq!(get(&format!("http://{hostile}/act/trap")).await.status, 500);
    assert_eq!(body(&hostile).await, "hostile\n");
    assert_eq!(world.stands(&key).await.created, created);

    // A trap at its end comes after its keys are gone.
    let stopping = platform.loads("stopping", "hostile", "start=register stop=trap").await;
    platform.program.write("unload stopping").await;
    platform.says("stopping: failed", 1).await;
    assert_eq!(world.get(&format!("/stopping/{stopping}")).await, None);

    // A fault of the platform in the task of one plugin: its key goes while its route still stands.
    platform.program.write("panic hostile").await;
    world.key_is(&key, "gone", |found| found.is_none()).await;
    assert_eq!(body(&hostile).await, "hostile\n");
    platform.says("hostile: failed", 1).await;

    assert_eq!([world.stands(&keys[0]).await.created, world.stands(&keys[1]).await.created], before);
    assert_eq!((body(&others[0].1).await, body(&others[1].1).await), ("hello\n".into(), "hello\n".into()));
    assert_eq!(world.count().await, 2);
    // The plugin that failed can be loaded again.
    let again = platform.loads("hostile", "hostile", "start=register").await;
    world.stands(&format!("/hostile/{again}")).await;
    platform.ends().await;
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

/// A plugin that never returns does not hold up the platform.
#[tokio::test]
async fn a_plugin_that_loops_holds_up_no_other() {
    let world = World::real().await;
    let mut platform = Platform::on(&world);
    platform.order("load", "spinning", "hostile", "start=spin").await;
    let addr = timeout(SOON, platform.loads("one", "greeter", "version=v1")).await.unwrap();
    world.stands(&format!("/one/v1/{addr}")).await;
    sleep(Duration::from_secs(1)).await; // It keeps on looping, and the others serve.
    assert_eq!(body(&addr).await, "hello\n");
    platform.says("spinning: failed", 1).await;
    platform.ends().await;
    assert_eq!(world.count().await, 0);
}
