//! Isolated: a component that computes affects neither its neighbours nor the leases.

use std::time::{Duration, Instant};

use leasehold_end_to_end::{
    Host,
    config::{TTL, hostile, plain, with},
    http::{begin, get},
};
use leasehold_scenarios::world::World;
use serde_json::json;

/// Concurrent requests that compute without end: more than there are threads for them.
const SPINNING: usize = 8;

#[tokio::test]
async fn isolated_a_component_that_spins_costs_neither_a_neighbour_nor_a_lease() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "request_timeout": "2s" } });
    let host = Host::of(&world, [with(hostile("hostile"), limits), plain("plain")]).await;
    let keys = ["hostile", "plain"].map(|name| format!("/{name}/{}", host.addr(name)));
    let before = [world.get(&keys[0]).await.unwrap(), world.get(&keys[1]).await.unwrap()];
    let begun = Instant::now();
    let three_ttls = Duration::from_secs(3 * TTL + 1);

    let spin = format!("{}act/spin", host.url("hostile"));
    let spinning: Vec<_> = (0..SPINNING)
        .map(|_| {
            let spin = spin.clone();
            tokio::spawn(async move {
                while begun.elapsed() < three_ttls {
                    let answer = get(&spin).await;
                    assert_eq!((answer.status, answer.body.as_str()), (504, "the service took too long\n"));
                }
            })
        })
        .collect();
    let mut answers = 0;
    while begun.elapsed() < three_ttls {
        assert_eq!(get(&host.url("plain")).await.status, 200);
        answers += 1;
    }
    assert!(answers >= 10, "{answers} answers in {:?}", begun.elapsed());
    for spun in spinning {
        spun.await.unwrap();
    }
    for (key, before) in keys.iter().zip(before) {
        assert_eq!(world.get(key).await, Some(before));
    }
    // The component that computed is served again, too.
    assert_eq!(get(&host.url("hostile")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn isolated_a_component_that_spins_does_not_block_the_end_of_the_host() {
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "drain_timeout": "1s" } });
    let host = Host::of(&world, [with(hostile("hostile"), limits)]).await;
    let stuck = begin(&format!("{}act/spin", host.url("hostile"))).await;
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("requests were cut off"), "{ended:?}");
    assert_eq!(stuck.answer().await, None);
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}
