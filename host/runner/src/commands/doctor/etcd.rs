//! Findings about etcd itself: slow, alarmed, without a leader, almost full, or partly away.

use std::time::Duration;

use leasehold::{Alarm, Health, Member};

use super::{Etcdctl, Finding};

/// Round trip from which on etcd counts as slow: renewals and registrations wait as long.
const SLOW: Duration = Duration::from_millis(250);
/// Fill level of the database from which on it is a finding, in percent.
const MAX_FULL: u64 = 80;

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
        Ok(member) => of_member(endpoint, *member, etcdctl),
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

fn of_member(endpoint: &str, member: Member, etcdctl: &Etcdctl) -> Option<Finding> {
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

    use super::{Etcdctl, findings, slow};
    use crate::config::EtcdFiles;

    #[test]
    fn each_problem_of_etcd_has_its_kind() {
        let healthy = Member { has_leader: true, database: 79 << 20, quota: Some(100 << 20) };
        let endpoints = |members: &[Member]| {
            members.iter().enumerate().map(|(index, member)| (format!("http://e:{index}"), Ok(*member))).collect()
        };
        let kinds = |members: &[Member], alarms| {
            let health = Health { endpoints: endpoints(members), alarms };
            let etcdctl = Etcdctl::new(&Options::new(["http://e:0"]), &EtcdFiles::default());
            findings(&health, &etcdctl).into_iter().map(|finding| finding.kind).collect::<Vec<_>>()
        };
        assert!(kinds(&[healthy, Member { quota: None, ..healthy }], None).is_empty());
        let sick = [Member { has_leader: false, ..healthy }, Member { database: 80 << 20, ..healthy }];
        assert_eq!(
            kinds(&sick, Some(vec![Alarm::NoSpace, Alarm::Corrupt])),
            ["alarm", "alarm", "no-leader", "almost-full"]
        );
        assert!(slow("http://e:1", Duration::from_millis(250)).is_none());
        assert!(slow("http://e:1", Duration::from_millis(251)).is_some());
    }
}
