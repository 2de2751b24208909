//! A real etcd for one test: its own process, ports, data and certificates, which end with the test.

mod changes;
mod cluster;
mod process;
mod tls;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tempfile::TempDir;

use self::process::{Process, free_ports};
use crate::wait::wait_for;

pub use self::changes::{Change, changes, revision};
pub use self::cluster::Cluster;
pub use self::tls::{Authority, Pair};

/// Timeout for the first response of a started etcd; a loaded machine is slow.
const START: Duration = Duration::from_secs(60);
/// Attempts to start if another process took a port meanwhile.
const TRIES: usize = 5;

/// Options of an etcd for a test.
#[derive(Clone, Debug, Default)]
pub struct Options {
    user: Option<(String, String)>,
    token_ttl: Option<Duration>,
    server: Option<Pair>,
    client_authority: Option<String>,
    quota: Option<u64>,
    max_request: Option<u64>,
}

impl Options {
    /// Turns authentication on. The user gets the role root, as `root` always has.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Lifetime of an unused token, in whole seconds; etcd's default is 300 s.
    #[must_use]
    pub fn token_ttl(mut self, ttl: Duration) -> Self {
        self.token_ttl = Some(ttl);
        self
    }

    /// Serves TLS with this certificate.
    #[must_use]
    pub fn tls(mut self, server: Pair) -> Self {
        self.server = Some(server);
        self
    }

    /// Requires a client certificate of this authority (PEM).
    #[must_use]
    pub fn mutual_tls(mut self, client_authority: String) -> Self {
        self.client_authority = Some(client_authority);
        self
    }

    /// Refuses puts beyond this size of the database (`--quota-backend-bytes`).
    #[must_use]
    pub fn quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Refuses requests beyond this size (`--max-request-bytes`); etcd's default is 1.5 MiB.
    #[must_use]
    pub fn max_request(mut self, bytes: u64) -> Self {
        self.max_request = Some(bytes);
        self
    }

    /// Starts etcd and waits until it responds.
    pub async fn start(self) -> Etcd {
        for _ in 0..TRIES {
            let mut etcd = Etcd::new(self.clone());
            if etcd.launch().await {
                return etcd;
            }
        }
        panic!("etcd did not start in {TRIES} tries, each time on other ports");
    }
}

/// One real etcd.
#[derive(Debug)]
pub struct Etcd {
    options: Options,
    name: String,
    directory: TempDir,
    process: Option<Process>,
    /// Port for tests.
    port: u16,
    /// Port for the harness, always in plain text.
    control: u16,
    peer: u16,
}

impl Etcd {
    /// Starts an etcd with default options and waits until it responds.
    pub async fn start() -> Self {
        Options::default().start().await
    }

    /// Options for other kinds of etcd: `Etcd::options().user("root", "secret").start()`.
    pub fn options() -> Options {
        Options::default()
    }

    /// Endpoint of this etcd: `http://127.0.0.1:port`, or `https://localhost:port` with TLS.
    pub fn endpoint(&self) -> String {
        match self.options.server {
            Some(_) => format!("https://localhost:{}", self.port),
            None => format!("http://127.0.0.1:{}", self.port),
        }
    }

    /// The address for a proxy: `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client of the harness: in plain text, with the user if there is one, and with a deadline on every call.
    pub async fn client(&self) -> Client {
        let user = self.options.user.as_ref();
        self.connect(user).await.expect("etcd answers its harness")
    }

    /// Kills etcd (SIGKILL). Its ports and its data stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills etcd if it runs, starts it on the same ports and waits until it responds. Without its data it is a new etcd,
    /// with the same user.
    ///
    /// # Panics
    /// If another process holds a port.
    pub async fn restart(&mut self, keep_data: bool) {
        self.kill();
        if !keep_data {
            let data = self.data();
            fs::remove_dir_all(data).expect("the data directory is our own");
        }
        for _ in 0..TRIES {
            if self.launch().await {
                return;
            }
        }
        panic!("etcd did not come back on its ports:\n{}", self.log());
    }

    /// Suspends etcd (SIGSTOP).
    ///
    /// # Panics
    /// If etcd does not run.
    pub fn pause(&self) {
        self.running().signal("STOP");
    }

    /// Resumes etcd (SIGCONT).
    ///
    /// # Panics
    /// If etcd does not run.
    pub fn resume(&self) {
        self.running().signal("CONT");
    }

    /// The log of this etcd.
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn new(options: Options) -> Self {
        let [port, control, peer] = free_ports();
        let directory = TempDir::with_prefix("leasehold-etcd-").expect("a temporary directory");
        Self { options, name: format!("alone-{port}"), directory, process: None, port, control, peer }
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("etcd runs")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts the process; returns false if it ended, for instance because a port is taken.
    async fn launch(&mut self) -> bool {
        let arguments = self.arguments();
        let fresh = !self.data().exists();
        let process = Process::spawn(&arguments, &self.directory.path().join("log"));
        self.process = Some(process);
        if !self.answers().await {
            self.process = None;
            return false;
        }
        if fresh && let Some((user, password)) = self.options.user.clone() {
            Box::pin(self.enable_auth(&user, &password)).await.expect("a new etcd accepts a user");
        }
        true
    }

    fn arguments(&self) -> Vec<String> {
        let secure = self.options.server.is_some();
        let host = if secure { "https://127.0.0.1" } else { "http://127.0.0.1" };
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let flag = |name: &str, value: String| format!("--{name}={value}");
        let mut arguments = vec![
            flag("name", self.name.clone()),
            flag("data-dir", self.data().display().to_string()),
            flag("logger", "zap".to_owned()),
            flag("listen-client-urls", format!("{host}:{},http://127.0.0.1:{}", self.port, self.control)),
            flag("advertise-client-urls", format!("{host}:{}", self.port)),
            flag("listen-peer-urls", peer.clone()),
            flag("initial-advertise-peer-urls", peer.clone()),
            flag("initial-cluster", format!("{}={peer}", self.name)),
        ];
        if let Some(ttl) = self.options.token_ttl {
            arguments.push(flag("auth-token-ttl", ttl.as_secs().to_string()));
        }
        if let Some(quota) = self.options.quota {
            arguments.push(flag("quota-backend-bytes", quota.to_string()));
        }
        if let Some(bytes) = self.options.max_request {
            arguments.push(flag("max-request-bytes", bytes.to_string()));
        }
        if let Some(server) = &self.options.server {
            arguments.push(flag("cert-file", self.file("server.pem", &server.certificate)));
            arguments.push(flag("key-file", self.file("server.key", &server.key)));
        }
        if let Some(authority) = &self.options.client_authority {
            arguments.push(flag("trusted-ca-file", self.file("clients.pem", authority)));
            arguments.push(flag("client-cert-auth", "true".to_owned()));
        }
        arguments
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("the directory is our own");
        path.display().to_string()
    }

    /// Waits until it has a leader; returns false if its process ended first. Another etcd on the port does not count.
    async fn answers(&mut self) -> bool {
        let mut alive = true;
        wait_for("etcd answers", START, async || {
            alive = self.process.as_mut().is_some_and(Process::is_running);
            !alive || Box::pin(self.is_ready()).await
        })
        .await;
        alive
    }

    async fn is_ready(&self) -> bool {
        let client = match self.connect(self.options.user.as_ref()).await {
            // Authentication is not enabled yet.
            Err(Error::GRpcStatus(_)) => self.connect(None).await,
            other => other,
        };
        let Ok(mut client) = client else { return false };
        let led = client.status().await.is_ok_and(|status| status.leader() != 0);
        led && client
            .member_list()
            .await
            .is_ok_and(|list| list.members().iter().any(|member| member.name() == self.name))
    }

    async fn connect(&self, user: Option<&(String, String)>) -> Result<Client, Error> {
        let endpoint = format!("http://127.0.0.1:{}", self.control);
        connect(&[endpoint], user).await
    }

    async fn enable_auth(&self, user: &str, password: &str) -> Result<(), Error> {
        let mut client = self.connect(None).await?;
        client.role_add("root").await?;
        client.user_add("root", password, None).await?;
        client.user_grant_role("root", "root").await?;
        if user != "root" {
            client.user_add(user, password, None).await?;
            client.user_grant_role(user, "root").await?;
        }
        client.auth_enable().await?;
        Ok(())
    }
}

/// A client with a deadline on every call.
async fn connect(endpoints: &[String], user: Option<&(String, String)>) -> Result<Client, Error> {
    let mut options =
        ConnectOptions::new().with_timeout(Duration::from_secs(10)).with_connect_timeout(Duration::from_secs(5));
    if let Some((name, password)) = user {
        options = options.with_user(name, password).with_auto_token_refresh(true);
    }
    Client::connect(endpoints, Some(options)).await
}
