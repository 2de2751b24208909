//! Credentials that are rotated while they are in use: passwords, certificates, authorities.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, Once},
    time::Duration,
};

use leasehold::{Credentials, EventKind, Options, Registrar, ServerNode, Source, State, Tls, Weight};
use leasehold_scenarios::{
    fleet::{Fleet, options},
    proxy::{Mode, Proxy},
    real::{Authority, Etcd, Pair},
    sim::{FaultPlan, SimEtcd},
    wait_for,
    world::SOON,
};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// A renewal interval, and as much again for a machine that does other things too.
const PROMPT: Duration = Duration::from_secs(2);
/// Long enough for several attempts with what is refused.
const WHILE: Duration = Duration::from_secs(4);

/// Log of all registrars in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the log from now on.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_writer(|| Log).with_ansi(false).init());
}

/// The warnings with these words that name an endpoint.
fn warnings(endpoint: &str, words: &str) -> Vec<String> {
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let all = log.lines().filter(|line| line.contains(" WARN ") && line.contains(endpoint) && line.contains(words));
    all.map(str::to_owned).collect()
}

fn rename_into(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

#[expect(clippy::print_stdout, reason = "figures are for whoever reads the run")]
async fn is_prompt(fleet: &mut Fleet, what: &str) {
    let took = fleet.stands().await;
    println!("back after {what}: {took:.2?}");
    assert!(took <= PROMPT, "{what}: took {took:?}");
}

#[tokio::test]
async fn self_healing_once_the_password_file_holds_the_new_password() {
    listen();
    let etcd = Box::pin(Etcd::options().user("alice", "one").start()).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "one\n").unwrap();
    let credentials = Some(Credentials { user: "alice".to_owned(), password: file.clone().into() });
    let options = Options { credentials, ..options([etcd.endpoint()]) };
    let mut root = etcd.client().await;
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    for password in ["two", "three"] {
        root.user_change_password("alice", password).await.unwrap();
        root.update_user(Some(("alice".to_owned(), password.to_owned()))).await.unwrap();
        fleet.look_through(root.clone());
        let key = fleet.registrations[0].key().to_string();
        root.delete(key.as_str(), None).await.unwrap();
        wait_for("the old password is refused", SOON, async || !warnings(&etcd.endpoint(), "sign-in").is_empty()).await;
        sleep(WHILE).await;
        let logged = warnings(&etcd.endpoint(), "sign-in");
        let (is_first, cause) = (password == "two", "authentication failed, invalid user ID or password");
        assert_eq!(logged.len(), if is_first { 1 } else { 2 }, "{logged:#?}");
        assert!(logged.iter().all(|line| line.contains(cause) && line.contains(file.to_str().unwrap())), "{logged:#?}");
        assert!(fleet.leases().await.len() < fleet.registrations.len(), "it was not refused");
        rename_into(&file, password);
        is_prompt(&mut fleet, "the password was rotated").await;
    }
}

/// A simulated etcd on which the user has this password, a host that was given `one`, and the way to give it another.
async fn simulated(password: &str) -> (SimEtcd, Registrar, watch::Sender<Vec<u8>>) {
    let etcd = SimEtcd::new(1);
    etcd.require_user("alice", password, Duration::from_secs(300));
    let (give, latest) = watch::channel(b"one".to_vec());
    let credentials = Some(Credentials { user: "alice".to_owned(), password: Source::Given(latest) });
    let dials = vec![(std::sync::Arc::from("sim"), etcd.dial("host"))];
    let registrar = Registrar::start_over(Options { credentials, ..options(["sim"]) }, dials).await.unwrap();
    (etcd, registrar, give)
}

#[tokio::test(start_paused = true)]
async fn a_password_that_the_embedder_gives_is_used_from_then_on() {
    let (etcd, registrar, give) = simulated("one").await;
    let registration = registrar.register(ServerNode::new("user", "127.0.0.1:1").unwrap()).await.unwrap();
    etcd.set_password("alice", "two");
    registration.set_weight(Weight::try_from(9).unwrap()).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let written = || String::from_utf8(etcd.get(registration.key()).unwrap().value.to_vec()).unwrap().contains("\"9\"");
    assert!(!written(), "the old password was accepted");
    let refused = etcd.count("host", leasehold_scenarios::sim::Call::Authenticate);
    assert!(refused <= 30, "etcd was asked for {refused} hashes in 10 s");
    give.send_replace(b"two".to_vec());
    let begun = Instant::now();
    wait_for("the weight is written", SOON, async || written()).await;
    assert!(begun.elapsed() <= Duration::from_secs(1), "{:?}", begun.elapsed());
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
}

/// etcd has another password and forgets its tokens in one moment; a call that is refused then signs in with the new password
/// and is made again, so that its registration is never suspect.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_forgotten_after_a_rotation_costs_no_call() {
    let (etcd, registrar, give) = simulated("one").await;
    let registration = registrar.register(ServerNode::new("user", "127.0.0.1:1").unwrap()).await.unwrap();
    let mut events = registrar.events();
    etcd.set_password("alice", "two");
    give.send_replace(b"two".to_vec());
    sleep(Duration::from_secs(30)).await;
    assert_eq!(registration.status().state, State::Registered);
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event.kind, EventKind::Suspect | EventKind::Refused | EventKind::Recovering), "{event:?}");
    }
    assert_eq!(etcd.count("host", leasehold_scenarios::sim::Call::Authenticate), 2);
}

/// A password that is rotated while etcd is about to refuse the former one is sent at once.
#[tokio::test(start_paused = true)]
async fn a_password_that_changes_during_its_refusal_is_sent_at_once() {
    let (etcd, registrar, give) = simulated("two").await;
    let held = Duration::from_millis(100);
    etcd.set_faults("host", FaultPlan { latency: held..=held, ..FaultPlan::none() });
    let rotate = async {
        sleep(held / 2).await;
        give.send_replace(b"two".to_vec());
    };
    let (registered, ()) = tokio::join!(registrar.register(ServerNode::new("user", "127.0.0.1:1").unwrap()), rotate);
    registered.unwrap();
    assert_eq!(etcd.count("host", leasehold_scenarios::sim::Call::Authenticate), 2);
}

/// Sign-ins are shared. A call that joins one whose requests were lost before, shortly before the time of that is over, signs in anew.
#[tokio::test(start_paused = true)]
async fn a_sign_in_that_was_lost_fails_no_later_call() {
    let (etcd, registrar, _give) = simulated("one").await;
    etcd.set_faults("host", FaultPlan { answer_lost: 1.0, ..FaultPlan::none() });
    let first = registrar.reach();
    let second = async {
        sleep(Duration::from_millis(4900)).await;
        etcd.set_faults("host", FaultPlan::none());
        registrar.reach().await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err(), "its requests were lost");
    second.unwrap();
}

/// The TLS files of a host.
struct Files(TempDir);

impl Files {
    fn new(authority: &Authority, shown: &Pair) -> Self {
        let files = Self(TempDir::new().unwrap());
        files.trust(authority);
        files.show(shown);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn trust(&self, authority: &Authority) {
        rename_into(&self.path("ca.pem"), &authority.certificate());
    }

    fn show(&self, pair: &Pair) {
        rename_into(&self.path("cert.pem"), &pair.certificate);
        rename_into(&self.path("key.pem"), &pair.key);
    }

    fn tls(&self) -> Tls {
        let source = |name| Source::from(self.path(name));
        let identity_pem = Some((source("cert.pem"), source("key.pem")));
        Tls { ca_pem: Some(source("ca.pem")), identity_pem, server_name: None }
    }
}

#[tokio::test]
async fn self_healing_once_the_tls_files_are_right_again() {
    listen();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let etcd = Box::pin(Etcd::options().tls(ours.server()).mutual_tls(ours.certificate()).start()).await;
    let proxy = Proxy::start(&etcd.address()).await;
    let files = Files::new(&ours, &ours.client("host"));
    let endpoint = format!("https://{}", proxy.address());
    let options = Options { tls: files.tls(), ..options([endpoint.clone()]) };
    let mut fleet = Fleet::start(options, etcd.client().await).await;
    let missing = format!("cannot read {}", files.path("key.pem").display());
    let spoil: [(&str, &dyn Fn()); 4] = [
        (&format!("our client certificate {} expired on Sat, 01 Jan 2005", files.path("cert.pem").display()), &|| {
            files.show(&ours.expired_client("host"));
        }),
        (&format!("their certificate is not signed by the authority in {}", files.path("ca.pem").display()), &|| {
            files.trust(&theirs);
        }),
        ("is not the key of the certificate in", &|| rename_into(&files.path("key.pem"), &ours.client("host").key)),
        (&missing, &|| fs::remove_file(files.path("key.pem")).unwrap()),
    ];
    for (cause, spoil) in spoil {
        let count = || warnings(&endpoint, "no connection to etcd").iter().filter(|line| line.contains(cause)).count();
        // A connection between the renames of certificate and key, in the round before, had one of each.
        let before = count();
        spoil();
        // Connections that are open stay; a new one reads the files.
        fleet.is_renewed(1).await;
        proxy.set(Mode::Cut);
        fleet.is(State::Suspect).await;
        proxy.set(Mode::Pass);
        wait_for(cause, SOON, async || count() > before).await;
        fleet.is_gone(SOON).await;
        assert_eq!(count() - before, 1, "{:#?}", warnings(&endpoint, "no connection to etcd"));
        files.trust(&ours);
        files.show(&ours.client("host"));
        is_prompt(&mut fleet, cause).await;
    }
}
