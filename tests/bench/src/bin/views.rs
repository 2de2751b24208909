//! `make bench-views`: views of 100,000 nodes of one service, ours beside two libraries, in turn on one etcd; and the nodes that a
//! component gets.

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
/// Idle time of etcd after the puts of all nodes.
const SETTLE: Duration = Duration::from_secs(2);
const SEEN: usize = 1000;
const TAKEN_OVER: usize = 20;
/// Number of nodes that a component gets: the default, and a lower limit.
const RESOLVED: [usize; 2] = [1000, 100];
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

/// Times of responses over HTTP.
#[derive(Debug, Clone, Copy)]
struct Polled {
    median_micros: f64,
    p99_micros: f64,
    /// Part of the median until etcd confirms the put.
    put_micros: f64,
    /// One response while nothing changes.
    idle_micros: f64,
    /// Percentage of first responses after a confirmed put that do not include it.
    stale_percent: f64,
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
        let (mut polled, mut polled_theirs) = (RESOLVED.map(|_| Vec::new()), Vec::new());
        for round in 0..rounds {
            eprintln!("{peer}: round {} of {rounds}", round + 1);
            let etcd = Box::pin(Etcd::start()).await;
            fill(&mut etcd.client().await, &layout.parse()?).await?;
            // etcd's work after the puts must not count as reading.
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
                        for (nodes, polled) in RESOLVED.into_iter().zip(&mut polled) {
                            polled.push(Box::pin(poll_a_component(&etcd, layout, nodes)).await?);
                        }
                    }
                    _ => polled_theirs.push(poll_a_peer(format!("target/peers/{peer}").into(), &etcd, layout).await?),
                }
            }
            bare.push(bare_read(&etcd, layout).await?);
        }
        print(layout, &ours, &theirs, &bare);
        for (nodes, polled) in RESOLVED.into_iter().zip(&polled) {
            print_polled(layout, nodes, polled, &polled_theirs);
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

/// A server that reports over HTTP if its view has a node.
struct Server {
    addr: String,
    /// The parts of the URL before and after the port of the node.
    url: [String; 2],
    /// The key of the node.
    key: String,
}

/// Measures the time from the put of a node to the response of a component that resolves it. The component gets `limit` nodes,
/// and the new node is put among them.
async fn poll_a_component(etcd: &Etcd, layout: &str, limit: usize) -> Result<Polled> {
    let may = json!({ "allow": { "discover": ["user"] }, "limits": { "nodes": limit } });
    let config = json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "registry": { "layout": layout },
        "services": [with(hostile("polled"), may)],
    });
    let host = Host::ready(&config).await;
    let mut connection = Kept::open(Protocol::Http1, &host.addr("polled")).await;
    let layout: Layout = layout.parse()?;
    let found = connection.answer(&format!("{}act/resolve/user", host.url("polled"))).await.json();
    let found: Vec<_> =
        found["text"].as_str().with_context(|| format!("the component returned {found}"))?.lines().collect();
    if found.len() != limit {
        bail!("the component gets {} nodes, and should get {limit}", found.len());
    }
    let addr = found[limit / 2].split_whitespace().nth(1).context("a node has an address")?;
    // A key that sorts between this node's key and the next one.
    let key = layout.key(&ServerNode::new("user", addr)?) + "z";
    let url = [format!("{}act/sees/user/", host.url("polled")), String::new()];
    let polled = poll(etcd, &layout, &Server { addr: host.addr("polled"), url, key }).await?;
    host.stop().await;
    Ok(polled)
}

/// Measures the same time for a service that looks up only that node in its library.
async fn poll_a_peer(path: PathBuf, etcd: &Etcd, layout: &str) -> Result<Polled> {
    let mut side = Side::start(&path, etcd, layout)?;
    side.run("view user").await?;
    let served = side.run("serve").await?;
    let addr = served.0["addr"].as_str().context("the peer has an address")?.to_owned();
    let layout: Layout = layout.parse()?;
    let key = layout.key(&ServerNode::new("user", "10.0.0.1:1000")?) + "z";
    let url = [format!("http://{addr}/"), format!("?key={key}")];
    let polled = poll(etcd, &layout, &Server { addr, url, key }).await?;
    side.quit().await?;
    Ok(polled)
}

async fn poll(etcd: &Etcd, layout: &Layout, server: &Server) -> Result<Polled> {
    let mut client = etcd.client().await;
    let mut connection = Kept::open(Protocol::Http1, &server.addr).await;
    let (mut micros, mut confirmed, mut idle, mut stale) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for port in 20_000..20_000 + SEEN {
        let url = format!("{}{port}{}", server.url[0], server.url[1]);
        let mut sees = async |wanted: &str| -> Result<(f64, bool)> {
            for attempt in 0.. {
                let begun = Instant::now();
                let answer = connection.answer(&url).await.json();
                match answer["text"].as_str() {
                    Some(text) if answer["case"] == "ok" && text == wanted => {
                        return Ok((begun.elapsed().as_secs_f64() * 1e6, attempt == 0));
                    }
                    Some("true" | "false") => {}
                    _ => bail!("the service returned {answer}"),
                }
            }
            unreachable!("polls until the response is as wanted")
        };
        let node = ServerNode::new("user", &format!("10.9.9.9:{port}"))?;
        let value = layout.value(&node, Weight::MAX);
        idle.push(sees("false").await?.0);
        let begun = Instant::now();
        client.put(server.key.as_str(), value, None).await?;
        confirmed.push(begun.elapsed().as_secs_f64() * 1e6);
        stale += usize::from(!sees("true").await?.1);
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        client.delete(server.key.as_str(), None).await?;
        sees("false").await?;
    }
    micros.sort_by(f64::total_cmp);
    let (median_micros, p99_micros) = (micros[SEEN / 2], micros[SEEN * 99 / 100]);
    let stale_percent = stale as f64 * 100.0 / SEEN as f64;
    Ok(Polled { median_micros, p99_micros, put_micros: median(confirmed), idle_micros: median(idle), stale_percent })
}

async fn measure(path: PathBuf, etcd: &Etcd, layout: &str, picks: bool) -> Result<Measured> {
    let mut side = Side::start(&path, etcd, layout)?;
    let empty = side.run("memory").await?.number("rss_bytes")?;
    let first = side.run("view user").await?;
    if first.number("nodes")? < NODES as f64 {
        bail!("it sees only {}", first.0);
    }
    let full = side.run("memory").await?.number("rss_bytes")?;
    let seen = side.run(&format!("see {SEEN}")).await?;
    let (mut pick_nanos, mut take_over_micros) = (f64::NAN, f64::NAN);
    if picks {
        pick_nanos = side.run(&format!("pick {PICKS}")).await?.number("nanos")?;
        take_over_micros = side.run(&format!("take-over {TAKEN_OVER}")).await?.number("median_micros")?;
    }
    side.quit().await?;
    // The next side puts the same nodes, which must be new.
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

/// Measures one read of all nodes by a client that does not parse them: a lower bound for all sides.
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
    let name = format!("{layout}: a bare read by a Rust client (s)");
    println!("{name:<58} {:>12} {:>12.3} {:>10}", "-", median(bare.to_vec()), "-");
    line("memory of the view (MiB)", |m| m.bytes / 1048576.0, 3.0, "3 times less");
    line("from a put to the view, p50 (us)", |m| m.median_micros, 1.0, "no more");
    line("from a put to the view, p99 (us)", |m| m.p99_micros, 1.0, "no more");
    let pick = median_of(ours, |m| m.pick_nanos);
    let verdict = if pick <= 100.0 { "ok" } else { "short" };
    let name = format!("{layout}: a pick (ns)");
    println!("{name:<58} {pick:>12.1} {:>12} {:>10}  {:<22} {verdict}", "-", "-", "at most 100");
    let (name, taken) =
        (format!("{layout}: a pick that applies a change (us)"), median_of(ours, |m| m.take_over_micros));
    println!("{name:<58} {taken:>12.1} {:>12} {:>10}", "-", "-");
}

fn print_polled(layout: &str, nodes: usize, ours: &[Polled], peer: &[Polled]) {
    let line = |name: &str, of: fn(&Polled) -> f64, goal| {
        let median_of = |all: &[Polled]| median(all.iter().map(of).collect());
        beside(layout, &format!("{nodes} nodes, {name}"), [median_of(ours), median_of(peer)], goal);
    };
    let goal = Some((1.0, "no more"));
    line("put to response over HTTP, p50 (us)", |a| a.median_micros, goal);
    line("put to response over HTTP, p99 (us)", |a| a.p99_micros, goal);
    line("stale first responses (%)", |a| a.stale_percent, goal);
    line("until etcd confirms the put (us)", |a| a.put_micros, None);
    line("a response while nothing changes (us)", |a| a.idle_micros, None);
}

/// Prints one figure: ours and the peer's, with the wanted ratio.
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
    responses: Lines<BufReader<ChildStdout>>,
}

impl Side {
    fn start(path: &Path, etcd: &Etcd, layout: &str) -> Result<Self> {
        let mut command = Command::new(path);
        command.arg(etcd.endpoint()).arg(layout).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let missing = || format!("{} is missing; `make bench-views` builds it", path.display());
        let mut child = command.spawn().with_context(missing)?;
        let commands = child.stdin.take().context("stdin")?;
        let responses = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, commands, responses })
    }

    async fn run(&mut self, command: &str) -> Result<Response> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        let line = timeout(PATIENCE, self.responses.next_line()).await;
        let line = line.with_context(|| format!("{command}: no response"))??;
        let answer: Value = serde_json::from_str(&line.with_context(|| format!("{command}: the process ended"))?)?;
        match answer.get("error") {
            Some(error) => bail!("{command}: {error}"),
            None => Ok(Response(answer)),
        }
    }

    async fn quit(mut self) -> Result<()> {
        self.commands.write_all(b"quit\n").await?;
        timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }
}

/// One JSON object of a side.
struct Response(Value);

impl Response {
    fn number(&self, field: &str) -> Result<f64> {
        self.0.get(field).and_then(Value::as_f64).with_context(|| format!("{} has no {field}", self.0))
    }
}
