//! A service instance: `ServerNode` and the rules of its parts, parsed once at the edge.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use smol_str::SmolStr;

/// Longest service name, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// Longest version, in bytes.
const MAX_VERSION_BYTES: usize = 128;
/// Largest number of metadata pairs of a node.
const MAX_METADATA_PAIRS: usize = 64;
/// Largest size of the metadata of a node, keys and values together, in bytes.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Longest host part of an address, in bytes (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 253;

/// An error about a part of a node that breaks its rule. Repeating the call does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {rule}")]
pub struct Invalid {
    /// The field that breaks the rule.
    pub field: &'static str,
    /// The rule, as the end of a sentence that begins with the field.
    pub rule: String,
}

impl Invalid {
    pub(crate) fn new(field: &'static str, rule: impl Into<String>) -> Self {
        Self { field, rule: rule.into() }
    }
}

/// Name of a service: 1 to 253 bytes of visible ASCII characters without `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(SmolStr);

impl ServiceName {
    pub(crate) fn new(text: SmolStr) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::new("name", "must not be empty"));
        }
        visible("name", &text, MAX_NAME_BYTES)?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.into())
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Version of a service: empty for none, else at most 128 bytes of visible ASCII characters without `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(SmolStr);

impl Version {
    pub(crate) fn new(text: SmolStr) -> Result<Self, Invalid> {
        visible("version", &text, MAX_VERSION_BYTES)?;
        Ok(Self(text))
    }

    /// The version as text; empty for none.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.into())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Address at which clients reach an instance: `host:port`, never a wildcard, since no client can dial one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(SmolStr);

impl Addr {
    pub(crate) fn new(text: SmolStr) -> Result<Self, Invalid> {
        let invalid = |rule: &str| Err(Invalid::new("addr", format!("{rule}, not {}", shown(&text))));
        if text.contains("://") {
            return invalid("must be host:port without a scheme");
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return invalid("must be host:port");
        };
        if !matches!(port.parse::<u16>(), Ok(1..)) || port.starts_with('+') {
            return invalid("must end in a port from 1 to 65535");
        }
        let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => match v6.parse::<Ipv6Addr>() {
                Ok(ip) => Some(IpAddr::V6(ip)),
                Err(_) => return invalid("must hold an IPv6 address between its brackets"),
            },
            None if host.contains(':') => return invalid("must put an IPv6 address into brackets"),
            None => host.parse::<IpAddr>().ok(),
        };
        if ip.is_some_and(|ip| ip.is_unspecified()) {
            return invalid("must be an address that a client can dial");
        }
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        if ip.is_none() && (host.is_empty() || host.len() > MAX_HOST_BYTES || !host.bytes().all(legal)) {
            return invalid("must begin with a host name or an IP address");
        }
        // Resolvers take a name that ends in a number for an IPv4 address (WHATWG URL, section 3.5), so a name it cannot be.
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        if ip.is_none() && !last.is_empty() && last.bytes().all(|c| c.is_ascii_digit()) {
            return invalid("must begin with a host name or an IP address, and a name does not end in a number");
        }
        Ok(Self(text))
    }

    /// The address as text, byte for byte as parsed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the port, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let (host, _) = self.0.rsplit_once(':').expect("parsed with a port");
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        let (_, port) = self.0.rsplit_once(':').expect("parsed with a port");
        port.parse().expect("parsed as a port")
    }
}

impl FromStr for Addr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.into())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Share of the traffic that an instance takes, relative to others: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u8);

impl Weight {
    /// The smallest weight.
    pub const MIN: Self = Self(1);
    /// The largest weight.
    pub const MAX: Self = Self(100);

    /// The weight as a number.
    pub fn value(self) -> u32 {
        u32::from(self.0)
    }

    /// The nearest weight to `value`.
    pub(crate) fn clamped(value: f64) -> Self {
        // `max` turns NaN into the smallest weight; `clamp` would return it.
        #[expect(clippy::manual_clamp, reason = "it differs for NaN")]
        let within = value.max(1.0).min(100.0);
        Self(within as u8)
    }
}

impl TryFrom<u32> for Weight {
    type Error = Invalid;

    fn try_from(value: u32) -> Result<Self, Invalid> {
        match u8::try_from(value) {
            Ok(weight @ 1..=100) => Ok(Self(weight)),
            _ => Err(Invalid::new("weight", format!("must be 1 to 100, not {value}"))),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One instance of a service, as its clients find it. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNode {
    /// Name of the service.
    pub name: ServiceName,
    /// Address at which clients reach the instance.
    pub addr: Addr,
    /// Version; empty for none.
    pub version: Version,
    /// Weight; `None` lets the host compute it from load.
    pub weight: Option<Weight>,
    /// Further pairs for clients, in the order of registration.
    pub metadata: Metadata,
}

impl ServerNode {
    /// Creates a node without version and metadata, with a computed weight.
    ///
    /// Fails for a name or an address that breaks its rule.
    pub fn new(name: &str, addr: &str) -> Result<Self, Invalid> {
        Ok(Self {
            name: name.parse()?,
            addr: addr.parse()?,
            version: Version::default(),
            weight: None,
            metadata: Metadata::default(),
        })
    }
}

/// Metadata of a node: pairs with distinct keys, at most 64, of at most 16 KiB in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(Arc<[(String, String)]>);

impl Metadata {
    /// The pairs in the order of registration.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

impl TryFrom<Vec<(String, String)>> for Metadata {
    type Error = Invalid;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, Invalid> {
        let invalid = |rule: String| Err(Invalid::new("metadata", rule));
        if pairs.len() > MAX_METADATA_PAIRS {
            return invalid(format!("must have at most {MAX_METADATA_PAIRS} pairs, not {}", pairs.len()));
        }
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_METADATA_BYTES {
            return invalid(format!("must have at most {MAX_METADATA_BYTES} bytes, not {bytes}"));
        }
        let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        if keys.first().is_some_and(|key| key.is_empty()) {
            return invalid("must not have an empty key".to_owned());
        }
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid(format!("must not have the key {} twice", shown(twice[0])));
        }
        Ok(Self(pairs.into()))
    }
}

fn visible(field: &'static str, text: &str, max_bytes: usize) -> Result<(), Invalid> {
    if text.len() > max_bytes {
        return Err(Invalid::new(field, format!("must have at most {max_bytes} bytes, not {}", text.len())));
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '/') {
        None => Ok(()),
        Some(c) => Err(Invalid::new(
            field,
            format!("must be visible ASCII characters without '/', and {} has {c:?}", shown(text)),
        )),
    }
}

/// Quotes and shortens untrusted text, so that an error stays one readable line.
fn shown(text: &str) -> String {
    const ENOUGH: usize = 80;
    match text.char_indices().nth(ENOUGH) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Metadata, ServerNode, ServiceName, Version, Weight};

    #[test]
    fn a_name_is_visible_and_holds_no_slash() {
        assert!("user".parse::<ServiceName>().is_ok());
        assert!("user.rpc-2_x:y".parse::<ServiceName>().is_ok());
        assert!("n".repeat(253).parse::<ServiceName>().is_ok());
        for bad in ["", "a/b", "a b", "a\n", "\u{7f}", "naïve", &"n".repeat(254)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_version_may_be_empty() {
        assert!("".parse::<Version>().is_ok());
        assert!("v1".parse::<Version>().is_ok());
        assert!("v/1".parse::<Version>().is_err());
    }

    #[test]
    fn an_addr_is_host_and_port() {
        for good in
            ["127.0.0.1:1", "[::1]:65535", "node-1.example:8080", "my_host:80", "9.host:80", "node1:80", "h.:80"]
        {
            assert_eq!(good.parse::<Addr>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "::1:80",
            "[::1]",
            "[zz]:80",
            "a/b:80",
            "a b:80",
            "http://host:80",
            "host:80/",
            "host:http",
            "10.0.0.256:80",
            "10.0.0:80",
            "127.1:80",
            "1.2.3.4.5:80",
            "1.2.3.4.:80",
            "256:80",
            "host.9:80",
        ] {
            assert!(bad.parse::<Addr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_is_no_addr_and_the_error_says_why() {
        for bad in ["http://10.0.0.5:80", "grpc://host:80", "http://[::1]:80"] {
            let error = bad.parse::<Addr>().unwrap_err().to_string();
            assert!(error.contains("without a scheme"), "{error}");
        }
    }

    #[test]
    fn a_wildcard_is_no_addr() {
        for bad in ["0.0.0.0:80", "[::]:80", "[0:0::0]:80"] {
            let error = bad.parse::<Addr>().unwrap_err().to_string();
            assert!(error.contains("client can dial"), "{error}");
        }
    }

    #[test]
    fn an_addr_knows_its_parts() {
        let addr: Addr = "[::1]:8080".parse().unwrap();
        assert_eq!((addr.host(), addr.port()), ("::1", 8080));
    }

    #[test]
    fn a_weight_is_1_to_100() {
        assert_eq!(Weight::try_from(1), Ok(Weight::MIN));
        assert_eq!(Weight::try_from(100), Ok(Weight::MAX));
        assert!(Weight::try_from(0).is_err());
        assert!(Weight::try_from(101).is_err());
        assert!(Weight::try_from(257).is_err());
    }

    #[test]
    fn metadata_is_bounded() {
        let pair = |i: usize| (format!("k{i}"), "v".to_owned());
        assert!(Metadata::try_from((0..64).map(pair).collect::<Vec<_>>()).is_ok());
        assert!(Metadata::try_from((0..65).map(pair).collect::<Vec<_>>()).is_err());
        assert!(Metadata::try_from(vec![("k".into(), "v".repeat(2 << 20))]).is_err());
        assert!(Metadata::try_from(vec![pair(1), pair(1)]).is_err());
        assert!(Metadata::try_from(vec![(String::new(), String::new())]).is_err());
    }

    #[test]
    fn an_error_names_the_field_and_stays_short() {
        let error = ServerNode::new(&"x/".repeat(100), "h:1").unwrap_err().to_string();
        assert!(error.starts_with("name must be visible"), "{error}");
        assert!(error.len() < 200, "{error}");
    }
}
