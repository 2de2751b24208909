//! Sandboxed by asynchronous functions: a component of 0.2 that floods them, leaves calls and watches behind, or reads nothing gets
//! errors, harms no neighbour, and leaves nothing in etcd.

use std::{
    mem,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Host,
    config::{config, endpoint, greeter, service, with},
    http::get,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tokio::time::sleep;

const NAME: &str = "hostile-p3";
/// Watches that a component may have open.
const MAX_WATCHES: usize = 256;
/// Registrations of a component at a time.
const MAX_REGISTRATIONS: usize = 100;

/// The component, which may look up these.
fn hostile(names: &[&str]) -> Value {
    with(service(NAME, NAME), json!({ "allow": { "discover": names } }))
}

/// A host with the component and a neighbour, and an admin endpoint.
async fn host(world: &World, hostile: Value) -> Host {
    Host::ready(&with(config(world, [hostile, greeter()]), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

/// Number of keys beside that of the neighbour.
async fn keys(world: &World) -> usize {
    usize::try_from(world.count().await).unwrap() - 1
}

/// Number of keys beside that of the neighbour, once it stays as it is.
async fn settle(world: &World) -> usize {
    let mut former = usize::MAX;
    wait_for("the keys are settled", SOON, async || {
        sleep(Duration::from_millis(300)).await;
        let now = keys(world).await;
        mem::replace(&mut former, now) == now
    })
    .await;
    former
}

async fn act(host: &Host, act: &str) -> (String, String) {
    let answer = get(&format!("{}act/{act}", host.url(NAME))).await;
    assert_eq!(answer.status, 200, "{act}: {answer:?}");
    let answer = answer.json();
    (answer["case"].as_str().unwrap().to_owned(), answer["text"].as_str().unwrap().to_owned())
}

fn ok(text: &impl ToString) -> (String, String) {
    ("ok".to_owned(), text.to_string())
}

async fn neighbour_answers(host: &Host) {
    let begun = Instant::now();
    assert_eq!(get(&host.url("greeter")).await.body, "hello\n");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A sample of the page of metrics.
async fn sample(host: &Host, name: &str) -> f64 {
    let page = get(&format!("{}metrics", host.admin())).await.body;
    let start = format!("{name}{{service=\"{NAME}\"");
    let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {start}: {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn put_node(world: &World, name: &str, addr: &str, weight: u32) {
    let value = json!({ "name": name, "addr": addr, "version": "", "weight": weight.to_string() });
    world.put(&format!("/{name}/{addr}"), &value.to_string(), 0).await;
}

/// Asserts that the host ends as it should, with every key of it gone.
async fn ends_clean(world: &World, host: Host, others: usize) {
    let begun = Instant::now();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(25), "the end took {:?}", begun.elapsed());
    assert_eq!(usize::try_from(world.count().await).unwrap(), others);
    assert!(world.leases().await.is_empty());
}

#[tokio::test]
async fn each_refusal_has_its_case_and_nothing_is_registered() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    let endpoint = endpoint(&world);
    let port = endpoint.rsplit(':').next().unwrap();
    for (name, case, start) in [
        ("foreign-name", "access-denied", "name is not in this component's allow.names"),
        ("foreign-addr", "access-denied", "addr must be this component's own"),
        ("empty-name", "invalid-argument", "name must"),
        ("huge-name", "invalid-argument", "name must"),
        ("zero-in-name", "invalid-argument", "name must"),
        ("huge-version", "invalid-argument", "version must"),
        ("huge-addr", "invalid-argument", "addr must"),
        ("wildcard", "invalid-argument", "addr must"),
        ("huge-metadata", "invalid-argument", "metadata must"),
        ("many-metadata", "invalid-argument", "metadata must"),
        ("weight-0", "invalid-argument", "weight must"),
        ("ttl-max", "invalid-argument", "ttl-seconds must be at most 3600"),
        ("resolve/stranger", "access-denied", "name is not in this component's allow.discover"),
        ("weight-after-stop", "not-registered", ""),
    ] {
        let outcome = act(&host, name).await;
        assert_eq!(outcome.0, case, "{name}: {outcome:?}");
        assert!(
            outcome.1.starts_with(start) && outcome.1.len() < 200 && !outcome.1.contains(port),
            "{name}: {outcome:?}"
        );
        assert_eq!(keys(&world).await, 0, "{name}");
    }
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn names_that_are_none_are_refused_in_every_function_by_a_short_text() {
    let world = World::real().await;
    let host = host(&world, hostile(&["*"])).await;
    let (case, text) = act(&host, "nonsense").await;
    assert_eq!(case, "ok", "{text}");
    assert!((1..200).contains(&text.parse::<usize>().unwrap()), "{text}");
    assert_eq!(sample(&host, "leasehold_open_watches").await, 0.0);
    neighbour_answers(&host).await;
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn registrations_begun_at_once_end_at_the_quota_and_all_go() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    let (outcome, ()) = tokio::join!(act(&host, "at-once/2000"), neighbour_answers(&host));
    assert_eq!(outcome, ok(&format!("{MAX_REGISTRATIONS} true")));
    assert_eq!(keys(&world).await, MAX_REGISTRATIONS);
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn registrations_one_after_the_other_end_at_the_quota() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    let quota = format!("this component may have {MAX_REGISTRATIONS} registrations at a time");
    assert_eq!(act(&host, "thousand").await, ("quota-exceeded".to_owned(), quota));
    assert_eq!(keys(&world).await, MAX_REGISTRATIONS);
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn registering_and_stopping_in_a_loop_ends_at_the_quota() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    let outcome = act(&host, "churn").await;
    assert_eq!(outcome.0, "quota-exceeded", "{outcome:?}");
    assert!(
        outcome.1.starts_with("this component may register 200 times at once, and once in 1s after that"),
        "{outcome:?}"
    );
    assert_eq!(keys(&world).await, 0);
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn calls_that_are_dropped_leave_nothing_that_does_not_end_with_the_service() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    let (case, left) = act(&host, "dropped/5000").await;
    assert_eq!(case, "ok");
    assert!(left.parse::<usize>().unwrap() <= MAX_REGISTRATIONS, "{left}");
    assert!(settle(&world).await <= MAX_REGISTRATIONS);
    neighbour_answers(&host).await;
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn a_stop_that_is_dropped_may_be_called_again_and_a_weight_too() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    assert_eq!(act(&host, "stop-dropped").await, ok(&0));
    assert_eq!(act(&host, "stop-twice").await, ok(&0));
    assert_eq!(keys(&world).await, 0);
    let before = world.revision().await;
    assert_eq!(act(&host, "weights").await, ok(&42));
    let writes = world.revision().await - before;
    assert!(writes < 40, "weights are written once a second at most: {writes}");
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn handles_that_are_never_given_back_end_their_instance_alone() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    assert_eq!(act(&host, "register").await.0, "ok");
    let before = host.resident_bytes();
    for name in ["handles", "trap", "register-and-trap"] {
        let answer = get(&format!("{}act/{name}", host.url(NAME))).await;
        assert_eq!((answer.status, answer.body.as_str()), (500, "the service failed\n"), "{name}");
        neighbour_answers(&host).await;
    }
    let more = host.resident_bytes().saturating_sub(before);
    assert!(more < 128 << 20, "{} MiB more", more >> 20);
    assert_eq!(keys(&world).await, 1, "the registration belongs to the component");
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn registrations_that_a_trap_breaks_off_are_in_etcd_or_nowhere() {
    let world = World::real().await;
    let host = host(&world, hostile(&[])).await;
    for _ in 0..3 {
        let answer = get(&format!("{}act/begin-and-trap", host.url(NAME))).await;
        assert_eq!((answer.status, answer.body.as_str()), (500, "the service failed\n"));
    }
    settle(&world).await;
    let listed = get(&format!("{}services", host.admin())).await.json();
    let hostile = listed.as_array().unwrap().iter().find(|service| service["service"] == NAME).unwrap();
    assert_eq!(hostile["registrations"].as_array().unwrap().len(), keys(&world).await, "{hostile}");
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn tasks_that_go_on_after_their_response_hold_up_neither_requests_nor_the_end() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    let limits = json!({ "limits": { "request_timeout": "3s", "drain_timeout": "3s" } });
    let host = host(&world, with(hostile(&["shop"]), limits)).await;
    for number in 0..300 {
        let answer = get(&format!("{}act/linger/shop", host.url(NAME))).await;
        assert_eq!(answer.status, 200, "{number}: {answer:?}");
    }
    neighbour_answers(&host).await;
    assert_eq!(get(&host.url(NAME)).await.status, 200);
    let open = sample(&host, "leasehold_open_watches").await;
    assert!(open <= MAX_WATCHES as f64, "{open}");
    ends_clean(&world, host, 1).await;
}

#[tokio::test]
async fn watches_that_are_left_behind_are_counted_and_end_with_the_service() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    for name in ["watches/shop", "unread/shop"] {
        let host = host(&world, hostile(&["shop"])).await;
        assert_eq!(sample(&host, "leasehold_open_watches").await, 0.0);
        assert_eq!(sample(&host, "leasehold_open_watches_limit").await, MAX_WATCHES as f64);
        let before = host.resident_bytes();
        let meanwhile = async {
            let open = async || sample(&host, "leasehold_open_watches").await;
            wait_for("all are counted", SOON, async || open().await == MAX_WATCHES as f64).await;
            for weight in 1..=100 {
                put_node(&world, "shop", "10.0.0.1:80", weight).await;
            }
            neighbour_answers(&host).await;
        };
        let (outcome, ()) = tokio::join!(act(&host, name), meanwhile);
        assert_eq!(outcome, ok(&MAX_WATCHES), "{name}");
        let more = host.resident_bytes().saturating_sub(before);
        assert!(more < 96 << 20, "{name}: {} MiB more", more >> 20);
        ends_clean(&world, host, 1).await;
    }
}

#[tokio::test]
async fn watches_that_are_opened_and_closed_without_end_leave_none_open() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    let limits = json!({ "limits": { "request_timeout": "60s" } });
    let host = host(&world, with(hostile(&["shop"]), limits)).await;
    assert_eq!(act(&host, "idle").await, ok(&""));
    let before = host.resident_bytes();
    let (outcome, ()) = tokio::join!(act(&host, "reopen/shop"), neighbour_answers(&host));
    assert_eq!(outcome, ok(&5000));
    wait_for("none is open", SOON, async || sample(&host, "leasehold_open_watches").await == 0.0).await;
    let more = host.resident_bytes().saturating_sub(before);
    assert!(more < 64 << 20, "{} MiB more", more >> 20);
    // One is the first state, and no other is due.
    let (case, came) = act(&host, "read-dropped/shop").await;
    assert!(case == "ok" && came.parse::<usize>().unwrap() <= 1, "{case} {came}");
    ends_clean(&world, host, 1).await;
}

#[tokio::test]
async fn a_watch_of_which_nothing_is_read_ends_with_its_request() {
    let world = World::real().await;
    put_node(&world, "shop", "10.0.0.1:80", 1).await;
    let limits = json!({ "limits": { "request_timeout": "2s" } });
    let host = host(&world, with(hostile(&["shop"]), limits)).await;
    let url = format!("{}act/read-nothing/shop", host.url(NAME));
    let (answer, ()) = tokio::join!(get(&url), neighbour_answers(&host));
    assert_eq!(answer.status, 504, "{answer:?}");
    wait_for("it is closed", SOON, async || sample(&host, "leasehold_open_watches").await == 0.0).await;
    neighbour_answers(&host).await;
    ends_clean(&world, host, 1).await;
}

#[tokio::test]
async fn look_ups_of_unknown_names_many_at_a_time_leave_little_behind() {
    let world = World::real().await;
    let host = host(&world, hostile(&["*"])).await;
    assert_eq!(act(&host, "lookups/8").await, ok(&0));
    let before = host.resident_bytes();
    assert_eq!(act(&host, "lookups/900").await, ok(&0));
    let services = get(&format!("{}services", host.admin())).await.json();
    let hostile = services.as_array().unwrap().iter().find(|service| service["service"] == NAME).unwrap();
    assert!(hostile["views"].as_array().unwrap().len() <= 128, "{hostile}");
    let more = host.resident_bytes().saturating_sub(before);
    assert!(more < 48 << 20, "{} MiB more", more >> 20);
    let (case, refused) = act(&host, "lookups/3000").await;
    assert!(case == "ok" && refused.parse::<usize>().unwrap() > 1500, "{case} {refused}");
    neighbour_answers(&host).await;
    ends_clean(&world, host, 0).await;
}

#[tokio::test]
async fn a_start_that_fails_or_never_ends_is_one_sentence_and_exit_code_1() {
    let world = World::real().await;
    for (name, start) in [
        ("trap", "hostile-p3: lifecycle.start trapped: "),
        ("spin", "hostile-p3: lifecycle.start took longer than 1s"),
        ("forever", "hostile-p3: lifecycle.start took longer than 1s"),
        ("register-and-trap", "hostile-p3: lifecycle.start trapped: "),
        ("register-and-fail", "hostile-p3: lifecycle.start failed: other: told to fail"),
        ("huge-name", "hostile-p3: lifecycle.start failed: invalid-argument: name must"),
        ("thousand", "hostile-p3: lifecycle.start failed: quota-exceeded: this component may have 100"),
    ] {
        let patience = if ["spin", "forever"].contains(&name) { "1s" } else { "20s" };
        let failing =
            with(hostile(&[]), json!({ "config": { "start": name }, "limits": { "start_timeout": patience } }));
        let ended = Host::spawn(&config(&world, [failing]), &[]).ends().await;
        assert_eq!(ended.code, Some(1), "{name}: {ended:?}");
        let last: Value = serde_json::from_str(ended.stderr.lines().last().unwrap()).unwrap();
        assert!(last["message"].as_str().unwrap().starts_with(start), "{name}: {last}");
        assert_eq!(world.count().await, 0, "{name}");
        assert!(world.leases().await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_stop_that_traps_or_never_returns_does_not_block_the_host() {
    let world = World::real().await;
    for name in ["trap", "spin", "forever", "register", "dropped/500", "watches/shop", "unread/shop", "stop-twice"] {
        let limits = json!({ "config": { "stop": name }, "limits": { "stop_timeout": "1s" } });
        let host = Host::of(&world, [with(hostile(&["shop"]), limits)]).await;
        assert_eq!(act(&host, "register").await.0, "ok", "{name}");
        let ended = host.stop().await;
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
        assert_eq!(world.count().await, 0, "{name}");
        assert!(world.leases().await.is_empty(), "{name}");
    }
}
