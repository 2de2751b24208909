//! JSON with Go's escapes, and maps sorted by key as Go sorts them.

/// Merges metadata into a layout's own pairs, sorted by key. An own pair wins over metadata of the same key, since it is
/// read back as the layout's own: metadata named `weight` must not become the weight.
pub(super) fn merge_sorted<'a>(
    own: Vec<(String, String)>,
    metadata: impl Iterator<Item = &'a (String, String)>,
) -> Vec<(String, String)> {
    let metadata: Vec<_> = metadata.filter(|(key, _)| own.iter().all(|(taken, _)| taken != key)).cloned().collect();
    let mut all = [own, metadata].concat();
    all.sort();
    all
}

pub(super) fn write_object<T>(fields: &[(String, T)], json: &mut String, mut write: impl FnMut(&T, &mut String)) {
    json.push('{');
    for (index, (key, value)) in fields.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        write_string(key, json);
        json.push(':');
        write(value, json);
    }
    json.push('}');
}

/// Writes a string as Go's `encoding/json` does, which escapes five more characters than `serde_json`.
pub(super) fn write_string(text: &str, json: &mut String) {
    for c in serde_json::to_string(text).expect("strings always serialise").chars() {
        match c {
            '<' => json.push_str("\\u003c"),
            '>' => json.push_str("\\u003e"),
            '&' => json.push_str("\\u0026"),
            '\u{2028}' => json.push_str("\\u2028"),
            '\u{2029}' => json.push_str("\\u2029"),
            c => json.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::write_string;

    #[test]
    fn strings_are_escaped_as_in_go() {
        let mut json = String::new();
        write_string("<a href=\"x\">&\u{2028}\u{2029}\\/\t\n\r\u{8}\u{c}\u{1}\u{7f}é\u{1f600}", &mut json);
        let expected =
            "\"\\u003ca href=\\\"x\\\"\\u003e\\u0026\\u2028\\u2029\\\\/\\t\\n\\r\\b\\f\\u0001\u{7f}é\u{1f600}\"";
        assert_eq!(json, expected);
    }
}
