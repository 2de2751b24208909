//! A fleet on the simulated etcd: registered, held, deployed host by host, back after etcd has lost its data, and stopped.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use leasehold::{Options, Registrar, State};
use tokio::time::sleep;

use super::{
    Host, Size, name, options,
    record::Record,
    report::{Phase, Report},
    resident_bytes,
};
use crate::{sim::SimEtcd, wait_for};

/// Time without a change.
const HOLD: Duration = Duration::from_secs(60);
/// Time between the end of a deployed host and its start.
const DOWN: Duration = Duration::from_secs(1);
/// Time of a recovery besides the renewal interval: the jitter before a new grant, and the round trips of eight transactions.
const ROUND_TRIPS: Duration = Duration::from_millis(600);
/// Number of hosts between two lines of progress, and between two compactions, as a share of all.
const SHARE: usize = 10;

/// Runs a fleet of this size in virtual time and gives its figures. `progress` gets a line now and then.
///
/// # Panics
/// If a promise is broken: a key is lost, under a dead lease, or not back in time. Outside a runtime with a paused clock.
pub async fn simulate(size: Size, progress: impl Fn(&str)) -> Report {
    let mut fleet = Fleet::new(size, progress);
    let empty = fleet.memory();
    Box::pin(fleet.register()).await;
    fleet.ends("register");
    let bytes_each = fleet.memory().saturating_sub(empty) / size.total().max(1) as u64;
    let (leases, bytes) = (fleet.record.leases(), fleet.bytes());
    fleet.hold().await;
    fleet.ends("hold");
    Box::pin(fleet.deploy()).await;
    fleet.ends("deploy, host by host");
    let back = Box::pin(fleet.lose_data()).await;
    fleet.ends("etcd loses its data");
    Box::pin(fleet.stop()).await;
    let largest = fleet.etcd.largest_transaction();
    let Fleet { phases, most_memory: memory, .. } = fleet;
    Report { size, leases, bytes, largest, back, promised: promised(), bytes_each, memory, phases }
}

/// Longest time for a recovery: one renewal interval after etcd responds, and the round trips.
fn promised() -> Duration {
    let ttl = Duration::from_secs(Options::new(["sim"]).ttl.seconds());
    ttl / 3 + ROUND_TRIPS
}

struct Fleet<P> {
    etcd: SimEtcd,
    size: Size,
    hosts: VecDeque<Host>,
    record: Record,
    phases: Vec<Phase>,
    /// Beginning of the phase, in virtual time and on the clock.
    begun: (Duration, std::time::Instant),
    most_memory: u64,
    progress: P,
}

impl<P: Fn(&str)> Fleet<P> {
    fn new(size: Size, progress: P) -> Self {
        Self {
            etcd: SimEtcd::new(1),
            size,
            hosts: VecDeque::new(),
            record: Record::default(),
            phases: Vec::new(),
            begun: (Duration::ZERO, std::time::Instant::now()),
            most_memory: 0,
            progress,
        }
    }

    async fn register(&mut self) {
        for index in 0..self.size.hosts {
            let host = self.start(index).await;
            self.hosts.push_back(host);
            self.follow();
            self.goes_on("registered", index);
        }
    }

    async fn start(&self, index: usize) -> Host {
        let seed = Some(self.etcd.now().as_nanos() as u64 ^ index as u64);
        let options = Options { jitter_seed: seed, ..options(vec!["sim".to_owned()]) };
        let dials = vec![(Arc::from("sim"), self.etcd.dial(&name(index)))];
        let registrar = Registrar::start_over(options, dials).await.expect("good options");
        Host::register(index, registrar, self.size.keys).await
    }

    /// Lets time pass in which nothing is written.
    async fn hold(&mut self) {
        let revision = self.etcd.revision();
        sleep(HOLD).await;
        assert_eq!(self.etcd.revision(), revision, "a renewal writes nothing");
    }

    async fn deploy(&mut self) {
        for index in 0..self.size.hosts {
            self.follow();
            let host = self.hosts.pop_front().expect("every host is up");
            self.record.deployed = Some(name(host.index()));
            let number = host.index();
            host.stop().await;
            self.follow();
            assert_eq!(self.record.keys(), self.size.total() - self.size.keys, "keys without the deployed host");
            sleep(DOWN).await;
            let host = self.start(number).await;
            self.hosts.push_back(host);
            self.follow();
            assert_eq!(self.record.keys(), self.size.total(), "keys with the deployed host");
            self.record.deployed = None;
            self.goes_on("deployed", index);
        }
    }

    /// Restarts etcd without its data; returns the time until the last key was back.
    async fn lose_data(&mut self) -> Duration {
        let lost_at = self.etcd.now();
        self.etcd.restart(false);
        self.follow();
        assert_eq!(self.record.keys(), 0, "the data is lost");
        let total = self.size.total();
        wait_for("every key is back", promised(), async || {
            self.follow();
            self.record.keys() == total
        })
        .await;
        wait_for("every host knows", ROUND_TRIPS, async || self.all_are(State::Registered)).await;
        self.record.last_put - lost_at
    }

    async fn stop(&mut self) {
        self.follow();
        while let Some(host) = self.hosts.pop_front() {
            self.record.deployed = Some(name(host.index()));
            host.stop().await;
            self.follow();
        }
        self.finish_phase("stop");
        assert_eq!((self.record.keys(), self.record.leases()), (0, 0), "nothing is left");
        assert!(self.etcd.keys("").is_empty() && self.etcd.leases().is_empty(), "nothing is left");
    }

    fn all_are(&self, state: State) -> bool {
        let mut all = self.hosts.iter().flat_map(Host::registrations);
        all.all(|registration| registration.status().state == state)
    }

    /// Holds what has happened against the promises.
    fn follow(&mut self) {
        for event in self.etcd.take_history() {
            self.record.apply(event);
        }
        self.record.called(&self.etcd.take_calls());
        let (number, first) = self.record.violations();
        assert!(number == 0, "{number} violations:\n{}", first.join("\n"));
    }

    /// Ends a phase after which every key has to be in etcd, under a live lease.
    fn ends(&mut self, name: &'static str) {
        self.finish_phase(name);
        let found = self.etcd.keys("");
        let leases = self.etcd.leases();
        assert_eq!(found.len(), self.size.total(), "{name}: keys in etcd");
        for registration in self.hosts.iter().flat_map(Host::registrations) {
            let (key, state) = (registration.key(), registration.status().state);
            let lease = found.get(&**key).map(|entry| entry.lease);
            assert_eq!(state, State::Registered, "{name}: {key}");
            assert!(lease.is_some_and(|lease| leases.contains_key(&lease)), "{name}: {key} is under {lease:x?}");
            assert_eq!(lease, self.record.live_lease(key), "{name}: {key} as the events left it");
        }
        self.begun = (self.etcd.now(), std::time::Instant::now());
    }

    fn finish_phase(&mut self, name: &'static str) {
        self.follow();
        self.compact();
        let (lasted, took) = (self.etcd.now() - self.begun.0, self.begun.1.elapsed());
        let phase = Phase { name, lasted, took, traffic: self.record.take_traffic() };
        self.most_memory = self.memory().max(self.most_memory);
        (self.progress)(&phase.to_string());
        self.phases.push(phase);
    }

    /// Drops the past of etcd, as its automatic compaction does.
    fn compact(&mut self) {
        let revision = self.etcd.revision();
        if revision > self.etcd.compacted() {
            self.etcd.compact(revision);
        }
    }

    fn goes_on(&mut self, what: &str, index: usize) {
        let share = self.size.hosts.div_ceil(SHARE);
        if (index + 1).is_multiple_of(share) {
            self.compact();
            self.most_memory = self.memory().max(self.most_memory);
            let seconds = self.begun.1.elapsed().as_secs_f64();
            (self.progress)(&format!("... {what}: {} of {} hosts, {seconds:.0} s", index + 1, self.size.hosts));
        }
    }

    /// Bytes of all keys and of all values.
    fn bytes(&self) -> [u64; 2] {
        let found = self.etcd.keys("");
        let keys = found.keys().map(|key| key.len() as u64).sum();
        let values = found.values().map(|entry| entry.value.len() as u64).sum();
        [keys, values]
    }

    /// Resident memory of this process.
    fn memory(&self) -> u64 {
        if cfg!(target_os = "linux") { resident_bytes("self") } else { 0 }
    }
}
