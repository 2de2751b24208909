//! Quiet: the weight follows the load, and nothing else is written. The tests run alone and one after the other: they burn every
//! core, and count etcd's revisions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use leasehold_end_to_end::{
    Host,
    config::{config, greeter, plain},
    http::get,
};
use leasehold_scenarios::{wait_for, world::World};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::sleep};

/// Held by the running test.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Timeout until the load shows in the weight; on an idle machine this takes about three seconds.
const BURN: Duration = Duration::from_secs(40);

/// Default change of a weight that is written.
const DEAD_BAND: u32 = 5;
/// Least weight of a machine that only this test uses.
const AT_REST: u32 = 70;

/// Greatest weight of a machine whose cores are all busy: half of the scale is memory, and a change within the dead band is not
/// written.
const BUSY: u32 = 60;

/// Keeps every core busy until it is dropped.
struct Burning(Arc<AtomicBool>);

impl Burning {
    fn every_core() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().unwrap().get() {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn weight_of(value: &str) -> u32 {
    serde_json::from_str::<Value>(value).unwrap()["weight"].as_str().unwrap().parse().unwrap()
}

fn measured(world: &World, services: impl IntoIterator<Item = Value>, weight: Value) -> Value {
    let mut config = config(world, services);
    config["registry"]["weight"] = weight;
    config
}

/// A registration starts with the weight of an idle processor, so the drop is visible on a busy machine, too.
#[tokio::test]
async fn quiet_but_for_a_weight_that_moved() {
    let _alone = ALONE.lock().await;
    let world = World::real().await;
    let host = Host::ready(&measured(&world, [plain("plain")], json!({ "min_interval": "1s" }))).await;
    let key = format!("/plain/{}", host.addr("plain"));
    // A fresh host publishes what the machine was busy with in the last minute, which may have been other tests.
    let mut idle = None;
    wait_for("the weight is that of a machine at rest", BURN, async || {
        idle = world.get(&key).await;
        idle.as_ref().is_some_and(|idle| weight_of(&idle.value) >= AT_REST)
    })
    .await;
    let idle = idle.unwrap();
    let before = weight_of(&idle.value);
    let burning = Burning::every_core();
    let mut busy = None;
    wait_for("the weight drops with the load", BURN, async || {
        busy = world.get(&key).await;
        busy.as_ref().is_some_and(|busy| weight_of(&busy.value) + DEAD_BAND <= before)
    })
    .await;
    drop(burning);
    // The same registration, written once more: no lease was lost under the load.
    assert_eq!(busy.unwrap().lease, idle.lease);
}

/// A first weight that was estimated wrongly is corrected before the interval between two weights is over.
#[tokio::test]
async fn a_fresh_host_on_a_busy_machine_publishes_the_weight_of_one() {
    let _alone = ALONE.lock().await;
    let world = World::real().await;
    let _burning = Burning::every_core();
    let host = Host::ready(&measured(&world, [plain("plain")], json!({ "min_interval": "60s" }))).await;
    let key = format!("/plain/{}", host.addr("plain"));
    wait_for("the weight is that of a busy machine", BURN, async || {
        world.get(&key).await.is_some_and(|found| weight_of(&found.value) <= BUSY)
    })
    .await;
}

/// The dead band covers every change of the load, so that a noisy machine has no reason to write. Renewals, audits and computed
/// weights must then be quiet.
#[tokio::test]
async fn quiet_no_revision_in_thirty_idle_seconds() {
    let _alone = ALONE.lock().await;
    let world = World::real().await;
    let weight = json!({ "dead_band": 100, "min_interval": "1s" });
    let host = Host::ready(&measured(&world, [greeter(), plain("plain")], weight)).await;
    let whoami = format!("{}whoami", host.url("greeter"));
    let before = world.revision().await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.revision().await, before);
    let who = get(&whoami).await.json();
    assert!(who["renewals"].as_u64().unwrap() >= 7, "{who}");
    assert_eq!(who["state"], "registered");
}
