//! Variables in scalars: `${NAME}`, `${NAME:-default}` and `${file:PATH}`; `$$` is a dollar sign.

use std::path::Path;

use leasehold::Source;

use crate::config::{
    rule::Reading,
    tree::{Content, Node},
};

/// The value of an environment variable.
pub(crate) type Environment = fn(&str) -> Option<String>;

const FORMS: &str = "a variable is ${NAME}, ${NAME:-default} or ${file:PATH}; a dollar sign itself is $$";

/// Replaces the variables of every scalar below a node.
pub(crate) fn replace(node: &mut Node, environment: Environment, reading: &mut Reading) {
    let place = node.place;
    match &mut node.content {
        Content::List(items) => items.iter_mut().for_each(|item| replace(item, environment, reading)),
        Content::Map(entries) => entries.iter_mut().for_each(|(_, value)| replace(value, environment, reading)),
        Content::Scalar(scalar) if scalar.text.contains('$') && scalar.written.is_none() => {
            match replaced(&scalar.text, environment, &reading.folder(place)) {
                Ok(text) if text == scalar.text => {}
                Ok(text) => scalar.written = Some(std::mem::replace(&mut scalar.text, text)),
                Err(message) => reading.wrong(place, message),
            }
        }
        Content::Scalar(_) => {}
    }
}

fn replaced(text: &str, environment: Environment, folder: &Path) -> Result<String, String> {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        let (before, dollar) = rest.split_at(at);
        replaced.push_str(before);
        rest = &dollar[1..];
        if let Some(behind) = rest.strip_prefix('$') {
            replaced.push('$');
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix('{') {
            let (variable, behind) = behind.split_once('}').ok_or(FORMS)?;
            replaced.push_str(&value(variable, environment, folder)?);
            rest = behind;
        } else {
            replaced.push('$');
        }
    }
    replaced.push_str(rest);
    Ok(replaced)
}

fn value(variable: &str, environment: Environment, folder: &Path) -> Result<String, String> {
    if let Some(path) = variable.strip_prefix("file:") {
        let read = Source::from(folder.join(path)).read().map_err(|error| error.to_string())?;
        let text = String::from_utf8(read).map_err(|_| format!("the content of {path} must be UTF-8"))?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !is_name {
        return Err(FORMS.to_owned());
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment variable {name} is not set; ${{{name}:-default}} has a default")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::replaced;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn text(text: &str) -> Result<String, String> {
        replaced(text, environment, Path::new("/nonexistent"))
    }

    #[test]
    fn variables_are_replaced() {
        for (written, meant) in [
            ("127.0.0.1:${PORT}", "127.0.0.1:8080"),
            ("${PORT}${PORT}", "80808080"),
            ("${NONE:-a-b}", "a-b"),
            ("${PORT:-1}", "8080"),
            ("${EMPTY:-1}", "1"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("$$", "$"),
            ("$${PORT}", "${PORT}"),
            ("5$ and $x", "5$ and $x"),
            ("$", "$"),
        ] {
            assert_eq!(text(written).as_deref(), Ok(meant), "{written}");
        }
    }

    #[test]
    fn a_variable_without_a_value_is_refused() {
        for (written, message) in [
            ("${NONE}", "the environment variable NONE is not set"),
            ("${", "a variable is"),
            ("${}", "a variable is"),
            ("${a b}", "a variable is"),
            ("${file:secret}", "cannot read /nonexistent/secret"),
        ] {
            let refused = text(written).unwrap_err();
            assert!(refused.starts_with(message), "{written}: {refused}");
        }
    }
}
