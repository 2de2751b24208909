//! Measures the start: from the start of the process to the key in etcd, the median of ten, with a warm compile cache.

use std::{process::ExitCode, time::Duration};

use leasehold_end_to_end::startup::{measure, median};
use leasehold_scenarios::world::World;

/// What a start may take on a machine that does nothing else.
const TARGET: Duration = Duration::from_millis(60);

#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let times = measure(&World::real().await, 10).await;
    let median = median(&times);
    println!("process start to key visible: median {median:.1?} of {times:.1?}; at most {TARGET:?} wanted");
    if median <= TARGET { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
