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
    /// Lines of code without comments and without the items of tests, numbered from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = self.text.lines().zip(1..);
        let lines = std::iter::from_fn(move || {
            loop {
                let (line, number) = lines.next()?;
                if line.trim() == "#[cfg(test)]" {
                    skip_item(&mut lines);
                } else if !line.trim_start().starts_with("//") {
                    return Some((number, line));
                }
            }
        });
        lines.fuse()
    }

    /// Lines of code that contain one of these words, as `path:line: text`.
    pub fn naming(&self, words: &[&str]) -> Vec<String> {
        let named = self.code().filter(|(_, line)| words.iter().any(|word| has_word(line, word)));
        named.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

/// Skips the next item: an attribute or more, then a field, a statement, or a block that ends where it is indented as at its
/// beginning, as rustfmt writes it.
fn skip_item<'a>(lines: &mut impl Iterator<Item = (&'a str, usize)>) {
    let mut begun = None;
    for (line, _) in lines {
        let text = line.trim();
        let is_before = text.is_empty() || text.starts_with("//") || text.starts_with("#[");
        if begun.is_none() && is_before {
            continue;
        }
        let indent = *begun.get_or_insert(indent(line));
        if self::indent(line) == indent && text.ends_with([';', ',', '}']) {
            return;
        }
    }
}

/// Number of spaces before a line.
fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
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

/// Part of a source that is neither a comment nor punctuation.
#[derive(Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// An identifier, a keyword or a number.
    Word(&'a str),
    /// Content of a string literal, as it is written.
    Literal(&'a str),
}

/// Words and string literals of a source, with their lines, numbered from 1.
pub fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (token, length) = if rest.starts_with("//") {
            (None, rest.find('\n').unwrap_or(rest.len()))
        } else if let Some((content, length)) = literal(rest) {
            (Some(Token::Literal(content)), length)
        } else if first == '\'' {
            (None, character(rest))
        } else if word > 0 {
            (Some(Token::Word(&rest[..word])), word)
        } else {
            (None, first.len_utf8())
        };
        tokens.extend(token.map(|token| (line, token)));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// Content and length of the string literal at the beginning of `text`, if one is there.
fn literal(text: &str) -> Option<(&str, usize)> {
    let begun = text.strip_prefix('b').unwrap_or(text);
    let (prefix, is_raw) = (text.len() - begun.len(), begun.starts_with('r'));
    let begun = begun.strip_prefix('r').unwrap_or(begun);
    let hashes = if is_raw { begun.len() - begun.trim_start_matches('#').len() } else { 0 };
    let content = begun[hashes..].strip_prefix('"')?;
    let end = match is_raw {
        true => content.find(&format!("\"{}", "#".repeat(hashes)))?,
        false => {
            let mut is_escaped = false;
            content.find(|c| {
                let is_end = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                is_end
            })?
        }
    };
    Some((&content[..end], prefix + usize::from(is_raw) + 2 * hashes + end + 2))
}

/// Length of the character literal at the beginning of `text`, or of the quote before a lifetime.
fn character(text: &str) -> usize {
    let mut rest = text[1..].char_indices();
    match rest.next() {
        // The escaped character itself may be a quote.
        Some((_, '\\')) => text[3..].find('\'').map_or(1, |end| 3 + end + 1),
        _ => rest.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| 1 + at + 1),
    }
}

impl Source {
    /// Module path below `src`, such as `inbound::dispatch`; empty for the root of the crate.
    pub fn module(&self) -> String {
        let (_, path) = self.path.split_once("/src/").expect("a source is below src");
        let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
        if matches!(path, "main" | "lib") { String::new() } else { path.replace('/', "::") }
    }

    /// Modules of its own crate that its code imports or names, as paths such as `inbound::dispatch::Dispatcher`. A path may
    /// begin at the crate, at the module itself, at the module above it, or at a module below it.
    pub fn imports(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for (module, code) in self.blocks() {
            let below: Vec<_> = code.lines().filter_map(declared).collect();
            // Reads the path of which `name` is the first word and `after` what follows.
            let mut read = |name: &str, after: &str| {
                let from = match name {
                    "crate" => String::new(),
                    "self" => module.clone(),
                    "super" => above(&module).to_owned(),
                    name if below.contains(&name) => joined(&module, name),
                    _ => return,
                };
                expand(&from, after, &mut paths);
            };
            let (imports, rest) = divided(&code);
            for import in imports {
                // Words further on belong to the path before them.
                if let Some((name, after)) = import.split_once("::") {
                    read(name, after);
                }
            }
            for (start, _) in rest.match_indices("::") {
                let (before, after) = (&rest[..start], &rest[start + "::".len()..]);
                let name = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                if !before[..before.len() - name.len()].ends_with(['$', ':']) {
                    read(name, after);
                }
            }
        }
        paths
    }

    /// Code of the file's module and of each inline module in it, with their paths.
    fn blocks(&self) -> Vec<(String, String)> {
        let mut blocks = vec![(self.module(), String::new())];
        // Inline modules around a line, by their indentation and the index of their block.
        let mut around: Vec<(usize, usize)> = Vec::new();
        for (_, line) in self.code() {
            let at = around.last().map_or(0, |(_, at)| *at);
            let inline = line.trim().strip_suffix(" {").and_then(|line| line.split_once("mod "));
            match inline {
                Some((before, name)) if before.is_empty() || before.starts_with("pub") => {
                    blocks.push((joined(&blocks[at].0, name), String::new()));
                    around.push((indent(line), blocks.len() - 1));
                }
                _ if around.last().is_some_and(|(begun, _)| line.trim() == "}" && indent(line) == *begun) => {
                    around.pop();
                }
                _ => {
                    blocks[at].1.push_str(line);
                    blocks[at].1.push('\n');
                }
            }
        }
        blocks
    }
}

/// Name of the module that a line declares and whose text is another file.
fn declared(line: &str) -> Option<&str> {
    let (before, name) = line.trim().strip_suffix(';')?.split_once("mod ")?;
    (before.is_empty() || before.starts_with("pub")).then_some(name)
}

/// Trees of the `use` statements in code, and the rest of it.
fn divided(code: &str) -> (Vec<String>, String) {
    let (mut imports, mut rest) = (Vec::<String>::new(), String::new());
    let mut is_open = false;
    for line in code.lines() {
        let import =
            line.trim().split_once("use ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
        match import {
            Some((_, tree)) if !is_open => {
                imports.push(tree.to_owned());
                is_open = !tree.ends_with(';');
            }
            _ if is_open => {
                imports.last_mut().expect("it is open").push_str(line.trim());
                is_open = !line.ends_with(';');
            }
            _ => {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    (imports, rest)
}

/// The module above a module.
fn above(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(above, _)| above)
}

/// Path of what has this name in a module.
fn joined(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// Adds the paths that the tree of a `use` at the beginning of `text` names below `prefix`, and returns what follows the tree.
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
    let path = if name == "super" { above(prefix).to_owned() } else { joined(prefix, name) };
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

    use super::{Source, Token, expand, tokens};

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn only_the_item_of_a_test_is_skipped() {
        let text = [
            "//! A file.",
            "struct A {",
            "    #[cfg(test)]",
            "    /// Looks.",
            "    looks: B,",
            "    c: C,",
            "}",
            "#[cfg(test)]",
            "#[derive(Debug)]",
            "fn f(",
            "    d: D,",
            ") {",
            "    g(d);",
            "}",
            "#[cfg(test)]",
            "use h::{",
            "    I,",
            "};",
            "#[cfg(test)]",
            "mod tests;",
            "fn k() {}",
        ];
        let text = text.join("\n");
        let lines: Vec<_> = source("a/src/b.rs", &text).code().map(|(number, _)| number).collect();
        assert_eq!(lines, [2, 6, 7, 21]);
    }

    #[test]
    fn paths_are_resolved_from_the_module() {
        let text = [
            "pub(crate) mod below;",
            "use self::below::A;",
            "use super::{B, beside::C, super::D};",
            "pub(crate) use below::N;",
            "use crate::{",
            "    other::{below::O, self},",
            "};",
            "mod inline {",
            "    use super::F;",
            "    use super::super::G;",
            "}",
            "fn f() { below::h(other::i, crate::J, $crate::K, std::self::L) }",
            "#[cfg(test)]",
            "mod tests {",
            "    use super::M;",
            "}",
        ];
        let named = |path: &str| source(path, &text.join("\n")).imports().into_iter().collect::<Vec<_>>();
        let expected = [
            "D",
            "J",
            "a::B",
            "a::G",
            "a::b::F",
            "a::b::below::A",
            "a::b::below::N",
            "a::b::below::h",
            "a::beside::C",
            "other",
            "other::below::O",
        ];
        assert_eq!(named("host/x/src/a/b.rs"), expected);
        assert_eq!(named("host/x/src/a/b/mod.rs"), expected);
    }

    #[test]
    fn words_differ_from_literals() {
        let text =
            "fn f<'a>(c: &'a str) {\n    g('\"', '\\'', r#\"a \"b\" c\"#, b\"d\\\"e\") // h \"i\"\n    \"j\nk\"; l\n}";
        let of = |wanted: fn(&Token<'_>) -> Option<String>| -> Vec<_> {
            tokens(text).iter().filter_map(|(line, token)| wanted(token).map(|text| format!("{line} {text}"))).collect()
        };
        let literals = of(|token| if let Token::Literal(text) = token { Some((*text).to_owned()) } else { None });
        assert_eq!(literals, ["2 a \"b\" c", "2 d\\\"e", "3 j\nk"]);
        let words = of(|token| if let Token::Word(text) = token { Some((*text).to_owned()) } else { None });
        assert_eq!(words, ["1 fn", "1 f", "1 a", "1 c", "1 a", "1 str", "2 g", "4 l"]);
    }

    #[test]
    fn a_use_names_its_paths() {
        let mut paths = BTreeSet::new();
        let rest = expand("", "{a::{self, B, c::{D, e}}, f::G as H};\nlet", &mut paths);
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["a", "a::B", "a::c::D", "a::c::e", "f::G"]);
        assert_eq!(rest.trim_start_matches(';'), "\nlet");
    }
}
