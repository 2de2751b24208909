//! The layers of each crate: folders import downward only, and no files import one another in a circle.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_end_to_end::sources::{Source, sources};

/// Folders and top-level files of each crate, from the top down. Each may import those below it. ARCHITECTURE.md shows the
/// same table.
const LAYERS: [(&str, &[&str]); 4] = [
    (
        "host/runner",
        &[
            "main",
            "bin",
            "fuzz",
            "commands",
            "admin",
            "cli",
            "service",
            "inbound",
            "wasm",
            "outbound",
            "telemetry",
            "rejection",
            "grpc",
            "connect",
            "config",
            "rt",
            "process",
            "error",
        ],
    ),
    (
        "host/plugin",
        &[
            "lib",
            "fuzz",
            "lifecycle",
            "host",
            "convert",
            "context",
            "watch",
            "lookups",
            "policy",
            "bindings",
            "handle",
            "registration",
            "failures",
            "error",
            "budget",
            "once_map",
        ],
    ),
    ("host/artifacts", &["lib", "push", "pull", "store", "signature", "manifest", "registry", "reference", "error"]),
    (
        "host/registrar",
        &[
            "lib",
            "fuzz",
            "registrar",
            "placement",
            "registration",
            "discovery",
            "lease",
            "status",
            "faults",
            "error",
            "etcd",
            "options",
            "weight",
            "layout",
            "node",
            "lease_id",
            "sim",
            "source",
            "timers",
            "backoff",
        ],
    ),
];

/// The file's module path below `src`, such as `inbound::dispatch`; empty for the root.
fn module(source: &Source) -> String {
    let (_, path) = source.path.split_once("/src/").expect("a source is below src");
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(path, "main" | "lib") { String::new() } else { path.replace('/', "::") }
}

/// Each module of a crate with the modules that it imports.
fn arrows(krate: &str) -> BTreeMap<String, BTreeSet<String>> {
    let all: Vec<_> =
        sources(&format!("{krate}/src")).into_iter().filter(|source| !source.path.ends_with("tests.rs")).collect();
    let modules: BTreeSet<_> = all.iter().map(module).collect();
    let target = |path: &str| {
        let mut path = path;
        loop {
            if modules.contains(path) {
                return Some(path.to_owned());
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let arrows = all.iter().map(|source| {
        let from = module(source);
        let to = source
            .imports()
            .iter()
            .filter_map(|path| target(path))
            .filter(|to| *to != from && !to.is_empty())
            .collect();
        (from, to)
    });
    arrows.collect()
}

/// The folder or top-level file of a module.
fn folder(module: &str, root: &str) -> String {
    if module.is_empty() { root.to_owned() } else { module.split("::").next().unwrap_or(module).to_owned() }
}

#[test]
fn folders_import_downward_only() {
    let mut upward = Vec::new();
    for (krate, layers) in LAYERS {
        let level = |folder: &str| {
            layers.iter().position(|layer| *layer == folder).unwrap_or_else(|| panic!("{krate}: {folder} has no layer"))
        };
        for (from, to) in arrows(krate) {
            for to in to {
                let (above, below) = (folder(&from, layers[0]), folder(&to, layers[0]));
                if level(&above) > level(&below) {
                    upward.push(format!("{krate}: {from} imports {to}"));
                }
            }
        }
    }
    assert!(upward.is_empty(), "these imports run upward:\n{}", upward.join("\n"));
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    for (krate, _) in LAYERS {
        let arrows = arrows(krate);
        for start in arrows.keys() {
            let (mut reached, mut next) = (BTreeSet::new(), vec![start.clone()]);
            while let Some(at) = next.pop() {
                for to in arrows.get(&at).into_iter().flatten() {
                    if reached.insert(to.clone()) {
                        next.push(to.clone());
                    }
                }
            }
            assert!(!reached.contains(start), "{krate}: {start} is in a circle of imports: {reached:?}");
        }
    }
}
