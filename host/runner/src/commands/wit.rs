//! `leasehold wit`: the contract and the WASI packages that components need, and a check of a component against them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use include_dir::{Dir, include_dir};
use serde::Serialize;
use wit_parser::Resolve;

use super::output::{print, print_json};
use crate::{
    cli::{ContractVersion, HttpVersion, WitArgs},
    error::Failure,
    wasm::{
        cache,
        contract::{self, Direction, Wanted},
    },
};

/// Place of the contract in a folder of WIT.
const CONTRACT_PATH: &str = "deps/leasehold-registry/registry.wit";
/// A world for each version of `wasi:http`, and the WASI packages that it needs.
static WASI: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates/wit");
/// File of the world, which belongs to the component's author.
const WORLD: &str = "world.wit";
/// Word in a world that stands for the version of the contract.
const VERSION: &str = "{{contract}}";
/// Mode of an ordinary file, readable beyond its owner.
const MODE: u32 = 0o666;

/// A file that is to be written, by its path in the folder.
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
}

/// Prints the contract, writes it or the packages, or checks a component.
pub(crate) fn wit(args: &WitArgs) -> Result<(), Failure> {
    match args {
        WitArgs { check: Some(file), .. } => check(file, args.json),
        WitArgs { package: Some(file), .. } => write_package(file, args),
        WitArgs { folder: Some(folder), .. } => write(folder, args),
        _ => print(&contract(args.contract, args.http)),
    }
}

/// The contract in the binary form of WIT.
fn package(version: ContractVersion, http: HttpVersion) -> Result<Vec<u8>, Failure> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("registry.wit", &contract(version, http));
    let encoded = package.and_then(|package| wit_component::encode(&resolve, package));
    encoded.map_err(|error| Failure::other(format!("the contract cannot be encoded: {error:#}")))
}

fn write_package(file: &Path, args: &WitArgs) -> Result<(), Failure> {
    create(file, &package(args.contract, args.http)?)?;
    match args.json {
        true => print_json(&[Written { file: file.to_owned(), written: true }]),
        false => print(&format!("written    {}\n", file.display())),
    }
}

/// The contract as one file, for components of this version of `wasi:http`: those of 0.2 get no asynchronous functions, which
/// many of their compilers do not know.
fn contract(version: ContractVersion, http: HttpVersion) -> String {
    let plain = match version {
        ContractVersion::V0_1 => return include_str!("../../wit/0.1/registry.wit").to_owned(),
        ContractVersion::V0_2 => include_str!("../../wit/0.2/registry.wit"),
    };
    match http {
        HttpVersion::P2 => plain.to_owned(),
        HttpVersion::P3 => {
            // The package has its name from the first file.
            let (_, asynchronous) =
                include_str!("../../wit/0.2/async.wit").split_once(";\n").expect("a package's name");
            format!("{plain}{asynchronous}")
        }
    }
}

/// Files of a folder of WIT: the world, the contract, and the WASI packages.
pub(super) fn files(version: ContractVersion, http: HttpVersion) -> Vec<Text> {
    let root = WASI.get_dir(http.name()).expect("there is a folder for each version");
    let mut files = vec![Text { path: CONTRACT_PATH.into(), content: contract(version, http).into() }];
    gather(root, root.path(), &mut files);
    if let Some(world) = files.iter_mut().find(|file| file.path == Path::new(WORLD)) {
        let text = str::from_utf8(&world.content).expect("WIT is text");
        world.content = text.replace(VERSION, version.full()).into();
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Adds the files of an embedded folder, and of those in it, by their paths below `root`.
pub(super) fn gather(folder: &Dir<'_>, root: &Path, files: &mut Vec<Text>) {
    for file in folder.files() {
        let path = file.path().strip_prefix(root).expect("a file lies below its root").to_owned();
        files.push(Text { path, content: file.contents().to_vec() });
    }
    for folder in folder.dirs() {
        gather(folder, root, files);
    }
}

/// Outcome for one file.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    written: bool,
}

/// Writes the files. All of them are compared first, so that a refusal leaves the folder as it was.
fn write(folder: &Path, args: &WitArgs) -> Result<(), Failure> {
    let mut files = files(args.contract, args.http);
    if has_world(folder) {
        files.retain(|file| file.path != Path::new(WORLD));
    }
    let same = |file: &Text| fs::read(folder.join(&file.path)).ok().map(|found| found == file.content);
    let states: Vec<_> = files.iter().map(same).collect();
    let differing: Vec<_> = files.iter().zip(&states).filter(|(_, same)| **same == Some(false)).collect();
    if let Some((file, _)) = differing.first().filter(|_| !args.force) {
        let others = match differing.len() - 1 {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        return Err(Failure::usage(format!(
            "{}{others} would be overwritten with other content; --force does it",
            folder.join(&file.path).display()
        )));
    }
    let mut outcome = Vec::new();
    for (file, same) in files.iter().zip(states) {
        let path = folder.join(&file.path);
        if same != Some(true) {
            create(&path, &file.content)?;
        }
        outcome.push(Written { file: path, written: same != Some(true) });
    }
    if args.json {
        return print_json(&outcome);
    }
    let line =
        |file: &Written| format!("{}  {}\n", if file.written { "written  " } else { "unchanged" }, file.file.display());
    print(&outcome.iter().map(line).collect::<String>())
}

/// Writes a file as a whole, and makes its folder.
pub(super) fn create(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder.and_then(|()| cache::write_whole(path, content, MODE));
    written.map_err(|error| Failure::other(format!("cannot write {}: {error}", path.display())))
}

/// Returns true if the folder has WIT of its author, which stands beside `deps`.
fn has_world(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let is_wit = |path: &Path| path.extension().is_some_and(|extension| extension == "wit");
    entries.flatten().any(|entry| is_wit(&entry.path()))
}

/// Verdict on a component.
#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    /// True if the host has everything.
    complete: bool,
    interfaces: &'a [Wanted],
}

fn check(file: &Path, json: bool) -> Result<(), Failure> {
    let wanted = contract::wanted(file)?;
    let missing: Vec<_> = wanted.iter().filter_map(|wanted| wanted.missing.as_deref()).collect();
    if json {
        print_json(&Report { file, complete: missing.is_empty(), interfaces: &wanted })?;
    } else {
        print(&text(&wanted))?;
    }
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(Failure::usage(format!("{}: missing in this host: {one}", file.display()))),
        [first, others @ ..] => Err(Failure::usage(format!(
            "{}: {} interfaces are missing in this host, the first: {first}",
            file.display(),
            others.len() + 1
        ))),
    }
}

/// One line for each package and version, with its interfaces.
fn text(wanted: &[Wanted]) -> String {
    let mut packages: Vec<(&str, &str, Vec<&Wanted>)> = Vec::new();
    for item in wanted {
        match packages.iter_mut().find(|(name, version, _)| *name == item.package && *version == item.version) {
            Some((_, _, items)) => items.push(item),
            None => packages.push((&item.package, &item.version, vec![item])),
        }
    }
    packages.sort_unstable_by_key(|(name, version, _)| (*name, *version));
    let mut text = String::new();
    for (name, version, items) in packages {
        let verdict = if items.iter().all(|item| item.missing.is_none()) { "served " } else { "missing" };
        let host = if items[0].host.is_empty() { "nothing".to_owned() } else { items[0].host.join(" and ") };
        let version = if version.is_empty() { "no version" } else { version };
        text.push_str(&format!("{verdict}  {name} {version}; the host has {host}\n"));
        for (heading, direction) in [("imports", Direction::Import), ("exports", Direction::Export)] {
            let names: Vec<_> =
                items.iter().filter(|item| item.direction == direction).map(|item| short(item)).collect();
            if !names.is_empty() {
                text.push_str(&format!("         {heading} {}\n", names.join(", ")));
            }
        }
    }
    if text.is_empty() { "the component wants nothing of its host\n".to_owned() } else { text }
}

/// Name of an interface without its package and version.
fn short(item: &Wanted) -> &str {
    let path = item.interface.split('@').next().unwrap_or_default();
    path.split_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;
    use wit_parser::Resolve;

    use super::{contract, create, files, package};
    use crate::{
        cli::{ContractVersion, HttpVersion},
        wasm::contract::unavailable,
    };

    #[test]
    fn the_written_files_are_a_world_whose_imports_this_host_has() {
        let versions = [ContractVersion::V0_1, ContractVersion::V0_2];
        for (version, http) in versions.iter().flat_map(|v| [(*v, HttpVersion::P2), (*v, HttpVersion::P3)]) {
            let folder = TempDir::new().unwrap();
            for file in files(version, http) {
                create(&folder.path().join(&file.path), &file.content).unwrap();
            }
            let mut resolve = Resolve::default();
            let (package, _) = resolve.push_dir(folder.path()).unwrap();
            let world = resolve.select_world(&[package], Some("service")).unwrap();
            let imports: Vec<_> = resolve.worlds[world].imports.keys().map(|key| resolve.name_world_key(key)).collect();
            let registrar = format!("leasehold:registry/registrar@{}", version.full());
            assert!(imports.contains(&registrar), "{imports:?}");
            for import in &imports {
                assert_eq!(unavailable(import), None);
            }
            // Compilers of 0.2 never meet a function that is async.
            let contract =
                resolve.packages.iter().find(|(_, package)| package.name.namespace == "leasehold").unwrap().0;
            let has_async = resolve.packages[contract].interfaces.contains_key("async-discovery");
            assert_eq!(has_async, version == ContractVersion::V0_2 && http == HttpVersion::P3);
        }
    }

    #[test]
    fn the_binary_package_has_the_interfaces_of_the_text() {
        for (version, http) in [(ContractVersion::V0_1, HttpVersion::P2), (ContractVersion::V0_2, HttpVersion::P3)] {
            let decoded = wit_component::decode(&package(version, http).unwrap()).unwrap();
            let resolve = decoded.resolve();
            let found = &resolve.packages[decoded.package()];
            assert_eq!(found.name.to_string(), format!("leasehold:registry@{}", version.full()));
            let mut text = Resolve::default();
            let written = text.push_str("registry.wit", &contract(version, http)).unwrap();
            let names = |names: Vec<&String>| names.into_iter().cloned().collect::<std::collections::BTreeSet<_>>();
            let interfaces = names(found.interfaces.keys().collect());
            assert_eq!(interfaces, names(text.packages[written].interfaces.keys().collect()));
            assert!(!interfaces.is_empty());
        }
    }

    #[test]
    fn the_latest_contract_is_that_of_the_plugin() {
        let files = files(ContractVersion::V0_2, HttpVersion::P2);
        let text = |path: &str| {
            let file = files.iter().find(|file| file.path == Path::new(path)).unwrap();
            str::from_utf8(&file.content).unwrap()
        };
        let latest = leasehold_wasmtime::CONTRACTS[0];
        assert!(text("deps/leasehold-registry/registry.wit").contains(&format!("package {latest};")));
        assert!(text("world.wit").contains("leasehold:registry/service@0.2.0;"));
    }
}
