//! Authorities as clients send them. RFC 3986 allows percent-encoding in an authority, and gRPC clients send it for targets
//! with a `/`; `http::uri::Authority` refuses it.

mod block;
mod frames;
mod huffman;

use std::{net::Ipv6Addr, str};

use bytes::Bytes;
use http::{HeaderValue, uri::Authority};

pub(crate) use frames::Frames;

/// Replacement of `%` and `/` in an `Authority`.
const SUBSTITUTE: u8 = b'-';

/// Authority of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The authority as far as the `http` crate accepts it.
    pub(crate) authority: Authority,
    /// The authority as it was sent, if that differs.
    pub(crate) encoded: Option<HeaderValue>,
}

impl Sent {
    /// Parses `host` or `host:port`, without user information. None for anything else.
    pub(crate) fn parse(text: &HeaderValue) -> Option<Self> {
        if !is_valid(text.as_bytes()) {
            return None;
        }
        if let Ok(authority) = Authority::try_from(text.as_bytes()) {
            return Some(Self { authority, encoded: None });
        }
        let held: Vec<u8> = text.as_bytes().iter().map(|b| if *b == b'%' { SUBSTITUTE } else { *b }).collect();
        let authority = Authority::from_maybe_shared(Bytes::from(held)).ok()?;
        Some(Self { authority, encoded: Some(text.clone()) })
    }

    /// Parses an authority of HTTP/2 that the `http` crate refuses. grpc-go sends the `ServerName` of an address as it stands,
    /// and kratos puts the name of the service there, so a `/` is accepted.
    pub(crate) fn parse_http2(text: &HeaderValue) -> Option<Self> {
        if !text.as_bytes().contains(&b'/') {
            return Self::parse(text);
        }
        let held: Vec<u8> = text.as_bytes().iter().map(|b| if *b == b'/' { SUBSTITUTE } else { *b }).collect();
        let held = Self::parse(&HeaderValue::from_bytes(&held).ok()?)?;
        Some(Self { encoded: Some(text.clone()), ..held })
    }
}

/// Returns true for a host that is not empty, with an optional port (RFC 3986, sections 3.2.2 and 3.2.3; RFC 9110,
/// section 4.2.4).
pub(crate) fn is_valid(text: &[u8]) -> bool {
    let (is_host, port) = match text.strip_prefix(b"[") {
        Some(literal) => {
            let Some(end) = literal.iter().position(|b| *b == b']') else { return false };
            (is_address(&literal[..end]), &literal[end + 1..])
        }
        None => {
            let (name, port) = text.split_at(text.iter().position(|b| *b == b':').unwrap_or(text.len()));
            (is_name(name), port)
        }
    };
    is_host && port.split_first().is_none_or(|(colon, port)| *colon == b':' && port.iter().all(u8::is_ascii_digit))
}

/// Accepts the content of brackets: an IPv6 address, with an optional zone (RFC 6874).
fn is_address(text: &[u8]) -> bool {
    let address = text.split(|b| *b == b'%').next().and_then(|address| str::from_utf8(address).ok());
    address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Accepts a `reg-name` that is not empty.
fn is_name(mut text: &[u8]) -> bool {
    let is_empty = text.is_empty();
    while let [first, rest @ ..] = text {
        text = match (first, rest) {
            (b'%', [a, b, rest @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            (b'-' | b'.' | b'_' | b'~', _) => rest,
            (b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=', _) => rest,
            _ if first.is_ascii_alphanumeric() => rest,
            _ => return false,
        };
    }
    !is_empty
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::{Sent, is_valid};

    fn parse(text: &str) -> Option<(String, Option<String>)> {
        let Sent { authority, encoded } = Sent::parse(&HeaderValue::from_bytes(text.as_bytes()).unwrap())?;
        Some((authority.to_string(), encoded.map(|sent| sent.to_str().unwrap().to_owned())))
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        let good = [
            "here",
            "here:80",
            "here:",
            "10.0.0.1:80",
            "[::1]",
            "[::1]:80",
            "[fe80::1%25eth0]:80",
            "a_b.c~d!$&'()*+,;=",
        ];
        for text in good {
            assert_eq!(parse(text), Some((text.to_owned(), None)), "{text}");
        }
        let bad = [
            "",
            ":80",
            "he re",
            "here:80:80",
            "here:http",
            "a@here",
            "a/b",
            "a?b",
            "a#b",
            "[::1",
            "::1",
            "[]",
            "[here]",
            "[::1]80",
            "100%",
            "100%2",
            "100%zz",
            "%:80",
            "here:%38",
            "h\u{e9}re",
            "a\"b",
            "a\\b",
            "a<b",
            "a[b]",
            "[::1]]",
        ];
        for text in bad {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_percent_encoded_authority_is_kept_beside_its_substitute() {
        for (text, held) in [("user%2Fv1", "user-2Fv1"), ("foo%2fbar%2Fmy-service:80", "foo-2fbar-2Fmy-service:80")] {
            assert_eq!(parse(text), Some((held.to_owned(), Some(text.to_owned()))));
        }
    }

    #[test]
    fn an_authority_of_http2_may_be_a_name_with_slashes() {
        let parse = |text| Sent::parse_http2(&HeaderValue::from_static(text));
        for (text, held) in [("foo/user", "foo-user"), ("/user/v1:80", "-user-v1:80"), ("a%2Fb/c", "a-2Fb-c")] {
            let sent = parse(text).unwrap();
            assert_eq!((sent.authority.as_str(), sent.encoded.unwrap()), (held, HeaderValue::from_static(text)));
        }
        for text in ["", "a@b/c", "a b/c", "a/b:http", "a?b/c", "[::1/]"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_valid_authority_can_be_held(text in "[a-zA-Z0-9.%2F:@\\[\\]-]{0,24}") {
            prop_assert_eq!(parse(&text).is_some(), is_valid(text.as_bytes()));
        }
    }
}
