//! A simulated etcd at the wire: etcd-client talks gRPC to it over a channel without sockets, under tokio's paused time.
//!
//! All randomness comes from one seed. In a fresh current-thread runtime with paused time a run repeats exactly, as long
//! as the code under test has no randomness of its own (tokio's `select!` has, unless it is `biased`).
//!
//! ```no_run
//! # use std::time::Duration;
//! # use leasehold_scenarios::sim::{FaultPlan, SimEtcd, EventKind};
//! # async fn example() -> Result<(), etcd_client::Error> {
//! let etcd = SimEtcd::new(42);
//! let mut client = etcd.client("host-1").await;
//! let lease = client.lease_grant(10, None).await?.id();
//! etcd.set_faults("host-1", FaultPlan { late: 0.5, ..FaultPlan::none() });
//! etcd.blackhole("host-1");
//! tokio::time::sleep(Duration::from_secs(11)).await;
//! etcd.heal("host-1");
//! assert!(etcd.history().iter().any(|event| event.kind == EventKind::Expired { lease }));
//! # Ok(())
//! # }
//! ```

mod apply;
mod auth;
mod check;
mod failure;
mod fault;
mod history;
mod lessor;
mod service;
mod state;
mod store;
mod stream;
mod watch;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Channel, Client};
use leasehold::Dial;
use tokio::time::{MissedTickBehavior, interval};
use tower::util::BoxCloneSyncService;

use self::service::Services;
use self::state::{Shared, State};
use self::store::{Item, Range};
use self::wire::{Link, Wire};

pub use self::fault::FaultPlan;
pub use self::history::{Call, CallRecord, Cause, Event, EventKind, TransactionSize};

/// Handle of one simulated etcd; clones are the same etcd.
#[derive(Clone, Debug)]
pub struct SimEtcd {
    shared: Arc<Shared>,
}

/// Current state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value, byte for byte.
    pub value: Bytes,
    /// The lease of the key; 0 means none.
    pub lease: i64,
    /// The revision that created the key.
    pub created: i64,
    /// The revision of the last write.
    pub modified: i64,
    /// Number of writes since the key was created.
    pub version: i64,
}

impl From<&Item> for Entry {
    fn from(item: &Item) -> Self {
        Self {
            value: item.value.clone(),
            lease: item.lease,
            created: item.created,
            modified: item.modified,
            version: item.version,
        }
    }
}

/// Current state of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEntry {
    /// The granted time to live.
    pub ttl: Duration,
    /// The time left.
    pub left: Duration,
    /// The keys of the lease.
    pub keys: BTreeSet<String>,
}

/// The etcd itself.
impl SimEtcd {
    /// Starts an empty etcd. All its randomness comes from the seed.
    ///
    /// # Panics
    /// Outside a tokio runtime, which runs all its tasks.
    pub fn new(seed: u64) -> Self {
        let shared = Arc::new(Shared::new(seed));
        let clock = Arc::downgrade(&shared);
        shared.spawn(async move {
            let mut ticks = interval(lessor::TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(shared) = clock.upgrade() else { return };
                shared.lock().tick();
            }
        });
        Self { shared }
    }

    /// A channel for `Client::from_channel`. Faults, counters and history are per host name.
    pub fn channel(&self, host: &str) -> Channel {
        let link = self.link(host);
        let wire = Wire {
            shared: Arc::clone(&self.shared),
            flow: link.new_flow(),
            link,
            services: Services::new(Arc::clone(&self.shared)),
        };
        Channel::Custom(BoxCloneSyncService::new(wire))
    }

    /// Such channels for a registrar, each a flow of its own.
    pub fn dial(&self, host: &str) -> Dial {
        let (etcd, host) = (self.clone(), host.to_owned());
        Arc::new(move || etcd.channel(&host))
    }

    /// A client over such a channel, without a user.
    pub async fn client(&self, host: &str) -> Client {
        Client::from_channel(self.channel(host), None).await.expect("without a user nothing is called")
    }

    /// Kills etcd: connections are refused, streams break. Its data stays.
    pub fn stop(&self) {
        self.lock().stop();
    }

    /// Restarts etcd; every lease has its full TTL, and every token is invalid.
    pub fn start(&self) {
        self.lock().start();
    }

    /// Kills and restarts etcd; without its data it is a new etcd at revision 1 with the same users.
    pub fn restart(&self, keep_data: bool) {
        let mut state = self.lock();
        state.stop();
        if !keep_data {
            state.wipe();
        }
        state.start();
    }

    /// Loses the leader. For one to two seconds all calls wait. Then every lease has its full TTL, and some of the waiting
    /// calls fail with "leader changed".
    pub fn leader_change(&self) {
        self.lock().elect();
    }

    /// Loses the quorum. Until `regain_quorum`, calls and renewals wait and fail after 7 s, and no lease expires.
    pub fn lose_quorum(&self) {
        self.lock().lose_quorum();
    }

    /// Regains the quorum; the members elect a leader, as after `leader_change`.
    pub fn regain_quorum(&self) {
        self.lock().elect();
    }

    /// Turns authentication on, or adds a user. `token_ttl` is the lifetime of an unused token (etcd's default: 300 s).
    pub fn require_user(&self, user: &str, password: &str, token_ttl: Duration) {
        self.lock().auth.enable(user, password, token_ttl);
    }

    /// Changes a user's password. As with etcd, the tokens from before are invalid then.
    ///
    /// # Panics
    /// When there is no such user.
    pub fn set_password(&self, user: &str, password: &str) {
        self.lock().auth.set_password(user, password);
    }

    /// Makes every token invalid now.
    pub fn forget_tokens(&self) {
        self.lock().auth.forget_tokens();
    }

    /// Takes the right to any key from one host, or gives it back.
    pub fn set_forbidden(&self, host: &str, forbidden: bool) {
        let mut state = self.lock();
        match forbidden {
            true => drop(state.forbidden.insert(host.to_owned())),
            false => drop(state.forbidden.remove(host)),
        }
    }

    /// Lets each grant, revocation and writing transaction take so long, one after the other; zero, as at first, for no time.
    pub fn set_pace(&self, pace: Duration) {
        self.lock().pace = pace;
    }

    /// Raises or clears the alarm NOSPACE.
    pub fn set_no_space(&self, raised: bool) {
        self.lock().no_space = raised;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock()
    }
}

/// The network.
impl SimEtcd {
    /// Sets the faults of one host's network.
    pub fn set_faults(&self, host: &str, plan: FaultPlan) {
        self.link(host).set_plan(plan);
    }

    /// Sets the faults of every host's network, including future hosts.
    pub fn set_all_faults(&self, plan: &FaultPlan) {
        let mut state = self.lock();
        state.plan = plan.clone();
        for link in state.links.values() {
            link.set_plan(plan.clone());
        }
    }

    /// Blackholes one host's network: its calls and streams hang until `heal`. Then the messages on their way arrive, except
    /// that a request whose caller gave up arrives half of the time.
    pub fn blackhole(&self, host: &str) {
        self.link(host).set_blackholed(true);
    }

    /// Ends a blackhole.
    pub fn heal(&self, host: &str) {
        self.link(host).set_blackholed(false);
    }

    /// Cuts the connections of one host: open calls fail, streams break, new connections work.
    pub fn cut(&self, host: &str) {
        self.link(host).break_open();
    }

    /// Forgets the open flows of one host, like a NAT that lost its table: all their messages are lost silently. New flows
    /// work.
    pub fn forget_flows(&self, host: &str) {
        self.link(host).forget_flows();
    }

    fn link(&self, host: &str) -> Arc<Link> {
        let mut state = self.lock();
        if let Some(link) = state.links.get(host) {
            return Arc::clone(link);
        }
        let link = Arc::new(Link::new(host, state.plan.clone()));
        state.links.insert(Arc::clone(&link.host), Arc::clone(&link));
        link
    }
}

/// Foreign writers: immediate, without a network, and also while etcd is stopped.
impl SimEtcd {
    /// Writes a key; lease 0 means none.
    ///
    /// # Panics
    /// If the lease is unknown.
    pub fn put(&self, key: &str, value: &str, lease: i64) {
        let mut state = self.lock();
        let known = lease == 0 || state.lessor.get(lease).is_some();
        assert!(known, "lease {lease} is unknown");
        let key = Bytes::copy_from_slice(key.as_bytes());
        let value = Bytes::copy_from_slice(value.as_bytes());
        state.write(&Cause::Foreign, |writer| writer.put(&key, value, lease));
    }

    /// Deletes a key; returns true if it existed.
    pub fn delete(&self, key: &str) -> bool {
        let range = Range::new(key.as_bytes(), b"");
        let deleted = self.lock().write(&Cause::Foreign, |writer| writer.delete(&range));
        deleted > 0
    }

    /// Grants a lease without renewals.
    pub fn grant(&self, ttl: Duration) -> i64 {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self.lock().grant(Cause::Foreign, 0, seconds);
        granted.expect("a TTL below etcd's maximum").0
    }

    /// Revokes a lease; returns true if it existed.
    pub fn revoke(&self, lease: i64) -> bool {
        self.lock().revoke(&Cause::Foreign, lease).is_ok()
    }

    /// Compacts the history up to a revision.
    ///
    /// # Panics
    /// If the revision is in the future or was compacted before.
    pub fn compact(&self, revision: i64) {
        let compacted = self.lock().store.compact(revision);
        compacted.expect("a revision that can be compacted");
    }
}

/// Observations for tests.
impl SimEtcd {
    /// Virtual time since the simulation began: the clock of `Event::at`.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// The revision of the store.
    pub fn revision(&self) -> i64 {
        self.lock().store.revision()
    }

    /// The revision of the last compaction; -1 before the first.
    pub fn compacted(&self) -> i64 {
        self.lock().store.compacted()
    }

    /// One key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.lock().store.get(key.as_bytes()).map(Entry::from)
    }

    /// All keys with this prefix; "" means all keys.
    pub fn keys(&self, prefix: &str) -> BTreeMap<String, Entry> {
        let everything = Range::new(b"\0", b"\0");
        let state = self.lock();
        let entries = state.store.range(&everything);
        let named = entries.map(|item| (state::text(&item.key), Entry::from(item)));
        named.filter(|(key, _)| key.starts_with(prefix)).collect()
    }

    /// Every lease.
    pub fn leases(&self) -> BTreeMap<i64, LeaseEntry> {
        let state = self.lock();
        let entry = |lease: &lessor::Lease| LeaseEntry {
            ttl: lease.ttl,
            left: lease.left(state.now),
            keys: lease.keys.iter().map(state::text).collect(),
        };
        let leases = state.lessor.by_expiry();
        leases.into_iter().map(|(id, lease)| (id, entry(lease))).collect()
    }

    /// All events, in order. Compaction and restarts do not remove events.
    pub fn history(&self) -> Vec<Event> {
        self.lock().history.events.clone()
    }

    /// Takes the events out of the history, in order: a run of millions of events does not fit into memory.
    pub fn take_history(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().history.events)
    }

    /// Takes the calls out of the history, in order.
    pub fn take_calls(&self) -> Vec<CallRecord> {
        std::mem::take(&mut self.lock().history.calls)
    }

    /// The largest number of operations and of bytes that a transaction has had.
    pub fn largest_transaction(&self) -> TransactionSize {
        self.lock().history.largest_transaction
    }

    /// Every call at the time that it left its host, in order; renewals are only counted.
    pub fn calls(&self) -> Vec<CallRecord> {
        self.lock().history.calls.clone()
    }

    /// Number of a host's calls of this kind, whatever their outcome; renewals count when they reach etcd.
    pub fn count(&self, host: &str, call: Call) -> u64 {
        self.lock().history.count(host, call)
    }

    /// Number of a host's calls that can change keys.
    pub fn writes(&self, host: &str) -> u64 {
        let state = self.lock();
        let kinds = Call::ALL.into_iter().filter(|call| call.writes());
        kinds.map(|call| state.history.count(host, call)).sum()
    }
}
