//! The command that `leasehold keep` runs: started, signalled, ended.

use std::{
    ffi::OsString,
    future::pending,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::error::Failure;

/// A running command with the processes that it has started: signals reach all of them.
pub(super) struct Running {
    child: Child,
    group: Pid,
    shown: String,
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

    pub(super) fn signal(&self, signal: Signal) {
        // It may be ending at this moment.
        let _ = kill_process_group(self.group, signal);
    }

    /// Signals it, and waits for its end; kills it if it takes longer than `within`.
    pub(super) async fn end(&mut self, signal: Signal, within: Duration) -> io::Result<ExitStatus> {
        self.signal(signal);
        if let Ok(ended) = timeout(within, self.ends()).await {
            return ended;
        }
        tracing::warn!("{} has not ended within {within:?} after its signal, and is killed", self.shown);
        self.signal(Signal::KILL);
        self.ends().await
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
