//! The command that `leasehold keep` runs: started, signalled, ended.

use std::{
    ffi::OsString,
    future::pending,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::error::Failure;

/// Interval at which the end of a group of processes is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// A running command with the processes that it has started: signals reach all of them.
pub(super) struct Running {
    child: Child,
    group: Pid,
    shown: String,
}

/// The command and the processes that it has started.
#[derive(Clone, Copy)]
pub(super) struct Group(Pid);

impl Group {
    pub(super) fn signal(self, signal: Signal) {
        // It may be ending at this moment.
        let _ = kill_process_group(self.0, signal);
    }

    /// Waits until none of them is left. The command itself has ended.
    async fn is_gone(self) {
        loop {
            // Orphans of the first process of a container are its own to reap.
            while matches!(waitpgid(self.0, WaitOptions::NOHANG), Ok(Some(_))) {}
            if test_kill_process_group(self.0).is_err() {
                return;
            }
            sleep(LOOK).await;
        }
    }
}

impl Running {
    /// Starts the command; `None` for no command.
    pub(super) fn start(command: &[OsString]) -> Result<Option<Self>, Failure> {
        let Some((program, arguments)) = command.split_first() else { return Ok(None) };
        let shown = program.display().to_string();
        let failed = |error: io::Error| Failure::usage(format!("{shown}: cannot be started: {error}"));
        let child = Command::new(program)
            .args(arguments)
            // Of its own: Ctrl-C reaches the command after its key has left etcd, and not before.
            .process_group(0)
            .stdin(Stdio::null())
            .env_remove("LEASEHOLD_ETCD_PASSWORD")
            .env_remove("ETCDCTL_PASSWORD")
            // Readiness is that of the registration.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group = group.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok(Some(Self { child, group, shown }))
    }

    /// Waits for its end.
    pub(super) async fn ends(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// The processes that signals reach.
    pub(super) fn group(&self) -> Group {
        Group(self.group)
    }

    /// Signals it, and waits for its end, and that of every process that it has started; kills those that take longer than
    /// `within`. Returns the status of the command itself.
    pub(super) async fn end(&mut self, signal: Signal, within: Duration) -> io::Result<ExitStatus> {
        let (group, mut status) = (self.group(), None);
        group.signal(signal);
        let all_end = async {
            status = Some(self.child.wait().await);
            group.is_gone().await;
        };
        if timeout(within, all_end).await.is_err() {
            tracing::warn!("{} has not ended within {within:?} after its signal, and is killed", self.shown);
            group.signal(Signal::KILL);
        }
        match status {
            Some(status) => status,
            None => self.ends().await,
        }
    }

    /// The end as that of this process: with the exit code of the command, or that of a shell for a signal.
    pub(super) fn outcome(&self, ended: io::Result<ExitStatus>) -> Result<(), Failure> {
        let status = ended.map_err(|error| Failure::other(format!("{}: {error}", self.shown)))?;
        let code = status.code().or_else(|| Some(128 + status.signal()?)).and_then(|code| u8::try_from(code).ok());
        match code {
            Some(0) => Ok(()),
            code => Err(Failure::command(format!("{} has ended: {status}", self.shown), code.unwrap_or(1))),
        }
    }
}

/// The end of a command that may not be there: then never.
pub(super) async fn ended(running: &mut Option<Running>) -> io::Result<ExitStatus> {
    match running {
        Some(running) => running.ends().await,
        None => pending().await,
    }
}
