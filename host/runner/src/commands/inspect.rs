//! `leasehold inspect`: imports, exports and missing imports of a component.

use std::time::Duration;

use leasehold_artifacts::{Former, Reference};

use super::output::{print, print_json};
use crate::{
    cli::InspectArgs,
    config::Artifact,
    error::Failure,
    wasm::{
        artifact,
        component::{self, ComponentInfo},
        engine::Engine,
    },
};

/// Shows a component, even if it cannot run here.
pub(crate) async fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let file = match args.file.to_str().filter(|text| Reference::is_meant(text)) {
        Some(text) => {
            let reference: Reference = text.parse().map_err(|error| artifact::failure(&error))?;
            let artifacts = Ok(args.registry.artifacts(&reference)?);
            let artifact = Artifact { reference, keys: Vec::new(), poll: Duration::ZERO, artifacts };
            artifact::pull(&artifact, Former::StandsIn).await?.file
        }
        None => args.file.clone(),
    };
    let info = component::inspect(&Engine::new(&[])?, &file)?;
    if args.json { print_json(&info) } else { print(&text(&info)) }
}

fn text(info: &ComponentInfo) -> String {
    let mut text = String::new();
    let mut list = |heading: &str, items: &[String]| {
        text.push_str(heading);
        text.push('\n');
        match items {
            [] => text.push_str("  nothing\n"),
            items => items.iter().for_each(|item| text.push_str(&format!("  {item}\n"))),
        }
    };
    list("imports", &info.imports);
    list("exports", &info.exports);
    let served = info.served();
    let registers = match info.unregistered(crate::config::Register::Component) {
        None => "by itself",
        Some(_) => "by the host (register: host)",
    };
    let lifecycle = if info.lifecycle { "started and stopped by the host" } else { "none exported" };
    text.push_str(&format!("served      {served}\nregistered  {registers}\nlifecycle   {lifecycle}\n"));
    for missing in &info.missing {
        text.push_str(&format!("missing     {missing}\n"));
    }
    text
}
