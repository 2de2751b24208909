//! Rolling restarts under load: a client that follows etcd sees no failed request.

use std::time::Duration;

use leasehold_end_to_end::{
    Host,
    config::{plain, with},
    follower::{Call, Follower, Tally},
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::json;

/// How long the client takes to act upon what it hears.
const LAG: Duration = Duration::from_millis(200);
/// How long the host waits for it: more than the lag by what a machine that does other things, too, may add to that.
const SETTLE: &str = "1500ms";

/// Restarts two hosts of one service in turn, so many times in all, under constant load.
async fn restarted(restarts: usize, limits: serde_json::Value) -> Tally {
    let world = World::real().await;
    let service = with(plain("plain"), json!({ "limits": limits }));
    let mut hosts = [Host::of(&world, [service.clone()]).await, Host::of(&world, [service.clone()]).await];
    let mut follower = Follower::of(&world, "plain", LAG).await;
    for call in [Call::Http1, Call::Http1, Call::Http2, Call::Http2, Call::Grpc] {
        follower.calls(call);
    }
    for turn in 0..restarts {
        let fresh = Host::of(&world, [service.clone()]).await;
        knows(&follower, &fresh).await;
        let ended = std::mem::replace(&mut hosts[turn % 2], fresh).stop().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    follower.ends().await
}

async fn knows(follower: &Follower, host: &Host) {
    let addr = host.addr("plain");
    wait_for("the client knows the new instance", SOON, async || follower.instances().known().contains(&addr)).await;
}

#[tokio::test]
async fn rolling_ten_restarts_fail_no_request() {
    let tally = restarted(10, json!({ "settle_time": SETTLE })).await;
    assert!(tally.failures.is_empty(), "{} failed: {:#?}", tally.failures.len(), tally.failures);
    assert!(tally.answered >= 1000, "{} answers are not a load", tally.answered);
}

#[tokio::test]
async fn rolling_without_time_to_settle_fails_requests() {
    let tally = restarted(2, json!({ "settle_time": "1ms" })).await;
    assert!(!tally.failures.is_empty(), "{} answers, and the test above proves nothing", tally.answered);
}
