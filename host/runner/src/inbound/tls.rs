//! TLS on a listener: the certificate and its key from files, read again when they change.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, server::WebPkiClientVerifier},
    server::TlsStream,
};
use tokio_util::task::TaskTracker;

use crate::{
    certificate::{self, read},
    config::TlsFiles,
};

/// Application protocols of a listener, the preferred first.
static PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Deadline of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Polling interval of the files.
const LOOK: Duration = Duration::from_secs(2);

/// Content of the files.
#[derive(Hash)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl TlsFiles {
    /// Checks that a listener can be served with the files; the sentence names the file that is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.config(&self.read()?, &PROTOCOLS).map(drop)
    }

    fn read(&self) -> Result<Contents, String> {
        let client_ca = self.client_ca.as_deref().map(read).transpose()?;
        Ok(Contents { cert: read(&self.cert)?, key: read(&self.key)?, client_ca })
    }

    fn config(&self, contents: &Contents, protocols: &[&[u8]]) -> Result<ServerConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificate::chain(&self.cert, &contents.cert)?;
        let key = certificate::private_key(&self.key, &contents.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(pem)) => {
                let roots = certificate::authorities(path, pem)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| format!("{}: {error}", path.display()))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| certificate::unusable(&self.cert, &self.key, &error))?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

/// The TLS of one listener.
pub(crate) struct Tls {
    files: TlsFiles,
    protocols: &'static [&'static [u8]],
    /// Fingerprint of the files as they were first read.
    opened: u64,
    current: ArcSwap<ServerConfig>,
    /// Reads of the files. No task waits for them: a file system may hang.
    reads: TaskTracker,
}

impl Tls {
    /// Reads the files; the error is for the operator.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, String> {
        Self::speaking(&PROTOCOLS, files)
    }

    /// The same for a listener of HTTP/1.1 alone.
    pub(crate) fn open_http1(files: TlsFiles) -> Result<Self, String> {
        Self::speaking(&PROTOCOLS[1..], files)
    }

    fn speaking(protocols: &'static [&'static [u8]], files: TlsFiles) -> Result<Self, String> {
        let found = files.read();
        let opened = fingerprint(&found);
        let current = ArcSwap::from_pointee(files.config(&found?, protocols)?);
        Ok(Self { files, protocols, opened, current, reads: TaskTracker::new() })
    }

    /// Makes the handshake on a connection.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
    }

    /// Serves the certificate in the files whenever it changes. An unusable one is logged, and the former one kept.
    pub(crate) async fn follow(&self, service: impl fmt::Display) {
        let (mut seen, mut before) = (self.opened, self.opened);
        loop {
            sleep(LOOK).await;
            let files = self.files.clone();
            let Ok(found) = self.reads.spawn_blocking(move || files.read()).await else { return };
            let now = fingerprint(&found);
            // Several files are not written at once; only content that is unchanged for one interval is used.
            if now == before && now != seen {
                seen = now;
                match found.and_then(|contents| self.files.config(&contents, self.protocols)) {
                    Ok(config) => {
                        self.current.store(Arc::new(config));
                        tracing::info!(%service, "a new certificate is served: {}", self.files.cert.display());
                    }
                    Err(message) => tracing::warn!(%service, "the old certificate is kept: {message}"),
                }
            }
            before = now;
        }
    }
}

fn fingerprint(found: &Result<Contents, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    found.hash(&mut hasher);
    hasher.finish()
}
