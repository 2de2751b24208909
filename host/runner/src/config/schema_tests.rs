//! Agreement of the JSON Schema, the parser, and every example of the repository.

use std::{fs, path::Path};

use regex_lite::Regex;
use serde_json::{Map, Value, json};

use super::{
    Config,
    file::File,
    mistake::Mistakes,
    place::Source,
    rule::{Reading, Rule},
    schema::{FILE, schema},
    tree::{self, Content, Node},
};

/// Checks a value by the keywords that the schema has; the error is the first that is broken.
fn validate(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Value::Object(keywords) = schema else { return Err(format!("{at}: no schema")) };
    for (keyword, rule) in keywords {
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "additionalProperties" | "patternProperties" => true,
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| is_of(value, name)),
                name => is_of(value, name),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
            "pattern" => value.as_str().is_none_or(|text| Regex::new(rule.as_str().unwrap()).unwrap().is_match(text)),
            "required" => {
                let has = |key: &Value| value.get(key.as_str().unwrap()).is_some();
                !value.is_object() || rule.as_array().unwrap().iter().all(has)
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|schema| validate(schema, value, at).is_ok()),
            "items" => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                for (index, item) in items.iter().enumerate() {
                    validate(rule, item, &format!("{at}[{index}]"))?;
                }
                true
            }
            "properties" => {
                for (key, value) in value.as_object().unwrap_or(&Map::new()) {
                    let ignored = keywords.get("patternProperties").is_some() && key.starts_with("x-");
                    match (rule.get(key), keywords.get("additionalProperties")) {
                        _ if ignored => {}
                        (Some(schema), _) => validate(schema, value, &format!("{at}.{key}"))?,
                        (None, Some(Value::Bool(false))) => return Err(format!("{at}.{key}: unknown")),
                        (None, _) => {}
                    }
                }
                true
            }
            keyword => panic!("the keyword {keyword} is not known here"),
        };
        if !holds {
            return Err(format!("{at}: {keyword} {rule}"));
        }
    }
    if let (Some(schema @ Value::Object(_)), Some(entries)) = (keywords.get("additionalProperties"), value.as_object())
    {
        return entries.iter().try_for_each(|(key, value)| validate(schema, value, &format!("{at}.{key}")));
    }
    Ok(())
}

fn is_of(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        name => panic!("{name}"),
    }
}

/// A tree as editors see it: scalars by YAML's core schema.
fn json(node: &Node) -> Value {
    match &node.content {
        Content::List(items) => items.iter().map(json).collect(),
        Content::Map(entries) => {
            Value::Object(entries.iter().map(|(key, node)| (key.text.clone(), json(node))).collect())
        }
        Content::Scalar(_) if node.is_null() => Value::Null,
        Content::Scalar(scalar) if !scalar.is_plain => scalar.text.as_str().into(),
        Content::Scalar(scalar) => match scalar.text.as_str() {
            "true" | "True" | "TRUE" => true.into(),
            "false" | "False" | "FALSE" => false.into(),
            text => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) if text.starts_with(|c: char| c.is_ascii_digit() || "-.".contains(c)) => number.into(),
                _ => text.into(),
            },
        },
    }
}

fn tree(text: &str) -> Node {
    let (mut source, mut mistakes) = (Source { text: text.to_owned(), ..Source::default() }, Vec::new());
    let root = tree::parse(&mut source, 0, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes:?}\n{text}");
    root.unwrap()
}

/// Every file of the repository that is a configuration, and each of those in its pages.
fn examples() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec![("leasehold init".to_owned(), crate::commands::init::text())];
    let mut pages = vec![root.join("README.md")];
    for folder in ["guest-example", "docs"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("yaml") => found.push((path.display().to_string(), fs::read_to_string(path).unwrap())),
                Some("md") => pages.push(path),
                _ => {}
            }
        }
    }
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text.split("\n```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        found.extend(
            blocks.enumerate().map(|(n, block)| (format!("{}, block {}", page.display(), n + 1), block.to_owned())),
        );
    }
    assert!(found.len() > 15, "{}", found.len());
    found
}

/// The example with what it leaves out: services, and what each of them needs.
fn whole(text: &str) -> Value {
    let mut example = json(&tree(text));
    let service = json!({ "name": "a", "component": "a.wasm", "listen": "127.0.0.1:0" });
    let services = example.as_object_mut().unwrap().entry("services").or_insert_with(|| json!([service.clone()]));
    for written in services.as_array_mut().unwrap() {
        let mut all = service.as_object().unwrap().clone();
        all.extend(written.as_object().unwrap().clone());
        *written = all.into();
    }
    example
}

fn parse(example: &Value) -> Result<Config, Mistakes> {
    let environment = |name: &str| (name == "NAME" || name == "ETCD_PASSWORD").then(|| "a".to_owned());
    Config::parse_in("example", &example.to_string(), Path::new("/nonexistent"), environment)
}

#[test]
fn every_example_is_a_configuration_by_the_parser_and_by_the_schema() {
    let schema = schema();
    for (name, text) in examples() {
        let example = whole(&text);
        validate(&schema, &example, "").unwrap_or_else(|broken| panic!("{name}: {broken}"));
        if let Err(mistakes) = parse(&example) {
            // The files that it names are not there.
            let unread = mistakes.list().iter().filter(|mistake| !mistake.message.contains("cannot read /"));
            let unread: Vec<_> = unread.map(|mistake| &mistake.message).collect();
            assert!(unread.is_empty(), "{name}: {unread:?}");
        }
    }
}

#[test]
fn every_example_file_names_the_schema() {
    for (name, text) in examples() {
        if name.ends_with(".yaml") || !name.contains("block") {
            let first = text.lines().next().unwrap_or_default();
            let address = first.strip_prefix("# yaml-language-server: $schema=").unwrap_or_default();
            let file = Path::new(&name).parent().unwrap_or(Path::new("")).join(address);
            assert!(address == FILE || file.is_file(), "{name}: {first}");
        }
    }
}

/// Values that are right for some keys, and wrong for most.
fn values() -> Vec<Value> {
    let texts = [
        "",
        " ",
        "a",
        "a/b",
        "a b",
        "-",
        "10s",
        "1500ms",
        "2000ms",
        "0s",
        "1.5s",
        "10",
        "0",
        "100001",
        "64MiB",
        "1KiB",
        "64kb",
        "50%",
        "101%",
        "127.0.0.1:80",
        "0.0.0.0:80",
        "[::1]:80",
        "::1:80",
        "h:0",
        "h:80",
        "h",
        ":80",
        "1.2.3.4:99999",
        "http://h:1",
        "https://h:1/",
        "http://h",
        "http://u:p@h:1",
        "/path?a=b",
        "*",
        "*.a.b",
        "a*",
        "10.0.0.0/8",
        "component",
        "off",
        "on",
        "yes",
        "take-over",
        "kratos",
        "custom",
        "a.b-c",
        "a..b",
        "${NAME}",
        "x${NAME:-1}",
        "null",
        "true",
        "1_000",
        "v1",
        "é",
    ];
    let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
    values.extend([
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(5),
        json!(50),
        json!(101),
        json!(100_000),
        json!(100_001),
        json!(-1),
        json!(0.5),
        json!(1.5),
        json!([]),
        json!(["a"]),
        json!(["a", 5]),
        json!([[]]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": 1, "b": true }),
        json!({ "a": null }),
        json!({ "a": ["b"] }),
        json!({ "name": "kratos" }),
        json!([{ "name": "kratos" }, "seed"]),
        json!({ "listen": "127.0.0.1:1" }),
        json!({ "path": "/" }),
    ]);
    values
}

/// Each key of the schema, as a path of keys; `[]` is an item of a list.
fn paths(schema: &Value, path: &[String], all: &mut Vec<Vec<String>>) {
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (key, schema) in properties {
            let deeper = [path, std::slice::from_ref(key)].concat();
            all.push(deeper.clone());
            paths(schema, &deeper, all);
        }
    }
    if let Some(items) = schema.get("items") {
        paths(items, &[path, &["[]".to_owned()]].concat(), all);
    }
}

/// A whole file with this value at the path.
fn file_with(path: &[String], value: &Value) -> Value {
    let mut file = json!({ "services": [{ "name": "a", "component": "a.wasm", "listen": "127.0.0.1:0" }] });
    let mut at = &mut file;
    for key in path {
        if key == "[]" {
            if at.is_null() {
                *at = json!([{ "host": "h" }]);
            }
            at = &mut at[0];
            continue;
        }
        if path.len() > 1 && key == &path[path.len() - 1] {
            for (table, required) in [
                ("traces", json!({ "endpoint": "http://h:1" })),
                ("metrics", json!({ "listen": "127.0.0.1:1" })),
                ("tls", json!({ "cert": "c", "key": "k" })),
            ] {
                if path[path.len() - 2] == table && !path.contains(&"etcd".to_owned()) && at.is_null() {
                    *at = required;
                }
            }
        }
        at = &mut at[key.as_str()];
    }
    *at = value.clone();
    file
}

#[test]
fn the_schema_and_the_parser_agree_on_every_key() {
    // The parser knows more than a pattern says: what is between the brackets of an address, which layouts there are, which
    // files can be read, and what is reserved.
    let is_stricter = |path: &[String], value: &Value| {
        let last = path.last().map(String::as_str).unwrap_or_default();
        let keys = [
            "listen",
            "advertise",
            "outbound",
            "layout",
            "ca",
            "cert",
            "key",
            "client_ca",
            "component",
            "headers_file",
            "password_file",
            "token_file",
            "mode",
            "endpoints",
            "endpoint",
            "path",
            "suffix",
            "value",
            "scheme",
            "prefix",
            "defaults",
            "include",
            "ttl",
        ];
        // The range of a number in quotes.
        keys.contains(&last) || value.as_str().is_some_and(|text| text.starts_with(|c: char| c.is_ascii_digit()))
    };
    let (schema, mut all) = (schema(), Vec::new());
    paths(&schema, &[], &mut all);
    assert!(all.len() > 100, "{}", all.len());
    let mut differences = Vec::new();
    for path in &all {
        for value in values() {
            let file = file_with(path, &value);
            let permitted = validate(&schema, &file, "");
            let text = file.to_string();
            let mut reading = Reading::default();
            reading.sources.push(Source { text, ..Source::default() });
            let root = tree::parse(&mut reading.sources[0], 0, &mut reading.mistakes);
            let mut root = root.unwrap();
            let environment = |name: &str| (name == "NAME").then(|| "1".to_owned());
            super::variables::replace(&mut root, environment, &mut reading);
            // A variable may bring anything; what it brings is for the parser alone.
            let has_variable = file.to_string().contains('$');
            let _ = File::read(&root, &mut reading);
            match (permitted, reading.mistakes.first()) {
                (Err(broken), None) => differences.push(format!("{path:?} {value}: only the schema refuses: {broken}")),
                (Ok(()), Some(mistake)) if !is_stricter(path, &value) && !has_variable => {
                    differences.push(format!("{path:?} {value}: only the parser refuses: {}", mistake.message));
                }
                _ => {}
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(60)].join("\n")
    );
}
