//! `leasehold explain COMPONENT`: a configuration that the component can run with, and the reason for each key.

use std::path::Path;

use serde::Serialize;

use super::output::{print, print_json};
use crate::{
    config::{Limits, Register},
    error::Failure,
    wasm::{
        component::{self, ComponentInfo},
        engine::Engine,
        initial_memory,
    },
};

/// A key that the component needs, or can use.
#[derive(Debug, Serialize)]
struct Need {
    /// Path of the key in the configuration of the service.
    key: &'static str,
    /// Value to begin with.
    value: String,
    why: String,
}

#[derive(Serialize)]
struct Report<'a> {
    component: String,
    service: String,
    needs: &'a [Need],
    /// Reasons for which it cannot run here.
    missing: &'a [String],
}

/// Prints the configuration. Fails for a component that cannot run here, whatever its configuration is.
pub(super) fn needs(file: &Path, json: bool) -> Result<(), Failure> {
    let info = component::inspect(&Engine::new(&[])?, file)?;
    let needs = list(&info, initial_memory::declared(file));
    let service = name(file);
    if json {
        let component = file.display().to_string();
        print_json(&Report { component, service, needs: &needs, missing: &info.missing })?;
    } else {
        print(&text(file, &service, &needs, &info.missing))?;
    }
    match info.missing.first() {
        Some(missing) => Err(Failure::usage(format!("{}: {missing}", file.display()))),
        None => Ok(()),
    }
}

/// Name of a service, from that of its file.
fn name(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    stem.filter(|stem| !stem.is_empty()).unwrap_or_else(|| "service".to_owned())
}

fn list(info: &ComponentInfo, declared: Option<u64>) -> Vec<Need> {
    let imports = |names: &[&str]| info.imports.iter().any(|import| names.iter().any(|name| import.starts_with(name)));
    let mut needs = Vec::new();
    let mut add = |key, value: &str, why: String| needs.push(Need { key, value: value.to_owned(), why });
    let listen = match info.program {
        Some(_) => "it opens its own listener, at this address: a port other than 0".to_owned(),
        None => format!("the host accepts HTTP/1.1 and HTTP/2 for it ({})", info.served()),
    };
    add("listen", "127.0.0.1:8080", listen);
    let (register, why) = match info.unregistered(Register::Component) {
        None => ("component", "it calls leasehold:registry/registrar, for the names of allow.names"),
        Some(_) => ("host", "it does not import leasehold:registry/registrar"),
    };
    add("register", register, why.to_owned());
    if imports(&["wasi:config/store@"]) {
        add("config", "{}", "it imports wasi:config/store: its author says which values it reads".to_owned());
    }
    if info.program.is_some() {
        add("args", "[]", "it is a program, and may have arguments".to_owned());
    }
    let looks_up = imports(&["leasehold:registry/discovery@", "leasehold:registry/async-discovery@"]);
    let sends = imports(&["wasi:http/outgoing-handler@", "wasi:http/client@"]);
    if looks_up || sends {
        let why = match (looks_up, sends) {
            (true, true) => "it can look services up and call them: their names",
            (true, false) => "it can look services up: their names",
            (false, _) => "it can call services by name, at http://NAME.leasehold/: their names",
        };
        add("allow.discover", "[]", why.to_owned());
    }
    if sends {
        add("allow.outbound", "[]", "it can send requests to other hosts: HOST, HOST:PORT, a network".to_owned());
    } else if info.program.is_some() {
        add("allow.outbound", "[]", "it can connect to other hosts: IP:PORT, a network".to_owned());
    }
    let limit = Limits::default().memory as u64;
    if let Some(declared) = declared.filter(|declared| *declared > limit) {
        let mebibytes = declared.div_ceil(1 << 20);
        let why = format!("its memory has {mebibytes} MiB from the start, and it needs room to grow");
        add("limits.memory", &format!("{}MiB", mebibytes.saturating_mul(2)), why);
    }
    needs
}

/// The configuration as YAML, with the reasons as comments.
fn text(file: &Path, service: &str, needs: &[Need], missing: &[String]) -> String {
    let mut lines = vec![
        ("services:".to_owned(), String::new()),
        (format!("  - name: {service}"), "the name under which it is found".to_owned()),
        (format!("    component: {}", quoted(&file.display().to_string())), String::new()),
    ];
    let mut table = "";
    for Need { key, value, why } in needs {
        let (indent, key) = match key.split_once('.') {
            None => ("    ", *key),
            Some((outer, key)) => {
                if outer != table {
                    lines.push((format!("    {outer}:"), String::new()));
                    table = outer;
                }
                ("      ", key)
            }
        };
        lines.push((format!("{indent}{key}: {value}"), why.clone()));
    }
    let width = lines.iter().filter(|(_, why)| !why.is_empty()).map(|(line, _)| line.len()).max().unwrap_or_default();
    let comment = |(line, why): &(String, String)| match why.is_empty() {
        true => format!("{line}\n"),
        false => format!("{line:width$}  # {why}\n"),
    };
    let missing: String = missing.iter().map(|missing| format!("# it cannot run here: {missing}\n")).collect();
    format!("{missing}{}", lines.iter().map(comment).collect::<String>())
}

/// A path as a YAML scalar.
fn quoted(path: &str) -> String {
    let is_plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    if is_plain { path.to_owned() } else { format!("'{}'", path.replace('\'', "''")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ComponentInfo, list, name, text};
    use crate::config::{Config, Register};

    fn component(imports: &[&str], program: Option<&'static str>) -> ComponentInfo {
        let imports: Vec<_> = imports.iter().map(ToString::to_string).collect();
        let leasehold = imports.iter().filter(|name| name.starts_with("leasehold:")).cloned().collect();
        ComponentInfo {
            imports,
            leasehold,
            http: program.is_none().then_some("0.2"),
            program,
            ..ComponentInfo::default()
        }
    }

    fn keys(info: &ComponentInfo, declared: u64) -> Vec<&'static str> {
        list(info, Some(declared)).into_iter().map(|need| need.key).collect()
    }

    #[test]
    fn keys_follow_from_the_imports() {
        assert_eq!(keys(&component(&[], None), 0), ["listen", "register"]);
        let all = [
            "leasehold:registry/registrar@0.2.0",
            "leasehold:registry/async-discovery@0.2.0",
            "wasi:config/store@0.2.0-rc.1",
            "wasi:http/client@0.3.2",
        ];
        let expected = ["listen", "register", "config", "allow.discover", "allow.outbound", "limits.memory"];
        assert_eq!(keys(&component(&all, None), 65 << 20), expected);
        assert_eq!(
            keys(&component(&["wasi:sockets/tcp@0.2.12"], Some("0.2")), 1),
            ["listen", "register", "args", "allow.outbound"]
        );
    }

    #[test]
    fn the_text_is_a_configuration() {
        let files = ["user.wasm", "/srv/my service's.wasm"];
        for (file, info) in files.iter().flat_map(|file| {
            let all = [
                "leasehold:registry/registrar@0.2.0",
                "leasehold:registry/discovery@0.2.0",
                "wasi:http/outgoing-handler@0.2.0",
            ];
            [component(&all, None), component(&[], None), component(&["wasi:sockets/tcp@0.2.12"], Some("0.2"))]
                .map(|info| (file, info))
        }) {
            let path = Path::new(file);
            let yaml = text(path, &name(path), &list(&info, Some(100 << 20)), &[]);
            let config =
                Config::parse("services.yaml", &yaml, Path::new("")).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
            let spec = &config.services[0];
            assert_eq!((spec.component.as_path(), spec.limits.memory), (path, 200 << 20));
            assert_eq!(spec.register == Register::Component, !info.leasehold.is_empty());
        }
    }
}
