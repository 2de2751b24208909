//! Renewals of all leases of one task: the stream on which etcd answers them, and the one in progress, of each lease.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    etcd::{Call, Etcd, Failure, renewals::Renewals},
    lease::core::messages::Renewal,
    lease_id::LeaseId,
};

/// Streams of all leases that are renewed, in the order in which they were granted.
#[derive(Default)]
pub(super) struct RenewalStreams(Vec<RenewalStream>);

struct RenewalStream {
    lease: LeaseId,
    open: Option<Renewals>,
    renewal: Option<Call<(Renewal, Option<Renewals>)>>,
}

impl RenewalStreams {
    /// Renews a lease with that TTL on its stream. Opens one if there is none, or if it turns out to be broken.
    pub(super) fn renew(&mut self, etcd: &Etcd, lease: LeaseId, ttl: Duration, deadline: Duration) {
        let index = self.0.iter().position(|stream| stream.lease == lease).unwrap_or_else(|| {
            self.0.push(RenewalStream { lease, open: None, renewal: None });
            self.0.len() - 1
        });
        let stream = &mut self.0[index];
        let renewal = renew(etcd.clone(), lease, ttl, deadline, stream.open.take());
        stream.renewal = Some(Box::pin(renewal));
    }

    /// Drops the stream of a lease, and the renewal in progress.
    pub(super) fn disconnect(&mut self, lease: LeaseId) {
        self.0.retain(|stream| stream.lease != lease);
    }

    /// Waits for the outcome of a renewal, or for a stream that breaks between two of them.
    pub(super) async fn next(&mut self) -> Renewal {
        poll_fn(|cx| {
            let next = self.0.iter_mut().find_map(|stream| match stream.poll(cx) {
                Poll::Ready(renewal) => Some(renewal),
                Poll::Pending => None,
            });
            next.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl RenewalStream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Renewal> {
        if let Some(renewal) = &mut self.renewal {
            let (renewal, open) = ready!(renewal.as_mut().poll(cx));
            (self.renewal, self.open) = (None, open);
            return Poll::Ready(renewal);
        }
        let Some(open) = &mut self.open else { return Poll::Pending };
        let failure = ready!(open.poll_broken(cx));
        self.open = None;
        Poll::Ready(Renewal { lease: self.lease, requested_at: Instant::now(), outcome: Err(failure) })
    }
}

async fn renew(
    etcd: Etcd,
    lease: LeaseId,
    ttl: Duration,
    deadline: Duration,
    open: Option<Renewals>,
) -> (Renewal, Option<Renewals>) {
    let requested_at = Instant::now();
    if let Some(mut open) = open {
        match open.renew(deadline).await {
            // Only a stream that broke at once leaves time for another within the same attempt.
            Err(Failure::Unanswered { .. }) if requested_at.elapsed() < deadline / 2 => {}
            outcome => {
                let open = outcome.is_ok().then_some(open);
                return (Renewal { lease, requested_at, outcome }, open);
            }
        }
    }
    let requested_at = Instant::now();
    match etcd.open_renewals(lease, deadline).await {
        // The first renewal comes with the stream, which tells no TTL.
        Ok(open) => (Renewal { lease, requested_at, outcome: Ok(ttl) }, Some(open)),
        Err(failure) => (Renewal { lease, requested_at, outcome: Err(failure) }, None),
    }
}
