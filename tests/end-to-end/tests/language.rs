//! The language of CONTRIBUTING.md: doc comments, comments, messages, names and pages in the words of the field, and links that
//! lead to files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use leasehold_end_to_end::{
    paths,
    sources::{Source, Token, sources, tokens},
};

/// First words of a clause without a noun, which do not open a doc comment.
const HEADLESS: [&str; 11] =
    ["What", "Whether", "Who", "Whose", "Whoever", "How", "That", "Which", "Where", "When", "Why"];
/// Words and phrases that stand in for the field's own terms.
const VAGUE: [&str; 8] = ["asked", "told", "one that", "whoever", "somebody", "nobody", "such a one", "for ever"];

/// Limit of headless doc comments, in percent of all.
const MAX_HEADLESS: f64 = 5.0;
/// Limit of vague words, per 10,000 words of comments.
const MAX_VAGUE: f64 = 2.0;

/// A word of a comment or a page, in lower case and without punctuation, and its line.
type Word = (String, usize);

/// Counts of one folder, with the lines that are counted.
#[derive(Default)]
struct Language {
    docs: usize,
    words: usize,
    headless: Vec<String>,
    vague: Vec<String>,
}

impl Language {
    fn add(&mut self, source: &Source) {
        let line = |number: usize| source.text.lines().nth(number - 1).unwrap_or_default().trim();
        let offender = |number: usize| format!("{}:{number}: {}", source.path, line(number));
        for number in doc_comments(&source.text) {
            self.docs += 1;
            let first = line(number)[3..].split_whitespace().next().unwrap_or_default();
            if HEADLESS.contains(&first.trim_end_matches(|c: char| !c.is_alphanumeric())) {
                self.headless.push(offender(number));
            }
        }
        let words = comment_words(&source.text);
        self.words += words.len();
        self.vague.extend(vague(&words).into_iter().map(offender));
    }

    fn headless_percent(&self) -> f64 {
        100.0 * self.headless.len() as f64 / self.docs.max(1) as f64
    }

    /// Vague words per 10,000. A single one in a small folder is within the limit.
    fn vague_rate(&self) -> f64 {
        let rate = 10_000.0 * self.vague.len() as f64 / self.words.max(1) as f64;
        if self.vague.len() <= 1 { rate.min(MAX_VAGUE) } else { rate }
    }
}

/// Numbers of the first lines of doc comments, from 1.
fn doc_comments(text: &str) -> Vec<usize> {
    let kind = |line: &str| match line.trim_start() {
        line if line.starts_with("////") => "",
        line if line.starts_with("///") => "///",
        line if line.starts_with("//!") => "//!",
        _ => "",
    };
    let mut before = "";
    let mut first = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let kind = kind(line);
        if !kind.is_empty() && kind != before {
            first.push(number);
        }
        before = kind;
    }
    first
}

/// Words of all comments, in order.
fn comment_words(text: &str) -> Vec<Word> {
    let comment = |line: &str| {
        let line = line.trim_start();
        match line.strip_prefix("//") {
            Some(comment) => comment.trim_start_matches(['/', '!']).to_owned(),
            None => line.split_once(" // ").map_or_else(String::new, |(_, comment)| comment.to_owned()),
        }
    };
    text.lines().zip(1..).flat_map(|(line, number)| words(&comment(line), number)).collect()
}

/// Words of a page, without its code.
fn page_words(text: &str) -> Vec<Word> {
    prose(text).into_iter().flat_map(|(line, number)| words(&without_code(line), number)).collect()
}

/// Lines of a page outside of code blocks, numbered from 1.
fn prose(text: &str) -> Vec<(&str, usize)> {
    let mut is_code = false;
    let lines = text.lines().zip(1..).filter(|(line, _)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect()
}

/// A line without its parts between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" x ")
}

fn words(text: &str, line: usize) -> Vec<Word> {
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).map(|word| (word, line)).collect()
}

/// Lines of the vague words and phrases among these words.
fn vague(words: &[Word]) -> Vec<usize> {
    let mut lines = Vec::new();
    for phrase in VAGUE {
        let phrase: Vec<_> = phrase.split(' ').collect();
        for part in words.windows(phrase.len()) {
            if part.iter().map(|(word, _)| word).eq(&phrase) {
                lines.push(part[0].1);
            }
        }
    }
    lines.sort_unstable();
    lines
}

/// Counts of each folder with sources: `guest-example`, and the folders below `host` and `tests`.
fn folders() -> BTreeMap<String, Language> {
    let mut folders: BTreeMap<String, Language> = BTreeMap::new();
    for source in ["host", "tests", "guest-example"].into_iter().flat_map(sources) {
        let depth = if source.path.starts_with("guest-example") { 1 } else { 2 };
        let folder = source.path.split('/').take(depth).collect::<Vec<_>>().join("/");
        folders.entry(folder).or_default().add(&source);
    }
    folders
}

/// Files of the workspace with this extension in a folder; with those below it if `deep`.
fn pages(folder: &Path, deep: bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(paths::workspace().join(folder)).unwrap() {
        let name = folder.join(entry.unwrap().file_name());
        let path = paths::workspace().join(&name);
        if deep && path.is_dir() {
            found.extend(pages(&name, true));
        } else if name.extension().is_some_and(|extension| extension == "md") {
            found.push(name.display().to_string());
        }
    }
    found.sort();
    found
}

fn all_pages() -> Vec<String> {
    let mut all = pages(Path::new(""), false);
    all.extend(pages(Path::new("docs"), true));
    all.extend(
        ["registrar", "plugin", "artifacts", "runner"]
            .iter()
            .flat_map(|host| pages(&Path::new("host").join(host), false)),
    );
    assert!(all.len() > 10, "{all:?}");
    all
}

fn read(page: &str) -> String {
    fs::read_to_string(paths::workspace().join(page)).unwrap()
}

/// Targets of the links in a page that are not addresses, with their lines.
fn relative_links(text: &str) -> Vec<(String, usize)> {
    let mut links = Vec::new();
    for (line, number) in prose(text) {
        let line = without_code_spans_in_text(line);
        for (_, behind) in line.match_indices("](").map(|(start, found)| line.split_at(start + found.len())) {
            let target = behind.split([')', ' ']).next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push((target.to_owned(), number));
            }
        }
    }
    links
}

/// A line without code, except for code that is the text of a link.
fn without_code_spans_in_text(line: &str) -> String {
    without_code(&line.replace("[`", "[").replace("`]", "]"))
}

/// Anchors of a page's headings, as the hosting site makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter_map(|(line, _)| line.starts_with('#').then_some(line));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn doc_comments_open_with_a_noun_or_a_verb() {
    for (folder, language) in folders() {
        let (limit, value) = (MAX_HEADLESS, language.headless_percent());
        assert!(
            value <= limit,
            "{folder}: {value:.1} % of the doc comments open with {}; the limit is {limit} %:\n{}",
            HEADLESS.join(", "),
            language.headless.join("\n")
        );
    }
}

#[test]
fn comments_use_the_terms_of_the_field() {
    for (folder, language) in folders() {
        let (limit, value) = (MAX_VAGUE, language.vague_rate());
        assert!(
            value <= limit,
            "{folder}: {value:.1} of 10,000 words are {}; the limit is {limit}:\n{}",
            VAGUE.join(", "),
            language.vague.join("\n")
        );
    }
}

/// Lines of the messages of a source that have vague words: its string literals.
fn vague_literals(text: &str) -> Vec<usize> {
    let literals = tokens(text).into_iter().filter_map(|(line, token)| match token {
        Token::Literal(literal) => Some(words(&literal.replace("\\n", " "), line)),
        Token::Word(_) => None,
    });
    literals.flat_map(|words| vague(&words)).collect()
}

/// Lines of the names of a source that have vague words.
fn vague_names(text: &str) -> Vec<usize> {
    let is_vague = |name: &str| {
        let mut spaced = String::new();
        for c in name.chars() {
            if c.is_uppercase() && !spaced.ends_with(char::is_uppercase) {
                spaced.push(' ');
            }
            spaced.push(if c == '_' { ' ' } else { c });
        }
        // Of the phrases some are good names: `one_that_was_left`.
        let is_vague = |word: &str| VAGUE.contains(&word.to_lowercase().as_str());
        spaced.replace("  ", " ").split(' ').any(is_vague)
    };
    let names = tokens(text).into_iter();
    names.filter_map(|(line, token)| matches!(token, Token::Word(name) if is_vague(name)).then_some(line)).collect()
}

/// Lines of these sources that `find` returns, with their text.
fn offenders(sources: impl IntoIterator<Item = Source>, find: fn(&str) -> Vec<usize>) -> Vec<String> {
    let mut offenders = Vec::new();
    for source in sources {
        let text = |number: usize| source.text.lines().nth(number - 1).unwrap_or_default().trim();
        let found = find(&source.text).into_iter();
        offenders.extend(found.map(|number| format!("{}:{number}: {}", source.path, text(number))));
    }
    offenders
}

#[test]
fn messages_use_the_terms_of_the_field() {
    let mut all = sources("host");
    all.retain(|source| source.path.contains("/src/"));
    let found = offenders(all, vague_literals);
    assert!(found.is_empty(), "these messages are vague ({}):\n{}", VAGUE.join(", "), found.join("\n"));
}

/// Lines of the messages of the log in a source that are a single word.
fn bare_messages(text: &str) -> Vec<usize> {
    let lines = ["error", "warn", "info", "debug", "trace"].into_iter().flat_map(|level| {
        let calls =
            text.match_indices(&format!("{level}!(")).map(|(at, call)| (at, at + call.len())).collect::<Vec<_>>();
        let bare = calls.into_iter().filter(|(_, arguments)| message(&text[*arguments..]).is_some_and(is_word));
        bare.map(|(at, _)| text[..at].lines().count()).collect::<Vec<_>>()
    });
    lines.collect()
}

fn is_word(message: &str) -> bool {
    message.chars().all(|c| !c.is_whitespace() && c != '{')
}

/// The message among the arguments of a line of the log: the first literal that is no value of a field.
fn message(arguments: &str) -> Option<&str> {
    let (mut depth, mut before, mut rest) = (0, ',', arguments);
    while let Some(c) = rest.chars().next() {
        match c {
            '"' => {
                let end = rest[1..].replace("\\\\", "__").replace("\\\"", "__").find('"')?;
                if depth == 0 && before == ',' {
                    return Some(&rest[1..=end]);
                }
                rest = &rest[1 + end..];
            }
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' if depth == 0 => return None,
            ')' | '}' | ']' => depth -= 1,
            _ => {}
        }
        if !c.is_whitespace() {
            before = c;
        }
        rest = &rest[c.len_utf8()..];
    }
    None
}

#[test]
fn messages_of_the_log_are_sentences() {
    assert_eq!(bare_messages("fn f() {\n    info!(event = \"ready\", n = g(\"x\"), \"ready\");\n}"), [2]);
    assert_eq!(bare_messages("debug!(%service, \"it is \\\"ready\\\"\"); warn!(\"{note}\"); info!(text)"), [0; 0]);
    let mut all = sources("host");
    all.retain(|source| source.path.contains("/src/"));
    let found = offenders(all, bare_messages);
    assert!(found.is_empty(), "these lines of the log are a word each:\n{}", found.join("\n"));
}

#[test]
fn names_use_the_terms_of_the_field() {
    let found = offenders(["host", "tests", "guest-example"].into_iter().flat_map(sources), vague_names);
    assert!(found.is_empty(), "these names are vague ({}):\n{}", VAGUE.join(", "), found.join("\n"));
}

#[test]
fn comments_of_manifests_use_the_terms_of_the_field() {
    let members = ["registrar", "plugin", "artifacts", "runner"].map(|member| format!("host/{member}/Cargo.toml"));
    let tests = ["end-to-end", "scenarios", "bench"].map(|member| format!("tests/{member}/Cargo.toml"));
    let all = ["Cargo.toml", "Makefile", "deny.toml", "clippy.toml", "host/clippy.toml"].map(str::to_owned);
    for file in all.into_iter().chain(members).chain(tests) {
        let text = read(&file);
        let comments = text.lines().zip(1..).filter_map(|(line, number)| Some((line.split_once('#')?.1, number)));
        let words: Vec<_> = comments.flat_map(|(comment, number)| words(comment, number)).collect();
        let lines: Vec<_> = vague(&words).into_iter().map(|number| text.lines().nth(number - 1).unwrap()).collect();
        assert!(lines.is_empty(), "{file} has vague words ({}):\n{}", VAGUE.join(", "), lines.join("\n"));
    }
}

#[test]
fn pages_use_the_terms_of_the_field() {
    for page in all_pages() {
        let text = read(&page);
        let found = vague(&page_words(&text));
        let lines: Vec<_> =
            found.iter().map(|number| format!("{page}:{number}: {}", text.lines().nth(number - 1).unwrap())).collect();
        assert!(lines.is_empty(), "{page} has {} vague words:\n{}", lines.len(), lines.join("\n"));
    }
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    for page in all_pages() {
        let folder = paths::workspace().join(&page).parent().unwrap().to_owned();
        for (target, line) in relative_links(&read(&page)) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { paths::workspace().join(&page) } else { folder.join(file) };
            let has_anchor = || anchors(&fs::read_to_string(&path).unwrap_or_default()).contains(anchor);
            if !path.exists() || !anchor.is_empty() && !has_anchor() {
                broken.push(format!("{page}:{line}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
}

/// Paths of the workspace between backticks, with their lines.
fn named_paths(text: &str) -> Vec<(&str, usize)> {
    let is_path = |code: &&str| {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
        let folders = ["host/", "tests/", "docs/", "scripts/", "guest-example/", "fuzz/", "deploy/"];
        folders.iter().any(|folder| code.starts_with(folder)) && code.chars().all(is_part)
    };
    let mut paths = Vec::new();
    for (line, number) in prose(text) {
        paths.extend(line.split('`').skip(1).step_by(2).filter(is_path).map(|path| (path, number)));
    }
    paths
}

#[test]
fn paths_that_pages_for_developers_name_exist() {
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"] {
        let text = read(page);
        let named = named_paths(&text).into_iter();
        let missing: Vec<_> = named.filter(|(path, _)| !paths::workspace().join(path).exists()).collect();
        assert!(missing.is_empty(), "{page} names paths that are not there: {missing:?}");
    }
}

#[test]
fn every_page_is_in_the_book() {
    let listed: Vec<_> = relative_links(&read("docs/SUMMARY.md")).into_iter().map(|(target, _)| target).collect();
    for page in pages(Path::new("docs"), true) {
        let page = page.strip_prefix("docs/").unwrap();
        // `make book` takes the records from their list.
        let is_listed_elsewhere = page == "SUMMARY.md" || page.starts_with("decisions/0");
        let count = listed.iter().filter(|target| *target == page).count();
        assert_eq!(count, usize::from(!is_listed_elsewhere), "docs/SUMMARY.md has docs/{page} {count} times");
    }
}

#[test]
fn decision_records_have_numbers_of_their_own_and_are_listed() {
    let list = relative_links(&read("docs/decisions/README.md"));
    let mut numbers = BTreeSet::new();
    for page in pages(Path::new("docs/decisions"), false) {
        let name = page.rsplit('/').next().unwrap();
        let Ok(number) = name.split('-').next().unwrap().parse::<u32>() else { continue };
        assert!(numbers.insert(number), "{number} is the number of two records");
        assert!(read(&page).starts_with(&format!("# {number}. ")), "{page} has another number in its title");
        assert!(list.iter().any(|(target, _)| target == name), "{page} is missing in the list");
    }
    assert!(numbers.len() > 20, "{numbers:?}");
}

#[test]
fn a_comment_block_counts_once_and_a_phrase_may_span_lines() {
    let docs = "//! What it is.\n//! How it works.\n\n/// A lease\n/// such a\n/// one.\n";
    assert_eq!(doc_comments(docs), [1, 4]);
    assert_eq!(vague(&comment_words(docs)), [5]);
    let behind = ["f(); ", "// It is told."].concat();
    assert_eq!(vague(&comment_words(&behind)), [1]);
    let url = "let url = \"http://a\";";
    assert!(comment_words(url).is_empty());
}

#[test]
fn messages_and_names_are_counted_apart() {
    let code = "fn asked() {\n    // told\n    let is_told = \"\\nnobody\";\n    struct ForNobodyElse;\n}";
    assert_eq!(vague_literals(code), [3]);
    assert_eq!(vague_names(code), [1, 3, 4]);
    assert!(vague_names("tolds untold one_that").is_empty());
}

#[test]
fn code_in_a_page_is_not_prose() {
    let page = "# One `told`\n\n```\ntold\n```\nsee [`x`](a.md#b) and `[y](z)` and [w](https://w)\n";
    assert!(vague(&page_words(page)).is_empty());
    assert_eq!(relative_links(page), [("a.md#b".to_owned(), 6)]);
    assert!(anchors("## Looking up, again\n").contains("looking-up-again"));
}
