//! `make bench-serving`: requests served beside `wasmtime serve` and a native server, in turn, by the same load.

mod load;

use std::{
    env,
    net::TcpListener,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, hostile, plain, service, with},
    http::{Protocol, get, get_over},
    paths,
};
use leasehold_scenarios::world::World;
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

/// Requests that compute for ever at a time, beside the neighbour: more than there are threads for them.
const SPINNING: usize = 4;
/// Requests a second to the neighbour of those.
const NEIGHBOUR_RATE: f64 = 500.0;
/// Starts of a process in one round.
const STARTS: usize = 5;
/// The pause between two questions whether a process has started.
const POLL: Duration = Duration::from_micros(500);

/// What one round measures of one side.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    rate_p2: f64,
    rate_p2_reused: f64,
    rate_p3: f64,
    p99: f64,
    calls: f64,
    one_micros: f64,
    start_millis: f64,
    neighbour_p99: f64,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what it is for")]
#[tokio::main]
async fn main() {
    let rounds: usize = env::args().nth(1).map_or(5, |text| text.parse().expect("usage: serving [ROUNDS]"));
    let world = World::real().await;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let (our, peer) = Box::pin(measure(&world, round)).await;
        ours.push(our);
        peers.push(peer);
    }
    println!("{:<58} {:>10} {:>10} {:>8}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    for figure in FIGURES {
        let median_of = |rounds: &[Round]| median(rounds.iter().map(figure.of).collect());
        let (ours, peer) = (median_of(&ours), median_of(&peers));
        let ratio = ours / peer;
        let (goal, met) = match figure.goal {
            Goal::AtLeast(times) => (format!("at least {times} times"), ratio >= times),
            Goal::AtMost(times) => (format!("at most {times} times"), ratio <= times),
        };
        let verdict = if met { "ok" } else { "short" };
        println!("{:<58} {ours:>10.2} {peer:>10.2} {ratio:>7.2}x  {goal:<22} {verdict}", figure.name);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

struct Figure {
    name: &'static str,
    of: fn(&Round) -> f64,
    goal: Goal,
}

/// What is wanted of ours, as a share of the peer's.
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

const FIGURES: [Figure; 8] = [
    Figure { name: "requests/s, wasi:http 0.2; wasmtime serve", of: |r| r.rate_p2, goal: Goal::AtLeast(1.0) },
    Figure {
        name: "requests/s, 0.2 with instances reused; wasmtime serve",
        of: |r| r.rate_p2_reused,
        goal: Goal::AtLeast(2.0),
    },
    Figure { name: "requests/s, wasi:http 0.3; wasmtime serve", of: |r| r.rate_p3, goal: Goal::AtLeast(1.0) },
    Figure { name: "p99 at half of the rate, 0.2 (ms); wasmtime serve", of: |r| r.p99, goal: Goal::AtMost(1.0) },
    Figure { name: "gRPC unary calls/s; grpc-go", of: |r| r.calls, goal: Goal::AtLeast(0.3) },
    Figure {
        name: "one request (us); ours, neither registered nor watched",
        of: |r| r.one_micros,
        goal: Goal::AtMost(1.02),
    },
    Figure {
        name: "start to first answer (ms), registered; wasmtime serve",
        of: |r| r.start_millis,
        goal: Goal::AtMost(1.0),
    },
    Figure { name: "p99 beside one that spins (ms); alone", of: |r| r.neighbour_p99, goal: Goal::AtMost(2.0) },
];

/// Both sides, who goes first changing with the round.
async fn measure(world: &World, round: usize) -> (Round, Round) {
    let reused = with(plain("reused"), json!({ "limits": { "instance_requests": 1000 } }));
    let plain_p3 = with(service("plain-p3", "plain-p3"), json!({ "register": "host" }));
    let greeter = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    let hostile = with(hostile("hostile"), json!({ "register": "host", "limits": { "request_timeout": "30s" } }));
    let watched = json!({
        "health": { "path": "/" },
        "allow": { "discover": ["*"], "outbound": ["localhost"] },
    });
    let services = [with(plain("plain"), watched), reused, plain_p3, greeter, hostile];
    let config = with(config(world, services), json!({ "admin": { "listen": "127.0.0.1:0" } }));
    let host = Host::ready(&config).await;
    let bare = Host::of(world, [with(plain("plain"), json!({ "register": "off" }))]).await;
    let (p2, p3, native) =
        (Served::wasmtime("plain").await, Served::wasmtime("plain-p3").await, Served::grpc_go().await);
    let (mut ours, mut peer) = (Round::default(), Round::default());
    let half = f64::min(load::rate(&host.url("plain")).await, load::rate(&p2.url()).await) / 2.0;
    for side in 0..2 {
        if (round + side).is_multiple_of(2) {
            ours.rate_p2 = load::rate(&host.url("plain")).await;
            ours.rate_p2_reused = load::rate(&host.url("reused")).await;
            ours.rate_p3 = load::rate(&host.url("plain-p3")).await;
            ours.p99 = load::p99(&host.url("plain"), half).await;
            ours.calls = load::calls(&host.addr("grpc-greeter")).await;
            let scraped = scraped(&host.admin());
            ours.one_micros = 1e6 / load::rate_of_one(&host.url("plain")).await;
            scraped.abort();
            ours.start_millis = start_ours(world).await;
            let spinning = spinning(&host);
            ours.neighbour_p99 = load::p99(&host.url("plain"), NEIGHBOUR_RATE).await;
            spinning.iter().for_each(JoinHandle::abort);
        } else {
            peer.rate_p2 = load::rate(&p2.url()).await;
            peer.rate_p2_reused = peer.rate_p2;
            peer.rate_p3 = load::rate(&p3.url()).await;
            peer.p99 = load::p99(&p2.url(), half).await;
            peer.calls = load::calls(&native.addr).await;
            peer.one_micros = 1e6 / load::rate_of_one(&bare.url("plain")).await;
            peer.start_millis = start_wasmtime().await;
            peer.neighbour_p99 = load::p99(&host.url("plain"), NEIGHBOUR_RATE).await;
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(bare.stop().await.code, Some(0));
    (ours, peer)
}

/// Somebody who reads the metrics every second.
fn scraped(admin: &str) -> JoinHandle<()> {
    let metrics = format!("{admin}metrics");
    tokio::spawn(async move {
        loop {
            assert_eq!(get(&metrics).await.status, 200);
            sleep(Duration::from_secs(1)).await;
        }
    })
}

fn spinning(host: &Host) -> Vec<JoinHandle<()>> {
    let spin = format!("{}act/spin", host.url("hostile"));
    let again = |spin: String| async move {
        loop {
            let _ = get_over(Protocol::Http1, &spin).await; // It is late, in the end.
        }
    };
    (0..SPINNING).map(|_| tokio::spawn(again(spin.clone()))).collect()
}

/// A peer that serves.
struct Served {
    addr: String,
    _program: Program,
    _folder: TempDir,
}

impl Served {
    async fn wasmtime(component: &str) -> Self {
        let (component, addr) = (paths::component(component).display().to_string(), free());
        Self::start("bin/wasmtime", &wasmtime_arguments(&addr, &component), addr.clone()).await
    }

    async fn grpc_go() -> Self {
        let addr = free();
        Self::start("grpc-greeter", &[&addr], addr.clone()).await
    }

    async fn start(peer: &str, arguments: &[&str], addr: String) -> Self {
        let path = paths::workspace().join("target/peers").join(peer);
        assert!(path.exists(), "{} is not there; `make bench-serving` builds it", path.display());
        let folder = TempDir::new().expect("a temporary directory");
        let program = Program::spawn(&path, arguments, folder.path());
        while TcpStream::connect(&addr).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        Self { addr, _program: program, _folder: folder }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}

/// As `leasehold` has it: with a cache of what was compiled, and everything of WASI that components import.
fn wasmtime_arguments<'a>(addr: &'a str, component: &'a str) -> [&'a str; 10] {
    ["serve", "-C", "cache=y", "-S", "cli=y,p3=y", "-W", "component-model-async=y", "--addr", addr, component]
}

/// An address where nobody listens.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
}

/// From the start of the process until a request was answered, in milliseconds, the median of a few: registered by then.
async fn start_ours(world: &World) -> f64 {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let addr = free();
        let config = config(world, [with(plain("starting"), json!({ "listen": addr }))]);
        let begun = Instant::now();
        let host = Host::spawn(&config, &[]);
        answered(&addr).await;
        let key = format!("/starting/{addr}");
        while world.get(&key).await.is_none() {
            sleep(POLL).await;
        }
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        host.stop().await;
    }
    median(times)
}

async fn start_wasmtime() -> f64 {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let served = Served::wasmtime("plain").await;
        answered(&served.addr).await;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    median(times)
}

async fn answered(addr: &str) {
    let url = format!("http://{addr}/");
    while !get_over(Protocol::Http1, &url).await.is_ok_and(|answer| answer.status == 200) {
        sleep(POLL).await;
    }
}
