//! Counts late and failed renewals while components burn every core for minutes.

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Host,
    config::{config, hostile, plain, with},
    http::get,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};

/// Default time to live of the leases, in seconds.
const TTL: u64 = 10;
/// A renewal is late if its interval exceeds a third of the TTL by more than this.
const SLACK: Duration = Duration::from_millis(500);
/// Concurrent requests that compute without end: more than there are threads for them.
const SPINNING: usize = 8;

#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let minutes: u64 = env::args().nth(1).map_or(10, |text| text.parse().expect("usage: isolation [MINUTES]"));
    let world = World::real().await;
    let limits = json!({ "register": "host", "limits": { "request_timeout": "2s" } });
    let services = [with(hostile("hostile"), limits), plain("plain")];
    let config = with(config(&world, services), json!({ "registry": { "ttl": format!("{TTL}s") } }));
    // With the debug log, which has a line per renewal.
    let mut host = Host::spawn(&config, &["-v"]);
    host.event("ready").await;
    let keys = ["hostile", "plain"].map(|name| format!("/{name}/{}", host.addr(name)));
    let before = [world.get(&keys[0]).await, world.get(&keys[1]).await];

    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let spin = format!("{}act/spin", host.url("hostile"));
    let spinning: Vec<_> = (0..SPINNING)
        .map(|_| {
            let spin = spin.clone();
            tokio::spawn(async move {
                let mut stopped = 0;
                while Instant::now() < end {
                    stopped += u32::from(get(&spin).await.status == 504);
                }
                stopped
            })
        })
        .collect();
    let mut answers = 0;
    while Instant::now() < end {
        answers += u32::from(get(&host.url("plain")).await.status == 200);
    }
    let mut stopped = 0;
    for spun in spinning {
        stopped += spun.await.expect("it does not panic");
    }

    let stand = before == [world.get(&keys[0]).await, world.get(&keys[1]).await];
    let log = host.log();
    let ended = host.stop().await.code == Some(0);
    let renewals: Vec<Duration> = log.iter().filter(|line| is(line, "renewed")).map(time).collect();
    let gaps: Vec<Duration> = renewals.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    let late = gaps.iter().filter(|gap| **gap > Duration::from_secs(TTL) / 3 + SLACK).count();
    let failed = log.iter().filter(|line| is(line, "suspect") || is(line, "recovering")).count();
    let longest = gaps.iter().max().copied().unwrap_or_default();
    let wanted = 60 * minutes * 3 / TTL;
    println!(
        "{minutes} minutes with every core burning: {} renewals of at least {wanted}, {late} late, {failed} failed, the \
         longest pause {longest:.1?}; {stopped} requests stopped, {answers} of the neighbour answered",
        renewals.len()
    );
    let sound = renewals.len() as u64 >= wanted && late == 0 && failed == 0 && stopped > 0 && answers > 0;
    if sound && stand && ended { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is(line: &Value, event: &str) -> bool {
    line["event"] == event
}

/// Time of a line since midnight; an interval over midnight counts as zero.
fn time(line: &Value) -> Duration {
    let stamp = line["timestamp"].as_str().expect("every line has a time");
    let [hours, minutes, seconds] = [11..13, 14..16, 17..26].map(|part| stamp[part].parse::<f64>().expect("a number"));
    Duration::from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds)
}
