//! `leasehold drain`: one service of a running host ends, the others go on.

use std::{convert::Infallible, time::Duration};

use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::{
    cli::ServiceArgs,
    commands::{
        admin_client::{Endpoint, outcome, part},
        progress::Progress,
    },
    error::Failure,
};

/// Interval of the looks at the requests in flight.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for one look. A host that is busy must not hold up the drain.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Outcome of one drain.
#[derive(Deserialize)]
struct Drained {
    service: String,
    listen: String,
    keys_gone: bool,
    all_answered: bool,
}

/// The part of the host's status that is shown meanwhile.
#[derive(Deserialize)]
struct Status {
    services: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    requests: Requests,
}

#[derive(Deserialize)]
struct Requests {
    in_flight: i64,
}

/// Requests the drain, waits with a line of progress, and reports on stdout.
pub(crate) async fn drain(args: ServiceArgs) -> Result<(), Failure> {
    let name = part(&args.name);
    let endpoint = Endpoint::of(&args.host).await?;
    let progress = Progress::of(format!("draining {}", args.name));
    let drained = async {
        let path = format!("/drain/{name}");
        tokio::select! {
            drained = endpoint.post(&path) => drained,
            never = look(&endpoint, &name, &args.name, &progress) => match never {},
        }
    };
    let (all, answer): (Vec<Drained>, _) = progress.during(drained).await?;
    outcome(&all, &answer, args.json, line, |_| false, "are not drained")
}

/// Shows the number of requests in flight until the drain ends.
async fn look(endpoint: &Endpoint, part: &str, name: &str, progress: &Progress) -> Infallible {
    let path = format!("/status/{part}");
    loop {
        sleep(LOOK).await;
        // The drain itself says what is wrong with the host.
        let Ok(Ok((status, _))) = timeout(LOOK_TIMEOUT, endpoint.get::<Status>(&path)).await else { continue };
        progress.describe(waiting(name, status.services.iter().map(|service| service.requests.in_flight).sum()));
    }
}

fn waiting(name: &str, in_flight: i64) -> String {
    match in_flight {
        ..=0 => format!("draining {name}: no request in flight; until its clients have left"),
        1 => format!("draining {name}: 1 request in flight"),
        _ => format!("draining {name}: {in_flight} requests in flight"),
    }
}

fn line(drained: &Drained) -> String {
    let keys = if drained.keys_gone { "" } else { "; its keys go with their lease" };
    let requests = if drained.all_answered { "" } else { "; requests were cut off" };
    format!("{} on {} is drained{keys}{requests}\n", drained.service, drained.listen)
}

#[cfg(test)]
mod tests {
    use super::waiting;

    #[test]
    fn progress_counts_the_requests_in_flight() {
        assert_eq!(waiting("a", 2), "draining a: 2 requests in flight");
        assert_eq!(waiting("a", 1), "draining a: 1 request in flight");
        assert!(waiting("a", 0).starts_with("draining a: no request in flight"));
    }
}
