//! Notifications to systemd, received by a socket in its place.

use std::{cell::RefCell, time::Duration};

use leasehold_end_to_end::{
    Host,
    config::{config, plain, with},
};
use leasehold_scenarios::world::{SOON, World};
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::UnixDatagram, time::timeout};

/// The interval of the watchdog.
const INTERVAL: Duration = Duration::from_millis(400);

#[tokio::test]
async fn systemd_is_notified_of_the_start_the_life_and_the_end() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-systemd-").expect("a temporary directory");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("the directory is our own");
    // The status in words comes at any time.
    let statuses = RefCell::new(Vec::new());
    let hear = async || loop {
        let mut bytes = [0; 256];
        let heard = timeout(SOON, socket.recv(&mut bytes)).await.expect("it says something");
        let heard = String::from_utf8_lossy(&bytes[..heard.expect("a socket can be read")]).trim_end().to_owned();
        match heard.strip_prefix("STATUS=") {
            Some(status) => statuses.borrow_mut().push(status.to_owned()),
            None => return heard,
        }
    };
    let shows = async |status: &str| {
        while !statuses.borrow().iter().any(|shown| shown == status) {
            hear().await;
        }
    };
    let interval = INTERVAL.as_micros().to_string();
    let path = path.to_str().expect("a temporary directory has a plain name");
    let variables = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", interval.as_str())];
    let service = with(plain("plain"), json!({ "limits": { "settle_time": "3s" } }));
    let mut host = Host::spawn_with(&config(&world, [service]), &[], &variables);
    while hear().await != "READY=1" {}
    host.event("ready").await;
    for _ in 0..5 {
        assert_eq!(timeout(INTERVAL * 5, hear()).await.expect("the watchdog is fed"), "WATCHDOG=1");
    }
    shows("1 service ready").await;
    host.signal("HUP");
    while !hear().await.starts_with("RELOADING=1\nMONOTONIC_USEC=") {}
    while hear().await != "READY=1" {}
    host.signal("TERM");
    while hear().await != "STOPPING=1" {}
    while hear().await != "EXTEND_TIMEOUT_USEC=15000000" {}
    shows("ending; 0 services ready; draining 1").await;
    assert_eq!(host.ends().await.code, Some(0));
}

#[tokio::test]
async fn systemd_learns_the_successor_of_a_host() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-systemd-").expect("a temporary directory");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("the directory is our own");
    let hear = async || {
        let mut bytes = [0; 256];
        let heard = timeout(SOON, socket.recv(&mut bytes)).await.expect("it says something");
        String::from_utf8_lossy(&bytes[..heard.expect("a socket can be read")]).trim_end().to_owned()
    };
    let interval = INTERVAL.as_micros().to_string();
    let path = path.to_str().expect("a temporary directory has a plain name");
    let variables = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", interval.as_str())];
    let mut host = Host::spawn_with(&config(&world, [plain("plain")]), &[], &variables);
    host.event("ready").await;
    host.signal("USR2");
    let successor = loop {
        if let Some(pid) = hear().await.strip_prefix("MAINPID=") {
            break pid.to_owned();
        }
    };
    assert_eq!(host.exits().await, Some(0));
    // What the former host says is over by now, and the watchdog is fed by its successor.
    let mut said = Vec::new();
    while said.iter().filter(|heard| *heard == "WATCHDOG=1").count() < 8 {
        said.push(hear().await);
    }
    assert!(!said.iter().any(|heard| heard == "STOPPING=1"), "the unit goes on: {said:?}");
    let killed = std::process::Command::new("kill").arg(&successor).status().expect("kill can be started");
    assert!(killed.success());
    while hear().await != "STOPPING=1" {}
}
