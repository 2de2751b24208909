//! Measures a thousand services of one component in one process: the start, the memory when idle, and the end.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use etcd_client::GetOptions;
use leasehold_end_to_end::{
    Host,
    config::{config, service, with},
};
use leasehold_scenarios::{wait_for, world::World};
use serde_json::json;
use tokio::time::sleep;

const SERVICES: usize = 1000;
/// Limit for the time until the last key is in etcd.
const START: Duration = Duration::from_secs(20);
/// Limit for the resident memory after an idle time.
const MEMORY_MIB: f64 = 1024.0;
const IDLE: Duration = Duration::from_secs(10);
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
    let config = config(&world, services);
    let mut client = world.client().await.kv_client();

    let begun = Instant::now();
    let host = Host::spawn(&config, &[]);
    wait_for("all keys stand", 3 * START, async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        client.get("/greeter-", Some(options)).await.is_ok_and(|found| found.count() == SERVICES as i64)
    })
    .await;
    let started = begun.elapsed();
    sleep(IDLE).await;
    let mib = host.resident_bytes() as f64 / 1_048_576.0;
    let begun = Instant::now();
    let ended = host.stop().await;
    let stopped = begun.elapsed();

    println!("{:<58} {:>10} {:>10} {:>8}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    let mut all_well = ended.code == Some(0);
    for (figure, ours, goal) in [
        ("until 1,000 keys stand (s)", started.as_secs_f64(), START.as_secs_f64()),
        ("memory of 1,000 idle services (MiB)", mib, MEMORY_MIB),
        ("until the process has ended (s)", stopped.as_secs_f64(), END.as_secs_f64()),
    ] {
        let verdict = if ours <= goal { "ok" } else { "short" };
        all_well &= ours <= goal;
        println!("{figure:<58} {ours:>10.2} {:>10} {:>8}  {:<22} {verdict}", "-", "-", format!("at most {goal}"));
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
