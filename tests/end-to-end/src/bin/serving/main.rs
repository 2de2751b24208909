//! `make bench-serving`: Leasehold beside `wasmtime serve` and a native server, in turn, under the same load; with
//! `BEFORE=path/to/leasehold` beside another build of itself.

mod load;

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, hostile, plain, service, with},
    http::{Protocol, get, get_over},
    paths,
    startup::Awaited,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{interval, sleep},
};

/// Concurrent requests that compute without end, beside the neighbour: more than there are threads for them.
const SPINNING: usize = 4;
/// Requests per second that fill 40 MB of fresh memory each, in one uninterruptible instruction.
const FILLING_RATE: f64 = 23.0;
/// Concurrent requests that draw 4 MiB of random bytes in a loop.
const DRAWING: usize = 6;
/// Time that such requests run before the neighbour is measured.
const LEAD: Duration = Duration::from_millis(500);
/// Requests per second to the neighbour.
const NEIGHBOUR_RATE: f64 = 500.0;
/// Starts of a process in one round.
const STARTS: usize = 9;
/// Idle time of the host after such requests.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause between two polls of a starting process.
const POLL: Duration = Duration::from_micros(500);

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what it is for")]
#[tokio::main]
async fn main() {
    let mut arguments = env::args().skip(1);
    let rounds = arguments.next().map_or(Ok(5), |text| text.parse::<usize>());
    let rounds = rounds.ok().filter(|rounds| *rounds > 0).expect("usage: [BEFORE=FILE] serving [ROUNDS [WORD...]]");
    let words: Vec<String> = arguments.collect();
    let is_wanted = |figure: &Figure| words.is_empty() || words.iter().any(|word| figure.name.contains(word));
    assert!(FIGURES.iter().any(is_wanted), "none of the figures has {words:?} in its name");
    let world = World::real().await;
    let before = env::var_os("BEFORE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let scene = Box::pin(Scene::set(&world, before.as_deref())).await;
    println!("{:<58} {:>10} {:>10} {:>8}  {:<22} verdict", "figure", "ours", "peer", "ratio", "goal");
    for figure in FIGURES.iter().filter(|figure| is_wanted(figure)) {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        let turns = figure.measure.turns();
        for turn in 0..rounds * turns {
            if turn.is_multiple_of(turns) {
                eprintln!("{}: round {} of {rounds}", figure.name, turn / turns + 1);
            }
            // One right after the other, so that both run under the same conditions; the order alternates.
            for side in 0..2 {
                match (turn + side).is_multiple_of(2) {
                    true => ours.push(Box::pin(scene.ours.measure(figure.measure, scene.half)).await),
                    false => peer.push(Box::pin(scene.peer(figure.measure)).await),
                }
            }
        }
        let (ours, peer) = (median(ours), median(peer));
        let ratio = ours / peer;
        let (name, goal) = match &before {
            Some(_) => (figure.name.split(';').next().unwrap_or_default(), figure.goal.no_worse()),
            None => (figure.name, figure.goal),
        };
        let (goal, met) = match goal {
            Goal::AtLeast(times) => (format!("at least {times} times"), ratio >= times),
            Goal::AtMost(times) => (format!("at most {times} times"), ratio <= times),
        };
        let verdict = if met { "ok" } else { "short" };
        println!("{name:<58} {ours:>10.2} {peer:>10.2} {ratio:>7.2}x  {goal:<22} {verdict}");
    }
    scene.end().await;
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

struct Figure {
    name: &'static str,
    measure: Measure,
    goal: Goal,
}

/// Measurement of both sides.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Rate,
    RateReused,
    RateP3,
    P99,
    Calls,
    One,
    Start,
    Neighbour,
    BesideFilling,
    BesideDrawing,
}

impl Measure {
    /// Measurements per side in one round: several short ones for figures that differ by a few percent.
    fn turns(self) -> usize {
        if matches!(self, Self::One) { 4 } else { 1 }
    }
}

/// Goal for our figure, as a share of the peer's.
#[derive(Debug, Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// The goal beside another build: as good, but for what two measurements of one build differ by.
    fn no_worse(self) -> Self {
        match self {
            Self::AtLeast(_) => Self::AtLeast(0.95),
            Self::AtMost(_) => Self::AtMost(1.05),
        }
    }
}

const FIGURES: [Figure; 10] = [
    Figure { name: "requests/s, wasi:http 0.2; wasmtime serve", measure: Measure::Rate, goal: Goal::AtLeast(1.0) },
    Figure {
        name: "requests/s, 0.2 with instances reused; wasmtime serve",
        measure: Measure::RateReused,
        goal: Goal::AtLeast(2.0),
    },
    Figure { name: "requests/s, wasi:http 0.3; wasmtime serve", measure: Measure::RateP3, goal: Goal::AtLeast(1.0) },
    Figure {
        name: "p99 at half of the rate, 0.2 (ms); wasmtime serve",
        measure: Measure::P99,
        goal: Goal::AtMost(1.0),
    },
    Figure { name: "gRPC unary calls/s; grpc-go", measure: Measure::Calls, goal: Goal::AtLeast(0.3) },
    Figure {
        name: "one request (us); ours, unregistered, no health check",
        measure: Measure::One,
        goal: Goal::AtMost(1.02),
    },
    Figure {
        name: "start to first response (ms), registered; wasmtime serve",
        measure: Measure::Start,
        goal: Goal::AtMost(1.0),
    },
    Figure { name: "p99 beside one that spins (ms); alone", measure: Measure::Neighbour, goal: Goal::AtMost(2.0) },
    Figure {
        name: "p99 beside one that fills 40 MB, 23 times/s (ms); alone",
        measure: Measure::BesideFilling,
        goal: Goal::AtMost(3.0),
    },
    Figure {
        name: "p99 beside six that draw 4 MiB of random (ms); alone",
        measure: Measure::BesideDrawing,
        goal: Goal::AtMost(3.0),
    },
];

/// All servers, measured in turn.
struct Scene<'a> {
    ours: Ours<'a>,
    peer: Peer<'a>,
    /// Half of the requests per second of the slower side of 0.2.
    half: f64,
}

/// The other side of each figure.
enum Peer<'a> {
    Before(Box<Ours<'a>>),
    Others(Box<Others>),
}

/// Servers of others.
struct Others {
    p2: Served,
    p3: Served,
    native: Served,
}

/// Hosts of one build: one with every feature, one without.
struct Ours<'a> {
    world: &'a World,
    binary: PathBuf,
    host: Host,
    bare: Host,
    /// Without admin endpoint nothing is scraped.
    has_admin: bool,
}

impl<'a> Scene<'a> {
    async fn set(world: &'a World, before: Option<&Path>) -> Self {
        // An earlier build may know no endpoint with a token, and both sides get the same configuration.
        let ours = Ours::start(world, &paths::leasehold(), before.is_none()).await;
        let (peer, other) = match before {
            Some(binary) => {
                let before = Ours::start(world, binary, false).await;
                let url = before.host.url("plain");
                (Peer::Before(Box::new(before)), url)
            }
            None => {
                let (p2, p3, native) =
                    (Served::wasmtime("plain").await, Served::wasmtime("plain-p3").await, Served::grpc_go().await);
                let url = p2.url();
                (Peer::Others(Box::new(Others { p2, p3, native })), url)
            }
        };
        let half = f64::min(load::rate(&ours.host.url("plain")).await, load::rate(&other).await) / 2.0;
        Self { ours, peer, half }
    }

    async fn peer(&self, measure: Measure) -> f64 {
        let (p2, p3, native) = match &self.peer {
            Peer::Before(before) => return before.measure(measure, self.half).await,
            Peer::Others(others) => (&others.p2, &others.p3, &others.native),
        };
        match measure {
            Measure::Rate | Measure::RateReused => load::rate(&p2.url()).await,
            Measure::RateP3 => load::rate(&p3.url()).await,
            Measure::P99 => load::p99(&p2.url(), self.half).await,
            Measure::Calls => load::calls(&native.addr).await,
            Measure::One => 1e6 / load::rate_of_one(&self.ours.bare.url("plain")).await,
            Measure::Start => start_wasmtime().await,
            Measure::Neighbour | Measure::BesideFilling | Measure::BesideDrawing => {
                load::p99(&self.ours.host.url("plain"), NEIGHBOUR_RATE).await
            }
        }
    }

    async fn end(self) {
        self.ours.end().await;
        if let Peer::Before(before) = self.peer {
            before.end().await;
        }
    }
}

impl<'a> Ours<'a> {
    async fn start(world: &'a World, binary: &Path, has_admin: bool) -> Self {
        let reused = with(plain("reused"), json!({ "limits": { "instance_requests": 1000 } }));
        let plain_p3 = with(service("plain-p3", "plain-p3"), json!({ "register": "host" }));
        let greeter = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
        let hostile = with(hostile("hostile"), json!({ "register": "host", "limits": { "request_timeout": "30s" } }));
        let watched = json!({
            "health": { "path": "/" },
            "allow": { "discover": ["*"], "outbound": ["localhost"] },
        });
        let services = [with(plain("plain"), watched), reused, plain_p3, greeter, hostile];
        let mut config = config(world, services);
        if has_admin {
            let admin = json!({ "listen": "127.0.0.1:0", "token_file": paths::admin_token() });
            config = with(config, json!({ "admin": admin }));
        }
        let host = Self::ready(binary, &config).await;
        let bare = [with(plain("plain"), json!({ "register": "off" }))];
        let bare = Self::ready(binary, &self::config(world, bare)).await;
        Self { world, binary: binary.to_owned(), host, bare, has_admin }
    }

    async fn ready(binary: &Path, config: &Value) -> Host {
        let mut host = Host::spawn_by(binary, config);
        host.event("ready").await;
        host
    }

    async fn measure(&self, measure: Measure, half: f64) -> f64 {
        let plain = self.host.url("plain");
        match measure {
            Measure::Rate => load::rate(&plain).await,
            Measure::RateReused => load::rate(&self.host.url("reused")).await,
            Measure::RateP3 => load::rate(&self.host.url("plain-p3")).await,
            Measure::P99 => load::p99(&plain, half).await,
            Measure::Calls => load::calls(&self.host.addr("grpc-greeter")).await,
            Measure::One => {
                let scraped = self.has_admin.then(|| scraped(&self.host.admin()));
                let micros = 1e6 / load::rate_of_one(&plain).await;
                scraped.inspect(JoinHandle::abort);
                micros
            }
            Measure::Start => self.start_to_response().await,
            Measure::Neighbour => self.beside(repeated(&self.host, "spin", SPINNING)).await,
            Measure::BesideFilling => self.beside(vec![paced(&self.host, "fill", FILLING_RATE)]).await,
            Measure::BesideDrawing => self.beside(repeated(&self.host, "random", DRAWING)).await,
        }
    }

    /// p99 latency of the neighbour while the other requests run.
    async fn beside(&self, others: Vec<JoinHandle<()>>) -> f64 {
        sleep(LEAD).await;
        let p99 = load::p99(&self.host.url("plain"), NEIGHBOUR_RATE).await;
        others.iter().for_each(JoinHandle::abort);
        // Abandoned computations end, and the other side runs alone.
        sleep(SETTLE).await;
        p99
    }

    /// Median time from the start of the process to the first response, in milliseconds; the service is registered by then.
    async fn start_to_response(&self) -> f64 {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let addr = free();
            let config = config(self.world, [with(plain("starting"), json!({ "listen": addr }))]);
            let registration = Awaited::new(self.world, "/starting/").await;
            let begun = Instant::now();
            let host = Host::spawn_by(&self.binary, &config);
            answered(&addr).await;
            registration.put().await;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
            host.stop().await;
        }
        median(times)
    }

    async fn end(self) {
        assert_eq!(self.host.stop().await.code, Some(0));
        assert_eq!(self.bare.stop().await.code, Some(0));
    }
}

/// Scrapes the metrics every second.
fn scraped(admin: &str) -> JoinHandle<()> {
    let metrics = format!("{admin}metrics");
    tokio::spawn(async move {
        loop {
            assert_eq!(get(&metrics).await.status, 200);
            sleep(Duration::from_secs(1)).await;
        }
    })
}

/// Clients that request an act, one request after the other.
fn repeated(host: &Host, act: &str, count: usize) -> Vec<JoinHandle<()>> {
    let url = format!("{}act/{act}", host.url("hostile"));
    let again = |url: String| async move {
        loop {
            let _ = get_over(Protocol::Http1, &url).await; // It ends with a timeout.
        }
    };
    (0..count).map(|_| tokio::spawn(again(url.clone()))).collect()
}

/// Requests an act at this rate per second, independent of its duration.
fn paced(host: &Host, act: &str, rate: f64) -> JoinHandle<()> {
    let url = format!("{}act/{act}", host.url("hostile"));
    tokio::spawn(async move {
        let mut due = interval(Duration::from_secs_f64(1.0 / rate));
        let mut requests = JoinSet::new();
        loop {
            due.tick().await;
            let url = url.clone();
            requests.spawn(async move { drop(get_over(Protocol::Http1, &url).await) });
        }
    })
}

/// A running peer.
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
            sleep(POLL).await;
        }
        Self { addr, _program: program, _folder: folder }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}

/// The same features as `leasehold`: a compile cache, and all of WASI that components import.
fn wasmtime_arguments<'a>(addr: &'a str, component: &'a str) -> [&'a str; 10] {
    ["serve", "-C", "cache=y", "-S", "cli=y,p3=y", "-W", "component-model-async=y", "--addr", addr, component]
}

/// A free local address.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").to_string()
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
