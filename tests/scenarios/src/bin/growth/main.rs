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

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks to its user")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("hosts") => return run(threads(), hosts::main(&arguments[1..])),
        Some("viewer") => return run(threads(), viewer::main(&arguments[1..])),
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
        let paused = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = paused.expect("a runtime without threads cannot fail");
        let report = runtime.block_on(simulate(size(100), |line| println!("{line}")));
        runtime.shutdown_background();
        println!("\nsimulated, {:.0} s on the clock\n{report}", begun.elapsed().as_secs_f64());
    }
    if part.as_deref() != Some("simulated") {
        return run(threads(), real::measure(size(20), ttl.unwrap_or(10)));
    }
    ExitCode::SUCCESS
}

fn threads() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2);
    builder
}

#[expect(clippy::print_stderr, reason = "a command speaks to its user")]
fn run(mut builder: tokio::runtime::Builder, part: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    match builder.enable_all().build().expect("the system has threads").block_on(part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("growth: {error:#}");
            ExitCode::FAILURE
        }
    }
}
