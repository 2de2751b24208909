//! Time from the start of the process to the key in etcd.

use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions, WatchStream};
use leasehold_scenarios::world::World;
use tokio::time::timeout;

use crate::{
    Host,
    config::{config, greeter},
};

/// Timeout of a start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the example `runs` times with a warm compile cache, and returns the times in ascending order.
///
/// # Panics
/// If a host does not start, or does not end.
pub async fn measure(world: &World, runs: usize) -> Vec<Duration> {
    let config = config(world, [greeter()]);
    Host::ready(&config).await.stop().await;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let registration = Awaited::new(world, "/greeter/").await;
        let begun = Instant::now();
        let host = Host::spawn(&config, &[]);
        registration.put().await;
        times.push(begun.elapsed());
        host.stop().await;
    }
    times.sort();
    times
}

/// A key that is about to be written, awaited with a watch.
#[derive(Debug)]
pub struct Awaited(WatchStream);

impl Awaited {
    /// Watches for a key under this prefix from now on.
    pub async fn new(world: &World, prefix: &str) -> Self {
        let mut client = world.client().await;
        let prefixed = Some(WatchOptions::new().with_prefix());
        let mut changes = client.watch(prefix, prefixed).await.expect("etcd can be watched");
        changes.message().await.expect("etcd answers"); // The watch has started.
        Self(changes)
    }

    /// Waits until the key is written.
    ///
    /// # Panics
    /// On a timeout.
    pub async fn put(mut self) {
        let put = async {
            loop {
                let news = self.0.message().await.expect("etcd answers").expect("a watch does not end");
                if news.events().iter().any(|event| event.event_type() == EventType::Put) {
                    return;
                }
            }
        };
        timeout(PATIENCE, put).await.expect("the key is put");
    }
}

/// The median of sorted times.
pub fn median(times: &[Duration]) -> Duration {
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2 }
}
