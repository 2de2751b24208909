//! Listeners of the host's own, which no component reaches whatever its policy lists.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Addresses of the admin endpoint and of the listener for metrics, as far as there are any.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reserved([Option<SocketAddr>; 2]);

/// The connection leads to the host's own admin endpoint.
#[derive(Debug)]
pub(crate) struct LeadsToAdmin;

impl fmt::Display for LeadsToAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is this host's own admin endpoint, which no component may call")
    }
}

impl std::error::Error for LeadsToAdmin {}

impl Reserved {
    /// Reserves the addresses of the host's own listeners.
    pub(crate) fn new(listeners: [Option<SocketAddr>; 2]) -> Self {
        Self(listeners)
    }

    /// Detects an address at which such a listener is reached.
    pub(crate) fn covers(self, addr: SocketAddr) -> bool {
        self.0.into_iter().flatten().any(|listener| leads_to(addr, listener))
    }
}

/// Detects an address at which a listener of this machine is reached.
fn leads_to(addr: SocketAddr, listener: SocketAddr) -> bool {
    if addr.port() != listener.port() {
        return false;
    }
    let (listener, ip) = (listener.ip().to_canonical(), addr.ip().to_canonical());
    match (listener.is_unspecified(), ip.is_unspecified()) {
        // A connection to the unspecified address is one to this machine.
        (true, true) => true,
        (false, true) => listener.is_loopback() || is_own(listener),
        (true, false) => ip.is_loopback() || is_own(ip),
        (false, false) => listener == ip,
    }
}

/// Detects an address of this machine: the system sends from there to itself. Nothing is sent.
fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

/// A connector whose connections do not lead to what is reserved.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<C> {
    connector: C,
    reserved: Reserved,
}

impl<C> Guarded<C> {
    pub(crate) fn new(connector: C, reserved: Reserved) -> Self {
        Self { connector, reserved }
    }
}

impl<C> Service<Uri> for Guarded<C>
where
    C: Service<Uri, Response = TokioIo<TcpStream>>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, reserved) = (self.connector.call(uri), self.reserved);
        Box::pin(async move {
            let stream = connecting.await.map_err(Into::into)?;
            // Only the connection itself knows where its name led.
            match stream.inner().peer_addr().is_ok_and(|peer| reserved.covers(peer)) {
                true => Err(LeadsToAdmin.into()),
                false => Ok(stream),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Reserved;

    #[test]
    fn the_admin_endpoint_is_covered_in_every_form_of_its_address() {
        for (admin, covered, others) in [
            (
                "127.0.0.1:9090",
                ["127.0.0.1:9090", "[::ffff:127.0.0.1]:9090", "0.0.0.0:9090"],
                ["127.0.0.2:9090", "127.0.0.1:9091", "192.0.2.1:9090"],
            ),
            (
                "0.0.0.0:9090",
                ["127.0.0.1:9090", "127.0.0.2:9090", "0.0.0.0:9090"],
                ["127.0.0.1:9091", "192.0.2.1:9090", "[2001:db8::1]:9090"],
            ),
            (
                "192.0.2.1:9090",
                ["192.0.2.1:9090", "[::ffff:192.0.2.1]:9090", "192.0.2.1:9090"],
                ["127.0.0.1:9090", "192.0.2.2:9090", "192.0.2.1:80"],
            ),
        ] {
            let reserved = Reserved::new([None, Some(admin.parse().unwrap())]);
            for addr in covered {
                assert!(reserved.covers(addr.parse().unwrap()), "{admin}: {addr}");
            }
            for addr in others {
                assert!(!reserved.covers(addr.parse().unwrap()), "{admin}: {addr}");
            }
        }
        assert!(!Reserved::default().covers("127.0.0.1:9090".parse().unwrap()));
    }
}
