//! Faults of a real etcd of three members.

use std::time::Duration;

use leasehold::{EventKind, Options};
use leasehold_scenarios::{
    fleet::{Fleet, options},
    real::Cluster,
};
use tokio::time::{Instant, sleep};

/// Time for an election on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(8);

async fn cluster() -> Cluster {
    Box::pin(Cluster::start(3)).await
}

async fn fleet(cluster: &Cluster) -> Fleet {
    Fleet::start(options(cluster.endpoints()), cluster.client().await).await
}

#[expect(clippy::print_stdout, reason = "figures are for whoever reads the run")]
fn report(what: &str, took: Duration) {
    println!("{what}: {took:.2?}");
}

#[tokio::test]
async fn no_gap_when_the_leader_is_killed() {
    let mut cluster = cluster().await;
    let mut fleet = fleet(&cluster).await;
    let leader = Box::pin(cluster.leader()).await;
    let begun = Instant::now();
    cluster.kill(leader);
    fleet.is_renewed(1).await;
    report("renewed after the leader was killed", begun.elapsed());
    fleet.is_renewed(3).await;
    fleet.stands().await;
    fleet.saw_no_delete().await;
    fleet.registrar.shutdown(PATIENCE).await.unwrap();
    fleet.is_gone(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn no_gap_while_the_members_restart_one_after_another() {
    let mut cluster = cluster().await;
    let mut fleet = fleet(&cluster).await;
    for member in 0..3 {
        Box::pin(cluster.restart(member)).await;
        fleet.is_renewed(1).await;
    }
    fleet.stands().await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn self_healing_after_the_quorum_is_lost_and_regained() {
    let mut cluster = cluster().await;
    let mut fleet = fleet(&cluster).await;
    cluster.kill(0);
    cluster.kill(1);
    fleet.outlasts_its_leases().await;
    cluster.restart_without_waiting(0);
    Box::pin(cluster.leader()).await;
    let took = fleet.stands().await;
    report("back after the quorum was", took);
    assert!(took <= PATIENCE);
    Box::pin(cluster.restart(1)).await;
    fleet.is_renewed(2).await;
    fleet.stands().await;
    // Without a quorum no lease expires, and the next leader extends every lease to its full TTL.
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn self_healing_with_an_endpoint_that_never_existed() {
    let mut cluster = cluster().await;
    cluster.kill(0);
    Box::pin(cluster.leader()).await;
    let begun = Instant::now();
    let endpoints = cluster.endpoints();
    let options = Options { ttl: 5.try_into().unwrap(), ..options(endpoints) };
    let mut fleet = Fleet::start(options, cluster.client().await).await;
    let took = begun.elapsed();
    report("registered with a dead endpoint", took);
    assert!(took <= PATIENCE);
    fleet.events();
    sleep(Duration::from_secs(20)).await;
    fleet.heard_none_of(&[EventKind::Suspect, EventKind::Recovering]);
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
}
