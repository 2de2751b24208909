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
const SEEN: usize = 1000;
const TAKEN_OVER: usize = 20;
/// How many of the nodes a component is told: by default, and where its limits say less.
const TOLD: [usize; 2] = [1000, 100];
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

/// Answers over HTTP.
#[derive(Debug, Clone, Copy)]
struct Answered {
    median_micros: f64,
    p99_micros: f64,
    /// Of the median, what etcd takes to confirm the put.
    put_micros: f64,
    /// One answer while nothing happens.
    one_micros: f64,
    /// How many of 100 answers that are asked for first once etcd has confirmed the put have not heard of it.
    unheard: f64,
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
        let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let (mut answered, mut answered_theirs) = (TOLD.map(|_| Vec::new()), Vec::new());
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
            for side in 0..2 {
                match (round + side) % 2 {
                    0 => {
                        for (told, answered) in TOLD.into_iter().zip(&mut answered) {
                            answered.push(Box::pin(ask_a_component(&etcd, layout, told)).await?);
                        }
                    }
                    _ => answered_theirs.push(ask_a_peer(format!("target/peers/{peer}").into(), &etcd, layout).await?),
                }
            }
            bare.push(bare_read(&etcd, layout).await?);
        }
        print(layout, &ours, &theirs, &bare);
        for (told, answered) in TOLD.into_iter().zip(&answered) {
            print_answers(layout, told, answered, &answered_theirs);
        }
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

/// Who answers over HTTP whether a node is there.
struct Asked {
    addr: String,
    /// Before the port of the node that is asked for, and behind it.
    url: [String; 2],
    /// Where the node is put.
    key: String,
}

/// From before the put of a node to the answer over HTTP of a component that was told of it. It is told so many nodes, and
/// the new one is put among those.
async fn ask_a_component(etcd: &Etcd, layout: &str, most: usize) -> Result<Answered> {
    let may = json!({ "allow": { "discover": ["user"] }, "limits": { "nodes": most } });
    let config = json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "registry": { "layout": layout },
        "services": [with(hostile("asked"), may)],
    });
    let host = Host::ready(&config).await;
    let mut connection = Kept::open(Protocol::Http1, &host.addr("asked")).await;
    let layout: Layout = layout.parse()?;
    let told = connection.answer(&format!("{}act/resolve/user", host.url("asked"))).await.json();
    let told: Vec<_> = told["text"].as_str().with_context(|| format!("the component says {told}"))?.lines().collect();
    if told.len() != most {
        bail!("it is told {} nodes, and should be {most}", told.len());
    }
    let addr = told[most / 2].split_whitespace().nth(1).context("a node has an address")?;
    // What sorts behind a key, and before the next one.
    let key = layout.key(&ServerNode::new("user", addr)?) + "z";
    let url = [format!("{}act/sees/user/", host.url("asked")), String::new()];
    let answered = ask(etcd, &layout, &Asked { addr: host.addr("asked"), url, key }).await?;
    host.stop().await;
    Ok(answered)
}

/// The same of a service that is asked so beside its library, and looks for that node alone.
async fn ask_a_peer(path: PathBuf, etcd: &Etcd, layout: &str) -> Result<Answered> {
    let mut side = Side::start(&path, etcd, layout)?;
    side.ask("view user").await?;
    let served = side.ask("serve").await?;
    let addr = served.0["addr"].as_str().context("it says where it serves")?.to_owned();
    let layout: Layout = layout.parse()?;
    let key = layout.key(&ServerNode::new("user", "10.0.0.1:1000")?) + "z";
    let url = [format!("http://{addr}/"), format!("?key={key}")];
    let answered = ask(etcd, &layout, &Asked { addr, url, key }).await?;
    side.quit().await?;
    Ok(answered)
}

async fn ask(etcd: &Etcd, layout: &Layout, asked: &Asked) -> Result<Answered> {
    let mut client = etcd.client().await;
    let mut connection = Kept::open(Protocol::Http1, &asked.addr).await;
    let (mut micros, mut confirmed, mut one, mut unheard) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for port in 20_000..20_000 + SEEN {
        let url = format!("{}{port}{}", asked.url[0], asked.url[1]);
        let mut sees = async |wanted: &str| -> Result<(f64, bool)> {
            for asked in 0.. {
                let begun = Instant::now();
                let answer = connection.answer(&url).await.json();
                match answer["text"].as_str() {
                    Some(text) if answer["case"] == "ok" && text == wanted => {
                        return Ok((begun.elapsed().as_secs_f64() * 1e6, asked == 0));
                    }
                    Some("true" | "false") => {}
                    _ => bail!("the service says {answer}"),
                }
            }
            unreachable!("it is asked until it sees that")
        };
        let node = ServerNode::new("user", &format!("10.9.9.9:{port}"))?;
        let value = layout.value(&node, Weight::MAX);
        one.push(sees("false").await?.0);
        let begun = Instant::now();
        client.put(asked.key.as_str(), value, None).await?;
        confirmed.push(begun.elapsed().as_secs_f64() * 1e6);
        unheard += usize::from(!sees("true").await?.1);
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        client.delete(asked.key.as_str(), None).await?;
        sees("false").await?;
    }
    micros.sort_by(f64::total_cmp);
    let (median_micros, p99_micros) = (micros[SEEN / 2], micros[SEEN * 99 / 100]);
    let unheard = unheard as f64 * 100.0 / SEEN as f64;
    Ok(Answered { median_micros, p99_micros, put_micros: median(confirmed), one_micros: median(one), unheard })
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
fn print(layout: &str, ours: &[Measured], peer: &[Measured], bare: &[f64]) {
    let median_of = |all: &[Measured], of: fn(&Measured) -> f64| median(all.iter().map(of).collect());
    let line = |name: &str, of: fn(&Measured) -> f64, times: f64, goal: &str| {
        beside(layout, name, [median_of(ours, of), median_of(peer, of)], Some((times, goal)));
    };
    line("first view of 100,000 nodes (s)", |m| m.first_seconds, 2.0, "2 times less");
    let name = format!("{layout}: a bare read by a client of Rust (s)");
    println!("{name:<58} {:>12} {:>12.3} {:>10}", "-", median(bare.to_vec()), "-");
    line("memory of the view (MiB)", |m| m.bytes / 1048576.0, 3.0, "3 times less");
    line("from a put to the view, median (us)", |m| m.median_micros, 1.0, "no more");
    line("from a put to the view, p99 (us)", |m| m.p99_micros, 1.0, "no more");
    let pick = median_of(ours, |m| m.pick_nanos);
    let verdict = if pick <= 100.0 { "ok" } else { "short" };
    let name = format!("{layout}: a pick (ns)");
    println!("{name:<58} {pick:>12.1} {:>12} {:>10}  {:<22} {verdict}", "-", "-", "at most 100");
    let (name, taken) =
        (format!("{layout}: a pick that takes a change over (us)"), median_of(ours, |m| m.take_over_micros));
    println!("{name:<58} {taken:>12.1} {:>12} {:>10}", "-", "-");
}

fn print_answers(layout: &str, told: usize, ours: &[Answered], peer: &[Answered]) {
    let line = |name: &str, of: fn(&Answered) -> f64, goal| {
        let median_of = |all: &[Answered]| median(all.iter().map(of).collect());
        beside(layout, &format!("told {told}, {name}"), [median_of(ours), median_of(peer)], goal);
    };
    let goal = Some((1.0, "no more"));
    line("put to answer over HTTP, median (us)", |a| a.median_micros, goal);
    line("put to answer over HTTP, p99 (us)", |a| a.p99_micros, goal);
    line("first answers without it (%)", |a| a.unheard, goal);
    line("until etcd confirms the put (us)", |a| a.put_micros, None);
    line("an answer, nothing happening (us)", |a| a.one_micros, None);
}

/// A line: ours and the peer's, and how many times less ours should be.
#[expect(clippy::print_stdout, reason = "a command speaks to its user")]
fn beside(layout: &str, name: &str, [ours, peer]: [f64; 2], goal: Option<(f64, &str)>) {
    let name = format!("{layout}: {name}");
    let (goal, verdict) = match goal {
        Some((times, goal)) => (goal, if ours * times <= peer { "ok" } else { "short" }),
        None => ("", ""),
    };
    println!("{name:<58} {ours:>12.3} {peer:>12.3} {:>9.1}x  {goal:<22} {verdict}", peer / ours);
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
