//! `make bench-lease`: one line per figure, ours and the peer's measured in turn on the same kind of fresh etcd.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Client, GetOptions};
use leasehold_scenarios::real::Etcd;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

/// Timeout of a single command.
const PATIENCE: Duration = Duration::from_secs(600);
const REGISTRATIONS: u64 = 10_000;
const INSTANCES: u64 = 10;
const SINGLES: usize = 30;
const HOLD_SECONDS: u64 = 20;

/// Paths of both sides.
struct Sides {
    ours: PathBuf,
    peer: PathBuf,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its user")]
#[tokio::main]
async fn main() -> Result<()> {
    let mut rounds = 5;
    let mut sides = Sides { ours: "target/release/subject".into(), peer: "target/peers/usual-client".into() };
    let mut large = true;
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next()) {
            ("--rounds", Some(number)) => rounds = number.parse()?,
            ("--ours", Some(path)) => sides.ours = path.into(),
            ("--peer", Some(path)) => sides.peer = path.into(),
            ("--large", Some(answer)) => large = answer == "yes",
            _ => bail!("usage: bench [--rounds N] [--ours PATH] [--peer PATH] [--large yes|no]"),
        }
    }
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        // Each side goes first in every other round.
        if round % 2 == 1 {
            ours.push(Box::pin(measure(&sides.ours)).await?);
            peer.push(Box::pin(measure(&sides.peer)).await?);
        } else {
            peer.push(Box::pin(measure(&sides.peer)).await?);
            ours.push(Box::pin(measure(&sides.ours)).await?);
        }
    }
    println!("{:<52} {:>12} {:>12} {:>10}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    for figure in FIGURES {
        figure.print(&ours, &peer);
    }
    if large {
        println!("{}", hundred_thousand(&sides.ours).await?);
    }
    Ok(())
}

/// Figures of one side in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    register_seconds: f64,
    lost: f64,
    cpu_percent: f64,
    revisions_per_second: f64,
    bytes_each: f64,
    stop_seconds: f64,
    back_seconds: f64,
    one_millis: f64,
}

struct Figure {
    name: &'static str,
    of: fn(&Measured) -> f64,
    goal: Goal,
}

/// Goal of a figure.
enum Goal {
    /// At least this many times less than the peer.
    TimesLess(f64),
    /// At most this value, independent of the peer.
    AtMost(f64),
    /// No more than the peer.
    NoMore,
}

const FIGURES: [Figure; 8] = [
    Figure { name: "register 10,000 (s)", of: |m| m.register_seconds, goal: Goal::TimesLess(12.0) },
    Figure { name: "lost of 10,000 just registered", of: |m| m.lost, goal: Goal::AtMost(0.0) },
    Figure { name: "CPU while it holds 10,000 (% of a core)", of: |m| m.cpu_percent, goal: Goal::TimesLess(50.0) },
    Figure {
        name: "etcd revisions while nothing changes (/s)",
        of: |m| m.revisions_per_second,
        goal: Goal::AtMost(0.0),
    },
    Figure { name: "memory per registration (bytes)", of: |m| m.bytes_each, goal: Goal::AtMost(2048.0) },
    Figure { name: "stop 10,000 (s)", of: |m| m.stop_seconds, goal: Goal::TimesLess(15.0) },
    Figure { name: "all 10,000 back, etcd without data (s)", of: |m| m.back_seconds, goal: Goal::TimesLess(8.0) },
    Figure { name: "one registration, call to response (ms)", of: |m| m.one_millis, goal: Goal::NoMore },
];

impl Figure {
    #[expect(clippy::print_stdout, reason = "a command speaks to its user")]
    fn print(&self, ours: &[Measured], peer: &[Measured]) {
        let (ours, peer) = (median(ours.iter().map(self.of)), median(peer.iter().map(self.of)));
        let (goal, met) = match self.goal {
            Goal::TimesLess(times) => (format!("{times} times less"), ours * times <= peer),
            Goal::AtMost(most) => (format!("at most {most}"), ours <= most),
            Goal::NoMore => ("no more".to_owned(), ours <= peer),
        };
        let ratio = if ours > 0.0 { format!("{:.1}x", peer / ours) } else { "-".to_owned() };
        let verdict = if met { "ok" } else { "short" };
        println!("{:<52} {ours:>12.3} {peer:>12.3} {ratio:>10}  {goal:<22} {verdict}", self.name);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

async fn measure(side: &Path) -> Result<Measured> {
    let mut etcd = Box::pin(Etcd::start()).await;
    let mut side = Side::start(side, &etcd.endpoint()).await?;
    let empty = side.run("memory").await?.number("rss_bytes")?;

    let registered = side.run(&format!("register {REGISTRATIONS} {INSTANCES}")).await?;
    // Counted in etcd, for both sides.
    let lost = REGISTRATIONS.saturating_sub(count(&etcd).await?) as f64;
    let full = side.run("memory").await?.number("rss_bytes")?;

    let before = revision(&etcd).await?;
    let held = side.run(&format!("hold {HOLD_SECONDS}")).await?;
    let revisions = revision(&etcd).await? - before;

    let mut singles = Vec::new();
    for _ in 0..SINGLES {
        singles.push(side.run("one").await?.number("micros")? / 1000.0);
    }

    let total = REGISTRATIONS + SINGLES as u64;
    etcd.restart(false).await;
    let restarted = Instant::now();
    timeout(PATIENCE, async {
        while count(&etcd).await? < total {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    })
    .await
    .context("not everything came back")??;
    let back_seconds = restarted.elapsed().as_secs_f64();

    let stopped = side.run("stop").await?;
    side.quit().await?;
    Ok(Measured {
        register_seconds: registered.number("seconds")?,
        lost,
        cpu_percent: 100.0 * held.number("cpu_seconds")? / held.number("seconds")?,
        revisions_per_second: revisions as f64 / HOLD_SECONDS as f64,
        bytes_each: (full - empty) / REGISTRATIONS as f64,
        stop_seconds: stopped.number("seconds")?,
        back_seconds,
        one_millis: median(singles.into_iter()),
    })
}

/// Measures a hundred thousand registrations on one host: register, hold for five minutes, stop.
async fn hundred_thousand(side: &Path) -> Result<String> {
    const MANY: u64 = 100_000;
    let etcd = Box::pin(Etcd::start()).await;
    let mut side = Side::start(side, &etcd.endpoint()).await?;
    let empty = side.run("memory").await?.number("rss_bytes")?;
    let registered = side.run(&format!("register {MANY} 100")).await?;
    let held = side.run("hold 300").await?;
    let standing = count(&etcd).await?;
    ensure!(standing == MANY, "{standing} of {MANY} stand after five minutes");
    let bytes = (held.number("rss_bytes")? - empty) / MANY as f64;
    let cpu = 100.0 * held.number("cpu_seconds")? / held.number("seconds")?;
    let stopped = side.run("stop").await?;
    let left = count(&etcd).await?;
    ensure!(left == 0, "{left} keys are left after the stop");
    side.quit().await?;
    Ok(format!(
        "100,000 on one host: registered in {:.2} s, all stand after 5 minutes at {cpu:.2} % of a core and \
         {bytes:.0} bytes each, stopped in {:.2} s",
        registered.number("seconds")?,
        stopped.number("seconds")?
    ))
}

async fn revision(etcd: &Etcd) -> Result<i64> {
    let answer = control(etcd).await.get("/", None).await?;
    Ok(answer.header().context("a header")?.revision())
}

async fn count(etcd: &Etcd) -> Result<u64> {
    let all = GetOptions::new().with_prefix().with_count_only();
    Ok(u64::try_from(control(etcd).await.get("/", Some(all)).await?.count())?)
}

async fn control(etcd: &Etcd) -> Client {
    etcd.client().await
}

/// A side under measurement.
struct Side {
    child: Child,
    commands: ChildStdin,
    responses: Lines<BufReader<ChildStdout>>,
}

impl Side {
    async fn start(path: &Path, endpoint: &str) -> Result<Self> {
        let is_peer = path.file_name().is_some_and(|name| name == "usual-client");
        let mut command = Command::new(path);
        if is_peer {
            command.arg("-endpoints");
        }
        let mut child = command
            .arg(endpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} is missing; `make bench-lease` builds it", path.display()))?;
        let commands = child.stdin.take().context("stdin")?;
        let responses = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut side = Self { child, commands, responses };
        side.run("memory").await?; // It has started.
        Ok(side)
    }

    async fn run(&mut self, command: &str) -> Result<Response> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        let line = timeout(PATIENCE, self.responses.next_line())
            .await
            .with_context(|| format!("{command}: no response"))??;
        let line = line.with_context(|| format!("{command}: the process ended"))?;
        let answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        Ok(Response(answer))
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
