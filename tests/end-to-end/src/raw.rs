//! Clients that write bytes as no library does: a text over HTTP/1.1, a header block over HTTP/2.

use std::{collections::HashMap, fmt, io};

use loona_hpack::Decoder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use leasehold_scenarios::world::SOON;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Writes `request`, with an end behind it if `ends`, and reads what the host says until it closes the connection.
///
/// # Panics
/// When it does not.
pub async fn exchange(addr: &str, request: &[u8], ends: bool) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the host listens");
    stream.write_all(request).await.expect("the host reads");
    if ends {
        stream.shutdown().await.expect("the connection is open");
    }
    let mut text = Vec::new();
    let ended = timeout(SOON, stream.read_to_end(&mut text)).await.expect("the host closes the connection");
    let _ = ended; // A reset is an end, too.
    String::from_utf8_lossy(&text).into_owned()
}

/// Field of a header block, not inserted into the table of its connection.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

/// The authority of a request, as most clients write it: inserted into the table, its name by its index.
pub fn authority(value: &str) -> Vec<u8> {
    [&[0x41][..], &string(value)].concat()
}

fn string(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text");
    [&[length], text.as_bytes()].concat()
}

/// Outcome of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Fields of headers and trailers, and the body.
    Answered(HashMap<String, String>, String),
    /// The stream was reset with that code.
    Reset(u32),
}

impl Outcome {
    /// The status.
    ///
    /// # Panics
    /// When there is none.
    pub fn status(&self) -> &str {
        match self {
            Self::Answered(fields, _) => &fields[":status"],
            Self::Reset(code) => panic!("the stream was reset: {code}"),
        }
    }
}

/// A connection of HTTP/2.
pub struct Connection {
    stream: TcpStream,
    next: u32,
    decoder: Decoder<'static>,
    /// Fields and bodies of what is not whole yet.
    begun: HashMap<u32, (HashMap<String, String>, Vec<u8>)>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// If there is no listener.
    pub async fn open(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the service listens");
        // Frames are written one by one; without this each waits for the acknowledgement of the one before.
        stream.set_nodelay(true).expect("the connection is open");
        let mut connection = Self { stream, next: 1, decoder: Decoder::new(), begun: HashMap::new() };
        connection.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the service reads");
        connection.write(SETTINGS, 0, 0, &[]).await;
        connection
    }

    /// Sends a request without a body, or with one. Returns its stream.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn send(&mut self, block: &[u8], body: Option<&[u8]>) -> u32 {
        let stream = self.begin(block, if body.is_none() { END_STREAM } else { 0 }).await;
        if let Some(body) = body {
            self.write(DATA, END_STREAM, stream, body).await;
        }
        stream
    }

    /// Sends a request whose body never comes.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn send_half(&mut self, block: &[u8]) -> u32 {
        self.begin(block, 0).await
    }

    async fn begin(&mut self, block: &[u8], end: u8) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.write(HEADERS, END_HEADERS | end, stream, block).await;
        stream
    }

    /// Takes a request back.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn cancel(&mut self, stream: u32) {
        self.write(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
    }

    /// Sends a request without a body, and waits for what comes of it.
    ///
    /// # Panics
    /// When nothing does.
    pub async fn ask(&mut self, block: &[u8]) -> Outcome {
        let stream = self.send(block, None).await;
        let (of, outcome) = self.next().await;
        assert_eq!(of, stream);
        outcome
    }

    /// Waits for the next request that is answered or reset.
    ///
    /// # Panics
    /// When none is, or the connection ends.
    pub async fn next(&mut self) -> (u32, Outcome) {
        timeout(SOON, self.read()).await.expect("the service answers")
    }

    async fn read(&mut self) -> (u32, Outcome) {
        loop {
            let (kind, flags, stream, payload) = self.frame().await.expect("the connection is kept");
            match kind {
                SETTINGS if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
                PING if flags & ACK == 0 => self.write(PING, ACK, 0, &payload).await,
                GOAWAY => panic!("the connection ends: {}", payload.escape_ascii()),
                RST_STREAM => {
                    self.begun.remove(&stream);
                    let code = payload.try_into().map(u32::from_be_bytes).expect("a code has four bytes");
                    return (stream, Outcome::Reset(code));
                }
                HEADERS => {
                    let (fields, _) = self.begun.entry(stream).or_default();
                    for (name, value) in self.decoder.decode(&payload).expect("a header block") {
                        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
                        fields.insert(text(name), text(value));
                    }
                }
                DATA => {
                    self.begun.entry(stream).or_default().1.extend_from_slice(&payload);
                    if let Ok(taken) = u32::try_from(payload.len())
                        && taken > 0
                    {
                        self.write(WINDOW_UPDATE, 0, 0, &taken.to_be_bytes()).await;
                    }
                }
                _ => continue,
            }
            if matches!(kind, HEADERS | DATA)
                && flags & END_STREAM != 0
                && let Some((fields, body)) = self.begun.remove(&stream)
            {
                return (stream, Outcome::Answered(fields, String::from_utf8_lossy(&body).into_owned()));
            }
        }
    }

    async fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok((kind, flags, u32::from_be_bytes(stream), payload))
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.stream.write_all(&frame).await.expect("the connection is kept");
    }

    /// Waits until the service has closed the connection, and reads and says nothing meanwhile.
    ///
    /// # Panics
    /// When it does not.
    pub async fn is_closed(mut self) {
        let rest = async { while self.frame().await.is_ok() {} };
        timeout(SOON, rest).await.expect("the service closes the connection");
    }
}
