//! `leasehold watch`: the nodes in etcd and their changes, until Ctrl-C.

mod draw;
mod known;
mod lines;
mod screen;
mod session;
mod sort;
mod state;

use std::io::{IsTerminal, stderr, stdout};

use self::session::{Signals, Watch};
use super::filter::Names;
use crate::{cli::WatchArgs, connect, error::Failure};

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
