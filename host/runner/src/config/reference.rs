//! The reference of the configuration, `docs/configuration.md`, and of the files of `leasehold keep` in `docs/keep.md`.

use crate::config::{
    file::File,
    kept::KeptFile,
    rule::{Absent, Key, Rule, Shape, Table},
};

/// Text above the tables.
const HEAD: &str = include_str!("reference.md");

/// The whole page.
pub(crate) fn page() -> String {
    // The defaults are those of a service.
    Page { text: HEAD.to_owned(), elsewhere: ("defaults", "#services") }.of(&File::shape())
}

/// The tables of the files of `leasehold keep`.
pub(crate) fn kept() -> String {
    Page { text: String::new(), elsewhere: ("etcd", "configuration.md#etcd") }.of(&KeptFile::shape())
}

/// A page with a table for each map.
struct Page {
    text: String,
    /// A key whose table is described elsewhere, and where.
    elsewhere: (&'static str, &'static str),
}

impl Page {
    fn of(mut self, file: &Shape) -> String {
        if let Shape::Table(file) = file {
            self.section("", file);
        }
        self.text
    }

    /// The table of one map, then those of the maps in it.
    fn section(&mut self, path: &str, table: &Table) {
        let title = if path.is_empty() { "The file".to_owned() } else { format!("`{path}`") };
        self.text.push_str(&format!("\n## {title}\n\n{}\n\n", table.about));
        self.text.push_str("| key | type | default | range | effect | example |\n|---|---|---|---|---|---|\n");
        for key in &table.keys {
            let row = self.row(path, key);
            self.text.push_str(&row);
        }
        for key in &table.keys {
            if let (Some(table), true) = (key.shape.table(), key.name != self.elsewhere.0) {
                self.section(&joined(path, key), table);
            }
        }
    }

    fn row(&self, path: &str, key: &Key) -> String {
        let (kind, range, example) = described(&key.shape);
        let name = match key.shape.table() {
            Some(_) if key.name == self.elsewhere.0 => format!("[`{}`]({})", key.name, self.elsewhere.1),
            Some(_) => format!("[`{}`](#{})", key.name, anchor(&joined(path, key))),
            None => format!("`{}`", key.name),
        };
        let absent = match key.absent {
            Absent::Required => "**required**".to_owned(),
            Absent::Text(text) => format!("`{text}`"),
            Absent::Unset(words) => words.to_owned(),
        };
        let example = key.example.map(str::to_owned).unwrap_or(example);
        let example = if example.is_empty() { example } else { format!("`{}: {example}`", key.name) };
        let cells = [name, kind, absent, range, key.effect.clone(), example].map(|cell| cell.replace('|', "\\|"));
        format!("| {} |\n", cells.join(" | "))
    }
}

fn joined(path: &str, key: &Key) -> String {
    let name = if matches!(key.shape, Shape::List(_)) { format!("{}[]", key.name) } else { key.name.to_owned() };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// Type, range and example of a value.
fn described(shape: &Shape) -> (String, String, String) {
    match shape {
        Shape::WordOrTable(form, _) => (format!("{} or map", form.kind), form.range.clone(), form.example.to_owned()),
        Shape::Scalar(form) => (form.kind.to_owned(), form.range.clone(), form.example.to_owned()),
        Shape::Table(_) => ("map".to_owned(), String::new(), String::new()),
        Shape::Pairs => ("map of text".to_owned(), String::new(), String::new()),
        Shape::List(item) if item.table().is_some() => ("list of maps".to_owned(), String::new(), String::new()),
        Shape::List(item) => {
            let (kind, range, example) = described(item);
            (format!("list: {kind}"), range, format!("[{example}]"))
        }
        Shape::Either(words, shapes) => {
            let first = shapes.first().map(described);
            let (_, range, example) = first.unwrap_or_default();
            ((*words).to_owned(), range, example)
        }
    }
}

/// The anchor of a heading, as hosting sites make it.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{kept, page};
    use crate::config::schema::schema;

    #[track_caller]
    fn current(file: &str, text: &str, command: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "docs/{file} is not what the keys are; to write it again: {command} > docs/{file}");
    }

    #[test]
    fn the_page_has_every_key_as_it_is() {
        current("configuration.md", &page(), "target/release/leasehold schema --reference");
    }

    #[test]
    fn the_page_on_keep_has_every_key_as_it_is() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/keep.md");
        let page = fs::read_to_string(page).unwrap();
        let tables = kept();
        let command = "target/release/leasehold schema --keep --reference";
        assert!(page.contains(&tables), "docs/keep.md has not the keys as they are, which {command} prints:\n{tables}");
    }

    #[test]
    fn the_schema_in_the_repository_is_current() {
        let text = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
        current("configuration.schema.json", &text, "target/release/leasehold schema");
    }
}
