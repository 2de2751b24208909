//! The task that keeps one layout of a view up to date.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    discovery::{
        node_set::NodeSet,
        view::state::ViewState,
        watcher::{PrefixWatcher, Update},
    },
    etcd::{Etcd, range::RangeSnapshot},
    layout::template::memo::ParseMemo,
};

/// Watches one layout of a view until its last handle is dropped.
pub(crate) async fn watch(state: Arc<ViewState>, index: usize, etcd: Etcd, rng: fastrand::Rng) {
    let (layout, prefix) = &state.prefixes[index];
    let shared = &*state;
    let parser = || {
        let mut memo = ParseMemo::default();
        move |found| shared.parse(layout, &mut memo, found)
    };
    let mut watcher = PrefixWatcher::new(etcd.clone(), prefix.clone(), state.request_timeout, parser, rng);
    let service = &state.name;
    let watching = async {
        let mut failures = 0;
        loop {
            let failure = match watcher.next().await {
                Update::Read(RangeSnapshot { entries, revision }) => {
                    match state.has_same_data(index, &etcd, revision).await {
                        Ok(has_same_data) => {
                            if std::mem::take(&mut failures) > 1 {
                                info!(%service, prefix, "the watch is established again");
                            }
                            let entries = NodeSet::from_sorted(entries);
                            state.update(index, |layout| {
                                layout.replace(Instant::now(), revision, entries, has_same_data);
                                true
                            });
                            continue;
                        }
                        Err(failure) => {
                            watcher.restart(&failure);
                            failure
                        }
                    }
                }
                Update::Changed(changes) => {
                    state.update(index, |layout| layout.apply(Instant::now(), changes));
                    continue;
                }
                Update::Failed(failure) => failure,
            };
            failures += 1;
            // A failure that the next read mends is not worth a warning.
            if failures == 2 {
                warn!(%service, prefix, "watch failed; the view keeps the last known nodes: {failure}");
            }
            state.update(index, |layout| {
                layout.fail(failure.into());
                false
            });
        }
    };
    let unused = async {
        loop {
            state.changes.closed().await;
            if state.end_if_unused() {
                return;
            }
        }
    };
    tokio::select! {
        never = watching => never,
        () = unused => {}
    }
}
