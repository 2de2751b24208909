//! Cheap: a start takes milliseconds. `make bench-startup` holds it against its target, on a machine at rest.

use std::time::Duration;

use leasehold_end_to_end::startup::{measure, median};
use leasehold_scenarios::world::World;

/// What a start may take on a machine that does much else.
const LENIENT: Duration = Duration::from_secs(1);

#[expect(clippy::print_stdout, reason = "a figure to look at")]
#[tokio::test]
async fn cheap_from_the_start_of_the_process_to_the_key_in_etcd() {
    let times = measure(&World::real().await, 10).await;
    let median = median(&times);
    println!("process start to key visible: median {median:.1?} of {times:.1?}");
    assert!(median <= LENIENT, "{times:?}");
}
