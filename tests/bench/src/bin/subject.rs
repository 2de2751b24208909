//! Our side of `make bench-lease`: a process that registers, holds and stops on command, like the peer.
//!
//! One command per line on stdin, one JSON object per line on stdout. The commands are those of the peer, see
//! `tests/peers/usual-client/README.md`.

use std::{fs, sync::Arc, time::Duration, time::Instant};

use anyhow::{Context, Result, bail};
use leasehold::{LoadSource, Options, Registrar, Registration, ServerNode, Weight};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
};

/// Concurrent registrations. Group commits need many callers: each of ten leases has a full transaction in flight while the next
/// one fills. The peer gets slower beyond its 256.
const AT_A_TIME: usize = 3000;

#[expect(clippy::print_stdout, reason = "the harness reads it")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // No log unless RUST_LOG is set.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let endpoint = std::env::args().nth(1).context("usage: subject ENDPOINT")?;
    // A fixed weight, so that nothing changes during the idle measurement.
    let options = Options {
        load: LoadSource::Fixed(Weight::try_from(73)?),
        register_timeout: Duration::from_secs(60),
        stop_timeout: Duration::from_secs(60),
        ..Options::new([endpoint])
    };
    let mut subject = Subject { registrar: Arc::new(Registrar::start(options)?), held: Vec::new(), fresh: 0 };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["quit"] => break,
            ["register", count, instances] => subject.register(count.parse()?, instances.parse()?).await,
            ["one"] => subject.one().await,
            ["hold", seconds] => hold(seconds.parse()?).await,
            ["memory"] => Ok(json!({ "rss_bytes": rss_bytes()? })),
            ["stop"] => subject.stop().await,
            _ => bail!("unknown command {line:?}"),
        };
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })));
    }
    subject.registrar.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}

struct Subject {
    registrar: Arc<Registrar>,
    held: Vec<Registration>,
    fresh: usize,
}

impl Subject {
    async fn register(&mut self, count: usize, instances: usize) -> Result<Value> {
        let started = Instant::now();
        let mut calls = JoinSet::new();
        self.held.reserve_exact(count);
        for index in 0..count {
            if calls.len() == AT_A_TIME {
                self.held.push(calls.join_next().await.context("a call")???);
            }
            let registrar = self.registrar.clone();
            let addr = format!("10.{}.{}.{}:8080", index >> 16, index >> 8 & 255, index & 255);
            let node = ServerNode::new(&format!("svc-{}", index / instances), &addr)?;
            calls.spawn(async move { registrar.register(node).await });
        }
        while let Some(call) = calls.join_next().await {
            self.held.push(call??);
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(json!({ "seconds": seconds, "registered": count }))
    }

    async fn one(&mut self) -> Result<Value> {
        let node = ServerNode::new(&format!("one-{}", self.fresh), "10.0.0.1:1")?;
        self.fresh += 1;
        let started = Instant::now();
        let registration = self.registrar.register(node).await?;
        let micros = started.elapsed().as_micros();
        self.held.push(registration);
        Ok(json!({ "micros": u64::try_from(micros)? }))
    }

    async fn stop(&mut self) -> Result<Value> {
        let started = Instant::now();
        let stopped = self.held.len();
        let mut calls = JoinSet::new();
        for registration in self.held.drain(..) {
            calls.spawn(async move { registration.stop().await });
        }
        while let Some(call) = calls.join_next().await {
            call??;
        }
        Ok(json!({ "seconds": started.elapsed().as_secs_f64(), "stopped": stopped }))
    }
}

async fn hold(seconds: u64) -> Result<Value> {
    let before = cpu_seconds()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(json!({ "seconds": seconds, "cpu_seconds": cpu_seconds()? - before, "rss_bytes": rss_bytes()? }))
}

/// CPU time of this process.
fn cpu_seconds() -> Result<f64> {
    let mut nanos = 0u64;
    for task in fs::read_dir("/proc/self/task")? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += stat.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

fn rss_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
