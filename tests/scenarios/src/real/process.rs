//! One etcd process: found, started, signalled, and ended with the test.

use std::env;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running etcd and its guard.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// A shell that kills etcd when its input ends. The input ends with the test process, even if that crashes.
    guard: Child,
}

impl Process {
    /// Starts etcd with these arguments; its log is appended to a file.
    pub(super) fn spawn(arguments: &[String], log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log file is in our own directory");
        let second = log.try_clone().expect("a file handle can be doubled");
        let mut etcd = Command::new(binary());
        // etcd also reads flags from such variables; only the test's own flags may count.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("ETCD") && name_text != "ETCD_UNSUPPORTED_ARCH" {
                etcd.env_remove(&name);
            }
        }
        let child = etcd
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second)
            .spawn()
            .expect("the etcd binary can be started");
        let guard = Command::new("sh")
            .args(["-c", "read _; kill -9 \"$0\"", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        Self { child, guard }
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`.
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.child.id().to_string()])
            .status()
            .expect("a shell can be started");
        assert!(sent.success(), "etcd is not there to be signalled");
    }
}

impl Drop for Process {
    /// Ends the guard first: it must not kill another process with a reused number.
    fn drop(&mut self) {
        for process in [&mut self.guard, &mut self.child] {
            // The process may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The etcd under test: `$ETCD`, or the first etcd on the PATH.
fn binary() -> PathBuf {
    if let Some(named) = env::var_os("ETCD").filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "ETCD names {}, which is not there", named.display());
        return named;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join("etcd"))
        .find(|candidate| candidate.is_file())
        .expect("install etcd: `apt-get install etcd-server`, or run `make setup`")
}

/// Distinct ports that were free a moment ago.
pub(super) fn free_ports<const N: usize>() -> [u16; N] {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: io::Result<Vec<TcpListener>> = (0..N).map(|_| listen()).collect();
    let listeners = listeners.expect("loopback has free ports");
    std::array::from_fn(|index| {
        let address = listeners[index].local_addr();
        address.expect("a listener has an address").port()
    })
}
