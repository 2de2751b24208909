//! The Rust sources of the workspace, for tests that scan them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::paths;

/// One Rust file of the workspace.
pub struct Source {
    /// Path from the root of the workspace.
    pub path: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Lines of code without comments and unit tests, numbered from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = |line: &&str| line.trim() == "#[cfg(test)]";
        let lines = self.text.lines().take_while(move |line| !tests(line)).zip(1..);
        lines.filter(|(line, _)| !line.trim_start().starts_with("//")).map(|(line, number)| (number, line))
    }

    /// Lines of code that contain one of these words, as `path:line: text`.
    pub fn naming(&self, words: &[&str]) -> Vec<String> {
        let named = self.code().filter(|(_, line)| words.iter().any(|word| has_word(line, word)));
        named.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

/// Returns true if a line contains the word, not as a part of a longer one.
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let (before, after) = (&line[..start], &line[start + word.len()..]);
        !before.ends_with(part) && !after.starts_with(part)
    })
}

/// Every Rust file under a folder of the workspace; at least one.
pub fn sources(under: &str) -> Vec<Source> {
    let root = paths::workspace();
    let mut files = Vec::new();
    walk(&root.join(under), &mut files);
    assert!(!files.is_empty(), "there is nothing under {under}");
    let source = |file: PathBuf| Source {
        path: file.strip_prefix(&root).expect("it was found under the root").display().to_string(),
        text: fs::read_to_string(&file).expect("a source is UTF-8"),
    };
    files.into_iter().map(source).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("the folder is readable").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                walk(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    /// Modules of its own crate that its code imports or names, as paths such as `inbound::dispatch::Door`.
    pub fn imports(&self) -> BTreeSet<String> {
        let code: Vec<_> = self.code().map(|(_, line)| line).collect();
        let code = code.join("\n");
        let mut paths = BTreeSet::new();
        for (start, _) in code.match_indices("crate::") {
            if code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            expand("", &code[start + "crate::".len()..], &mut paths);
        }
        paths
    }
}

/// Adds the paths that the tree of a `use` at the beginning of `text` names, and returns what follows the tree.
fn expand<'a>(prefix: &str, text: &'a str, paths: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            match rest.strip_prefix('}') {
                Some(behind) => return behind,
                None if rest.is_empty() => return rest,
                None => rest = expand(prefix, rest, paths),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        // Nothing that a path can go on with; one character is skipped, so that every call comes to an end.
        return text.get(1..).unwrap_or_default();
    }
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    if let Some(deeper) = rest.strip_prefix("::") {
        return expand(&path, deeper, paths);
    }
    paths.insert(path.trim_end_matches("::self").to_owned());
    match rest.trim_start().strip_prefix("as ") {
        Some(alias) => alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        None => rest,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::expand;

    #[test]
    fn a_use_names_its_paths() {
        let mut paths = BTreeSet::new();
        let rest = expand("", "{a::{self, B, c::{D, e}}, f::G as H};\nlet", &mut paths);
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["a", "a::B", "a::c::D", "a::c::e", "f::G"]);
        assert_eq!(rest.trim_start_matches(';'), "\nlet");
    }
}
