//! Start of the registrar, and contact with etcd: without a limit, or as long as the configuration says.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
use leasehold::{Error, Options, Refusal, Registrar, Reminder, ServerNode, ServiceName, Terms, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use crate::{
    config::{Config, Register, Spec},
    error::Failure,
    rt::backoff::Backoff,
};

/// Pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Time without a warning: an error of the configuration comes first.
const FIRST_WARNING: Duration = Duration::from_millis(400);
/// Pause between the first two warnings that etcd does not respond.
const FIRST_REMINDER: Duration = Duration::from_secs(10);
/// Longest wait for a private etcd.
const DEV_DEADLINE: Duration = Duration::from_secs(20);

/// Starts the registrar. An error is one of the configuration.
pub(crate) fn start(options: &Options) -> Result<Registrar, Failure> {
    Registrar::start(options.clone()).map_err(|error| match error {
        Error::Quota { .. } => Failure::other(error),
        error => Failure::usage(format!("the configuration of etcd: {error}")),
    })
}

/// Waits until etcd answers, and accepts this user.
///
/// Fails if etcd is required and does not answer within the dial timeout, with an endpoint in the sentence; at once if it is
/// required and refuses the user. Otherwise it tries without a limit, and reports to the log and to `waiting_for`. Missing
/// rights to write some of the keys are logged; each service meets them by itself.
pub(crate) async fn etcd(
    registrar: &Registrar,
    config: &Config,
    waiting_for: &watch::Sender<Option<Arc<str>>>,
) -> Result<(), Failure> {
    let (options, required) = (&config.registrar, config.etcd_required);
    let begun = Instant::now();
    let deadline = if config.dev { DEV_DEADLINE } else { options.dial_timeout };
    let mut backoff = Backoff::new(FIRST_PAUSE, if config.dev { FIRST_PAUSE } else { LONGEST_PAUSE });
    let mut reminder: Option<Reminder> = None;
    let (keys, mut known) = (keys(registrar, &config.services), String::new());
    loop {
        let error = match attempt(registrar, options, keys.clone()).await {
            Ok(forbidden) => {
                waiting_for.send_replace(None);
                if let Some(message) = not_permitted(&forbidden) {
                    tracing::warn!("etcd: {message}");
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if required && (begun.elapsed() >= deadline || is_final(&error)) {
            return Err(explained(&error, options).await);
        }
        let (news, now) = (message(&error, options), Instant::now());
        let due = reminder.map_or(now >= begun + FIRST_WARNING, |reminder| reminder.is_due(now));
        if !required && (due || news != known) {
            let message = explained(&error, options).await.sentence();
            let message = message.trim_start_matches("etcd: ");
            waiting_for.send_replace(Some(message.into()));
            if due {
                tracing::warn!("waiting for etcd: {message}");
                let now = Instant::now();
                match &mut reminder {
                    Some(reminder) => reminder.advance(now),
                    None => reminder = Some(Reminder::new(FIRST_REMINDER, now)),
                }
            }
            known = news;
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Keys of the services, as far as the configuration determines them. Where the system chooses the port, the key of another
/// port stands for the real one: rights are granted by prefix.
pub(crate) fn keys(registrar: &Registrar, services: &[Spec]) -> Vec<String> {
    let registered = services.iter().filter(|spec| spec.register != Register::Off);
    let keys = registered.filter_map(|spec| {
        let bound = SocketAddr::new(spec.listen.ip(), spec.listen.port().max(1));
        let (name, version) = spec.registered_as();
        let node =
            ServerNode { name, addr: spec.advertised(bound)?, version, weight: None, metadata: spec.metadata.clone() };
        Some(registrar.keys(&node, &Terms { layouts: spec.layouts.clone(), ..Terms::default() }))
    });
    keys.flatten().collect()
}

/// One attempt, with a deadline, which also checks the rights to these keys. Returns the forbidden keys.
pub(crate) async fn attempt(registrar: &Registrar, options: &Options, keys: Vec<String>) -> Result<Vec<String>, Error> {
    let reached = async {
        registrar.reach().await?;
        match keys.is_empty() {
            true => Ok(Vec::new()),
            false => registrar.forbidden(keys).await,
        }
    };
    let deadline = options.dial_timeout + options.request_timeout;
    let timed_out = Error::Timeout { what: "etcd's answer", after: deadline, why: None };
    timeout(deadline, reached).await.unwrap_or(Err(timed_out))
}

/// Sentence about keys that this user may not read and write; `None` if there are none.
pub(crate) fn not_permitted(keys: &[String]) -> Option<String> {
    let key = keys.first()?;
    let others = match keys.len() - 1 {
        0 => String::new(),
        others => format!(", nor {others} more"),
    };
    let cure = Refusal::Permission.cure("readwrite", Some(folder(key)));
    Some(format!("its user may not read and write {key}{others}; {cure}"))
}

/// The prefix that ends with the folder of a key: keys of one version of a service are its siblings.
pub(crate) fn folder(key: &str) -> &str {
    key.rfind('/').map_or(key, |end| &key[..=end])
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::Unavailable(why) if why.refusal().is_some())
}

/// Failure for want of etcd; `prefix` is given if its right to read is missing.
pub(crate) fn failure(error: &Error, options: &Options, prefix: Option<&str>) -> Failure {
    let refusal = match error {
        Error::Unavailable(why) => why.refusal(),
        _ => None,
    };
    match (refusal, prefix) {
        (Some(refusal @ Refusal::Permission), Some(prefix)) => {
            let cure = refusal.cure("read", Some(prefix));
            Failure::refused(format!("{}, to read {prefix:?}; {cure}", with_endpoints(error, options)))
        }
        (Some(_), _) => Failure::refused(message(error, options)),
        (None, _) => Failure::unavailable(message(error, options)),
    }
}

/// Failure for want of etcd, after a probe of each endpoint: it may speak TLS where the configuration says otherwise, or the
/// reverse.
pub(crate) async fn explained(error: &Error, options: &Options) -> Failure {
    let failure = failure(error, options, None);
    if matches!(failure, Failure::Refused(_)) {
        return failure;
    }
    let looks = options.endpoints.iter().map(|endpoint| timeout(options.dial_timeout, other_scheme(endpoint)));
    let mut message = join_all(looks).await.into_iter().filter_map(|look| look.ok()?);
    message.next().map_or(failure, |message| Failure::refused(format!("etcd: {message}")))
}

/// Sentence about an endpoint that answers with the other scheme.
async fn other_scheme(endpoint: &str) -> Option<String> {
    let uri: http::Uri = endpoint.parse().ok()?;
    let (host, port) = (uri.host()?, uri.port_u16()?);
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.ok()?;
    if uri.scheme_str() == Some("https") {
        stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.ok()?;
        return (answer == *b"HTTP/").then(|| format!("{endpoint} speaks no TLS: it is an endpoint with http://"));
    }
    // No certificate is trusted here: its presence suffices.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
    let refused = TlsConnector::from(Arc::new(config)).connect(name, stream).await.err()?;
    let shown = refused.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(shown, rustls::Error::InvalidCertificate(_)).then(|| {
        format!(
            "{endpoint} speaks TLS: it is an endpoint with https://; etcd.tls.ca is the authority of its certificate"
        )
    })
}

/// First prefix that is read for one service, or for all.
pub(crate) fn prefix(options: &Options, name: Option<&ServiceName>) -> Option<String> {
    let layouts = options.read_layouts();
    let layout = layouts.first()?;
    Some(name.map_or_else(|| layout.root(), |name| layout.prefix(name, &Version::default())))
}

/// The error of etcd, with the endpoints unless it names one, and its cure.
pub(crate) fn message(error: &Error, options: &Options) -> String {
    let message = with_endpoints(error, options);
    match error {
        Error::Unavailable(why) => match why.refusal() {
            Some(refusal) => format!("{message}; {}", refusal.cure("read", None)),
            None => message,
        },
        _ => message,
    }
}

fn with_endpoints(error: &Error, options: &Options) -> String {
    let message = error.to_string();
    match options.endpoints.iter().any(|endpoint| message.contains(endpoint.as_str())) {
        true => message,
        false => format!("{message} ({})", options.endpoints.join(", ")),
    }
}
