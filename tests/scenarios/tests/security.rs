//! Users, passwords, tokens and certificates of a real etcd, and endpoints that are not etcd.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, Permission};
use leasehold::{Credentials, Error, EventKind, Options, Refusal, Registrar, ServerNode, State, Tls, Unavailable};
use leasehold_scenarios::{
    fleet::{Fleet, options},
    real::{Authority, Etcd, Pair},
    sim::SimEtcd,
    wait_for,
    world::SOON,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tonic::{service::Routes, transport::Server};

/// Timeout of a registration.
const PATIENCE: Duration = Duration::from_secs(2);
/// Extra time for a loaded machine.
const SLACK: Duration = Duration::from_secs(2);
/// A password that no output may contain.
const PASSWORD: &str = "correct-horse";

fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:10002").unwrap()
}

fn as_user(name: &str, password: &str) -> Option<Credentials> {
    Some(Credentials { user: name.to_owned(), password: password.into() })
}

/// The error of a failed registration, within its timeout.
async fn failure(options: Options) -> (Unavailable, Duration) {
    let endpoint = options.endpoints[0].clone();
    let most = options.register_timeout + SLACK;
    let registrar = Registrar::start(options).unwrap();
    let begun = Instant::now();
    let error = registrar.register(user()).await.unwrap_err();
    let took = begun.elapsed();
    assert!(took <= most, "{error}: after {took:?}");
    assert!(error.to_string().contains(&endpoint), "{error} does not name {endpoint}");
    report(&error, took);
    match error {
        Error::Unavailable(unavailable) => (unavailable, took),
        other => panic!("{other:?}"),
    }
}

#[expect(clippy::print_stdout, reason = "error texts are for whoever reads the run")]
fn report(error: &Error, took: Duration) {
    println!("{error} (after {took:.2?})");
}

fn impatient(endpoint: String) -> Options {
    Options { register_timeout: PATIENCE, ..options([endpoint]) }
}

// Users and tokens.

#[tokio::test]
async fn self_healing_with_tokens_that_last_five_seconds() {
    let etcd = Box::pin(Etcd::options().user("alice", PASSWORD).token_ttl(Duration::from_secs(5)).start()).await;
    let options = Options { credentials: as_user("alice", PASSWORD), ..options([etcd.endpoint()]) };
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    fleet.events();
    sleep(Duration::from_secs(20)).await;
    fleet.heard_none_of(&[EventKind::Suspect, EventKind::Recovering]);
    assert_eq!(fleet.changes().await, [], "watchers were told of these");
    let late = fleet.registrar.register(user()).await.unwrap();
    late.stop().await.unwrap();
}

#[tokio::test]
async fn self_healing_after_an_etcd_with_users_lost_its_data() {
    let mut etcd = Box::pin(Etcd::options().user("alice", PASSWORD).start()).await;
    let options = Options { credentials: as_user("alice", PASSWORD), ..options([etcd.endpoint()]) };
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    for keep_data in [true, false] {
        // Tokens are in etcd's memory: earlier tokens are invalid.
        Box::pin(etcd.restart(keep_data)).await;
        // So is the test's own token, and an etcd that lost its data would make calls with it wait.
        fleet.look_through(etcd.client().await);
        fleet.stands().await;
        fleet.is_renewed(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn self_healing_after_authentication_is_enabled() {
    let etcd = SimEtcd::new(1);
    let options = Options { credentials: as_user("alice", PASSWORD), ..options(["sim"]) };
    let dials = vec![(Arc::from("sim"), etcd.dial("host"))];
    let registrar = Registrar::start_over(options, dials).await.unwrap();
    let registration = registrar.register(ServerNode::new("user", "127.0.0.1:1").unwrap()).await.unwrap();
    let before = etcd.get(registration.key()).unwrap().lease;
    etcd.require_user("alice", PASSWORD, Duration::from_secs(300));
    etcd.revoke(before);
    let is_back = async || etcd.get(registration.key()).is_some_and(|found| found.lease != before);
    wait_for("it is registered as alice", Duration::from_secs(6), is_back).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
}

#[tokio::test]
async fn bounded_a_wrong_password_is_reported_at_once_and_never_printed() {
    let etcd = Box::pin(Etcd::options().user("alice", PASSWORD).start()).await;
    let secret = "wrong-battery";
    for name in ["alice", "nobody"] {
        let options = Options { credentials: as_user(name, secret), ..options([etcd.endpoint()]) };
        let (denied, took) = failure(options.clone()).await;
        assert!(denied.is_denied() && !denied.is_not_etcd(), "{denied}");
        assert!(took <= SLACK, "a wrong password is told at once, not after {took:?}");
        let registrar = Registrar::start(options.clone()).unwrap();
        let unreached = registrar.reach().await.unwrap_err();
        assert!(matches!(&unreached, Error::Unavailable(why) if why.is_denied()), "{unreached}");
        let texts = [
            denied.to_string(),
            format!("{denied:?}"),
            format!("{:?}", Error::Unavailable(denied)),
            format!("{unreached:?} {unreached}"),
            format!("{options:?}"),
            format!("{registrar:?}"),
        ];
        for text in texts {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn bounded_a_host_without_a_user_is_denied_by_an_etcd_with_users() {
    let etcd = Box::pin(Etcd::options().user("alice", PASSWORD).start()).await;
    let (denied, took) = failure(options([etcd.endpoint()])).await;
    assert_eq!(denied.refusal(), Some(Refusal::NoUser), "{denied}");
    assert!(denied.is_denied(), "{denied}");
    assert!(took <= SLACK, "a missing user is told at once, not after {took:?}");
    let found = etcd.client().await.get("/user/127.0.0.1:10002", None).await.unwrap();
    assert_eq!(found.kvs().len(), 0, "it could not have taken the key back");
    let registrar = Registrar::start(options([etcd.endpoint()])).unwrap();
    let error = registrar.forbidden(vec!["/user/1".to_owned()]).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(why) if why.refusal() == Some(Refusal::NoUser)), "{error}");
}

/// An etcd whose user `guest` may read and write what begins with `/user/` and read what begins with `/order/`.
async fn with_guest() -> (Etcd, Client) {
    let etcd = Box::pin(Etcd::options().user("root", PASSWORD).start()).await;
    let mut root = etcd.client().await;
    root.role_add("users").await.unwrap();
    root.role_grant_permission("users", Permission::read_write("/user/").with_prefix()).await.unwrap();
    root.role_grant_permission("users", Permission::read("/order/").with_prefix()).await.unwrap();
    root.user_add("guest", PASSWORD, None).await.unwrap();
    root.user_grant_role("guest", "users").await.unwrap();
    (etcd, root)
}

#[tokio::test]
async fn bounded_a_key_without_permission_is_denied_and_harms_no_other() {
    let (etcd, mut root) = with_guest().await;
    let options = Options { credentials: as_user("guest", PASSWORD), ..options([etcd.endpoint()]) };
    let registrar = Registrar::start(options).unwrap();
    let order = || ServerNode::new("order", "127.0.0.1:1").unwrap();
    // Both keys are in one transaction, which etcd refuses as a whole.
    let (allowed, first) = tokio::join!(registrar.register(user()), registrar.register(order()));
    let allowed = allowed.unwrap();
    let second = registrar.register(order()).await;
    for denied in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(&denied, Error::Unavailable(why) if why.refusal() == Some(Refusal::Permission)), "{denied}");
        assert!(denied.to_string().contains(&etcd.endpoint()), "{denied}");
    }
    // The forbidden key does not block the other key.
    root.delete(&**allowed.key(), None).await.unwrap();
    allowed.wait_for(|status| status.recoveries == 1 && status.state == State::Registered).await.unwrap();
    let keys = ["/user/1", "/order/1", "/other/1"].map(str::to_owned);
    assert_eq!(registrar.forbidden(keys.into()).await.unwrap(), ["/order/1", "/other/1"]);
    allowed.stop().await.unwrap();
    registrar.shutdown(SOON).await.unwrap();
}

#[tokio::test]
async fn a_user_learns_of_lost_rights_before_they_are_needed() {
    let (etcd, mut root) = with_guest().await;
    let options = Options { credentials: as_user("guest", PASSWORD), ..options([etcd.endpoint()]) };
    let registrar = Registrar::start(Options { stop_timeout: PATIENCE, ..options }).unwrap();
    let mut events = registrar.events();
    let registration = registrar.register(user()).await.unwrap();
    root.user_revoke_role("guest", "users").await.unwrap();
    registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
    let fault = registration.fault().unwrap();
    assert_eq!(fault.refusal(), Some(Refusal::Permission), "{fault}");
    let cure = "etcdctl role grant-permission ROLE --prefix=true readwrite /user/";
    assert!(fault.to_string().contains(cure), "{fault}");
    let error = registration.stop().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { why: Some(_), .. }), "{error:?}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    root.user_grant_role("guest", "users").await.unwrap();
    registration.wait_for(|status| status.state == State::Stopped).await.unwrap();
    let mut refused = 0;
    while let Ok(event) = events.try_recv() {
        refused += usize::from(event.kind == EventKind::Refused);
    }
    assert_eq!(refused, 1);
    wait_for("it is over", SOON, async || registrar.faults().is_empty()).await;
}

#[tokio::test]
async fn a_changed_password_is_reported_while_the_key_still_stands() {
    let etcd = Box::pin(Etcd::options().user("alice", PASSWORD).start()).await;
    let options = Options { credentials: as_user("alice", PASSWORD), ..options([etcd.endpoint()]) };
    let registration = Registrar::start(options).unwrap().register(user()).await.unwrap();
    etcd.client().await.user_change_password("alice", "another").await.unwrap();
    wait_for("it is told", SOON, async || {
        registration.fault().is_some_and(|fault| fault.refusal() == Some(Refusal::Authentication))
    })
    .await;
    assert_ne!(registration.status().state, State::Registered);
}

// Certificates.

fn trusting(authority: &Authority, shows: Option<Pair>) -> Tls {
    Tls {
        ca_pem: Some(authority.certificate().into()),
        identity_pem: shows.map(|pair| (pair.certificate.into(), pair.key.into())),
        server_name: None,
    }
}

#[tokio::test]
async fn visible_over_tls() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let etcd = Box::pin(Etcd::options().tls(ours.server()).start()).await;
    let secure = |tls| Options { tls, ..impatient(etcd.endpoint()) };
    let mut fleet = Fleet::start(secure(trusting(&ours, None)), etcd.client().await).await;
    fleet.stands().await;
    // The certificate names the address, too.
    let by_address =
        Options { endpoints: vec![format!("https://{}", etcd.address())], ..secure(trusting(&ours, None)) };
    assert!(Registrar::start(by_address).unwrap().reach().await.is_ok());
    let (wrong_authority, _) = failure(secure(trusting(&theirs, None))).await;
    assert!(wrong_authority.to_string().contains("certificate"), "{wrong_authority}");
    assert_eq!(wrong_authority.refusal(), Some(Refusal::Handshake), "{wrong_authority}");
    let (no_authority, _) = failure(secure(Tls::default())).await;
    assert!(no_authority.to_string().contains("certificate"), "{no_authority}");
    let wrong_name = Tls { server_name: Some("elsewhere".to_owned()), ..trusting(&ours, None) };
    let (wrong_name, _) = failure(secure(wrong_name)).await;
    assert!(wrong_name.to_string().contains("certificate"), "{wrong_name}");
    assert_eq!(wrong_name.refusal(), Some(Refusal::Handshake), "{wrong_name}");
    failure(impatient(format!("http://{}", etcd.address()))).await;
}

#[tokio::test]
async fn bounded_an_expired_certificate_is_an_error() {
    let ours = Authority::new("ours");
    let etcd = Box::pin(Etcd::options().tls(ours.expired_server()).start()).await;
    let (expired, _) = failure(Options { tls: trusting(&ours, None), ..impatient(etcd.endpoint()) }).await;
    assert!(expired.to_string().contains("expired"), "{expired}");
}

#[tokio::test]
async fn visible_over_mutual_tls() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let etcd = Box::pin(Etcd::options().tls(ours.server()).mutual_tls(ours.certificate()).start()).await;
    let showing = |pair| Options { tls: trusting(&ours, pair), ..options([etcd.endpoint()]) };
    let mut fleet = Fleet::start(showing(Some(ours.client("host"))), etcd.client().await).await;
    fleet.stands().await;
    for shown in [None, Some(theirs.client("host"))] {
        let (refused, took) = failure(showing(shown)).await;
        assert!(refused.is_denied() && refused.to_string().contains("certificate"), "{refused}");
        assert!(took <= 2 * SLACK, "a certificate that is not accepted is told at once, not after {took:?}");
    }
}

#[tokio::test]
async fn bounded_an_endpoint_without_tls_is_not_spoken_to_with_it() {
    let etcd = Box::pin(Etcd::start()).await;
    let ours = Authority::new("ours");
    let options = impatient(format!("https://localhost:{}", etcd.address().rsplit_once(':').unwrap().1));
    failure(Options { tls: trusting(&ours, None), ..options }).await;
}

// Endpoints that are not etcd.

/// Listens on loopback and runs `serve` for every connection.
async fn listener<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection));
        }
    });
    endpoint
}

#[tokio::test]
async fn bounded_a_port_without_a_listener_is_an_error() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    failure(impatient(format!("http://{closed}"))).await;
}

#[tokio::test]
async fn bounded_a_web_server_is_no_etcd() {
    let endpoint = listener(async |mut connection: TcpStream| {
        let mut request = [0; 1024];
        let _ = connection.read(&mut request).await;
        let _ =
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        let _ = connection.shutdown().await;
        while connection.read(&mut request).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let (not_etcd, _) = failure(impatient(endpoint)).await;
    assert!(not_etcd.is_not_etcd() && !not_etcd.is_denied(), "{not_etcd}");
}

#[tokio::test]
async fn bounded_a_port_that_closes_at_once_is_an_error() {
    let endpoint = listener(async |connection| drop(connection)).await;
    failure(impatient(endpoint)).await;
}

#[tokio::test]
async fn bounded_a_port_that_never_speaks_is_an_error() {
    let endpoint = listener(async |mut connection: TcpStream| {
        let mut swallowed = [0; 1024];
        while connection.read(&mut swallowed).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    failure(impatient(endpoint)).await;
}

#[tokio::test]
async fn bounded_another_grpc_server_is_no_etcd() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
    let (not_etcd, took) = failure(impatient(endpoint)).await;
    assert!(not_etcd.is_not_etcd(), "{not_etcd}");
    assert!(took <= SLACK, "what is no etcd is told at once, not after {took:?}");
}

#[tokio::test]
async fn self_healing_past_an_endpoint_that_is_no_etcd() {
    let etcd = Box::pin(Etcd::start()).await;
    let silent = listener(async |mut connection: TcpStream| {
        let mut swallowed = [0; 1024];
        while connection.read(&mut swallowed).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let closing = listener(async |connection| drop(connection)).await;
    let options = options([silent, closing, etcd.endpoint()]);
    let begun = Instant::now();
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    assert!(begun.elapsed() <= 2 * SLACK + SOON / 4, "{:?}", begun.elapsed());
    fleet.is_renewed(2).await;
    fleet.saw_no_delete().await;
}

#[tokio::test]
async fn visible_on_an_etcd_without_users_for_a_host_that_has_one() {
    let etcd = Box::pin(Etcd::start()).await;
    let options = Options { credentials: as_user("alice", PASSWORD), ..options([etcd.endpoint()]) };
    Fleet::start(options, etcd.client().await).await.stands().await;
}
