//! `leasehold watch`: the nodes in etcd and their changes, until Ctrl-C.

mod draw;
mod known;
mod lines;
mod screen;
mod state;

use std::io::{IsTerminal, stderr, stdout};

use leasehold::{Error, Options, Registrar};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::known::Known;
use super::filter::Names;
use crate::{cli::WatchArgs, connect, error::Failure};

/// A watch that has reached etcd.
struct Watch {
    registrar: Registrar,
    options: Options,
    names: Names,
}

/// A full-screen view on a terminal, else a line for each change.
pub(crate) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let names = Names::parse(args.name.as_deref())?;
    let options = args.etcd.registrar()?;
    let watch = Watch { registrar: connect::start(&options)?, options, names };
    let mut signals = Signals::listen()?;
    tokio::select! {
        reached = watch.reach() => reached?,
        () = signals.end() => return Ok(()),
    }
    match fills_screen(&args) {
        true => screen::run(&watch, args.every.0, &mut signals).await,
        false => lines::run(&watch, args.json, &mut signals).await,
    }
}

/// Returns true if these arguments open a full-screen view.
fn fills_screen(args: &WatchArgs) -> bool {
    !args.json && !args.plain && stdout().is_terminal()
}

/// Returns true if log lines would be written into a full-screen view.
pub(crate) fn hides_log(args: &WatchArgs) -> bool {
    fills_screen(args) && stderr().is_terminal()
}

impl Watch {
    /// Checks that etcd responds and accepts this user: the arguments may be wrong.
    async fn reach(&self) -> Result<(), Failure> {
        let reached = connect::attempt(&self.registrar, &self.options, Vec::new()).await;
        reached.map(drop).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &Error) -> Failure {
        let prefix = connect::prefix(&self.options, self.names.scope());
        connect::failure(error, &self.options, prefix.as_deref())
    }

    fn known(&self) -> Known {
        Known::new(self.options.read_layouts())
    }
}

/// Signals that end the watch: Ctrl-C, SIGTERM and SIGHUP.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::other(format!("cannot wait for signals: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Waits for one of them. Cancel safe.
    async fn end(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
