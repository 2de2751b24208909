//! Holds the templates of `leasehold new`, which `scripts/guests-all.sh` has built, against one table of expectations: each in
//! a host of its own, then all in one. Prints sizes and times.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leasehold_end_to_end::template::{Guest, meets_expectations, start};
use leasehold_scenarios::world::World;
use tempfile::TempDir;

/// The built service of a language.
fn guest(folder: &Path, language: &str) -> Guest {
    let name = format!("hello-{language}");
    let component = folder.join(&name).join(format!("{name}.wasm"));
    assert!(component.is_file(), "{} is not there; make guests-all builds it", component.display());
    // Another version of HTTP is in the name alone.
    Guest { name, language: language.trim_end_matches("-p3").to_owned(), component }
}

/// Time from the start of the host until the service is ready, and the memory of the host then.
async fn measure(guest: &Guest, cache: &str) -> (Duration, f64) {
    let world = World::real().await;
    let begun = Instant::now();
    let host = start(&world, std::slice::from_ref(guest), cache).await;
    let (took, memory) = (begun.elapsed(), host.resident_bytes() as f64 / 1_048_576.0);
    assert_eq!(host.stop().await.code, Some(0));
    (took, memory)
}

/// Arguments: the folder with the built services, and the languages.
#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("usage: guests FOLDER LANGUAGE..."));
    let folder = folder.canonicalize().expect("the folder exists");
    let guests: Vec<_> = arguments.map(|language| guest(&folder, &language)).collect();
    let cache = TempDir::new().expect("a temporary directory");
    let cache = cache.path().to_str().expect("a temporary directory has a plain name");

    println!(
        "{:<8} {:>15} {:>17} {:>18} {:>12}",
        "language", "component (KiB)", "first start (ms)", "second start (ms)", "host (MiB)"
    );
    for guest in &guests {
        let size = guest.component.metadata().expect("it is there").len() / 1024;
        let (first, _) = measure(guest, cache).await;
        let (second, memory) = measure(guest, cache).await;
        println!(
            "{:<8} {size:>15} {:>17} {:>18} {memory:>12.0}",
            guest.name.trim_start_matches("hello-"),
            first.as_millis(),
            second.as_millis()
        );
        meets_expectations(&World::real().await, std::slice::from_ref(guest), cache).await;
    }
    meets_expectations(&World::real().await, &guests, cache).await;
    println!("all of {} expectations are met, alone and in one host", guests.len());
}
