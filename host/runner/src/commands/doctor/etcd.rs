//! Findings about etcd itself: slow, alarmed, without a leader, almost full, or partly away.

use std::time::Duration;

use leasehold::{Alarm, Health, Member};

use super::finding::Finding;
use crate::commands::shell::Etcdctl;

/// Round trip from which on etcd counts as slow: renewals and registrations wait as long.
const SLOW: Duration = Duration::from_millis(250);
/// Fill level of the database from which on it is a finding, in percent.
const MAX_FULL: u64 = 80;

/// Kind of the notes about releases.
pub(super) const RELEASE: &str = "etcd-release";
/// First releases of the maintained branches in which a user who may read one key cannot watch the keys behind it.
const FIXED: [[u32; 3]; 3] = [[3, 5, 33], [3, 6, 14], [3, 7, 1]];

/// Notes about members whose release leaks, or is past its support; one for members with the same cure.
pub(super) fn releases(health: &Health) -> Vec<Finding> {
    let mut notes: Vec<Finding> = Vec::new();
    for (endpoint, member) in &health.endpoints {
        let Some(note) = member.as_ref().ok().and_then(|member| release(endpoint, &member.version)) else { continue };
        if notes.iter().all(|there| there.cure != note.cure) {
            notes.push(note);
        }
    }
    notes
}

fn release(endpoint: &str, version: &str) -> Option<Finding> {
    let parsed = parsed(version)?;
    let [major, minor, _] = parsed;
    let note = |found: String, cure: String| Some(Finding { kind: RELEASE, found, cure, ..Finding::default() });
    let oldest = FIXED[0];
    if [major, minor] < [oldest[0], oldest[1]] {
        return note(
            format!(
                "{endpoint} is etcd {version}, which is not maintained any more; old releases of it check no rights inside of \
                 nested transactions (GHSA-rfx7-8w68-q57q)"
            ),
            "upgrade etcd, one minor version after the other; with authentication, use certificates and networks beside it"
                .to_owned(),
        );
    }
    let fixed = FIXED.into_iter().find(|fixed| fixed[..2] == [major, minor])?;
    if parsed >= fixed {
        return None;
    }
    let [major, minor, patch] = fixed;
    note(
        format!(
            "{endpoint} is etcd {version}: with authentication, a user who may read one key can watch every key behind it \
             (GHSA-xg4h-6gfc-h4m8)"
        ),
        format!("upgrade etcd to {major}.{minor}.{patch} or newer; without authentication nothing changes"),
    )
}

/// The numbers of a release; a release candidate counts as the release before it.
fn parsed(version: &str) -> Option<[u32; 3]> {
    let (numbers, candidate) = version.split_once('-').map_or((version, None), |(numbers, rest)| (numbers, Some(rest)));
    let mut parts = numbers.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    let parsed = [next()?, next()?, next()?];
    match candidate {
        Some(_) => Some([parsed[0], parsed[1], parsed[2].saturating_sub(1)]),
        None => Some(parsed),
    }
}

pub(super) fn slow(endpoint: &str, round_trip: Duration) -> Option<Finding> {
    (round_trip > SLOW).then(|| Finding {
        kind: "slow-etcd",
        key: None,
        found: format!("{endpoint} took {} ms to answer", round_trip.as_millis()),
        cure: "look at etcd's disk and at the network: etcd_disk_wal_fsync_duration_seconds tells".to_owned(),
        ..Finding::default()
    })
}

pub(super) fn findings(health: &Health, etcdctl: &Etcdctl) -> Vec<Finding> {
    let alarms = health.alarms.iter().flatten().map(|alarm| match alarm {
        Alarm::NoSpace => Finding {
            kind: "alarm",
            found: "NOSPACE: the database of a member is full, and nothing is written, so that no service can register"
                .to_owned(),
            cure: "compact, defragment, and then disarm the alarm; look what grows, or raise --quota-backend-bytes"
                .to_owned(),
            command: Some(make_room(etcdctl) + " && " + &etcdctl.line("alarm disarm")),
            ..Finding::default()
        },
        Alarm::Corrupt => Finding {
            kind: "alarm",
            found: "CORRUPT: the data of the members differ".to_owned(),
            cure: "find the member that differs, remove it, and add it again with an empty disk".to_owned(),
            command: Some(etcdctl.line("endpoint hashkv")),
            ..Finding::default()
        },
    });
    let endpoints = health.endpoints.iter().filter_map(|(endpoint, member)| match member {
        Ok(member) => of_member(endpoint, member, etcdctl),
        Err(why) => Some(Finding {
            kind: "member-away",
            key: None,
            found: why.to_string(),
            cure: "start it, or take it out of the endpoints: another that fails as well may be one too many"
                .to_owned(),
            ..Finding::default()
        }),
    });
    alarms.chain(endpoints).collect()
}

/// Commands that free space. The operator chooses `REVISION`: older revisions are removed.
fn make_room(etcdctl: &Etcdctl) -> String {
    format!("{} && {}", etcdctl.line("compact REVISION"), etcdctl.line("defrag"))
}

fn of_member(endpoint: &str, member: &Member, etcdctl: &Etcdctl) -> Option<Finding> {
    if !member.has_leader {
        return Some(Finding {
            kind: "no-leader",
            key: None,
            found: format!("{endpoint} knows no leader, and so neither renews nor registers"),
            cure: "look at the network between the members, and whether most of them run".to_owned(),
            ..Finding::default()
        });
    }
    let quota = member.quota?;
    let full = member.database.saturating_mul(100) / quota;
    (full >= MAX_FULL).then(|| Finding {
        kind: "almost-full",
        key: None,
        found: format!("the database of {endpoint} has {} MiB of {} MiB", member.database >> 20, quota >> 20),
        cure: "compact and defragment, before nothing is written any more; look what grows, or raise --quota-backend-bytes"
            .to_owned(),
        command: Some(make_room(etcdctl)), ..Finding::default() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::{Alarm, Health, Member, Options};

    use super::{Etcdctl, findings, release, slow};
    use crate::config::EtcdFiles;

    #[test]
    fn a_release_that_leaks_or_is_not_maintained_is_noted() {
        for (version, expected) in [
            ("3.4.23", Some("is not maintained any more")),
            ("3.3.27", Some("is not maintained any more")),
            ("3.5.32", Some("GHSA-xg4h-6gfc-h4m8")),
            ("3.6.13", Some("GHSA-xg4h-6gfc-h4m8")),
            ("3.7.0", Some("GHSA-xg4h-6gfc-h4m8")),
            ("3.7.1-rc.1", Some("GHSA-xg4h-6gfc-h4m8")),
            ("3.5.33", None),
            ("3.6.14", None),
            ("3.7.1", None),
            ("3.8.0-alpha.0", None),
            ("", None),
            ("simulated", None),
        ] {
            let found = release("http://e:1", version).map(|note| note.found);
            let is_expected = match expected {
                Some(part) => found.as_ref().is_some_and(|found| found.contains(part) && found.contains(version)),
                None => found.is_none(),
            };
            assert!(is_expected, "{version}: {found:?}");
        }
    }

    #[test]
    fn each_problem_of_etcd_has_its_kind() {
        let healthy = Member { has_leader: true, database: 79 << 20, quota: Some(100 << 20), version: "3.7.1".into() };
        let endpoints = |members: &[Member]| {
            members
                .iter()
                .enumerate()
                .map(|(index, member)| (format!("http://e:{index}"), Ok(member.clone())))
                .collect()
        };
        let kinds = |members: &[Member], alarms| {
            let health = Health { endpoints: endpoints(members), alarms };
            let etcdctl = Etcdctl::new(&Options::new(["http://e:0"]), &EtcdFiles::default());
            findings(&health, &etcdctl).into_iter().map(|finding| finding.kind).collect::<Vec<_>>()
        };
        assert!(kinds(&[healthy.clone(), Member { quota: None, ..healthy.clone() }], None).is_empty());
        let sick = [Member { has_leader: false, ..healthy.clone() }, Member { database: 80 << 20, ..healthy }];
        assert_eq!(
            kinds(&sick, Some(vec![Alarm::NoSpace, Alarm::Corrupt])),
            ["alarm", "alarm", "no-leader", "almost-full"]
        );
        assert!(slow("http://e:1", Duration::from_millis(250)).is_none());
        assert!(slow("http://e:1", Duration::from_millis(251)).is_some());
    }
}
