//! Measures a thousand services of one component in one process: the start, the memory when idle, a reload that changes all of
//! them, an upgrade of the process, both under load, and the end.

use std::{
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use etcd_client::GetOptions;
use leasehold_end_to_end::{
    Host, Program,
    config::{config, service, with},
    follower::{Call, Follower},
    http::get,
    paths,
};
use leasehold_scenarios::{wait_for, world::World};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

const SERVICES: usize = 1000;
/// Limit for the time until the last key is in etcd.
const START: Duration = Duration::from_secs(20);
/// Limit for the resident memory after an idle time.
const MEMORY_MIB: f64 = 1024.0;
const IDLE: Duration = Duration::from_secs(10);
/// Limits for a reload that changes every service, and for an upgrade.
const RELOAD: Duration = Duration::from_secs(20);
const UPGRADE: Duration = Duration::from_secs(20);
/// Services that are called meanwhile.
const CALLED: [usize; 3] = [1, 500, 999];
/// Limit for the time from the signal to the end of the process, without requests.
const END: Duration = Duration::from_secs(20);

#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let world = World::real().await;
    let services = (0..SERVICES).map(|index| {
        let name = format!("greeter-{index}");
        let own = json!({ "config": { "name": name, "version": "v1", "greeting": "hello" } });
        with(service(&name, "greeter"), own)
    });
    let config = with(config(&world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    let mut client = world.client().await.kv_client();

    let begun = Instant::now();
    let mut host = Host::spawn(&config, &[]);
    wait_for("all keys stand", 3 * START, async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        client.get("/greeter-", Some(options)).await.is_ok_and(|found| found.count() == SERVICES as i64)
    })
    .await;
    let started = begun.elapsed();
    sleep(IDLE).await;
    let mib = host.resident_bytes() as f64 / 1_048_576.0;
    let admin = host.admin();
    let mut followers = Vec::new();
    for index in CALLED {
        let mut follower = Follower::of(&world, &format!("greeter-{index}"), Duration::ZERO).await;
        [Call::Http1, Call::Http2].into_iter().for_each(|call| follower.calls(call));
        followers.push(follower);
    }
    let mut changed: serde_json::Value =
        serde_json::from_slice(&fs::read(host.file()).expect("it was written")).expect("it is JSON");
    for service in changed["services"].as_array_mut().expect("services are a list") {
        service["limits"] = json!({ "concurrency": 50 });
    }
    fs::write(host.file(), changed.to_string()).expect("the directory is our own");
    let reloaded = leasehold("reload", &admin).await;
    let upgraded = leasehold("upgrade", &admin).await;
    host.exits().await;
    let (mut answered, mut failed) = (0, 0);
    for follower in followers {
        let tally = follower.ends().await;
        (answered, failed) = (answered + tally.answered, failed + tally.failures.len());
    }
    let pid = get(&format!("{admin}status")).await.json()["pid"].to_string();
    let begun = Instant::now();
    let mut all_well = Command::new("kill").arg(&pid).status().is_ok_and(|kill| kill.success());
    wait_for("the process has ended", 3 * END, async || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    let stopped = begun.elapsed();

    println!("{:<58} {:>10} {:>10} {:>8}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    for (figure, ours, goal) in [
        ("until 1,000 keys stand (s)", started.as_secs_f64(), START.as_secs_f64()),
        ("memory of 1,000 idle services (MiB)", mib, MEMORY_MIB),
        ("a reload that changes all of them (s)", reloaded.as_secs_f64(), RELOAD.as_secs_f64()),
        ("an upgrade of the process (s)", upgraded.as_secs_f64(), UPGRADE.as_secs_f64()),
        ("requests that failed meanwhile", failed as f64, 0.0),
        ("until the process has ended (s)", stopped.as_secs_f64(), END.as_secs_f64()),
    ] {
        let verdict = if ours <= goal { "ok" } else { "short" };
        all_well &= ours <= goal;
        println!("{figure:<58} {ours:>10.2} {:>10} {:>8}  {:<22} {verdict}", "-", "-", format!("at most {goal}"));
    }
    println!("requests that were answered meanwhile: {answered}");
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Duration of a command to the host, which has to succeed.
async fn leasehold(command: &str, admin: &str) -> Duration {
    let folder = TempDir::with_prefix("leasehold-many-").expect("a temporary directory");
    let begun = Instant::now();
    let ended = Program::spawn(&paths::leasehold(), [command, "--admin", admin], folder.path()).ends().await;
    assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
    begun.elapsed()
}
