//! Target and host of a request, checked before the component sees it. A malformed request is the client's fault, and is never
//! counted as the component's failure.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    inbound::authority::{Sent, is_valid},
    rejection::RejectReason,
};

/// Header in which proxies pass on the original host.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Header with the name in the client's certificate: the identity of SPIFFE, else the first DNS name, else the common name.
const CALLER: HeaderName = HeaderName::from_static("x-leasehold-caller");
/// Header in which `Frames` passes on a replaced authority. Its name is random, so that no client can send it.
static REPLACED: LazyLock<HeaderName> = LazyLock::new(|| {
    let name = format!("x-authority-{:032x}", fastrand::u128(..));
    HeaderName::try_from(name).expect("it is made of letters and digits")
});

/// Properties of a connection that its requests share.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    scheme: Scheme,
    /// Address that the client connected to.
    local: Option<SocketAddr>,
    /// Address of the client.
    pub(crate) peer: Option<SocketAddr>,
    /// Set once an authority of this connection was replaced.
    pub(crate) has_replaced: Arc<AtomicBool>,
    /// Names in the client's certificate, from the handshake on.
    pub(crate) caller: Arc<OnceLock<Vec<String>>>,
}

impl Origin {
    pub(crate) fn new(scheme: Scheme, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Self {
        Self { scheme, local, peer, has_replaced: Arc::default(), caller: Arc::default() }
    }

    /// Name of the header in which replaced authorities are passed on.
    pub(crate) fn replaced() -> HeaderName {
        REPLACED.clone()
    }

    /// Passes on the name in the client's certificate, and nothing that the client sends in its place. Refuses a client that is not
    /// among the permitted ones.
    pub(crate) fn pass_caller<B>(
        &self,
        request: &mut Request<B>,
        permitted: Option<&[String]>,
    ) -> Result<(), RejectReason> {
        let headers = request.headers_mut();
        headers.remove(CALLER);
        let names = self.caller.get().map_or(&[][..], Vec::as_slice);
        if let Some(name) = names.iter().find_map(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(CALLER, name);
        }
        match permitted.is_none_or(|permitted| names.iter().any(|name| permitted.contains(name))) {
            true => Ok(()),
            false => Err(RejectReason::CallerDenied),
        }
    }

    /// Puts the host of a request into its URI, which is where components of 0.3 look for it. Refuses a request without a host
    /// or with a malformed host, with a target that its method does not allow (RFC 9112, section 3.2), or for a tunnel.
    pub(crate) fn locate<B>(&self, request: &mut Request<B>) -> Result<(), RejectReason> {
        let replaced = match self.has_replaced.load(Ordering::Acquire) {
            true => request.headers_mut().remove(&*REPLACED),
            false => None,
        };
        if has_other_coding(request.headers()) {
            return Err(RejectReason::TransferCoding);
        }
        let named = host(request.headers())?;
        if request.method() == Method::CONNECT {
            return Err(RejectReason::NoHost);
        }
        let uri = request.uri();
        if !is_allowed(uri, request.method(), request.version()) {
            return Err(RejectReason::BadTarget);
        }
        let sent = match (uri.authority(), replaced) {
            (_, Some(sent)) => Sent::parse_http2(&sent).ok_or(RejectReason::NoHost)?,
            (Some(there), None) if is_valid(there.as_str().as_bytes()) && !has_empty_path(uri) => return Ok(()),
            (Some(there), None) if is_valid(there.as_str().as_bytes()) => {
                Sent { authority: there.clone(), encoded: None }
            }
            (Some(_), None) => return Err(RejectReason::NoHost),
            (None, None) => named.or_else(|| self.default(request.version())).ok_or(RejectReason::NoHost)?,
        };
        let mut parts = mem::take(request.uri_mut()).into_parts();
        parts.scheme.get_or_insert_with(|| self.scheme.clone());
        parts.authority = Some(sent.authority);
        if let Some(query) =
            parts.path_and_query.as_ref().map(PathAndQuery::as_str).filter(|path| path.starts_with('?'))
        {
            parts.path_and_query = Some(format!("/{query}").try_into().map_err(|_| RejectReason::BadTarget)?);
        }
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| RejectReason::BadTarget)?;
        if let Some(encoded) = sent.encoded {
            // A proxy in front knows the client's own host.
            request.headers_mut().entry(FORWARDED_HOST).or_insert(encoded);
        }
        Ok(())
    }

    /// Host of an HTTP/1.0 request that names none.
    fn default(&self, version: Version) -> Option<Sent> {
        let local = self.local.filter(|_| version < Version::HTTP_11)?;
        let authority = Authority::try_from(local.to_string()).ok()?;
        Some(Sent { authority, encoded: None })
    }
}

fn host(headers: &HeaderMap) -> Result<Option<Sent>, RejectReason> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(None),
        (Some(host), None) => Sent::parse(host).map(Some).ok_or(RejectReason::NoHost),
        (Some(_), Some(_)) => Err(RejectReason::NoHost),
    }
}

/// Detects a transfer coding beside `chunked`, which the component could not decode.
fn has_other_coding(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|coding: &HeaderValue| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

fn is_allowed(uri: &Uri, method: &Method, version: Version) -> bool {
    let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
    match (uri.scheme(), uri.authority()) {
        // The authority form, which is for CONNECT only.
        (None, Some(_)) => false,
        (Some(_), _) if version < Version::HTTP_2 => true,
        _ => path.starts_with('/') || (path == "*" && method == Method::OPTIONS),
    }
}

/// Detects an absolute URI whose query follows the host.
fn has_empty_path(uri: &Uri) -> bool {
    uri.path_and_query().is_some_and(|path| path.as_str().starts_with('?'))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use http::{Request, Version, uri::Scheme};
    use proptest::prelude::*;

    use super::{FORWARDED_HOST, Origin, RejectReason};

    fn origin() -> Origin {
        Origin::new(Scheme::HTTPS, Some("127.0.0.1:8080".parse().unwrap()), None)
    }

    fn located(method: &str, uri: &str, version: Version, headers: &[(&str, &[u8])]) -> Result<String, RejectReason> {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        origin().locate(&mut request)?;
        Ok(request.uri().to_string())
    }

    fn get(uri: &str, hosts: &[&[u8]]) -> Result<String, RejectReason> {
        let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        located("GET", uri, Version::HTTP_11, &headers)
    }

    #[test]
    fn a_request_has_one_host_that_can_be_read() {
        assert_eq!(get("/a?b", &[b"here:80"]).unwrap(), "https://here:80/a?b");
        assert_eq!(get("http://there/a", &[]).unwrap(), "http://there/a");
        assert_eq!(get("http://there/a", &[b"here"]).unwrap(), "http://there/a");
        assert_eq!(get("http://there?a", &[b"here"]).unwrap(), "http://there/?a");
        let bad: [&[&[u8]]; 8] = [
            &[],
            &[b""],
            &[b"here", b"here"],
            &[b"\xff"],
            &[b"\x80here"],
            &[b"he re"],
            &[b"somebody@here"],
            &[b"100%"],
        ];
        for hosts in bad {
            assert_eq!(get("/", hosts), Err(RejectReason::NoHost), "{hosts:?}");
        }
        assert_eq!(get("http://somebody@there/", &[]), Err(RejectReason::NoHost));
        assert_eq!(
            located("CONNECT", "there:80", Version::HTTP_11, &[("host", b"there:80")]),
            Err(RejectReason::NoHost)
        );
    }

    #[test]
    fn a_host_may_be_percent_encoded() {
        let mut request = Request::get("/").header("host", "user%2Fv1:80").body(()).unwrap();
        origin().locate(&mut request).unwrap();
        assert_eq!(request.uri(), "https://user-2Fv1:80/");
        assert_eq!(request.headers()[FORWARDED_HOST], "user%2Fv1:80");
    }

    #[test]
    fn a_replaced_authority_is_restored() {
        let replaced = |sent: &'static str| {
            let mut request = Request::get("http://xxxxxxxxx/a").header(Origin::replaced(), sent).body(()).unwrap();
            let origin = origin();
            origin.has_replaced.store(true, Ordering::Release);
            origin.locate(&mut request).map(|()| request)
        };
        let request = replaced("user%2Fv1").unwrap();
        assert_eq!(request.uri(), "http://user-2Fv1/a");
        assert_eq!(request.headers()[FORWARDED_HOST], "user%2Fv1");
        assert_eq!(request.headers().len(), 1);
        for malformed in ["", "user%2", "a b", "a@b", "a:b"] {
            assert_eq!(replaced(malformed).unwrap_err(), RejectReason::NoHost, "{malformed:?}");
        }
    }

    #[test]
    fn a_forwarded_host_is_kept() {
        let request = Request::get("/").header("host", "user%2Fv1").header(FORWARDED_HOST, "first");
        let mut request = request.body(()).unwrap();
        origin().locate(&mut request).unwrap();
        assert_eq!(request.headers()[FORWARDED_HOST], "first");
    }

    #[test]
    fn a_target_is_one_that_its_method_allows() {
        let with_host = |method, uri, version| located(method, uri, version, &[("host", b"here")]);
        assert_eq!(with_host("OPTIONS", "*", Version::HTTP_11).unwrap(), "https://here*");
        for (method, uri) in [("GET", "foo"), ("GET", "foo:80"), ("GET", "x:"), ("POST", "foo"), ("GET", "*")] {
            assert_eq!(with_host(method, uri, Version::HTTP_11), Err(RejectReason::BadTarget), "{method} {uri}");
        }
        for uri in ["*", "http://here?a"] {
            assert_eq!(with_host("GET", uri, Version::HTTP_2), Err(RejectReason::BadTarget), "{uri}");
        }
    }

    #[test]
    fn only_a_client_of_http_1_0_may_leave_its_host_out() {
        assert_eq!(located("GET", "/", Version::HTTP_10, &[]).unwrap(), "https://127.0.0.1:8080/");
        assert_eq!(located("GET", "/", Version::HTTP_10, &[("host", b"here")]).unwrap(), "https://here/");
        assert_eq!(located("GET", "/", Version::HTTP_10, &[("host", b"")]), Err(RejectReason::NoHost));
        assert_eq!(located("GET", "/", Version::HTTP_11, &[]), Err(RejectReason::NoHost));
        assert_eq!(located("GET", "/", Version::HTTP_2, &[]), Err(RejectReason::NoHost));
    }

    #[test]
    fn a_body_is_encoded_in_chunks_or_not_at_all() {
        let coded = |codings: &[&'static [u8]]| {
            let codings = codings.iter().map(|coding| ("transfer-encoding", *coding));
            let headers: Vec<_> = codings.chain([("host", &b"here"[..])]).collect();
            located("POST", "/", Version::HTTP_11, &headers)
        };
        assert!(coded(&[]).is_ok() && coded(&[b"Chunked"]).is_ok());
        let bad: [&[&[u8]]; 4] = [&[b"gzip, chunked"], &[b"gzip", b"chunked"], &[b"chunked, gzip"], &[b"identity"]];
        for codings in bad {
            assert_eq!(coded(codings), Err(RejectReason::TransferCoding), "{codings:?}");
        }
    }

    proptest! {
        /// A component can build a URI from the parts of an accepted request.
        #[test]
        fn a_target_that_is_let_in_has_a_path(target in "[a-z0-9/?*:.%#@\\[\\] -]{0,16}", host in "[a-z0-9:%.@-]{0,8}") {
            if let Ok(uri) = target.parse::<http::Uri>() {
                let mut request = Request::get(uri).header("host", host).body(()).unwrap();
                if origin().locate(&mut request).is_ok() {
                    prop_assert!(request.uri().path_and_query().unwrap().as_str().starts_with('/'));
                    prop_assert!(request.uri().scheme().is_some() && request.uri().authority().is_some());
                }
            }
        }
    }
}
