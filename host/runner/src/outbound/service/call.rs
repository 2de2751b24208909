//! The life of one call: a try on one node after the other, until one responds, or no further try is permitted.
//!
//! A node that takes no connection is followed by the next one, which is safe with any request: nothing of it was sent. Beyond
//! that, a further try needs three things: it does no harm, by the request's method or by the word of the node; the rule of the
//! service permits one more, and the budget of all calls to it, so that retries do not multiply the load of a service that fails.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::future::{Either, select};
use http::{
    Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    request::Parts,
};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use leasehold::{Addr, Balancer, InFlight, Pick};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use wasmtime_wasi_http::Error;

use crate::{
    config::CallRule,
    error::{chain, one_line},
    outbound::{
        body::RequestBody,
        service::{
            client::{ServiceClient, SomeClient, no_node, not_found},
            target::Target,
            verdict::{self, Again},
        },
    },
    telemetry::{service_metrics::CallEvent, span::Span},
};

/// Nodes that one request is tried on, at most, where nothing was sent.
const MAX_ATTEMPTS: usize = 3;

/// One call by name.
pub(super) struct Call<'a> {
    client: &'a ServiceClient,
    target: &'a Target,
    rule: &'a CallRule,
    balancer: &'a Balancer,
    parts: &'a Parts,
    body: &'a RequestBody,
    /// Timeout of the connection to one node.
    connect: Duration,
    /// Deadline of the response of any node.
    until: Deadline,
    /// A second try is under way beside the first.
    is_hedged: AtomicBool,
    tried: Vec<Addr>,
    retries: u32,
}

/// Deadline of a call.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// Chosen by the client of the component, and no reason to think ill of a node.
    pub(super) is_clients: bool,
}

/// Outcome of one try.
struct Tried {
    pick: Pick,
    outcome: Result<Response<Incoming>, AttemptError>,
    again: Again,
}

impl Tried {
    fn is_bad(&self) -> bool {
        self.outcome.is_err() || self.again != Again::Never
    }
}

/// Outcome of one try, or of two at the same time, with the node of the second.
struct Hedged {
    tried: Tried,
    other: Option<Addr>,
}

/// Failure of a request to one node.
enum AttemptError {
    /// The request cannot be sent to any node.
    Unsendable(Error),
    /// The node refused the connection; nothing was sent.
    NotConnected(String),
    /// The node did not take the connection in time; nothing was sent.
    ConnectTimeout,
    /// The connection broke off.
    Broken(String),
    /// The node took the connection and has not responded in time.
    ResponseTimeout,
}

impl AttemptError {
    /// Returns true if the component is to blame, and not the node.
    fn is_explained_by(&self, body: &RequestBody) -> bool {
        match self {
            Self::Unsendable(_) => true,
            Self::NotConnected(_) | Self::ConnectTimeout => false,
            Self::Broken(_) => body.is_broken(),
            Self::ResponseTimeout => body.is_waited_for(),
        }
    }

    fn why(&self) -> &str {
        match self {
            Self::Unsendable(_) => "it cannot be sent",
            Self::NotConnected(why) | Self::Broken(why) => why,
            Self::ConnectTimeout => "the node takes no connection in time",
            Self::ResponseTimeout => "the node does not respond in time",
        }
    }

    /// The error that the component gets.
    fn into_error(self, until: Instant) -> Error {
        match self {
            Self::Unsendable(error) => error,
            Self::NotConnected(_) => Error::ConnectionRefused,
            Self::ConnectTimeout if Instant::now() < until => Error::ConnectionTimeout,
            Self::Broken(_) => Error::ConnectionTerminated,
            Self::ConnectTimeout | Self::ResponseTimeout => Error::HttpResponseTimeout,
        }
    }
}

/// Guard of a try that its component may abandon, as it does when its own deadline passes. The node counts as failed if half
/// of the time had passed by then.
struct AbandonGuard<'a> {
    pick: &'a Pick,
    body: &'a RequestBody,
    /// `None` where the node is not to blame whenever that is.
    blamed_from: Option<Instant>,
    is_hedged: &'a AtomicBool,
}

impl AbandonGuard<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for AbandonGuard<'_> {
    fn drop(&mut self) {
        let is_late = self.blamed_from.is_some_and(|from| Instant::now() >= from);
        // Of two tries, the slower one is dropped for the faster.
        if is_late && !self.is_hedged.load(Ordering::Relaxed) && !self.body.is_waited_for() {
            self.pick.failed();
        }
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(
        client: &'a ServiceClient,
        target: &'a Target,
        rule: &'a CallRule,
        balancer: &'a Balancer,
        (parts, body): (&'a Parts, &'a RequestBody),
        (connect, until): (Duration, Deadline),
    ) -> Self {
        Self {
            client,
            target,
            rule,
            balancer,
            parts,
            body,
            connect,
            until,
            is_hedged: AtomicBool::new(false),
            tried: Vec::new(),
            retries: rule.retries,
        }
    }

    /// Makes the call. The response counts as in flight until what is returned with it is dropped.
    pub(super) async fn run(
        mut self,
        mut span: Option<&mut Span>,
    ) -> Result<(Response<Incoming>, (Pick, InFlight)), Error> {
        let in_flight = self.balancer.traffic().begin(self.rule.in_flight, self.rule.retry_budget);
        let Some(in_flight) = in_flight else {
            self.count(CallEvent::Refused, 1);
            let limit = self.rule.in_flight;
            tracing::debug!(service = %self.target.name, "a call failed: {limit} are in flight (registry.calls.in_flight)");
            return Err(Error::ConnectionLimitReached);
        };
        let Some(mut pick) = self.next_node() else {
            self.count(CallEvent::NoResponse, 1);
            let message = no_node(self.target, self.balancer.view());
            tracing::debug!(service = %self.target.name, "a call failed: {message}");
            return Err(not_found(message));
        };
        loop {
            if let Some(span) = &mut span {
                span.record_attempt(&pick.node().addr, self.tried.len());
            }
            self.tried.push(pick.node().addr.clone());
            let Hedged { tried, other } = self.attempt_or_hedge(pick).await;
            self.tried.extend(other);
            let Tried { pick: picked, outcome, again } = tried;
            if let Err(failed) = &outcome {
                let why = one_line(failed.why());
                tracing::debug!(service = %self.target.name, node = %picked.node().addr, "a call failed: {why}");
            }
            if let Some((next, pause)) = self.next_try(again) {
                if let Some(span) = &mut span {
                    span.record_skip(&picked.node().addr);
                }
                drop(outcome);
                sleep(pause).await;
                pick = next;
                continue;
            }
            let event = match (&outcome, again) {
                (Ok(_), Again::Never) => CallEvent::Succeeded,
                (Ok(_), _) => CallEvent::Failed,
                (Err(_), _) => CallEvent::NoResponse,
            };
            self.count(event, 1);
            return match outcome {
                Ok(response) => Ok((response, (picked, in_flight))),
                Err(failed) => Err(failed.into_error(self.until.at)),
            };
        }
    }

    fn next_node(&self) -> Option<Pick> {
        match self.target.is_split(self.rule) {
            // Of many nodes, most are not read then.
            false => self.balancer.pick_by(&self.rule.pick, &self.tried),
            true => self.balancer.pick_among(|node| !self.rule.is_split_off(node), &self.rule.pick, &self.tried),
        }
    }

    /// The node of a further try, and the pause before it; `None` if there is none, or it is not permitted.
    fn next_try(&mut self, again: Again) -> Option<(Pick, Duration)> {
        let pause = match again {
            Again::Never => return None,
            Again::NotSent if self.tried.len() >= MAX_ATTEMPTS || Instant::now() >= self.until.at => return None,
            Again::NotSent => return Some((self.next_node()?, Duration::ZERO)),
            Again::NotProcessed(pause) => pause,
            Again::IfHarmless if self.parts.method.is_idempotent() => Duration::ZERO,
            Again::IfHarmless => return None,
        };
        if self.retries == 0 || !self.body.is_replayable() || Instant::now() + pause >= self.until.at {
            return None;
        }
        let next = self.next_node()?;
        self.retries -= 1;
        self.spend_retry().then_some((next, pause))
    }

    fn spend_retry(&self) -> bool {
        let is_spent = self.balancer.traffic().spend_retry();
        self.count(if is_spent { CallEvent::Retried } else { CallEvent::BudgetSpent }, 1);
        is_spent
    }

    fn count(&self, event: CallEvent, times: usize) {
        self.client.stats.called(self.target.name.as_str(), event, times);
    }

    fn responded_badly(&self, pick: &Pick, after: Duration) {
        self.count(CallEvent::Ejected, self.balancer.responded_badly(pick, after, &self.rule.outliers));
    }

    /// Makes a try, and a second one beside it if the first has no response after a while, where the rule has it so. The first
    /// good response is taken.
    async fn attempt_or_hedge(&self, pick: Pick) -> Hedged {
        let headers = &self.parts.headers;
        // Without either header, nothing of a body is sent with these methods.
        let has_body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
        let is_read = matches!(self.parts.method, Method::GET | Method::HEAD) && !has_body;
        let hedge_after = self.rule.hedge_after.filter(|_| is_read);
        let mut first = pin!(self.attempt(pick));
        let Some(hedge_after) = hedge_after else { return Hedged { tried: first.await, other: None } };
        tokio::select! {
            biased;
            tried = &mut first => return Hedged { tried, other: None },
            () = sleep(hedge_after) => {}
        }
        let Some(pick) = self.next_node().filter(|_| self.spend_retry()) else {
            return Hedged { tried: first.await, other: None };
        };
        let other = Some(pick.node().addr.clone());
        self.is_hedged.store(true, Ordering::Relaxed);
        let tried = match select(first, pin!(self.attempt(pick))).await {
            Either::Left((tried, second)) if tried.is_bad() => second.await,
            Either::Right((tried, first)) if tried.is_bad() => first.await,
            Either::Left((tried, _)) | Either::Right((tried, _)) => tried,
        };
        self.is_hedged.store(false, Ordering::Relaxed);
        Hedged { tried, other }
    }

    /// Makes one try, and reports its outcome to the balancer.
    async fn attempt(&self, pick: Pick) -> Tried {
        let begun = Instant::now();
        let (mut by, mut is_clients) = (self.until.at, self.until.is_clients);
        if let Some(limit) = self.rule.try_timeout.filter(|limit| begun + *limit < by) {
            (by, is_clients) = (begun + limit, false);
        }
        let addr = &pick.node().addr;
        let (client, request) = match self.client.request(self.target, self.rule, (self.parts, self.body), addr, by) {
            Ok(request) => request,
            Err(error) => return Tried { pick, outcome: Err(AttemptError::Unsendable(error)), again: Again::Never },
        };
        let blamed_from = (!is_clients).then(|| by - (by - begun) / 2);
        let guard = AbandonGuard { pick: &pick, body: self.body, blamed_from, is_hedged: &self.is_hedged };
        let sent = send(client, request, by, self.connect).await;
        guard.disarm();
        let after = begun.elapsed();
        match sent {
            Ok(response) => {
                let again = match verdict::of_response(response.status(), response.headers()) {
                    // The node had as little time as the client gives.
                    Again::IfHarmless if is_clients && response.status() == StatusCode::GATEWAY_TIMEOUT => Again::Never,
                    again => again,
                };
                match again {
                    Again::Never => pick.succeeded(after),
                    _ => self.responded_badly(&pick, after),
                }
                Tried { pick, outcome: Ok(response), again }
            }
            Err((failed, _)) if failed.is_explained_by(self.body) => {
                Tried { pick, outcome: Err(failed), again: Again::Never }
            }
            Err((failed, again)) => {
                match failed {
                    AttemptError::ResponseTimeout if is_clients => {}
                    // The node may be well, and this one response slow.
                    AttemptError::ResponseTimeout if by < self.until.at => self.responded_badly(&pick, after),
                    // It had less time than a connection may take.
                    AttemptError::ConnectTimeout if after < self.connect => {}
                    _ => {
                        pick.failed();
                        self.count(CallEvent::Ejected, 1);
                    }
                }
                Tried { pick, outcome: Err(failed), again }
            }
        }
    }
}

/// Sends a request to one node.
async fn send(
    client: SomeClient,
    mut request: Request<RequestBody>,
    by: Instant,
    connect: Duration,
) -> Result<Response<Incoming>, (AttemptError, Again)> {
    let mut connection = capture_connection(&mut request);
    let mut answer = match client {
        SomeClient::Plain(client) => client.request(request),
        SomeClient::Secured(client) => client.request(request),
    };
    let connected = async { drop(connection.wait_for_connection_metadata().await) };
    let limit = by.min(Instant::now() + connect);
    let answer = tokio::select! {
        // What has been sent may have been processed, however late it is.
        biased;
        answer = &mut answer => Ok(answer),
        () = connected => timeout_at(by, answer).await,
        () = sleep_until(limit) => return Err((AttemptError::ConnectTimeout, Again::NotSent)),
    };
    match answer {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_connect() => Err((AttemptError::NotConnected(chain(&error)), Again::NotSent)),
        Ok(Err(error)) => {
            let again = verdict::of_broken(&error);
            Err((AttemptError::Broken(chain(&error)), again))
        }
        Err(_) => Err((AttemptError::ResponseTimeout, Again::IfHarmless)),
    }
}
