//! Identifiers of requests: those that clients send in `x-request-id`, and those that the host makes.

use std::{cell::RefCell, fmt};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries the identifier, to the component and on its outgoing requests.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest identifier of a client that is kept.
const MAX_LENGTH: usize = 128;
/// Length of an identifier that the host makes: 128 random bits in hexadecimal digits.
const LENGTH: usize = 32;
/// Bytes that identifiers are cut from, so that one of 128 requests allocates.
const BLOCK: usize = 128 * LENGTH;

thread_local! {
    static IDENTIFIERS: RefCell<BytesMut> = RefCell::default();
}

/// Identifier of a request. It has no character with a meaning in a log, in a shell or in HTML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The identifier in a request's headers, if there is a single well-formed one.
    pub(crate) fn sent(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(REQUEST_ID).iter();
        match (all.next(), all.next()) {
            (Some(value), None) if is_well_formed(value.as_bytes()) => Some(Self(value.clone())),
            _ => None,
        }
    }

    /// Keeps the identifier in a request's headers, or puts a new one in the place of all others.
    pub(crate) fn ensure(headers: &mut HeaderMap) -> Self {
        Self::sent(headers).unwrap_or_else(|| {
            let made = Self::random();
            headers.insert(REQUEST_ID, made.header());
            made
        })
    }

    fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; LENGTH];
        for (pair, byte) in text.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        let bytes = IDENTIFIERS.with_borrow_mut(|block| {
            if block.capacity() < LENGTH {
                *block = BytesMut::with_capacity(BLOCK);
            }
            block.extend_from_slice(&text);
            block.split().freeze()
        });
        Self(HeaderValue::from_maybe_shared(bytes).expect("hexadecimal digits are a header's value"))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_well_formed(id: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~+/=:@".contains(byte);
    (1..=MAX_LENGTH).contains(&id.len()) && id.iter().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::{HeaderMap, HeaderValue};

    use super::{LENGTH, REQUEST_ID, RequestId};

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    #[test]
    fn a_well_formed_identifier_is_kept() {
        for sent in ["a", "7b5c1f0e-3a51-4f0e-9d0c-2f8f6a3b1c55", "Root=1-67891233:abc/=", &"x".repeat(128)] {
            let mut headers = headers(&[sent]);
            assert_eq!(RequestId::sent(&headers).unwrap().as_str(), sent);
            assert_eq!(RequestId::ensure(&mut headers).as_str(), sent);
            assert_eq!(headers[REQUEST_ID], sent);
        }
    }

    #[test]
    fn any_other_is_replaced() {
        let long = "x".repeat(129);
        for sent in [&[][..], &[""], &["a b"], &["a\"b"], &["a,b"], &["ä"], &["<b>"], &["$(x)"], &[&long], &["a", "a"]]
        {
            let mut headers = headers(sent);
            assert_eq!(RequestId::sent(&headers), None, "{sent:?}");
            let made = RequestId::ensure(&mut headers);
            assert_eq!(made.as_str().len(), LENGTH);
            assert_eq!(headers.get_all(REQUEST_ID).iter().collect::<Vec<_>>(), [made.as_str()]);
        }
    }

    #[test]
    fn made_identifiers_differ() {
        let made: BTreeSet<_> = (0..1000).map(|_| RequestId::ensure(&mut HeaderMap::new()).to_string()).collect();
        assert_eq!(made.len(), 1000);
    }
}
