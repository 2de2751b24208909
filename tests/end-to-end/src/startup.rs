//! How long it takes from the start of the process to the key in etcd.

use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions};
use leasehold_scenarios::world::World;
use tokio::time::timeout;

use crate::{
    Host,
    config::{config, greeter},
};

/// How long a start may take at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the example so many times, with a warm compile cache, and gives the times in ascending order.
///
/// # Panics
/// When a host does not start, or does not end.
pub async fn measure(world: &World, runs: usize) -> Vec<Duration> {
    let config = config(world, [greeter()]);
    Host::ready(&config).await.stop().await;
    let mut client = world.client().await;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let mut changes =
            client.watch("/greeter/", Some(WatchOptions::new().with_prefix())).await.expect("etcd can be watched");
        changes.message().await.expect("etcd answers"); // The watch is on.
        let begun = Instant::now();
        let host = Host::spawn(&config, &[]);
        let put = async {
            loop {
                let news = changes.message().await.expect("etcd answers").expect("a watch does not end");
                if news.events().iter().any(|event| event.event_type() == EventType::Put) {
                    return;
                }
            }
        };
        timeout(PATIENCE, put).await.expect("the key is put");
        times.push(begun.elapsed());
        host.stop().await;
        drop(changes);
    }
    times.sort();
    times
}

/// The middle one of times in order.
pub fn median(times: &[Duration]) -> Duration {
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2 }
}
