//! Runs seeds of the simulation and prints the promises that they break: `simulate [--seeds N] [--from N] [--seed N]`.

mod check;
mod ledger;
mod run;
mod seed;

use std::{
    env, fmt, panic,
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use mimalloc::MiMalloc;
use seed::{Verdict, simulate};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The time of the simulation, for the log of a single seed.
struct VirtualTime(OnceLock<tokio::time::Instant>);

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let now = tokio::time::Instant::now();
        write!(writer, "{:9.3}", (now - *self.0.get_or_init(|| now)).as_secs_f64())
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its user")]
fn main() -> ExitCode {
    let mut seeds = 500;
    let mut from = 1;
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let number = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (flag.as_str(), number) {
            ("--seeds", Some(number)) => seeds = number,
            ("--from", Some(number)) => from = number,
            ("--seed", Some(number)) => (from, seeds) = (number, 1),
            _ => {
                eprintln!("usage: simulate [--seeds N] [--from N] | --seed N");
                return ExitCode::from(64);
            }
        }
    }
    if seeds == 1 {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_env_filter(env::var("RUST_LOG").unwrap_or_default())
            .with_timer(VirtualTime(OnceLock::new()))
            .init();
    }

    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // The client's, at a damaged answer: the registrar catches it.
        if !panic.location().is_some_and(|location| location.file().ends_with("rpc/kv.rs")) {
            usual(panic);
        }
    }));
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let broken = AtomicU64::new(0);
    let virtual_seconds = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    let Verdict { violations, tally, .. } = simulate(seed);
                    virtual_seconds.fetch_add(tally.seconds, Ordering::Relaxed);
                    if seeds == 1 {
                        println!("seed {seed}: {tally}");
                    } else if (seed - from + 1).is_multiple_of(500) {
                        println!("... {} seeds, {:.0} s", seed - from + 1, started.elapsed().as_secs_f64());
                    }
                    if !violations.is_empty() {
                        broken.fetch_add(1, Ordering::Relaxed);
                        println!("seed {seed} breaks {} promises ({tally}):", violations.len());
                        for violation in violations.iter().take(5) {
                            println!("  {violation}");
                        }
                        println!("  replay: make simulate SEED={seed}");
                    }
                }
            });
        }
    });
    let broken = broken.load(Ordering::Relaxed);
    let hours = virtual_seconds.load(Ordering::Relaxed) / 3600;
    println!("{seeds} seeds, {hours} virtual hours, {broken} broken, {:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {broken} failed", seeds - broken);
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
