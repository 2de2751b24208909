//! The log: its first line, its times, its events, its level, and its form for the journal.

use std::{fs, path::Path, time::Duration};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, endpoint, plain, with},
    http::{get, post},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Asserts that a text is a time with a date and a zone.
fn is_time(text: &Value) {
    let text = text.as_str().unwrap();
    let digits = text.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!(digits, "0000-00-00T00:00:00.000000Z", "{text}");
}

fn with_admin(config: &Value) -> Value {
    with(config.clone(), json!({ "admin": { "listen": "127.0.0.1:0" } }))
}

#[tokio::test]
async fn the_first_line_says_what_runs_and_events_are_sentences_with_fields() {
    let world = World::real().await;
    let config = with(config(&world, [plain("plain")]), json!({ "etcd": { "user": null } }));
    let mut host = Host::ready(&config).await;
    let first = &host.log()[0];
    assert_eq!((&first["event"], &first["message"]), (&json!("start"), &json!("leasehold starts")));
    assert_eq!((&first["etcd"], &first["version"]), (&json!(endpoint(&world)), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(first["config"].as_str().unwrap().ends_with("services.yaml") && first["pid"].as_u64().is_some(), "{first}");

    let registered = host.says("the key is registered: ").await;
    assert_eq!((&registered["event"], &registered["service"]), (&json!("registered"), &json!("plain")));
    assert!(registered["key"].as_str().unwrap().starts_with("/plain/") && registered["lease"].as_str().is_some());

    let lines = host.log();
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    let all: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(all.len() > lines.len());
    all.iter().for_each(|line| is_time(&line["timestamp"]));
    let stopped = all.iter().find(|line| line["event"] == "stopped").unwrap();
    assert_eq!((&stopped["service"], &stopped["key"]), (&json!("plain"), &registered["key"]), "{stopped}");
}

#[tokio::test]
async fn every_line_is_a_sentence_and_its_durations_are_numbers() {
    let world = World::real().await;
    let listeners = json!({ "admin": { "listen": "127.0.0.1:0" }, "metrics": { "listen": "127.0.0.1:0" } });
    let mut host = Host::spawn(&with(config(&world, [plain("plain")]), listeners), &["-v"]);
    host.event("ready").await;
    for command in ["reload/plain", "drain/plain", "resume/plain", "reload"] {
        assert_eq!(post(&format!("{}{command}", host.admin())).await.status, 200, "{command}");
    }
    let ended = host.stop().await;
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let message = line["message"].as_str().unwrap();
        assert!(message.split_whitespace().count() > 1, "{line}");
    }
    for event in ["ready", "serving", "reloaded", "draining", "ended", "resumed"] {
        assert!(lines.iter().any(|line| line["event"] == event), "{event}: {lines:#?}");
    }
    let granted = lines.iter().find(|line| line["message"] == "etcd granted a lease").unwrap();
    assert!(granted["ttl_seconds"].as_f64().is_some() && granted.get("ttl").is_none(), "{granted}");
}

#[tokio::test]
async fn a_signal_and_a_request_change_the_level_for_a_while() {
    let world = World::real().await;
    let mut host = Host::ready(&with_admin(&config(&world, [plain("plain")]))).await;
    let debug = |host: &Host| host.log().iter().filter(|line| line["level"] == "DEBUG").count();
    assert_eq!(debug(&host), 0);
    host.signal("USR1");
    assert_eq!(host.says("the level of the log is changed for a while").await["seconds"], 600.0);
    host.says("the lease is renewed").await;
    host.signal("USR1");
    host.says("the level of the log is the usual one again").await;
    let before = debug(&host);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(debug(&host), before);

    let log = format!("{}log/", host.admin());
    let changed = post(&format!("{log}debug?for=600")).await;
    assert_eq!((changed.status, changed.json()), (200, json!({ "level": "debug", "for_seconds": 600 })));
    wait_for("there is more in the log", SOON, async || debug(&host) > before).await;
    let restored = post(&format!("{log}debug?for=0")).await;
    assert_eq!(restored.json(), json!({ "level": null, "for_seconds": 0 }));
    let usual = |host: &Host| host.log().iter().filter(|line| line["event"] == "log_level").count();
    wait_for("the usual level is back", SOON, async || usual(&host) == 4).await;
    assert_eq!(post(&format!("{log}trace?for=1")).await.status, 200);
    wait_for("it ends by itself", SOON, async || usual(&host) == 6).await;

    for (target, sentence) in [
        ("loud", "the level must be error, warn, info, debug or trace"),
        ("debug?for=90000", "the time must be for=0 to for=86400, in seconds"),
    ] {
        let refused = post(&format!("{log}{target}")).await;
        assert_eq!((refused.status, refused.json()["error"].as_str()), (400, Some(sentence)));
    }
    assert_eq!(get(&format!("{log}debug")).await.status, 405);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_verbose_log_is_of_this_program_and_has_no_frames() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-log-").unwrap();
    let file = file(&folder, &config(&world, [plain("plain")]));
    for verbosity in ["-v", "-vv"] {
        let arguments = ["--log-format", "text", verbosity, "run", &file];
        let mut host = Program::spawn(&paths::leasehold(), arguments, folder.path());
        host.line("ready", |line| line.contains(" ready")).await;
        host.line("a renewal", |line| line.contains("event=\"renewed\"")).await;
        host.signal("TERM");
        let ended = host.ends().await;
        assert!(ended.code == Some(0) && ended.stderr.contains("DEBUG"), "{ended:?}");
        for frames in ["Connection{", "FramedRead", "frame=", "received frame"] {
            assert!(!ended.stderr.contains(frames), "{frames}: {ended:?}");
        }
    }
}

/// Writes a configuration. Returns its path.
fn file(folder: &TempDir, config: &Value) -> String {
    let file = folder.path().join("services.yaml");
    fs::write(&file, config.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Runs the binary with the variable by which the journal is recognised; with a wrong one unless it is the journal.
fn under_journal(folder: &Path, is_it: bool, arguments: &str) -> Program {
    let stream = if is_it { "$(stat -L -c %d:%i /proc/self/fd/2)" } else { "1:1" };
    let script = format!("export JOURNAL_STREAM={stream}; exec {} {arguments}", paths::leasehold().display());
    Program::spawn(Path::new("/bin/sh"), ["-c", &script], folder)
}

#[tokio::test]
async fn the_journal_gets_priorities_in_the_place_of_times() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-log-").unwrap();
    let file = file(&folder, &config(&world, [plain("plain")]));
    for (format, begin) in [("text", "<6> INFO leasehold starts "), ("json", "<6>{\"level\":\"INFO\",")] {
        let mut host = under_journal(folder.path(), true, &format!("--log-format {format} run {file}"));
        host.line("ready", |line| line.contains("ready")).await;
        host.signal("TERM");
        let ended = host.ends().await;
        assert!(ended.code == Some(0) && ended.stderr.starts_with(begin), "{ended:?}");
        assert!(ended.stderr.lines().all(|line| line.starts_with('<') && line[2..].starts_with('>')), "{ended:?}");
        assert!(!ended.stderr.contains("timestamp") && !ended.stderr.contains("T0"), "{ended:?}");
    }
    let wrong = under_journal(folder.path(), true, "run nowhere.yaml").ends().await;
    assert!(wrong.code == Some(64) && wrong.stderr.starts_with("<3>leasehold: cannot read nowhere.yaml"), "{wrong:?}");
    let other = under_journal(folder.path(), false, "run nowhere.yaml").ends().await;
    assert!(other.stderr.starts_with("leasehold: "), "{other:?}");
}
