//! The published crates: what a registry shows of them, and the licences in each. `make package` has the content of the packages.

use std::{fs, process::Command};

use leasehold_end_to_end::paths;
use serde_json::Value;

/// Published crates, with their folders.
const PUBLISHED: [(&str, &str); 4] = [
    ("leasehold", "host/registrar"),
    ("leasehold-wasmtime", "host/plugin"),
    ("leasehold-artifacts", "host/artifacts"),
    ("leasehold-cli", "host/runner"),
];

fn read(file: &str) -> String {
    fs::read_to_string(paths::workspace().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Packages of the workspace, as cargo reads their manifests.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(paths::workspace());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn a_published_crate_has_what_a_registry_shows() {
    let packages = packages();
    let is_published = |package: &&Value| package["publish"].is_null();
    let published: Vec<_> = packages.iter().filter(is_published).map(|package| package["name"].clone()).collect();
    assert_eq!(published, PUBLISHED.map(|(name, _)| name));
    for package in packages.iter().filter(is_published) {
        let name = &package["name"];
        for key in ["description", "license", "readme", "rust_version"] {
            assert!(package[key].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {key}");
        }
        let keywords = package["keywords"].as_array().unwrap();
        // The registry takes five, of twenty characters each.
        assert!((1..=5).contains(&keywords.len()), "{name}: {keywords:?}");
        assert!(keywords.iter().all(|word| word.as_str().unwrap().len() <= 20), "{name}: {keywords:?}");
        assert!(!package["categories"].as_array().unwrap().is_empty(), "{name} has no categories");
        let has_binary = package["targets"].as_array().unwrap().iter().any(|target| target["kind"][0] == "bin");
        assert_eq!(package["metadata"]["docs"]["rs"]["all-features"] != true, has_binary, "{name}");
    }
}

#[test]
fn no_package_names_a_repository() {
    // There is none yet; an address that was made up would be that of a stranger some day.
    for package in packages() {
        for key in ["repository", "homepage", "documentation"] {
            assert!(package[key].is_null(), "{}: {key}", package["name"]);
        }
    }
}

#[test]
fn the_licences_of_a_package_are_those_of_the_repository() {
    for (_, folder) in PUBLISHED {
        for file in ["LICENSE-APACHE", "LICENSE-MIT"] {
            assert_eq!(read(&format!("{folder}/{file}")), read(file), "{folder}/{file}");
        }
    }
}

#[test]
fn the_readme_of_a_crate_needs_no_repository() {
    for (name, folder) in PUBLISHED {
        let readme = read(&format!("{folder}/README.md"));
        assert!(readme.starts_with("# leasehold"), "{name}");
        // A registry would resolve a relative link against a repository.
        assert!(!readme.contains("]("), "{name} has links");
    }
}

#[test]
fn the_code_in_a_readme_is_that_of_the_documentation() {
    for folder in ["host/registrar", "host/artifacts"] {
        let readme = read(&format!("{folder}/README.md"));
        let code = readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
        assert!(read(&format!("{folder}/src/lib.rs")).replace("//! ", "").contains(code), "{folder}: {code}");
    }
}

#[test]
fn workflows_call_targets_that_exist() {
    let makefile = read("Makefile");
    let mut called = 0;
    for entry in fs::read_dir(paths::workspace().join(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        let workflow = fs::read_to_string(&path).unwrap();
        let runs = workflow.lines().filter_map(|line| line.trim().strip_prefix("run: make "));
        let listed = workflow.lines().filter_map(|line| line.trim().strip_prefix("target: [")?.strip_suffix(']'));
        let targets = runs.filter_map(|run| run.split(' ').next()).chain(listed.flat_map(|list| list.split(", ")));
        for target in targets.filter(|target| !target.starts_with("${{")) {
            called += 1;
            assert!(makefile.contains(&format!("\n{target}: ")), "{}: make {target}", path.display());
        }
    }
    assert!(called >= 8, "{called}");
}
