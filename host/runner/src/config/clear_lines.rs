//! Lines that an excerpt shows of a file that cannot be parsed: a line has known keys alone, and stands below such keys alone,
//! none of whose values may be a secret.

use std::collections::BTreeSet;

use crate::config::rule::Shape;

/// Keys with free text that may be a secret, or that people put the secret itself at.
const SECRET: [&str; 7] = ["args", "config", "env", "key", "password", "user", "username"];
/// Kind of values that are secrets.
const SECRET_KIND: &str = "secret";
/// Key of YAML that repeats the keys of a map.
const MERGE: &str = "<<";

/// The keys of a configuration, by what their values may be.
#[derive(Debug, Default)]
struct KnownKeys {
    /// Keys of which no value is a secret.
    plain: BTreeSet<&'static str>,
    /// Those whose values are maps with keys of the user's choice.
    pairs: BTreeSet<&'static str>,
    secret: BTreeSet<&'static str>,
}

impl KnownKeys {
    fn of(shape: &Shape) -> Self {
        let mut known = Self { plain: [MERGE].into(), secret: SECRET.into(), ..Self::default() };
        known.add(shape);
        let Self { plain, pairs, secret } = &mut known;
        plain.retain(|key| !secret.contains(key));
        pairs.retain(|key| !secret.contains(key));
        known
    }

    fn add(&mut self, shape: &Shape) {
        match shape {
            Shape::Table(table) | Shape::WordOrTable(_, table) => {
                for key in &table.keys {
                    let keys = match &key.shape {
                        Shape::Scalar(form) if form.kind == SECRET_KIND => &mut self.secret,
                        Shape::Pairs => {
                            self.pairs.insert(key.name);
                            &mut self.plain
                        }
                        _ => &mut self.plain,
                    };
                    keys.insert(key.name);
                    self.add(&key.shape);
                }
            }
            Shape::List(item) => self.add(item),
            Shape::Either(_, shapes) => shapes.iter().for_each(|shape| self.add(shape)),
            Shape::Scalar(_) | Shape::Pairs => {}
        }
    }

    fn is_secret(&self, word: &str) -> bool {
        self.secret.contains(word.to_ascii_lowercase().as_str())
    }

    fn is_pairs(&self, key: Option<&str>) -> bool {
        key.is_some_and(|key| self.pairs.contains(key))
    }

    /// Returns true if no key of a path leads to a secret.
    fn are_plain<'a>(&self, path: impl Iterator<Item = &'a str>) -> bool {
        let mut outer = None;
        for key in path {
            if self.is_secret(key) || !(self.plain.contains(key) || self.is_pairs(outer)) {
                return false;
            }
            outer = Some(key);
        }
        true
    }
}

/// The number of characters of each line that an excerpt shows, from its beginning; 0 for a line that may hold a secret. A comment is
/// not shown.
pub(crate) fn clear_lines(text: &str, shape: &Shape) -> Vec<usize> {
    let mut scan = Scan { known: KnownKeys::of(shape), open: Vec::new(), is_inside: false };
    text.lines().map(|line| scan.line(line)).collect()
}

/// The lines so far.
struct Scan {
    known: KnownKeys,
    /// Maps and lists that the next line may be in: the column of each, and its key; `None` for the dash of a list.
    open: Vec<(usize, Option<String>)>,
    /// True behind a line that may hold a secret and leaves a quote or a bracket open.
    is_inside: bool,
}

impl Scan {
    fn line(&mut self, line: &str) -> usize {
        let body = without_comment(line);
        let rest = body.trim_start();
        if rest.is_empty() {
            return 0;
        }
        let (rest, column, dashes) = without_dashes(rest, body.chars().count() - rest.chars().count());
        self.leave(dashes.first().copied().unwrap_or(column), !dashes.is_empty());
        let owner = self.open.iter().rev().find_map(|(_, key)| key.as_deref());
        let known = &self.known;
        let is_clear = known.are_plain(self.open.iter().filter_map(|(_, key)| key.as_deref()))
            && is_clear(rest, known, !dashes.is_empty() && owner.is_some(), known.is_pairs(owner))
            && !self.is_inside;
        self.is_inside |= !is_clear && is_open(body);
        self.open.extend(dashes.into_iter().map(|column| (column, None)));
        if let Some((key, _)) = rest.split_once(':') {
            self.open.push((column, Some(unquoted(key.trim()).to_owned())));
        }
        if is_clear { body.chars().count() } else { 0 }
    }

    /// Leaves the maps and lists that a line at that column is not in. A line whose indentation fits none is taken to be in all.
    fn leave(&mut self, column: usize, has_dash: bool) {
        let fits = self.open.iter().any(|(open, _)| *open == column);
        let is_deeper = self.open.last().is_none_or(|(open, _)| column > *open);
        if !fits || is_deeper {
            return;
        }
        while let Some((open, key)) = self.open.last() {
            // The items of a list may stand below their key, without indentation.
            if *open < column || (*open == column && has_dash && key.is_some()) {
                break;
            }
            self.open.pop();
        }
    }
}

/// The line up to its comment.
fn without_comment(line: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').find(begins);
    comment.map_or(line, |(at, _)| &line[..at]).trim_end()
}

/// The text behind the dashes of lists, with its column and those of the dashes.
fn without_dashes(mut rest: &str, mut column: usize) -> (&str, usize, Vec<usize>) {
    let mut dashes = Vec::new();
    while let Some(behind) = rest.strip_prefix('-').filter(|behind| behind.is_empty() || behind.starts_with(' ')) {
        dashes.push(column);
        let text = behind.trim_start();
        column += 1 + behind.chars().count() - text.chars().count();
        rest = text;
    }
    (rest, column, dashes)
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

/// Detects a quote or a bracket that is not closed on its line.
fn is_open(line: &str) -> bool {
    let number = |c: char| line.matches(c).count();
    number('"') % 2 == 1 || number('\'') % 2 == 1 || number('{') > number('}') || number('[') > number(']')
}

/// Returns true if the text has known keys alone, each with one word as its value or with a list of words, and no word that may
/// be a secret. Text that begins with an item of a list of such a key `may_begin_with_value`.
fn is_clear(text: &str, known: &KnownKeys, may_begin_with_value: bool, mut is_pairs: bool) -> bool {
    if text.contains("://") && text.contains('@') {
        return false;
    }
    // Brackets around the word: true in those of a list, with whether the keys outside of it are of the user's choice.
    let mut around: Vec<(bool, bool)> = Vec::new();
    let (mut takes_value, mut owns_pairs) = (may_begin_with_value, false);
    for token in tokens(text) {
        match token {
            "{" => {
                around.push((false, is_pairs));
                (is_pairs, takes_value, owns_pairs) = (owns_pairs, false, false);
            }
            "[" if takes_value => around.push((true, is_pairs)),
            "[" => return false,
            "}" | "]" => {
                is_pairs = around.pop().is_some_and(|(_, outer)| outer);
                takes_value = false;
            }
            "," => takes_value = around.last().is_some_and(|(is_list, _)| *is_list),
            word => {
                let (key, value) = word.split_once(':').map_or((word, None), |(key, value)| (key, Some(value)));
                let key = unquoted(key);
                // As a value, such a word is the name of something.
                if known.is_secret(key) && !(takes_value && value.is_none()) {
                    return false;
                }
                let is_key = known.plain.contains(key) || (is_pairs && value.is_some());
                match value {
                    // A key may also stand where a value is expected: a comma or a line break is missing.
                    Some("") | None if is_key && !(takes_value && value.is_none()) => {
                        (takes_value, owns_pairs) = (true, known.is_pairs(Some(key)));
                    }
                    Some("") => return false,
                    _ if takes_value => takes_value = false,
                    Some(_) if is_key => {}
                    _ => return false,
                }
            }
        }
    }
    true
}

/// The words of a text, and its brackets and commas.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().flat_map(|word| {
        word.split_inclusive(['{', '}', '[', ']', ',']).flat_map(|piece| {
            let end = piece.len() - usize::from(piece.ends_with(['{', '}', '[', ']', ',']));
            [&piece[..end], &piece[end..]].into_iter().filter(|token| !token.is_empty())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::clear_lines;
    use crate::config::{file::File, rule::Rule};

    /// The lines as an excerpt shows them.
    fn shown(text: &str) -> Vec<&str> {
        let lines = clear_lines(text, &File::shape());
        text.lines().zip(lines).map(|(line, length)| line.get(..length).unwrap_or_default()).collect()
    }

    #[test]
    fn lines_with_known_keys_alone_are_shown() {
        let text = "\
services:
- name: greeter
  component: greeter.wasm   # of today
  listen: \"127.0.0.1:8080
  limits: { memory 64MiB, concurrency: 10, output_lines: 5
  allow: { names: [greeter, user], outbound: [api.example:443] }
  allow:
    discover:
    - user ]
    - 'order
  metadata: { zone: b, rack: 7
  memory: 64MiB concurrency: 10";
        let expected = text.replace("   # of today", "");
        assert_eq!(shown(text), expected.lines().collect::<Vec<_>>());
    }

    #[test]
    fn lines_that_may_hold_a_secret_are_not_shown() {
        for secret in [
            "etcd: { dial_timeout: 1s, password: hunter2",
            "etcd: { dial_timeout: 1s, pasword: hunter2",
            "etcd: { dial_timeout: 1s, password hunter2 }",
            "etcd: { dial_timeout: 1s, hunter2",
            "etcd: { dial_timeout: 1s hunter2",
            "etcd: { user: root:hunter2",
            "etcd: { endpoints: [http://root:hunter2@h:2379]",
            "etcd:\n  password:\n    name: hunter2",
            "etcd: {\n password: \"a\n name: hunter2",
            "services:\n- config: { a: b,\n  name: hunter2",
            "services:\n- env:\n    name: hunter2",
            "services:\n- env:\n      A: b\n    name: hunter2",
            "services:\n- env:\n      A: b\n     name: hunter2",
            "services:\n- args:\n  - hunter2",
            "services:\n- name: a\n  - hunter2 x",
            "services:\n- metadata:\n    password: hunter2",
            "services:\n- tls: { key: hunter2",
            "x-secret: { name: hunter2",
            "x-secret:\n  name: hunter2",
            "memory: 64MiB pasword: hunter2",
            "hunter2",
            "name: a # hunter2",
        ] {
            assert!(shown(secret).iter().all(|line| !line.contains("hunter2")), "{secret}");
        }
    }
}
