//! `leasehold keep`: any process kept in etcd, from its first successful check to its end.

mod check;
mod command;

use std::{future::pending, time::Duration};

use anyhow::Context;
use leasehold::{Error, Registrar, Registration, ServerNode};
use rustix::process::Signal;
use tokio::{
    signal::unix::{self, SignalKind, signal},
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;

use self::{
    check::Check,
    command::{Running, ended},
};
use crate::{
    cli::KeepArgs,
    connect,
    error::Failure,
    process::{signals::ECHO, systemd},
};

/// First pause between two attempts to register; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Time after which the same failure is logged again.
const REMIND: Duration = Duration::from_secs(60);
/// Longest wait for the revocation of the lease; it ends with its time to live otherwise.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the node in etcd until a signal or the end of the command, whose exit code is that of this process.
pub(crate) async fn keep(args: KeepArgs) -> Result<(), Failure> {
    let (node, check) = (args.node()?, Check::of(&args.check)?);
    let registrar = connect::start(&args.registrar()?)?;
    let mut signals = Signals::listen()?;
    let mut running = Running::start(&args.command)?;
    let tasks = TaskTracker::new();
    let mut kept = Kept { registrar: registrar.clone(), node, check, registration: None, tasks: tasks.clone() };

    let group = running.as_ref().map(Running::group);
    let mut request = None;
    let outcome = {
        let life = kept.live();
        tokio::pin!(life);
        loop {
            tokio::select! {
                biased;
                status = ended(&mut running) => break Ok(Some(status)),
                signal = signals.next() => match group {
                    _ if Signals::ends(signal) => {
                        request = Some((signal, Instant::now()));
                        break Ok(None);
                    }
                    Some(group) => group.signal(signal),
                    None => tracing::info!("{signal:?} is for a command, and there is none"),
                },
                failure = life.as_mut() => break Err(failure),
            }
        }
    };
    systemd::stopping(&tasks);
    kept.take_back().await;
    let outcome = match (outcome, &mut running) {
        (Ok(Some(status)), Some(running)) => running.outcome(status),
        (outcome, Some(running)) => {
            let signal = signals.settle(request, args.settle_time.0, running).await;
            let group = running.group();
            let status = {
                let ending = running.end(signal, args.stop_timeout.0);
                tokio::pin!(ending);
                loop {
                    tokio::select! {
                        status = ending.as_mut() => break status,
                        signal = signals.next() => group.signal(signal),
                    }
                }
            };
            outcome.and_then(|_| running.outcome(status))
        }
        (outcome, None) => outcome.map(drop),
    };
    if registrar.shutdown(REVOKE_TIMEOUT).await.is_err() {
        tracing::warn!("the lease was not revoked, and ends with its time to live");
    }
    outcome
}

/// The node with its registration.
struct Kept {
    registrar: Registrar,
    node: ServerNode,
    check: Option<Check>,
    registration: Option<Registration>,
    tasks: TaskTracker,
}

impl Kept {
    /// Registers while the check succeeds, and withdraws while it fails. Ends with a failure that another attempt cannot mend.
    async fn live(&mut self) -> Failure {
        loop {
            if let Some(check) = &self.check {
                check.is_well().await;
            }
            let registered = tokio::select! {
                registered = self.register() => registered,
                why = self.fails() => {
                    tracing::warn!(service = %self.node.name, "not registered: {why}");
                    continue;
                }
            };
            match registered {
                Ok(registration) => self.registration = Some(registration),
                Err(failure) => return failure,
            }
            systemd::ready(&self.tasks);
            let why = self.fails().await;
            tracing::warn!(event = "withdrawn", service = %self.node.name, "withdrawn: {why}");
            self.take_back().await;
        }
    }

    /// Waits until the check fails; without one, for good.
    async fn fails(&self) -> String {
        match &self.check {
            Some(check) => check.has_failed().await,
            None => pending().await,
        }
    }

    /// Registers; tries for as long as etcd does not answer, refuses, or has the key for another host.
    async fn register(&self) -> Result<Registration, Failure> {
        let (mut pause, mut known, mut due) = (FIRST_PAUSE, String::new(), Instant::now());
        loop {
            let error = match self.registrar.register(self.node.clone()).await {
                Ok(registration) => {
                    let key = registration.key();
                    tracing::info!(event = "registered", service = %self.node.name, %key, "registered as {key}");
                    return Ok(registration);
                }
                Err(error @ (Error::Invalid(_) | Error::Quota { .. } | Error::Duplicate(_) | Error::Ended)) => {
                    return Err(Failure::usage(error));
                }
                Err(error) => error.to_string(),
            };
            if error != known || Instant::now() >= due {
                tracing::warn!(service = %self.node.name, "not registered yet: {error}");
                (known, due) = (error, Instant::now() + REMIND);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes the keys out of etcd. The registrar goes on where etcd does not answer.
    async fn take_back(&mut self) {
        if let Some(registration) = self.registration.take() {
            match registration.stop().await {
                Ok(()) => tracing::info!(event = "stopped", service = %self.node.name, "the key is deleted"),
                Err(error) => {
                    tracing::warn!(service = %self.node.name, "the key may stay until its lease ends: {error}");
                }
            }
        }
    }
}

/// Signals to this process.
struct Signals([(Signal, unix::Signal); 6]);

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self([
            (Signal::TERM, listen(SignalKind::terminate())?),
            (Signal::INT, listen(SignalKind::interrupt())?),
            (Signal::QUIT, listen(SignalKind::quit())?),
            (Signal::HUP, listen(SignalKind::hangup())?),
            (Signal::USR1, listen(SignalKind::user_defined1())?),
            (Signal::USR2, listen(SignalKind::user_defined2())?),
        ]))
    }

    /// Returns true for a signal that requests the end; the others are the command's.
    fn ends(signal: Signal) -> bool {
        matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT)
    }

    /// Waits until clients have noticed the end, or a second signal requests it. Returns the signal for the command.
    async fn settle(&mut self, request: Option<(Signal, Instant)>, time: Duration, running: &Running) -> Signal {
        let settled = sleep(time);
        tokio::pin!(settled);
        let first = request.map_or(Signal::TERM, |(signal, _)| signal);
        loop {
            tokio::select! {
                () = settled.as_mut() => return first,
                signal = self.next() => {
                    let is_echo = request.is_some_and(|(first, at)| first == signal && at.elapsed() < ECHO);
                    if !Self::ends(signal) {
                        running.group().signal(signal);
                    } else if !is_echo {
                        return signal;
                    }
                }
            }
        }
    }

    async fn next(&mut self) -> Signal {
        let signals = self.0.iter_mut().map(|(signal, received)| {
            Box::pin(async {
                received.recv().await;
                *signal
            })
        });
        futures::future::select_all(signals).await.0
    }
}
