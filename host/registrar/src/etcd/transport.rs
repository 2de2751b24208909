//! The way to one endpoint: its URL, parsed, and how a connection to it is made.

use std::{sync::Arc, time::Duration};

use etcd_client::Channel;
use http::Uri;
use tonic::transport::Endpoint as Transport;

use super::{connection::Dial, secure::Secure};
use crate::{node::Invalid, options::Options};

/// Pause after which a silent connection is probed by a PING. etcd tolerates one in 5 s, counted where it arrives.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// Longest wait for its answer.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// One endpoint, and how a channel to it is made.
pub(super) struct Way {
    pub(super) url: Arc<str>,
    pub(super) dial: Dial,
    /// TLS, where the endpoint has it.
    pub(super) secure: Option<Arc<Secure>>,
}

impl Way {
    /// Parses the URL and reads the TLS files once, to refuse what cannot be used.
    pub(super) fn new(text: &str, options: &Options) -> Result<Self, Invalid> {
        let invalid = |rule: &str| Invalid::new("endpoints", rule.to_owned());
        if text.contains('@') {
            return Err(invalid("must not carry a user or a password; they have options of their own"));
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let not_a_url = || invalid(&format!("must be http://host:port or https://host:port, not {text:?}"));
        let uri: Uri = url.parse().map_err(|_| not_a_url())?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(not_a_url()),
        };
        if uri.port_u16().is_none_or(|port| port == 0) || uri.path() != "/" {
            return Err(not_a_url());
        }
        let host = uri.host().ok_or_else(not_a_url)?.trim_start_matches('[').trim_end_matches(']');
        let url: Arc<str> = url.into();
        let configured = |transport: Transport| {
            transport
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(false)
        };
        if !is_secure {
            let transport = configured(Transport::from(uri)).connect_timeout(options.dial_timeout);
            let dial = move || Channel::Tonic(transport.connect_lazy());
            return Ok(Self { url, dial: Arc::new(dial), secure: None });
        }
        let secure = Arc::new(Secure::new(&url, host, options)?);
        // The transport must not see the scheme before the connector has secured the connection.
        let plain = format!("http://{}", uri.authority().map_or("", |authority| authority.as_str()));
        let transport = configured(Transport::from_shared(plain).map_err(|_| not_a_url())?.origin(uri));
        Ok(Self { url, dial: secure.clone().dial(transport), secure: Some(secure) })
    }
}

#[cfg(test)]
mod tests {
    use super::Way;
    use crate::options::Options;

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        let options = Options::new(["x"]);
        for good in ["http://127.0.0.1:2379", "127.0.0.1:2379", "http://[::1]:2379/", "https://[::1]:2379"] {
            assert!(Way::new(good, &options).is_ok(), "{good}");
        }
        for bad in ["", "http://host", "ftp://host:1", "http://host:0", "http://host:1/path", "http://h:99999"] {
            assert!(Way::new(bad, &options).is_err(), "{bad}");
        }
        let error = Way::new("http://root:hunter2@host:2379", &options).err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
