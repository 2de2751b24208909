//! `leasehold componentize`: a component made of a core module.

use std::path::Path;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::wit::create;
use crate::{
    cli::ComponentizeArgs,
    error::{Failure, one_line},
};

/// Writes the component. A file of that name is replaced as a whole, or not at all.
pub(crate) fn componentize(args: &ComponentizeArgs) -> Result<(), Failure> {
    let file = &args.file;
    let wrong = |message: &str| Failure::usage(format!("{}: {message}", file.display()));
    let mut module =
        std::fs::read(file).map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    if Parser::is_component(&module) {
        return Err(wrong("a component already; leasehold inspect shows it"));
    }
    if !Parser::is_core_wasm(&module) {
        return Err(wrong("not WebAssembly"));
    }
    let found = Found::of(&module).map_err(|error| wrong(&format!("not a valid module: {error}")))?;
    if found.is_command {
        return Err(wrong(
            "it has a main that runs, and a service is a library; build it with -buildmode=c-shared (Go) or \
             -mexec-model=reactor (C)",
        ));
    }
    let has_wit = found.has_wit;
    match &args.wit {
        Some(_) if has_wit => return Err(wrong("it has WIT in it already; leave --wit out")),
        Some(folder) => embed(&mut module, folder, args.world.as_deref())?,
        None if has_wit => {}
        None => {
            return Err(wrong(
                "no WIT is in it, which says what it imports and exports; name the folder of its WIT: --wit wit",
            ));
        }
    }
    let component = encode(&module).map_err(|error| wrong(&one_line(&format!("{error:#}"))))?;
    let output = args.output.clone().unwrap_or_else(|| file.with_extension("component.wasm"));
    create(&output, &component)?;
    tracing::info!("{} is a component of {} bytes", output.display(), component.len());
    Ok(())
}

/// Properties of a core module.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// A generator of bindings has left the WIT in a custom section.
    has_wit: bool,
    /// It exports the function that runs a command.
    is_command: bool,
}

impl Found {
    fn of(module: &[u8]) -> wasmparser::Result<Self> {
        let mut found = Self::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::CustomSection(section) => found.has_wit |= section.name().starts_with("component-type"),
                Payload::ExportSection(exports) => {
                    for export in exports {
                        found.is_command |= export?.name == "_start";
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Puts the world into the module: the one of that name, or the only one of the folder.
fn embed(module: &mut Vec<u8>, folder: &Path, world: Option<&str>) -> Result<(), Failure> {
    let embedded = (|| {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_path(folder)?;
        let world = resolve.select_world(&[package], world)?;
        embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)
    })();
    embedded.map_err(|error: anyhow::Error| {
        Failure::usage(format!("--wit {}: {}", folder.display(), one_line(&format!("{error:#}"))))
    })
}

/// The module with the adapter for WASI 0.1, which is left out where the module does not import that.
fn encode(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    ComponentEncoder::default().module(module)?.adapter(PREVIEW1, REACTOR)?.validate(true).encode()
}

#[cfg(test)]
mod tests {
    use super::{Found, encode};

    /// A core module with a section of this content.
    fn module(id: u8, content: &[u8]) -> Vec<u8> {
        [&b"\0asm\x01\0\0\0"[..], &[id, u8::try_from(content.len()).unwrap()], content].concat()
    }

    #[test]
    fn the_wit_and_the_main_of_a_module_are_found() {
        let found = |module: &[u8]| Found::of(module).unwrap();
        assert_eq!(found(b"\0asm\x01\0\0\0"), Found::default());
        assert!(found(&module(0, b"\x16component-type:service")).has_wit);
        assert!(!found(&module(0, b"\x04name")).has_wit);
        // A memory is exported under that name: the name alone matters here.
        assert!(found(&module(7, b"\x01\x06_start\x02\0")).is_command);
        assert!(!found(&module(7, b"\x01\x06memory\x02\0")).is_command);
        assert!(Found::of(b"\0asm\x01\0\0\0\x01\xff").is_err());
    }

    #[test]
    fn a_module_without_imports_needs_no_adapter() {
        let component = encode(b"\0asm\x01\0\0\0").unwrap();
        assert!(component.len() < 1000, "{}", component.len());
    }
}
