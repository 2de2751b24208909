//! The listener of one service: connections, their limits, and their orderly end.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{HeaderValue, Response, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};

use crate::{door::Door, tls::Tls, tracked::Tracked};

/// Connections of one service at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: u32 = 1024;
/// How long a client may take to send a request's headers, and how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent HTTP/2 connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// What a client may send as headers, at most.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// The pause after a failed accept: there are no file descriptors, and asking at once would find none either.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections that were cut may take to notice.
const CUT: Duration = Duration::from_secs(1);

/// Binds a listener; the error is for the operator.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    // A port whose last owner just ended is free; one that is in use is still refused.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// A listener that is being served. Dropping it lets go of the listener and cuts the connections.
pub(crate) struct Server {
    /// Clients are asked to go elsewhere.
    leaving: CancellationToken,
    /// No further connections.
    closing: CancellationToken,
    /// No further patience.
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Serves `listener` until `close`, in plain text or with `tls`, each request through the door that is there when it
    /// comes.
    pub(crate) fn start(listener: TcpListener, doors: watch::Receiver<Arc<Door>>, tls: Option<Arc<Tls>>) -> Self {
        let server = Self {
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        if let Some(tls) = tls.clone() {
            let (name, closing) = (doors.borrow().name().clone(), server.closing.clone());
            server.tasks.spawn(async move { closing.run_until_cancelled(tls.follow(name)).await });
        }
        let connections = Connections {
            doors,
            tls,
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            leaving: server.leaving.clone(),
            closing: server.closing.clone(),
            cut: server.cut.clone(),
            tasks: server.tasks.clone(),
        };
        server.tasks.spawn(connections.accept(listener));
        server
    }

    /// Serves on, and asks clients with each answer to take their next request elsewhere.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Accepts no more, closes idle connections, and waits for requests in flight. Says whether all were answered.
    ///
    /// May be asked for again when it was broken off.
    pub(crate) async fn close(&self, deadline: Duration) -> bool {
        self.closing.cancel();
        self.tasks.close();
        let all = timeout(deadline, self.tasks.wait()).await.is_ok();
        if !all {
            self.cut.cancel();
            // What does not notice in time ends with the process.
            let _ = timeout(CUT, self.tasks.wait()).await;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.cancel();
        if !self.tasks.is_closed() {
            self.cut.cancel();
        }
    }
}

/// The accepting task.
struct Connections {
    doors: watch::Receiver<Arc<Door>>,
    tls: Option<Arc<Tls>>,
    permits: Arc<Semaphore>,
    leaving: CancellationToken,
    closing: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Connections {
    async fn accept(self, listener: TcpListener) {
        loop {
            let next = async {
                let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the permits are never closed");
                listener.accept().await.map(|(stream, _)| (stream, permit))
            };
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, permit)) => self.connection(stream, permit),
                Err(error) => {
                    tracing::warn!(service = %self.doors.borrow().name(), %error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // Small pieces of an answer are not held back for larger ones.
        let _ = stream.set_nodelay(true);
        let (doors, leaving) = (self.doors.clone(), self.leaving.clone());
        // The client's last requests on this connection are those that it has sent.
        let last = self.closing.child_token();
        let requests = service_fn({
            let last = last.clone();
            move |request: hyper::Request<Incoming>| {
                let door = Arc::clone(&doors.borrow());
                let (leaving, last) = (leaving.clone(), last.clone());
                async move {
                    let version = request.version();
                    let mut response = door.answer(request).await;
                    if leaving.is_cancelled() {
                        farewell(version, &mut response, &last);
                    }
                    Ok::<_, Infallible>(response)
                }
            }
        });
        let (protocols, tls) = (self.protocols(), self.tls.clone());
        let (cut, name) = (self.cut.clone(), self.doors.borrow().name().clone());
        self.tasks.spawn(async move {
            let stream = match tls {
                None => Either::Left(stream),
                Some(tls) => match last.run_until_cancelled(tls.accept(stream)).await {
                    Some(Ok(stream)) => Either::Right(stream),
                    Some(Err(error)) => return tracing::debug!(service = %name, %error, "a handshake failed"),
                    None => return,
                },
            };
            let mut connection = pin!(protocols.serve_connection(TokioIo::new(stream), requests));
            let served = async {
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = last.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                connection.await
            };
            tokio::select! {
                () = cut.cancelled() => {}
                ended = served => {
                    if let Err(error) = ended {
                        tracing::debug!(service = %name, error, "a connection broke");
                    }
                }
            }
            drop(permit);
        });
    }

    /// HTTP/1.1 and HTTP/2 on one port: the first bytes tell them apart, with TLS or without.
    fn protocols(&self) -> auto::Builder<Tracked> {
        let mut builder = auto::Builder::new(Tracked(self.tasks.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(self.doors.borrow().most_requests());
        builder
    }
}

/// Asks a client to go elsewhere: by a header in HTTP/1.1, by GOAWAY in HTTP/2.
fn farewell<B>(version: Version, response: &mut Response<B>, last: &CancellationToken) {
    match version {
        Version::HTTP_2 => last.cancel(),
        _ => drop(response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"))),
    }
}
