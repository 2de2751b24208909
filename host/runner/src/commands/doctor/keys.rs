//! Findings about keys and values: keys without a lease, invalid keys, and conflicts between layouts.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{Addr, Invalid, Layout, RawEntry, ServerNode, ServiceName, Version};

use super::finding::{Finding, Fix};
use crate::{commands::shell::Etcdctl, error::shown};

/// Owner of a key that is no node of an examined layout.
enum Owner {
    Layout(&'static str),
    /// The same layout under another prefix.
    Prefix(String),
}

impl Owner {
    fn of(found: &RawEntry, layouts: &[Layout]) -> Option<Self> {
        let reads = |layout: &Layout| layout.parse(found.key.as_bytes(), &found.value).is_ok();
        let owner = Layout::NAMES.iter().copied().find(|name| name.parse().is_ok_and(|layout| reads(&layout)));
        owner.map(Self::Layout).or_else(|| {
            let prefixes = found.key.match_indices('/').map(|(at, _)| &found.key[..at]);
            let mut others = prefixes.filter(|prefix| !prefix.is_empty());
            let moved = |prefix: &str, layout: &Layout| layout.with_prefix(prefix).is_ok_and(|layout| reads(&layout));
            let prefix = others.find(|prefix| layouts.iter().any(|layout| moved(prefix, layout)));
            prefix.map(|prefix| Self::Prefix(prefix.to_owned()))
        })
    }
}

/// Findings about keys, in no order.
pub(super) fn findings(
    listed: &[RawEntry],
    layouts: &[Layout],
    etcdctl: &Etcdctl,
    answers: impl Fn(&Addr) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut collisions = Collisions::of(listed, layouts);
    for found in listed {
        match &found.node {
            Ok(node) => {
                collisions.look(found, node.name.as_str(), Some(&node.name));
                if found.lease.is_none() {
                    findings.push(no_lease(found, etcdctl, answers(&node.addr)));
                }
            }
            Err(why) => {
                let owner = Owner::of(found, layouts);
                match (wrong_weight(found, layouts), owner) {
                    (Some(why), owner) => findings.push(wrong_weight_of(&found.key, &why, owner.as_ref())),
                    // Other layouts may keep keys below this one's root, except where a service of it is looked up.
                    (None, Some(Owner::Layout(owner))) if !layouts.iter().any(|own| own.to_string() == owner) => {
                        collisions.look(found, owner, None);
                    }
                    (None, Some(Owner::Prefix(prefix))) => findings.push(nested(&found.key, &prefix)),
                    (None, _) => findings.push(not_a_node(found, why, etcdctl)),
                }
            }
        }
    }
    findings.extend(collisions.findings());
    findings.extend(shared_addresses(listed));
    findings.extend(layouts.iter().flat_map(|layout| duplicates(listed, layout)));
    findings
}

fn no_lease(found: &RawEntry, etcdctl: &Etcdctl, answers: bool) -> Finding {
    let key = found.key.clone();
    let command = etcdctl.delete(&key);
    Finding {
        kind: "no-lease",
        key: Some(shown(&key)),
        found: "it has no lease, so it never expires".to_owned(),
        cure: "delete it (leasehold doctor --fix); a service that lives registers again".to_owned(),
        command,
        // An entry that an operator made by hand, for a service that does not register itself, looks the same.
        fix: Some(Fix { key, revision: found.revision, caution: answers.then_some("its address takes connections") }),
    }
}

fn not_a_node(found: &RawEntry, why: &Invalid, etcdctl: &Etcdctl) -> Finding {
    let is_left_over = found.lease.is_none();
    Finding {
        kind: "not-a-node",
        key: Some(shown(&found.key)),
        found: format!("it is not a node: {}", shown(&why.to_string())),
        cure: "clients skip it or break on it: mend its writer, or delete it; if it belongs to another application, give one \
               of them another prefix"
            .to_owned(),
        command: etcdctl.delete(&found.key).filter(|_| is_left_over),
        fix: is_left_over.then(|| Fix {
            key: found.key.clone(),
            revision: found.revision,
            caution: Some("it may belong to another application"),
        }),
    }
}

fn nested(key: &str, prefix: &str) -> Finding {
    Finding {
        kind: "colliding-prefix",
        key: Some(shown(key)),
        found: format!("it is a node under the prefix {}, which lies below the examined one", shown(prefix)),
        cure: "clients that look below this one break on it if a service has that name: give one of them a prefix that does \
               not begin with the other"
            .to_owned(), ..Finding::default() }
}

/// Reason for which a key would be a node of a layout except for its weight.
fn wrong_weight(found: &RawEntry, layouts: &[Layout]) -> Option<Invalid> {
    let below = layouts.iter().filter(|layout| found.key.starts_with(&layout.root()));
    below.filter_map(|layout| layout.parse(found.key.as_bytes(), &found.value).err()).find(|why| why.field == "weight")
}

fn wrong_weight_of(key: &str, why: &Invalid, owner: Option<&Owner>) -> Finding {
    let (as_of, cure) = match owner {
        Some(Owner::Layout(owner)) => {
            (format!(", as it is in the layout {owner}"), format!("or publish it as {owner} to all"))
        }
        _ => (String::new(), "or delete it".to_owned()),
    };
    Finding {
        kind: "wrong-weight",
        key: Some(shown(key)),
        found: format!("it would be a node but for its weight{as_of}: {}", shown(&why.to_string())),
        cure: format!(
            "clients of this layout drop the instance: let its writer write the weight as they read it, {cure}"
        ),
        ..Finding::default()
    }
}

/// Prefixes of services, with foreign keys below them.
struct Collisions<'a> {
    services: BTreeMap<String, BTreeSet<&'a ServiceName>>,
    /// Foreign keys by prefix: their owners, their number, and one of them.
    found: BTreeMap<String, (BTreeSet<&'a str>, usize, &'a str)>,
}

impl<'a> Collisions<'a> {
    fn of(listed: &'a [RawEntry], layouts: &[Layout]) -> Self {
        let mut services: BTreeMap<String, BTreeSet<&ServiceName>> = BTreeMap::new();
        for found in listed {
            let Ok(node) = &found.node else { continue };
            // The name as it is in the key: a service of one layout may be invalid in another.
            let own = layouts.iter().filter(|layout| is_of(found, node, layout));
            for prefix in own.map(|layout| layout.prefix(&node.name, &Version::default())) {
                services.entry(prefix).or_default().insert(&node.name);
            }
        }
        Self { services, found: BTreeMap::new() }
    }

    /// Adds a node of the service, or of no examined service.
    fn look(&mut self, found: &'a RawEntry, owner: &'a str, name: Option<&ServiceName>) {
        for (at, _) in found.key.match_indices('/') {
            let prefix = &found.key[..=at];
            let Some(services) = self.services.get(prefix) else { continue };
            if name.is_none_or(|name| !services.contains(name)) {
                let (owners, count, _) =
                    self.found.entry(prefix.to_owned()).or_insert_with(|| (BTreeSet::new(), 0, &found.key));
                owners.insert(owner);
                *count += 1;
            }
        }
    }

    fn findings(self) -> impl Iterator<Item = Finding> {
        self.found.into_iter().map(move |(prefix, (owners, count, example))| {
            let services: Vec<_> = self.services[&prefix].iter().map(ToString::to_string).collect();
            let owners: Vec<_> = owners.into_iter().collect();
            Finding {
                kind: "colliding-prefix",
                key: Some(shown(&prefix)),
                found: format!(
                    "clients look for {} here, where keys of {} stand: {count}, such as {}",
                    services.join(" and "),
                    owners.join(" and "),
                    shown(example)
                ),
                cure:
                    "they take these for nodes, or break on them: give the service another name, or one of the layouts \
                       another prefix"
                        .to_owned(),
                ..Finding::default()
            }
        })
    }
}

fn is_of(found: &RawEntry, node: &ServerNode, layout: &Layout) -> bool {
    layout.parse(found.key.as_bytes(), &found.value).is_ok_and(|read| read == *node)
}

/// Addresses under which several services are published.
fn shared_addresses(listed: &[RawEntry]) -> Vec<Finding> {
    let mut places: BTreeMap<&str, Vec<(&RawEntry, &ServerNode)>> = BTreeMap::new();
    for found in listed {
        if let Ok(node) = &found.node {
            places.entry(node.addr.as_str()).or_default().push((found, node));
        }
    }
    let mut findings = Vec::new();
    for (addr, sharing) in places {
        let names: BTreeSet<_> = sharing.iter().map(|(_, node)| node.name.as_str()).collect();
        // One instance may have several names or layouts; two that do not know of each other have two leases.
        if names.len() > 1 && has_several_leases(sharing.iter().map(|(found, _)| *found)) {
            findings.push(Finding {
                kind: "shared-address",
                key: Some(shown(&sharing[0].0.key)),
                found: format!(
                    "{addr} is published by {}, under leases of their own",
                    names.into_iter().collect::<Vec<_>>().join(" and ")
                ),
                cure: "one of them is likely a ghost, or has a wrong advertised address: look which one listens there"
                    .to_owned(),
                ..Finding::default()
            });
        }
    }
    findings
}

/// Addresses that have several nodes of one service in one layout.
fn duplicates(listed: &[RawEntry], layout: &Layout) -> Vec<Finding> {
    let mut places: BTreeMap<(&str, &str), Vec<&RawEntry>> = BTreeMap::new();
    for found in listed {
        if let Ok(node) = &found.node
            && is_of(found, node, layout)
        {
            places.entry((node.name.as_str(), node.addr.as_str())).or_default().push(found);
        }
    }
    let several = places.into_iter().filter(|(_, keys)| has_several_leases(keys.iter().copied()));
    let finding = |((name, addr), keys): ((&str, &str), Vec<&RawEntry>)| {
        let others: Vec<_> = keys[1..].iter().take(3).map(|found| shown(&found.key)).collect();
        let more = if keys.len() > 4 { ", and more" } else { "" };
        Finding {
            kind: "duplicate-address",
            key: Some(shown(&keys[0].key)),
            found: format!("{addr} is published as {name} under other leases, too: {}{more}", others.join(", ")),
            cure: "all but one are ghosts of earlier starts: they go with their leases unless something renews these; clients \
                   send this address more than its share until then"
                .to_owned(), ..Finding::default() }
    };
    several.map(finding).collect()
}

fn has_several_leases<'a>(keys: impl Iterator<Item = &'a RawEntry>) -> bool {
    keys.map(|found| found.lease).collect::<BTreeSet<_>>().len() > 1
}
