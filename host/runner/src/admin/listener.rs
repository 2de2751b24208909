//! Listeners of the admin endpoint: a socket of this machine or an address, with the rights of their clients.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::UnixStream as BlockingUnixStream,
        },
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use nix::unistd::Group;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_util::sync::CancellationToken;

use crate::{admin::routes::Rights, certificate::shown_name, config::SocketFile, inbound::tls::Tls};

/// Longest path of a socket, in bytes: what the kernel's address holds.
const MAX_PATH_BYTES: usize = 107;

/// A listener of the endpoint.
pub(crate) struct Listener {
    kind: Kind,
    /// Rights of clients without a certificate.
    rights: Rights,
    tls: Option<Arc<Tls>>,
}

enum Kind {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, BoundSocket),
}

/// A connection, before its handshake.
pub(crate) struct Accepted {
    stream: Box<dyn Stream>,
    caller: Caller,
}

/// A byte stream of whatever kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Client of a connection, as the log names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A process of this machine, by its credentials.
    Process {
        uid: u32,
        pid: Option<i32>,
    },
    Address(SocketAddr),
    /// A client with a certificate that the configuration trusts.
    Certificate(String, SocketAddr),
    /// A client with the token.
    Token(SocketAddr),
}

impl Caller {
    /// The caller once its token has been checked.
    pub(crate) fn with_token(self) -> Self {
        match self {
            Self::Address(addr) => Self::Token(addr),
            caller => caller,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { uid, pid: Some(pid) } => write!(f, "uid {uid}, process {pid}"),
            Self::Process { uid, pid: None } => write!(f, "uid {uid}"),
            Self::Address(addr) => write!(f, "{addr}"),
            Self::Certificate(name, addr) => write!(f, "certificate {name}, {addr}"),
            Self::Token(addr) => write!(f, "token, {addr}"),
        }
    }
}

impl Listener {
    /// A listener at an address.
    pub(crate) fn tcp(listener: TcpListener, rights: Rights, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let bound = listener.local_addr()?;
        Ok(Self { kind: Kind::Tcp(listener, bound), rights, tls })
    }

    /// A socket of this machine, whose permissions decide who connects. A successor takes the place of a former host's, which
    /// leaves the file alone once it has `succeeded`.
    pub(crate) fn unix(file: &SocketFile, is_successor: bool, succeeded: CancellationToken) -> Result<Self, String> {
        match is_successor {
            true => refuse_other_files(&file.path)?,
            false => refuse_occupied(&file.path)?,
        }
        let (listener, bound) = BoundSocket::bind(file, succeeded)?;
        Ok(Self { kind: Kind::Unix(listener, bound), rights: Rights::All, tls: None })
    }

    /// The address; `None` for a socket of this machine.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(_, bound) => Some(*bound),
            Kind::Unix(..) => None,
        }
    }

    /// A descriptor of a listener at an address.
    pub(crate) fn descriptor(&self) -> Option<OwnedFd> {
        match &self.kind {
            Kind::Tcp(listener, _) => listener.as_fd().try_clone_to_owned().ok(),
            Kind::Unix(..) => None,
        }
    }

    /// The endpoint, as commands take it.
    pub(crate) fn url(&self) -> String {
        match &self.kind {
            Kind::Tcp(_, bound) if self.tls.is_some() => format!("https://{bound}/"),
            Kind::Tcp(_, bound) => format!("http://{bound}/"),
            Kind::Unix(_, bound) => format!("unix:{}", bound.path.display()),
        }
    }

    /// Detects a listener whose clients are beyond this machine, where the host name of a request proves nothing; so it is on
    /// a socket, which no web page reaches.
    pub(crate) fn takes_any_name(&self) -> bool {
        self.addr().is_none_or(|bound| !bound.ip().is_loopback())
    }

    /// The certificates to keep up to date.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.kind {
            Kind::Tcp(listener, _) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted { stream: Box::new(stream), caller: Caller::Address(peer) })
            }
            Kind::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred()?;
                Ok(Accepted { stream: Box::new(stream), caller: Caller::Process { uid: peer.uid(), pid: peer.pid() } })
            }
        }
    }

    /// Rights of a caller.
    pub(crate) fn rights(&self, caller: &Caller) -> Rights {
        match caller {
            Caller::Certificate(..) => Rights::All,
            _ => self.rights,
        }
    }
}

impl Accepted {
    /// Makes the handshake of TLS, if there is one. Returns the stream with its client.
    pub(crate) async fn open(self, tls: Option<Arc<Tls>>) -> io::Result<(Pin<Box<dyn Stream>>, Caller)> {
        let Some(tls) = tls else { return Ok((Pin::from(self.stream), self.caller)) };
        let stream = tls.accept(self.stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let caller = match (certificates.and_then(<[_]>::first), self.caller) {
            (Some(certificate), Caller::Address(addr)) => Caller::Certificate(shown_name(certificate), addr),
            (_, caller) => caller,
        };
        Ok((Box::pin(stream), caller))
    }
}

/// The file of a socket, removed at the end.
struct BoundSocket {
    path: PathBuf,
    /// Inode of the file; another host may have replaced it.
    inode: u64,
    /// Cancelled once a successor replaces it.
    succeeded: CancellationToken,
}

impl BoundSocket {
    fn bind(file: &SocketFile, succeeded: CancellationToken) -> Result<(UnixListener, Self), String> {
        let path = &file.path;
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return Err(format!(
                "{} is longer than {MAX_PATH_BYTES} bytes, which a socket's path cannot be",
                path.display()
            ));
        }
        let failed = |error: io::Error| format!("cannot listen on {}: {error}", path.display());
        // It becomes visible with its permissions: until then it is in a folder of this user alone.
        let folder = path.parent().unwrap_or(Path::new("/"));
        let own = fs::Permissions::from_mode(0o700);
        let hidden = tempfile::Builder::new().prefix(".").rand_bytes(4).permissions(own).tempdir_in(folder);
        let hidden = hidden.map_err(failed)?;
        let fresh = hidden.path().join("s");
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        if let Some(group) = &file.group {
            chown(&fresh, None, Some(gid(group)?))
                .map_err(|error| format!("cannot give {} to the group {group}: {error}", path.display()))?;
        }
        fs::set_permissions(&fresh, fs::Permissions::from_mode(file.mode())).map_err(failed)?;
        let inode = fs::symlink_metadata(&fresh).map_err(failed)?.ino();
        fs::rename(&fresh, path).map_err(failed)?;
        Ok((listener, Self { path: path.clone(), inode, succeeded }))
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let is_own = || fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if !self.succeeded.is_cancelled() && is_own() {
            let _ = fs::remove_file(&self.path); // The folder may have become read-only; the next start replaces it.
        }
    }
}

/// Refuses a path at which a process listens, or which is no socket. A socket that was left behind is replaced.
pub(crate) fn refuse_occupied(path: &Path) -> Result<(), String> {
    refuse_other_files(path)?;
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    match BlockingUnixStream::connect(path).map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        // Also where this user may not connect: the socket of another user's host stays.
        Ok(_) | Err(_) => Err(format!("cannot listen on {}: another process does", path.display())),
    }
}

/// Refuses a path that is there and is no socket.
fn refuse_other_files(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(format!("{} is there, and is no socket", path.display())),
        _ => Ok(()),
    }
}

fn gid(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) => Err(format!("no group is named {group}")),
        Err(error) => Err(format!("the group {group} cannot be looked up: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tempfile::TempDir;
    use tokio_util::sync::CancellationToken;

    use super::{Caller, Listener, SocketFile, gid};

    #[tokio::test]
    async fn a_socket_has_its_permissions_and_is_removed_at_the_end() {
        let folder = TempDir::with_prefix("admin-").unwrap();
        let path = folder.path().join("a.sock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let file = |mode| SocketFile { path: path.clone(), mode, group: None };
        let first = Listener::unix(&file(None), false, CancellationToken::new()).unwrap();
        assert_eq!((mode(), first.url()), (0o600, format!("unix:{}", path.display())));
        let refused = Listener::unix(&file(None), false, CancellationToken::new()).err().unwrap();
        assert!(refused.ends_with("another process does"), "{refused}");
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // A socket that a killed host has left behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listener::unix(&file(Some(0o666)), false, CancellationToken::new()).unwrap();
        assert_eq!(mode(), 0o666);
        drop(second);
        // A successor takes its place while it listens, and it leaves the successor's socket alone.
        let succeeded = CancellationToken::new();
        let former = Listener::unix(&file(None), false, succeeded.clone()).unwrap();
        let successor = Listener::unix(&file(None), true, CancellationToken::new()).unwrap();
        succeeded.cancel();
        drop(former);
        assert_eq!(mode(), 0o600);
        drop(successor);
        fs::write(&path, "precious").unwrap();
        for is_successor in [false, true] {
            let refused = Listener::unix(&file(None), is_successor, CancellationToken::new()).err().unwrap();
            assert!(refused.ends_with("is no socket"), "{refused}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_group_is_a_name_or_a_number() {
        assert_eq!((gid("root"), gid("1234")), (Ok(0), Ok(1234)));
        assert_eq!(gid("no-such-group").unwrap_err(), "no group is named no-such-group");
    }

    #[test]
    fn a_caller_is_shown_by_what_identifies_it() {
        let addr = "127.0.0.1:5".parse().unwrap();
        assert_eq!(Caller::Process { uid: 7, pid: Some(9) }.to_string(), "uid 7, process 9");
        assert_eq!(Caller::Address(addr).with_token().to_string(), "token, 127.0.0.1:5");
        assert_eq!(Caller::Certificate("ops".into(), addr).to_string(), "certificate ops, 127.0.0.1:5");
    }
}
