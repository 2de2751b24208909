//! Signals to `leasehold keep`: those that request its end, and those for the command.

use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::{
    signal::unix::{self, SignalKind, signal},
    time::{Instant, sleep},
};

use super::command::Running;
use crate::process::signals::ECHO;

/// Signals to this process.
pub(super) struct Signals([(Signal, unix::Signal); 6]);

/// Name of a signal to this process.
pub(super) fn name(signal: Signal) -> &'static str {
    match signal {
        Signal::TERM => "SIGTERM",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::HUP => "SIGHUP",
        Signal::USR1 => "SIGUSR1",
        Signal::USR2 => "SIGUSR2",
        _ => "the signal",
    }
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
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
    pub(super) fn ends(signal: Signal) -> bool {
        matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT)
    }

    /// Waits until clients have noticed the end, or a second signal requests it. Returns the signal for the command.
    pub(super) async fn settle(
        &mut self,
        request: Option<(Signal, Instant)>,
        time: Duration,
        running: &Running,
    ) -> Signal {
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

    pub(super) async fn next(&mut self) -> Signal {
        let signals = self.0.iter_mut().map(|(signal, received)| {
            Box::pin(async {
                received.recv().await;
                *signal
            })
        });
        futures::future::select_all(signals).await.0
    }
}
