//! Programs: components that run by themselves and open their own listener, at their address and nowhere else.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{TTL, config, endpoint, free_address, plain, program, service, with},
    http::{Protocol, begin, get, get_over},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

/// A host with an admin endpoint.
async fn host(world: &World, services: impl IntoIterator<Item = Value>) -> Host {
    Host::ready(&with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

/// URL of a program that speaks HTTP.
fn url(host: &Host) -> String {
    format!("http://{}/", host.addr("program"))
}

fn key(host: &Host) -> String {
    format!("/program/{}", host.addr("program"))
}

/// Requests an act that ends the program, and so has no response.
async fn ends_by(host: &Host, act: &str) {
    let _ = get_over(Protocol::Http1, &format!("{}{act}", url(host))).await; // There is no response.
}

/// Number of log messages that start with `start`.
fn turns(host: &Host, start: &str) -> usize {
    host.log().iter().filter(|line| line["message"].as_str().is_some_and(|said| said.starts_with(start))).count()
}

async fn leasehold(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-own-").expect("a temporary directory");
    Program::spawn(Path::new(&paths::leasehold()), arguments, folder.path()).ends().await
}

#[tokio::test]
async fn own_listener_is_served_registered_and_drained() {
    let world = World::real().await;
    let p3 = with(program("serve"), json!({ "name": "p3", "component": paths::component("program-p3") }));
    let host = host(&world, [program("serve"), p3]).await;
    for (service, name) in [("program", "program"), ("p3", "p3")] {
        let addr = host.addr(service);
        world.stands(&format!("/{name}/{addr}")).await;
        assert_eq!(host.url(service), format!("tcp://{addr}/"));
        for _ in 0..3 {
            assert_eq!(get(&format!("http://{addr}/")).await.body, "hello\n");
        }
    }
    assert_eq!(get(&format!("{}readyz", host.admin())).await.body, "ready\n");
    let (addr, key) = (host.addr("program"), key(&host));
    let drained = leasehold(&["drain", "program", "--admin", &host.admin()]).await;
    assert_eq!(drained.stdout, format!("program on {addr} is drained; requests were cut off\n"), "{drained:?}");
    assert_eq!(world.get(&key).await, None);
    assert!(TcpStream::connect(&addr).await.is_err(), "it listens still");
    assert_eq!(get(&format!("http://{}/", host.addr("p3"))).await.body, "hello\n", "the other goes on");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

#[tokio::test]
async fn own_listener_of_a_program_that_reads_stdin_completes_its_requests() {
    let world = World::real().await;
    let patient = json!({ "limits": { "drain_timeout": "60s" } });
    let host = host(&world, [with(program("polite"), patient)]).await;
    let (addr, key, begun) = (host.addr("program"), key(&host), Instant::now());
    let pending = begin(&format!("{}slow", url(&host))).await;
    host.signal("TERM");
    // From here on the host accepts no further connection; the key is deleted before.
    wait_for("it takes nobody any more", SOON, async || {
        get_over(Protocol::Http1, &format!("http://{addr}/")).await.is_err()
    })
    .await;
    assert_eq!(world.get(&key).await, None, "it was gone first");
    assert_eq!(pending.answer().await.expect("it was asked before").body, "hello\n");
    let ended = host.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.wrote("cut off"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(40), "nobody told it");
}

#[tokio::test]
async fn own_listener_at_another_address_is_refused() {
    let world = World::real().await;
    for component in ["program", "program-p3"] {
        let taken = free_address();
        let component = paths::component(component);
        let astray = with(program("serve"), json!({ "component": component, "args": [taken, "serve"] }));
        let listen = astray["listen"].as_str().expect("an address").to_owned();
        let ended = Host::spawn(&config(&world, [astray]), &[]).ends().await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.wrote(&format!("refused to listen on {taken}: its policy gives it {listen}")), "{ended:?}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        let why = format!("program: it did not listen on {listen}: the component returned with an error");
        assert!(last.contains(&why), "{last}");
        assert_eq!(world.count().await, 0);
    }
}

#[tokio::test]
async fn own_listener_has_a_connection_limit_that_does_not_trap() {
    let world = World::real().await;
    let few = json!({ "limits": { "connections": 4 } });
    let p3 = with(program("polite"), json!({ "name": "p3", "component": paths::component("program-p3") }));
    let host = host(&world, [with(program("polite"), few.clone()), with(p3, few)]).await;
    for (service, key) in ["program", "p3"].map(|name| (name, format!("/{name}/{}", host.addr(name)))) {
        let addr = host.addr(service);
        let before = world.stands(&key).await;
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(TcpStream::connect(&addr).await.expect("the kernel takes it"));
        }
        let outcome = timeout(Duration::from_secs(1), get_over(Protocol::Http1, &format!("http://{addr}/"))).await;
        assert!(outcome.is_err(), "{service} took more than it may: {outcome:?}");
        drop(silent);
        for _ in 0..20 {
            assert_eq!(get(&format!("http://{addr}/")).await.body, "hello\n", "{service}");
        }
        assert_eq!(before, world.stands(&key).await, "{service} was away");
    }
    assert!(!host.log().iter().any(|line| line["message"].as_str().is_some_and(|said| said.contains("trapped"))));
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn own_listener_gives_no_other_socket() {
    let world = World::real().await;
    let (open, shut) = (free_address(), free_address());
    let _listeners = [&open, &shut].map(|addr| TcpListener::bind(addr).expect("it was free"));
    let outbound = json!({ "allow": { "outbound": [open] } });
    let host = host(&world, [with(program("serve"), outbound)]).await;
    let act = async |act: String| get(&format!("{}{act}", url(&host))).await.body;
    for refused in [
        format!("connect/{shut}"),
        format!("bind/{}", free_address()),
        "bind/127.0.0.1:0".into(),
        "bind/0.0.0.0:0".into(),
    ] {
        assert_eq!(act(refused.clone()).await, "permission denied", "{refused}");
    }
    assert_eq!(act(format!("udp/{}", free_address())).await, "permission denied");
    assert_ne!(act("resolve/localhost".into()).await, "ok");
    assert_eq!(act(format!("connect/{open}")).await, "ok", "it is in allow.outbound");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn own_listener_of_a_program_that_ends_is_withdrawn_and_restored() {
    let world = World::real().await;
    let mut host = host(&world, [program("serve")]).await;
    let (key, url) = (key(&host), url(&host));
    let before = world.stands(&key).await;
    for (act, why) in [
        ("trap", "the component trapped: "),
        ("exit", "the component exited with 1"),
        ("return", "the component returned"),
    ] {
        let announced = turns(&host, "the service is announced in etcd");
        ends_by(&host, act).await;
        let withdrawn = host.says(&format!("withdrawn: {why}")).await;
        assert!(act != "trap" || withdrawn.to_string().contains("told to trap"), "no text of its panic: {withdrawn}");
        wait_for("it is announced again", SOON, async || turns(&host, "the service is announced in etcd") > announced)
            .await;
        assert_eq!(turns(&host, "the program runs again"), announced + 1);
        assert_eq!(get(&url).await.body, "hello\n");
        let after = world.stands(&key).await;
        assert_eq!(before.value, after.value);
        assert_ne!(before.modified, after.modified, "it was never away");
    }
    let metrics = get(&format!("{}metrics", host.admin())).await.body;
    assert!(metrics.lines().any(|line| line.contains("kind=\"program_exit\"") && line.ends_with(" 3")), "{metrics}");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn own_listener_of_a_program_that_is_down_is_out_of_etcd_even_if_its_port_is_taken() {
    let world = World::real().await;
    let mut host = host(&world, [program("serve")]).await;
    let (key, addr) = (key(&host), host.addr("program"));
    world.stands(&key).await;
    ends_by(&host, "trap").await;
    let stranger = {
        let mut taken = None;
        wait_for("the address is somebody else's", SOON, async || {
            taken = TcpListener::bind(&addr).ok();
            taken.is_some()
        })
        .await;
        taken
    };
    // By then the address would have been probed.
    wait_for("it has been tried several times", SOON, async || turns(&host, "program: it did not listen on") >= 3)
        .await;
    assert_eq!(world.get(&key).await, None);
    let ready = get(&format!("{}readyz", host.admin())).await.body;
    assert!(ready.starts_with("not ready\nprogram: it is withdrawn: the component trapped"), "{ready}");
    drop(stranger);
    host.event("announced").await;
    world.stands(&key).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn own_listener_of_a_program_that_registers_itself_ends_with_each_run() {
    let world = World::real().await;
    let itself = json!({ "register": "component" });
    let mut host = host(&world, [with(program("register"), itself)]).await;
    let (key, url) = (key(&host), url(&host));
    let before = world.stands(&key).await;
    assert_eq!(get(&format!("{url}registrations")).await.body, "1");
    ends_by(&host, "trap").await;
    host.says("withdrawn: the component trapped").await;
    host.event("announced").await;
    let after = world.stands(&key).await;
    assert_eq!(
        (&before.value, before.lease == after.lease && before.modified == after.modified),
        (&after.value, false)
    );
    assert_eq!(get(&format!("{url}registrations")).await.body, "1");
    assert_eq!(world.count().await, 1);
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn own_listener_of_a_program_that_spins_costs_no_neighbour_and_no_lease() {
    let world = World::real().await;
    // More requests than there are threads.
    let names: Vec<_> = (0..5).map(|n| format!("program-{n}")).collect();
    let spinning = names.iter().map(|name| with(program("serve"), json!({ "name": name })));
    let host = host(&world, spinning.chain([plain("plain")])).await;
    let mut stuck = Vec::new();
    for name in &names {
        let mut stream = TcpStream::connect(host.addr(name)).await.expect("it listens");
        stream.write_all(b"GET /spin HTTP/1.0\r\n\r\n").await.expect("it reads");
        stuck.push((format!("/{name}/{}", host.addr(name)), stream));
    }
    let mut before = Vec::new();
    for (key, _) in &stuck {
        before.push(world.stands(key).await);
    }
    let (begun, mut answers) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(2 * TTL) {
        assert_eq!(get(&host.url("plain")).await.status, 200);
        answers += 1;
    }
    assert!(answers >= 10, "{answers} answers");
    for ((key, _), before) in stuck.iter().zip(before) {
        assert_eq!(world.get(key).await, Some(before), "whoever connects still does");
    }
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.wrote("it did not end within 1s, and its connections were cut off"), "{ended:?}");
}

#[tokio::test]
async fn own_listener_has_health_checks() {
    let world = World::real().await;
    let probed = |path: &str| {
        let health = json!({ "path": path, "interval": "100ms", "rise": 1, "fall": 2, "timeout": "500ms" });
        with(program("serve"), json!({ "health": health, "limits": { "start_timeout": "2s" } }))
    };
    let mut host = host(&world, [probed("/slow")]).await;
    let why = "it is withdrawn: its health check has not passed yet";
    let said = get(&format!("{}readyz", host.admin())).await.body;
    assert_eq!(said, format!("not ready\nprogram: {why}: no answer within 500ms\n"));
    assert_eq!(world.count().await, 0);
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
    host = self::host(&world, [probed("/")]).await;
    world.stands(&key(&host)).await;
    // The program serves one connection after the other, so a silent connection blocks the probe.
    let stuck = TcpStream::connect(host.addr("program")).await.expect("it listens");
    host.says("withdrawn: its health check fails: no answer within 500ms").await;
    assert_eq!(world.get(&key(&host)).await, None);
    drop(stuck);
    host.event("announced").await;
    world.stands(&key(&host)).await;
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn own_listener_is_reloaded_out_of_etcd() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-own-").expect("a temporary directory");
    let file = folder.path().join("component.wasm");
    let becomes = |name: &str| {
        fs::copy(paths::component(name), folder.path().join("fresh")).expect("it was built");
        fs::rename(folder.path().join("fresh"), &file).expect("the directory is our own");
    };
    becomes("program");
    let mut host = host(&world, [with(program("serve"), json!({ "component": file }))]).await;
    let (key, url, admin) = (key(&host), url(&host), host.admin());
    world.stands(&key).await;
    becomes("program-p3");
    let ended = leasehold(&["reload", "program", "--admin", &admin]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    host.says("withdrawn: it is replaced").await;
    host.event("announced").await;
    world.stands(&key).await;
    assert_eq!(get(&format!("{url}registrations")).await.body, "hello\n", "the new one knows no acts");
    becomes("plain");
    let ended = leasehold(&["reload", "program", "--admin", &admin]).await;
    assert!(ended.stdout.contains("it does not open its own listener"), "{ended:?}");
    world.stands(&key).await;
    assert_eq!(get(&url).await.body, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn own_listener_goes_back_to_the_former_version_if_the_new_one_never_listens() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-own-").expect("a temporary directory");
    let file = folder.path().join("component.wasm");
    let becomes = |name: &str| {
        fs::copy(paths::component(name), folder.path().join("fresh")).expect("it was built");
        fs::rename(folder.path().join("fresh"), &file).expect("the directory is our own");
    };
    becomes("program-p3");
    // The former version does not know this verb.
    let changes = json!({ "component": file, "limits": { "start_timeout": "3s" } });
    let mut host = host(&world, [with(program("deaf"), changes)]).await;
    let (key, url, admin) = (key(&host), url(&host), host.admin());
    let before = world.stands(&key).await;
    becomes("program");
    let ended = leasehold(&["reload", "program", "--admin", &admin]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let why = format!("it did not listen on {} within 3s", host.addr("program"));
    assert!(ended.stdout.contains(&why), "{ended:?}");
    host.says("the program runs again").await;
    host.event("announced").await;
    assert_eq!(world.stands(&key).await.value, before.value);
    assert_eq!(get(&url).await.body, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn own_listener_is_shown_by_check_and_inspect() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-own-").expect("a temporary directory");
    let file = folder.path().join("services.yaml");
    let path = file.to_str().expect("a plain name");
    let check = async |services: Value| {
        let services = services.as_array().expect("a list").clone();
        fs::write(&file, config(&world, services).to_string()).expect("the directory is our own");
        leasehold(&["check", path]).await
    };
    let good = check(json!([program("serve")])).await;
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains("by its own listener, wasi:cli/run 0.2"), "{good:?}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken_addr = taken.local_addr().expect("it is bound").to_string();
    for (bad, why, code) in [
        (with(program("serve"), json!({ "listen": "127.0.0.1:0" })), "listen must name a port other than 0", 64),
        (
            with(program("serve"), json!({ "tls": { "cert": "cert.pem", "key": "key.pem" } })),
            "the component opens its own listener, which the host cannot give TLS",
            64,
        ),
        (
            with(program("serve"), json!({ "listen": taken_addr })),
            &format!("cannot listen on {taken_addr}: Address already in use"),
            1,
        ),
    ] {
        let ended = check(json!([bad])).await;
        // A port in use is a note: the host that runs already may have it.
        let (checked, noted) = if code == 1 { (0, "is in use at the moment") } else { (code, why) };
        assert_eq!(ended.code, Some(checked), "{ended:?}");
        assert!(ended.stdout.contains(noted), "{ended:?}");
        let ended = Host::spawn(&config(&world, [bad]), &[]).ends().await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.lines().last().unwrap_or_default().contains(why), "{ended:?}");
    }
    let inspected = |name: &str| paths::component(name).display().to_string();
    for (name, served) in [("program", "wasi:cli/run 0.2"), ("program-p3", "wasi:cli/run 0.3")] {
        let ended = leasehold(&["inspect", &inspected(name)]).await;
        assert!(ended.stdout.contains(&format!("served      by its own listener, {served}")), "{ended:?}");
    }
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn own_listener_that_never_comes_fails_the_start() {
    let world = World::real().await;
    for (verb, why) in [
        ("deaf", " within 2s"),
        ("exit", ": the component exited with 0"),
        ("fail", ": the component returned with an error"),
    ] {
        let patience = json!({ "limits": { "start_timeout": "2s" } });
        let services = [with(program(verb), patience), plain("plain")];
        let ended = Host::spawn(&config(&world, services), &["--strict"]).ends().await;
        assert_eq!(ended.code, Some(1), "{verb}: {ended:?}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("program: it did not listen on 127.0.0.1:") && last.contains(why), "{verb}: {last}");
        assert_eq!(world.count().await, 0, "{verb}");
    }
    let mute = service("nothing", "nothing");
    let ended = Host::spawn(&config(&world, [mute]), &[]).ends().await;
    assert!(ended.wrote("or wasi:cli/run to open its own listener"), "{ended:?}");
}

#[tokio::test]
async fn own_listener_runs_without_a_configuration_file() {
    let world = World::real().await;
    let (listen, component) = (free_address(), paths::component("program").display().to_string());
    let etcd = endpoint(&world);
    let folder = TempDir::with_prefix("leasehold-own-").expect("a temporary directory");
    let arguments =
        ["run", &component, "--name", "program", "--listen", &listen, "--etcd", &etcd, "--register", "host"];
    let arguments = arguments.into_iter().chain(["--", &listen, "polite"]);
    let host = Program::spawn(Path::new(&paths::leasehold()), arguments, folder.path());
    world.stands(&format!("/program/{listen}")).await;
    assert_eq!(get(&format!("http://{listen}/")).await.body, "hello\n");
    host.signal("TERM");
    assert_eq!(host.ends().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}
