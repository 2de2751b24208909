//! Our side of `make bench-views`: a process that watches a service in etcd, like the peers.
//!
//! `viewer ENDPOINT LAYOUT`, one command per line on stdin, one JSON object per line on stdout; the commands are those of
//! the peers, see `tests/peers/endpoints-view/main.go`, `pick N`, and `take-over N`.

use std::{
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etcd_client::Client;
use leasehold::{Balancer, Layout, Options, Registrar, ServerNode, Version, View, Weight};
use mimalloc::MiMalloc;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::sleep,
};

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Port of the first node for `take-over`.
const TAKEN_OVER_FROM: u16 = 10_000;

#[expect(clippy::print_stdout, reason = "the harness reads it")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: viewer ENDPOINT LAYOUT";
    let (endpoint, layout) = (arguments.next().context(usage)?, arguments.next().context(usage)?);
    let layout: Layout = layout.parse()?;
    let client = Client::connect([&endpoint], None).await?;
    let patience = Duration::from_secs(60);
    let options = Options { layouts: vec![layout.clone()], request_timeout: patience, ..Options::new([endpoint]) };
    let mut viewer = Viewer { registrar: Registrar::start(options)?, layout, client, view: None };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["quit"] => break,
            ["memory"] => rss_bytes().map(|bytes| json!({ "rss_bytes": bytes })),
            ["view", name] => viewer.view(name).await,
            ["see", count] => viewer.see(count.parse()?).await,
            ["pick", count] => viewer.pick(count.parse()?),
            ["take-over", count] => viewer.take_over(count.parse()?).await,
            _ => bail!("unknown command {line:?}"),
        };
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })));
    }
    Ok(())
}

struct Viewer {
    registrar: Registrar,
    layout: Layout,
    client: Client,
    view: Option<View>,
}

impl Viewer {
    async fn view(&mut self, name: &str) -> Result<Value> {
        let begun = Instant::now();
        let view = self.registrar.watch(&name.parse()?, &Version::default()).await?;
        view.ready().await?;
        let nodes = view.nodes().len();
        let seconds = begun.elapsed().as_secs_f64();
        self.view = Some(view);
        Ok(json!({ "seconds": seconds, "nodes": nodes }))
    }

    /// Measures the time from the put of a node to the view that includes it.
    async fn see(&mut self, count: u16) -> Result<Value> {
        let mut micros = Vec::new();
        for port in 1..=count {
            let begun = Instant::now();
            self.add(port).await?;
            micros.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(summary(micros))
    }

    /// Puts a node, and waits until the view includes it.
    async fn add(&mut self, port: u16) -> Result<()> {
        let view = self.view.as_mut().context("no view yet")?;
        let node = ServerNode::new(view.name().as_str(), &format!("10.9.9.9:{port}"))?;
        let wanted = view.nodes().len() + 1;
        self.client.put(self.layout.key(&node), self.layout.value(&node, Weight::MAX), None).await?;
        while view.nodes().len() < wanted {
            view.changed().await?;
        }
        Ok(())
    }

    /// Measures the first pick after a change, which applies the change.
    async fn take_over(&mut self, count: u16) -> Result<Value> {
        let balancer = Balancer::new(self.view.clone().context("no view yet")?);
        balancer.pick(&[]).context("no node")?;
        let mut micros = Vec::new();
        for port in 0..count {
            self.add(TAKEN_OVER_FROM + port).await?;
            // Longer than a change may wait to be applied.
            sleep(Duration::from_millis(120)).await;
            let begun = Instant::now();
            black_box(balancer.pick(&[]));
            micros.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(summary(micros))
    }

    fn pick(&mut self, count: u32) -> Result<Value> {
        let balancer = Balancer::new(self.view.clone().context("no view yet")?);
        balancer.pick(&[]).context("no node")?;
        let begun = Instant::now();
        for _ in 0..count {
            black_box(balancer.pick(&[]));
        }
        Ok(json!({ "nanos": begun.elapsed().as_secs_f64() * 1e9 / f64::from(count) }))
    }
}

fn summary(mut micros: Vec<f64>) -> Value {
    micros.sort_by(f64::total_cmp);
    json!({ "median_micros": micros[micros.len() / 2], "p99_micros": micros[micros.len() * 99 / 100] })
}

fn rss_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = kib.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib * 1024)
}
