//! Client of a running host's admin endpoint.

use std::{
    error::Error,
    fmt::Display,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header, response::Parts};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use leasehold::{Source, Tls};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::{
    admin::listener::Stream,
    cli::AdminArgs,
    commands::{
        output::{print, print_json},
        tls_client,
    },
    config::{Admin, AdminAddress, Config},
    error::{Failure, one_line},
    process::runtime_folder,
};

/// Longest wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the response; the host ends every wait before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a response that are read, at most.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The endpoint where no argument names one and no host has a socket.
const DEFAULT: &str = "http://127.0.0.1:9090";
/// The path of the status of a host.
const STATUS: &str = "/status";

/// The endpoint of one running host.
#[derive(Debug)]
pub(super) struct Endpoint {
    address: Address,
    /// The token of commands.
    token: Option<Source>,
    /// Authorities and the client's own certificate, for `https`.
    tls: Tls,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Tcp { authority: String, has_tls: bool },
}

impl Endpoint {
    /// The endpoint that the arguments select.
    pub(super) async fn of(args: &AdminArgs) -> Result<Self, Failure> {
        let (token, tls) = (args.token()?, args.tls()?);
        match (&args.admin, &args.config) {
            (Some(admin), _) => Ok(Self { address: Address::parse(admin)?, token, tls }),
            (None, Some(file)) => Self::configured(file, token, tls).await,
            (None, None) => Ok(Self { address: the_only_one().await?, token, tls }),
        }
    }

    /// The endpoint of the host that runs a configuration file.
    async fn configured(file: &Path, token: Option<Source>, tls: Tls) -> Result<Self, Failure> {
        let says = |message: &str| Err(Failure::usage(format!("{}: {message}", file.display())));
        match Config::load_admin(file)? {
            Admin::Off => says("admin.listen is off, so its host takes no commands"),
            Admin::Unix(socket) => Ok(Self { address: Address::Unix(socket.path), token, tls }),
            Admin::Suggested { .. } => Ok(Self { address: running(file).await?, token, tls }),
            Admin::Tcp(AdminAddress { listen, .. }) if listen.port() == 0 => {
                says("the system chooses the port of its admin endpoint; --admin names it, as the host's log does")
            }
            Admin::Tcp(address) => {
                let mut listen = address.listen;
                if listen.ip().is_unspecified() {
                    let local = if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                    listen.set_ip(local);
                }
                let address_of = Address::Tcp { authority: listen.to_string(), has_tls: address.tls.is_some() };
                Ok(Self { address: address_of, token: token.or(address.token), tls })
            }
        }
    }

    /// Sends a command and returns the response, read as `T` and as it is. A failure is one sentence; an unknown name is an
    /// error of the arguments.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Value), Failure> {
        self.send(Method::POST, path).await
    }

    /// Reads a page, like `post`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Value), Failure> {
        self.send(Method::GET, path).await
    }

    /// Sends a request for a page in words: its status, and its text on one line.
    pub(super) async fn probe(&self, path: &str) -> Result<(StatusCode, String), Failure> {
        let (status, body) = self.response(Method::GET, path).await?;
        Ok((status, one_line(&String::from_utf8_lossy(&body))))
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<(T, Value), Failure> {
        let (status, body) = self.response(method, path).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| self.silent("not a leasehold admin endpoint"))?;
        match (status, answer["error"].as_str()) {
            (StatusCode::OK, _) => match T::deserialize(&answer) {
                Ok(read) => Ok((read, answer)),
                Err(_) => Err(Failure::other("the response of the host is of another version")),
            },
            (StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY, Some(message)) => {
                Err(Failure::usage(one_line(message)))
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(message)) => {
                Err(Failure::refused(format!("{}: {}", self.address.shown(), one_line(message))))
            }
            (_, Some(message)) => Err(Failure::other(one_line(message))),
            (status, None) => Err(self.silent(format!("it answers {status}"))),
        }
    }

    /// The status and the body of a response, whatever they are.
    async fn response(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let request = self.request(method, path)?;
        let connecting = timeout(CONNECT_TIMEOUT, self.address.connect(&self.tls)).await;
        let stream = connecting
            .map_err(|_| self.silent(format!("no connection within {CONNECT_TIMEOUT:?}")))?
            .map_err(|error| self.silent(error))?;
        let answered = timeout(ANSWER_TIMEOUT, exchange(stream, request)).await;
        let answered = answered.map_err(|_| self.silent(format!("no answer within {ANSWER_TIMEOUT:?}")))?;
        let (Parts { status, .. }, body) = answered.map_err(|error| self.silent(error))?;
        Ok((status, body))
    }

    fn silent(&self, message: impl Display) -> Failure {
        Failure::other(format!(
            "no host answers at {} ({message}); --admin or --config says where one does",
            self.address.shown()
        ))
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<Empty<Bytes>>, Failure> {
        let mut request = Request::builder().uri(path).header(header::HOST, self.address.authority());
        if let Some(token) = self.token.as_ref().filter(|_| method == Method::POST) {
            let bytes = token.read().map_err(|error| Failure::usage(format!("the token: {error}")))?;
            let mut value = HeaderValue::from_bytes(&[&b"Bearer "[..], bytes.trim_ascii()].concat())
                .map_err(|_| Failure::usage(format!("the token: {token} holds none")))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        Ok(request.method(method).body(Empty::new()).expect("a path of visible characters"))
    }
}

impl Address {
    /// Reads `unix:PATH` or a URL.
    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!("--admin: must be unix:PATH, http://host:port or https://host:port, not {text:?}"))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        match (uri.scheme_str(), uri.authority(), uri.path()) {
            (Some(scheme @ ("http" | "https")), Some(authority), "" | "/") if authority.port_u16().is_some() => {
                Ok(Self::Tcp { authority: authority.to_string(), has_tls: scheme == "https" })
            }
            _ => Err(wrong()),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Tcp { authority, has_tls: false } => format!("http://{authority}"),
            Self::Tcp { authority, has_tls: true } => format!("https://{authority}"),
        }
    }

    /// The name of the host in a request.
    fn authority(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp { authority, .. } => authority,
        }
    }

    async fn connect(&self, tls: &Tls) -> io::Result<Box<dyn Stream>> {
        let (authority, has_tls) = match self {
            Self::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tcp { authority, has_tls } => (authority, has_tls),
        };
        let stream = TcpStream::connect(authority).await?;
        if !has_tls {
            return Ok(Box::new(stream));
        }
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::new(tls_client::config(tls).map_err(io::Error::other)?));
        Ok(Box::new(connector.connect(name, stream).await?))
    }
}

/// The socket of the only host that runs here; the usual address where none has a socket.
async fn the_only_one() -> Result<Address, Failure> {
    let mut found = Vec::new();
    for path in runtime_folder::sockets() {
        // No process listens at the socket of a host that was killed.
        match UnixStream::connect(&path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => found.push(path),
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(Address::Unix(path)),
        Err(found) if found.is_empty() => Address::parse(DEFAULT),
        Err(found) => {
            let all: Vec<_> = found.iter().map(|path| format!("unix:{}", path.display())).collect();
            let message =
                format!("{} hosts run here; --config FILE or --admin selects one: {}", all.len(), all.join(", "));
            Err(Failure::usage(message))
        }
    }
}

/// The socket of the host that runs a configuration file.
async fn running(file: &Path) -> Result<Address, Failure> {
    let wanted = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut refused = None;
    for path in runtime_folder::sockets() {
        let address = Address::Unix(path);
        let endpoint = Endpoint { address: address.clone(), token: None, tls: Tls::default() };
        // A host that hangs must not hide the others.
        let Ok(answer) = timeout(CONNECT_TIMEOUT, endpoint.get::<Value>(STATUS)).await else { continue };
        match answer {
            Ok((status, _)) if status["configuration"].as_str().is_some_and(|found| Path::new(found) == wanted) => {
                return Ok(address);
            }
            Ok(_) => {}
            Err(failure) => refused = Some(failure.sentence()),
        }
    }
    let refused = refused.map_or_else(String::new, |message| format!("; {message}"));
    let folders = runtime_folder::shown();
    Err(Failure::other(format!("no host runs {}: it has no socket in {folders}{refused}", wanted.display())))
}

/// Sends a command about services, and shows the outcome of each on stdout: a line each, or all as JSON. Fails after that if
/// some have failed, with their number and what they have not done.
pub(super) async fn command<T: DeserializeOwned>(
    host: &AdminArgs,
    path: &str,
    json: bool,
    line: impl Fn(&T) -> String,
    has_failed: impl Fn(&T) -> bool,
    failure: &str,
) -> Result<(), Failure> {
    let (all, answer): (Vec<T>, _) = Endpoint::of(host).await?.post(path).await?;
    outcome(&all, &answer, json, line, has_failed, failure)
}

/// Shows what a command has done to services, in the same way.
pub(super) fn outcome<T>(
    all: &[T],
    answer: &Value,
    json: bool,
    line: impl Fn(&T) -> String,
    has_failed: impl Fn(&T) -> bool,
    failure: &str,
) -> Result<(), Failure> {
    match json {
        true => print_json(answer)?,
        false => print(&all.iter().map(line).collect::<String>())?,
    }
    match all.iter().filter(|one| has_failed(one)).count() {
        0 => Ok(()),
        failed => Err(Failure::other(format!("{failed} of {} services {failure}", all.len()))),
    }
}

/// Sends one request on a connection of its own, and reads the response to the end.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<(Parts, Bytes), Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok((head, Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes()))
    };
    // The connection is driven here and ends here.
    tokio::pin!(answered);
    tokio::select! {
        biased;
        answered = &mut answered => answered,
        ended = connection => {
            ended?;
            answered.await
        }
    }
}

/// A name as one segment of a path.
pub(crate) fn part(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::{Address, part};

    #[test]
    fn an_endpoint_is_a_socket_or_a_host_and_a_port() {
        for (text, shown, authority) in [
            ("http://127.0.0.1:9090/", "http://127.0.0.1:9090", "127.0.0.1:9090"),
            ("https://admin.example:1", "https://admin.example:1", "admin.example:1"),
            ("unix:/run/a.sock", "unix:/run/a.sock", "localhost"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.shown().as_str(), address.authority()), (shown, authority));
        }
        for bad in ["127.0.0.1:9090", "ftp://127.0.0.1:9090", "http://127.0.0.1", "http://a:1/b", "unix:", ""] {
            assert_eq!(Address::parse(bad).unwrap_err().code(), 64, "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(part("a/b?c"), "a%2Fb%3Fc");
    }
}
