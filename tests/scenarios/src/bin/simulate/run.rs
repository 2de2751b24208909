//! The simulated hour: storms of requests and faults, drawn from the seed, with calms in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use leasehold::{
    Credentials, LoadSource, Options, Ownership, Registrar, Registration, ServerNode, Source, State, Terms, Weight,
};
use leasehold_scenarios::sim::{Event, EventKind, FaultPlan, SimEtcd};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;

use crate::{
    check::{Unhealthy, violations},
    ledger::{Ledger, Request},
    seed::{Tally, Verdict},
};

/// Minimum virtual time of a run.
const AT_LEAST: Duration = Duration::from_secs(3600);
/// The longest election of the simulated etcd.
const ELECTION: Duration = Duration::from_millis(2500);
/// Time of a recovery besides the renewal interval: the jitter before a new grant, and a few round trips.
const ROUND_TRIPS: Duration = Duration::from_millis(600);
/// Time in which nothing may be written in a calm.
const QUIET: Duration = Duration::from_secs(30);
/// Longest time that `register` and `stop` take by their own deadlines.
const PATIENCE: Duration = Duration::from_secs(16);

/// Longest time to keep a lease granted ahead, in seconds: until the next calm is over.
const AHEAD: u64 = 60;

/// Writes of others.
const FOREIGN: &str = "foreign";
/// The user as whom every host speaks to an etcd that has users.
const USER: &str = "host";

const SERVICES: [&str; 4] = ["user", "order", "cart", "mail"];

pub(crate) async fn run(seed: u64) -> Verdict {
    let mut run = Run::new(seed);
    while run.etcd.now() < AT_LEAST {
        run.storm().await;
        run.calm().await;
    }
    run.end().await
}

struct Host {
    name: String,
    /// Number of its addresses; a restarted host has the addresses of the host that died.
    home: usize,
    registrar: Registrar,
    load: watch::Sender<Weight>,
    desk: Arc<Desk>,
    crashed: Option<Duration>,
    suspended: bool,
}

/// Registrations and pending calls of a host's callers.
#[derive(Default)]
struct Desk {
    held: Mutex<BTreeMap<String, Arc<Registration>>>,
    busy: Mutex<BTreeMap<String, AbortHandle>>,
}

struct Run {
    rng: Rng,
    etcd: SimEtcd,
    hosts: Vec<Host>,
    born: usize,
    ttl: Duration,
    ledger: Ledger,
    calls: TaskTracker,
    unhealthy: Unhealthy,
    storm_from: Duration,
    /// Foreign leases that hold keys on purpose.
    strangers: Vec<i64>,
    faults: u64,
    violations: Vec<String>,
    extended: Duration,
    /// Set for an etcd with users.
    password: Option<Password>,
}

/// The password of the hosts: at etcd, and as they have been given it.
struct Password {
    latest: Arc<Mutex<String>>,
    given: watch::Sender<Vec<u8>>,
    changes: u64,
}

impl Password {
    fn new(etcd: &SimEtcd) -> Self {
        let first = "password-0".to_owned();
        etcd.require_user(USER, &first, Duration::from_secs(300));
        let given = watch::Sender::new(first.clone().into_bytes());
        Self { latest: Arc::new(Mutex::new(first)), given, changes: 0 }
    }

    /// The hosts learn of the latest one.
    fn give(latest: &Mutex<String>, given: &watch::Sender<Vec<u8>>) {
        given.send_replace(latest.lock().expect("unpoisoned").clone().into_bytes());
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let ttl = Duration::from_secs(*rng.choice([4, 6, 10, 15].iter()).expect("not empty"));
        let etcd = SimEtcd::new(rng.u64(..));
        let password = rng.bool().then(|| Password::new(&etcd));
        Self {
            etcd,
            rng,
            hosts: Vec::new(),
            born: 0,
            ttl,
            ledger: Ledger::default(),
            calls: TaskTracker::new(),
            unhealthy: Unhealthy::default(),
            storm_from: Duration::ZERO,
            strangers: Vec::new(),
            faults: 0,
            violations: Vec::new(),
            extended: Duration::ZERO,
            password,
        }
    }

    async fn start_host(&mut self) {
        self.born += 1;
        let name = format!("host-{}", self.born);
        let fifty = Weight::try_from(50).expect("a weight");
        let (load, given) = watch::channel(fifty);
        let credentials = self.password.as_ref().map(|password| {
            let password = Source::Given(password.given.subscribe());
            Credentials { user: USER.to_owned(), password }
        });
        let options = Options {
            credentials,
            ttl: self.ttl.as_secs().try_into().expect("a TTL"),
            load: LoadSource::Given(given),
            jitter_seed: Some(self.rng.u64(..)),
            ..Options::new(["sim"])
        };
        let dials = vec![(Arc::from("sim"), self.etcd.dial(&name))];
        let registrar = Registrar::start_over(options, dials).await.expect("good options");
        if self.rng.bool() {
            registrar.grant_ahead(Duration::from_secs(self.rng.u64(0..AHEAD)));
        }
        let home = self.home();
        self.hosts.push(Host { name, home, registrar, load, desk: Arc::default(), crashed: None, suspended: false });
    }

    /// Addresses of the next host: mostly those of a host that has died.
    fn home(&mut self) -> usize {
        let lived_in = |home| self.hosts.iter().any(|host| host.home == home && host.crashed.is_none());
        let left: Vec<usize> = (0..self.born).filter(|&home| !lived_in(home)).collect();
        let (again, elsewhere) = (self.rng.f64() < 0.8, self.born);
        self.rng.choice(left).filter(|_| again).unwrap_or(elsewhere)
    }

    fn living(&mut self) -> Option<usize> {
        let living: Vec<usize> = (0..self.hosts.len()).filter(|&index| self.hosts[index].crashed.is_none()).collect();
        self.rng.choice(living)
    }

    /// Half a minute to four minutes of acts and faults.
    async fn storm(&mut self) {
        self.storm_from = self.etcd.now();
        while self.hosts.iter().filter(|host| host.crashed.is_none()).count() < 3 {
            self.start_host().await;
        }
        let end = Instant::now() + Duration::from_secs(self.rng.u64(30..240));
        while Instant::now() < end {
            for _ in 0..self.rng.usize(1..4) {
                self.act().await;
            }
            if self.rng.f64() < 0.5 {
                self.fault();
            }
            sleep(Duration::from_millis(self.rng.u64(1..20_000))).await;
        }
    }

    async fn act(&mut self) {
        let Some(index) = self.living() else { return };
        match self.rng.u32(0..100) {
            0..50 => self.register(index),
            50..75 => self.stop(index),
            75..80 => self.drop_one(index),
            80..86 => self.give_up(index),
            86..92 => self.weigh(index).await,
            92..94 => self.suspend(index),
            94..97 => {
                let weight = Weight::try_from(self.rng.u32(1..=100)).expect("in range");
                let _ = self.hosts[index].load.send(weight); // A crashed host has no receiver.
            }
            _ => self.crash(index),
        }
    }

    fn register(&mut self, index: usize) {
        let name = *self.rng.choice(SERVICES.iter()).expect("not empty");
        // Mostly an address of its own; sometimes a contended address.
        let addr = match self.rng.u32(0..4) {
            0 => "10.9.9.9:1".to_owned(),
            n => format!("10.0.0.{}:{n}", self.hosts[index].home + 1),
        };
        let ownership =
            *self.rng.choice([Ownership::TakeOver, Ownership::Refuse, Ownership::Wait].iter()).expect("not empty");
        let weight = self.rng.bool().then(|| Weight::try_from(self.rng.u32(1..=100)).expect("in range"));
        let node = ServerNode { weight, ..ServerNode::new(name, &addr).expect("good node") };
        let key = format!("/{name}/{addr}");
        let host = &self.hosts[index];
        let desk = host.desk.clone();
        let busy = desk.busy.lock().expect("unpoisoned").contains_key(&key);
        if busy || desk.held.lock().expect("unpoisoned").contains_key(&key) {
            return;
        }
        let request = Request::Register { may_take_over: ownership == Ownership::TakeOver };
        let number = self.ledger.begin(&host.name, &key, request, self.etcd.now());
        let (registrar, ledger, etcd) = (host.registrar.clone(), self.ledger.clone(), self.etcd.clone());
        let terms = Terms { ownership: Some(ownership), ..Terms::default() };
        let (at_desk, at_key) = (desk.clone(), key.clone());
        let task = self.calls.spawn(async move {
            let outcome = registrar.register_on(node, terms).await;
            ledger.finish(number, etcd.now(), outcome.is_ok());
            if let Ok(registration) = outcome {
                at_desk.held.lock().expect("unpoisoned").insert(at_key.clone(), Arc::new(registration));
            }
            at_desk.busy.lock().expect("unpoisoned").remove(&at_key);
        });
        desk.busy.lock().expect("unpoisoned").insert(key, task.abort_handle());
    }

    fn pick_held(&mut self, index: usize) -> Option<(String, Arc<Registration>)> {
        let held = self.hosts[index].desk.held.lock().expect("unpoisoned").clone();
        self.rng.choice(held)
    }

    fn stop(&mut self, index: usize) {
        let Some((key, registration)) = self.pick_held(index) else { return };
        let host = &self.hosts[index];
        let desk = host.desk.clone();
        desk.held.lock().expect("unpoisoned").remove(&key);
        let number = self.ledger.begin(&host.name, &key, Request::Stop, self.etcd.now());
        let (ledger, etcd) = (self.ledger.clone(), self.etcd.clone());
        let (at_desk, at_key) = (desk.clone(), key.clone());
        let task = self.calls.spawn(async move {
            let outcome = registration.stop().await;
            ledger.finish(number, etcd.now(), outcome.is_ok());
            at_desk.busy.lock().expect("unpoisoned").remove(&at_key);
        });
        desk.busy.lock().expect("unpoisoned").insert(key, task.abort_handle());
    }

    fn drop_one(&mut self, index: usize) {
        let Some((key, registration)) = self.pick_held(index) else { return };
        let host = &self.hosts[index];
        self.ledger.begin(&host.name, &key, Request::Drop, self.etcd.now());
        host.desk.held.lock().expect("unpoisoned").remove(&key);
        drop(registration);
    }

    /// Drops a pending call.
    fn give_up(&mut self, index: usize) {
        let host = &self.hosts[index];
        let busy = host.desk.busy.lock().expect("unpoisoned").clone();
        let Some((key, task)) = self.rng.choice(busy) else { return };
        self.ledger.begin(&host.name, &key, Request::Drop, self.etcd.now());
        task.abort();
        host.desk.busy.lock().expect("unpoisoned").remove(&key);
    }

    async fn weigh(&mut self, index: usize) {
        let Some((_, registration)) = self.pick_held(index) else { return };
        let weight = Weight::try_from(self.rng.u32(1..=100)).expect("in range");
        let other = ServerNode { weight: Some(weight), ..registration.node().clone() };
        let replaces = self.rng.bool();
        if self.hosts[index].suspended {
            return; // A suspended host does not process it.
        }
        let _ = match replaces {
            true => registration.replace(other).await,
            false => registration.set_weight(weight).await,
        }; // It may be stopping.
    }

    /// Suspends the host for a while, until the next calm at the latest.
    fn suspend(&mut self, index: usize) {
        let longest = self.ttl.as_millis() as u64 * 4;
        let pause = Duration::from_millis(self.rng.u64(100..longest));
        let host = &mut self.hosts[index];
        if std::mem::replace(&mut host.suspended, true) {
            return;
        }
        host.registrar.suspend(true);
        let registrar = host.registrar.clone();
        self.calls.spawn(async move {
            sleep(pause).await;
            registrar.suspend(false);
        });
        self.faults += 1;
    }

    /// Resumes the suspended hosts.
    fn awake(&mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.suspended) {
            host.registrar.suspend(false);
            host.suspended = false;
        }
    }

    /// Kills the host: no further request of it reaches etcd.
    fn crash(&mut self, index: usize) {
        if self.hosts.iter().filter(|host| host.crashed.is_none()).count() < 2 || self.rng.bool() {
            return;
        }
        let now = self.etcd.now();
        let host = &mut self.hosts[index];
        self.etcd.set_faults(&host.name, FaultPlan { error_before: 1.0, ..FaultPlan::none() });
        self.etcd.cut(&host.name);
        self.etcd.blackhole(&host.name);
        self.ledger.begin(&host.name, "", Request::Crash, now);
        host.crashed = Some(now);
        for task in std::mem::take(&mut *host.desk.busy.lock().expect("unpoisoned")).into_values() {
            task.abort();
        }
        host.desk.held.lock().expect("unpoisoned").clear();
        self.faults += 1;
    }

    fn fault(&mut self) {
        self.faults += 1;
        let Some(index) = self.living() else { return };
        let name = self.hosts[index].name.clone();
        match self.rng.u32(0..100) {
            0..3 => self.rotate(),
            3..25 => {
                let plan = FaultPlan::all(self.rng.f64() * 0.15);
                self.etcd.set_faults(&name, plan);
            }
            25..35 => self.etcd.set_faults(&name, FaultPlan::none()),
            35..45 => self.etcd.blackhole(&name),
            45..53 => self.etcd.heal(&name),
            53..56 => self.etcd.forget_flows(&name),
            56..60 => self.etcd.cut(&name),
            60..65 => self.etcd.leader_change(),
            65..69 => self.etcd.restart(true),
            69..73 => self.etcd.restart(false),
            73..76 => self.etcd.stop(),
            76..80 => self.etcd.start(),
            80..82 => self.etcd.lose_quorum(),
            82..84 => self.etcd.regain_quorum(),
            84..87 => {
                if let Some(lease) = self.rng.choice(self.etcd.leases().into_keys().collect::<Vec<_>>()) {
                    self.etcd.revoke(lease);
                }
            }
            87..91 => {
                if let Some(key) = self.any_key() {
                    self.etcd.delete(&key);
                }
            }
            91..93 => {
                if let Some(key) = self.any_key() {
                    self.etcd.put(&key, FOREIGN, 0);
                }
            }
            93..95 => {
                // As `etcdctl put --ignore-lease` does.
                if let Some(key) = self.any_key() {
                    let lease = self.etcd.get(&key).map_or(0, |found| found.lease);
                    self.etcd.put(&key, FOREIGN, lease);
                }
            }
            _ => {
                if let Some(key) = self.any_key() {
                    let lease = self.etcd.grant(Duration::from_secs(self.rng.u64(5..60)));
                    self.etcd.put(&key, FOREIGN, lease);
                    self.strangers.push(lease);
                }
            }
        }
        match self.rng.u32(0..20) {
            0 | 1 => self.etcd.set_no_space(self.rng.bool()),
            2 => self.etcd.set_forbidden(&name, self.rng.f64() < 0.7),
            _ => {}
        }
    }

    /// The password changes at etcd; the hosts learn of it a while later, with the calm at the latest.
    fn rotate(&mut self) {
        let Some(password) = &mut self.password else { return };
        password.changes += 1;
        let next = format!("password-{}", password.changes);
        self.etcd.set_password(USER, &next);
        *password.latest.lock().expect("unpoisoned") = next;
        let (latest, given) = (password.latest.clone(), password.given.clone());
        let pause = Duration::from_millis(self.rng.u64(0..self.ttl.as_millis() as u64 * 2));
        self.calls.spawn(async move {
            sleep(pause).await;
            Password::give(&latest, &given);
        });
    }

    fn any_key(&mut self) -> Option<String> {
        self.rng.choice(self.etcd.keys("").into_keys().collect::<Vec<_>>())
    }

    /// Ends all faults. One renewal interval later every registration must be correct, and then nothing may be written.
    async fn calm(&mut self) {
        self.awake();
        for host in self.hosts.iter().filter(|host| host.crashed.is_none()) {
            self.etcd.set_faults(&host.name, FaultPlan::none());
            self.etcd.heal(&host.name);
            self.etcd.set_forbidden(&host.name, false);
        }
        if let Some(Password { latest, given, .. }) = &self.password {
            Password::give(latest, given);
        }
        self.etcd.set_no_space(false);
        for lease in std::mem::take(&mut self.strangers) {
            self.etcd.revoke(lease);
        }
        self.etcd.start();
        self.etcd.regain_quorum();
        sleep(ELECTION).await;
        self.extended = self.etcd.now();
        self.unhealthy.add(None, self.storm_from, self.etcd.now());

        sleep(self.ttl / 3 + ROUND_TRIPS).await;
        self.everything_stands("one renewal interval after the faults");
        self.settle_calls().await;
        let before = self.etcd.now();
        // A flow that dies silently costs a healthy host nothing, unless a write is under way on it: a key that another host
        // holds is tried at every audit.
        for host in self.hosts.iter().filter(|host| host.crashed.is_none()) {
            let held = host.desk.held.lock().expect("unpoisoned");
            let writes = held.values().any(|registration| registration.status().state != State::Registered);
            if self.rng.bool() && !writes {
                self.etcd.forget_flows(&host.name);
            }
        }
        sleep(QUIET).await;
        self.nothing_was_written_since(before);
        self.the_dead_are_gone();
        self.everything_stands("after the quiet time");
        self.nothing_else_stands();
    }

    /// Checks that living hosts have only desired keys, with nothing left by a stop, a failed call or a dropped handle, and
    /// that they have no lease without keys.
    fn nothing_else_stands(&mut self) {
        let history = self.etcd.history();
        let mut owners = BTreeMap::new();
        for event in &history {
            if let (EventKind::Granted { lease, .. }, Some(host)) = (&event.kind, event.host()) {
                owners.insert(*lease, host);
            }
        }
        for host in self.hosts.iter().filter(|host| host.crashed.is_none()) {
            let leases = self.etcd.leases().into_keys().filter(|lease| owners.get(lease) == Some(&&*host.name)).count();
            let keys = host.desk.held.lock().expect("unpoisoned").len();
            if leases > keys {
                let now = self.etcd.now();
                self.violations.push(format!("gone: {} has {leases} leases for {keys} keys at {now:?}", host.name));
            }
        }
        for (key, entry) in self.etcd.keys("") {
            let owner = owners.get(&entry.lease).and_then(|owner| self.hosts.iter().find(|host| host.name == **owner));
            let Some(host) = owner.filter(|host| host.crashed.is_none()) else { continue };
            if !host.desk.held.lock().expect("unpoisoned").contains_key(&key) {
                let now = self.etcd.now();
                self.violations
                    .push(format!("gone: {key} stands for {} at {now:?}, which does not keep it", host.name));
            }
        }
    }

    /// Waits for pending calls, which end by their own deadlines.
    async fn settle_calls(&mut self) {
        sleep(PATIENCE).await;
        for host in &self.hosts {
            if let Some(key) = host.desk.busy.lock().expect("unpoisoned").keys().next() {
                self.violations.push(format!("bounded: {} still waits for {key} after {PATIENCE:?}", host.name));
            }
        }
        // Keys with a waiting `register` may have been written within the last interval.
        sleep(self.ttl).await;
    }

    fn everything_stands(&mut self, when: &str) {
        let leases = self.etcd.leases();
        let history = self.etcd.history();
        // Two hosts of the simulation may register the same key; one has it, and the other gets it an interval after that.
        let interval = self.ttl / 3 + ROUND_TRIPS;
        let just_freed = |key: &str, now: Duration| {
            let last = history.iter().rev().find(|event| event.key() == Some(key));
            last.is_some_and(|event| matches!(event.kind, EventKind::Delete { .. }) && event.at + interval > now)
        };
        for host in self.hosts.iter().filter(|host| host.crashed.is_none()) {
            for (key, registration) in host.desk.held.lock().expect("unpoisoned").iter() {
                let status = registration.status();
                let found = self.etcd.get(key);
                let stands = found.as_ref().is_some_and(|found| leases.contains_key(&found.lease));
                let is_foreign = found.as_ref().is_some_and(|found| found.value == FOREIGN);
                let fine = match status.state {
                    State::Registered => stands && !is_foreign,
                    State::Conflict => stands || just_freed(key, self.etcd.now()),
                    _ => false,
                };
                if !fine {
                    let now = self.etcd.now();
                    let held = found.map(|found| found.lease);
                    self.violations.push(format!(
                        "self-healing: {when}, at {now:?}, {key} of {} is {} and stands under {held:x?}",
                        host.name, status.state
                    ));
                }
            }
        }
    }

    fn nothing_was_written_since(&mut self, before: Duration) {
        let history = self.etcd.history();
        let recent = history.iter().rev().take_while(|event| event.at > before);
        let written: Vec<&Event> = recent.filter(|event| event.key().is_some() && event.host().is_some()).collect();
        if let Some(event) = written.first() {
            self.violations.push(format!("quiet: {} writes in a calm, the last: {event:?}", written.len()));
        }
    }

    /// Checks that no key outlives a dead host by more than a TTL and etcd's tick, apart from the extension of an election.
    fn the_dead_are_gone(&mut self) {
        let now = self.etcd.now();
        let history = self.etcd.history();
        let owner = |lease: i64| {
            history.iter().find_map(|event| match event.kind {
                EventKind::Granted { lease: granted, .. } if granted == lease => event.host(),
                _ => None,
            })
        };
        let keys = self.etcd.keys("");
        for host in &self.hosts {
            let Some(crashed) = host.crashed else { continue };
            if now < crashed.max(self.extended) + self.ttl + Duration::from_secs(2) {
                continue;
            }
            for (key, _) in keys.iter().filter(|(_, entry)| owner(entry.lease) == Some(&host.name)) {
                self.violations.push(format!("ttl: {key} outlives {}, which died at {crashed:?}", host.name));
            }
        }
    }

    async fn end(mut self) -> Verdict {
        for host in self.hosts.iter().filter(|host| host.crashed.is_none()) {
            for key in host.desk.held.lock().expect("unpoisoned").keys() {
                self.ledger.begin(&host.name, key, Request::Drop, self.etcd.now());
            }
            if host.registrar.shutdown(PATIENCE).await.is_err() {
                self.violations.push(format!("gone: {} could not shut down", host.name));
            }
        }
        let now = self.etcd.now();
        let owned: BTreeSet<i64> = self.etcd.leases().into_keys().collect();
        for (key, entry) in self.etcd.keys("").iter().filter(|(_, entry)| owned.contains(&entry.lease)) {
            self.violations
                .push(format!("gone: {key} is left under lease {:x} after every host ended at {now:?}", entry.lease));
        }
        let (acts, history) = (self.ledger.acts(), self.etcd.history());
        self.violations.extend(violations(&acts, &history, &self.unhealthy));
        let leases = history.iter().filter(|event| matches!(event.kind, EventKind::Granted { .. })).count();
        let tally = Tally {
            seconds: now.as_secs(),
            acts: acts.len() as u64,
            faults: self.faults,
            events: history.len() as u64,
            leases: leases as u64,
        };
        Verdict { violations: self.violations, tally }
    }
}
