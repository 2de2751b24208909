//! TLS towards one endpoint. Its files are read for each connection.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use etcd_client::Channel;
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use parking_lot::Mutex;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, RootCertStore,
        client::verify_server_cert_signed_by_trust_anchor,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
        server::ParsedCertificate,
    },
};
use tonic::transport::Endpoint as Transport;
use tower::{BoxError, Service};
use tracing::{info, warn};

use super::{connection::Dial, error::rounded};
use crate::{
    node::Invalid,
    options::{Options, Tls},
    source::{Reads, Source},
};

/// The protocol that gRPC speaks.
const ALPN: &[u8] = b"h2";

/// TLS towards one endpoint.
pub(super) struct Secure {
    url: Arc<str>,
    tls: Tls,
    name: ServerName<'static>,
    /// Longest time for a connection to be made, the handshake included.
    within: Duration,
    reads: Reads,
    /// Says that this host's own certificate has expired, if it had when the last connection was made.
    expired: Mutex<Option<String>>,
    log_state: Mutex<LogState>,
}

/// Log state of connections that fail.
#[derive(Default)]
struct LogState {
    /// The last reason, and when it was met last.
    reason: Option<(String, Instant)>,
    /// Time of the last successful handshake.
    secured_at: Option<Instant>,
}

impl Secure {
    /// Reads the files once, to refuse what cannot be used.
    pub(super) fn new(url: &Arc<str>, host: &str, options: &Options) -> Result<Self, Invalid> {
        let invalid = |said: String| Invalid::new("tls", said);
        let (tls, within) = (&options.tls, options.dial_timeout);
        let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| invalid("names no host".to_owned()))?;
        let (tls, reads) = (tls.clone(), Reads::default());
        client_config(&tls).map_err(invalid)?;
        Ok(Self { url: url.clone(), tls, name, within, reads, expired: Mutex::default(), log_state: Mutex::default() })
    }

    /// Makes channels whose connections are secured. The transport speaks plain text.
    pub(super) fn dial(self: Arc<Self>, transport: Transport) -> Dial {
        let connector = SecureConnector::new(self);
        Arc::new(move || Channel::Tonic(transport.connect_with_connector_lazy(connector.clone())))
    }

    /// The configuration as the sources have it now.
    async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let tls = self.tls.clone();
        let read = self.reads.run(tls.may_block(), move || client_config(&tls)).await;
        let (config, expired) = read.map_err(io::Error::other)?;
        *self.expired.lock() = expired;
        Ok(Arc::new(config))
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config().await?;
        let handshake = TlsConnector::from(config).connect(self.name.clone(), stream).await;
        let stream = handshake.map_err(|error| io::Error::other(self.said(&error)))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN) => {
                self.log_state.lock().secured_at = Some(Instant::now());
                Ok(stream)
            }
            _ => Err(io::Error::other("what listens there speaks TLS, but not HTTP/2 in it")),
        }
    }

    /// A failed handshake in an operator's words.
    fn said(&self, error: &io::Error) -> String {
        let refused = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        let said = match refused {
            Some(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::UnknownIssuer => match &self.tls.ca_pem {
                    None => "their certificate is not signed by an authority that the system trusts".to_owned(),
                    Some(ca) => format!("their certificate is not signed by the authority in {ca}"),
                },
                CertificateError::ExpiredContext { not_after, .. } => {
                    format!("their certificate expired on {}", date(*not_after))
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("their certificate is not for {}", self.name.to_str())
                }
                _ => return error.to_string(),
            },
            _ => return error.to_string(),
        };
        format!("{said} ({error})")
    }

    /// Says that this host's certificate had expired when the last connection was made.
    pub(super) fn expired(&self) -> Option<String> {
        self.expired.lock().clone()
    }

    /// Warns of why there is no secured connection, once for each reason.
    pub(super) fn log_failure(&self, said: &str) {
        let mut log_state = self.log_state.lock();
        let is_known = log_state.reason.as_ref().is_some_and(|(reason, _)| reason == said);
        log_state.reason = Some((said.to_owned(), Instant::now()));
        if !is_known {
            warn!(endpoint = %self.url, "no connection to etcd: {said}");
        }
    }

    /// A request was answered. Over a connection from before that says nothing of new ones.
    pub(super) fn log_success(&self) {
        let mut log_state = self.log_state.lock();
        let secured_at = log_state.secured_at;
        if log_state.reason.take_if(|(_, at)| secured_at.is_some_and(|secured| secured > *at)).is_some() {
            info!(endpoint = %self.url, "connected to etcd again");
        }
    }
}

/// Reads the sources. Returns the date with the configuration if this host's certificate has expired.
fn client_config(tls: &Tls) -> Result<(ClientConfig, Option<String>), String> {
    let provider = Arc::new(ring::default_provider());
    let mut authorities = RootCertStore::empty();
    match &tls.ca_pem {
        Some(ca) => {
            let (usable, _) = authorities.add_parsable_certificates(certificates(ca)?);
            if usable == 0 {
                return Err(format!("{ca} must hold the certificate of an authority"));
            }
        }
        // A system without any trusts none; the handshake then says so.
        None => drop(authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let config = ClientConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(authorities);
    let (mut config, expired) = match &tls.identity_pem {
        None => (config.with_no_client_auth(), None),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let algorithms = provider.signature_verification_algorithms.all;
            let expired = chain.first().and_then(|leaf| expired_on(leaf, algorithms));
            let expired = expired.map(|date| format!("our client certificate {certificate} expired on {date}"));
            let secret = PrivateKeyDer::from_pem_slice(&key.read().map_err(|error| error.to_string())?)
                .map_err(|_| format!("{key} must hold a PEM key"))?;
            let config = config.with_client_auth_cert(chain, secret).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("{key} is not the key of the certificate in {certificate}")
                }
                error => format!("{certificate} and {key} cannot be used: {error}"),
            });
            (config?, expired)
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would show the certificate of the one before.
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, expired))
}

fn certificates(source: &Source) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = source.read().map_err(|error| error.to_string())?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!("{source} must hold PEM certificates")),
    }
}

/// Date on which a certificate expired, if it has. Its dates are checked before its signature.
fn expired_on(
    certificate: &CertificateDer<'_>,
    algorithms: &[&'static dyn rustls::pki_types::SignatureVerificationAlgorithm],
) -> Option<String> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let no_roots = RootCertStore::empty();
    match verify_server_cert_signed_by_trust_anchor(&parsed, &no_roots, &[], UnixTime::now(), algorithms) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(date(not_after))
        }
        _ => None,
    }
}

fn date(time: UnixTime) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

/// Makes connections and secures them.
#[derive(Clone)]
struct SecureConnector {
    tcp: HttpConnector,
    secure: Arc<Secure>,
}

impl SecureConnector {
    fn new(secure: Arc<Secure>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(secure.within));
        Self { tcp, secure }
    }
}

impl Service<Uri> for SecureConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, secure) = (self.tcp.call(uri), self.secure.clone());
        Box::pin(async move {
            let within = secure.within;
            let secured = async {
                let stream = connecting.await?.into_inner();
                let secured = secure.handshake(stream).await;
                secured.inspect_err(|error| secure.log_failure(&error.to_string())).map_err(BoxError::from)
            };
            let secured = timeout(within, secured).await;
            let secured = secured.map_err(|_| {
                io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:?}", rounded(within)))
            });
            Ok(TokioIo::new(secured??))
        })
    }
}
