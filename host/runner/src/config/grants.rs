//! Rights in etcd that a host needs: the one place that knows them. The page on permissions shows them.

use leasehold::{Access, Grant, Layout, ServiceName, Version};
use leasehold_wasmtime::Names;

use crate::config::spec::Config;

/// A service that is registered or looked up, under some layouts.
struct Use<'a> {
    access: Access,
    names: Names,
    layouts: &'a [Layout],
}

/// Rights of a host that registers and looks up these names under these layouts.
pub(crate) fn of_names(layouts: &[Layout], registered: Names, looked_up: Names) -> Vec<Grant> {
    reduced(&[
        Use { access: Access::ReadWrite, names: registered, layouts },
        Use { access: Access::Read, names: looked_up, layouts },
    ])
}

/// Rights of a host that runs a configuration.
pub(crate) fn of_config(config: &Config) -> Vec<Grant> {
    let read = config.registrar.read_layouts();
    let mut uses = Vec::new();
    for spec in &config.services {
        let layouts = spec.layouts.as_deref().unwrap_or(&config.registrar.layouts);
        if let Some(names) = spec.registered_names() {
            uses.push(Use { access: Access::ReadWrite, names: names.clone(), layouts });
            // A failing service is withdrawn only while other nodes of its names remain.
            uses.push(Use { access: Access::Read, names, layouts: &read });
        }
        uses.push(Use { access: Access::Read, names: spec.allow.discover.clone(), layouts: &read });
    }
    reduced(&uses)
}

/// A right for each use, without those that another one covers.
fn reduced(uses: &[Use<'_>]) -> Vec<Grant> {
    let prefix = |layout: &Layout, name: &ServiceName| layout.prefix(name, &Version::default());
    let mut all: Vec<Grant> = Vec::new();
    for Use { access, names, layouts } in uses {
        for layout in *layouts {
            match names {
                Names::Any => all.push(Grant { access: *access, prefix: layout.root() }),
                Names::Only(names) => {
                    all.extend(names.iter().map(|name| Grant { access: *access, prefix: prefix(layout, name) }));
                }
            }
        }
    }
    all.sort();
    all.dedup();
    let is_covered = |grant: &Grant| all.iter().any(|other| other != grant && other.covers(grant));
    let mut kept: Vec<Grant> = all.iter().filter(|grant| !is_covered(grant)).cloned().collect();
    kept.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    kept
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use leasehold::{Access, Layout};
    use leasehold_wasmtime::Names;

    use super::{of_config, of_names};
    use crate::config::Config;

    fn shown(grants: &[leasehold::Grant]) -> Vec<String> {
        grants.iter().map(|grant| format!("{} {}", grant.access, grant.prefix)).collect()
    }

    fn names(list: &[&str]) -> Names {
        Names::Only(list.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn the_page_on_permissions_has_the_rights_of_each_layout() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/permissions.md");
        let page = fs::read_to_string(page).unwrap();
        for name in Layout::NAMES {
            let grants = of_names(&[name.parse().unwrap()], names(&["greeter"]), names(&["user"]));
            let [own, other] = grants.as_slice() else { panic!("{name}: {grants:?}") };
            assert_eq!((own.access, other.access), (Access::ReadWrite, Access::Read));
            let row = format!("| `{name}` | `readwrite {}` | `read {}` |\n", own.prefix, other.prefix);
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_right_that_another_one_covers_is_left_out() {
        let seed = ["seed".parse().unwrap()];
        let grants = of_names(&seed, names(&["b", "a", "a"]), names(&["a", "c"]));
        assert_eq!(shown(&grants), ["readwrite /a/", "readwrite /b/", "read /c/"]);
        assert_eq!(shown(&of_names(&seed, names(&["a"]), Names::Any)), ["read /", "readwrite /a/"]);
        assert_eq!(shown(&of_names(&seed, Names::Any, names(&["a"]))), ["readwrite /"]);
    }

    #[test]
    fn a_configuration_has_the_rights_of_its_services() {
        let text = "registry: { layout: [seed, kratos] }
services:
  - { name: a, component: a.wasm, listen: 127.0.0.1:1, register: host, layout: rpcx }
  - { name: b, component: a.wasm, listen: 127.0.0.1:2, allow: { names: [b, c], discover: [user] } }
  - { name: d, component: a.wasm, listen: 127.0.0.1:3, register: off }
";
        let config = Config::parse_in("c.yaml", text, Path::new("/"), |_| None).unwrap();
        let mut expected =
            vec!["readwrite /rpcx/a/tcp@".to_owned(), "read /a/".to_owned(), "read /microservices/a/".to_owned()];
        for name in ["b", "c"] {
            expected.extend([format!("readwrite /{name}/"), format!("readwrite /microservices/{name}/")]);
            expected.push(format!("read /rpcx/{name}/tcp@"));
        }
        expected.extend(["read /user/", "read /microservices/user/", "read /rpcx/user/tcp@"].map(ToOwned::to_owned));
        let mut found = shown(&of_config(&config));
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }
}
