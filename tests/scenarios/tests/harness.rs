//! The harness of real processes: etcd with options, killed, suspended, restarted, clustered, behind a failing network.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use leasehold_scenarios::proxy::{Mode, Proxy};
use leasehold_scenarios::real::{Authority, Cluster, Etcd};
use leasehold_scenarios::wait_for;
use tokio::time::timeout;
use tonic::Code;

const SECOND: Duration = Duration::from_secs(1);
/// Time without a response that counts as silence.
const SILENCE: Duration = Duration::from_millis(700);
/// Timeout for slow operations on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn value(client: &mut Client, key: &str) -> Option<String> {
    let response = client.get(key, None).await.unwrap();
    response.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
}

async fn connect(endpoint: String, options: ConnectOptions) -> Result<Client, Error> {
    Client::connect([endpoint], Some(options)).await
}

#[tokio::test]
async fn a_restart_keeps_the_data_or_not() {
    let mut etcd = Box::pin(Etcd::start()).await;
    let mut client = etcd.client().await;
    client.put("a", "1", None).await.unwrap();
    etcd.kill();
    client.get("a", None).await.unwrap_err();
    Box::pin(etcd.restart(true)).await;
    assert_eq!(value(&mut client, "a").await.as_deref(), Some("1"));
    Box::pin(etcd.restart(false)).await;
    let mut client = etcd.client().await;
    assert_eq!(value(&mut client, "a").await, None);
}

#[tokio::test]
async fn a_suspended_etcd_responds_when_it_is_resumed() {
    let etcd = Box::pin(Etcd::start()).await;
    let mut client = etcd.client().await;
    etcd.pause();
    let mut writer = client.clone();
    let write = tokio::spawn(async move { writer.put("a", "1", None).await });
    timeout(SILENCE, client.get("a", None)).await.unwrap_err();
    etcd.resume();
    write.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_user_is_there_again_after_the_data_is_lost() {
    let options = Etcd::options().user("alice", "secret").token_ttl(5 * SECOND);
    let mut etcd = Box::pin(options.start()).await;
    for _ in 0..2 {
        let wrong = ConnectOptions::new().with_user("alice", "guess");
        connect(etcd.endpoint(), wrong).await.err().unwrap();
        let right = ConnectOptions::new().with_user("alice", "secret");
        let mut client = connect(etcd.endpoint(), right).await.unwrap();
        client.put("a", "1", None).await.unwrap();
        Box::pin(etcd.restart(false)).await;
    }
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_a_valid_certificate() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let trusting = |authority: &Authority| {
        let certificate = Certificate::from_pem(authority.certificate());
        ConnectOptions::new().with_tls(TlsOptions::new().ca_certificate(certificate))
    };
    let etcd = Box::pin(Etcd::options().tls(ours.server()).start()).await;
    let mut client = connect(etcd.endpoint(), trusting(&ours)).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    let mut client = connect(etcd.endpoint(), trusting(&theirs)).await.unwrap();
    client.put("a", "1", None).await.unwrap_err();
    let expired = Box::pin(Etcd::options().tls(ours.expired_server()).start()).await;
    let mut client = connect(expired.endpoint(), trusting(&ours)).await.unwrap();
    client.put("a", "1", None).await.unwrap_err();
}

#[tokio::test]
async fn mutual_tls_needs_a_client_certificate() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let options = Etcd::options().tls(ours.server()).mutual_tls(ours.certificate());
    let etcd = Box::pin(options.start()).await;
    let trust = || TlsOptions::new().ca_certificate(Certificate::from_pem(ours.certificate()));
    let as_client = |authority: &Authority| {
        let pair = authority.client("host");
        let identity = Identity::from_pem(pair.certificate, pair.key);
        ConnectOptions::new().with_tls(trust().identity(identity))
    };
    let mut client = connect(etcd.endpoint(), as_client(&ours)).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    let nameless = ConnectOptions::new().with_tls(trust());
    for options in [nameless, as_client(&theirs)] {
        let mut client = connect(etcd.endpoint(), options).await.unwrap();
        client.put("a", "1", None).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_quota_fills_up() {
    let etcd = Box::pin(Etcd::options().quota(2 * 1024 * 1024).start()).await;
    let mut client = etcd.client().await;
    let text = "x".repeat(512 * 1024);
    let mut refusal = None;
    wait_for("the quota is reached", PATIENCE, async || {
        refusal = client.put("a", text.clone(), None).await.err();
        refusal.is_some()
    })
    .await;
    let Some(Error::GRpcStatus(status)) = refusal else { panic!("{refusal:?}") };
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_cluster_survives_its_leader() {
    let mut cluster = Box::pin(Cluster::start(3)).await;
    let mut client = cluster.client().await;
    client.put("a", "1", None).await.unwrap();
    let old = Box::pin(cluster.leader()).await;
    cluster.kill(old);
    let new = Box::pin(cluster.leader()).await;
    assert_ne!(old, new);
    let mut reader = client.clone();
    wait_for("the others answer", PATIENCE, async || {
        let read = timeout(2 * SECOND, reader.get("a", None)).await;
        read.is_ok_and(|read| read.is_ok_and(|response| response.count() == 1))
    })
    .await;
    Box::pin(cluster.restart(old)).await;
    let members = [0, 1, 2];
    for member in members.into_iter().filter(|member| *member != old) {
        cluster.kill(member);
    }
    let write = timeout(SECOND, client.put("a", "2", None)).await;
    assert!(!matches!(write, Ok(Ok(_))), "one of three is no quorum");
    cluster.restart_without_waiting(new);
    Box::pin(cluster.leader()).await;
}

#[tokio::test]
async fn the_proxy_passes_cuts_and_passes_again() {
    let etcd = Box::pin(Etcd::start()).await;
    let proxy = Proxy::start(&etcd.address()).await;
    let mut client = connect(proxy.endpoint(), ConnectOptions::new()).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let (_keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
    proxy.set(Mode::Cut);
    answers.message().await.unwrap_err();
    let Err(Error::GRpcStatus(status)) = client.put("a", "1", None).await else {
        panic!("a cut connection answered");
    };
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "tcp connect error"));
    proxy.set(Mode::Pass);
    let mut writer = client.clone();
    wait_for("the proxy passes again", PATIENCE, async || writer.put("a", "1", None).await.is_ok()).await;
}

#[tokio::test]
async fn a_blackhole_drops_all_bytes_and_a_half_open_link_drops_responses() {
    let etcd = Box::pin(Etcd::start()).await;
    let proxy = Proxy::start(&etcd.address()).await;
    let mut direct = etcd.client().await;
    for (mode, arrives) in [(Mode::Blackhole, false), (Mode::HalfOpen, true)] {
        let mut client = connect(proxy.endpoint(), ConnectOptions::new()).await.unwrap();
        let lease = client.lease_grant(60, None).await.unwrap().id();
        let (_keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
        proxy.set(mode);
        let key = format!("{mode:?}");
        timeout(SILENCE, client.put(key.clone(), "1", None)).await.unwrap_err();
        assert_eq!(value(&mut direct, &key).await.is_some(), arrives, "{mode:?}");
        timeout(SILENCE, answers.message()).await.unwrap_err();
        proxy.set(Mode::Pass);
        answers.message().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_held_write_arrives_later_and_a_slow_link_is_slow() {
    let etcd = Box::pin(Etcd::start()).await;
    let proxy = Proxy::start(&etcd.address()).await;
    let mut direct = etcd.client().await;
    let mut client = connect(proxy.endpoint(), ConnectOptions::new()).await.unwrap();
    client.put("a", "1", None).await.unwrap();
    proxy.set(Mode::Hold);
    let mut writer = client.clone();
    let write = tokio::spawn(async move { writer.put("a", "2", None).await });
    tokio::time::sleep(SILENCE).await;
    assert_eq!(value(&mut direct, "a").await.as_deref(), Some("1"));
    proxy.set(Mode::Pass);
    write.await.unwrap().unwrap();
    assert_eq!(value(&mut direct, "a").await.as_deref(), Some("2"));
    proxy.set(Mode::Slow(SECOND / 4));
    let begun = std::time::Instant::now();
    client.put("a", "3", None).await.unwrap();
    assert!(begun.elapsed() >= SECOND / 2);
}
