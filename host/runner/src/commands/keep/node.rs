//! The life of one kept node: registered while its check succeeds, and taken back.

use std::{future::pending, time::Duration};

use leasehold::{Error, Registrar, Registration, Reminder, ServerNode};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::check::{has_failed, is_well};
use crate::{config::KeptNode, error::Failure, rt::backoff::Backoff};

/// Pauses between two attempts to register: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// News of a node.
pub(super) enum News {
    Registered,
    /// No other attempt can mend it: the life of the node is over.
    Failed(Failure),
}

/// A node with its registration.
pub(super) struct Node {
    number: u64,
    registrar: Registrar,
    registration: Option<Registration>,
    /// The node as it was published last.
    published: Option<ServerNode>,
    news: mpsc::UnboundedSender<(u64, News)>,
}

impl Node {
    pub(super) fn new(number: u64, registrar: Registrar, news: mpsc::UnboundedSender<(u64, News)>) -> Self {
        Self { number, registrar, registration: None, published: None, news }
    }

    /// Keeps the node as `wanted` says, until `end`. Its keys are gone then, or go with their lease.
    pub(super) async fn live(mut self, mut wanted: watch::Receiver<KeptNode>, end: CancellationToken) {
        let failure = end.run_until_cancelled(self.keep(&mut wanted)).await;
        let kept = wanted.borrow().clone();
        self.take_back(&kept).await;
        if let Some(failure) = failure {
            self.report(News::Failed(failure));
        }
    }

    /// Ends with a failure that another attempt cannot mend.
    async fn keep(&mut self, wanted: &mut watch::Receiver<KeptNode>) -> Failure {
        loop {
            let kept = wanted.borrow_and_update().clone();
            if let Some(registration) = &self.registration
                && self.published.as_ref() != Some(&kept.node)
            {
                match registration.replace(kept.node.clone()).await {
                    Ok(()) => self.published = Some(kept.node.clone()),
                    Err(error) => tracing::warn!(service = %kept.node.name, "published as before: {error}"),
                }
            }
            tokio::select! {
                Ok(()) = wanted.changed() => {}
                failure = self.keep_while_well(&kept) => return failure,
            }
        }
    }

    /// Registers while the check succeeds, and withdraws while it fails.
    async fn keep_while_well(&mut self, kept: &KeptNode) -> Failure {
        let name = &kept.node.name;
        loop {
            if self.registration.is_none() {
                if let Some(check) = &kept.check {
                    is_well(check, name.as_str()).await;
                }
                let registered = tokio::select! {
                    registered = self.register(kept) => registered,
                    why = fails(kept) => {
                        tracing::warn!(service = %name, "not registered: {why}");
                        continue;
                    }
                };
                match registered {
                    Ok(registration) => {
                        (self.registration, self.published) = (Some(registration), Some(kept.node.clone()));
                    }
                    Err(failure) => return failure,
                }
                self.report(News::Registered);
            }
            let why = fails(kept).await;
            tracing::warn!(event = "withdrawn", service = %name, "withdrawn: {why}");
            self.take_back(kept).await;
        }
    }

    /// Registers; tries for as long as etcd does not answer, refuses, or has the key for another host.
    async fn register(&self, kept: &KeptNode) -> Result<Registration, Failure> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut known: Option<(String, Reminder)> = None;
        loop {
            let error = match self.registrar.register(kept.node.clone()).await {
                Ok(registration) => {
                    let key = registration.key();
                    tracing::info!(event = "registered", service = %kept.node.name, %key, "registered as {key}");
                    return Ok(registration);
                }
                Err(error @ (Error::Invalid(_) | Error::Quota { .. } | Error::Duplicate(_) | Error::Ended)) => {
                    return Err(Failure::usage(error));
                }
                Err(error) => error.to_string(),
            };
            let now = Instant::now();
            let is_due = match &mut known {
                Some((before, reminder)) if *before == error => {
                    let is_due = reminder.is_due(now);
                    if is_due {
                        reminder.advance(now);
                    }
                    is_due
                }
                _ => {
                    known = Some((error.clone(), Reminder::new(Reminder::FIRST, now)));
                    true
                }
            };
            if is_due {
                tracing::warn!(service = %kept.node.name, "not registered yet: {error}");
            }
            sleep(backoff.next_pause()).await;
        }
    }

    /// Takes the keys out of etcd. The registrar goes on where etcd does not answer.
    async fn take_back(&mut self, kept: &KeptNode) {
        let Some(registration) = self.registration.take() else { return };
        let (key, name) = (registration.key().clone(), &kept.node.name);
        match registration.stop().await {
            Ok(()) => tracing::info!(event = "stopped", service = %name, %key, "the key is deleted"),
            Err(error) => {
                tracing::warn!(service = %name, %key, "the key may stay until its lease ends: {error}");
            }
        }
    }

    fn report(&self, news: News) {
        // The process is ending where nothing receives it.
        let _ = self.news.send((self.number, news));
    }
}

/// Waits until the check fails; without one, for good.
async fn fails(kept: &KeptNode) -> String {
    match &kept.check {
        Some(check) => has_failed(check).await,
        None => pending().await,
    }
}
