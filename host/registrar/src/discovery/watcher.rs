//! What stands under a prefix, told step by step: read once, followed from there, read again after a break.

use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use crate::{
    backoff::backoff,
    etcd::{Change, Changes, Etcd, Failure, Found, Reading},
    layout::template::memo::ParseMemo,
};

/// A stream that is silent for so long is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(5);
/// The longest wait between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// Follows the keys under a prefix; `take` says what becomes of each.
pub(crate) struct Follower<F> {
    etcd: Etcd,
    prefix: String,
    patience: Duration,
    take: F,
    rng: fastrand::Rng,
    failures: u32,
    stage: Stage,
}

enum Stage {
    Unread,
    /// As of a revision.
    Read(i64),
    Followed(Box<Changes>),
}

/// What a follower tells next.
pub(crate) enum Step<T> {
    /// Everything that stands there: at first, and again after a break.
    Read(Reading<T>),
    /// What has happened since; nothing is a sign of life.
    Changed(Vec<News<T>>),
    /// It has to be read again, which the next call does.
    Broken(Failure),
}

/// What happened to one key.
pub(crate) enum News<T> {
    Put(T),
    Deleted(Vec<u8>),
}

impl<T, F: Fn(&mut ParseMemo, Found) -> T> Follower<F> {
    pub(crate) fn new(etcd: Etcd, prefix: String, patience: Duration, take: F, rng: fastrand::Rng) -> Self {
        Self { etcd, prefix, patience, take, rng, failures: 0, stage: Stage::Unread }
    }

    /// What comes next. Goes on for ever, with a pause after a failure.
    pub(crate) async fn next(&mut self) -> Step<T> {
        match self.step().await {
            Ok(step) => step,
            Err(failure) => {
                self.doubt(&failure);
                Step::Broken(failure)
            }
        }
    }

    /// What was told is not to be trusted: it is read again.
    pub(crate) fn doubt(&mut self, failure: &Failure) {
        debug!(prefix = self.prefix, %failure, "what is followed has to be read again");
        self.failures += 1;
        self.stage = Stage::Unread;
    }

    async fn step(&mut self) -> Result<Step<T>, Failure> {
        loop {
            match &mut self.stage {
                Stage::Unread => {
                    if self.failures > 0 {
                        let pause = backoff(&mut self.rng, self.failures, MAX_BACKOFF);
                        let _ = timeout(pause, self.etcd.is_back()).await; // Either way it is time.
                    }
                    let reading = self.etcd.read(&self.prefix, &self.take).await?;
                    self.stage = Stage::Read(reading.revision);
                    return Ok(Step::Read(reading));
                }
                Stage::Read(revision) => {
                    self.failures = 0;
                    let changes = self.etcd.open_changes(&self.prefix, *revision + 1, self.patience).await?;
                    self.stage = Stage::Followed(Box::new(changes));
                }
                Stage::Followed(changes) => {
                    let changes = changes.next(SILENCE, self.patience).await?.into_iter();
                    let mut last = ParseMemo::default();
                    let news = changes.map(|change| match change {
                        Change::Put(found) => News::Put((self.take)(&mut last, found)),
                        Change::Deleted(key) => News::Deleted(key),
                    });
                    return Ok(Step::Changed(news.collect()));
                }
            }
        }
    }
}
