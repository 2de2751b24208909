//! A TCP proxy between a host and etcd that fails on demand.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

/// Behaviour of the proxy towards every connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All bytes pass. A connection that lost bytes in another mode is reset.
    #[default]
    Pass,
    /// Connections are reset, new ones refused.
    Cut,
    /// New connections are accepted; bytes in both directions are dropped.
    Blackhole,
    /// Requests pass; responses are dropped.
    HalfOpen,
    /// Bytes are held without loss, and arrive when the mode changes.
    Hold,
    /// Every chunk is delayed by this much, in both directions.
    Slow(Duration),
    /// In both directions one bit of every so many chunks is flipped.
    Flip(u32),
}

/// A proxy in front of one address, gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Connections accepted before this one are forgotten.
    forgotten: watch::Sender<u64>,
    accepted: watch::Receiver<u64>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards all bytes.
    ///
    /// # Panics
    /// If loopback has no free port.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let mode = watch::Sender::default();
        let forgotten = watch::Sender::default();
        let (count, accepted) = watch::channel(0);
        let accept = Accept {
            address,
            target: target.to_owned(),
            mode: mode.subscribe(),
            forgotten: forgotten.subscribe(),
            count,
            connections: TaskTracker::new(),
        };
        let tracker = accept.connections.clone();
        tracker.spawn(accept.run(listener));
        Self { address, mode, forgotten, accepted }
    }

    /// Address of the proxy for hosts: `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Address of the proxy as an endpoint: `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Switches every connection, open and future.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Forgets every open connection, like a NAT or a firewall that lost its table: from now on all their bytes are dropped
    /// silently, including a close. New connections pass.
    pub fn forget(&self) {
        self.forgotten.send_replace(self.accepted());
    }

    /// Number of connections accepted so far.
    pub fn accepted(&self) -> u64 {
        *self.accepted.borrow()
    }
}

/// The task that accepts; it ends with the proxy.
struct Accept {
    address: SocketAddr,
    target: String,
    mode: watch::Receiver<Mode>,
    forgotten: watch::Receiver<u64>,
    count: watch::Sender<u64>,
    connections: TaskTracker,
}

impl Accept {
    async fn run(mut self, listener: TcpListener) {
        let mut listener = Some(listener);
        loop {
            let cut = *self.mode.borrow_and_update() == Mode::Cut;
            if cut {
                listener = None;
            } else if listener.is_none() {
                listener = TcpListener::bind(self.address).await.ok();
                if listener.is_none() {
                    // The port lingers, and is free again in a moment.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                changed = self.mode.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                host = accept(listener.as_ref()) => {
                    let (target, mode) = (self.target.clone(), self.mode.clone());
                    let (forgotten, number) = (self.forgotten.clone(), *self.count.borrow());
                    self.count.send_replace(number + 1);
                    // A connection that fails is what a proxy like this is for.
                    self.connections.spawn(async move {
                        let _ = serve(host, &target, mode, forgotten, number).await;
                    });
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    if let Some(listener) = listener {
        loop {
            if let Ok((host, _)) = listener.accept().await {
                return host;
            }
        }
    }
    std::future::pending().await
}

/// Carries one connection until an end closes it, the mode resets it, or it is forgotten.
async fn serve(
    mut host: TcpStream,
    target: &str,
    mode: watch::Receiver<Mode>,
    mut forgotten: watch::Receiver<u64>,
    number: u64,
) -> io::Result<()> {
    let mut etcd = TcpStream::connect(target).await?;
    host.set_nodelay(true)?;
    etcd.set_nodelay(true)?;
    let end = {
        let (from_host, to_host) = host.split();
        let (from_etcd, to_etcd) = etcd.split();
        let requests = Pump::new(Direction::ToEtcd, mode.clone());
        let answers = Pump::new(Direction::ToHost, mode);
        let mut forgotten = pin!(forgotten.wait_for(|first| *first > number));
        tokio::select! {
            biased;
            forgotten = &mut forgotten => if forgotten.is_ok() { End::Forgotten } else { End::Reset },
            end = requests.run(from_host, to_etcd) => end,
            end = answers.run(from_etcd, to_host) => end,
        }
    };
    if end == End::Forgotten {
        swallow(&mut host, &mut etcd, forgotten).await;
    }
    if end == End::Reset {
        host.set_zero_linger()?;
        etcd.set_zero_linger()?;
    }
    Ok(())
}

/// Reads what both ends send, passes nothing on, and closes neither, until the proxy is gone.
async fn swallow(host: &mut TcpStream, etcd: &mut TcpStream, mut proxy: watch::Receiver<u64>) {
    let swallow = async |stream: &mut TcpStream| {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    let gone = async { while proxy.changed().await.is_ok() {} };
    tokio::join!(swallow(host), swallow(etcd), gone);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToEtcd,
    ToHost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
    Forgotten,
}

/// One direction of one connection.
struct Pump {
    direction: Direction,
    mode: watch::Receiver<Mode>,
    lost: bool,
}

impl Pump {
    fn new(direction: Direction, mode: watch::Receiver<Mode>) -> Self {
        Self { direction, mode, lost: false }
    }

    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mode = *self.mode.borrow_and_update();
            if mode == Mode::Cut || (self.lost && !self.swallows(mode)) {
                return End::Reset;
            }
            tokio::select! {
                biased;
                changed = self.mode.changed() => {
                    if changed.is_err() {
                        return End::Reset;
                    }
                }
                read = from.read(&mut buffer), if mode != Mode::Hold => match read {
                    Ok(0) | Err(_) => return self.end(mode).await,
                    Ok(_) if self.swallows(mode) => self.lost = true,
                    Ok(count) => {
                        match mode {
                            Mode::Slow(delay) => sleep(delay).await,
                            Mode::Flip(every) if fastrand::u32(0..every) == 0 => {
                                buffer[fastrand::usize(0..count)] ^= 1 << fastrand::u32(0..8);
                            }
                            _ => {}
                        }
                        if to.write_all(&buffer[..count]).await.is_err() {
                            return End::Reset;
                        }
                    }
                },
            }
        }
    }

    fn swallows(&self, mode: Mode) -> bool {
        match mode {
            Mode::Blackhole => true,
            Mode::HalfOpen => self.direction == Direction::ToHost,
            Mode::Pass | Mode::Cut | Mode::Hold | Mode::Slow(_) | Mode::Flip(_) => false,
        }
    }

    /// Handles a closed side; the other side does not see the end while bytes are dropped.
    async fn end(&mut self, mode: Mode) -> End {
        if !self.swallows(mode) {
            return End::Closed;
        }
        // The proxy itself may be gone; that is a reset, too.
        let _ = self.mode.changed().await;
        End::Reset
    }
}
