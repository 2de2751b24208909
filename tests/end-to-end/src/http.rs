//! HTTP clients of the services.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header::CONNECTION, response::Parts};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::{
    client::legacy::{Client, Error},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use crate::paths;

/// Timeout of a response on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in plain text, with prior knowledge.
    Http2,
}

/// Both protocols, which every port accepts.
pub const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// A response with its whole body.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// `GET` over HTTP/1.1.
///
/// # Panics
/// If there is no response.
pub async fn get(url: &str) -> Answer {
    get_over(Protocol::Http1, url).await.unwrap_or_else(|error| panic!("{url} does not answer: {error:?}"))
}

/// `GET` over either protocol. The error means that there was no connection, or no response.
///
/// # Panics
/// On a timeout, or if the response breaks off.
pub async fn get_over(protocol: Protocol, url: &str) -> Result<Answer, Error> {
    let uri: Uri = url.parse().expect("a URL");
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(protocol == Protocol::Http2).build_http();
    let asking = async {
        let response = client.get(uri).await?;
        let expected = if protocol == Protocol::Http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
        assert_eq!(response.version(), expected);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("an answer does not break off").to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{url} does not answer within {PATIENCE:?}"))
}

/// A command to an admin endpoint, with the token of the tests.
///
/// # Panics
/// If there is no response.
pub async fn post(url: &str) -> Answer {
    ask("POST", url, &[("authorization", &format!("Bearer {}", paths::ADMIN_TOKEN))]).await
}

/// Any request without a body, over HTTP/1.1.
///
/// # Panics
/// If there is no response.
pub async fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let asking = async {
        let response = client.request(request.body(Empty::new()).expect("a request")).await;
        let response = response.unwrap_or_else(|error| panic!("{url} does not answer: {error:?}"));
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("an answer does not break off").to_bytes();
        Answer { status, body: String::from_utf8_lossy(&body).into_owned() }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{url} does not answer within {PATIENCE:?}"))
}

/// A pending request.
#[derive(Debug)]
pub struct Pending(TcpStream);

/// Sends `GET` and does not wait for the response. Returns when the service has accepted the connection, that is, when it has
/// responded to a later request.
///
/// # Panics
/// If the service does not respond to the later request.
pub async fn begin(url: &str) -> Pending {
    let uri: Uri = url.parse().expect("a URL");
    let authority = uri.authority().expect("a URL names a host").as_str();
    let mut stream = TcpStream::connect(authority).await.expect("the service listens");
    // HTTP/1.0, so that the response ends with the connection.
    let request = format!("GET {} HTTP/1.0\r\nhost: {authority}\r\n\r\n", uri.path());
    stream.write_all(request.as_bytes()).await.expect("the service reads");
    get(&format!("http://{authority}/")).await;
    Pending(stream)
}

impl Pending {
    /// Waits for the response; `None` if the connection is cut before.
    ///
    /// # Panics
    /// On a timeout.
    pub async fn answer(mut self) -> Option<Answer> {
        let mut text = String::new();
        let read = timeout(PATIENCE, self.0.read_to_string(&mut text)).await.expect("an answer or its end");
        read.ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, body: body.to_owned() })
    }
}

/// A persistent connection.
#[derive(Debug)]
pub struct Kept {
    sender: Sender,
    connection: JoinHandle<hyper::Result<()>>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Kept {
    /// Connects.
    ///
    /// # Panics
    /// If there is no listener.
    pub async fn open(protocol: Protocol, addr: &str) -> Self {
        let stream = TokioIo::new(TcpStream::connect(addr).await.expect("the service listens"));
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await.expect("nothing is said yet");
                Self { sender: Sender::Http1(sender), connection: tokio::spawn(connection) }
            }
            Protocol::Http2 => {
                let made = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, connection) = made.expect("the service speaks HTTP/2");
                Self { sender: Sender::Http2(sender), connection: tokio::spawn(connection) }
            }
        }
    }

    /// `GET`: the status, and the `connection` header.
    ///
    /// # Panics
    /// If there is no complete response.
    pub async fn get(&mut self, url: &str) -> (u16, Option<String>) {
        let (head, _) = self.ask(url).await;
        let said = head.headers.get(CONNECTION).map(|said| String::from_utf8_lossy(said.as_bytes()).into_owned());
        (head.status.as_u16(), said)
    }

    /// `GET`: the response.
    ///
    /// # Panics
    /// If the response is incomplete.
    pub async fn answer(&mut self, url: &str) -> Answer {
        let (head, body) = self.ask(url).await;
        Answer { status: head.status.as_u16(), body: String::from_utf8_lossy(&body).into_owned() }
    }

    async fn ask(&mut self, url: &str) -> (Parts, Bytes) {
        let uri: Uri = url.parse().expect("a URL");
        let host = uri.authority().expect("a URL names a host").to_string();
        let request = Request::get(uri).header("host", host).body(Empty::new()).expect("a request");
        let answer = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.expect("the connection is kept");
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = answer.expect("the service answers").into_parts();
        (head, body.collect().await.expect("an answer does not break off").to_bytes())
    }

    /// Waits until the service has closed the connection in good order.
    ///
    /// # Panics
    /// If the service does not close it, or breaks it.
    pub async fn is_closed(self) {
        let closed = timeout(PATIENCE, self.connection).await.expect("the service closes the connection");
        closed.expect("a connection does not panic").expect("it ends in good order");
    }
}
