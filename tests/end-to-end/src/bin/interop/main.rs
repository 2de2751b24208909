//! Runs the services of Leasehold against the service libraries of others, and theirs against `leasehold ls`: a line for
//! each step, a table at the end. Fails when something goes wrong that is not known to be theirs, and when something that
//! is known to go wrong does not.

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

/// What came out of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// As promised.
    Ok,
    /// The library has nothing to do it with.
    None,
    /// The library fails by itself, as is known.
    Theirs,
    /// Ours to mend.
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

    /// As the table for readers has it.
    fn cell(self) -> String {
        match self {
            Self::None => " |".to_owned(),
            outcome => format!(" {} |", outcome.word()),
        }
    }
}

type Row = [Outcome; Step::ALL.len()];

/// Runs all of them, or those that are named.
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
        // On a task of its own, so that one that panics does not take the others with it.
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

/// Takes one library through all of its steps. A step that goes wrong does not end them, since a later one may say more.
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

/// Every line that names a library and its version.
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

/// Whether the table for readers says what came out.
fn documented(ecosystem: &Ecosystem, versions: &[String], row: Row) -> bool {
    let file = paths::workspace().join("docs/interop.md");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tested: Vec<_> =
        ecosystem.modules.iter().map(|module| format!("`{module} {}`", version(versions, module))).collect();
    let tested = format!("| {} |", tested.join(", "));
    let cells: String = row.iter().map(|outcome| outcome.cell()).collect();
    text.lines().any(|line| line.contains(&tested) && line.ends_with(&format!(" |{cells}")))
}
