//! Destinations of a component's own requests: what `allow.outbound` lists, and the addresses that only an explicit entry
//! opens.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use http::uri::{Authority, Scheme};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The longest host name, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// Addresses of this machine and of its link, and those at which clouds serve credentials to whatever runs on them.
const LOCAL_V4: [Ipv4Net; 7] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
    // Alibaba Cloud.
    Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 200), 32),
    // Oracle Cloud.
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 192), 32),
    // Azure.
    Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32),
];
const LOCAL_V6: [Ipv6Net; 5] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
    Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    // AWS.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    // Google Cloud.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128),
];

/// Ranges of IPv6 addresses that carry an IPv4 address, with the bit at which that begins.
const CARRIERS: [(Ipv6Net, u32); 6] = [
    // IPv4-compatible, IPv4-mapped and IPv4-translated (RFC 4291, section 2.5.5; RFC 2765, section 2.1).
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96), 96),
    (Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96), 96),
    (Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96), 96),
    // 6to4 (RFC 3056), and Teredo's servers (RFC 4380).
    (Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), 16),
    (TEREDO, 32),
    // NAT64 (RFC 6052).
    (Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96), 96),
];
/// The range in which a network chooses a prefix of its own for NAT64 (RFC 8215), and the lengths that this may have.
const NAT64_LENGTHS: [u32; 4] = [48, 56, 64, 96];
const NAT64_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48);
const TEREDO: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32);

/// An entry of `allow.outbound`: hosts, and the port if there is only one.
///
/// `HOST` or `HOST:PORT`, where the host is a name, `*.DOMAIN` for every name below a domain, an IP address (IPv6 in
/// brackets), a network such as `10.0.0.0/8` or `[fd12::/16]`, or `*` for every host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    hosts: Hosts,
    /// `None` for every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    /// In lower case, with the dot before it.
    Below(String),
    /// In lower case.
    Name(String),
    Address(IpAddr),
    Network(IpNet),
}

/// A host and a port that a component wants to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    host: &'a str,
    ip: Option<IpAddr>,
    port: u16,
}

/// Reason why no entry permits a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// No entry covers it.
    Absent,
    /// Entries cover it, but it is local, and none of them names it.
    Local,
}

impl<'a> Target<'a> {
    /// The host and port of a request; `None` for a port that is none.
    pub(crate) fn of(authority: &'a Authority, scheme: Option<&Scheme>) -> Option<Self> {
        let text = authority.as_str();
        let (_, address) = text.rsplit_once('@').unwrap_or(("", text));
        let host = authority.host();
        let port = match address.strip_prefix(host)? {
            "" | ":" if scheme == Some(&Scheme::HTTPS) => 443,
            "" | ":" => 80,
            rest => port(rest.strip_prefix(':')?)?,
        };
        let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inside) => Some(IpAddr::V6(inside.parse().ok()?)),
            None => host.parse().ok(),
        };
        Some(Self { host, ip, port })
    }

    /// The entry of `allow.outbound` that would permit it.
    pub(crate) fn entry(&self) -> String {
        match self.ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host.to_ascii_lowercase(), self.port),
        }
    }
}

impl From<std::net::SocketAddr> for Target<'_> {
    fn from(addr: std::net::SocketAddr) -> Self {
        Self { host: "", ip: Some(addr.ip()), port: addr.port() }
    }
}

impl Destination {
    /// The first entry that permits a target; `local` permits what is local without an entry that names it.
    pub(crate) fn permitting<'a>(all: &'a [Self], target: Target<'_>, local: bool) -> Result<&'a Self, Unlisted> {
        let mut covering = all.iter().filter(|entry| entry.covers(target)).peekable();
        let why = if covering.peek().is_some() { Unlisted::Local } else { Unlisted::Absent };
        covering.find(|entry| local || !target.is_local() || entry.names_local()).ok_or(why)
    }

    fn covers(&self, target: Target<'_>) -> bool {
        let host = match (&self.hosts, target.ip) {
            (Hosts::Any, _) => true,
            (Hosts::Address(only), Some(ip)) => *only == ip,
            (Hosts::Network(network), Some(ip)) => network.contains(&ip),
            (Hosts::Name(name), None) => name.eq_ignore_ascii_case(target.host),
            (Hosts::Below(domain), None) => {
                let host = target.host.as_bytes();
                let tail = host.len().checked_sub(domain.len()).filter(|at| *at > 0).map(|at| &host[at..]);
                tail.is_some_and(|tail| tail.eq_ignore_ascii_case(domain.as_bytes()))
            }
            (Hosts::Address(_) | Hosts::Network(_), None) | (Hosts::Name(_) | Hosts::Below(_), Some(_)) => false,
        };
        host && self.port.is_none_or(|only| only == target.port)
    }

    /// Detects an entry whose author means this machine or its link.
    fn names_local(&self) -> bool {
        match &self.hosts {
            Hosts::Any | Hosts::Below(_) => false,
            Hosts::Name(_) | Hosts::Address(_) => true,
            Hosts::Network(IpNet::V4(network)) => LOCAL_V4.iter().any(|local| local.contains(network)),
            Hosts::Network(IpNet::V6(network)) => LOCAL_V6.iter().any(|local| local.contains(network)),
        }
    }

    /// Detects an entry that covers IP addresses, the only targets of a program's sockets.
    pub(crate) fn has_addresses(&self) -> bool {
        matches!(self.hosts, Hosts::Any | Hosts::Address(_) | Hosts::Network(_))
    }
}

impl Target<'_> {
    /// Of a name, only `localhost` is local by itself; where others lead is known once they are resolved.
    fn is_local(&self) -> bool {
        match self.ip {
            Some(ip) => is_local(ip),
            None => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map_err(|rule| format!("{rule}, not {text:?}"))
    }
}

const RULE: &str = "must be a host such as api.example, *.example.com, 10.0.0.0/8 or *, with or without a :port";

fn parse(text: &str) -> Result<Destination, &'static str> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inside) => {
            let (host, rest) = inside.split_once(']').ok_or("must close the bracket of an IPv6 address")?;
            let hosts = match host.contains('/') {
                true => Hosts::Network(IpNet::V6(network(host)?)),
                false => Hosts::Address(IpAddr::V6(
                    host.parse().map_err(|_| "must hold an IPv6 address between its brackets")?,
                )),
            };
            (hosts, rest)
        }
        None if text.contains("://") => return Err("must be a host without a scheme or a path"),
        None if text.matches(':').count() > 1 => return Err("must put an IPv6 address into brackets"),
        None => {
            let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (hosts(host)?, rest)
        }
    };
    let port = match rest.strip_prefix(':') {
        Some(digits) => Some(port(digits).ok_or("must have a port from 1 to 65535")?),
        None if rest.is_empty() => None,
        None => return Err(RULE),
    };
    Ok(Destination { hosts: host, port })
}

fn hosts(text: &str) -> Result<Hosts, &'static str> {
    let is_name = |name: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.starts_with('.') && name.bytes().all(legal)
    };
    if text == "*" {
        return Ok(Hosts::Any);
    }
    if let Some(domain) = text.strip_prefix("*.") {
        let legal = is_name(domain) && domain.parse::<Ipv4Addr>().is_err();
        return legal.then(|| Hosts::Below(format!(".{}", domain.to_ascii_lowercase()))).ok_or(RULE);
    }
    if text.contains('*') {
        return Err("must have a * alone, or before a domain as in *.example.com");
    }
    if text.contains('/') && text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(Hosts::Network(IpNet::V4(network(text)?)));
    }
    match text.parse() {
        Ok(ip) => Ok(Hosts::Address(IpAddr::V4(ip))),
        Err(_) if is_name(text) => Ok(Hosts::Name(text.to_ascii_lowercase())),
        Err(_) => Err(RULE),
    }
}

/// A network without bits of a host, which would leave open what is meant.
fn network<N: FromStr + PartialEq + Truncate>(text: &str) -> Result<N, &'static str> {
    let network: N = text.parse().map_err(|_| "must be a network such as 10.0.0.0/8 or [fd12::/16]")?;
    match network == network.truncate() {
        true => Ok(network),
        false => Err("must be the first address of its network, as in 10.0.0.0/8"),
    }
}

trait Truncate {
    fn truncate(&self) -> Self;
}

impl Truncate for Ipv4Net {
    fn truncate(&self) -> Self {
        self.trunc()
    }
}

impl Truncate for Ipv6Net {
    fn truncate(&self) -> Self {
        self.trunc()
    }
}

fn port(digits: &str) -> Option<u16> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| is_plain && *port > 0)
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Any => f.write_str("*"),
            Hosts::Below(domain) => write!(f, "*{domain}"),
            Hosts::Name(name) => f.write_str(name),
            Hosts::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Hosts::Address(ip) => ip.fmt(f),
            Hosts::Network(IpNet::V6(network)) => write!(f, "[{network}]"),
            Hosts::Network(network) => network.fmt(f),
        }?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Detects an address of this machine or its link, or of a cloud's metadata service, in every form that leads there.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => LOCAL_V4.iter().any(|local| local.contains(&ip)),
        IpAddr::V6(ip) => {
            LOCAL_V6.iter().any(|local| local.contains(&ip)) || carried(ip).any(|ip| is_local(IpAddr::V4(ip)))
        }
    }
}

/// The IPv4 addresses that an IPv6 address may stand for.
fn carried(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = ip.to_bits();
    // Without bits 64 to 71, which are no part of an address that spans them (RFC 6052, section 2.2).
    let joined = bits >> 64 << 64 | bits << 72 >> 64;
    let at = move |begin: u32| if begin < 96 { joined << begin >> 96 } else { bits };
    let plain = CARRIERS.iter().filter(move |(range, _)| range.contains(&ip)).map(move |(_, begin)| at(*begin));
    // Read with another length than the network's, most addresses begin with zeros.
    let lengths = NAT64_LENGTHS.into_iter().filter(move |_| NAT64_LOCAL.contains(&ip));
    let nat64 = lengths.map(at).filter(|bits| *bits as u32 >= 1 << 24);
    let teredo = TEREDO.contains(&ip).then_some(!bits);
    // ISATAP (RFC 5214, section 6.1), under any prefix.
    let isatap = (bits >> 32 & 0xfdff_ffff == 0x5efe).then_some(bits);
    plain.chain(nat64).chain(teredo).chain(isatap).map(|bits| Ipv4Addr::from_bits(bits as u32))
}

#[cfg(test)]
mod tests {
    use http::uri::Scheme;

    use super::{Destination, Target, Unlisted, is_local};

    fn entries<const N: usize>(texts: [&str; N]) -> [Destination; N] {
        texts.map(|text| text.parse().unwrap())
    }

    fn permits(entries: &[Destination], authority: &str, scheme: &Scheme) -> Result<(), Unlisted> {
        let authority = authority.parse().unwrap();
        let target = Target::of(&authority, Some(scheme)).unwrap();
        Destination::permitting(entries, target, false).map(drop)
    }

    #[test]
    fn only_listed_hosts_are_permitted() {
        let entries = entries(["api.example", "127.0.0.1:8080", "[::1]:80"]);
        for (authority, scheme) in [
            ("api.example", Scheme::HTTPS),
            ("API.example:8443", Scheme::HTTP),
            ("127.0.0.1:8080", Scheme::HTTP),
            ("[::1]", Scheme::HTTP),
            ("[0:0::1]:80", Scheme::HTTPS),
        ] {
            assert_eq!(permits(&entries, authority, &scheme), Ok(()), "{authority}");
        }
        for (authority, scheme) in [
            ("[::1]", Scheme::HTTPS),
            ("127.0.0.1", Scheme::HTTP),
            ("127.0.0.1:8081", Scheme::HTTP),
            ("evil.api.example", Scheme::HTTP),
            ("api.example.evil", Scheme::HTTP),
        ] {
            assert_eq!(permits(&entries, authority, &scheme), Err(Unlisted::Absent), "{authority}");
        }
    }

    #[test]
    fn a_wildcard_is_every_name_below_its_domain() {
        let entries = entries(["*.example.com:443"]);
        for authority in ["a.example.com", "a.b.example.com:443", "A.Example.Com"] {
            assert_eq!(permits(&entries, authority, &Scheme::HTTPS), Ok(()), "{authority}");
        }
        for authority in
            ["example.com", ".example.com", "badexample.com", "a.example.com.evil", "a.example.com:80", "1.2.3.4"]
        {
            assert_eq!(permits(&entries, authority, &Scheme::HTTPS), Err(Unlisted::Absent), "{authority}");
        }
    }

    #[test]
    fn a_network_is_every_address_in_it() {
        let entries = entries(["10.0.0.0/8:80", "[fd12::/16]"]);
        for authority in ["10.255.0.1", "[fd12:1::1]:9"] {
            assert_eq!(permits(&entries, authority, &Scheme::HTTP), Ok(()), "{authority}");
        }
        for authority in ["11.0.0.1", "10.0.0.1:81", "[fd13::1]", "[::ffff:10.0.0.1]", "ten.example"] {
            assert_eq!(permits(&entries, authority, &Scheme::HTTP), Err(Unlisted::Absent), "{authority}");
        }
    }

    #[test]
    fn what_is_local_has_to_be_named() {
        let wide = entries(["*", "0.0.0.0/0", "[::/0]", "*.localhost"]);
        assert_eq!(permits(&wide, "api.example", &Scheme::HTTP), Ok(()));
        assert_eq!(permits(&wide, "10.0.0.1", &Scheme::HTTP), Ok(()));
        let local = ["127.0.0.1", "[::1]", "localhost", "LocalHost:80", "169.254.169.254", "[64:ff9b::7f00:1]"];
        for authority in local {
            assert_eq!(permits(&wide, authority, &Scheme::HTTP), Err(Unlisted::Local), "{authority}");
            let authority = authority.parse().unwrap();
            let target = Target::of(&authority, None).unwrap();
            assert!(Destination::permitting(&wide, target, true).is_ok(), "{authority}");
        }
        let named = entries(["127.0.0.0/8", "localhost", "[fd00:ec2::/32]"]);
        for authority in ["127.3.2.1", "localhost", "[fd00:ec2::254]"] {
            assert_eq!(permits(&named, authority, &Scheme::HTTP), Ok(()), "{authority}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_not_the_default_one() {
        for authority in ["api.example:99999", "api.example:0", "[::1]:65536", "127.0.0.1:080080"] {
            let authority = authority.parse().unwrap();
            assert_eq!(Target::of(&authority, None), None, "{authority}");
        }
    }

    #[test]
    fn an_entry_means_what_it_says_or_is_refused() {
        for text in [
            "*",
            "*:443",
            "*.example.com",
            "api.example",
            "127.1:8080",
            "10.0.0.0/8",
            "10.0.0.0/8:80",
            "[::1]:80",
            "[fd00::/8]:1",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:99999",
            "a:+1",
            "a:80:80",
            "*a",
            "a*",
            "*.",
            "*.*",
            "*.*.a",
            "a.*.b",
            "*.1.2.3.4",
            "a/b",
            "http://a",
            "u@a",
            "a b",
            ".a",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::1",
            "fd00::/8",
            "[fd00::1/8]",
            "[::1",
            "[::1]x",
            "[1.2.3.4]",
            "*/8",
            "käse",
        ] {
            let said = text.parse::<Destination>().unwrap_err();
            assert!(said.starts_with("must ") && said.ends_with(&format!("not {text:?}")), "{said}");
        }
    }

    #[test]
    fn the_shown_entry_permits_its_target() {
        for authority in ["api.Example", "127.0.0.1:81", "[::1]", "localhost:9", "[64:ff9b::7f00:1]:80"] {
            let authority = authority.parse().unwrap();
            let target = Target::of(&authority, None).unwrap();
            let entry: Destination = target.entry().parse().unwrap();
            assert!(Destination::permitting(&[entry], target, false).is_ok(), "{authority}");
        }
    }

    #[test]
    fn every_form_of_a_local_address_is_local() {
        for local in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "::1",
            "::",
            "fe80::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "64:ff9b::7f00:1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:7f00:0:100::",
            "64:ff9b:1:7f:0:1::",
            "64:ff9b:1:0:7f:0:100::",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
            "2001:0:7f00:1::1",
            "2001:db8::5efe:127.0.0.1",
            "2001:db8::200:5efe:127.0.0.1",
        ] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for other in [
            "10.0.0.1",
            "192.168.0.1",
            "8.8.8.8",
            "100.100.100.201",
            "2001:db8::1",
            "fd00:ec3::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1:808:8:808::",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:1:0:8:808:800:0",
            "2002:808:808::1",
            "2001:0:808:808::f7f7:f7f7",
            "2001:db8::5efe:8.8.8.8",
        ] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }
}
