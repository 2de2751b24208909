//! TLS on a listener: real clients over either protocol, rotated certificates, and mistakes in them.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_client::GetOptions;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, hostile, plain, service, with},
    paths,
};
use leasehold_scenarios::{
    real::{Authority, Pair},
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

/// Silent connections.
const SILENT: usize = 300;

/// Certificates of a service, in a folder of their own.
struct Files {
    folder: TempDir,
}

impl Files {
    fn of(authority: &Authority) -> Self {
        let files = Self { folder: TempDir::new().unwrap() };
        files.write(&authority.server());
        fs::write(files.path("ca.pem"), authority.certificate()).unwrap();
        files
    }

    fn write(&self, pair: &Pair) {
        fs::write(self.path("cert.pem"), &pair.certificate).unwrap();
        fs::write(self.path("key.pem"), &pair.key).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files as the key `tls` of a configuration.
    fn tls(&self) -> Value {
        json!({ "cert": self.path("cert.pem"), "key": self.path("key.pem") })
    }

    fn mutual(&self) -> Value {
        with(self.tls(), json!({ "client_ca": self.path("ca.pem") }))
    }
}

/// Connects as a client that trusts one authority and offers these protocols.
async fn connect(
    host: &Host,
    name: &str,
    trusted: &Authority,
    protocols: &[&str],
    own: Option<&Pair>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.certificate().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(host.addr(name)).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

/// `GET /` over the negotiated protocol; returns the protocol and the body.
async fn get(stream: TlsStream<TcpStream>) -> Result<(String, String), Box<dyn std::error::Error>> {
    let agreed = String::from_utf8(stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec())?;
    let request = Request::get("https://127.0.0.1/").header(header::HOST, "127.0.0.1").body(Empty::<Bytes>::new())?;
    let response = if agreed == "h2" {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    let body = response.into_body().collect().await?.to_bytes();
    Ok((agreed, String::from_utf8(body.to_vec())?))
}

fn secured(files: &Value) -> Value {
    with(plain("plain"), json!({ "tls": files }))
}

#[tokio::test]
async fn a_client_gets_the_protocol_that_it_offers() {
    let (world, authority) = (World::real().await, Authority::new("ours"));
    let files = Files::of(&authority);
    let host = Host::of(&world, [secured(&files.tls())]).await;
    assert!(host.url("plain").starts_with("https://"), "{}", host.url("plain"));
    for (offered, agreed) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1"), (&[], "")] {
        let stream = connect(&host, "plain", &authority, offered, None).await.unwrap();
        assert_eq!(get(stream).await.unwrap(), (agreed.to_owned(), "hello\n".to_owned()));
    }
    assert!(connect(&host, "plain", &authority, &["spdy/3"], None).await.is_err(), "no protocol in common");
    assert!(connect(&host, "plain", &Authority::new("theirs"), &[], None).await.is_err(), "not trusted");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn the_clients_of_grpc_call_a_secured_service() {
    let (world, authority) = (World::real().await, Authority::new("ours"));
    let files = Files::of(&authority);
    let greeter = with(
        service("grpc-greeter", "grpc-greeter"),
        json!({ "register": "host", "layout": "kratos", "tls": files.tls() }),
    );
    let limits = json!({ "concurrency": 1, "request_timeout": "1s" });
    let failing = with(hostile("hostile"), json!({ "register": "host", "limits": limits }));
    let host = Host::of(&world, [greeter, failing]).await;
    let (descriptors, authority) = (paths::client("greeter.binpb"), files.path("ca.pem"));
    let script = paths::workspace().join("tests/clients/grpc-python/client.py");
    for (program, before) in [("grpc-go", None), ("python/bin/python", Some(script))] {
        let (greeter, failing) = (host.addr("grpc-greeter"), host.addr("hostile"));
        let arguments = [descriptors.clone(), greeter.into(), failing.into(), authority.clone()];
        let arguments = before.into_iter().chain(arguments);
        let ended = Program::spawn(&paths::client(program), arguments, &host.temporary()).ends().await;
        assert_eq!(ended.code, Some(0), "{program}: {}{}", ended.stdout, ended.stderr);
    }
    // A layout that publishes a scheme publishes the scheme of TLS.
    let all = GetOptions::new().with_prefix();
    let kratos = world.client().await.get("/microservices/grpc-greeter/", Some(all)).await.unwrap();
    let value = String::from_utf8_lossy(kratos.kvs()[0].value()).into_owned();
    assert!(value.contains(&format!("\"grpcs://{}\"", host.addr("grpc-greeter"))), "{value}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
    let (world, old, new) = (World::real().await, Authority::new("old"), Authority::new("new"));
    let files = Files::of(&old);
    let mut host = Host::of(&world, [secured(&files.tls())]).await;
    assert!(connect(&host, "plain", &old, &[], None).await.is_ok());
    assert!(connect(&host, "plain", &new, &[], None).await.is_err());

    files.write(&new.server());
    host.says("a new certificate is served").await;
    assert!(get(connect(&host, "plain", &new, &[], None).await.unwrap()).await.is_ok());
    assert!(connect(&host, "plain", &old, &[], None).await.is_err());

    // A key of another certificate, as if only one of the two files was replaced.
    fs::write(files.path("key.pem"), old.server().key).unwrap();
    let said = host.says("the old certificate is kept").await["message"].as_str().unwrap().to_owned();
    assert!(said.ends_with("cert.pem") && said.contains("key.pem is not the key of the certificate in"), "{said}");
    assert!(get(connect(&host, "plain", &new, &[], None).await.unwrap()).await.is_ok());

    files.write(&old.server());
    let twice = || host.log().iter().filter(|line| is_served(line)).count() == 2;
    wait_for("the next one is served", SOON, async || twice()).await;
    assert!(get(connect(&host, "plain", &old, &[], None).await.unwrap()).await.is_ok());
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.wrote("PRIVATE KEY"), "{ended:?}");
}

fn is_served(line: &Value) -> bool {
    line["message"].as_str().is_some_and(|said| said.starts_with("a new certificate is served"))
}

#[tokio::test]
async fn a_client_needs_a_certificate_if_the_service_requires_one() {
    let (world, ours, theirs) = (World::real().await, Authority::new("ours"), Authority::new("theirs"));
    let files = Files::of(&ours);
    let host = Host::of(&world, [secured(&files.mutual())]).await;
    // In TLS 1.3 a client sees the refusal with its first read.
    for refused in [None, Some(&theirs.client("stranger"))] {
        let answered = match connect(&host, "plain", &ours, &[], refused).await {
            Ok(stream) => get(stream).await.is_ok(),
            Err(_) => false,
        };
        assert!(!answered, "{}", refused.is_some());
    }
    let own = ours.client("friend");
    let stream = connect(&host, "plain", &ours, &[], Some(&own)).await.unwrap();
    assert_eq!(get(stream).await.unwrap().1, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_missing_handshake_has_a_timeout() {
    let (world, authority) = (World::real().await, Authority::new("ours"));
    let files = Files::of(&authority);
    let host = Host::of(&world, [secured(&files.tls())]).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(host.addr("plain")).await.unwrap();
    let addr = host.addr("plain");
    let mut crowd = Vec::new();
    for _ in 0..SILENT {
        crowd.push(TcpStream::connect(&addr).await.unwrap());
    }
    // Other handshakes are not blocked meanwhile.
    assert!(get(connect(&host, "plain", &authority, &[], None).await.unwrap()).await.is_ok());
    let read = timeout(Duration::from_secs(20), silent.read(&mut [0])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(begun.elapsed() >= Duration::from_secs(9), "it was cut off after {:?}", begun.elapsed());
    drop(crowd);
    // A silent connection does not block the end of the host.
    let _silent = TcpStream::connect(host.addr("plain")).await.unwrap();
    let stopping = Instant::now();
    assert_eq!(host.stop().await.code, Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(8), "it took {:?}", stopping.elapsed());
}

#[tokio::test]
async fn mistakes_in_certificates_are_one_sentence_at_check_and_at_the_start() {
    let (world, authority) = (World::real().await, Authority::new("ours"));
    let files = Files::of(&authority);
    fs::write(files.path("other.pem"), authority.server().key).unwrap();
    fs::write(files.path("text.pem"), "hello").unwrap();
    let path = |name: &str| files.path(name).display().to_string();
    let cases = [
        (json!({ "key": files.path("missing.pem") }), format!("cannot read {}: No such file", path("missing.pem"))),
        (json!({ "cert": files.path("text.pem") }), format!("{} holds no certificate as PEM", path("text.pem"))),
        (json!({ "key": files.path("text.pem") }), format!("{} holds no private key as PEM", path("text.pem"))),
        (
            json!({ "key": files.path("other.pem") }),
            format!("{} is not the key of the certificate in {}", path("other.pem"), path("cert.pem")),
        ),
        (json!({ "client_ca": files.path("text.pem") }), format!("{} holds no certificate as PEM", path("text.pem"))),
    ];
    for (change, sentence) in cases {
        let written = config(&world, [secured(&with(files.tls(), change))]);
        let ended = Host::spawn(&written, &[]).ends().await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        let last: Value = serde_json::from_str(ended.stderr.lines().last().unwrap()).unwrap();
        assert!(last["message"].as_str().unwrap().starts_with(&format!("plain: tls: {sentence}")), "{last}");
        let checked = check(&written).await;
        assert_eq!(checked.code, Some(64), "{checked:?}");
        assert!(checked.stdout.contains(&sentence), "{checked:?}");
    }
    assert_eq!(world.count().await, 0);
}

async fn check(written: &Value) -> Ended {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("services.yaml");
    fs::write(&file, written.to_string()).unwrap();
    Program::spawn(&paths::leasehold(), ["check", file.to_str().unwrap()], folder.path()).ends().await
}
