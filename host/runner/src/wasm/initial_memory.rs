//! Linear memory that a component has from its start, read from its file before it is compiled.

use std::{
    fs,
    path::{Path, PathBuf},
};

use wasmparser::{Parser, Payload};

use crate::{config::Spec, error::Failure, wasm::engine::Engine};

/// Largest linear memory that a module of the component declares, in bytes; none if the file cannot be read or is not a
/// component, which its compilation reports better.
pub(crate) fn declared(path: &Path) -> Option<u64> {
    largest(&fs::read(path).ok()?)
}

fn largest(bytes: &[u8]) -> Option<u64> {
    if !Parser::is_component(bytes) {
        return None;
    }
    let mut largest = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        if let Payload::MemorySection(memories) = payload.ok()? {
            for memory in memories {
                let memory = memory.ok()?;
                let page = 1_u64.checked_shl(memory.page_size_log2.unwrap_or(16)).unwrap_or(u64::MAX);
                largest = largest.max(memory.initial.saturating_mul(page));
            }
        }
    }
    Some(largest)
}

/// Checks the declared memory against the limit of a service.
pub(crate) fn check(spec: &Spec, declared: Option<u64>) -> Result<(), Failure> {
    let limit = spec.limits.memory as u64;
    match declared {
        Some(declared) if declared > limit => Err(Failure::usage(format!(
            "{}: its memory has {} from the start, more than limits.memory of {} lets it have, {}",
            spec.component.display(),
            mebibytes(declared),
            spec.name,
            mebibytes(limit)
        ))),
        _ => Ok(()),
    }
}

/// Reads the declared memory of a component on a thread that may block, and checks it.
pub(crate) async fn check_aside(engine: &Engine, spec: &Spec, file: PathBuf) -> Result<(), Failure> {
    let spec = spec.clone();
    engine.compiler.run(move || check(&spec, declared(&file))).await
}

/// A size in MiB, as in the configuration.
fn mebibytes(bytes: u64) -> String {
    let tenths = (bytes.saturating_mul(10)).div_ceil(1 << 20);
    match tenths % 10 {
        0 => format!("{}MiB", tenths / 10),
        tenth => format!("{}.{tenth}MiB", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{check, largest, mebibytes};
    use crate::config::Spec;

    /// A component with a core module that has that many pages of 64 KiB.
    fn component(pages: u8) -> Vec<u8> {
        let memory = [5, 3, 1, 0, pages];
        let module = [b"\0asm\x01\0\0\0", &memory[..]].concat();
        let section = [&[1, u8::try_from(module.len()).unwrap()], &module[..]].concat();
        [b"\0asm\x0d\0\x01\0", &section[..]].concat()
    }

    #[test]
    fn the_memory_of_a_nested_module_is_found() {
        assert_eq!(largest(&component(17)), Some(17 << 16));
        assert_eq!(largest(b"\0asm\x0d\0\x01\0"), Some(0));
        for other in [&b"\0asm\x01\0\0\0"[..], b"text", b"", b"\0asm\x0d\0\x01\0\x01\xff"] {
            assert_eq!(largest(other), None, "{other:?}");
        }
    }

    #[test]
    fn an_excess_is_reported_in_the_unit_of_the_limit() {
        let mut spec = Spec::new("greeter".parse().unwrap(), PathBuf::from("a.wasm"), "127.0.0.1:1".parse().unwrap());
        spec.limits.memory = 4 << 20;
        assert!(check(&spec, Some(4 << 20)).is_ok() && check(&spec, None).is_ok());
        assert_eq!(
            check(&spec, Some(10_551_296)).unwrap_err().sentence(),
            "a.wasm: its memory has 10.1MiB from the start, more than limits.memory of greeter lets it have, 4MiB"
        );
        assert_eq!([1, 64 << 10, 1 << 20].map(mebibytes), ["0.1MiB", "0.1MiB", "1MiB"]);
    }
}
