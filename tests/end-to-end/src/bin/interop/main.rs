//! Runs Leasehold's services against other service libraries, and their services against `leasehold ls`. Prints a line per step
//! and a table at the end. Fails on an unexpected failure, and on an unexpected success of a step that is known to fail.

mod ecosystem;
mod peer;
mod step;

use std::{env, fs, process::ExitCode, time::Instant};

use leasehold_end_to_end::paths;
use leasehold_scenarios::world::World;
use tokio::task::{LocalSet, spawn_local};

use crate::{
    ecosystem::{ALL, Ecosystem},
    peer::Peer,
    step::{Stage, Step},
};

/// Outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The step succeeded.
    Ok,
    /// The library does not have the feature.
    None,
    /// The step fails because of a known fault of the library.
    Theirs,
    /// The step failed unexpectedly.
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::None => "-",
            Self::Theirs => "theirs",
            Self::Failed => "FAILED",
        }
    }

    /// The cell in the table of `docs/interop.md`.
    fn cell(self) -> String {
        match self {
            Self::None => " |".to_owned(),
            outcome => format!(" {} |", outcome.word()),
        }
    }
}

type Row = [Outcome; Step::ALL.len()];

/// Runs all libraries, or the libraries in the arguments.
#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let named: Vec<String> = env::args().skip(1).collect();
    let world: &'static World = Box::leak(Box::new(World::real().await));
    let mut sound = true;
    let mut table = format!("{:<12} {:<14}", "LIBRARY", "VERSION");
    for step in Step::ALL {
        table.push_str(&format!(" {:<9}", format!("{step:?}").to_lowercase()));
    }
    let versions = versions();
    for ecosystem in &ALL {
        if !named.is_empty() && !named.iter().any(|name| name == ecosystem.name) {
            continue;
        }
        let begun = Instant::now();
        // In a task of its own, so that a panic does not end the other libraries' runs.
        let row = LocalSet::new().run_until(async { spawn_local(run(ecosystem, world)).await }).await;
        let row = row.unwrap_or([Outcome::Failed; Step::ALL.len()]);
        println!("{}: {:.1?}", ecosystem.name, begun.elapsed());
        sound &= !row.contains(&Outcome::Failed);
        if !documented(ecosystem, &versions, row) {
            println!("{}: docs/interop.md has another row, or none", ecosystem.name);
            sound = false;
        }
        table.push_str(&format!("\n{:<12} {:<14}", ecosystem.name, version(&versions, ecosystem.modules[0])));
        for outcome in row {
            table.push_str(&format!(" {:<9}", outcome.word()));
        }
    }
    println!("{table}");
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all steps of one library. A failed step does not end the run, since later steps may give more information.
#[expect(clippy::print_stdout, reason = "what it is for")]
async fn run(ecosystem: &'static Ecosystem, world: &'static World) -> Row {
    let mut row = [Outcome::None; Step::ALL.len()];
    let World::Real(etcd) = world else { return row };
    let log = paths::workspace().join("target/interop").join(ecosystem.name).with_extension("log");
    let peer = Peer::spawn(ecosystem.program(), &etcd.address(), &log);
    let mut stage = Stage::new(ecosystem, world, peer);
    for (outcome, step) in row.iter_mut().zip(Step::ALL) {
        let said = match (stage.take(step).await, ecosystem.known(step)) {
            (None, _) => continue,
            (Some(Ok(())), None) => {
                *outcome = Outcome::Ok;
                "ok".to_owned()
            }
            (Some(Ok(())), Some(why)) => {
                *outcome = Outcome::Failed;
                format!("FAILED: it succeeds, and was known not to: {why}")
            }
            (Some(Err(error)), None) => {
                *outcome = Outcome::Failed;
                format!("FAILED: {error}")
            }
            (Some(Err(error)), Some(why)) => {
                *outcome = Outcome::Theirs;
                format!("theirs: {why} ({error})")
            }
        };
        println!("{} {}: {said}", ecosystem.name, format!("{step:?}").to_lowercase());
    }
    row
}

/// Lines with a library and its version.
fn versions() -> Vec<String> {
    let text = |file: &str| {
        let file = paths::workspace().join("tests/interop").join(file);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    let lines = ["go.mod", "go-zero/go.mod", "python/requirements.txt"].map(text).concat();
    lines.lines().map(|line| line.trim().replace("==", " ")).collect()
}

fn version<'a>(versions: &'a [String], module: &str) -> &'a str {
    let mut found = versions.iter().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name == module);
    found.next().map_or("?", |(_, version)| version)
}

/// Compares the row with the table in `docs/interop.md`.
fn documented(ecosystem: &Ecosystem, versions: &[String], row: Row) -> bool {
    let file = paths::workspace().join("docs/interop.md");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tested: Vec<_> =
        ecosystem.modules.iter().map(|module| format!("`{module} {}`", version(versions, module))).collect();
    let tested = format!("| {} |", tested.join(", "));
    let cells: String = row.iter().map(|outcome| outcome.cell()).collect();
    text.lines().any(|line| line.contains(&tested) && line.ends_with(&format!(" |{cells}")))
}
