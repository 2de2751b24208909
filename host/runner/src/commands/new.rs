//! `leasehold new`: a folder with a service in the language of the user's choice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use include_dir::{Dir, include_dir};

use super::{
    output::print,
    wit::{self, Text, create, gather},
};
use crate::{
    cli::{ContractVersion, HttpVersion, Language, NewArgs},
    error::Failure,
};

/// A folder for each language, `all` for the files that are the same in each, and the WIT.
static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates");
/// The library of the templates for Rust, with the contract in it, and its folder in a service. Its files are linked one by
/// one: cargo leaves a folder with a `Cargo.toml` out of a package.
static RUST_LIBRARY: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/lib/rust");
const RUST_LIBRARY_FOLDER: &str = "leasehold-guest";
/// The contract of every template, whose bindings are made of it.
const CONTRACT: ContractVersion = ContractVersion::V0_2;
/// Word in the files that stands for the service's name.
const NAME: &str = "{{name}}";
/// Word in the test that stands for its checks, and the file with them.
const CHECKS: &str = "{{checks}}\n";
const CHECKS_FILE: &str = "checks.sh";

const CLANG: &str = "clang, lld, wasi-libc and libclang-rt-dev-wasm32";
const NODE: &str = "Node.js 20 or newer, with npm";
const RUST: &str = "rustup, with the wasm32-wasip2 target";
const RUST_GRPC: &str = "rustup, with the wasm32-wasip2 target, and protoc";

/// Folder, tools and commands of a language.
struct Template {
    /// Folders with its files, beside `all`; a file in a later one replaces that of an earlier one.
    folders: &'static [&'static str],
    /// Version of HTTP that it serves.
    http: HttpVersion,
    /// True for a service in gRPC.
    is_grpc: bool,
    /// True where a library of Rust brings all of the WIT.
    has_library: bool,
    /// Tools that its user installs.
    needs: &'static str,
    /// Command that builds and runs the service.
    run: &'static str,
}

impl Template {
    /// Templates of a language, the usual one first.
    fn all(language: Language) -> Vec<Self> {
        let one = |folders, http, needs, run| Self { folders, http, is_grpc: false, has_library: false, needs, run };
        match language {
            Language::Rust => {
                let rust = |folders, http| Self { has_library: true, ..one(folders, http, RUST, "make run") };
                let grpc = Self { is_grpc: true, needs: RUST_GRPC, ..rust(&["rust", "rust-grpc"], HttpVersion::P3) };
                vec![rust(&["rust"], HttpVersion::P2), rust(&["rust", "rust-p3"], HttpVersion::P3), grpc]
            }
            Language::Go => vec![one(&["go"], HttpVersion::P2, "Go 1.25 or newer", "make run")],
            Language::C => vec![one(&["c"], HttpVersion::P2, CLANG, "make run")],
            Language::Js => vec![one(&["js"], HttpVersion::P2, NODE, "npm install && npm start")],
            Language::Ts => vec![one(&["ts"], HttpVersion::P2, NODE, "npm install && npm start")],
            Language::Python => {
                vec![one(&["python"], HttpVersion::P3, "Python 3.10 or newer, with venv", "make run")]
            }
        }
    }

    /// The first template of a language that fits the arguments; the error says what there is instead.
    fn find(language: Language, http: Option<HttpVersion>, is_grpc: bool) -> Result<Self, Failure> {
        let (mut templates, lang) = (Self::all(language), shown(language));
        templates.retain(|template| template.is_grpc == is_grpc);
        if templates.is_empty() {
            let sentence = format!("--grpc: there is no such template for {lang}; there is one for {}", in_grpc());
            return Err(Failure::usage(sentence));
        }
        let served: Vec<_> = templates.iter().map(|template| template.http.name()).collect();
        let sentence = |http: HttpVersion| {
            let grpc = if is_grpc { " in gRPC" } else { "" };
            format!(
                "--http {}: there is no such template for {lang}{grpc}; it has {}",
                http.name(),
                served.join(" and ")
            )
        };
        let found = match http {
            None => templates.into_iter().next(),
            Some(http) => templates.into_iter().find(|template| template.http == http),
        };
        found.ok_or_else(|| Failure::usage(http.map(sentence).unwrap_or_default()))
    }

    /// Files of a new folder, by their final names and with the service's name in them.
    fn files(&self, name: &str) -> Vec<Text> {
        let mut found = Vec::new();
        for folder in ["all"].iter().chain(self.folders) {
            let folder = TEMPLATES.get_dir(folder).expect("there is a folder for each language");
            gather(folder, folder.path(), &mut found);
        }
        let mut found: BTreeMap<_, _> = found.into_iter().map(|file| (file.path, file.content)).collect();
        let checks = found.remove(Path::new(CHECKS_FILE)).expect("each template has checks");
        let checks = String::from_utf8(checks).expect("a script is text");
        let mut files: Vec<_> =
            found.into_iter().map(|(path, content)| finished(&Text { path, content }, name, &checks)).collect();
        let (below, more) = match self.has_library {
            false => ("wit", wit::files(CONTRACT, self.http)),
            true => {
                let mut library = Vec::new();
                gather(&RUST_LIBRARY, RUST_LIBRARY.path(), &mut library);
                library.iter_mut().for_each(|file| file.path = final_name(&file.path));
                (RUST_LIBRARY_FOLDER, library)
            }
        };
        files.extend(more.into_iter().map(|file| Text { path: Path::new(below).join(file.path), ..file }));
        files
    }
}

/// Path of a file in a new service. Files that would have a meaning for this repository's own tools have `.in` behind their
/// names there.
fn final_name(path: &Path) -> PathBuf {
    match path.to_str() {
        Some("gitignore.in") => ".gitignore".into(),
        Some(text) => text.strip_suffix(".in").unwrap_or(text).into(),
        None => path.to_owned(),
    }
}

/// A template's file under its final name, with the service's name in it.
fn finished(file: &Text, name: &str, checks: &str) -> Text {
    let content = match str::from_utf8(&file.content) {
        Ok(text) => text.replace(CHECKS, checks).replace(NAME, name).into_bytes(),
        Err(_) => file.content.clone(),
    };
    Text { path: final_name(&file.path), content }
}

/// Writes the folder, or lists the languages.
pub(crate) fn new(args: &NewArgs) -> Result<(), Failure> {
    let (Some(name), Some(language)) = (&args.name, args.lang) else { return print(&list()) };
    let template = Template::find(language, args.http, args.grpc)?;
    let folder = Path::new(name.as_str());
    let is_taken = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => folder.symlink_metadata().is_ok(),
    };
    if is_taken {
        return Err(Failure::usage(format!("{} exists and is not an empty folder", folder.display())));
    }
    let files = template.files(name.as_str());
    for file in &files {
        create(&folder.join(&file.path), &file.content)?;
    }
    print(&format!(
        "{name} is written, {} files; it needs {}\nthen: cd {name} && {}\n",
        files.len(),
        template.needs,
        template.run,
        name = folder.display()
    ))
}

fn list() -> String {
    let line = |language: &Language| {
        let (grpc, plain): (Vec<_>, Vec<_>) =
            Template::all(*language).into_iter().partition(|template| template.is_grpc);
        let http: Vec<_> = plain.iter().map(|template| template.http.name()).collect();
        let grpc = if grpc.is_empty() { "" } else { "; --grpc" };
        let needs = plain.first().map_or("", |template| template.needs);
        format!("{:<8}wasi:http {}{grpc}  needs {needs}\n", shown(*language), http.join(" or "))
    };
    Language::value_variants().iter().map(line).collect()
}

/// Languages with a template of a service in gRPC.
fn in_grpc() -> String {
    let has_grpc = |language: &&Language| Template::all(**language).iter().any(|template| template.is_grpc);
    let languages = Language::value_variants().iter().filter(has_grpc);
    languages.map(|language| shown(*language)).collect::<Vec<_>>().join(", ")
}

/// The language as the argument has it.
fn shown(language: Language) -> String {
    language.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use clap::ValueEnum;
    use tempfile::TempDir;
    use wit_parser::{Resolve, TypeDefKind, WorldItem};

    use super::{Template, create};
    use crate::{cli::Language, config::Config};

    #[test]
    fn every_template_is_complete_and_has_the_name_in_it() {
        let all = |language| Template::all(language).into_iter().map(move |template| (language, template));
        for (language, template) in Language::value_variants().iter().copied().flat_map(all) {
            let files = template.files("some-name");
            let paths: BTreeSet<_> = files.iter().map(|file| file.path.display().to_string()).collect();
            assert_eq!(paths.len(), files.len(), "{language:?}: a file occurs twice");
            let library =
                ["leasehold-guest/Cargo.toml", "leasehold-guest/wit/registry.wit", "leasehold-guest/src/bindings.rs"];
            let wit = ["wit/world.wit", "wit/deps/leasehold-registry/registry.wit"];
            let more = if matches!(language, Language::Rust) { &library[..] } else { &wit[..] };
            for path in ["README.md", ".gitignore", "services.yaml", "test.sh"].iter().chain(more) {
                assert!(paths.contains(*path), "{language:?}: {path} is not in {paths:?}");
            }
            for file in &files {
                let text = String::from_utf8_lossy(&file.content);
                for word in ["{{name}}", "{{checks}}"] {
                    assert!(!text.contains(word), "{}", file.path.display());
                }
            }
            let text = |path: &str| {
                let file = files.iter().find(|file| file.path == Path::new(path)).unwrap();
                String::from_utf8(file.content.clone()).unwrap()
            };
            assert!(text("README.md").contains("some-name"), "{language:?}");
            let config = Config::parse("services.yaml", &text("services.yaml"), Path::new("")).unwrap();
            assert_eq!(config.services[0].name.as_str(), "some-name");
        }
    }

    fn usual(language: Language) -> Template {
        Template::find(language, None, false).unwrap()
    }

    /// Imported functions of a template's world, as module and name, and the names of its fields and cases.
    fn imports(language: Language) -> (Vec<(String, String)>, BTreeSet<String>) {
        let folder = TempDir::new().unwrap();
        for file in usual(language).files("some-name") {
            create(&folder.path().join(&file.path), &file.content).unwrap();
        }
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(folder.path().join("wit")).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        let (mut functions, mut names) = (Vec::new(), BTreeSet::new());
        for (key, item) in &resolve.worlds[world].imports {
            let WorldItem::Interface { id, .. } = item else { continue };
            let module = resolve.name_world_key(key);
            let interface = &resolve.interfaces[*id];
            functions.extend(interface.functions.keys().map(|name| (module.clone(), name.clone())));
            for id in interface.types.values() {
                match &resolve.types[*id].kind {
                    TypeDefKind::Record(record) => names.extend(record.fields.iter().map(|field| field.name.clone())),
                    TypeDefKind::Enum(cases) => names.extend(cases.cases.iter().map(|case| case.name.clone())),
                    TypeDefKind::Variant(cases) => names.extend(cases.cases.iter().map(|case| case.name.clone())),
                    _ => {}
                }
            }
        }
        (functions, names)
    }

    /// Text of all files of a template below a folder.
    fn text_below(language: Language, folder: &str) -> String {
        let files = usual(language).files("some-name");
        let below = files.into_iter().filter(|file| file.path.starts_with(folder));
        below.map(|file| String::from_utf8(file.content).unwrap()).collect()
    }

    #[test]
    fn bindings_in_a_template_are_of_its_wit() {
        let line = |language: Language, module: &str, name: &str| match language {
            Language::Go => format!("//go:wasmimport {module} {name}\n"),
            _ => format!("__import_module__(\"{module}\"), __import_name__(\"{name}\")"),
        };
        for language in [Language::Go, Language::C] {
            let text = text_below(language, "bindings");
            let (functions, names) = imports(language);
            assert!(functions.len() > 50 && names.len() > 50, "{language:?}: {functions:?}");
            for (module, name) in functions {
                let line = line(language, &module, &name);
                assert!(text.contains(&line), "{language:?}: make bindings, since {line} is missing");
            }
            let letters = |text: &str| text.to_lowercase().replace(['-', '_'], "");
            let text = letters(&text);
            for name in names {
                assert!(text.contains(&letters(&name)), "{language:?}: make bindings, since {name} is missing");
            }
        }
    }
}
