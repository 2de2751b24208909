//! Many hosts, which lose etcd and all its data at the same moment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use etcd_client::GetOptions;
use leasehold::{EventKind, Options, Registrar, Registration, ServerNode, State};
use leasehold_scenarios::{
    fleet::options,
    real::Etcd,
    sim::{self, SimEtcd},
    wait_for,
    world::World,
};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep},
};

const HOSTS: usize = 50;
const KEYS: usize = 100;
/// TTL of the hosts, the default of [`Options`].
const TTL_SECONDS: u64 = 10;
/// Time for a recovery: a renewal interval to notice the loss, and as much again to write all keys on a loaded machine.
const PROMPT: Duration = Duration::from_secs(7);

/// Moments of one host's losses and recoveries.
#[derive(Debug, Default)]
struct Moments {
    lost: Vec<Instant>,
    back: Vec<Instant>,
}

struct Host {
    registrations: Vec<Registration>,
    moments: Arc<Mutex<Moments>>,
    _registrar: Registrar,
}

async fn host(options: Options, index: usize) -> Host {
    let registrar = Registrar::start(options).unwrap();
    let mut registering = JoinSet::new();
    for service in 0..KEYS {
        let registrar = registrar.clone();
        let node = ServerNode::new(&format!("service-{service}"), &format!("10.0.0.{index}:1")).unwrap();
        registering.spawn(async move { registrar.register(node).await.unwrap() });
    }
    let registrations = registering.join_all().await;
    let mut events = registrar.events();
    let moments = Arc::new(Mutex::new(Moments::default()));
    let written = moments.clone();
    tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            match event.kind {
                EventKind::Recovering => written.lock().await.lost.push(Instant::now()),
                EventKind::Recovered => written.lock().await.back.push(Instant::now()),
                _ => {}
            }
        }
    });
    Host { registrations, moments, _registrar: registrar }
}

/// Distribution of moments after the first moment, in milliseconds.
#[expect(clippy::print_stdout, reason = "the run prints figures")]
fn spread(what: &str, from: Instant, moments: &[Instant]) -> BTreeMap<u128, usize> {
    let mut buckets = BTreeMap::new();
    let mut tenths = BTreeMap::new();
    for moment in moments {
        let after = moment.duration_since(from).as_millis();
        *buckets.entry(after).or_insert(0) += 1;
        *tenths.entry(after / 100).or_insert(0_usize) += 1;
    }
    let [first, last] = [buckets.keys().min().unwrap(), buckets.keys().max().unwrap()];
    let most = buckets.values().max().unwrap();
    println!("{what}: {} from {first} to {last} ms, at most {most} in one millisecond", moments.len());
    for (tenth, count) in tenths {
        println!("  {:>5} ms {}", tenth * 100, "#".repeat(count));
    }
    buckets
}

#[expect(clippy::print_stdout, reason = "the run prints figures")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn self_healing_of_a_herd_is_spread_and_leaves_etcd_responsive() {
    let mut etcd = Box::pin(Etcd::start()).await;
    let options = Options { ttl: TTL_SECONDS.try_into().unwrap(), ..options([etcd.endpoint()]) };
    let mut starting = JoinSet::new();
    for index in 0..HOSTS {
        starting.spawn(host(options.clone(), index));
    }
    let hosts = starting.join_all().await;
    let mut client = etcd.client().await;
    let all = || Some(GetOptions::new().with_prefix().with_count_only());
    assert_eq!(client.get("/service-", all()).await.unwrap().count(), (HOSTS * KEYS) as i64);
    assert_eq!(client.leases().await.unwrap().leases().len(), HOSTS);

    Box::pin(etcd.restart(false)).await;
    let answers = Instant::now();
    // Another client that uses etcd meanwhile.
    let mut stranger = etcd.client().await;
    let waits = tokio::spawn(async move {
        let mut waits = Vec::new();
        while answers.elapsed() < PROMPT {
            let begun = Instant::now();
            stranger.put("stranger", "", None).await.unwrap();
            waits.push(begun.elapsed());
            sleep(Duration::from_millis(10)).await;
        }
        waits.sort_unstable();
        waits
    });
    let mut client = etcd.client().await;
    wait_for("every key is back", PROMPT, async || {
        client.get("/service-", all()).await.is_ok_and(|found| found.count() == (HOSTS * KEYS) as i64)
    })
    .await;
    println!("all {} keys are back {:.2?} after etcd answers", HOSTS * KEYS, answers.elapsed());
    wait_for("every host knows", PROMPT, async || {
        let registered = |one: &Registration| one.status().state == State::Registered;
        hosts.iter().all(|host| host.registrations.iter().all(registered))
    })
    .await;
    let (mut lost, mut back) = (Vec::new(), Vec::new());
    for host in &hosts {
        let moments = host.moments.lock().await;
        assert_eq!((moments.lost.len(), moments.back.len()), (1, 1), "one loss, one recovery: {moments:?}");
        lost.push(moments.lost[0]);
        back.push(moments.back[0]);
    }
    let from = *lost.iter().min().unwrap();
    spread("lost", from, &lost);
    let buckets = spread("back", from, &back);
    assert!(buckets.values().all(|&count| count < 10), "ten hosts came back within a millisecond");
    assert!(buckets.len() >= HOSTS / 2, "half of the hosts came back each in a millisecond of its own");
    let took = back.iter().max().unwrap().duration_since(from);
    assert!(took >= Duration::from_millis(100), "all came back within {took:?}");

    let waits = waits.await.unwrap();
    let [median, most] = [waits[waits.len() / 2], *waits.last().unwrap()];
    println!("a stranger's put takes {median:.1?} (median of {}), {most:.1?} at most", waits.len());
    assert!(most <= Duration::from_secs(1), "etcd kept a stranger waiting for {most:?}");
    let leases = client.leases().await.unwrap().leases().len();
    assert_eq!(leases, HOSTS, "each host asked for one lease");
}

/// At an etcd that takes longer for one write of each host than a host waits for a response.
#[tokio::test(start_paused = true)]
async fn self_healing_of_a_herd_at_a_slow_etcd_takes_as_long_as_its_work() {
    /// Time of a write, such that those of all hosts take longer than a renewal interval.
    const WRITE: Duration = Duration::from_millis(75);
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    let mut hosts = Vec::new();
    for index in 0..HOSTS {
        let options = Options { ttl: TTL_SECONDS.try_into().unwrap(), ..world.options() };
        let registrar = world.registrar_with(&format!("host-{index}"), options).await;
        let node = ServerNode::new("user", &format!("10.0.0.{index}:1")).unwrap();
        let registration = registrar.register(node).await.unwrap();
        hosts.push((registrar, registration));
    }
    etcd.restart(false);
    etcd.set_pace(WRITE);
    drop(etcd.take_calls());
    // A grant and a put of each, and the time until the losses are noticed.
    let work = 2 * WRITE * HOSTS as u32;
    wait_for("every host knows that its key is back", work + PROMPT, async || {
        let registered = |registration: &Registration| registration.status().state == State::Registered;
        etcd.keys("").len() == HOSTS && hosts.iter().all(|(_, registration)| registered(registration))
    })
    .await;
    let calls = etcd.take_calls();
    let number = |kind: sim::Call| calls.iter().filter(|call| call.call == kind).count();
    assert_eq!((number(sim::Call::Grant), etcd.leases().len()), (HOSTS, HOSTS), "nothing was given up and done again");
}
