//! A component that registers again under its key: the value is changed in place, or stays as it was.

use std::{fs, path::PathBuf};

use leasehold_end_to_end::{
    Host,
    config::{config, hostile, with},
    http::{get, post},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, Standing, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Mark of the component's first version; all marks have the same length.
const MARK: &[u8] = b"leasehold-mark-1";

/// Versions of one component: the same code with another mark, which it publishes; a mark that ends with 9 makes it fail.
struct Versions(TempDir);

impl Versions {
    fn path(&self) -> PathBuf {
        self.0.path().join("component.wasm")
    }

    fn becomes(&self, mark: &[u8]) {
        let mut bytes = fs::read(paths::component("hostile")).unwrap();
        let places: Vec<_> = (0..bytes.len() - MARK.len()).filter(|&at| bytes[at..].starts_with(MARK)).collect();
        assert_eq!(places.len(), 1, "the mark is there once");
        bytes[places[0]..][..MARK.len()].copy_from_slice(mark);
        let fresh = self.0.path().join("fresh");
        fs::write(&fresh, bytes).unwrap();
        fs::rename(&fresh, self.path()).unwrap();
    }
}

/// A host of such a component, under a layout with metadata and without a version in the key.
async fn host(world: &World, start: &str) -> (Versions, Host) {
    let versions = Versions(TempDir::with_prefix("leasehold-versions-").unwrap());
    versions.becomes(MARK);
    let service = with(hostile("user"), json!({ "component": versions.path(), "config": { "start": start } }));
    let changes = json!({ "registry": { "layout": "kitex" }, "admin": { "listen": "127.0.0.1:0" } });
    let host = Host::ready(&with(config(world, [service]), changes)).await;
    (versions, host)
}

fn key(host: &Host) -> String {
    format!("kitex/registry-etcd/user/{}", host.addr("user"))
}

async fn shows(world: &World, key: &str, text: &str) -> Standing {
    world.key_is(key, text, |found| found.is_some_and(|found| found.value.contains(text))).await;
    world.get(key).await.unwrap()
}

async fn is_reloaded(host: &Host) -> bool {
    post(&format!("{}reload/user", host.admin())).await.json()[0]["reloaded"] == true
}

#[tokio::test]
async fn a_version_with_another_node_changes_its_key_in_place() {
    let world = World::real().await;
    let (versions, host) = host(&world, "register-mark").await;
    let key = key(&host);
    let before = shows(&world, &key, "leasehold-mark-1").await;
    versions.becomes(b"leasehold-mark-2");
    assert!(is_reloaded(&host).await);
    let after = shows(&world, &key, "leasehold-mark-2").await;
    assert_eq!((after.lease, after.created), (before.lease, before.created), "it was deleted meanwhile");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn a_version_that_does_not_start_leaves_its_key_as_it_was() {
    let world = World::real().await;
    let (versions, host) = host(&world, "register-mark").await;
    let key = key(&host);
    let before = shows(&world, &key, "leasehold-mark-1").await;
    versions.becomes(b"leasehold-mark-9");
    assert!(!is_reloaded(&host).await);
    let after = shows(&world, &key, "leasehold-mark-1").await;
    assert_eq!((after.lease, after.created), (before.lease, before.created), "it was deleted meanwhile");
    // The value is the latest of the served version, which has changed it itself.
    assert_eq!(get(&format!("{}act/change-of-mind", host.url("user"))).await.json()["case"], "ok");
    shows(&world, &key, r#""zone":"b""#).await;
    assert!(!is_reloaded(&host).await);
    shows(&world, &key, r#""zone":"b""#).await;
}

#[tokio::test]
async fn a_component_that_registers_another_node_has_one_registration() {
    let world = World::real().await;
    let (_versions, host) = host(&world, "").await;
    let answer = get(&format!("{}act/change-of-mind", host.url("user"))).await.json();
    assert_eq!((&answer["case"], &answer["text"]), (&json!("ok"), &json!("1 v2 b")));
    shows(&world, &key(&host), r#""zone":"b""#).await;
}

#[tokio::test]
async fn a_second_call_gets_conflict_if_another_host_has_the_key() {
    let world = World::real().await;
    let (_versions, host) = host(&world, "register-mark").await;
    let (key, act) = (key(&host), format!("{}act/register-mark", host.url("user")));
    let case = async || get(&act).await.json()["case"].clone();
    assert_eq!(case().await, "ok");
    let stranger = world.grant(60).await;
    world.put(&key, "theirs", stranger).await;
    wait_for("it is a conflict", SOON, async || case().await == "conflict").await;
    assert_eq!(world.get(&key).await.unwrap().value, "theirs");
    world.revoke(stranger).await;
    wait_for("it is back", SOON, async || case().await == "ok").await;
    let found: Value = serde_json::from_str(&world.get(&key).await.unwrap().value).unwrap();
    assert_eq!(found["tags"]["mark"], "leasehold-mark-1");
}
