//! Measures fleets of up to a million registrations: `growth [simulated|real] [--hosts N] [--keys N] [--ttl SECONDS]`.
//!
//! `simulated` runs 100 hosts of 10,000 registrations each on the simulated etcd, through rolling deploys and a loss of etcd's
//! data, and holds the promises against etcd's history. `real` runs 20 registrars of 10,000 registrations each on an etcd of three
//! members, where `--ttl` holds. Without either word both run.

mod children;
mod etcd;
mod hosts;
mod real;
mod viewer;

use std::{env, process::ExitCode};

use leasehold_scenarios::growth::{Size, simulate};
use tokio::runtime::Builder;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its user")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("hosts") => return run(&mut threads(), hosts::main(&arguments[1..])),
        Some("viewer") => return run(&mut threads(), viewer::main(&arguments[1..])),
        _ => {}
    }
    let (mut part, mut hosts, mut keys, mut ttl) = (None, None, None, None);
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse::<usize>().ok()).filter(|number| *number > 0);
        let is_understood = match word.as_str() {
            "simulated" | "real" if part.is_none() => part.replace(word).is_none(),
            "--hosts" => {
                hosts = number();
                hosts.is_some()
            }
            "--keys" => {
                keys = number();
                keys.is_some()
            }
            "--ttl" => {
                ttl = number();
                ttl.is_some()
            }
            _ => false,
        };
        if !is_understood {
            eprintln!("usage: growth [simulated|real] [--hosts N] [--keys N] [--ttl SECONDS]");
            return ExitCode::from(64);
        }
    }
    let size = |most: usize| Size { hosts: hosts.unwrap_or(most), keys: keys.unwrap_or(10_000) };
    if part.as_deref() != Some("real") {
        let begun = std::time::Instant::now();
        let mut paused = Builder::new_current_thread();
        let show = |line: &str| println!("{line}");
        let simulated = async {
            let report = simulate(size(100), show).await;
            println!("\nsimulated, {:.0} s on the clock\n{report}", begun.elapsed().as_secs_f64());
            Ok(())
        };
        let code = run(paused.start_paused(true), simulated);
        if code != ExitCode::SUCCESS {
            return code;
        }
    }
    if part.as_deref() != Some("simulated") {
        return run(&mut threads(), real::measure(size(20), ttl.unwrap_or(10)));
    }
    ExitCode::SUCCESS
}

fn threads() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    builder
}

#[expect(clippy::print_stderr, reason = "a command speaks to its user")]
fn run(builder: &mut Builder, part: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let outcome = builder.enable_all().build().map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(part);
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("growth: {error:#}");
            ExitCode::FAILURE
        }
    }
}
