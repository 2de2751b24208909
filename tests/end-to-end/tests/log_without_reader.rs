//! The log without a reader: the host serves, keeps its keys and ends as usual.

use std::{
    fs,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use leasehold_end_to_end::{
    config::{TTL, config, plain, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Requests whose trace fills any pipe.
const CHATTER: usize = 200;

/// Asserts that a host serves, keeps its key for longer than its TTL, and ends with it, whatever happens to its log.
async fn goes_on(read: impl FnOnce(&mut Child)) {
    let world = World::real().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    drop(listener);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("services.yaml");
    let services = [with(plain("plain"), json!({ "listen": addr }))];
    fs::write(&file, config(&world, services).to_string()).expect("the directory is our own");
    let mut host = Command::new(paths::leasehold())
        .arg("run")
        .arg(&file)
        .env("RUST_LOG", "trace")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the host can be started");
    read(&mut host);
    let key = format!("/plain/{addr}");
    wait_for("it is registered", SOON, async || world.get(&key).await.is_some()).await;
    for _ in 0..CHATTER {
        assert_eq!(get(&format!("http://{addr}/")).await.status, 200);
    }
    sleep(Duration::from_secs(2 * TTL)).await;
    assert_eq!(world.count().await, 1);
    assert_eq!(get(&format!("http://{addr}/")).await.status, 200);
    let pid = host.id().expect("it runs").to_string();
    let sent = Command::new("sh").args(["-c", "kill -s TERM \"$0\"", &pid]).status().await;
    assert!(sent.is_ok_and(|status: ExitStatus| status.success()));
    let ended = timeout(SOON, host.wait()).await.expect("it ends").expect("it was started");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn unread_since_its_reader_is_gone() {
    goes_on(|host| drop(host.stderr.take())).await;
}

#[tokio::test]
async fn unread_since_its_reader_hangs() {
    goes_on(|_| ()).await;
}
