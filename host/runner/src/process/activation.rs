//! Sockets that systemd opened for this process before it started (socket activation, `LISTEN_FDS`): they stay open between two
//! processes, and whoever connects meanwhile waits.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

/// The sockets of this process, for its whole life: systemd holds them as well, so no other socket can be bound in their place.
static SOCKETS: OnceLock<Vec<Socket>> = OnceLock::new();

struct Socket {
    addr: SocketAddr,
    listener: TcpListener,
}

impl Socket {
    /// A listener; fails for a connection.
    fn new(listener: TcpListener) -> io::Result<Self> {
        if !socket_acceptconn(&listener)? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        listener.set_nonblocking(true)?;
        Ok(Self { addr: listener.local_addr()?, listener })
    }
}

/// Takes the sockets from the environment. Returns a remark on each that cannot be used.
pub(crate) fn receive() -> Vec<String> {
    let (mut passed, mut sockets, mut unfit) = (ListenFd::from_env(), Vec::new(), Vec::new());
    for index in 0..passed.len() {
        let listener = passed.take_tcp_listener(index).map(|listener| listener.map(Socket::new).transpose());
        match listener.flatten() {
            Ok(socket) => sockets.extend(socket),
            Err(_) => unfit.push(format!("socket {index} of systemd is no TCP listener, and is not used")),
        }
    }
    let _ = SOCKETS.set(sockets); // They are received once.
    unfit
}

/// Keeps the sockets that a former process has handed over.
pub(crate) fn inherit(listeners: Vec<TcpListener>) {
    let sockets = listeners.into_iter().filter_map(|listener| Socket::new(listener).ok()).collect();
    let _ = SOCKETS.set(sockets); // They are inherited once, in the place of those of systemd.
}

/// A duplicate of the socket with this address; `None` where systemd has opened none.
pub(crate) fn listener(addr: SocketAddr) -> Option<io::Result<TcpListener>> {
    let socket = sockets().iter().find(|socket| socket.addr == addr)?;
    Some(socket.listener.try_clone())
}

/// A duplicate of each socket, for a successor.
pub(crate) fn duplicates() -> io::Result<Vec<OwnedFd>> {
    sockets().iter().map(|socket| socket.listener.as_fd().try_clone_to_owned()).collect()
}

/// Remark on each socket where nothing of the configuration listens.
pub(crate) fn unused(listens: &[SocketAddr]) -> Vec<String> {
    let unused = sockets().iter().filter(|socket| !listens.contains(&socket.addr));
    let remark = |socket: &Socket| {
        format!(
            "systemd has opened a socket at {addr}, and no `listen` says {addr}: it is not used",
            addr = socket.addr
        )
    };
    unused.map(remark).collect()
}

fn sockets() -> &'static [Socket] {
    SOCKETS.get().map_or(&[], Vec::as_slice)
}
