//! A watch of the keys under a prefix that survives failures: read once, watched from there, read again after a failure.

use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use crate::{
    backoff::backoff,
    etcd::{
        Etcd, Failure, Found,
        changes::{Change, Changes},
        range::RangeSnapshot,
    },
};

/// Silence of the stream after which a progress notification is requested. Short enough for a view to be at most 6 s behind
/// when its connection dies silently.
const SILENCE: Duration = Duration::from_secs(4);
/// Longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// Watches the keys under a prefix. `F` creates the parser of each batch of keys.
pub(crate) struct PrefixWatcher<F> {
    etcd: Etcd,
    prefix: String,
    request_timeout: Duration,
    parser: F,
    rng: fastrand::Rng,
    failures: u32,
    stage: Stage,
}

enum Stage {
    Unread,
    /// Read as of a revision.
    Read(i64),
    Watching(Box<Changes>),
}

/// Result of one step.
pub(crate) enum Update<T> {
    /// All keys: at first, and again after a failure.
    Read(RangeSnapshot<T>),
    /// Changes in order; empty when etcd confirms that there are none.
    Changed(Vec<KeyChange<T>>),
    /// A failure, after which the next step reads all keys again.
    Failed(Failure),
}

/// Change of one key.
pub(crate) enum KeyChange<T> {
    Put(T),
    /// The key, and the revision that deleted it.
    Deleted(Vec<u8>, i64),
}

impl<T, P: FnMut(Found) -> T, F: Fn() -> P> PrefixWatcher<F> {
    pub(crate) fn new(etcd: Etcd, prefix: String, request_timeout: Duration, parser: F, rng: fastrand::Rng) -> Self {
        Self { etcd, prefix, request_timeout, parser, rng, failures: 0, stage: Stage::Unread }
    }

    /// Returns the next update. Never ends, and pauses after a failure.
    pub(crate) async fn next(&mut self) -> Update<T> {
        match self.step().await {
            Ok(update) => update,
            Err(failure) => {
                self.restart(&failure);
                Update::Failed(failure)
            }
        }
    }

    async fn step(&mut self) -> Result<Update<T>, Failure> {
        loop {
            match &mut self.stage {
                Stage::Unread => {
                    if self.failures > 0 {
                        let pause = backoff(&mut self.rng, self.failures, MAX_BACKOFF);
                        let _ = timeout(pause, self.etcd.is_back()).await; // Either way the pause is over.
                    }
                    let snapshot = self.etcd.read(&self.prefix, &self.parser).await?;
                    self.stage = Stage::Read(snapshot.revision);
                    return Ok(Update::Read(snapshot));
                }
                Stage::Read(revision) => {
                    self.failures = 0;
                    let changes = self.etcd.open_changes(&self.prefix, *revision + 1, self.request_timeout).await?;
                    self.stage = Stage::Watching(Box::new(changes));
                }
                Stage::Watching(changes) => {
                    let changes = changes.next(SILENCE, self.request_timeout).await?.into_iter();
                    let mut parse = (self.parser)();
                    let changes = changes.map(|change| match change {
                        Change::Put(found) => KeyChange::Put(parse(found)),
                        Change::Deleted(key, revision) => KeyChange::Deleted(key, revision),
                    });
                    return Ok(Update::Changed(changes.collect()));
                }
            }
        }
    }

    /// Distrusts the updates so far: the next step reads all keys again.
    pub(crate) fn restart(&mut self, failure: &Failure) {
        debug!(prefix = self.prefix, %failure, "watch failed; its keys are read again");
        self.failures += 1;
        self.stage = Stage::Unread;
    }
}
