//! The endpoints of etcd, as the configuration, the command line and the environment name them.

use std::str::FromStr;

use serde_json::json;

use crate::config::{rule::scalars, units::pattern, values::Endpoint, variables::Environment};

/// The endpoint of etcd where none is configured.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
/// Environment variables with endpoints, separated by commas; the first that is set counts.
const ENDPOINTS: [&str; 2] = ["LEASEHOLD_ETCD", "ETCDCTL_ENDPOINTS"];

/// Endpoints where nothing else names any: those of the environment, or the one on this machine.
pub(crate) fn endpoints(environment: Environment, has_tls: bool) -> Result<Vec<String>, String> {
    Ok(named(environment, has_tls)?.unwrap_or_else(|| vec![DEFAULT_ENDPOINT.to_owned()]))
}

/// Endpoints of the environment; `None` if it has none.
pub(crate) fn named(environment: Environment, has_tls: bool) -> Result<Option<Vec<String>>, String> {
    for variable in ENDPOINTS {
        if let Some(listed) = environment(variable).filter(|listed| !listed.trim().is_empty()) {
            let parsed = listed.split(',').map(|endpoint| self::endpoint(endpoint.trim(), has_tls));
            return parsed.collect::<Result<_, _>>().map(Some).map_err(|message| format!("{variable}: {message}"));
        }
    }
    Ok(None)
}

/// An endpoint as `etcdctl` takes it: a URL, or a host and a port alone.
pub(crate) fn endpoint(text: &str, has_tls: bool) -> Result<String, String> {
    let scheme = if has_tls { "https" } else { "http" };
    let url = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    match url.parse() {
        Ok(Endpoint(url)) => Ok(url),
        Err(message) if text.contains('@') => Err(message),
        Err(_) => Err(format!("must be host:port, http://host:port or https://host:port, not {text:?}")),
    }
}

/// A member of the etcd cluster as it is written: a URL, or a host and a port alone.
pub(crate) struct Member(String);

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        endpoint(text, false).map(|_| Self(text.to_owned()))
    }
}

scalars! {
    Member => String, |member| member.0, secret if |text| text.contains('@'),
        "endpoint", "`host:port`, `http://host:port` or `https://host:port`", "http://127.0.0.1:2379",
        json!({ "type": "string", "pattern": pattern("(https?://)?[^@/?#]+:[0-9]+/?") });
}

#[cfg(test)]
mod tests {
    use super::{endpoint, endpoints};

    #[test]
    fn an_endpoint_may_lack_its_scheme() {
        assert_eq!(endpoint("etcd:2379", false).unwrap(), "http://etcd:2379");
        assert_eq!(endpoint("[::1]:2379", true).unwrap(), "https://[::1]:2379");
        assert_eq!(endpoint("https://etcd:2379/", false).unwrap(), "https://etcd:2379");
        for bad in ["etcd", "::1:2379", "etcd:0", "http://etcd:1/path", "", "ftp://etcd:1"] {
            assert!(endpoint(bad, false).unwrap_err().starts_with("must be host:port, http"), "{bad}");
        }
        assert!(!endpoint("root:hunter2@etcd:2379", false).unwrap_err().contains("hunter2"));
    }

    #[test]
    fn the_environment_names_endpoints() {
        let both = |name: &str| match name {
            "LEASEHOLD_ETCD" => Some("a:1, https://b:2".to_owned()),
            _ => Some("c:3".to_owned()),
        };
        assert_eq!(endpoints(both, false).unwrap(), ["http://a:1", "https://b:2"]);
        assert_eq!(
            endpoints(|name| (name == "ETCDCTL_ENDPOINTS").then(|| "c:3".into()), false).unwrap(),
            ["http://c:3"]
        );
        assert_eq!(endpoints(|_| None, true).unwrap(), ["http://127.0.0.1:2379"]);
        assert!(endpoints(|_| Some("c".into()), true).unwrap_err().starts_with("LEASEHOLD_ETCD: must be host:port"));
    }
}
