//! The admin endpoint: state and metrics of a running host, and its commands.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use etcd_client::Permission;
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{WEIGHT, config, free_address, greeter, hostile, plain, with},
    http::{ask, begin, get},
    paths,
};
use leasehold_scenarios::{
    real::Etcd,
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

async fn host(world: &World, services: impl IntoIterator<Item = Value>) -> Host {
    Host::ready(&with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

/// The value of one sample of `/metrics` with these labels.
async fn sample(admin: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let page = get(&format!("{admin}metrics")).await;
    assert_eq!(page.status, 200);
    assert!(page.body.ends_with("# EOF\n"), "{}", page.body);
    let fits = |line: &&str| {
        let (series, _) = line.rsplit_once(' ').unwrap_or_default();
        let named = series.split('{').next() == Some(name);
        named && labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")))
    };
    let line = page.body.lines().find(fits).unwrap_or_else(|| panic!("no {name} {labels:?} in:\n{}", page.body));
    line.rsplit_once(' ').expect("it was found so").1.parse().expect("a sample is a number")
}

async fn drain(arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-drain-").expect("a temporary directory");
    let run = ["drain"].iter().chain(arguments);
    Program::spawn(Path::new(&paths::leasehold()), run, folder.path()).ends().await
}

#[tokio::test]
async fn admin_shows_the_services() {
    let world = World::real().await;
    let host = host(&world, [greeter(), plain("plain")]).await;
    let admin = host.admin();
    for _ in 0..3 {
        assert_eq!(get(&host.url("plain")).await.status, 200);
    }
    assert_eq!(get(&format!("{admin}healthz")).await.body, "ok\n");
    assert_eq!(get(&format!("{admin}readyz")).await.body, "ready\n");
    let services = get(&format!("{admin}services")).await.json();
    assert_eq!(services[0]["service"], "greeter");
    let row = &services[1];
    assert_eq!((&row["phase"], &row["readiness"]), (&json!("serving"), &json!("ready")));
    assert_eq!(row["registrations"][0]["key"], format!("/plain/{}", host.addr("plain")));
    assert_eq!(row["registrations"][0]["state"], "registered");

    let served = sample(&admin, "leasehold_requests_total", &[("service", "plain"), ("class", "2xx")]);
    assert_eq!(served.await, 3.0);
    let timed = sample(&admin, "leasehold_request_duration_seconds_count", &[("service", "plain")]);
    assert_eq!(timed.await, 3.0);
    let registered = sample(&admin, "leasehold_registrations", &[("service", "plain"), ("state", "registered")]);
    assert_eq!(registered.await, 1.0);
    assert_eq!(sample(&admin, "leasehold_service_ready", &[("service", "greeter")]).await, 1.0);
    assert_eq!(sample(&admin, "leasehold_etcd_up", &[]).await, 1.0);
    for verb in ["grant", "renew", "write", "status"] {
        let of = [("verb", verb)];
        let count = async || sample(&admin, "leasehold_etcd_request_duration_seconds_count", &of).await;
        wait_for(&format!("a {verb} is counted"), SOON, async || count().await >= 1.0).await;
        let took = sample(&admin, "leasehold_etcd_request_duration_seconds_sum", &of).await / count().await;
        assert!(took > 0.0 && took < 5.0, "{verb}: {took}");
        let _ = sample(&admin, "leasehold_etcd_requests_failed_total", &of).await;
    }
    let key = format!("/plain/{}", host.addr("plain"));
    assert_eq!(sample(&admin, "leasehold_weight", &[("key", &key)]).await, f64::from(WEIGHT));
    let left = sample(&admin, "leasehold_ttl_remaining_seconds", &[("key", &key)]).await;
    assert!((0.1..=3.1).contains(&left), "{left}");
    wait_for("a renewal is counted", SOON, async || sample(&admin, "leasehold_renewals_total", &[]).await >= 1.0).await;
    assert!(sample(&admin, "leasehold_lease_events_total", &[("event", "registered")]).await >= 2.0);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_reports_the_age_of_a_lease() {
    let world = World::real().await;
    let host = host(&world, [plain("plain")]).await;
    let admin = host.admin();
    let key = format!("/plain/{}", host.addr("plain"));
    let age = async || sample(&admin, "leasehold_lease_age_seconds", &[("key", &key)]).await;
    let begun = Instant::now();
    wait_for("it is renewed, and no younger for that", SOON, async || {
        sample(&admin, "leasehold_renewals_total", &[("key", &key)]).await >= 3.0
    })
    .await;
    let old = age().await;
    assert!(old >= 1.0 && old <= begun.elapsed().as_secs_f64() + 5.0, "{old}");
    world.revoke(world.stands(&key).await.lease).await;
    wait_for("it is under another one", SOON, async || {
        sample(&admin, "leasehold_recoveries_total", &[("key", &key)]).await == 1.0
    })
    .await;
    assert!(age().await < old);
    let services = get(&format!("{admin}services")).await.json();
    assert!(services[0]["registrations"][0]["lease_age_seconds"].as_f64().is_some(), "{services}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_counts_rejected_requests() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "request_timeout": "1s", "concurrency": 1 } });
    let host = host(&world, [with(hostile("hostile"), limits)]).await;
    let (admin, url) = (host.admin(), host.url("hostile"));
    let rejected = async |reason| {
        sample(&admin, "leasehold_rejected_requests_total", &[("service", "hostile"), ("reason", reason)]).await
    };
    let traps = async || sample(&admin, "leasehold_incidents_total", &[("service", "hostile"), ("kind", "trap")]).await;
    assert_eq!(get(&format!("{url}act/trap")).await.status, 500);
    assert_eq!((rejected("component_failed").await, rejected("timeout").await), (1.0, 0.0));
    wait_for("the trap is counted", SOON, async || traps().await == 1.0).await;
    let in_flight = async || sample(&admin, "leasehold_requests_in_flight", &[("service", "hostile")]).await;
    assert_eq!(in_flight().await, 0.0);
    let instances = async || sample(&admin, "leasehold_instances", &[("service", "hostile")]).await;
    assert_eq!(sample(&admin, "leasehold_instances_limit", &[("service", "hostile")]).await, 2.0);
    wait_for("what trapped is no instance any more", SOON, async || instances().await == 0.0).await;
    let spin = format!("{url}act/spin");
    let counted = async {
        wait_for("it is counted", SOON, async || in_flight().await == 1.0 && instances().await == 1.0).await;
    };
    let (spun, ()) = tokio::join!(get(&spin), counted);
    assert_eq!((spun.status, in_flight().await), (504, 0.0));
    wait_for("the instance is gone, too", SOON, async || instances().await == 0.0).await;
    assert_eq!((rejected("component_failed").await, rejected("timeout").await), (1.0, 1.0));
    assert_eq!(traps().await, 1.0, "an instance that is ended for a timeout did not trap");
    let failed = sample(&admin, "leasehold_requests_total", &[("class", "5xx")]);
    assert_eq!(failed.await, 2.0);
}

#[tokio::test]
async fn admin_counts_limits_of_connections_and_instances() {
    let world = World::real().await;
    let limits = json!({ "connections": 1, "header_size": "8KiB", "client_timeout": "1s", "memory": "16MiB" });
    let host = host(&world, [with(hostile("hostile"), json!({ "register": "host", "limits": limits }))]).await;
    let (admin, addr) = (host.admin(), host.addr("hostile"));
    let incidents =
        async |kind| sample(&admin, "leasehold_incidents_total", &[("service", "hostile"), ("kind", kind)]).await;
    let headers = async || {
        let labels = [("service", "hostile"), ("reason", "headers_too_large")];
        sample(&admin, "leasehold_rejected_requests_total", &labels).await
    };
    assert_eq!(get(&format!("{}act/grow", host.url("hostile"))).await.status, 500);
    assert!(incidents("memory_limit").await >= 1.0);
    let large = format!("GET / HTTP/1.1\r\nhost: here\r\nx-large: {}", "x".repeat(9 << 10));
    let count = async || headers().await + incidents("slow_client").await;
    for begun in [large.as_str(), "GET / HTTP/1.1\r\nhost: he", ""] {
        let before = count().await;
        let mut stream = TcpStream::connect(&addr).await.expect("it listens");
        stream.write_all(begun.as_bytes()).await.expect("it reads");
        let ended = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
        drop(ended); // With or without a response.
        wait_for("it is counted", SOON, async || count().await > before).await;
    }
    assert_eq!((headers().await, incidents("slow_client").await), (1.0, 2.0));
    assert!(incidents("connection_limit").await >= 1.0);
    let former = ask("GET", &format!("{admin}metrics"), &[("accept", "text/plain;version=0.0.4")]).await.body;
    assert!(former.contains("# TYPE leasehold_incidents_total counter\n") && !former.contains("# EOF"), "{former}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_reports_an_unknown_state() {
    let mut world = World::real().await;
    let host = host(&world, [plain("plain")]).await;
    let readyz = format!("{}readyz", host.admin());
    assert_eq!(get(&readyz).await.body, "ready\n");
    world.kill();
    wait_for("it says so", SOON, async || get(&readyz).await.body.starts_with("unknown\nplain: etcd has not")).await;
    assert_eq!(get(&readyz).await.status, 200, "clients still find it, as far as is known");
    assert_eq!(sample(&host.admin(), "leasehold_etcd_up", &[]).await, 0.0);
    world.restart(true).await;
    wait_for("it knows again", SOON, async || get(&readyz).await.body == "ready\n").await;
}

#[tokio::test]
async fn admin_drains_one_service_and_it_stays_out() {
    let world = World::real().await;
    let host = host(&world, [with(hostile("hostile"), json!({ "register": "host" })), plain("plain")]).await;
    let admin = host.admin();
    let slow = begin(&format!("{}act/slow", host.url("hostile"))).await;
    let ended = drain(&["hostile", "--admin", &admin]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, format!("hostile on {} is drained\n", host.addr("hostile")));
    assert_eq!(slow.answer().await.expect("it was in flight").status, 200);
    assert_eq!(world.get(&format!("/hostile/{}", host.addr("hostile"))).await, None);
    assert!(TcpStream::connect(host.addr("hostile")).await.is_err());
    assert_eq!(get(&host.url("plain")).await.status, 200);
    world.stands(&format!("/plain/{}", host.addr("plain"))).await;

    let readyz = get(&format!("{admin}readyz")).await;
    assert_eq!((readyz.status, readyz.body.as_str()), (200, "ready\n"), "the other one is served");
    let again = drain(&["hostile", "--admin", &admin, "--json"]).await;
    let rows: Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!((&rows[0]["phase"], &rows[0]["keys_gone"]), (&json!("drained"), &json!(true)));
    assert_eq!(drain(&["plain", "--admin", &admin]).await.code, Some(0));
    let readyz = get(&format!("{admin}readyz")).await;
    let all_drained = "not ready\nhostile: it is drained\nplain: it is drained\n";
    assert_eq!((readyz.status, readyz.body.as_str()), (503, all_drained));
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn admin_wrong_requests_get_an_error() {
    let world = World::real().await;
    let host = host(&world, [plain("plain")]).await;
    let admin = host.admin();
    let unknown = drain(&["plane", "--admin", &admin]).await;
    assert_eq!(
        (unknown.code, unknown.stderr.as_str()),
        (Some(64), "leasehold: no service is named plane; there is plain\n")
    );
    let unreachable = drain(&["plain", "--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(unreachable.code, Some(1));
    assert!(unreachable.stderr.starts_with("leasehold: no host answers at http://127.0.0.1:1 ("), "{unreachable:?}");
    let service = drain(&["plain", "--admin", host.url("plain").trim_end_matches('/')]).await;
    assert!(service.stderr.contains("not a leasehold admin endpoint"), "{service:?}");

    assert_eq!(ask("GET", &format!("{admin}drain/plain"), &[]).await.status, 405);
    assert_eq!(ask("POST", &format!("{admin}services"), &[]).await.status, 405);
    assert_eq!(get(&format!("{admin}nothing")).await.status, 404);
    // A web page in an operator's browser.
    let page = [("origin", "http://evil.example")];
    assert_eq!(ask("POST", &format!("{admin}drain/plain"), &page).await.status, 403);
    assert_eq!(ask("GET", &format!("{admin}services"), &[("host", "evil.example")]).await.status, 403);
    assert_eq!(get(&format!("{admin}readyz")).await.body, "ready\n");
}

#[tokio::test]
async fn admin_an_address_in_use_is_reported_before_anything_starts() {
    let world = World::real().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let addr = taken.local_addr().expect("it listens").to_string();
    let folder = TempDir::with_prefix("leasehold-admin-").expect("a temporary directory");
    let file = folder.path().join("services.yaml");
    let text = with(config(&world, [plain("plain")]), json!({ "admin": { "listen": addr } })).to_string();
    fs::write(&file, text).expect("the directory is our own");
    // For `check` it is a note, since the host that runs already may have it.
    for (command, code, said) in [
        ("check", 0, format!("note: admin: {addr} is in use at the moment")),
        ("run", 1, format!("admin: cannot listen on {addr}: ")),
    ] {
        let arguments = [Path::new(command), &file];
        let ended = Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.wrote(&said), "{command}: {ended:?}");
    }
    assert_eq!(world.count().await, 0);
}

/// Time limit of `/healthz`. A busy machine may exceed it now and then, but not each time.
const HEALTH_DEADLINE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn admin_answers_health_at_once_whatever_else_is_connected() {
    let world = World::real().await;
    let host = host(&world, [plain("plain")]).await;
    let addr = host.admin().trim_start_matches("http://").trim_end_matches('/').to_owned();
    for begun in ["", "GET /healthz HTTP/1.1\r\nhost: loc"] {
        for count in [70, 140, 1100] {
            let mut idle = Vec::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect(&addr).await.expect("it listens");
                // A connection that was closed in favour of a newer connection does not read.
                let _ = stream.write_all(begun.as_bytes()).await;
                idle.push(stream);
            }
            let mut best = Duration::MAX;
            for path in ["healthz", "readyz", "healthz", "readyz", "healthz"] {
                let begun = Instant::now();
                assert_eq!(get(&format!("{}{path}", host.admin())).await.status, 200);
                best = best.min(begun.elapsed());
            }
            assert!(best <= HEALTH_DEADLINE, "{best:?} beside {count} idle connections");
            // The oldest were closed in favour of newer connections, and the others because they are silent.
            for mut stream in idle {
                let end = timeout(SOON, stream.read(&mut [0])).await.expect("it is closed");
                drop(end); // With an answer (408) or without.
            }
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_answers_health_beside_requests_that_wait() {
    let world = World::real().await;
    let host = host(&world, [with(hostile("hostile"), json!({ "register": "host" })), plain("plain")]).await;
    let admin = host.admin();
    let slow = begin(&format!("{}act/slow", host.url("hostile"))).await;
    let addr = admin.trim_start_matches("http://").trim_end_matches('/').to_owned();
    // Drains wait for the request in flight; a few of them wait for the drain, and the others are refused.
    let token = paths::ADMIN_TOKEN;
    let request = format!("POST /drain/hostile HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut drains = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&addr).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        drains.push(stream);
    }
    assert_eq!(get(&format!("{admin}healthz")).await.body, "ok\n");
    assert_eq!(get(&format!("{admin}readyz")).await.body, "ready\n");
    let mut refused = 0;
    for mut stream in drains {
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.expect("it ends").expect("it is answered");
        refused += usize::from(!answer.starts_with("HTTP/1.1 200 "));
    }
    assert!(refused > 0, "each of them was waited for");
    assert_eq!(slow.answer().await.expect("it was in flight").status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_says_why_a_host_is_not_let_in() {
    let world = World::Real(Box::new(Etcd::options().user("root", "right-password").start().await));
    let mut host =
        Host::spawn(&with(config(&world, [plain("plain")]), json!({ "admin": { "listen": "127.0.0.1:0" } })), &[]);
    let waiting = host.says("waiting for etcd").await;
    assert_eq!(waiting["level"], "WARN");
    host.says("the admin endpoint listens").await;
    let readyz = get(&format!("{}readyz", host.admin())).await;
    assert_eq!(readyz.status, 503);
    assert!(readyz.body.contains("plain: it is starting"), "{}", readyz.body);
    assert!(readyz.body.contains("user name is empty") && readyz.body.contains("set etcd.user"), "{}", readyz.body);
    assert_eq!(world.count().await, 0, "it could not have taken its key back");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_is_not_ready_while_etcd_refuses_to_write_and_once_a_lease_has_run_out() {
    let mut world = World::Real(Box::new(Etcd::options().user("root", "right-password").start().await));
    let mut root = world.client().await;
    root.role_add("plains").await.unwrap();
    root.role_grant_permission("plains", Permission::read_write("/plain/").with_prefix()).await.unwrap();
    root.user_add("guest", "guest-password", None).await.unwrap();
    root.user_grant_role("guest", "plains").await.unwrap();
    let changes = json!({
        "admin": { "listen": "127.0.0.1:0" },
        "etcd": { "user": "guest", "password": "guest-password" },
    });
    let mut host = Host::ready(&with(config(&world, [plain("plain")]), changes)).await;
    let (readyz, optional) = (format!("{}readyz", host.admin()), format!("{}readyz?etcd=optional", host.admin()));
    root.user_revoke_role("guest", "plains").await.unwrap();
    wait_for("it is not ready", SOON, async || get(&readyz).await.status == 503).await;
    let body = get(&readyz).await.body;
    assert!(body.contains("permission denied") && body.contains("readwrite /plain/"), "{body}");
    let refused = host.says("refused by etcd").await;
    assert_eq!(refused["level"], "WARN");
    assert_eq!(get(&optional).await.body, "ready\n");
    root.user_grant_role("guest", "plains").await.unwrap();
    wait_for("it is ready", SOON, async || get(&readyz).await.body == "ready\n").await;

    world.kill();
    wait_for("its lease has run out", SOON, async || {
        let answer = get(&readyz).await;
        answer.status == 503 && answer.body.contains("has run out")
    })
    .await;
    assert_eq!(get(&optional).await.body, "ready\n");
    world.restart(true).await;
    wait_for("it is ready", SOON, async || get(&readyz).await.body == "ready\n").await;
    let count =
        host.log().iter().filter(|line| line["message"].as_str().unwrap().starts_with("refused by etcd")).count();
    assert_eq!(count, 1);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn admin_reports_the_awaited_key_and_its_holder() {
    let world = World::real().await;
    let addr = free_address();
    let (key, holder) = (format!("/plain/{addr}"), world.grant(60).await);
    world.put(&key, "the holder's value", holder).await;
    let changes = json!({ "admin": { "listen": "127.0.0.1:0" }, "registry": { "ownership": "wait" } });
    let plain = with(plain("plain"), json!({ "listen": addr }));
    let mut host = Host::spawn(&with(config(&world, [plain]), changes), &[]);
    let waiting = host.says("waiting for a key").await;
    assert_eq!(waiting["level"], "WARN");
    host.says("the admin endpoint listens").await;
    let readyz = get(&format!("{}readyz", host.admin())).await;
    assert_eq!(readyz.status, 503);
    for text in [waiting["message"].as_str().unwrap(), &readyz.body] {
        let tells = text.contains(&key) && text.contains(&format!("{holder:x}")) && text.contains("the holder's value");
        assert!(tells, "{text}");
    }
    world.revoke(holder).await;
    host.event("ready").await;
    assert_eq!(host.stop().await.code, Some(0));
}
