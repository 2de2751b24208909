//! `leasehold ls` and `leasehold watch` in a terminal, on a real etcd.

use leasehold_end_to_end::{
    Host,
    config::{config, endpoint, hostile, with},
    http::get,
    paths,
    terminal::Terminal,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Columns and lines.
type Size = (u16, u16);

const SIZE: Size = (100, 24);

fn leasehold<const N: usize>(arguments: [&str; N], size: Size, variables: &[(&str, &str)]) -> (Terminal, TempDir) {
    let folder = TempDir::new().unwrap();
    (Terminal::spawn(&paths::leasehold(), arguments, folder.path(), size, variables), folder)
}

fn value(name: &str, addr: &str, weight: u32) -> String {
    format!(r#"{{"name":"{name}","addr":"{addr}","version":"","weight":"{weight}"}}"#)
}

/// An etcd with fifty nodes, and a key that is not a node.
async fn fifty() -> World {
    let world = World::real().await;
    for number in 10..60 {
        let addr = format!("10.0.0.{number}:8000");
        world.put(&format!("/user/{addr}"), &value("user", &addr, 50), 0).await;
    }
    world.put("/user/half", "{", 0).await;
    world
}

fn starts(line: usize, start: &str) -> impl Fn(&[String]) -> bool {
    move |lines| lines.get(line).is_some_and(|line| line.trim_start().starts_with(start))
}

fn has(text: &str) -> impl Fn(&[String]) -> bool {
    move |lines| lines.iter().any(|line| line.contains(text))
}

/// Seconds since the last sign of life of etcd, if the screen has them.
fn age(lines: &[String]) -> Option<u64> {
    let line = lines.iter().find_map(|line| line.strip_prefix("etcd has not responded for "))?;
    let (seconds, from) = line.split_once(" s; this is from ")?;
    assert_eq!(from.split("  ").next().unwrap().len(), "20:54:55".len(), "{line}");
    seconds.parse().ok()
}

#[tokio::test]
async fn watch_fills_the_screen_and_restores_it() {
    let world = fifty().await;
    let (mut watch, _folder) = leasehold(["watch", "--etcd", &endpoint(&world)], SIZE, &[]);
    watch.shows("all nodes", starts(0, "50 nodes of 1 service: 50 no-lease")).await;
    watch.shows("the headings", starts(1, "NAME  VERSION  ADDR")).await;
    watch.shows("the first node", |lines| lines[2].contains("10.0.0.10:8000")).await;
    watch.shows("invalid keys", has("1 key is not a node; leasehold doctor says why")).await;
    assert!(watch.is_full_screen() && watch.hides_cursor());

    world.put("/user/10.0.0.59:8000", &value("user", "10.0.0.59:8000", 51), 0).await;
    watch.shows("a change at the top", |lines| lines[2].starts_with("~  user") && lines[2].contains("10.0.0.59")).await;
    watch.shows("it in its place", |lines| lines[2].contains("10.0.0.10:8000")).await;
    watch.press("\x1b[F").await;
    watch.shows("the last node", |lines| lines[21].contains("10.0.0.59:8000")).await;
    watch.press("/0.31:").await;
    watch.shows("the filter", |lines| lines[23].starts_with("/0.31:") && lines[2].contains("10.0.0.31:8000")).await;
    watch.press("\r").await;
    watch.shows("the keys", has("q quit")).await;
    watch.press("q").await;
    let (code, left) = watch.ends().await;
    assert_eq!(code, Some(0), "{left:?}");
    assert!(!left.is_full_screen && !left.hides_cursor, "{left:?}");
    assert!(left.lines.iter().all(String::is_empty), "{left:?}");
}

#[tokio::test]
async fn watch_shows_the_age_of_its_rows_while_etcd_is_silent() {
    let world = fifty().await;
    let World::Real(etcd) = &world else { panic!("a real etcd") };
    let (watch, _folder) = leasehold(["watch", "--etcd", &endpoint(&world)], SIZE, &[]);
    watch.shows("that etcd responds", has(" responds")).await;
    etcd.pause();
    watch.shows("an outage", |lines| age(lines).is_some_and(|age| age >= 3)).await;
    watch.shows("a growing age", |lines| age(lines).is_some_and(|age| age >= 5)).await;
    watch.shows("the rows all the same", |lines| lines[2].contains("10.0.0.10:8000")).await;
    etcd.resume();
    watch.shows("that etcd responds again", has(" responds")).await;
    // A supervisor ends it, and the terminal is as it was.
    watch.signal("TERM");
    let (code, left) = watch.ends().await;
    assert_eq!(code, Some(0), "{left:?}");
    assert!(!left.is_full_screen && !left.hides_cursor, "{left:?}");
}

#[tokio::test]
async fn watch_that_cannot_begin_leaves_the_terminal_alone() {
    let (watch, _folder) = leasehold(["watch", "--etcd", "http://127.0.0.1:9"], SIZE, &[]);
    let (code, left) = watch.ends().await;
    assert_eq!(code, Some(69), "{left:?}");
    assert!(left.lines[0].starts_with("leasehold: etcd: http://127.0.0.1:9 cannot be reached"), "{left:?}");
    assert!(!left.bytes.contains("\x1b[?1049h"), "it opened a full screen: {left:?}");
}

#[tokio::test]
async fn ls_fits_the_terminal_and_has_colors() {
    let world = World::real().await;
    let name = "a-service-with-a-name-that-is-longer-than-most-others-are";
    let addr = "[2001:db8:1234:5678:9abc:def0:1234:5678]:10002";
    world.put(&format!("/{name}/{addr}"), &value(name, addr, 9), 0).await;
    world.put("/user/h:1", &value("user", "h:1", 100), world.grant(60).await).await;
    let etcd = endpoint(&world);
    for columns in [40, 60, 80] {
        let (ls, _folder) = leasehold(["ls", "--etcd", &etcd], (columns, 24), &[]);
        let (code, left) = ls.ends().await;
        assert_eq!((code, left.lines.len()), (Some(0), 4), "{left:?}");
        assert!(left.lines[1].contains('…') && left.lines[2].starts_with("u"), "{left:?}");
        assert_eq!(left.lines[3], "2 nodes of 2 services: 1 ok, 1 no-lease", "{left:?}");
        assert!(left.bytes.contains("\x1b[32mok\x1b[0m"), "{left:?}");
    }
    let (ls, _folder) = leasehold(["ls", "--etcd", &etcd], (200, 24), &[("NO_COLOR", "1")]);
    let (_, left) = ls.ends().await;
    assert!(left.lines[1].contains(addr) && left.lines[1].contains(name), "{left:?}");
    assert!(!left.bytes.contains('\x1b'), "{left:?}");
}

#[tokio::test]
async fn drain_counts_the_requests_that_it_waits_for() {
    let world = World::real().await;
    let slow = json!({ "register": "host", "limits": { "drain_timeout": "4s", "request_timeout": "60s" } });
    let admin = json!({ "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(&world, [with(hostile("hostile"), slow)]), admin)).await;
    let url = format!("{}act/sleep", host.url("hostile"));
    let requests = [0, 1].map(|_| {
        tokio::spawn({
            let url = url.clone();
            async move { get(&url).await }
        })
    });
    let is_asleep = |line: &Value| line["message"] == "sleeping";
    wait_for("both are served", SOON, async || host.log().iter().filter(|line| is_asleep(line)).count() == 2).await;
    let (admin, token) = (host.admin(), paths::admin_token().display().to_string());
    let drain = ["drain", "hostile", "--admin", &admin, "--token-file", &token];
    let (drain, _folder) = leasehold(drain, SIZE, &[]);
    drain.shows("the requests", has("draining hostile: 2 requests in flight")).await;
    let (code, left) = drain.ends().await;
    assert_eq!(code, Some(0), "{left:?}");
    let shown: Vec<_> = left.lines.iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(shown.len(), 1, "{left:?}");
    assert!(shown[0].ends_with("is drained; requests were cut off"), "{left:?}");
    for request in requests {
        assert!(request.await.is_err(), "it was cut off");
    }
}
