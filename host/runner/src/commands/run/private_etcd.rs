//! The private etcd of `run --dev`: the real one, on free loopback ports, gone with the host however the host ends.

use std::{
    fs::Permissions,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::{
    error::{Failure, one_line},
    process::dev_host::{DevHost, FOLDER, Published},
};

/// Longest wait for the end of etcd.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of etcd's log that are kept for the case that it ends by itself.
const LAST_WORDS: usize = 1024;

/// Runs etcd until standard input ends, which it does when the host ends, even by SIGKILL; then removes its folder.
const KEEPER: &str = r#"
folder="$1"; shift
exec 3<&0 4>&2 2>/dev/null
"$@" 3<&- </dev/null 2>&4 4>&- & etcd=$!
exec 4>&-
{ cat <&3 >/dev/null; kill -KILL $etcd; } &
wait $etcd
code=$?
rm -rf "$folder"
exit $code
"#;

/// An etcd that ends with this value.
pub(crate) struct PrivateEtcd {
    endpoint: String,
    keeper: Child,
    alive: Option<ChildStdin>,
    /// Lets `leasehold ls`, `watch` and `doctor` find this etcd.
    published: Option<Published>,
    /// Removed by the keeper, and again here in case that the keeper was killed.
    _folder: TempDir,
}

impl PrivateEtcd {
    /// Starts it, for the services of a configuration file if there is one. Does not wait until it answers.
    pub(crate) fn start(file: Option<PathBuf>) -> Result<Self, Failure> {
        let failed = |error| Failure::other(format!("cannot start the private etcd: {error}"));
        if !on_path("etcd") {
            return Err(Failure::other(
                "--dev needs the etcd binary on the PATH; install it with `apt install etcd-server`, \
                 `brew install etcd`, or from etcd's own releases",
            ));
        }
        let folder = tempfile::Builder::new()
            .prefix(FOLDER)
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(failed)?;
        let (clients, peers) = free_ports().map_err(failed)?;
        let endpoint = format!("http://127.0.0.1:{clients}");
        let peer = format!("http://127.0.0.1:{peers}");
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "leasehold-dev"])
            .arg(folder.path())
            .arg("etcd")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            // A single member elects itself, without a long election timeout, and its data need not survive a power cut.
            .args(["--heartbeat-interval", "10", "--election-timeout", "100", "--unsafe-no-fsync"])
            // etcd would notify systemd in the host's name.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Out of the terminal's group: Ctrl-C is for the host, which still needs etcd to end in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let alive = keeper.stdin.take();
        let host = DevHost { pid: std::process::id(), endpoint, file };
        let published = host.publish(folder.path());
        let published = published.inspect_err(|error| tracing::debug!("the private etcd has no record: {error}")).ok();
        Ok(Self { endpoint: host.endpoint, keeper, alive, published, _folder: folder })
    }

    /// Logs where it listens, and the commands to look into it.
    pub(crate) fn introduce(&self) {
        let endpoint = &self.endpoint;
        let commands = match &self.published {
            Some(_) => "leasehold watch, leasehold ls, leasehold doctor".to_owned(),
            None => format!("leasehold watch --etcd {endpoint}"),
        };
        tracing::info!("private etcd: {endpoint}, empty now and gone with this host");
        tracing::info!("look into it from another terminal: {commands}");
        tracing::info!("or: ETCDCTL_API=3 etcdctl --endpoints={endpoint} get / --prefix");
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Waits until etcd ends by itself, which it should not, and returns the reason.
    pub(crate) async fn ended(&mut self) -> Failure {
        let mut last = Vec::new();
        if let Some(stderr) = self.keeper.stderr.as_mut() {
            let mut piece = [0; LAST_WORDS];
            while let Ok(read @ 1..) = stderr.read(&mut piece).await {
                last.extend_from_slice(&piece[..read]);
                last.drain(..last.len().saturating_sub(LAST_WORDS));
            }
        }
        let last = one_line(String::from_utf8_lossy(&last).lines().last().unwrap_or_default());
        let status = self.keeper.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        Failure::other(format!("the private etcd ended by itself ({status}): {last}"))
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        self.alive = None;
        if timeout(STOP_TIMEOUT, self.keeper.wait()).await.is_err() {
            tracing::warn!("the private etcd does not end");
        }
    }
}

/// Two free ports.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let (one, other) = (TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

fn on_path(binary: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(binary).is_file())
}
