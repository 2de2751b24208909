//! The way from one reading of a configuration to the next: which services come, change, move and go.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strum::Display;

use crate::config::{
    spec::{Config, Spec},
    written::{KeyChange, Written},
};

/// Everything that differs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The services of the next reading in its order, then those that go.
    pub(crate) services: Vec<Planned>,
    /// Keys beside the services that take effect with the next start of the host.
    pub(crate) needs_restart: Vec<KeyChange>,
}

/// The next reading of a configuration.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) services: Vec<Spec>,
    /// Keys beside the services.
    pub(crate) host: Written,
    pub(crate) notes: Vec<String>,
}

impl From<Config> for Next {
    fn from(config: Config) -> Self {
        Self { services: config.services, host: config.written, notes: config.notes }
    }
}

/// One service of the plan.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) change: Change,
    /// Index of the service among the present ones.
    pub(crate) present: Option<usize>,
    /// The service as it is to be; a service that goes as it is.
    pub(crate) spec: Arc<Spec>,
    pub(crate) keys: Vec<KeyChange>,
}

/// Change of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Change {
    /// It stays as it is, with the present content of its component file.
    Unchanged,
    Added,
    Removed,
    /// It goes on at its address with other keys.
    Changed,
    /// It starts at another address before it ends at the present one.
    Moved,
}

impl Plan {
    /// Compares the services that there are with those of the next reading. A service is known by its name and its listener;
    /// by its name alone where the others of that name are matched.
    pub(crate) fn new(present: &[Arc<Spec>], host: &Written, next: &Next) -> Self {
        let mut free: Vec<usize> = (0..present.len()).collect();
        let mut take = |is_same: &dyn Fn(&Spec) -> bool| {
            let at = free.iter().position(|index| is_same(&present[*index]))?;
            Some(free.remove(at))
        };
        let mut matches: Vec<_> = next
            .services
            .iter()
            .map(|spec| take(&|present| present.name == spec.name && present.listen == spec.listen))
            .collect();
        for (spec, found) in next.services.iter().zip(&mut matches) {
            if found.is_none() {
                *found = take(&|present| present.name == spec.name);
            }
        }
        let kept = next.services.iter().zip(matches).map(|(spec, found)| Planned::new(spec, found, present));
        let gone = free.iter().map(|index| Planned {
            change: Change::Removed,
            present: Some(*index),
            spec: Arc::clone(&present[*index]),
            keys: Vec::new(),
        });
        Self { services: kept.chain(gone).collect(), needs_restart: host.changes(&next.host) }
    }
}

impl Planned {
    /// True for a service whose configuration is new.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self.change, Change::Added | Change::Changed | Change::Moved)
    }

    fn new(next: &Spec, found: Option<usize>, present: &[Arc<Spec>]) -> Self {
        let keys = found.map_or_else(Vec::new, |index| present[index].written.changes(&next.written));
        let change = match found {
            None => Change::Added,
            Some(index) if present[index].listen != next.listen => Change::Moved,
            Some(_) if keys.is_empty() => Change::Unchanged,
            Some(_) => Change::Changed,
        };
        Self { change, present: found, spec: Arc::new(next.clone()), keys }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::Plan;
    use crate::config::Config;

    fn config(text: &str) -> Config {
        let environment = |name: &str| (name == "TOKEN").then(|| "secret".to_owned());
        Config::parse_in("f.yaml", text, Path::new("/etc/leasehold"), environment).unwrap()
    }

    /// The plan as lines: change, name, listener, and the keys.
    fn plan(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
        let (before, after) = (config(before), config(after));
        let present: Vec<_> = before.services.into_iter().map(Arc::new).collect();
        let plan = Plan::new(&present, &before.written, &after.into());
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let services = plan.services.iter().map(|planned| {
            let keys = planned.keys.iter().map(|key| match key.is_shown {
                true => format!("; {} {} -> {}", key.key, shown(&key.from), shown(&key.to)),
                false => format!("; {}", key.key),
            });
            let spec = &planned.spec;
            format!("{} {} {}{}", planned.change, spec.name, spec.listen, keys.collect::<String>())
        });
        let restart = plan.needs_restart.iter().map(|key| key.key.clone());
        (services.collect(), restart.collect())
    }

    #[test]
    fn services_come_change_move_and_go() {
        let before = "
services:
  - { name: a, component: a.wasm, listen: '127.0.0.1:1' }
  - { name: b, component: b.wasm, listen: '127.0.0.1:2', limits: { memory: 64MiB } }
  - { name: c, component: c.wasm, listen: '127.0.0.1:3' }
  - { name: d, component: d.wasm, listen: '127.0.0.1:4' }";
        let after = "
services:
  - { name: e, component: e.wasm, listen: '127.0.0.1:5' }
  - { name: c, component: c.wasm, listen: '127.0.0.1:33' }
  - { name: b, component: b.wasm, listen: '127.0.0.1:2', limits: { memory: 32MiB }, version: v2 }
  - { name: a, component: a.wasm, listen: '127.0.0.1:1' }";
        let (services, restart) = plan(before, after);
        assert_eq!(
            services,
            [
                "added e 127.0.0.1:5",
                "moved c 127.0.0.1:33; listen 127.0.0.1:3 -> 127.0.0.1:33",
                "changed b 127.0.0.1:2; limits.memory 64MiB -> 32MiB; version - -> v2",
                "unchanged a 127.0.0.1:1",
                "removed d 127.0.0.1:4",
            ]
        );
        assert_eq!(restart, [""; 0]);
    }

    #[test]
    fn services_of_one_name_are_known_by_their_listeners() {
        let service = |listen: u16| format!("  - {{ name: a, component: a.wasm, listen: '127.0.0.1:{listen}' }}\n");
        let file =
            |ports: &[u16]| format!("services:\n{}", ports.iter().map(|port| service(*port)).collect::<String>());
        assert_eq!(plan(&file(&[1, 2]), &file(&[2])).0, ["unchanged a 127.0.0.1:2", "removed a 127.0.0.1:1"]);
        assert_eq!(
            plan(&file(&[1, 2]), &file(&[3, 1])).0,
            ["moved a 127.0.0.1:3; listen 127.0.0.1:2 -> 127.0.0.1:3", "unchanged a 127.0.0.1:1"]
        );
    }

    #[test]
    fn values_that_may_be_secrets_are_compared_and_not_shown() {
        let file = |secret: &str, count: &str| {
            format!(
                "services:\n  - {{ name: a, component: a.wasm, listen: '127.0.0.1:1', config: {{ token: {secret} }}, \
                 limits: {{ concurrency: {count} }} }}"
            )
        };
        assert_eq!(
            plan(&file("one", "5"), &file("two", "6")).0,
            ["changed a 127.0.0.1:1; config.token; limits.concurrency 5 -> 6"]
        );
        assert_eq!(plan(&file("one", "5"), &file("'${TOKEN}'", "5")).0, ["changed a 127.0.0.1:1; config.token"]);
        assert_eq!(plan(&file("one", "5"), &file("one", "5")).0, ["unchanged a 127.0.0.1:1"]);
    }

    #[test]
    fn defaults_and_keys_for_all_services_change_each_of_them() {
        let services = "services: [{ name: a, component: a.wasm, listen: '127.0.0.1:1' },
  { name: b, component: b.wasm, listen: '127.0.0.1:2', layout: kratos, limits: { nodes: 7 } }]\n";
        let (changed, restart) = plan(
            services,
            &format!(
                "etcd: {{ endpoints: ['http://127.0.0.1:1'] }}\nregistry: {{ layout: kratos, suffix: mesh, ttl: 20s }}\n\
                 defaults: {{ limits: {{ nodes: 9 }} }}\n{services}"
            ),
        );
        assert_eq!(
            changed,
            [
                "changed a 127.0.0.1:1; limits.nodes - -> 9; registry.layout - -> kratos; registry.suffix - -> mesh",
                "changed b 127.0.0.1:2; registry.suffix - -> mesh",
            ]
        );
        assert_eq!(restart, ["etcd.endpoints", "registry.layout", "registry.ttl"]);
    }
}
