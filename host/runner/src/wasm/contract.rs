//! Contracts between components and this host: packages, their versions and interfaces, and what a component wants of them.

use std::path::Path;

use wasmparser::{Parser, Payload};

use crate::error::{Failure, one_line};

/// One version of a package, with its interfaces.
struct Package {
    name: &'static str,
    /// The version without its patch number, or a pre-release as a whole.
    version: &'static str,
    /// Interfaces that components can import.
    imports: &'static [&'static str],
    /// Interfaces that the host calls in a component.
    exports: &'static [&'static str],
}

/// Every package that this host has.
const PACKAGES: [Package; 16] = [
    Package {
        name: "leasehold:registry",
        version: "0.1",
        imports: &["types", "registrar", "discovery"],
        exports: &["lifecycle"],
    },
    Package {
        name: "leasehold:registry",
        version: "0.2",
        imports: &["registry-types", "registrar", "discovery", "async-registrar", "async-discovery"],
        exports: &["lifecycle", "async-lifecycle"],
    },
    Package {
        name: "wasi:cli",
        version: "0.2",
        imports: &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
        exports: &["run"],
    },
    Package {
        name: "wasi:cli",
        version: "0.3",
        imports: &[
            "environment",
            "exit",
            "types",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
        exports: &["run"],
    },
    Package { name: "wasi:clocks", version: "0.2", imports: &["monotonic-clock", "wall-clock"], exports: &[] },
    Package {
        name: "wasi:clocks",
        version: "0.3",
        imports: &["types", "monotonic-clock", "system-clock"],
        exports: &[],
    },
    Package { name: "wasi:config", version: "0.2.0-rc.1", imports: &["store"], exports: &[] },
    Package { name: "wasi:filesystem", version: "0.2", imports: &["types", "preopens"], exports: &[] },
    Package { name: "wasi:filesystem", version: "0.3", imports: &["types", "preopens"], exports: &[] },
    Package {
        name: "wasi:http",
        version: "0.2",
        imports: &["types", "outgoing-handler"],
        exports: &["incoming-handler"],
    },
    Package { name: "wasi:http", version: "0.3", imports: &["types", "client"], exports: &["handler"] },
    Package { name: "wasi:io", version: "0.2", imports: &["error", "poll", "streams"], exports: &[] },
    Package { name: "wasi:random", version: "0.2", imports: &["random", "insecure", "insecure-seed"], exports: &[] },
    Package { name: "wasi:random", version: "0.3", imports: &["random", "insecure", "insecure-seed"], exports: &[] },
    Package {
        name: "wasi:sockets",
        version: "0.2",
        imports: &[
            "network",
            "instance-network",
            "ip-name-lookup",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
        ],
        exports: &[],
    },
    Package { name: "wasi:sockets", version: "0.3", imports: &["types", "ip-name-lookup"], exports: &[] },
];

/// Direction of an interface, as the component sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Import,
    Export,
}

/// An interface that a component has in common with its host, or lacks.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Wanted {
    pub(crate) direction: Direction,
    /// Name of the interface with its package and version, as the component has it.
    pub(crate) interface: String,
    /// Name of the package.
    pub(crate) package: String,
    /// Version that the component was built for; empty if it has none.
    pub(crate) version: String,
    /// Versions of the package that this host has.
    pub(crate) host: Vec<&'static str>,
    /// Reason for which the host does not have it, with the cure.
    pub(crate) missing: Option<String>,
}

/// Reads the interfaces that a component wants from its host, without compiling it. Exports of packages that the host does
/// not know are left out: it calls none of them.
pub(crate) fn wanted(path: &Path) -> Result<Vec<Wanted>, Failure> {
    let bytes =
        std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let message = |message: &str| Failure::usage(format!("{}: {message}", path.display()));
    if Parser::is_core_wasm(&bytes) {
        return Err(message("a core module, not a component; leasehold componentize makes one of it"));
    }
    if !Parser::is_component(&bytes) {
        return Err(message("not WebAssembly"));
    }
    let names = names(&bytes).map_err(|error| message(&format!("not a valid component: {error}")))?;
    Ok(names.into_iter().filter_map(|(direction, name)| Wanted::of(direction, name)).collect())
}

/// Names of a component's own imports and exports, without those of the components in it.
fn names(bytes: &[u8]) -> wasmparser::Result<Vec<(Direction, String)>> {
    let (mut depth, mut names) = (0_usize, Vec::new());
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    names.push((Direction::Import, import?.name.name.to_owned()));
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    names.push((Direction::Export, export?.name.name.to_owned()));
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

impl Wanted {
    fn of(direction: Direction, interface: String) -> Option<Self> {
        let (package, name, version) = parts(&interface);
        let missing = match direction {
            Direction::Import => unavailable(&interface),
            Direction::Export => uncalled(package, name, version)?,
        };
        Some(Self {
            direction,
            package: package.to_owned(),
            version: version.to_owned(),
            host: versions(package),
            missing,
            interface,
        })
    }
}

/// Package, interface and version of a name such as `wasi:http/types@0.2.10`.
fn parts(interface: &str) -> (&str, &str, &str) {
    let (path, version) = interface.split_once('@').unwrap_or((interface, ""));
    let (package, name) = path.split_once('/').unwrap_or((path, ""));
    (package, name, version)
}

fn versions(package: &str) -> Vec<&'static str> {
    PACKAGES.iter().filter(|known| known.name == package).map(|known| known.version).collect()
}

fn package(name: &str, version: &str) -> Option<&'static Package> {
    PACKAGES.iter().find(|known| known.name == name && is_version(version, known.version))
}

/// Cure for an import of an unknown package, of another version, or of an unknown interface.
pub(crate) fn unavailable(import: &str) -> Option<String> {
    let (name, interface, version) = parts(import);
    let versions = versions(name);
    if versions.is_empty() {
        return Some(format!(
            "{import}; another component can bring it: `wac plug --plug THAT.wasm THIS.wasm -o BOTH.wasm`"
        ));
    }
    match package(name, version) {
        None => Some(other_version(import, name, &versions)),
        Some(known) if !known.imports.contains(&interface) => {
            Some(format!("{import}; {name} {} has no such import in this host", known.version))
        }
        Some(_) => None,
    }
}

/// Verdict on an export: none if it does not concern the host, otherwise the reason for which the host would not call it.
fn uncalled(name: &str, interface: &str, version: &str) -> Option<Option<String>> {
    let of_host = |known: &&Package| known.name == name && known.exports.contains(&interface);
    let versions: Vec<_> = PACKAGES.iter().filter(of_host).map(|known| known.version).collect();
    if versions.is_empty() {
        return None;
    }
    let is_called = versions.iter().any(|here| is_version(version, here));
    Some((!is_called).then(|| other_version(&format!("{name}/{interface}@{version}"), name, &versions)))
}

fn other_version(interface: &str, package: &str, versions: &[&str]) -> String {
    one_line(&format!("{interface}; this host has {package} {}: build the component for that", versions.join(" and ")))
}

/// Returns true if the host's version serves a component that was built for this version.
fn is_version(version: &str, here: &str) -> bool {
    version.strip_prefix(here).is_some_and(|rest| rest.is_empty() || is_patch(rest))
}

/// Returns true for the rest of a version after two numbers, without a pre-release.
fn is_patch(rest: &str) -> bool {
    rest.strip_prefix('.').is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::{Direction, Wanted, names, unavailable};

    #[test]
    fn a_missing_import_is_reported_with_its_cure() {
        for here in ["wasi:http/types@0.2.0", "wasi:http/types@0.3.12", "wasi:config/store@0.2.0-rc.1"] {
            assert_eq!(unavailable(here), None, "{here}");
        }
        for here in ["registrar@0.1.0", "registrar@0.2.0", "async-discovery@0.2.0"] {
            assert_eq!(unavailable(&format!("leasehold:registry/{here}")), None);
        }
        for (other, cure) in [
            ("wasi:http/types@0.3.0-rc-2025-09-16", "this host has wasi:http 0.2 and 0.3: build"),
            ("wasi:io/streams@0.3.0", "this host has wasi:io 0.2: build"),
            ("leasehold:registry/registrar@0.3.0", "this host has leasehold:registry 0.1 and 0.2: build"),
            ("leasehold:registry/types@0.2.0", "leasehold:registry 0.2 has no such import in this host"),
            ("wasi:http/cache@0.2.0", "wasi:http 0.2 has no such import in this host"),
            ("wasi:nn/graph@0.2.0", "`wac plug "),
            ("logger", "`wac plug "),
        ] {
            let message = unavailable(other).unwrap();
            assert!(message.starts_with(&format!("{other}; ")) && message.contains(cure), "{message}");
        }
    }

    #[test]
    fn an_export_of_another_version_is_missing_in_the_host() {
        let export = |name: &str| Wanted::of(Direction::Export, name.to_owned());
        assert!(export("wasi:http/incoming-handler@0.2.3").unwrap().missing.is_none());
        assert!(export("leasehold:registry/lifecycle@0.1.0").unwrap().missing.is_none());
        assert!(export("leasehold:registry/async-lifecycle@0.2.1").unwrap().missing.is_none());
        let missing = export("leasehold:registry/lifecycle@0.3.0").unwrap().missing.unwrap();
        assert!(missing.contains("this host has leasehold:registry 0.1 and 0.2: build"), "{missing}");
        assert!(export("acme:things/store@1.0.0").is_none() && export("wasi:http/types@0.2.0").is_none());
    }

    #[test]
    fn names_inside_of_nested_components_are_not_the_components_own() {
        let import = [1_u8, 0, 1, b'a', 5, 0];
        let types = [1_u8, 0x42, 0];
        let section = |id: u8, bytes: &[u8]| [&[id, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let component = |name: u8, nested: &[u8]| {
            let mut import = import;
            import[3] = name;
            [&b"\0asm\x0d\0\x01\0"[..], nested, &section(7, &types), &section(10, &import)].concat()
        };
        let nested = section(4, &component(b'b', &[]));
        assert_eq!(names(&component(b'a', &nested)).unwrap(), [(Direction::Import, "a".to_owned())]);
    }
}
