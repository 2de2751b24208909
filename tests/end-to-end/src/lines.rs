//! A response that is read line by line while it comes.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(60);

/// A response in lines of JSON.
#[derive(Debug)]
pub struct Lines(BufReader<TcpStream>);

impl Lines {
    /// Sends a request whose body has this length, and comes later; returns when the head of the response has come.
    ///
    /// # Panics
    /// If the head does not come.
    pub async fn open(addr: &str, path: &str, length: usize) -> Self {
        let mut stream = BufReader::new(TcpStream::connect(addr).await.expect("the service listens"));
        // HTTP/1.0, so that the response ends with the connection and is not in chunks.
        let head = format!("POST /{path} HTTP/1.0\r\nhost: {addr}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("the service reads");
        let mut lines = Self(stream);
        while !matches!(lines.line().await.as_deref(), Some("")) {}
        lines
    }

    /// The next line; `None` at the end of the response.
    ///
    /// # Panics
    /// If neither comes.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read =
            timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line comes").expect("the service is there");
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The next line as JSON; `None` at the end.
    ///
    /// # Panics
    /// If the line is not JSON.
    pub async fn next(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.line().await?).expect("a line of JSON"))
    }

    /// Reads states until one fits.
    ///
    /// # Panics
    /// If the response ends first.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let state = self.next().await.unwrap_or_else(|| panic!("{what}: the watch has ended"));
            if fits(&state) {
                return state;
            }
        }
    }

    /// Sends a byte of the request's body.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn step(&mut self) {
        self.0.write_all(b".").await.expect("the service reads");
    }
}
