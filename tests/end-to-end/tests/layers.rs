//! The layers of each crate: folders import downward only, and no files import one another in a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use leasehold_end_to_end::{
    paths,
    sources::{Source, sources},
};

/// Beginning of the table of layers in ARCHITECTURE.md: the first two columns.
const TABLE: &str = "| `host/runner` | `host/plugin` |";

/// Folders and top-level files of each crate, from the top down, as the table of layers in ARCHITECTURE.md has them. Each
/// may import those below it.
fn layers() -> Vec<(String, Vec<String>)> {
    let page = fs::read_to_string(paths::workspace().join("ARCHITECTURE.md")).expect("the page is there");
    let cells = |line: &str| -> Vec<String> {
        let row = line.trim().trim_start_matches('|').trim_end_matches('|');
        row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut rows = page.lines().skip_while(|line| !line.starts_with(TABLE));
    let crates = cells(rows.next().expect("ARCHITECTURE.md has the table of layers"));
    let mut layers: Vec<_> = crates.into_iter().map(|name| (name, Vec::new())).collect();
    for row in rows.skip(1).take_while(|row| row.starts_with('|')) {
        for ((_, column), layer) in layers.iter_mut().zip(cells(row)) {
            if !layer.is_empty() {
                column.push(layer);
            }
        }
    }
    layers
}

/// Returns true for a file of unit tests.
fn is_test(source: &Source) -> bool {
    source.path.ends_with("tests.rs") || source.path.contains("/tests/")
}

/// Each module of a crate with the modules that it imports.
fn arrows(krate: &str) -> BTreeMap<String, BTreeSet<String>> {
    let all: Vec<_> = sources(&format!("{krate}/src")).into_iter().filter(|source| !is_test(source)).collect();
    let modules: BTreeSet<_> = all.iter().map(Source::module).collect();
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
        let from = source.module();
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
    for (krate, layers) in layers() {
        let level = |folder: &str| {
            layers.iter().position(|layer| *layer == folder).unwrap_or_else(|| panic!("{krate}: {folder} has no layer"))
        };
        for (from, to) in arrows(&krate) {
            for to in to {
                let (above, below) = (folder(&from, &layers[0]), folder(&to, &layers[0]));
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
    for (krate, _) in layers() {
        let arrows = arrows(&krate);
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

#[test]
fn every_layer_is_a_folder_or_a_file() {
    let all = layers();
    assert_eq!(all.len(), 4, "{all:?}");
    for (krate, layers) in all {
        let root = layers[0].clone();
        let there: BTreeSet<_> = arrows(&krate).keys().map(|module| folder(module, &root)).collect();
        let named: BTreeSet<_> = layers.iter().cloned().collect();
        assert_eq!(named.len(), layers.len(), "{krate}: a layer is named twice");
        assert_eq!(named, there, "{krate}: the table of layers in ARCHITECTURE.md");
    }
}
