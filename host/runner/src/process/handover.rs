//! Hand-over of a host to its successor: a process of a newer binary that takes over the listeners of this one. They go over a
//! socket, which is the standard input of the successor.
//!
//! | from | message |
//! |---|---|
//! | the former host | the manifest, then one byte with one descriptor for each listener |
//! | the successor | its services, and why some are not served, once it has tried all |
//! | the former host | one byte: the successor is the host from now on. A former host that is gone means the same |

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::getppid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

/// Environment variable of a successor, with the number of the process that it succeeds.
pub(crate) const SUCCEEDS: &str = "LEASEHOLD_SUCCEEDS";
/// Longest wait for a part of the manifest.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message, in bytes.
const MAX_BYTES: u32 = 16 << 20;

/// Everything that a host hands over besides the descriptors.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The listeners, in the order of their descriptors.
    pub(crate) listeners: Vec<Place>,
    pub(crate) services: Vec<ServiceState>,
    /// The leases that hold the keys, which the successor takes over as its own.
    #[serde(default)]
    pub(crate) leases: Vec<i64>,
}

/// The place of a listener in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Place {
    /// The admin endpoint at an address, as configured.
    Admin(SocketAddr),
    /// The listener for health and metrics alone, as configured.
    Metrics(SocketAddr),
    /// A service with its name and its `listen`.
    Service(String, SocketAddr),
    /// A socket that systemd has opened, by its number.
    Activated(usize),
}

/// State of a service by the commands of operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServiceState {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) is_drained: bool,
    pub(crate) weight: Option<u32>,
    /// The service as the former host shows it; `None` of a former host that does not hand it over.
    #[serde(default)]
    pub(crate) shown: Option<ShownState>,
}

/// A service as its host shows it: what a successor cannot know of a drained service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownState {
    /// Address at which it listened last.
    pub(crate) listen: String,
    /// The URL at that address; empty if it never listened.
    pub(crate) url: String,
    /// Beginning of its phase.
    pub(crate) since: SystemTime,
    /// SHA-256 of the component that it ran last, and the time since which it ran.
    pub(crate) component: Option<(String, SystemTime)>,
}

/// A service of a successor, which has tried to start it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    /// Reason for which it is not served.
    pub(crate) failure: Option<String>,
}

/// The successor's end: what it was handed.
#[derive(Debug)]
pub(crate) struct Inheritance {
    listeners: Mutex<HashMap<Place, TcpListener>>,
    services: Vec<ServiceState>,
    /// The leases of the former host.
    pub(crate) leases: Vec<i64>,
    stream: UnixStream,
    /// Cancelled once this process is the host. Until then it accepts no connection, and deletes no key: both are those of the
    /// former host.
    pub(crate) is_host: CancellationToken,
}

impl Inheritance {
    /// Receives what the parent hands over; `None` for a process that succeeds no other.
    pub(crate) fn receive() -> Result<Option<Self>, String> {
        let parent = getppid().map(|parent| parent.as_raw_nonzero().to_string());
        if std::env::var(SUCCEEDS).ok().is_none_or(|succeeds| Some(succeeds) != parent) {
            return Ok(None);
        }
        let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        let received = stream.and_then(Self::from_stream);
        received.map(Some).map_err(|error| format!("the former host hands nothing over: {error}"))
    }

    fn from_stream(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        let Manifest { listeners: places, services, leases } = read(&mut stream)?;
        let mut listeners = HashMap::new();
        for place in places {
            let listener = TcpListener::from(receive_descriptor(&stream)?);
            listener.set_nonblocking(true)?;
            listeners.insert(place, listener);
        }
        Ok(Self { listeners: Mutex::new(listeners), services, leases, stream, is_host: CancellationToken::new() })
    }

    /// The listener for a place, once.
    pub(crate) fn take(&self, place: &Place) -> Option<TcpListener> {
        self.listeners.lock().remove(place)
    }

    /// The address of a listener that was not taken yet.
    pub(crate) fn addr(&self, place: &Place) -> Option<SocketAddr> {
        self.listeners.lock().get(place)?.local_addr().ok()
    }

    /// The sockets that systemd has opened, in their order.
    pub(crate) fn take_activated(&self) -> Vec<TcpListener> {
        (0..).map_while(|number| self.take(&Place::Activated(number))).collect()
    }

    /// Closes the listeners that were not taken.
    pub(crate) fn close_rest(&self) {
        self.listeners.lock().clear();
    }

    /// State of a service by the commands of operators.
    pub(crate) fn service(&self, name: &str, listen: SocketAddr) -> Option<&ServiceState> {
        self.services.iter().find(|service| service.name == name && service.listen == listen)
    }

    /// Reports on the services, and waits until this process is the host. Blocks.
    pub(crate) fn report(&self, tried: &[Tried]) {
        let mut stream = &self.stream;
        if write(&mut stream, &tried).is_ok() && stream.set_read_timeout(None).is_ok() {
            // A former host that is gone was killed: its successor serves.
            drop(stream.read(&mut [0]));
        }
        self.is_host.cancel();
    }
}

/// The former host's end.
#[derive(Debug)]
pub(crate) struct Successor {
    stream: UnixStream,
}

impl Successor {
    /// Makes a connection. Returns it with the standard input of the successor.
    pub(crate) fn connect() -> io::Result<(Self, OwnedFd)> {
        let (stream, theirs) = UnixStream::pair()?;
        Ok((Self { stream }, theirs.into()))
    }

    /// Hands listeners over, and waits for the successor's report; fails if the successor ends. Blocks.
    pub(crate) fn hand_over(
        &self,
        manifest: &Manifest,
        listeners: &[OwnedFd],
        within: Duration,
    ) -> io::Result<Vec<Tried>> {
        let mut stream = &self.stream;
        stream.set_write_timeout(Some(RECEIVE_TIMEOUT))?;
        write(&mut stream, manifest)?;
        for listener in listeners {
            send_descriptor(stream, listener)?;
        }
        stream.set_read_timeout(Some(within))?;
        read(&mut stream)
    }

    /// Makes the successor the host.
    pub(crate) fn commit(&self) -> io::Result<()> {
        (&self.stream).write_all(&[1])
    }
}

/// Writes a message behind its length.
fn write(stream: &mut &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_BYTES);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&bytes)
}

fn read<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_BYTES {
        return Err(io::Error::other("the message is too long"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn send_descriptor(stream: &UnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut messages = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    messages.next().ok_or_else(|| io::Error::other("a listener is missing"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::fd::OwnedFd,
        thread,
        time::{Duration, SystemTime},
    };

    use super::{Inheritance, Manifest, Place, ServiceState, ShownState, Successor, Tried};

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn listeners_and_the_state_of_services_are_handed_over() {
        let (former, theirs) = Successor::connect().unwrap();
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, admin_addr) = (service.local_addr().unwrap(), admin.local_addr().unwrap());
        let listen = "127.0.0.1:0".parse().unwrap();
        let places = [Place::Service("user".to_owned(), listen), Place::Admin(admin_addr)];
        let shown = ShownState {
            listen: addr.to_string(),
            url: format!("http://{addr}/"),
            since: SystemTime::now(),
            component: Some(("00ff".to_owned(), SystemTime::now())),
        };
        let expected_shown = Some(shown.clone());
        let shown = Some(shown);
        let state = ServiceState { name: "user".to_owned(), listen, is_drained: true, weight: Some(9), shown };
        let tried = Tried { name: "user".to_owned(), listen, failure: Some("it is drained".to_owned()) };
        let expected = vec![tried.clone()];
        let successor = thread::spawn(move || {
            let inherited = Inheritance::from_stream(theirs.into()).unwrap();
            assert_eq!(inherited.addr(&Place::Admin(admin_addr)), Some(admin_addr));
            let listener = inherited.take(&places[0]).unwrap();
            assert!(inherited.take(&places[0]).is_none() && inherited.take(&Place::Metrics(admin_addr)).is_none());
            let state = inherited.service("user", listen).unwrap();
            assert_eq!((state.is_drained, state.weight), (true, Some(9)));
            assert_eq!(state.shown, expected_shown);
            assert!(inherited.service("order", listen).is_none());
            assert_eq!(inherited.leases, [7]);
            inherited.report(&[tried]);
            assert!(inherited.is_host.is_cancelled());
            listener.set_nonblocking(false).unwrap();
            listener.accept().unwrap();
        });
        let manifest = Manifest {
            listeners: vec![Place::Service("user".to_owned(), listen), Place::Admin(admin_addr)],
            services: vec![state],
            leases: vec![7],
        };
        let listeners = [OwnedFd::from(service), OwnedFd::from(admin)];
        assert_eq!(former.hand_over(&manifest, &listeners, SOON).unwrap(), expected);
        drop(listeners);
        assert!(!successor.is_finished(), "it waits for the commit");
        former.commit().unwrap();
        TcpStream::connect(addr).unwrap();
        successor.join().unwrap();
    }

    #[test]
    fn a_successor_that_ends_fails_the_hand_over_and_a_former_host_that_ends_commits() {
        let (former, theirs) = Successor::connect().unwrap();
        drop(theirs);
        assert!(former.hand_over(&Manifest::default(), &[], SOON).is_err());
        let (former, theirs) = Successor::connect().unwrap();
        let successor = thread::spawn(move || Inheritance::from_stream(theirs.into()).unwrap().report(&[]));
        assert_eq!(former.hand_over(&Manifest::default(), &[], SOON).unwrap(), []);
        drop(former);
        successor.join().unwrap();
        // Bytes that are no manifest.
        let (former, theirs) = Successor::connect().unwrap();
        (&former.stream).write_all(&[0xff; 8]).unwrap();
        assert!(Inheritance::from_stream(theirs.into()).is_err());
    }
}
