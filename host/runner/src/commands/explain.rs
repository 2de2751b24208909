//! `leasehold explain`: the exact keys and values that a configuration would write, or the configuration that a component needs;
//! connects to nothing, starts nothing. With `--call`, the nodes of a call by name.

use leasehold::{Layout, LoadSource, ServerNode, Weight};
use serde::Serialize;

use super::{
    explain_call::explain_call,
    needs::needs,
    output::{print, print_json},
};
use crate::{
    cli::ExplainArgs,
    config::{Config, Register, Spec},
    error::{Failure, shown},
};

/// Stands for a weight that follows the load.
const SAMPLE_WEIGHT: Weight = Weight::MAX;

/// One key with its value.
#[derive(Serialize)]
struct Row {
    service: String,
    register: &'static str,
    layout: String,
    key: String,
    value: String,
    /// The weight in the value.
    weight: u32,
    /// True if the weight will follow the load instead.
    weight_follows_load: bool,
    /// Reason why it cannot be written.
    problem: Option<String>,
}

/// Prints what would be written, service by service. Fails when one of the keys may not be.
pub(crate) async fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    if let Some(url) = &args.call {
        return explain_call(args, url).await;
    }
    if args.file.extension().is_some_and(|extension| extension == "wasm") {
        return needs(&args.file, args.json);
    }
    let config = Config::load(&args.file)?;
    let fixed = match config.registrar.load {
        LoadSource::Fixed(weight) => Some(weight),
        _ => None,
    };
    let rows: Vec<Row> = config.services.iter().flat_map(|spec| rows(spec, &config.registrar.layouts, fixed)).collect();
    if args.json {
        print_json(&rows)?;
    } else {
        print(&text(&config.services, &rows))?;
    }
    match rows.iter().find_map(|row| row.problem.as_ref()) {
        Some(problem) => Err(Failure::usage(problem)),
        None => Ok(()),
    }
}

fn rows(spec: &Spec, layouts: &[Layout], fixed: Option<Weight>) -> Vec<Row> {
    let register = match spec.register {
        Register::Off => return Vec::new(),
        Register::Component => "component",
        Register::Host => "host",
    };
    let Some(addr) = spec.advertised(spec.listen) else { return Vec::new() };
    let (name, version) = spec.registered_as();
    let node = ServerNode { name, addr, version, weight: None, metadata: spec.metadata.clone() };
    let weight = fixed.unwrap_or(SAMPLE_WEIGHT);
    let layouts = spec.layouts.as_deref().unwrap_or(layouts);
    let row = |layout: &Layout| Row {
        service: spec.name.to_string(),
        register,
        layout: layout.to_string(),
        key: layout.key(&node),
        value: String::from_utf8_lossy(&layout.value(&node, weight)).into_owned(),
        weight: weight.value(),
        weight_follows_load: fixed.is_none(),
        problem: layout.accept(&node).err().map(|invalid| format!("{}: {invalid}", spec.name)),
    };
    layouts.iter().map(row).collect()
}

fn text(specs: &[Spec], rows: &[Row]) -> String {
    let mut text = String::new();
    for spec in specs {
        let own: Vec<_> = rows.iter().filter(|row| row.service == spec.name.as_str()).collect();
        let who = match (spec.register, own.is_empty()) {
            (Register::Off, _) => "is not registered",
            (_, true) => "is published at an address that is known once it listens",
            (Register::Host, _) => "is registered by the host",
            (Register::Component, _) => {
                "registers itself; if it declares the name, version and address that it is given, and no metadata:"
            }
        };
        text.push_str(&format!("{} {who}\n", spec.name));
        for row in own {
            text.push_str(&format!(
                "  {}\n    key    {}\n    value  {}\n",
                row.layout,
                shown(&row.key),
                shown(&row.value)
            ));
        }
    }
    if rows.iter().any(|row| row.weight_follows_load) {
        text.push_str("Weights follow the load of this host, 1 to 100; the values show that of an idle one.\n");
    }
    text
}
