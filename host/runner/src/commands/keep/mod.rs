//! `leasehold keep`: processes of any kind kept in etcd, from the first successful check of each to the end.

mod check;
mod command;
mod node;
mod nodes;
mod signals;

use std::{fmt::Write, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use self::{
    command::{Running, ended},
    nodes::Nodes,
    signals::Signals,
};
use super::output::print;
use crate::{cli::KeepArgs, config::Kept, connect, error::Failure, process::systemd};

/// Longest wait for the file to be read again.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the revocation of the lease; it ends with its time to live otherwise.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the nodes in etcd until a signal or the end of the command, whose exit code is that of this process.
pub(crate) async fn keep(args: KeepArgs) -> Result<(), Failure> {
    let args = Arc::new(args);
    let kept = args.kept()?;
    kept.notes.iter().for_each(|note| tracing::warn!("{note}"));
    if args.only_checks {
        return print(&keys(&kept));
    }
    let registrar = connect::start(&kept.registrar)?;
    let mut signals = Signals::listen()?;
    let mut running = Running::start(&args.command)?;
    let tasks = TaskTracker::new();
    let mut nodes = Nodes::start(registrar.clone(), kept, tasks.clone());

    let group = running.as_ref().map(Running::group);
    let mut request = None;
    let outcome = loop {
        tokio::select! {
            biased;
            status = ended(&mut running) => break Ok(Some(status)),
            signal = signals.next() => match group {
                _ if Signals::ends(signal) => {
                    request = Some((signal, Instant::now()));
                    break Ok(None);
                }
                Some(group) => group.signal(signal),
                None if signal == Signal::HUP && args.is_reloadable() => nodes.reload(read(&args, &tasks).await).await,
                None => tracing::info!("{} is for a command, and there is none", signals::name(signal)),
            },
            failure = nodes.fail() => break Err(failure),
        }
    };
    systemd::stopping(&tasks);
    nodes.take_back().await;
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

/// The file as it is now.
async fn read(args: &Arc<KeepArgs>, tasks: &TaskTracker) -> Result<Kept, Failure> {
    let args = Arc::clone(args);
    let read = timeout(READ_TIMEOUT, tasks.spawn_blocking(move || args.kept())).await;
    read.map_err(|_| Failure::other(format!("the file is not read within {READ_TIMEOUT:?}")))?
        .map_err(Failure::other)?
}

/// The keys that would be kept, one a line.
fn keys(kept: &Kept) -> String {
    let keys = kept.nodes.iter().flat_map(|node| node.keys(&kept.registrar.layouts));
    keys.fold(String::new(), |mut text, key| {
        let _ = writeln!(text, "{key}"); // To a string it cannot fail.
        text
    })
}
