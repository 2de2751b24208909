//! Sandboxed: a component that breaks its policy gets an error, learns nothing, and leaves nothing in etcd.

use std::time::Duration;

use leasehold_end_to_end::{
    Host,
    config::{config, endpoint, greeter, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    real::Etcd,
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// The component that misbehaves, built for each version of the contract; the service is called `hostile` in each case.
const VERSIONS: [&str; 2] = ["hostile", "hostile-0-2"];

/// A secret in the host's configuration that no component may see.
const SECRET: &str = "hunter2-and-more";

async fn act(host: &Host, act: &str) -> (String, String) {
    let answer = get(&format!("{}act/{act}", host.url("hostile"))).await;
    assert_eq!(answer.status, 200, "{act}: {answer:?}");
    let answer = answer.json();
    (answer["case"].as_str().unwrap().to_owned(), answer["text"].as_str().unwrap().to_owned())
}

/// Asserts that an error text does not reveal the host's etcd or secrets.
fn tells_nothing(world: &World, text: &str) {
    let endpoint = endpoint(world);
    let port = endpoint.rsplit(':').next().unwrap();
    let sources = paths::workspace().display().to_string();
    for hidden in ["etcd", "grpc", "endpoint", "lease ", "root", "src/", &sources, SECRET, port] {
        assert!(!text.to_lowercase().contains(hidden), "{hidden:?} in {text:?}");
    }
}

#[tokio::test]
async fn sandboxed_each_refusal_has_its_case_and_nothing_is_registered() {
    for component in VERSIONS {
        let world = World::real().await;
        let host = Host::of(&world, [service("hostile", component)]).await;
        for (name, case, start) in [
            ("foreign-name", "access-denied", "name is not in this component's allow.names"),
            ("foreign-addr", "access-denied", "addr must be this component's own"),
            ("slash-in-name", "invalid-argument", "name must"),
            ("empty-name", "invalid-argument", "name must"),
            ("no-port", "invalid-argument", "addr must"),
            ("wildcard", "invalid-argument", "addr must"),
            ("huge-metadata", "invalid-argument", "metadata must"),
            ("weight-0", "invalid-argument", "weight must"),
            ("weight-101", "invalid-argument", "weight must"),
            ("ttl-max", "invalid-argument", "ttl-seconds must be at most 3600"),
            ("resolve-foreign", "access-denied", "name is not in this component's allow.discover"),
        ] {
            let outcome = act(&host, name).await;
            assert_eq!(outcome.0, case, "{name}: {outcome:?}");
            assert!(outcome.1.starts_with(start), "{name}: {outcome:?}");
            assert!(outcome.1.len() < 200, "{name}: {outcome:?}");
            tells_nothing(&world, &outcome.1);
            assert_eq!(world.count().await, 0, "{name}");
        }
        assert!(world.leases().await.is_empty());
        assert_eq!(host.stop().await.code, Some(0));
    }
}

#[tokio::test]
async fn sandboxed_a_thousand_registrations_end_at_the_quota_and_all_go() {
    for component in VERSIONS {
        let world = World::real().await;
        let host = Host::of(&world, [service("hostile", component)]).await;
        let outcome = act(&host, "thousand").await;
        assert_eq!(
            outcome,
            ("quota-exceeded".to_owned(), "this component may have 100 registrations at a time".to_owned())
        );
        assert_eq!(world.count().await, 100);
        // Its existing registrations stay.
        assert_eq!(act(&host, "foreign-name").await.0, "access-denied");
        assert_eq!(host.stop().await.code, Some(0));
        assert_eq!(world.count().await, 0);
        assert!(world.leases().await.is_empty());
    }
}

#[tokio::test]
async fn sandboxed_registering_and_stopping_in_a_loop_ends_at_the_quota() {
    for component in VERSIONS {
        let world = World::real().await;
        let host = Host::of(&world, [service("hostile", component)]).await;
        let outcome = act(&host, "churn").await;
        assert_eq!(outcome.0, "quota-exceeded", "{outcome:?}");
        assert!(
            outcome.1.starts_with("this component may register 200 times at once, and once in 1s after that"),
            "{outcome:?}"
        );
        // Each has come and gone; a slow machine earns some more meanwhile.
        let writes = world.revision().await;
        assert!((400..800).contains(&writes), "{writes}");
        assert_eq!(world.count().await, 0);
        wait_for("it may register again", SOON, async || act(&host, "register").await.0 == "ok").await;
        // What is registered already costs nothing.
        for _ in 0..5 {
            assert_eq!(act(&host, "register").await.0, "ok");
        }
        assert_eq!(host.stop().await.code, Some(0));
        assert_eq!(world.count().await, 0);
    }
}

#[tokio::test]
async fn sandboxed_a_thousand_lookups_of_unknown_names_leave_little_behind() {
    for component in VERSIONS {
        let world = World::real().await;
        let curious = with(service("hostile", component), json!({ "allow": { "discover": ["*"] } }));
        let host = Host::ready(&with(config(&world, [curious]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await;
        assert_eq!(act(&host, "lookups/8").await.0, "ok");
        let before = host.resident_bytes();
        assert_eq!(act(&host, "lookups/999").await, ("ok".to_owned(), "999".to_owned()));
        let followed = async || {
            let services = get(&format!("{}services", host.admin())).await.json();
            services[0]["views"].as_array().unwrap().len()
        };
        assert_eq!(followed().await, 128);
        let more = host.resident_bytes().saturating_sub(before);
        assert!(more < 48 << 20, "{} MiB more", more >> 20);
        let outcome = act(&host, "lookups/2000").await;
        assert_eq!(outcome.0, "quota-exceeded", "{outcome:?}");
        assert!(outcome.1.starts_with("this component may look up 1000 other services at once"), "{outcome:?}");
        tells_nothing(&world, &outcome.1);
        wait_for("it may look up others again", SOON, async || act(&host, "resolve/another").await.0 == "ok").await;
        assert_eq!(host.stop().await.code, Some(0));
    }
}

#[tokio::test]
async fn sandboxed_an_etcd_that_is_down_is_unavailable_and_no_more() {
    for component in VERSIONS {
        let mut world = World::real().await;
        let host = Host::of(&world, [service("hostile", component)]).await;
        world.kill();
        let (case, text) = act(&host, "register").await;
        assert!(case == "unavailable" || case == "timeout", "{case}: {text}");
        tells_nothing(&world, &text);
        world.restart(true).await;
        assert_eq!(world.count().await, 0);
        assert_eq!(act(&host, "register").await.0, "ok");
        assert_eq!(world.count().await, 1);
    }
}

#[tokio::test]
async fn sandboxed_a_request_that_traps_or_grows_fails_alone() {
    for component in VERSIONS {
        let world = World::real().await;
        let host = Host::of(&world, [service("hostile", component)]).await;
        for name in ["trap", "grow", "register-and-trap"] {
            let answer = get(&format!("{}act/{name}", host.url("hostile"))).await;
            assert_eq!((answer.status, answer.body.as_str()), (500, "the service failed\n"), "{name}");
            assert_eq!(get(&host.url("hostile")).await.status, 200, "{name}");
        }
        // A registration belongs to the component, not to the instance that trapped.
        assert_eq!(world.count().await, 1);
        assert_eq!(host.stop().await.code, Some(0));
        assert_eq!(world.count().await, 0);
    }
}

#[tokio::test]
async fn sandboxed_host_resources_of_a_component_are_limited() {
    for component in VERSIONS {
        let world = World::real().await;
        let host =
            Host::of(&world, [with(service("hostile", component), json!({ "limits": { "memory": "8MiB" } }))]).await;
        assert_eq!(get(&host.url("hostile")).await.status, 200);
        let (before, mut most) = (host.resident_bytes(), 0);
        let url = format!("{}act/hoard", host.url("hostile"));
        let hoarding = get(&url);
        tokio::pin!(hoarding);
        let answer = loop {
            tokio::select! {
                answer = &mut hoarding => break answer,
                () = sleep(Duration::from_millis(10)) => most = most.max(host.resident_bytes()),
            }
        };
        assert_eq!((answer.status, answer.body.as_str()), (500, "the service failed\n"));
        assert!(most < before + (256 << 20), "{} MiB more", (most - before) >> 20);
        assert_eq!(get(&host.url("hostile")).await.status, 200);
        assert_eq!(host.stop().await.code, Some(0));
    }
}

#[tokio::test]
async fn sandboxed_the_password_of_etcd_is_never_shown() {
    for component in VERSIONS {
        let etcd = Etcd::options().user("root", SECRET).start().await;
        let world = World::Real(Box::new(etcd));
        let user = json!({ "etcd": { "user": "root", "password": SECRET } });
        let config = with(config(&world, [service("hostile", component)]), user);
        let mut host = Host::spawn(&config, &["-vv"]);
        host.event("ready").await;
        assert_eq!(act(&host, "register").await.0, "ok");
        assert_eq!(world.count().await, 1);
        tells_nothing(&world, &act(&host, "foreign-addr").await.1);
        let ended = host.stop().await;
        assert_eq!(ended.code, Some(0));
        assert!(!ended.wrote(SECRET), "{ended:?}");
        assert_eq!(world.count().await, 0);
    }
}

/// The acts of a failing start, each with the host's error message.
const FAILING_STARTS: [(&str, &str); 18] = [
    ("trap", "hostile: lifecycle.start trapped: "),
    ("spin", "hostile: lifecycle.start took longer than 1s"),
    ("sleep", "hostile: lifecycle.start took longer than 1s"),
    ("grow", "hostile: lifecycle.start trapped: "),
    ("fail", "hostile: lifecycle.start failed: other: told to fail"),
    ("fail-in-red", "hostile: lifecycle.start failed: other: told to \u{fffd}[31mfail\u{fffd}\u{fffd}"),
    ("register-and-trap", "hostile: lifecycle.start trapped: "),
    ("register-and-fail", "hostile: lifecycle.start failed: other: told to fail"),
    ("foreign-name", "hostile: lifecycle.start failed: access-denied: name is not in"),
    ("foreign-addr", "hostile: lifecycle.start failed: access-denied: addr must"),
    ("slash-in-name", "hostile: lifecycle.start failed: invalid-argument: name must"),
    ("empty-name", "hostile: lifecycle.start failed: invalid-argument: name must"),
    ("no-port", "hostile: lifecycle.start failed: invalid-argument: addr must"),
    ("wildcard", "hostile: lifecycle.start failed: invalid-argument: addr must"),
    ("huge-metadata", "hostile: lifecycle.start failed: invalid-argument: metadata must"),
    ("weight-0", "hostile: lifecycle.start failed: invalid-argument: weight must"),
    ("ttl-max", "hostile: lifecycle.start failed: invalid-argument: ttl-seconds must"),
    ("thousand", "hostile: lifecycle.start failed: quota-exceeded: this component may have 100"),
];

#[tokio::test]
async fn sandboxed_a_start_that_fails_is_one_sentence_and_exit_code_1() {
    for component in VERSIONS {
        let world = World::real().await;
        for (name, start) in FAILING_STARTS {
            let patience = if ["spin", "sleep"].contains(&name) { "1s" } else { "20s" };
            let failing = with(
                service("hostile", component),
                json!({ "config": { "start": name }, "limits": { "start_timeout": patience } }),
            );
            let ended = Host::spawn(&config(&world, [failing]), &[]).ends().await;
            assert_eq!(ended.code, Some(1), "{name}: {ended:?}");
            let last: Value = serde_json::from_str(ended.stderr.lines().last().unwrap()).unwrap();
            assert!(last["message"].as_str().unwrap().starts_with(start), "{name}: {last}");
            assert_eq!(last["exit_code"], 1, "{name}: {last}");
            let errors = ended.stderr.lines().filter(|line| line.contains("\"ERROR\"")).count();
            assert_eq!(errors, 1, "{name}: {ended:?}");
            assert_eq!(world.count().await, 0, "{name}");
            assert!(world.leases().await.is_empty(), "{name}");
        }
    }
}

#[tokio::test]
async fn sandboxed_a_failed_start_undoes_the_registrations_of_its_neighbours() {
    for component in VERSIONS {
        let world = World::real().await;
        let failing = with(service("hostile", component), json!({ "config": { "start": "register-and-fail" } }));
        let ended = Host::spawn(&config(&world, [greeter(), failing.clone()]), &["--strict"]).ends().await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(world.count().await, 0);
        assert!(world.leases().await.is_empty());
        // Without `--strict` its neighbours stay, and only its own registrations are undone.
        let mut host = Host::spawn(&config(&world, [greeter(), failing]), &[]);
        host.says("the host is ready, without hostile").await;
        let key = format!("/greeter/v1/{}", host.addr("greeter"));
        wait_for("the neighbour stands alone", SOON, async || world.count().await == 1).await;
        world.stands(&key).await;
        assert_eq!(host.stop().await.code, Some(0));
        assert_eq!(world.count().await, 0);
    }
}

#[tokio::test]
async fn sandboxed_a_stop_that_traps_or_never_returns_does_not_block_the_host() {
    for component in VERSIONS {
        let world = World::real().await;
        for name in ["trap", "spin", "sleep", "fail", "register", "stop-twice"] {
            let failing = with(
                service("hostile", component),
                json!({ "config": { "stop": name }, "limits": { "stop_timeout": "1s" } }),
            );
            let host = Host::of(&world, [failing]).await;
            assert_eq!(act(&host, "register").await.0, "ok", "{name}");
            let ended = host.stop().await;
            assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
            assert_eq!(world.count().await, 0, "{name}");
            assert!(world.leases().await.is_empty(), "{name}");
        }
    }
}
