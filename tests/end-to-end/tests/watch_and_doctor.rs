//! `leasehold watch` and `leasehold doctor`, on an etcd with good nodes, stale nodes and invalid keys.

use std::{fs, process::Stdio, time::Duration};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{endpoint, greeter},
    paths,
};
use leasehold_scenarios::{
    proxy::{Mode, Proxy},
    real::{Authority, Etcd},
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

fn leasehold<const N: usize>(arguments: [&str; N], folder: &TempDir) -> Program {
    Program::spawn(&paths::leasehold(), arguments, folder.path())
}

async fn ended<const N: usize>(arguments: [&str; N]) -> Ended {
    leasehold(arguments, &TempDir::new().unwrap()).ends().await
}

fn value(name: &str, addr: &str, weight: u32) -> String {
    format!(r#"{{"name":"{name}","addr":"{addr}","version":"","weight":"{weight}"}}"#)
}

/// Waits for a line of JSON about a key, and returns it.
async fn change(program: &mut Program, what: &str, key: &str) -> Value {
    let fits =
        |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|line| line["change"] == what && line["key"] == key);
    serde_json::from_str(&program.line(&format!("{what} {key}"), fits).await).unwrap()
}

#[tokio::test]
async fn watch_reports_every_change_once() {
    let mut world = World::real().await;
    let etcd = endpoint(&world);
    world.put("/user/h:1", &value("user", "h:1", 10), 0).await;
    let folder = TempDir::new().unwrap();
    let mut json = leasehold(["watch", "--json", "--every", "100ms", "--etcd", &etcd], &folder);
    let mut text = leasehold(["watch", "user", "--every", "100ms", "--etcd", &etcd], &folder);
    change(&mut json, "present", "/user/h:1").await;
    let there = text.line("what is there", |line| line.contains("user")).await;
    let mut there = there.split_whitespace();
    assert!(there.next().unwrap().starts_with("20"), "a time comes first");
    assert!(there.eq(["user", "-", "h:1", "10", "no-lease", "-", "-"]));
    world.put("/user/h:1", &value("user", "h:1", 11), 0).await;
    let changed = change(&mut json, "changed", "/user/h:1").await;
    assert_eq!((&changed["weight"], &changed["revision"]), (&json!(11), &json!(world.revision().await)));
    assert!(changed["time"].as_str().unwrap().ends_with('Z'), "{changed}");
    text.line("what changed", |line| line.contains("Z  ~  user")).await;
    let greeter = Host::of(&world, [greeter()]).await;
    let key = format!("/greeter/v1/{}", greeter.addr("greeter"));
    assert_eq!(change(&mut json, "joined", &key).await["version"], "v1");
    world.kill();
    json.line("that etcd is gone", |line| line.contains("the last known state is shown")).await;
    world.restart(true).await;
    json.line("that etcd is back", |line| line.contains("etcd is back")).await;
    assert_eq!(greeter.stop().await.code, Some(0));
    change(&mut json, "left", &key).await;
    world.delete("/user/h:1").await;
    let left = change(&mut json, "left", "/user/h:1").await;
    assert_eq!(left["revision"], world.revision().await);
    text.line("what went", |line| line.contains("Z  -  user")).await;
    for program in [json, text] {
        program.signal("INT");
        let ended = program.ends().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        // Renewals are not changes.
        assert!(ended.stdout.lines().count() <= 6, "{ended:?}");
    }
}

#[tokio::test]
async fn watch_shows_changes_at_once_and_follows_a_restarted_etcd() {
    let mut world = World::real().await;
    let etcd = endpoint(&world);
    let lease = world.grant(60).await;
    world.put("/user/h:1", &value("user", "h:1", 10), lease).await;
    let folder = TempDir::new().unwrap();
    // The keys of one layout are among those of the other.
    let arguments = ["watch", "--json", "--every", "1h", "--layout", "seed", "--layout", "kratos", "--etcd", &etcd];
    let mut watch = leasehold(arguments, &folder);
    let there = change(&mut watch, "present", "/user/h:1").await;
    assert_eq!((&there["lease"], &there["state"]), (&json!(format!("{lease:x}")), &json!("ok")));
    assert!((1..=60).contains(&there["ttl_seconds"].as_u64().unwrap()), "{there}");
    let shop = json!({ "id": "1", "name": "shop", "version": "", "metadata": {}, "endpoints": ["grpc://127.0.0.1:9"] });
    world.put("/microservices/shop/1", &shop.to_string(), lease).await;
    let shop = change(&mut watch, "joined", "/microservices/shop/1").await;
    assert!((1..=60).contains(&shop["ttl_seconds"].as_u64().unwrap()), "{shop}");

    world.restart(true).await;
    watch.line("that etcd is back", |line| line.contains("etcd is back")).await;
    world.put("/user/h:1", &value("user", "h:1", 11), lease).await;
    assert_eq!(change(&mut watch, "changed", "/user/h:1").await["weight"], 11);
    world.put("/user/h:1", "garbage", lease).await;
    change(&mut watch, "left", "/user/h:1").await;
    world.restart(false).await;
    change(&mut watch, "left", "/microservices/shop/1").await;
    world.put("/user/h:2", &value("user", "h:2", 12), 0).await;
    change(&mut watch, "joined", "/user/h:2").await;
    watch.signal("INT");
    let ended = watch.ends().await;
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 6), "{ended:?}");
}

#[tokio::test]
async fn watch_and_doctor_need_an_etcd() {
    for command in ["watch", "doctor"] {
        let ended = ended([command, "--etcd", "http://127.0.0.1:9"]).await;
        assert_eq!(ended.code, Some(69), "{ended:?}");
        assert!(ended.stderr.starts_with("leasehold: etcd: http://127.0.0.1:9 cannot be reached"), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
    let pattern = ended(["watch", "user[", "--etcd", "http://127.0.0.1:9"]).await;
    assert_eq!(pattern.code, Some(64), "{pattern:?}");
    assert!(pattern.stderr.contains("NAME: \"user[\" is no pattern"), "{pattern:?}");
    let wrong = ended(["watch", "--every", "1ms"]).await;
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    assert!(wrong.stderr.contains("must be 100ms or more"), "{wrong:?}");
}

#[tokio::test]
async fn doctor_finds_faults_and_names_the_remedy() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let host = Host::of(&world, [greeter()]).await;
    let healthy = ended(["doctor", "--etcd", &etcd]).await;
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    // An old etcd is noted.
    assert!(healthy.stdout.contains("keys: 1, nodes: 1\n") && healthy.stdout.ends_with(" is wrong\n"), "{healthy:?}");

    // A port without a listener: the port of the discard protocol.
    world.put("/ghost/127.0.0.1:9", &value("ghost", "127.0.0.1:9", 10), 0).await;
    world.put("/user/half", "{\"name\":\"us", 0).await;
    world.put("/user/127.0.0.1:1", &value("user", "127.0.0.1:2", 10), 0).await;
    // A key of another layout, which is not checked.
    let shop = json!({ "id": "1", "name": "shop", "version": "", "metadata": {}, "endpoints": ["grpc://127.0.0.1:9"] });
    world.put("/microservices/shop/1", &shop.to_string(), 0).await;
    let lease = world.grant(60).await;
    let addr = host.addr("greeter");
    world.put(&format!("/other/{addr}"), &value("other", &addr, 10), lease).await;
    let sick = ended(["doctor", "--json", "--etcd", &etcd]).await;
    assert_eq!((sick.code, sick.stderr.as_str()), (Some(1), "leasehold: 5 findings\n"), "{sick:?}");
    let report: Value = serde_json::from_str(&sick.stdout).unwrap();
    let findings: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|f| (f["kind"].clone(), f["key"].clone())).collect();
    let shared = format!("/greeter/v1/{addr}");
    for (kind, key) in [
        ("no-lease", "/ghost/127.0.0.1:9"),
        ("unreachable", "/ghost/127.0.0.1:9"),
        ("not-a-node", "/user/half"),
        ("not-a-node", "/user/127.0.0.1:1"),
        ("shared-address", &shared),
    ] {
        assert!(findings.contains(&(json!(kind), json!(key))), "{kind} {key}: {findings:?}");
    }
    assert!(sick.stdout.contains("must agree with its value"), "{sick:?}");
    let is_old = report["etcd"].as_str().unwrap().starts_with("3.4.");
    let notes = report["notes"].as_array().unwrap();
    let is_noted = notes
        .iter()
        .any(|note| note["kind"] == "etcd-release" && note["found"].as_str().unwrap().contains("not maintained"));
    assert_eq!(is_noted, is_old, "{notes:?}");
    let text = ended(["doctor", "--no-dial", "--etcd", &etcd]).await;
    let command = format!("  command: etcdctl --endpoints={etcd} del -- /ghost/127.0.0.1:9\n");
    assert!(text.stdout.contains(&command), "{text:?}");
    assert!(!text.stdout.contains("unreachable"), "{text:?}");
}

/// Results of `doctor --fix --yes`: key and outcome.
async fn fixed(etcd: &str) -> (Vec<(String, String)>, Ended) {
    let ended = ended(["doctor", "--fix", "--yes", "--json", "--etcd", etcd]).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let fixed = report["fixed"].as_array().unwrap().iter();
    (fixed.map(|fixed| (text(&fixed["key"]), text(&fixed["outcome"]))).collect(), ended)
}

#[tokio::test]
async fn doctor_prints_commands_in_which_no_key_is_executed() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let folder = TempDir::new().unwrap();
    for name in ["$(touch${IFS}pwned)", "`touch${IFS}pwned`", "';touch${IFS}pwned;'", "\";touch${IFS}pwned;\""] {
        let key = format!("/{name}/127.0.0.1:9");
        world
            .put(&key, &json!({ "name": name, "addr": "127.0.0.1:9", "version": "", "weight": "5" }).to_string(), 0)
            .await;
        let sick = ended(["doctor", "--no-dial", "--json", "--etcd", &etcd]).await;
        let report: Value = serde_json::from_str(&sick.stdout).unwrap();
        let command = report["findings"][0]["command"].as_str().unwrap();
        // Pasted, without a word about where that etcd is.
        let mut pasted = tokio::process::Command::new("sh");
        pasted.args(["-c", command]).env("ETCDCTL_API", "3").current_dir(folder.path());
        let pasted = pasted.output().await.unwrap();
        assert!(pasted.status.success(), "{command}: {pasted:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{command} was executed");
        assert_eq!(world.get(&key).await, None, "{command}");
    }
    // What moves a terminal's cursor is no command, and can be deleted all the same.
    world.put("/\u{1b}[2J/127.0.0.1:9", "garbage", 0).await;
    let sick = ended(["doctor", "--no-dial", "--json", "--etcd", &etcd]).await;
    let report: Value = serde_json::from_str(&sick.stdout).unwrap();
    assert_eq!(report["findings"][0]["command"], Value::Null, "{sick:?}");
}

#[tokio::test]
async fn doctor_deletes_leftover_keys_only() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = living.local_addr().unwrap().to_string();
    let legacy = format!("/legacy/{addr}");
    world.put(&legacy, &value("legacy", &addr, 10), 0).await;
    world.put("/ghost/127.0.0.1:9", &value("ghost", "127.0.0.1:9", 10), 0).await;
    world.put("/other/settings", "of another application", 0).await;
    let lease = world.grant(60).await;
    world.put("/user/127.0.0.1:9", &value("user", "127.0.0.1:9", 10), lease).await;
    let (fixed, ended) = fixed(&etcd).await;
    let expected = [("/ghost/127.0.0.1:9", "deleted"), (legacy.as_str(), "left"), ("/other/settings", "left")];
    assert_eq!(fixed, expected.map(|(key, outcome)| (key.to_owned(), outcome.to_owned())));
    // The legacy key and the settings.
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), "leasehold: 2 findings\n"), "{ended:?}");
    assert_eq!(world.get("/ghost/127.0.0.1:9").await, None);
    assert_eq!(world.count().await, 3);
}

#[tokio::test]
async fn doctor_fixes_nothing_that_changed_after_it_was_examined() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    for key in ["/a/127.0.0.1:9", "/b/127.0.0.1:9", "/c/127.0.0.1:9"] {
        world.put(key, &value(&key[1..2], "127.0.0.1:9", 10), 0).await;
    }
    let mut doctor = tokio::process::Command::new(paths::leasehold())
        .args(["doctor", "--no-dial", "--fix", "--etcd", &etcd])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut input, mut questions) = (doctor.stdin.take().unwrap(), doctor.stderr.take().unwrap());
    for (key, answer) in [("/a/127.0.0.1:9", "y\n"), ("/b/127.0.0.1:9", "\n"), ("/c/127.0.0.1:9", "y\n")] {
        let mut question = Vec::new();
        while !question.ends_with(b"[y/N] ") {
            question.push(timeout(SOON, questions.read_u8()).await.unwrap().unwrap());
        }
        let question = String::from_utf8(question).unwrap();
        assert_eq!(question, format!("{key}: no-lease; delete it? [y/N] "));
        if key.starts_with("/a") {
            // Its service came back while the operator thought about it.
            world.put(key, &value("a", "127.0.0.1:9", 11), 0).await;
        }
        input.write_all(answer.as_bytes()).await.unwrap();
    }
    let ended = timeout(SOON, doctor.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    let outcomes = "/a/127.0.0.1:9: left alone: it has changed since it was examined\n\
                    /b/127.0.0.1:9: left alone\n/c/127.0.0.1:9: deleted\n";
    assert!(said.ends_with(outcomes), "{said}");
    assert_eq!(ended.status.code(), Some(1));
    assert!(world.get("/a/127.0.0.1:9").await.is_some() && world.get("/b/127.0.0.1:9").await.is_some());
    assert_eq!(world.get("/c/127.0.0.1:9").await, None);
    let json = self::ended(["doctor", "--fix", "--json", "--etcd", &etcd]).await;
    assert_eq!(json.code, Some(64), "{json:?}");
}

/// The findings of a doctor that need not dial: kind and key.
async fn findings(etcd: &[&str], layouts: &[&str]) -> (Vec<(String, Option<String>)>, Ended) {
    let etcd = etcd.iter().flat_map(|etcd| ["--etcd", etcd]);
    let layouts = layouts.iter().flat_map(|layout| ["--layout", layout]);
    let arguments = ["doctor", "--no-dial", "--json"].into_iter().chain(etcd).chain(layouts);
    let ended = Program::spawn(&paths::leasehold(), arguments, TempDir::new().unwrap().path()).ends().await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let finding = |finding: &Value| {
        assert!(!finding["cure"].as_str().unwrap().is_empty(), "{finding}");
        (finding["kind"].as_str().unwrap().to_owned(), finding["key"].as_str().map(str::to_owned))
    };
    (report["findings"].as_array().unwrap().iter().map(finding).collect(), ended)
}

fn finding(kind: &str, key: &str) -> (String, Option<String>) {
    (kind.to_owned(), Some(key.to_owned()))
}

#[tokio::test]
async fn doctor_finds_a_weight_of_the_wrong_type() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let lease = world.grant(60).await;
    let text = value("text", "h:1", 73);
    let number = r#"{"name":"number","addr":"h:2","version":"","weight":73}"#;
    world.put("/text/h:1", &text, lease).await;
    world.put("/number/h:2", number, lease).await;
    let (found, ended) = findings(&[&etcd], &["seed"]).await;
    assert_eq!((found, ended.code), (vec![finding("wrong-weight", "/number/h:2")], Some(1)));
    assert!(
        ended.stdout.contains("as it is in the layout grpc-todolist: weight must be a string in JSON"),
        "{ended:?}"
    );
    let (found, ended) = findings(&[&etcd], &["grpc-todolist"]).await;
    assert_eq!((found, ended.code), (vec![finding("wrong-weight", "/text/h:1")], Some(1)));
    assert!(ended.stdout.contains("as it is in the layout seed: weight must be a number in JSON"), "{ended:?}");
}

#[tokio::test]
async fn doctor_finds_conflicting_keys() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let lease = world.grant(60).await;
    let shop = |id: &str| {
        json!({ "id": id, "name": "shop", "version": "", "metadata": {}, "endpoints": ["grpc://h:3"] }).to_string()
    };
    world.put("/microservices/shop/1", &shop("1"), lease).await;
    assert_eq!(findings(&[&etcd], &["seed"]).await.0, []);
    // A service with the name of kratos' prefix, and a registry whose prefix is a service's name.
    world.put("/microservices/h:1", &value("microservices", "h:1", 1), lease).await;
    world.put("/prod/user/h:2", &value("user", "h:2", 1), lease).await;
    let colliding = [finding("colliding-prefix", "/microservices/"), finding("colliding-prefix", "/prod/user/h:2")];
    let (found, ended) = findings(&[&etcd], &["seed"]).await;
    assert!(found.iter().all(|found| colliding.contains(found)) && found.len() == 2, "{ended:?}");
    assert!(ended.stdout.contains("clients look for microservices here, where keys of kratos stand: 1"), "{ended:?}");
    let (found, ended) = findings(&[&etcd], &["seed", "kratos"]).await;
    assert!(found.contains(&colliding[0]), "{ended:?}");
    assert!(ended.stdout.contains("where keys of shop stand"), "{ended:?}");
}

#[tokio::test]
async fn doctor_finds_an_instance_that_is_registered_twice() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let shop = |id: &str| {
        json!({ "id": id, "name": "shop", "version": "", "metadata": {}, "endpoints": ["grpc://h:1"] }).to_string()
    };
    let (before, now) = (world.grant(60).await, world.grant(60).await);
    // The instance has two leases, one per layout.
    world.put("/shop/h:1", &value("shop", "h:1", 1), before).await;
    world.put("/microservices/shop/2", &shop("2"), now).await;
    assert_eq!(findings(&[&etcd], &["seed", "kratos"]).await.0, []);
    world.put("/microservices/shop/1", &shop("1"), before).await;
    let (found, ended) = findings(&[&etcd], &["kratos"]).await;
    assert_eq!(found, [finding("duplicate-address", "/microservices/shop/1")]);
    assert!(ended.stdout.contains("under other leases, too: /microservices/shop/2"), "{ended:?}");
    let changed = r#"{"name":"shop","addr":"h:1","version":"v2","weight":"1"}"#;
    world.put("/shop/v2/h:1", changed, now).await;
    assert_eq!(findings(&[&etcd], &["seed"]).await.0, [finding("duplicate-address", "/shop/h:1")]);
}

#[tokio::test]
async fn doctor_finds_faults_of_etcd_itself() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let about_etcd = |kind: &str| (kind.to_owned(), None);
    let (found, ended) = findings(&[&etcd, "http://127.0.0.1:9"], &[]).await;
    assert_eq!(found, [about_etcd("member-away")], "{ended:?}");
    assert!(ended.stdout.contains("http://127.0.0.1:9 cannot be reached"), "{ended:?}");

    let proxy = Proxy::start(etcd.trim_start_matches("http://")).await;
    proxy.set(Mode::Slow(Duration::from_millis(200)));
    let (found, ended) = findings(&[&proxy.endpoint()], &[]).await;
    assert_eq!(found, [about_etcd("slow-etcd")], "{ended:?}");

    let mut client = world.client().await;
    let member = client.member_list().await.unwrap().members()[0].id();
    let mut of_member = AlarmOptions::new();
    of_member.with_member(member);
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(of_member)).await.unwrap();
    let (found, ended) = findings(&[&etcd], &[]).await;
    assert_eq!((found, ended.code), (vec![about_etcd("alarm")], Some(1)));
    assert!(ended.stdout.contains("NOSPACE") && ended.stdout.contains("alarm disarm"), "{ended:?}");
}

#[tokio::test]
async fn doctor_notes_a_renewed_lease_without_keys() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let _host = Host::of(&world, [greeter()]).await; // Its lease has a key.
    let elsewhere = world.grant(60).await;
    world.put("lock/1", "no key of the layout", elsewhere).await;
    let lost = world.grant(4).await;
    let (mut keeper, mut answers) = world.client().await.lease_keep_alive(lost).await.unwrap();
    let renewing = async {
        loop {
            keeper.keep_alive().await.unwrap();
            assert!(answers.message().await.unwrap().unwrap().ttl() > 0, "the lease is gone");
            sleep(Duration::from_secs(1)).await;
        }
    };
    let looking = async {
        world.grant(5).await; // This lease is not renewed.
        ended(["doctor", "--json", "--etcd", &etcd]).await
    };
    let noted = tokio::select! {
        never = renewing => never,
        noted = looking => noted,
    };
    assert_eq!(noted.code, Some(0), "{noted:?}");
    assert!(noted.stderr.contains("leases without keys: 2; observing them for up to 10 s"), "{noted:?}");
    let report: Value = serde_json::from_str(&noted.stdout).unwrap();
    let counted = json!({ "all": 4, "renewed_without_keys": 1, "unrenewed_without_keys": 1, "left_out": 0 });
    assert_eq!(report["leases"], counted, "{noted:?}");
    let is_of_a_lease = |note: &&Value| note["kind"] != "etcd-release";
    let notes: Vec<_> = report["notes"].as_array().unwrap().iter().filter(is_of_a_lease).collect();
    let [note] = notes.as_slice() else { panic!("{noted:?}") };
    assert_eq!(note["kind"], "lease-without-keys");
    assert!(note["found"].as_str().unwrap().starts_with(&format!("lease {lost:x} holds no key")), "{note}");
    assert_eq!((&report["findings"], &report["clock_skew_seconds"]), (&json!([]), &json!(0)), "{noted:?}");
}

/// A proxy in front of an etcd whose HTTP responses have another time.
async fn out_of_time(etcd: &str) -> String {
    let (target, listener) =
        (etcd.trim_start_matches("http://").to_owned(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move {
                let mut first = [0; 1];
                client.peek(&mut first).await.unwrap();
                if first == *b"G" {
                    let _ = client.read(&mut [0; 1024]).await.unwrap(); // Unread bytes would reset the connection.
                    let date = "Thu, 01 Jan 2015 00:00:00 GMT";
                    let answer = format!("HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n");
                    client.write_all(answer.as_bytes()).await.unwrap();
                } else {
                    let _ = copy_bidirectional(&mut client, &mut server).await; // Until one side closes.
                }
            });
        }
    });
    format!("http://{addr}")
}

#[tokio::test]
async fn doctor_finds_a_clock_that_is_wrong() {
    let world = World::real().await;
    let etcd = out_of_time(&endpoint(&world)).await;
    let wrong = ended(["doctor", "--etcd", &etcd]).await;
    assert_eq!((wrong.code, wrong.stderr.as_str()), (Some(1), "leasehold: 1 finding\n"), "{wrong:?}");
    assert!(wrong.stdout.contains("\netcd\n  clock: this machine's clock is "), "{wrong:?}");
    assert!(wrong.stdout.contains(&format!(" s ahead of that of {etcd}\n  cure: let NTP")), "{wrong:?}");
}

#[tokio::test]
async fn doctor_reads_the_time_with_the_certificates_of_the_configuration() {
    let authority = Authority::new("ours");
    let etcd = Etcd::options().tls(authority.server()).mutual_tls(authority.certificate()).start().await;
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let client = authority.client("doctor");
    write("ca.pem", &authority.certificate());
    write("client.pem", &client.certificate);
    write("client.key", &client.key);
    let tls = "tls: { ca: ca.pem, cert: client.pem, key: client.key }";
    let service = "services: [{ name: user, component: user.wasm, listen: 127.0.0.1:0 }]";
    write("services.yaml", &format!("etcd: {{ endpoints: [\"{}\"], {tls} }}\n{service}\n", etcd.endpoint()));
    let config = folder.path().join("services.yaml");
    let report = ended(["doctor", "--json", "--config", config.to_str().unwrap()]).await;
    assert_eq!(report.code, Some(0), "{report:?}");
    assert_eq!(serde_json::from_str::<Value>(&report.stdout).unwrap()["clock_skew_seconds"], 0, "{report:?}");
}
