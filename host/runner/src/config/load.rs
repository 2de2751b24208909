//! From a file to a configuration: reading, variables, further files, defaults, and the checks of `resolve`.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    slice,
};

use crate::{
    config::{
        clear_lines::clear_lines,
        file::{self, File},
        mistake::Mistakes,
        place::{Place, Source},
        resolve::{resolve, resolve_admin},
        rule::{Reading, Rule, Shape, Text},
        spec::{Admin, Config},
        tree::{self, Content, Node},
        variables::{self, Environment},
    },
    error::Failure,
};

/// The name that stands for standard input.
const STDIN: &str = "-";
/// Largest file, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Symbolic links that lead to a file, as in the kernel.
const MAX_LINKS: usize = 40;
/// Keys whose word is short for a map, with the key of the word in that map.
const SHORT: [(&str, &str); 1] = [("access_log", "log")];
/// Keys that are ignored begin with this.
pub(crate) const IGNORED: &str = "x-";

impl Config {
    /// Reads and checks a file, or standard input for `-`. Paths in a file are relative to it, or to the file that a symbolic
    /// link leads to.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        load_text(path, Self::parse)
    }

    /// The same for `leasehold check`: components that cannot be read are mistakes as well.
    pub(crate) fn load_with_components(path: &Path) -> Result<Self, Failure> {
        load_text(path, |file, text, folder| {
            parse_with(file, |reading| {
                reading.reads_components = true;
                whole(file, text, folder, |name| std::env::var(name).ok(), reading)
            })
        })
    }

    /// Reads the admin endpoint of a file. The rest of the file is not checked: it may need variables and files that only the
    /// host has.
    pub(crate) fn load_admin(path: &Path) -> Result<Admin, Failure> {
        let name = path.display().to_string();
        let text = fs::File::open(path).and_then(read);
        let text = text.map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
        let folder = target(path.to_owned()).parent().unwrap_or(Path::new("")).to_owned();
        let admin = parse_with(&name, |reading| admin(name.clone(), text, folder, reading));
        admin.map_err(|mistakes| Failure::Usage(mistakes.into()))
    }

    /// Parses and checks the text of a file whose relative paths begin in `folder`.
    pub(crate) fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, Mistakes> {
        Self::parse_in(file, text, folder, |name| std::env::var(name).ok())
    }

    /// The same in another environment.
    pub(crate) fn parse_in(file: &str, text: &str, folder: &Path, environment: Environment) -> Result<Self, Mistakes> {
        parse_with(file, |reading| whole(file, text, folder, environment, reading))
    }
}

/// Reads a file, or standard input for `-`. `parse` gets its name, its text, and the folder of relative paths.
pub(crate) fn load_text<T>(
    path: &Path,
    parse: impl FnOnce(&str, &str, &Path) -> Result<T, Mistakes>,
) -> Result<T, Failure> {
    let (file, text, folder) = if is_standard_input(path) {
        ("standard input".to_owned(), read(io::stdin().lock()), PathBuf::new())
    } else {
        let target = target(path.to_owned());
        let folder = target.parent().unwrap_or(Path::new("")).to_owned();
        (path.display().to_string(), fs::File::open(path).and_then(read), folder)
    };
    let text = text.map_err(|error| Failure::usage(format!("cannot read {file}: {error}")))?;
    parse(&file, &text, &folder).map_err(|mistakes| Failure::Usage(mistakes.into()))
}

/// The result of one reading, or every mistake that it found.
pub(crate) fn parse_with<T>(file: &str, read: impl FnOnce(&mut Reading) -> Option<T>) -> Result<T, Mistakes> {
    let mut reading = Reading::default();
    let result = read(&mut reading);
    match (Mistakes::of(reading.mistakes, &reading.sources), result) {
        (Some(mistakes), _) => Err(mistakes),
        (None, Some(result)) => Ok(result),
        (None, None) => Err(Mistakes::whole(file, "cannot be read")),
    }
}

/// True for a path that stands for standard input.
pub(crate) fn is_standard_input(path: &Path) -> bool {
    path == Path::new(STDIN) || path == Path::new("/dev/stdin")
}

fn read(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The file that symbolic links lead to. Folders stay as they are named: a link in the path of a folder may be turned to
/// another one while the host runs.
fn target(mut path: PathBuf) -> PathBuf {
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    path
}

fn whole(file: &str, text: &str, folder: &Path, environment: Environment, reading: &mut Reading) -> Option<Config> {
    let mut root = source(file.to_owned(), text.to_owned(), folder.to_owned(), File::shape, environment, reading)?;
    include(&mut root, environment, reading);
    merge_defaults(&mut root);
    let file = File::read(&root, reading)?;
    resolve(file, &root, environment, reading)
}

/// The admin endpoint of a source, whose other keys are ignored.
fn admin(name: String, text: String, folder: PathBuf, reading: &mut Reading) -> Option<Admin> {
    let mut root = parsed(Source { name, text, folder, ..Source::default() }, File::shape, reading)?;
    let Content::Map(entries) = &mut root.content else { return Some(Admin::default()) };
    entries.retain(|(key, _)| key.text == "admin");
    let environment: Environment = |name| std::env::var(name).ok();
    variables::replace(&mut root, environment, reading);
    let Some(node) = root.get("admin").filter(|node| !node.is_null()) else { return Some(Admin::default()) };
    let written = reading.under("admin", |reading| file::Admin::read(node, reading))?;
    resolve_admin(written, &root, environment, reading)
}

/// A source as a tree; `None` for text that is no YAML, which is reported.
fn parsed(mut source: Source, shape: fn() -> Shape, reading: &mut Reading) -> Option<Node> {
    let root = tree::parse(&mut source, reading.sources.len(), &mut reading.mistakes);
    if root.is_none() {
        source.clear = clear_lines(&source.text, &shape());
    }
    reading.sources.push(source);
    root
}

/// One source of that shape as a tree, without ignored keys, and with its variables replaced.
pub(crate) fn source(
    name: String,
    text: String,
    folder: PathBuf,
    shape: fn() -> Shape,
    environment: Environment,
    reading: &mut Reading,
) -> Option<Node> {
    let mut root = parsed(Source { name, text, folder, ..Source::default() }, shape, reading)?;
    if let Content::Map(entries) = &mut root.content {
        entries.retain(|(key, _)| !key.text.starts_with(IGNORED));
    }
    variables::replace(&mut root, environment, reading);
    Some(root)
}

/// Adds the services of the files that `include` names.
fn include(root: &mut Node, environment: Environment, reading: &mut Reading) {
    let Some(list) = root.get("include").cloned() else { return };
    let items = match &list.content {
        Content::List(items) => items.as_slice(),
        _ => slice::from_ref(&list),
    };
    let mut further = Vec::new();
    for item in items {
        // What is no text is reported when the file is read as a whole.
        let Some(pattern) = Text::read(item, &mut Reading::default()) else { continue };
        let found = files(&reading.folder(item.place).join(&pattern));
        let found = found.map_err(|message| reading.under("include", |reading| reading.wrong(item.place, message)));
        for path in found.unwrap_or_default() {
            further.extend(included(&path, item.place, environment, reading));
        }
    }
    let Content::Map(entries) = &mut root.content else { return };
    match entries.iter_mut().find(|(key, _)| key.text == "services") {
        Some((_, services)) if services.is_null() => services.content = Content::List(further),
        Some((_, Node { content: Content::List(services), .. })) => services.extend(further),
        Some(_) => {}
        None => {
            let key = tree::Key { text: "services".to_owned(), place: list.place, has_colon: true };
            entries.push((key, Node { place: list.place, content: Content::List(further) }));
        }
    }
}

/// The files of a folder or of a pattern, in the order of their names.
fn files(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (folder, name) = match (pattern.is_dir(), name.split_once('*')) {
        (true, _) => (pattern, None),
        (false, Some((_, end))) if end.contains('*') => return Err("must have one * at most".to_owned()),
        (false, Some((start, end))) => (pattern.parent().unwrap_or(Path::new("")), Some((start, end))),
        (false, None) => return Ok(vec![pattern.to_owned()]),
    };
    let shown = if folder == Path::new("") { Path::new(".") } else { folder };
    let listed = fs::read_dir(shown).map_err(|error| format!("cannot read {}: {error}", shown.display()))?;
    let is_meant = |path: &PathBuf| {
        let found = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_named = match name {
            None => found.ends_with(".yaml") || found.ends_with(".yml"),
            Some((start, end)) => {
                found.len() >= start.len() + end.len() && found.starts_with(start) && found.ends_with(end)
            }
        };
        // Editors keep files of their own, which are hidden.
        is_named && !found.starts_with('.') && !path.is_dir()
    };
    let mut files: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.path())).filter(is_meant).collect();
    files.sort();
    Ok(files)
}

/// The services of an included file.
fn included(path: &Path, place: Place, environment: Environment, reading: &mut Reading) -> Vec<Node> {
    let name = path.display().to_string();
    let text = match fs::File::open(path).and_then(read) {
        Ok(text) => text,
        Err(error) => {
            reading.under("include", |reading| reading.wrong(place, format!("cannot read {name}: {error}")));
            return Vec::new();
        }
    };
    let folder = target(path.to_owned()).parent().unwrap_or(Path::new("")).to_owned();
    let Some(root) = source(name, text, folder, File::shape, environment, reading) else { return Vec::new() };
    let Content::Map(entries) = root.content else {
        reading.wrong(root.place, "must be a map with the key services");
        return Vec::new();
    };
    let mut services = Vec::new();
    for (key, node) in entries {
        match (&*key.text, node.content) {
            ("services", Content::List(items)) => services.extend(items),
            ("services", content) if (Node { place: node.place, content: content.clone() }).is_null() => {}
            ("services", _) => {
                reading.under("services", |reading| reading.wrong(node.place, "must be a list of services"));
            }
            _ => reading.wrong(key.place, "an included file has services and nothing else"),
        }
    }
    services
}

/// Adds the keys of `defaults` to each service that does not have them.
fn merge_defaults(root: &mut Node) {
    let Some(defaults) = root.get("defaults").cloned() else { return };
    let Content::Map(entries) = &mut root.content else { return };
    let Some((_, services)) = entries.iter_mut().find(|(key, _)| key.text == "services") else { return };
    if let Content::List(services) = &mut services.content {
        services.iter_mut().for_each(|service| merge(&defaults, service));
    }
}

fn merge(defaults: &Node, own: &mut Node) {
    let (Content::Map(defaults), Content::Map(entries)) = (&defaults.content, &mut own.content) else { return };
    for (key, default) in defaults {
        match entries.iter_mut().find(|(own, _)| own.text == key.text) {
            // A layout is one thing, whether it is a name or a map.
            Some((_, _)) if key.text == "layout" => {}
            Some((_, own)) => match SHORT.iter().find(|(short, _)| *short == key.text) {
                Some((_, word)) if default.is_word() != own.is_word() => {
                    *own = own.long(word);
                    merge(&default.long(word), own);
                }
                _ => merge(default, own),
            },
            None if key.text == "name" => {}
            None => entries.push((key.clone(), default.clone())),
        }
    }
}
