//! The health check of `leasehold keep`: its address and rule, and the rounds of it.

use std::time::Duration;

use http::{Uri, uri::Authority};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};

use crate::{
    cli::CheckOptions,
    config::{Health, Probe},
    error::Failure,
    service::health::probe::probe_at,
};

/// A health check over the network.
pub(super) struct Check {
    authority: Authority,
    /// The request; `None` for a connection alone.
    health: Option<Health>,
    interval: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

impl Check {
    /// The check of the arguments, if they have one.
    pub(super) fn of(options: &CheckOptions) -> Result<Option<Self>, Failure> {
        let Some(url) = &options.health else { return Ok(None) };
        let wrong = |why: &str| {
            Failure::usage(format!(
                "--health: {why}; it is http://HOST:PORT/PATH, grpc://HOST:PORT or tcp://HOST:PORT, not {url:?}"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("this is no URL"))?;
        let authority = uri.authority().cloned().ok_or_else(|| wrong("the host is missing"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let probe = match uri.scheme_str() {
            Some("http") => Some(Probe::Http(path.to_owned())),
            Some("grpc" | "tcp") if path != "/" && !path.is_empty() => return Err(wrong("a path means nothing here")),
            Some("grpc") => Some(Probe::Grpc),
            Some("tcp") => None,
            _ => return Err(wrong("the scheme is unknown")),
        };
        if authority.as_str().contains('@') {
            return Err(Failure::usage("--health: a user has no place here"));
        }
        if authority.port_u16().is_none() {
            return Err(wrong("the port is missing"));
        }
        let CheckOptions { health_interval, health_timeout, rise, fall, .. } = options;
        let (interval, timeout) = (health_interval.0, health_timeout.0);
        let health = probe.map(|probe| Health { probe, interval, timeout, rise: *rise, fall: *fall });
        Ok(Some(Self { authority, health, interval, timeout, rise: *rise, fall: *fall }))
    }

    /// Waits until it has succeeded often enough. Reports why it has not.
    pub(super) async fn is_well(&self) {
        let (mut good, mut known) = (0, String::new());
        loop {
            match self.once().await {
                Ok(()) => good += 1,
                Err(why) => {
                    good = 0;
                    if why != known {
                        tracing::info!(event = "not_well", "not registered yet: {why}");
                        known = why;
                    }
                }
            }
            if good >= self.rise {
                return;
            }
            sleep(self.interval).await;
        }
    }

    /// Waits until it has failed often enough. Returns why it did.
    pub(super) async fn has_failed(&self) -> String {
        let mut bad = 0;
        loop {
            sleep(self.interval).await;
            match self.once().await {
                Ok(()) => bad = 0,
                Err(why) => {
                    bad += 1;
                    if bad >= self.fall {
                        return why;
                    }
                }
            }
        }
    }

    async fn once(&self) -> Result<(), String> {
        let probed = async {
            let addrs = lookup_host(self.authority.as_str()).await.map_err(|error| error.to_string())?;
            let mut outcome = Err("the name has no address".to_owned());
            for addr in addrs {
                outcome = probe_at(addr, Some(self.authority.as_str()), self.health.as_ref()).await;
                if outcome.is_ok() {
                    break;
                }
            }
            outcome
        };
        let probed = timeout(self.timeout, probed).await;
        let probed = probed.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)));
        probed.map_err(|why| format!("{}: {why}", self.authority))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Check;
    use crate::{cli::CheckOptions, config::units::Span};

    fn check(url: &str) -> Result<Option<Check>, String> {
        let second = Span(Duration::from_secs(1));
        let options = CheckOptions {
            health: Some(url.to_owned()),
            health_interval: second,
            health_timeout: second,
            rise: 1,
            fall: 1,
        };
        Check::of(&options).map_err(|failure| failure.sentence())
    }

    #[test]
    fn a_check_is_a_url_with_a_port() {
        for url in ["http://127.0.0.1:80/healthz?a=b", "http://[::1]:80", "grpc://db:9000", "tcp://db:9000/"] {
            assert!(check(url).is_ok_and(|check| check.is_some()), "{url}");
        }
        for (url, why) in [
            ("127.0.0.1:80", "the scheme is unknown"),
            ("https://db:1/", "the scheme is unknown"),
            ("http://db/", "the port is missing"),
            ("grpc://db:1/user", "a path means nothing here"),
            ("http://user:secret@db:1/", "a user has no place here"),
            ("http:// :1/", "this is no URL"),
        ] {
            let error = check(url).err().unwrap();
            assert!(error.contains(why) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
