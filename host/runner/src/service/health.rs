//! Whether a service does its work: what it is asked, how its answers are counted, and when it is to leave etcd or return.

use std::{collections::VecDeque, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use leasehold::ServiceName;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::{Health, Probe},
    error::one_line,
    inbound::dispatch::Door,
    rt::executor::Pooled,
    service::panic_threshold::{Decision, PanicThreshold},
    telemetry::{
        service_metrics::{Hit, Stats, Tally},
        throttle::Throttle,
    },
    wasm::admission::Places,
};

/// So many failed requests within the window, and no fewer than half of all, are a component that does not work.
const FAILURES: u64 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// How often failures are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is logged that a component which fails is not withdrawn.
const KEPT: Duration = Duration::from_secs(60);
/// The pause before a component in quarantine is asked; it doubles with each bad answer, and with each relapse.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that worked for so long has recovered; sooner it has relapsed.
const PROBATION: Duration = Duration::from_secs(60);
/// How long an answer may take where nothing is said.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often somebody who listens by itself, and is asked nothing, is looked for; and how often it may be missed.
const KNOCK: Duration = Duration::from_secs(1);
const KNOCKS: u32 = 3;
/// What is read of an answer, at most.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// `grpc.health.v1.HealthCheckRequest` for the whole server: an empty message, behind its header.
const GRPC_REQUEST: &[u8] = &[0, 0, 0, 0, 0];
/// `grpc.health.v1.HealthCheckResponse` with `SERVING`.
const GRPC_SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is to leave etcd; the text says why.
    Ill(String),
    /// It may be found again.
    Well,
}

/// Who is asked.
pub(crate) enum Asked {
    /// The component behind the door, by the service's address.
    Door(watch::Receiver<Arc<Door>>, String),
    /// Whoever listens there. Without a health check a connection is a good answer.
    Address(SocketAddr),
}

/// The looks at one service.
pub(crate) struct Checkup {
    health: Option<Health>,
    asked: Asked,
    stats: Arc<Stats>,
    threshold: PanicThreshold,
    kept: Throttle,
    condition: Condition,
    row: Row,
    ward: Ward,
    next_probe: Instant,
    next_look: Instant,
    /// Reason of the latest failed probe.
    pub(crate) last_failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Well,
    /// Its health check says so.
    Ill,
    /// Its requests fail.
    Quarantined,
}

impl Checkup {
    /// One that has yet to answer where it is asked how it is, unless it is trusted until then.
    pub(crate) fn new(
        health: Option<Health>,
        asked: Asked,
        stats: Arc<Stats>,
        threshold: PanicThreshold,
        trusted: bool,
    ) -> Self {
        let now = Instant::now();
        let well = trusted || health.is_none();
        Self {
            condition: if well { Condition::Well } else { Condition::Ill },
            row: Row::new(well),
            ward: Ward::new(now, stats.tally()),
            threshold,
            kept: Throttle::new(KEPT),
            health,
            asked,
            stats,
            next_probe: now,
            next_look: now + LOOK,
            last_failure: None,
        }
    }

    /// Whether nothing speaks against its being found.
    pub(crate) fn is_well(&self) -> bool {
        self.condition == Condition::Well
    }

    /// Waits for the next change. Dropped halfway, it goes on where it was.
    pub(crate) async fn next(&mut self) -> Verdict {
        loop {
            let asks = self.health.is_some() || matches!(self.asked, Asked::Address(_));
            let probes = asks || self.condition != Condition::Well;
            tokio::select! {
                () = sleep_until(self.next_look), if self.condition != Condition::Ill => {
                    self.next_look = Instant::now() + LOOK;
                    let verdict = match self.condition {
                        Condition::Quarantined => self.look_at_others(),
                        _ => self.look().await,
                    };
                    if let Some(verdict) = verdict {
                        return verdict;
                    }
                }
                () = sleep_until(self.next_probe), if probes => {
                    if let Some(verdict) = self.ask().await {
                        return verdict;
                    }
                }
            }
        }
    }

    /// Looks at the failures of a service that is well so far.
    async fn look(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        let failures = self.ward.look(now, self.stats.tally());
        match failures.failed {
            0 => self.threshold.rest(now),
            _ => self.threshold.watch(now).await,
        }
        if !self.ward.is_too_much(now, failures) {
            return None;
        }
        let said = format!("{} of its last {} requests failed", failures.failed, failures.all);
        let mostly_traps = failures.trapped.saturating_mul(2) >= failures.failed;
        if !(mostly_traps && self.threshold.excepts_traps()) {
            match self.threshold.decide(now) {
                Decision::Withdraw => {}
                Decision::Wait => return None,
                Decision::Keep(why) => {
                    if let Some(left_out) = self.kept.admit(now.into_std()) {
                        self.stats.hit(Hit::TooFewRemain);
                        tracing::warn!(service = %self.service(), "not withdrawn, although {said}: {why}{left_out}");
                    }
                    return None;
                }
            }
        }
        self.ward.quarantine();
        self.condition = Condition::Quarantined;
        self.next_probe = now + self.ward.pause;
        Some(Verdict::Ill(said))
    }

    /// Brings back a service whose clients have too few others by now. It is not withdrawn again for a while.
    fn look_at_others(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        if !self.threshold.is_needed(now) {
            return None;
        }
        tracing::warn!(service = %self.service(), "brought back, although it failed: too few others remain (health.panic_threshold)");
        self.ward.released(now, self.stats.tally());
        self.ward.excuse(now);
        self.row = Row::new(true);
        self.condition = Condition::Well;
        Some(Verdict::Well)
    }

    fn service(&self) -> &ServiceName {
        self.stats.service()
    }

    async fn ask(&mut self) -> Option<Verdict> {
        let answer = self.probe().await;
        self.last_failure = answer.as_ref().err().cloned().or(self.last_failure.take());
        let now = Instant::now();
        let (pause, rise, fall) = match (&self.health, &self.asked) {
            (Some(health), _) => (health.interval, health.rise, health.fall),
            (None, Asked::Address(_)) => (KNOCK, 1, KNOCKS),
            (None, Asked::Door(..)) => (LONGEST_PAUSE, 1, 1),
        };
        self.next_probe = now + pause;
        if self.condition == Condition::Quarantined {
            if let Err(said) = answer {
                tracing::debug!("still in quarantine: {said}");
                self.next_probe = now + self.ward.longer();
                return None;
            }
            self.ward.released(now, self.stats.tally());
            self.row = Row::new(true);
            self.condition = Condition::Well;
            return Some(Verdict::Well);
        }
        if !self.row.add(answer.is_ok(), rise, fall) {
            return None;
        }
        match answer {
            Ok(()) => {
                self.condition = Condition::Well;
                Some(Verdict::Well)
            }
            Err(said) => {
                self.condition = Condition::Ill;
                Some(Verdict::Ill(format!("its health check fails: {said}")))
            }
        }
    }

    /// What followed from `Well` could not be done; it is said again.
    pub(crate) fn again(&mut self) {
        self.condition = Condition::Ill;
        self.row = Row::new(false);
        self.next_probe = Instant::now() + FIRST_PAUSE;
    }

    /// There is a new version: what the old one did is forgotten, and it is asked at once. One whose health check was
    /// answered well is well.
    pub(crate) fn afresh(&mut self, proven: bool) {
        let now = Instant::now();
        if proven {
            (self.condition, self.row) = (Condition::Well, Row::new(true));
        }
        self.ward = Ward::new(now, self.stats.tally());
        self.next_probe = now;
    }

    /// One question. The error says what was wrong with the answer.
    async fn probe(&self) -> Result<(), String> {
        match &self.asked {
            Asked::Door(doors, authority) => {
                let door = Arc::clone(&doors.borrow());
                probe(&door, &door.places, self.health.as_ref(), authority).await
            }
            Asked::Address(addr) => probe_at(*addr, self.health.as_ref()).await,
        }
    }
}

/// Asks through a door, like a client, in one of these places. A component without a health check answers anything but with
/// a failure.
pub(crate) async fn probe(
    door: &Door,
    places: &Places,
    health: Option<&Health>,
    authority: &str,
) -> Result<(), String> {
    let patience = health.map_or(PATIENCE, |health| health.timeout);
    let probe = health.map(|health| &health.probe);
    let asking = async {
        let response = door.probe(question(probe, authority), places).await;
        let response = response.map_err(|hit| format!("{hit:?}").to_lowercase())?;
        judge(probe, response).await
    };
    timeout(patience, asking).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

/// Asks at an address, like a client. Without a health check a connection is a good answer.
pub(crate) async fn probe_at(addr: SocketAddr, health: Option<&Health>) -> Result<(), String> {
    let patience = health.map_or(KNOCK, |health| health.timeout);
    let asking = async {
        let Some(Health { probe, .. }) = health else {
            return TcpStream::connect(addr).await.map(drop).map_err(|error| one_line(&error.to_string()));
        };
        let mut client = Client::builder(Pooled);
        let client = client.http2_only(matches!(probe, Probe::Grpc)).build_http();
        let response = client.request(question(Some(probe), &addr.to_string())).await;
        let response = response
            .map_err(|error| one_line(&error.source().map_or_else(|| error.to_string(), ToString::to_string)))?;
        judge(Some(probe), response).await
    };
    timeout(patience, asking).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

async fn judge<B>(probe: Option<&Probe>, response: Response<B>) -> Result<(), String>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned();
    match probe {
        None => Ok(()),
        Some(Probe::Http(_)) if head.status.is_success() => Ok(()),
        Some(Probe::Http(path)) => Err(format!("{path} answers {}", head.status)),
        Some(Probe::Grpc) => serving(&head.headers, trailers.as_ref(), &body.to_bytes()),
    }
}

fn question(probe: Option<&Probe>, authority: &str) -> Request<Full<Bytes>> {
    let path = match probe {
        None => "/",
        Some(Probe::Http(path)) => path.as_str(),
        Some(Probe::Grpc) => "/grpc.health.v1.Health/Check",
    };
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    let request = Request::builder().uri(uri.expect("a path is checked when it is read"));
    let made = match probe {
        Some(Probe::Grpc) => request
            .method(Method::POST)
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(GRPC_REQUEST)),
        _ => request.header("host", authority).body(Full::default()),
    };
    made.expect("these are headers")
}

fn serving(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Result<(), String> {
    let status = trailers.and_then(|trailers| trailers.get("grpc-status")).or_else(|| headers.get("grpc-status"));
    match (status.and_then(|status| status.to_str().ok()), body) {
        (Some("0"), GRPC_SERVING) => Ok(()),
        (Some("0"), _) => Err("grpc.health.v1 does not say SERVING".to_owned()),
        (Some(status), _) => Err(format!("grpc.health.v1 answers status {}", status.escape_debug())),
        (None, _) => Err("grpc.health.v1 is not answered as gRPC".to_owned()),
    }
}

/// Answers in a row.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    up: bool,
    against: u32,
}

impl Row {
    fn new(up: bool) -> Self {
        Self { up, against: 0 }
    }

    /// Says whether this answer turned it: so many in a row that speak against how it was.
    fn add(&mut self, good: bool, rise: u32, fall: u32) -> bool {
        if good == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let turned = self.against >= if self.up { fall } else { rise };
        if turned {
            *self = Self::new(good);
        }
        turned
    }
}

/// Failures of the last while, and how long to keep away who has too many.
#[derive(Debug)]
struct Ward {
    /// When, and what had come by then.
    seen: VecDeque<(Instant, Tally)>,
    pause: Duration,
    released: Option<Instant>,
    /// Until then nothing is too much.
    excused: Option<Instant>,
}

impl Ward {
    /// What happened until now does not count.
    fn new(now: Instant, tally: Tally) -> Self {
        Self { seen: VecDeque::from([(now, tally)]), pause: FIRST_PAUSE, released: None, excused: None }
    }

    /// What came within the window.
    fn look(&mut self, now: Instant, tally: Tally) -> Tally {
        while self.seen.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.seen.pop_front();
        }
        if self.released.is_some_and(|at| now.duration_since(at) > PROBATION) {
            (self.released, self.pause) = (None, FIRST_PAUSE);
        }
        let (_, before) = *self.seen.front().unwrap_or(&(now, tally));
        self.seen.push_back((now, tally));
        tally.since(before)
    }

    /// Whether a service with these failures does not work.
    fn is_too_much(&self, now: Instant, Tally { failed, all, .. }: Tally) -> bool {
        let is_excused = self.excused.is_some_and(|until| now < until);
        !is_excused && failed >= FAILURES && failed.saturating_mul(2) >= all
    }

    /// The service is kept away, for longer where it relapsed.
    fn quarantine(&mut self) {
        if self.released.take().is_some() {
            self.longer();
        }
        self.seen.clear();
    }

    fn longer(&mut self) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.pause
    }

    /// What happened meanwhile does not count against it.
    fn released(&mut self, now: Instant, tally: Tally) {
        self.released = Some(now);
        self.seen = VecDeque::from([(now, tally)]);
    }

    /// It is needed, however much of it fails.
    fn excuse(&mut self, now: Instant) {
        self.excused = Some(now + PROBATION);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{FIRST_PAUSE, GRPC_SERVING, HeaderMap, PROBATION, Row, Tally, WINDOW, Ward, serving};

    #[test]
    fn only_answers_in_a_row_turn_it() {
        let mut row = Row::new(true);
        let turned = [false, false, true, false, false, false].map(|good| row.add(good, 2, 3));
        assert_eq!(turned, [false, false, false, false, false, true]);
        let turned = [true, false, true, true].map(|good| row.add(good, 2, 3));
        assert_eq!(turned, [false, false, false, true]);
        assert_eq!(row, Row::new(true));
    }

    #[test]
    fn a_few_failures_among_many_answers_are_borne() {
        let begun = Instant::now();
        let mut ward = Ward::new(begun, tally(0, 0));
        assert!(!is_too_much(&mut ward, begun + Duration::from_secs(1), 5, 11));
        let mut ward = Ward::new(begun, tally(0, 0));
        assert!(!is_too_much(&mut ward, begun + Duration::from_secs(2), 4, 4));
    }

    #[test]
    fn failures_that_are_long_past_are_borne() {
        let begun = Instant::now();
        let mut ward = Ward::new(begun, tally(0, 0));
        assert!(!is_too_much(&mut ward, begun + Duration::from_secs(1), 4, 4));
        assert!(!is_too_much(&mut ward, begun + WINDOW + Duration::from_secs(2), 5, 5));
    }

    #[test]
    fn who_relapses_is_kept_away_for_longer_and_who_recovered_is_not() {
        let begun = Instant::now();
        let mut ward = Ward::new(begun, tally(0, 0));
        assert!(is_too_much(&mut ward, begun, 5, 10));
        ward.quarantine();
        assert_eq!(ward.pause, FIRST_PAUSE);
        ward.released(begun, tally(6, 12));
        assert!(is_too_much(&mut ward, begun, 11, 17));
        ward.quarantine();
        assert_eq!(ward.pause, FIRST_PAUSE * 2);
        ward.released(begun, tally(11, 17));
        assert!(!is_too_much(&mut ward, begun + PROBATION + Duration::from_secs(1), 11, 17));
        assert_eq!(ward.pause, FIRST_PAUSE);
    }

    #[test]
    fn a_service_that_is_needed_is_excused_for_a_while() {
        let begun = Instant::now();
        let mut ward = Ward::new(begun, tally(0, 0));
        ward.excuse(begun);
        assert!(!is_too_much(&mut ward, begun + PROBATION - Duration::from_secs(1), 5, 5));
        assert!(is_too_much(&mut ward, begun + PROBATION, 10, 10));
    }

    fn tally(failed: u64, all: u64) -> Tally {
        Tally { failed, all, ..Tally::default() }
    }

    fn is_too_much(ward: &mut Ward, at: Instant, failed: u64, all: u64) -> bool {
        let failures = ward.look(at, tally(failed, all));
        ward.is_too_much(at, failures)
    }

    #[test]
    fn only_serving_is_healthy() {
        let status = |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        assert_eq!(serving(&HeaderMap::new(), Some(&status("0")), GRPC_SERVING), Ok(()));
        assert!(serving(&HeaderMap::new(), Some(&status("0")), &[0, 0, 0, 0, 2, 8, 2]).is_err());
        assert!(serving(&status("12"), None, &[]).is_err());
        assert!(serving(&HeaderMap::new(), None, GRPC_SERVING).is_err());
    }
}
