//! The choice of nodes for calls: ejection, slow start and the budget of retries, in virtual time.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use leasehold::{Balancer, OutlierRules, Pick, PickRules, Registrar, Version, View};
use leasehold_scenarios::{
    sim::SimEtcd,
    wait_for,
    world::{SOON, World},
};
use tokio::time::advance;

const LATENCY: Duration = Duration::from_millis(10);

/// A service whose nodes have the same weight, and a caller.
struct Service {
    etcd: SimEtcd,
    view: View,
    balancer: Balancer,
    _registrar: Registrar,
}

impl Service {
    async fn new(nodes: usize) -> Self {
        let etcd = SimEtcd::new(1);
        (0..nodes).for_each(|index| add(&etcd, index));
        let registrar = World::Simulated(etcd.clone()).registrar("caller").await;
        let view = registrar.watch(&"user".parse().unwrap(), &Version::default()).await.unwrap();
        view.ready().await.unwrap();
        Self { etcd, balancer: Balancer::new(view.clone()), view, _registrar: registrar }
    }

    async fn sees(&self, nodes: usize) {
        wait_for("the nodes are in the view", SOON, async || self.view.nodes().len() == nodes).await;
    }

    fn pick(&self) -> Pick {
        self.balancer.pick(&[]).unwrap()
    }

    fn responded_badly(&self, pick: &Pick) -> usize {
        self.balancer.responded_badly(pick, LATENCY, &OutlierRules::default())
    }

    /// Shares of the nodes in so many picks.
    fn shares(&self, rules: &PickRules, picks: usize) -> BTreeMap<String, f64> {
        shares(&self.balancer, rules, picks)
    }
}

fn addr(index: usize) -> String {
    format!("10.0.{}.{}:1", index / 250, index % 250)
}

fn add(etcd: &SimEtcd, index: usize) {
    let addr = addr(index);
    let value = format!(r#"{{"name":"user","addr":"{addr}","version":"","weight":"50"}}"#);
    etcd.put(&format!("/user/{addr}"), &value, 0);
}

fn shares(balancer: &Balancer, rules: &PickRules, picks: usize) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for _ in 0..picks {
        let pick = balancer.pick_by(rules, &[]).unwrap();
        *shares.entry(pick.node().addr.to_string()).or_default() += 1.0 / picks as f64;
    }
    shares
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_in_a_row_is_ejected_and_comes_back() {
    let service = Service::new(4).await;
    let bad = "10.0.0.2:1";
    let call = || {
        let pick = service.pick();
        let is_bad = pick.node().addr.as_str() == bad;
        let ejected = if is_bad { service.responded_badly(&pick) } else { 0 };
        if !is_bad {
            pick.succeeded(LATENCY);
        }
        (is_bad, ejected)
    };
    let calls: Vec<_> = (0..100).map(|_| call()).collect();
    assert_eq!(calls.iter().filter(|(is_bad, _)| *is_bad).count(), 5, "five in a row");
    assert_eq!(calls.iter().map(|(_, ejected)| ejected).sum::<usize>(), 1);
    advance(Duration::from_millis(1001)).await;
    assert!(service.shares(&PickRules::default(), 100).contains_key(bad));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_well_meanwhile_does_not_end_an_ejection() {
    let service = Service::new(2).await;
    let under_way = loop {
        let pick = service.pick();
        if pick.node().addr.as_str() == addr(0) {
            break pick;
        }
    };
    let ejected: usize = (0..5).map(|_| service.responded_badly(&under_way)).sum();
    assert_eq!(ejected, 1);
    under_way.succeeded(LATENCY);
    assert!(!service.shares(&PickRules::default(), 100).contains_key(&addr(0)));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_node_is_better_than_an_ejected_node() {
    let service = Service::new(1).await;
    let rules = PickRules { slow_start: Duration::from_secs(30), ..PickRules::default() };
    let old = service.pick();
    add(&service.etcd, 1);
    service.sees(2).await;
    service.shares(&rules, 1);
    old.failed();
    assert_eq!(service.shares(&rules, 1000).into_keys().collect::<Vec<_>>(), [addr(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_between_successes_ejects_nothing() {
    let service = Service::new(2).await;
    for index in 0..1000 {
        let pick = service.pick();
        match index % 8 {
            0..6 => pick.succeeded(LATENCY),
            _ => assert_eq!(service.responded_badly(&pick), 0),
        }
    }
    assert_eq!(service.shares(&PickRules::default(), 100).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_far_below_the_success_rate_of_the_others_is_ejected() {
    let service = Service::new(10).await;
    let (bad, mut rng) = ("10.0.0.7:1", Rng::with_seed(1));
    let mut ejected = 0;
    for _ in 0..4000 {
        advance(Duration::from_millis(5)).await;
        let pick = service.pick();
        let share = if pick.node().addr.as_str() == bad { 0.3 } else { 0.02 };
        if rng.f64() < share {
            let rules = OutlierRules { consecutive: 0, ..OutlierRules::default() };
            ejected += service.balancer.responded_badly(&pick, LATENCY, &rules);
        } else {
            pick.succeeded(LATENCY);
        }
    }
    assert!(ejected >= 1, "{ejected}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_half_of_the_nodes_are_ejected_for_bad_responses() {
    for nodes in [1, 2, 3, 10] {
        let service = Service::new(nodes).await;
        let ejected: usize = (0..100 * nodes).map(|_| service.responded_badly(&service.pick())).sum();
        assert_eq!(ejected, nodes / 2);
        assert_eq!(service.shares(&PickRules::default(), 100 * nodes).len(), nodes - nodes / 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_node_warms_up() {
    let service = Service::new(3).await;
    let rules = PickRules { slow_start: Duration::from_secs(30), ..PickRules::default() };
    for share in service.shares(&rules, 3000).values() {
        assert!((0.3..0.37).contains(share), "the first nodes are as warm as each other: {share}");
    }
    add(&service.etcd, 3);
    service.sees(4).await;
    let fresh = &addr(3);
    // Of four nodes, it has a tenth of a share of 3.1, then half of 3.5, then a whole of 4.
    for (after, expected) in [(0, 0.1 / 3.1), (15, 0.5 / 3.5), (15, 0.25)] {
        advance(Duration::from_secs(after)).await;
        let share = service.shares(&rules, 20_000)[fresh];
        assert!((share - expected).abs() < 0.02, "{share} instead of {expected}");
        assert!((service.shares(&PickRules::default(), 4000)[fresh] - 0.25).abs() < 0.01, "without slow start");
    }
}

/// As in a deploy that replaces one node after the other.
#[tokio::test(start_paused = true)]
async fn the_last_warm_node_does_not_take_the_calls_of_all() {
    let service = Service::new(3).await;
    let rules = PickRules { slow_start: Duration::from_secs(30), ..PickRules::default() };
    service.pick().succeeded(LATENCY);
    for index in 0..2 {
        assert!(service.etcd.delete(&format!("/user/{}", addr(index))));
        service.sees(2).await;
        service.shares(&rules, 1);
        add(&service.etcd, 10 + index);
        service.sees(3).await;
        let shares = service.shares(&rules, 10_000);
        let most = if index == 0 { 0.52 } else { 0.36 };
        assert!(shares[&addr(2)] < most, "{shares:?}");
        advance(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn fresh_nodes_alone_take_every_call() {
    let service = Service::new(1).await;
    let rules = PickRules { slow_start: Duration::from_secs(30), ..PickRules::default() };
    service.pick().succeeded(LATENCY);
    (1..3).for_each(|index| add(&service.etcd, index));
    service.sees(3).await;
    service.shares(&rules, 1);
    assert!(service.etcd.delete(&format!("/user/{}", addr(0))));
    service.sees(2).await;
    assert_eq!(service.shares(&rules, 1000).len(), 2);
}

/// Callers of a service of a thousand nodes, all of which fail for a while.
#[tokio::test(start_paused = true)]
async fn a_service_that_fails_gets_few_retries_and_is_called_as_before_once_it_is_well() {
    const NODES: usize = 1000;
    const CALLERS: usize = 20;
    const SHARE: f64 = 0.2;
    let service = Service::new(NODES).await;
    let callers: Vec<_> = (0..CALLERS).map(|_| Balancer::new(service.view.clone())).collect();
    let run = async |is_well: bool, rounds: usize| {
        let (mut sent, mut failed) = (0_usize, 0_usize);
        for _ in 0..rounds {
            advance(Duration::from_millis(1)).await;
            for caller in &callers {
                let _in_flight = caller.traffic().begin(1, SHARE).unwrap();
                let mut retries = 3;
                loop {
                    sent += 1;
                    let pick = caller.pick(&[]).unwrap();
                    if is_well {
                        pick.succeeded(LATENCY);
                        break;
                    }
                    caller.responded_badly(&pick, LATENCY, &OutlierRules::default());
                    if retries == 0 || !caller.traffic().spend_retry() {
                        failed += 1;
                        break;
                    }
                    retries -= 1;
                }
            }
        }
        (sent, failed)
    };
    let (sent, failed) = run(false, 20_000).await;
    let calls = 20_000 * CALLERS;
    // Each caller has ten retries in reserve.
    assert!(sent as f64 <= calls as f64 * (1.0 + SHARE) + 10.0 * CALLERS as f64, "{sent} for {calls}");
    assert_eq!(failed, calls);
    for caller in &callers {
        let picked = shares(caller, &PickRules::default(), 10 * NODES).len();
        assert!(picked >= NODES / 2, "{picked} of {NODES} nodes take calls");
    }
    assert_eq!(run(true, 100).await, (100 * CALLERS, 0), "no call waits for an ejection to end");
}
