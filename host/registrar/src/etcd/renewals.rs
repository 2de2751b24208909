//! The stream on which etcd answers the renewals of one lease.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::Instant;
use tokio_stream::Stream;

use super::{
    Etcd,
    endpoint::Route,
    error::{Failure, classify, rounded},
    latency::Verb,
    patience::within,
};
use crate::lease_id::LeaseId;

impl Etcd {
    /// Opens a stream of renewals; its opening is the first renewal.
    pub(crate) async fn open_renewals(&self, lease: LeaseId, deadline: Duration) -> Result<Renewals, Failure> {
        let (route, open) = self
            .ask(Verb::Renew, deadline, |client| async move { client.lease_client().keep_alive(lease.get()).await })
            .await?;
        Ok(Renewals { open: Some(open), etcd: self.clone(), route })
    }
}

/// An open stream of renewals of one lease.
pub(crate) struct Renewals {
    /// `None` once its connection was given up.
    open: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
    etcd: Etcd,
    route: Route,
}

impl Renewals {
    /// Ready once the stream has broken between two renewals. Nothing is wrong if its connection was given up for another that
    /// answers: the next renewal takes that connection.
    pub(crate) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Some((_, answers)) = &mut self.open else { return Poll::Pending };
        let answer = std::task::ready!(Pin::new(answers).poll_next(cx));
        if self.route.life.is_given_up() {
            self.open = None;
            return Poll::Pending;
        }
        Poll::Ready(match answer {
            Some(Err(error)) => classify(&self.url(), &error),
            _ => self.unanswered("the stream of renewals ended".to_owned()),
        })
    }

    /// Renews once. Ok only on etcd's answer that the lease lives on, with the TTL it has from then.
    ///
    /// After a failure the stream must not be used again: a late answer would be taken for the next one.
    pub(crate) async fn renew(&mut self, deadline: Duration) -> Result<Duration, Failure> {
        let Some((mut keeper, mut answers)) = self.open.take() else {
            return Err(self.unanswered("the connection of the renewals was given up".to_owned()));
        };
        let begun = Instant::now();
        let exchange = async {
            keeper.keep_alive().await?;
            answers.message().await
        };
        let exchange = within(deadline, self.etcd.endpoints.attend(&self.route, deadline, exchange));
        let outcome = async {
            match exchange.await {
                Err(_) => {
                    // The next attempt is not to wait for the same endpoint once more: there may be no time for a third.
                    self.etcd.endpoints.pass_over(self.route.index);
                    Err(self.unanswered(format!("no renewal within {:?}", rounded(deadline))))
                }
                Ok(Err(error)) => Err(classify(&self.url(), &error)),
                Ok(Ok(None)) => Err(self.unanswered("the stream of renewals ended".to_owned())),
                Ok(Ok(Some(answer))) => match u64::try_from(answer.ttl()) {
                    Ok(0) | Err(_) => Err(Failure::LeaseGone),
                    Ok(seconds) => Ok(Duration::from_secs(seconds)),
                },
            }
        };
        let outcome = self.etcd.counted(Verb::Renew, outcome).await;
        if outcome.is_ok() {
            self.etcd.endpoints.answered(&self.route, begun.elapsed());
            self.open = Some((keeper, answers));
        }
        outcome
    }

    fn url(&self) -> Arc<str> {
        self.etcd.url(self.route.index)
    }

    fn unanswered(&self, reason: String) -> Failure {
        Failure::Unanswered { endpoint: self.url(), reason }
    }
}
