//! Measures the start: from the start of the process to the key in etcd, the median of ten, with a warm compile cache.

use std::{process::ExitCode, time::Duration};

use leasehold_end_to_end::startup::{measure, median};
use leasehold_scenarios::world::World;

/// Limit for a start on an idle machine.
const TARGET: Duration = Duration::from_millis(60);

#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let times = measure(&World::real().await, 10).await;
    let median = median(&times);
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let (verdict, code) = if median <= TARGET { ("ok", ExitCode::SUCCESS) } else { ("short", ExitCode::FAILURE) };
    println!("{:<58} {:>10} {:>10} {:>8}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    let (figure, goal) = ("start to the key in etcd (ms)", format!("at most {}", millis(TARGET)));
    println!("{figure:<58} {:>10.2} {:>10} {:>8}  {goal:<22} {verdict}", millis(median), "-", "-");
    code
}
