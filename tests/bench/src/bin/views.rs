//! `make bench-views`: following 100,000 nodes of one service, ours beside two libraries, in turn on one etcd; and what a
//! component is told of them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use leasehold::{Layout, ServerNode, Version, Weight};
use leasehold_end_to_end::{
    Host,
    config::{hostile, with},
    http::{Kept, Protocol},
};
use leasehold_scenarios::real::Etcd;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

const NODES: usize = 100_000;
/// How long etcd is left alone after those were put.
const SETTLE: Duration = Duration::from_secs(2);
const SEEN: usize = 200;
const TAKEN_OVER: usize = 20;
const PICKS: usize = 10_000_000;
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Default, Clone, Copy)]
struct Measured {
    first_seconds: f64,
    bytes: f64,
    median_micros: f64,
    p99_micros: f64,
    pick_nanos: f64,
    take_over_micros: f64,
}

/// A component's answers.
#[derive(Debug, Clone, Copy)]
struct Answered {
    median_micros: f64,
    p99_micros: f64,
    /// Of the median, what etcd takes to confirm the put.
    put_micros: f64,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its user")]
#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 5,
        (Some("--rounds"), Some(number)) => number.parse()?,
        _ => bail!("usage: views [--rounds N]"),
    };
    println!("{:<58} {:>12} {:>12} {:>10}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    for (layout, peer) in [("etcd-naming", "endpoints-view"), ("go-zero", "go-zero-view")] {
        let (mut ours, mut theirs, mut answered, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{peer}: round {} of {rounds}", round + 1);
            let etcd = Box::pin(Etcd::start()).await;
            fill(&mut etcd.client().await, &layout.parse()?).await?;
            // What it has to do with what was put is no matter of reading.
            sleep(SETTLE).await;
            for side in 0..2 {
                match (round + side) % 2 {
                    0 => ours.push(measure("target/release/viewer".into(), &etcd, layout, true).await?),
                    _ => theirs.push(measure(format!("target/peers/{peer}").into(), &etcd, layout, false).await?),
                }
            }
            answered.push(Box::pin(ask_a_component(&etcd, layout)).await?);
            bare.push(bare_read(&etcd, layout).await?);
        }
        print(layout, &ours, &theirs, &answered, &bare);
    }
    Ok(())
}

async fn fill(client: &mut Client, layout: &Layout) -> Result<()> {
    let nodes = nodes()?;
    for chunk in nodes.chunks(100) {
        let put = |node: &ServerNode| TxnOp::put(layout.key(node), layout.value(node, Weight::MAX), None);
        client.txn(Txn::new().and_then(chunk.iter().map(put).collect::<Vec<_>>())).await?;
    }
    Ok(())
}

fn nodes() -> Result<Vec<ServerNode>> {
    let addrs = (0..NODES).map(|i| format!("10.0.{}.{}:{}", i / 250 % 250, i % 250, 1000 + i / 62_500));
    addrs.map(|addr| Ok(ServerNode::new("user", &addr)?)).collect()
}

/// From before the put of a node to the answer over HTTP of a component that was told of it. It is told 1000 nodes, and the
/// new one is put among those.
async fn ask_a_component(etcd: &Etcd, layout: &str) -> Result<Answered> {
    let config = json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "registry": { "layout": layout },
        "services": [with(hostile("asked"), json!({ "allow": { "discover": ["user"] } }))],
    });
    let host = Host::ready(&config).await;
    let mut connection = Kept::open(Protocol::Http1, &host.addr("asked")).await;
    let layout: Layout = layout.parse()?;
    let told = connection.answer(&format!("{}act/resolve/user", host.url("asked"))).await.json();
    let told: Vec<_> = told["text"].as_str().with_context(|| format!("the component says {told}"))?.lines().collect();
    let addr = told[told.len() / 2].split_whitespace().nth(1).context("a node has an address")?;
    // What sorts behind a key, and before the next one.
    let key = layout.key(&ServerNode::new("user", addr)?) + "z";
    let mut client = etcd.client().await;
    let (mut micros, mut confirmed) = (Vec::new(), Vec::new());
    for port in 20_000..20_000 + SEEN {
        let url = format!("{}act/sees/user/{port}", host.url("asked"));
        let mut sees = async |wanted: &str| -> Result<()> {
            loop {
                let answer = connection.answer(&url).await.json();
                match answer["text"].as_str() {
                    Some(text) if answer["case"] == "ok" && text == wanted => return Ok(()),
                    Some("true" | "false") => {}
                    _ => bail!("the component says {answer}"),
                }
            }
        };
        let node = ServerNode::new("user", &format!("10.9.9.9:{port}"))?;
        let value = layout.value(&node, Weight::MAX);
        sees("false").await?;
        let begun = Instant::now();
        client.put(key.as_str(), value, None).await?;
        confirmed.push(begun.elapsed().as_secs_f64() * 1e6);
        sees("true").await?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        client.delete(key.as_str(), None).await?;
        sees("false").await?;
    }
    host.stop().await;
    micros.sort_by(f64::total_cmp);
    let (median_micros, p99_micros) = (micros[SEEN / 2], micros[SEEN * 99 / 100]);
    Ok(Answered { median_micros, p99_micros, put_micros: median(confirmed) })
}

async fn measure(path: PathBuf, etcd: &Etcd, layout: &str, picks: bool) -> Result<Measured> {
    let mut side = Side::start(&path, etcd, layout)?;
    let empty = side.ask("memory").await?.number("rss_bytes")?;
    let first = side.ask("view user").await?;
    if first.number("nodes")? < NODES as f64 {
        bail!("it sees only {}", first.0);
    }
    let full = side.ask("memory").await?.number("rss_bytes")?;
    let seen = side.ask(&format!("see {SEEN}")).await?;
    let (mut pick_nanos, mut take_over_micros) = (f64::NAN, f64::NAN);
    if picks {
        pick_nanos = side.ask(&format!("pick {PICKS}")).await?.number("nanos")?;
        take_over_micros = side.ask(&format!("take-over {TAKEN_OVER}")).await?.number("median_micros")?;
    }
    side.quit().await?;
    // What it put is put again by the next, and must be new to it.
    let mut client = etcd.client().await;
    for port in (1..=SEEN).chain(10_000..10_000 + TAKEN_OVER) {
        let node = ServerNode::new("user", &format!("10.9.9.9:{port}"))?;
        let layout: Layout = layout.parse()?;
        client.delete(layout.key(&node), None).await?;
    }
    Ok(Measured {
        first_seconds: first.number("seconds")?,
        bytes: full - empty,
        median_micros: seen.number("median_micros")?,
        p99_micros: seen.number("p99_micros")?,
        pick_nanos,
        take_over_micros,
    })
}

/// How long etcd takes to tell all nodes to a client that makes nothing of them, in one answer. Nobody is much faster.
async fn bare_read(etcd: &Etcd, layout: &str) -> Result<f64> {
    let layout: Layout = layout.parse()?;
    let prefix = layout.prefix(&"user".parse()?, &Version::default());
    let mut client = etcd.client().await.kv_client().max_decoding_message_size(usize::MAX);
    let begun = Instant::now();
    client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    Ok(begun.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a command speaks to its user")]
fn print(layout: &str, ours: &[Measured], peer: &[Measured], answered: &[Answered], bare: &[f64]) {
    let median_of = |all: &[Measured], of: fn(&Measured) -> f64| median(all.iter().map(of).collect());
    let beside = |name: &str, ours: f64, peer: f64, times: f64, goal: &str| {
        let verdict = if ours * times <= peer { "ok" } else { "short" };
        let name = format!("{layout}: {name}");
        println!("{name:<58} {ours:>12.3} {peer:>12.3} {:>9.1}x  {goal:<22} {verdict}", peer / ours);
    };
    let line = |name: &str, of: fn(&Measured) -> f64, times: f64, goal: &str| {
        beside(name, median_of(ours, of), median_of(peer, of), times, goal);
    };
    line("first view of 100,000 nodes (s)", |m| m.first_seconds, 2.0, "2 times less");
    let name = format!("{layout}: a bare read by a client of Rust (s)");
    println!("{name:<58} {:>12} {:>12.3} {:>10}", "-", median(bare.to_vec()), "-");
    line("memory of the view (MiB)", |m| m.bytes / 1048576.0, 3.0, "3 times less");
    line("from a put to the answer, median (us)", |m| m.median_micros, 1.0, "no more");
    line("from a put to the answer, p99 (us)", |m| m.p99_micros, 1.0, "no more");
    let component = |name: &str, ours: fn(&Answered) -> f64, of: fn(&Measured) -> f64| {
        let ours = median(answered.iter().map(ours).collect());
        beside(&format!("from a put to a component's answer, {name} (us)"), ours, median_of(peer, of), 1.0, "no more");
    };
    component("median", |a| a.median_micros, |m| m.median_micros);
    component("p99", |a| a.p99_micros, |m| m.p99_micros);
    let (name, put) = (format!("{layout}: that put until etcd confirms it, median (us)"), |a: &Answered| a.put_micros);
    println!("{name:<58} {:>12.3} {:>12} {:>10}", median(answered.iter().map(put).collect()), "-", "-");
    let pick = median_of(ours, |m| m.pick_nanos);
    let verdict = if pick <= 100.0 { "ok" } else { "short" };
    let name = format!("{layout}: a pick (ns)");
    println!("{name:<58} {pick:>12.1} {:>12} {:>10}  {:<22} {verdict}", "-", "-", "at most 100");
    let (name, taken) =
        (format!("{layout}: a pick that takes a change over (us)"), median_of(ours, |m| m.take_over_micros));
    println!("{name:<58} {taken:>12.1} {:>12} {:>10}", "-", "-");
}

/// A process under measurement.
struct Side {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Side {
    fn start(path: &Path, etcd: &Etcd, layout: &str) -> Result<Self> {
        let mut command = Command::new(path);
        command.arg(etcd.endpoint()).arg(layout).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let missing = || format!("{} is missing; `make bench-views` builds it", path.display());
        let mut child = command.spawn().with_context(missing)?;
        let commands = child.stdin.take().context("stdin")?;
        let answers = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, commands, answers })
    }

    async fn ask(&mut self, command: &str) -> Result<Answer> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        let line = timeout(PATIENCE, self.answers.next_line()).await;
        let line = line.with_context(|| format!("{command}: no answer"))??;
        let answer: Value = serde_json::from_str(&line.with_context(|| format!("{command}: the process ended"))?)?;
        match answer.get("error") {
            Some(error) => bail!("{command}: {error}"),
            None => Ok(Answer(answer)),
        }
    }

    async fn quit(mut self) -> Result<()> {
        self.commands.write_all(b"quit\n").await?;
        timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }
}

/// One JSON object of a side.
struct Answer(Value);

impl Answer {
    fn number(&self, field: &str) -> Result<f64> {
        self.0.get(field).and_then(Value::as_f64).with_context(|| format!("{} has no {field}", self.0))
    }
}
