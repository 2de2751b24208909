//! Options of a registrar, fixed at its start.

use std::{fmt, str::FromStr, time::Duration};

use tokio::sync::watch;

use crate::{
    layout::Layout,
    lease_id::LeaseId,
    node::{Invalid, Weight},
    source::Source,
    weight::Damping,
};

/// etcd refuses a longer time to live than this (`maxLeaseTTL` in its lessor), in seconds.
const MAX_TTL_SECONDS: u64 = 9_000_000_000;

/// Options for reaching etcd and for registering there. The defaults suit an etcd on the same network.
///
/// Written by struct update, `Options { ttl, ..Options::new(endpoints) }`, which `#[non_exhaustive]` would forbid; use it also where
/// every field is given, since a minor release may add one.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port`, each a member of one etcd cluster; `host:port` stands for the former. When one
    /// fails the next is tried.
    pub endpoints: Vec<String>,
    /// The user as whom to speak to an etcd with authentication.
    ///
    /// By default none.
    pub credentials: Option<Credentials>,
    /// TLS settings of `https` endpoints.
    pub tls: Tls,
    /// Longest time for making a connection. Too short makes a far etcd unreachable; too long delays the next endpoint.
    ///
    /// By default 3 s.
    pub dial_timeout: Duration,
    /// Longest time for one request, at most a quarter of the TTL. A write without a response by then costs a new lease, so
    /// too short is expensive; too long delays recovery from a dead connection.
    ///
    /// By default 5 s.
    pub request_timeout: Duration,
    /// Longest time for `register`, its retries included.
    ///
    /// By default 10 s.
    pub register_timeout: Duration,
    /// Longest time for which `stop` waits for etcd's confirmation, before it returns and goes on in the background.
    ///
    /// By default 5 s.
    pub stop_timeout: Duration,
    /// Time for which keys outlive a host that died; `register` may override it. etcd may grant more.
    ///
    /// By default 10 s.
    pub ttl: Ttl,
    /// Layouts under which nodes are published, 1 to 8; `register` may override them. All of them
    /// are read by [`Registrar::resolve`](crate::Registrar::resolve) and [`list`](crate::Registrar::list).
    ///
    /// By default the layout `seed`.
    pub layouts: Vec<Layout>,
    /// Further layouts to read, since other hosts may write them, or a `register` with its own terms.
    ///
    /// By default none.
    pub also_read: Vec<Layout>,
    /// Treatment of a key that belongs to another host; `register` may override it.
    ///
    /// By default [`Ownership::TakeOver`].
    pub ownership: Ownership,
    /// Source of computed weights.
    ///
    /// By default `LoadSource::Machine`, or the highest weight without the feature `load`.
    pub load: LoadSource,
    /// Threshold from which a computed weight is written.
    ///
    /// By default [`Damping::default`].
    pub damping: Damping,
    /// The most registrations at a time; one more is an error.
    ///
    /// By default 200,000.
    pub max_registrations: usize,
    /// Leases of the former process of this host. A key of one of them is taken over as this host's own, which is no
    /// [`TookOver`](crate::EventKind::TookOver).
    ///
    /// By default none.
    pub former_leases: Vec<LeaseId>,
    /// Seeds the jitter of retries, so that a simulation can be replayed. `None` draws a fresh seed.
    pub jitter_seed: Option<u64>,
}

impl Options {
    /// The defaults, for these endpoints.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            credentials: None,
            tls: Tls::default(),
            dial_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            register_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
            ttl: Ttl::default(),
            layouts: vec![Layout::default()],
            also_read: Vec::new(),
            ownership: Ownership::default(),
            load: LoadSource::default(),
            damping: Damping::default(),
            max_registrations: 200_000,
            former_leases: Vec::new(),
            jitter_seed: None,
        }
    }

    /// Every layout that is read, none twice.
    pub fn read_layouts(&self) -> Vec<Layout> {
        let mut all: Vec<Layout> = Vec::new();
        for layout in self.layouts.iter().chain(&self.also_read) {
            if !all.iter().any(|there| there.reads_as(layout)) {
                all.push(layout.clone());
            }
        }
        all
    }
}

/// A user of etcd and the password. `Debug` shows the user only.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password, read for each sign-in; it is sent to etcd and nowhere else. A plain one is `"...".into()`.
    pub password: Source,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// TLS towards `https` endpoints, which need the feature `tls`; its sources are read for each connection. `Debug` never shows the key.
#[derive(Clone, Default)]
pub struct Tls {
    /// PEM certificates of the authorities that may vouch for etcd. `None` trusts those of the system.
    pub ca_pem: Option<Source>,
    /// PEM certificate chain and key that this client shows to etcd.
    pub identity_pem: Option<(Source, Source)>,
    /// The name that etcd's certificate must carry; by default the endpoint's host.
    pub server_name: Option<String>,
}

impl Tls {
    /// Returns true if reading the sources may block. The authorities of the system are files.
    #[cfg(feature = "tls")]
    pub(crate) fn may_block(&self) -> bool {
        let identity = self.identity_pem.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.ca_pem.as_ref().is_none_or(Source::may_block) || identity.into_iter().any(Source::may_block)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca_pem)
            .field("identity", &self.identity_pem)
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// A time to live in whole seconds, 1 to 9,000,000,000. etcd raises it to its own minimum, 2 s by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ttl(u64);

impl Ttl {
    /// The time to live in seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self(10)
    }
}

impl TryFrom<u64> for Ttl {
    type Error = Invalid;

    fn try_from(seconds: u64) -> Result<Self, Invalid> {
        match seconds {
            1..=MAX_TTL_SECONDS => Ok(Self(seconds)),
            _ => Err(Invalid::new("ttl", format!("must be 1 to {MAX_TTL_SECONDS} seconds, not {seconds}"))),
        }
    }
}

/// Treatment by `register` of a key that belongs to a live lease of another host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Writes over it, once. A registration whose key is taken later does not take it back by force.
    #[default]
    TakeOver,
    /// Fails with [`Error::Conflict`](crate::Error::Conflict).
    Refuse,
    /// Waits for the key to become free, as long as `register` may take.
    Wait,
}

impl FromStr for Ownership {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "take-over" => Ok(Self::TakeOver),
            "refuse" => Ok(Self::Refuse),
            "wait" => Ok(Self::Wait),
            _ => Err(Invalid::new("ownership", format!("must be one of: take-over, refuse, wait; not {text:?}"))),
        }
    }
}

/// Source of the weight of a node without one of its own.
#[derive(Debug, Clone)]
pub enum LoadSource {
    /// The processor and memory of this machine, or of the container's share of it. Needs the feature `load`.
    #[cfg(feature = "load")]
    Machine,
    /// Always this weight.
    Fixed(Weight),
    /// The latest weight that the embedder gives.
    Given(watch::Receiver<Weight>),
}

impl Default for LoadSource {
    /// The machine, or the highest weight without the feature `load`.
    fn default() -> Self {
        #[cfg(feature = "load")]
        {
            Self::Machine
        }
        #[cfg(not(feature = "load"))]
        {
            Self::Fixed(Weight::MAX)
        }
    }
}

/// Terms of one registration, where they differ from its registrar's [`Options`].
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Time for which the key outlives a host that died.
    pub ttl: Option<Ttl>,
    /// Layouts under which the node is published.
    pub layouts: Option<Vec<Layout>>,
    /// Treatment of a key that belongs to another host.
    pub ownership: Option<Ownership>,
}
