//! Sockets of a program: it may listen at the address of its service, and connect to the addresses that its policy lists.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use leasehold::ServiceName;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{
    p2,
    sockets::{SocketAddrUse, TcpSocket},
};

use crate::{
    config::destination::{Destination, Target, Unlisted},
    outbound::{
        denial::Denials,
        reserved::{LeadsToAdmin, Reserved},
    },
};

/// The sockets of one run.
pub(crate) struct Sockets {
    pub(crate) service: ServiceName,
    pub(crate) listen: SocketAddr,
    /// `allow.outbound`; only IP addresses count here, since names are not resolved.
    pub(crate) outbound: Arc<[Destination]>,
    /// Permits local targets without an entry of their own.
    pub(crate) local: bool,
    pub(crate) reserved: Reserved,
    pub(crate) denials: Arc<Denials>,
    /// Cancelled when the program has bound its address and is about to listen.
    pub(crate) listens: CancellationToken,
    /// Cancelled when the program is to end; it gets no further connections.
    pub(crate) ending: CancellationToken,
    pub(crate) connections: ConnectionPermits,
    /// A refusal was logged as a warning; further ones are logged at debug level.
    pub(crate) refused: AtomicBool,
}

/// Permits for further connections of a program, one or two beyond `limits.connections`. No call reports the end of a
/// connection, so the program's sockets are counted when no permit is left.
#[derive(Clone)]
pub(crate) struct ConnectionPermits {
    most: usize,
    left: Arc<Semaphore>,
}

impl ConnectionPermits {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, left: Arc::new(Semaphore::new(most)) }
    }

    /// Adds the permits of connections that have ended. Called before each call of the program, with its table.
    pub(crate) fn replenish(&self, table: &mut ResourceTable) {
        if self.left.available_permits() > 0 {
            return;
        }
        let sockets = table.iter_mut().filter(|held| held.is::<p2::TcpSocket>() || held.is::<TcpSocket>()).count();
        // The listener is one of the sockets; another may be dropped by this very call, perhaps the last for long.
        self.left.add_permits((self.most + 2).saturating_sub(sockets));
    }

    async fn acquire(&self) {
        self.left.acquire().await.expect("it is never closed").forget();
    }
}

impl Sockets {
    /// Decides on an address; a connection waits for its permit.
    pub(crate) async fn decide(&self, addr: SocketAddr, purpose: SocketAddrUse) -> bool {
        if matches!(purpose, SocketAddrUse::TcpAccept) {
            return self.ending.run_until_cancelled(self.connections.acquire()).await.is_some();
        }
        self.allow(addr, purpose)
    }

    fn allow(&self, addr: SocketAddr, purpose: SocketAddrUse) -> bool {
        let is_own = (addr.ip(), addr.port()) == (self.listen.ip(), self.listen.port());
        let allowed = match purpose {
            // A connecting socket is bound to some address first.
            SocketAddrUse::TcpBind => is_own || (is_any(addr) && self.outbound.iter().any(Destination::has_addresses)),
            SocketAddrUse::TcpListen => is_own,
            SocketAddrUse::TcpConnect => return self.allow_connection(addr),
            SocketAddrUse::TcpAccept | SocketAddrUse::UdpBind | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                false
            }
        };
        match purpose {
            _ if !allowed => self.refuse(addr, purpose),
            SocketAddrUse::TcpListen => self.listens.cancel(),
            _ => {}
        }
        allowed
    }

    fn allow_connection(&self, addr: SocketAddr) -> bool {
        let (target, shown) = (Target::from(addr), addr.to_string());
        let entry = format!("outbound: [{:?}]", target.entry());
        match Destination::permitting(&self.outbound, target, self.local) {
            Ok(_) if self.reserved.covers(addr) => self.denials.report(&shown, LeadsToAdmin, None),
            Ok(_) => return true,
            Err(Unlisted::Absent) => self.denials.report(&shown, "allow.outbound does not list it", Some(&entry)),
            Err(Unlisted::Local) => {
                self.denials.report(&shown, "it is local, which only an entry for it permits", Some(&entry));
            }
        }
        false
    }

    fn refuse(&self, addr: SocketAddr, purpose: SocketAddrUse) {
        let (service, listen) = (&self.service, self.listen);
        if self.refused.swap(true, Ordering::Relaxed) {
            tracing::debug!(%service, %addr, purpose = named(purpose), "another socket of the component is refused");
            return;
        }
        match purpose {
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen if !is_any(addr) => {
                tracing::warn!(%service, "refused to listen on {addr}: its policy gives it {listen}");
            }
            _ => {
                tracing::warn!(%service, "refused a socket: it may listen on {listen}, and connect where allow.outbound says");
            }
        }
    }
}

/// Name of a purpose in the log.
fn named(purpose: SocketAddrUse) -> &'static str {
    match purpose {
        SocketAddrUse::TcpListen => "listen",
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => "bind",
        SocketAddrUse::TcpAccept => "accept",
        SocketAddrUse::TcpConnect => "connect",
        SocketAddrUse::UdpSend => "send",
        SocketAddrUse::UdpReceive => "receive",
    }
}

/// Returns true if the system chooses the address.
fn is_any(addr: SocketAddr) -> bool {
    addr.ip().is_unspecified() && addr.port() == 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wasmtime::component::ResourceTable;
    use wasmtime_wasi::sockets::SocketAddrUse;

    use super::{ConnectionPermits, Denials, Reserved, Sockets};

    fn sockets(outbound: &[&str]) -> Sockets {
        Sockets {
            service: "a".parse().unwrap(),
            listen: "127.0.0.1:8080".parse().unwrap(),
            outbound: outbound.iter().map(|entry| entry.parse().unwrap()).collect(),
            local: false,
            reserved: Reserved::new([Some("127.0.0.1:9090".parse().unwrap()), None]),
            denials: Arc::new(Denials::new("a".parse().unwrap())),
            listens: Default::default(),
            ending: Default::default(),
            connections: ConnectionPermits::new(1),
            refused: Default::default(),
        }
    }

    #[test]
    fn a_program_listens_only_on_its_own_address() {
        let sockets = sockets(&["127.0.0.1:9"]);
        let allow = |addr: &str, purpose| sockets.allow(addr.parse().unwrap(), purpose);
        for other in ["127.0.0.1:8081", "0.0.0.0:8080", "127.0.0.2:8080", "[::1]:8080", "0.0.0.0:0"] {
            assert!(!allow(other, SocketAddrUse::TcpListen), "{other}");
        }
        assert!(!allow("127.0.0.1:8081", SocketAddrUse::TcpBind));
        assert!(!sockets.listens.is_cancelled());
        assert!(allow("127.0.0.1:8080", SocketAddrUse::TcpBind));
        assert!(allow("127.0.0.1:8080", SocketAddrUse::TcpListen));
        assert!(sockets.listens.is_cancelled());
    }

    #[test]
    fn a_program_connects_only_to_listed_addresses() {
        let none = sockets(&["api.example"]);
        assert!(!none.allow("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpBind));
        let some = sockets(&["api.example", "10.0.0.5:6379", "[fd00::1]"]);
        let calls = |addr: &str| some.allow(addr.parse().unwrap(), SocketAddrUse::TcpConnect);
        assert!(some.allow("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpBind));
        assert!(calls("10.0.0.5:6379"));
        assert!(calls("[fd00::1]:1"));
        assert!(!calls("10.0.0.5:6380"));
        assert!(!calls("127.0.0.1:6379"));
        assert!(!some.allow("10.0.0.5:6379".parse().unwrap(), SocketAddrUse::UdpSend));
    }

    #[test]
    fn a_network_excludes_local_addresses_and_the_admin_endpoint() {
        let some = sockets(&["10.0.0.0/8:80", "0.0.0.0/0:443", "127.0.0.1"]);
        let calls = |addr: &str| some.allow(addr.parse().unwrap(), SocketAddrUse::TcpConnect);
        assert!(calls("10.1.2.3:80"));
        assert!(calls("192.0.2.1:443"));
        assert!(calls("127.0.0.1:443"));
        for other in
            ["10.1.2.3:81", "127.0.0.2:443", "169.254.169.254:443", "127.0.0.1:9090", "[::ffff:127.0.0.1]:9090"]
        {
            assert!(!calls(other), "{other}");
        }
    }

    #[test]
    fn an_address_in_another_notation_is_not_permitted() {
        let sockets = sockets(&["10.0.0.5", "[fd00::1]:1"]);
        let allow = |addr: &str, purpose| sockets.allow(addr.parse().unwrap(), purpose);
        assert!(allow("10.0.0.5:1", SocketAddrUse::TcpConnect));
        assert!(allow("[fd00::1]:1", SocketAddrUse::TcpConnect));
        for other in ["[::ffff:10.0.0.5]:1", "[fd00::1]:2", "[::a00:5]:1"] {
            assert!(!allow(other, SocketAddrUse::TcpConnect), "{other}");
        }
        for other in ["[::ffff:127.0.0.1]:8080", "[::1]:8080", "[::]:8080"] {
            assert!(!allow(other, SocketAddrUse::TcpListen), "{other}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_to_end_gets_no_further_connections() {
        let sockets = sockets(&[]);
        let accepts = || sockets.decide("192.0.2.7:40000".parse().unwrap(), SocketAddrUse::TcpAccept);
        assert!(accepts().await);
        let (more, ()) = tokio::join!(accepts(), async { sockets.ending.cancel() });
        assert!(!more);
        assert!(!accepts().await);
    }

    #[tokio::test]
    async fn a_connection_waits_until_another_has_ended() {
        let sockets = sockets(&[]);
        let accepts = || sockets.decide("192.0.2.7:40000".parse().unwrap(), SocketAddrUse::TcpAccept);
        assert!(accepts().await);
        let mut table = ResourceTable::new();
        let (more, ()) = tokio::join!(accepts(), async { sockets.connections.replenish(&mut table) });
        assert!(more);
    }
}
