//! `leasehold inspect`: what a component imports, exports and lacks.

use super::{print, print_json};
use crate::{
    cli::InspectArgs,
    error::Failure,
    wasm::{
        component::{self, Facts},
        engine::Engine,
    },
};

/// Shows the facts. A component that cannot run here is shown all the same.
pub(crate) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let facts = component::inspect(&Engine::new(&[])?, &args.file)?;
    if args.json { print_json(&facts) } else { print(&text(&facts)) }
}

fn text(facts: &Facts) -> String {
    let mut text = String::new();
    let mut list = |heading: &str, items: &[String]| {
        text.push_str(heading);
        text.push('\n');
        match items {
            [] => text.push_str("  nothing\n"),
            items => items.iter().for_each(|item| text.push_str(&format!("  {item}\n"))),
        }
    };
    list("imports", &facts.imports);
    list("exports", &facts.exports);
    let served = facts.served();
    let registers = match facts.unregistered(crate::config::Register::Component) {
        None => "by itself",
        Some(_) => "by the host (register: host)",
    };
    let lifecycle = if facts.lifecycle { "started and stopped by the host" } else { "none exported" };
    text.push_str(&format!("served      {served}\nregistered  {registers}\nlifecycle   {lifecycle}\n"));
    for missing in &facts.missing {
        text.push_str(&format!("missing     {missing}\n"));
    }
    text
}
