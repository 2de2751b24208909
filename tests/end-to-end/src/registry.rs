//! An OCI registry on loopback, with the faults that registries have.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, channel::Channel};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use leasehold_scenarios::real::Pair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Bytes of one piece of a blob that is sent slowly.
const PIECE: usize = 1000;
/// The token that it gives.
const TOKEN: &str = "token-of-the-registry";

/// A registry that runs until it is stopped or dropped.
pub struct Registry {
    addr: SocketAddr,
    shared: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

/// Scheme by which it signs its clients in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A password with each request.
    Basic,
    /// A token, which it gives for the password.
    Bearer,
}

/// A fault of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers everything with this status.
    Status(u16),
    /// Closes the connection after half of a blob.
    Dies,
    /// Sends half of a blob as if it were all.
    Half,
    /// Sends another content of the same length.
    Other,
    /// Sends another manifest than that of the digest.
    OtherManifest,
    /// Pauses so long behind each piece of a blob.
    Slow(Duration),
    /// Answers a request for a blob with nothing at all.
    Silent,
}

#[derive(Default)]
struct State {
    /// Manifests with their media types, by name and tag, and by name and digest.
    manifests: HashMap<(String, String), (Bytes, String)>,
    blobs: HashMap<String, Bytes>,
    uploads: HashMap<String, Vec<u8>>,
    account: Option<(Scheme, String)>,
    fault: Option<Fault>,
    requests: Vec<String>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    /// Starts an empty registry that speaks HTTP.
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0", None).await
    }

    /// Starts an empty registry that speaks HTTPS.
    ///
    /// # Panics
    /// With a certificate that is none.
    pub async fn start_tls(pair: &Pair) -> Self {
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(ring::default_provider().into());
        let config = config.with_safe_default_protocol_versions().expect("of the provider").with_no_client_auth();
        let config = config.with_single_cert(chain.expect("certificates"), key).expect("a pair");
        Self::start_at("127.0.0.1:0", Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_at(addr: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(addr).await.expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Mutex::new(State::default()));
        let state = Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&state), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, state, addr).await,
                        // A client that does not trust the certificate goes away.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, state, addr).await;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, shared, server }
    }

    /// Its host, as references have it.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// A reference to something in it, such as `user:1`.
    pub fn reference(&self, name: &str) -> String {
        format!("oci://{}/{name}", self.addr)
    }

    /// Its entry in `artifacts.registries` of a configuration.
    pub fn entry(&self) -> Value {
        json!({ "host": self.host(), "plain_http": true })
    }

    /// Needs this password of the user `ci` from now on.
    pub fn needs(&self, scheme: Scheme, password: &str) {
        self.state().account = Some((scheme, password.to_owned()));
    }

    /// Does this wrong from now on, or nothing.
    pub fn does(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Requests so far, as `METHOD PATH`.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Stops it; its port is free afterwards.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await; // Aborted.
    }

    /// Puts a component under a tag, as the CNCF's artifact. Returns the digest of its manifest.
    pub fn put(&self, name: &str, tag: &str, component: &[u8]) -> String {
        let config = self.put_blob(b"{}");
        let layer = self.put_blob(component);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2 },
            "layers": [{ "mediaType": "application/wasm", "digest": layer, "size": component.len() }],
        });
        self.put_manifest(name, tag, &manifest)
    }

    /// Puts a manifest under a tag. Returns its digest.
    pub fn put_manifest(&self, name: &str, tag: &str, manifest: &Value) -> String {
        let bytes = Bytes::from(manifest.to_string());
        self.state().keep_manifest(name, tag, &bytes, MANIFEST)
    }

    /// Puts a blob. Returns its digest.
    pub fn put_blob(&self, content: &[u8]) -> String {
        let digest = digest(content);
        self.state().blobs.insert(digest.clone(), Bytes::copy_from_slice(content));
        digest
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

/// Media type of a manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Digest of a content, as registries write it.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

impl State {
    fn keep_manifest(&mut self, name: &str, tag: &str, bytes: &Bytes, kind: &str) -> String {
        let digest = digest(bytes);
        for key in [tag, &digest] {
            self.manifests.insert((name.to_owned(), key.to_owned()), (bytes.clone(), kind.to_owned()));
        }
        digest
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>, addr: SocketAddr) {
    let answer = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(request, &state, addr).await) }
    });
    // A client may leave, and a fault breaks the connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

type Body = Channel<Bytes, std::io::Error>;

fn whole(status: StatusCode, kind: &str, content: Bytes) -> Response<Body> {
    let (mut sender, body) = Channel::new(1);
    let length = content.len();
    tokio::spawn(async move { sender.send_data(content).await });
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
    response.header(header::CONTENT_LENGTH, length).body(body).expect("its parts are valid")
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let errors = json!({ "errors": [{ "code": code, "message": code, "detail": null }] });
    whole(status, "application/json", errors.to_string().into())
}

fn empty(status: StatusCode, headers: &[(&str, &str)]) -> Response<Body> {
    let mut response = whole(status, "text/plain", Bytes::new());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a valid name");
        response.headers_mut().insert(name, value.parse().expect("a valid value"));
    }
    response
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>, addr: SocketAddr) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let fault = {
        let mut state = lock(state);
        state.requests.push(format!("{} {path}", parts.method));
        state.fault
    };
    if let Some(Fault::Status(status)) = fault {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            404 => "NAME_UNKNOWN",
            _ => "UNKNOWN",
        };
        return error(StatusCode::from_u16(status).expect("a status"), code);
    }
    if path == "/token" {
        let basic = lock(state).account.as_ref().map(|(_, password)| basic(password));
        return match basic.is_some_and(|basic| has_authorization(&parts.headers, &basic)) {
            true => whole(StatusCode::OK, "application/json", json!({ "token": TOKEN }).to_string().into()),
            false => error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        };
    }
    if let Some(refusal) = refused(&parts.headers, state, addr) {
        return refusal;
    }
    let Ok(body) = body.collect().await else { return error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID") };
    let body = body.to_bytes();
    let Some(rest) = path.strip_prefix("/v2/") else { return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN") };
    if rest.is_empty() {
        return whole(StatusCode::OK, "application/json", "{}".into());
    }
    if let Some((name, upload)) = rest.split_once("/blobs/uploads/") {
        return uploaded(&parts.method, name, upload, &query, &body, state);
    }
    if let Some((name, tag)) = rest.split_once("/manifests/") {
        return manifest(&parts.method, (name, tag), &body, &parts.headers, state, fault);
    }
    match rest.split_once("/blobs/") {
        Some((_, digest)) => blob(&parts.method, digest, state, fault).await,
        None => error(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
    }
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("ci:{password}")))
}

fn has_authorization(headers: &HeaderMap, expected: &str) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value == expected)
}

fn refused(headers: &HeaderMap, state: &Mutex<State>, addr: SocketAddr) -> Option<Response<Body>> {
    let account = lock(state).account.clone();
    let (expected, challenge) = match account? {
        (Scheme::Basic, password) => (basic(&password), "Basic realm=\"registry\"".to_owned()),
        (Scheme::Bearer, _) => {
            (format!("Bearer {TOKEN}"), format!("Bearer realm=\"http://{addr}/token\",service=\"registry\""))
        }
    };
    (!has_authorization(headers, &expected)).then(|| {
        let mut refusal = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a valid value"));
        refusal
    })
}

fn uploaded(
    method: &Method,
    name: &str,
    upload: &str,
    query: &str,
    body: &Bytes,
    state: &Mutex<State>,
) -> Response<Body> {
    let mut state = lock(state);
    let location = |id: &str| format!("/v2/{name}/blobs/uploads/{id}");
    match *method {
        Method::POST => {
            let id = state.requests.len().to_string();
            state.uploads.insert(id.clone(), Vec::new());
            empty(StatusCode::ACCEPTED, &[("location", &location(&id)), ("range", "0-0")])
        }
        Method::PATCH | Method::PUT => {
            let Some(mut content) = state.uploads.remove(upload) else {
                return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
            };
            content.extend_from_slice(body);
            if *method == Method::PATCH {
                let range = format!("0-{}", content.len().saturating_sub(1));
                state.uploads.insert(upload.to_owned(), content);
                return empty(StatusCode::ACCEPTED, &[("location", &location(upload)), ("range", &range)]);
            }
            let digest = digest(&content);
            if !query.replace("%3A", ":").contains(&digest) {
                return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
            }
            state.blobs.insert(digest.clone(), content.into());
            empty(StatusCode::CREATED, &[("location", &format!("/v2/{name}/blobs/{digest}"))])
        }
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    }
}

fn manifest(
    method: &Method,
    (name, tag): (&str, &str),
    body: &Bytes,
    headers: &HeaderMap,
    state: &Mutex<State>,
    fault: Option<Fault>,
) -> Response<Body> {
    let mut state = lock(state);
    if *method == Method::PUT {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or(MANIFEST);
        let digest = state.keep_manifest(name, tag, body, kind);
        return empty(
            StatusCode::CREATED,
            &[("location", &format!("/v2/{name}/manifests/{digest}")), ("docker-content-digest", &digest)],
        );
    }
    let Some((content, kind)) = state.manifests.get(&(name.to_owned(), tag.to_owned())) else {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    };
    if fault == Some(Fault::OtherManifest) {
        return whole(StatusCode::OK, kind, Bytes::from(format!("{} ", String::from_utf8_lossy(content))));
    }
    let mut response = whole(StatusCode::OK, kind, content.clone());
    let digest = digest(content).parse().expect("a valid value");
    response.headers_mut().insert("docker-content-digest", digest);
    response
}

async fn blob(method: &Method, digest: &str, state: &Mutex<State>, fault: Option<Fault>) -> Response<Body> {
    let Some(content) = lock(state).blobs.get(digest).cloned() else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    };
    if *method == Method::HEAD {
        return empty(StatusCode::OK, &[]);
    }
    let half = content.slice(..content.len() / 2);
    let kind = "application/octet-stream";
    match fault {
        Some(Fault::Half) => whole(StatusCode::OK, kind, half),
        Some(Fault::Other) => whole(StatusCode::OK, kind, vec![b'x'; content.len()].into()),
        Some(Fault::Silent) => {
            sleep(Duration::from_secs(3600)).await;
            error(StatusCode::REQUEST_TIMEOUT, "UNKNOWN")
        }
        Some(Fault::Dies) => {
            let (mut sender, body) = Channel::new(1);
            tokio::spawn(async move {
                let _ = sender.send_data(half).await; // The client may have left.
                sleep(Duration::from_millis(50)).await;
                sender.abort(std::io::Error::other("it dies"));
            });
            let response = Response::builder().header(header::CONTENT_LENGTH, content.len());
            response.body(body).expect("its parts are valid")
        }
        Some(Fault::Slow(pause)) => {
            let (mut sender, body) = Channel::new(1);
            let length = content.len();
            tokio::spawn(async move {
                for piece in content.chunks(PIECE) {
                    if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            });
            Response::builder().header(header::CONTENT_LENGTH, length).body(body).expect("its parts are valid")
        }
        _ => whole(StatusCode::OK, kind, content),
    }
}
