//! The JSON Schema of the configuration, for editors and for checks without the binary.

use serde_json::{Map, Value, json};

use crate::config::{
    file::File,
    kept::KeptFile,
    load::IGNORED,
    rule::{Absent, Form, Key, Rule, Shape, Table},
};

/// File with the schema, beside a configuration that `leasehold init` writes.
pub(crate) const FILE: &str = "leasehold.schema.json";

/// The schema of a configuration file.
pub(crate) fn schema() -> Value {
    let mut schema = of("Leasehold configuration", &File::shape());
    // An included file may have all of the services.
    schema["required"] = json!([]);
    schema["anyOf"] = json!([{ "required": ["services"] }, { "required": ["include"] }]);
    schema
}

/// The schema of a file of `leasehold keep`.
pub(crate) fn kept() -> Value {
    of("Nodes of leasehold keep", &KeptFile::shape())
}

fn of(title: &str, file: &Shape) -> Value {
    let mut schema = shape(file);
    schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    schema["title"] = title.into();
    schema["patternProperties"] = json!({ format!("^{IGNORED}"): {} });
    schema
}

fn table(table: &Table) -> Value {
    let properties: Map<String, Value> = table.keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<_> = table.keys.iter().filter(|key| key.absent == Absent::Required).map(|key| key.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn property(key: &Key) -> Value {
    let mut schema = shape(&key.shape);
    if key.absent != Absent::Required {
        schema = or_null(schema);
    }
    schema["description"] = key.effect.as_str().into();
    if let Absent::Text(text) = key.absent {
        // As JSON has it: `true` and `1` are no text.
        schema["default"] = serde_json::from_str(text).unwrap_or_else(|_| text.into());
    }
    schema
}

fn shape(shape: &Shape) -> Value {
    match shape {
        Shape::Scalar(form) => scalar(form),
        Shape::Table(known) => table(known),
        Shape::WordOrTable(form, known) => json!({ "anyOf": [scalar(form), table(known)] }),
        Shape::List(item) => json!({ "type": "array", "items": self::shape(item) }),
        Shape::Pairs => {
            let text = json!({ "type": ["string", "number", "boolean"] });
            json!({ "type": "object", "additionalProperties": text })
        }
        Shape::Either(_, shapes) => json!({ "anyOf": shapes.iter().map(self::shape).collect::<Vec<_>>() }),
    }
}

fn scalar(form: &Form) -> Value {
    form.schema.clone()
}

/// A key without a value is an absent one.
fn or_null(mut schema: Value) -> Value {
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.push(json!({ "type": "null" }));
        return schema;
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().cloned().chain(["null".into()]).collect(),
        one => vec![one.clone(), "null".into()],
    };
    schema["type"] = Value::Array(types);
    schema
}
