//! TLS of calls by name: connections to nodes whose certificate an authority of the configuration has issued, with the host's own
//! certificate where it has one. The files are read again for each connection.

use std::{
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, try_join},
};
use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use leasehold::ServiceName;
use parking_lot::Mutex;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
        server::ParsedCertificate,
    },
};
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::{
    certificate::{self, SPIFFE, read},
    config::CallTls,
};

/// Connect timeout of one node, after which the call is retried on the next one.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connector of TLS, over connections of another one.
#[derive(Clone)]
pub(super) struct Secured<C> {
    connector: C,
    tls: Arc<ClientTls>,
}

/// TLS as a client of one service.
pub(super) struct ClientTls {
    files: CallTls,
    /// Name that the certificate of a node has to have; `None` for the host of its address.
    expected: Option<String>,
    protocol: &'static [u8],
    latest: Mutex<Option<(u64, Arc<ClientConfig>)>>,
    /// The latest read, which may be under way.
    reading: Mutex<Option<Reading>>,
    reads: TaskTracker,
}

type Reading = Shared<BoxFuture<'static, Result<Arc<Contents>, String>>>;

/// Content of the files.
#[derive(Hash)]
struct Contents {
    ca: Vec<u8>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl CallTls {
    /// Checks that calls can be made with the files; the sentence names the file that is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.config(&self.read()?, None, b"h2").map(drop)
    }

    fn read(&self) -> Result<Contents, String> {
        let own = self.own.as_ref().map(|(cert, key)| Ok::<_, String>((read(cert)?, read(key)?)));
        Ok(Contents { ca: read(&self.ca)?, own: own.transpose()? })
    }

    fn config(&self, contents: &Contents, expected: Option<&str>, protocol: &[u8]) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(certificate::authorities(&self.ca, &contents.ca)?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = match expected.filter(|expected| is_spiffe(expected)) {
            None => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                builder.with_webpki_verifier(verifier.map_err(|error| format!("{}: {error}", self.ca.display()))?)
            }
            Some(uri) => {
                let verifier = SpiffeVerifier { uri: uri.to_owned(), roots, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match (&self.own, &contents.own) {
            (Some((cert, key)), Some((cert_pem, key_pem))) => {
                let chain = certificate::chain(cert, cert_pem)?;
                let private = certificate::private_key(key, key_pem)?;
                let made = builder.with_client_auth_cert(chain, private);
                made.map_err(|error| certificate::unusable(cert, key, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

/// Detects an identity of SPIFFE, which is a URI and no DNS name.
fn is_spiffe(name: &str) -> bool {
    name.starts_with(SPIFFE)
}

impl ClientTls {
    pub(super) fn new(files: CallTls, service: &ServiceName, protocol: &'static [u8]) -> Self {
        let expected = files.server_name.as_ref().map(|name| name.replace("{name}", service.as_str()));
        Self {
            files,
            expected,
            protocol,
            latest: Mutex::default(),
            reads: TaskTracker::new(),
            reading: Mutex::default(),
        }
    }

    /// The configuration by the files as they are now; by those before, while the present ones do not fit together, as in the middle
    /// of a rotation, or cannot be read.
    async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let latest = self.latest.lock().as_ref().map(|(_, config)| Arc::clone(config));
        let reading = {
            let mut reading = self.reading.lock();
            match (&*reading, latest.clone()) {
                (Some(under_way), None) if under_way.peek().is_none() => under_way.clone(),
                // A file system that hangs costs one thread, and no connection.
                (Some(under_way), Some(latest)) if under_way.peek().is_none() => return Ok(latest),
                _ => reading.insert(self.read()).clone(),
            }
        };
        let contents = reading.await;
        match (contents.and_then(|contents| self.known_or_made(&contents)), latest) {
            (Err(message), Some(latest)) => {
                tracing::debug!("the former files of calls over TLS are used: {message}");
                Ok(latest)
            }
            (config, _) => config,
        }
    }

    fn read(&self) -> Reading {
        let files = self.files.clone();
        let read = self.reads.spawn_blocking(move || files.read().map(Arc::new));
        async { read.await.map_err(|error| error.to_string()).flatten() }.boxed().shared()
    }

    fn known_or_made(&self, contents: &Contents) -> Result<Arc<ClientConfig>, String> {
        let mut hasher = DefaultHasher::new();
        contents.hash(&mut hasher);
        let fingerprint = hasher.finish();
        let mut latest = self.latest.lock();
        if let Some((_, config)) = latest.as_ref().filter(|(known, _)| *known == fingerprint) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.files.config(contents, self.expected.as_deref(), self.protocol)?);
        *latest = Some((fingerprint, Arc::clone(&config)));
        Ok(config)
    }

    /// Name of a node for the handshake, which its certificate has to have unless another identity is verified.
    fn server_name(&self, uri: &Uri) -> Result<ServerName<'static>, BoxError> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = self.expected.as_deref().filter(|expected| !is_spiffe(expected)).unwrap_or(host);
        Ok(ServerName::try_from(name.to_owned())?)
    }
}

impl<C> Secured<C> {
    pub(super) fn new(connector: C, tls: ClientTls) -> Self {
        Self { connector, tls: Arc::new(tls) }
    }
}

impl<C> Service<Uri> for Secured<C>
where
    C: Service<Uri, Response = TokioIo<TcpStream>, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (name, tls) = (self.tls.server_name(&uri), Arc::clone(&self.tls));
        let connecting = self.connector.call(uri);
        let connected = async move {
            let (stream, config) = try_join(connecting, async { Ok(tls.config().await?) }).await?;
            let stream = TlsConnector::from(config).connect(name?, TokioIo::new(stream)).await?;
            Ok(MaybeHttpsStream::Https(TokioIo::new(stream)))
        };
        // A caller may have turned to another connection meanwhile, and this one is made for later.
        Box::pin(async move { timeout(CONNECT_TIMEOUT, connected).await? })
    }
}

/// Verifies that a trusted authority has issued a certificate for one identity of SPIFFE, whatever the host of the node.
struct SpiffeVerifier {
    uri: String,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        match certificate::is_identity(end_entity, &self.uri) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
