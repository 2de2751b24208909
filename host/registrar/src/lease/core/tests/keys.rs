//! Keys come and go: registrations, refusals, stops and audits.

use super::*;

const OTHER: &str = "/order/10.0.0.1:81";

#[test]
fn a_registration_is_confirmed_by_etcd_and_not_before() {
    let mut scene = Scene::new();
    let mut outcome = scene.register(KEY);
    scene.grant();
    assert!(is_owed(&mut outcome));
    assert_eq!(scene.state(KEY), State::Pending);
    scene.write();
    assert!(done(&mut outcome).is_ok());
    assert_eq!((scene.state(KEY), scene.events()), (State::Registered, vec![EventKind::Registered]));
}

#[test]
fn changes_gather_while_a_transaction_is_in_progress() {
    let mut scene = Scene::new();
    let _first = scene.register(KEY);
    scene.grant();
    let others: Vec<_> = (0..200).map(|n| scene.register(&format!("/user/10.0.1.{n}:80"))).collect();
    assert_eq!(scene.ops().len(), 1);
    scene.write();
    assert_eq!(scene.ops().len(), 126, "as many as one transaction may have");
    scene.write();
    assert_eq!(scene.ops().len(), 74);
    scene.write();
    assert!(others.into_iter().all(|mut outcome| done(&mut outcome).is_ok()));
}

#[test]
fn a_registration_that_is_not_confirmed_in_time_fails_with_the_reason() {
    for (failure, expected) in [(Some(unreachable()), "cannot be reached"), (None, "register took longer than 10s")] {
        let mut scene = Scene::new();
        let mut outcome = scene.register(KEY);
        if let Some(failure) = failure {
            scene.respond(Response::Granted(Err(failure)));
        }
        scene.pass(Duration::from_secs(10));
        let error = done(&mut outcome).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((scene.state(KEY), &*scene.released), (State::Stopped, &[KEY.to_owned()][..]));
    }
}

#[test]
fn a_failure_that_waiting_does_not_cure_fails_registrations_at_once() {
    let mut scene = Scene::new();
    let mut outcome = scene.register(KEY);
    scene.respond(Response::Granted(Err(Failure::Denied("http://etcd denies access".to_owned()))));
    assert!(matches!(done(&mut outcome), Err(Error::Unavailable(_))));
    assert_eq!(scene.released, [KEY]);
}

#[test]
fn a_batch_that_etcd_refuses_is_written_key_by_key() {
    let mut scene = Scene::holding();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    // Both gather behind the transaction in progress.
    let mut bad = scene.register("/user/10.0.0.2:80");
    let mut good = scene.register(OTHER);
    scene.write();
    assert_eq!(scene.ops().len(), 2);
    scene.fail_write(refused());
    assert_eq!(scene.ops(), ["+/user/10.0.0.2:80 none"]);
    assert!(is_owed(&mut bad));
    scene.fail_write(refused());
    assert!(matches!(done(&mut bad), Err(Error::Unavailable(_))));
    assert_eq!(scene.ops(), [format!("+{OTHER} none")]);
    scene.write();
    assert!(done(&mut good).is_ok());
}

#[test]
fn a_confirmed_key_that_etcd_refuses_is_deferred_to_the_next_audit() {
    let mut scene = Scene::holding();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    scene.fail_write(refused());
    assert_eq!(scene.state(KEY), State::Suspect);
    assert!(matches!(scene.last_fault_change(), Some(FaultChange::Refused { is_logged: true, .. })));
    assert!(scene.request.is_none());
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.write();
    assert_eq!(scene.state(KEY), State::Registered);
    assert!(matches!(scene.last_fault_change(), Some(FaultChange::Resolved(_))));
}

#[test]
fn a_deferred_change_that_is_taken_back_is_no_fault_any_more() {
    let mut scene = Scene::holding();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    scene.fail_write(refused());
    scene.set_weight(KEY, 50);
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    assert_eq!(scene.state(KEY), State::Registered);
    assert!(matches!(scene.last_fault_change(), Some(FaultChange::Forgotten(_))));
}

#[test]
fn a_lease_with_a_key_that_cannot_move_is_not_revoked() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.end_renewal(FIRST, Err(Failure::LeaseGone));
    scene.pass(INTERVAL / 4);
    scene.grant();
    scene.fail_write(refused());
    assert!(scene.request.is_none(), "{:?}", scene.request);
    scene.pass(INTERVAL);
    scene.audit(&[], &[]);
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    scene.write();
    assert_eq!(scene.revocation(), FIRST);
}

#[test]
fn a_lease_under_which_an_unanswered_write_may_have_put_a_refused_key_is_not_revoked() {
    let mut scene = Scene::holding();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    for _ in 0..2 {
        scene.fail_write(unanswered());
        scene.pass(INTERVAL / 4);
        scene.grant();
    }
    // The second write has taken effect under the second lease, and etcd refuses the third.
    scene.fail_write(refused());
    assert!(scene.request.is_none(), "{:?}", scene.request);
    scene.pass(INTERVAL);
    scene.audit(&[], &[]);
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    scene.write_with(|_| held_by(SECOND_LEASE));
    assert_eq!(scene.ops(), [format!("+{KEY} {SECOND_LEASE}")]);
    scene.write();
    for former in [FIRST, SECOND_LEASE] {
        assert_eq!(scene.revocation(), former);
        scene.revoke();
    }
    assert_eq!(scene.state(KEY), State::Registered);
}

#[test]
fn a_refused_key_is_not_written_again_before_the_audit_because_another_one_changes() {
    let mut scene = Scene::holding();
    let _other = scene.register(OTHER);
    scene.write();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    scene.fail_write(refused());
    scene.set_weight(OTHER, 10);
    scene.set_weight(OTHER, 20);
    scene.write();
    scene.set_weight(OTHER, 30);
    scene.pass(SECOND);
    assert_eq!(scene.ops(), [format!("+{OTHER} {FIRST}")]);
}

#[test]
fn a_failure_that_is_over_is_not_the_reason_of_a_later_timeout() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.end_renewal(FIRST, Err(unreachable()));
    scene.pass(INTERVAL / 4);
    scene.renew(FIRST);
    let mut outcome = scene.register(OTHER);
    scene.pass(Duration::from_secs(10));
    assert!(matches!(done(&mut outcome), Err(Error::Timeout { .. })));
}

#[test]
fn deletes_go_on_while_etcd_has_no_space() {
    let mut scene = Scene::holding();
    let _other = scene.register(OTHER);
    scene.write();
    scene.pass(SECOND);
    scene.set_weight(OTHER, 10);
    scene.fail_write(no_space());
    assert_eq!(scene.state(KEY), State::Suspect);
    let mut stopped = scene.stop(KEY);
    scene.pass(INTERVAL / 4);
    assert_eq!(scene.ops(), [format!("-{KEY} {FIRST}")]);
    scene.write();
    assert!(done(&mut stopped).is_ok());
    assert_eq!(scene.ops(), [format!("+{OTHER} {FIRST}")]);
}

#[test]
fn a_stop_is_confirmed_by_the_deletion() {
    let mut scene = Scene::holding();
    let _other = scene.register(OTHER);
    scene.write();
    scene.events.clear();
    let mut stopped = scene.stop(KEY);
    assert_eq!((scene.state(KEY), scene.ops()), (State::Draining, vec![format!("-{KEY} {FIRST}")]));
    assert!(is_owed(&mut stopped));
    scene.write();
    assert!(done(&mut stopped).is_ok());
    assert_eq!((scene.state(KEY), scene.events()), (State::Stopped, vec![EventKind::Stopped]));
    assert_eq!(scene.released, [KEY]);
    let mut again = scene.stop_of(&scene.handles[KEY].clone());
    assert!(done(&mut again).is_ok(), "idempotent");
}

#[test]
fn a_key_that_was_never_written_stops_without_a_request() {
    let mut scene = Scene::new();
    let mut registered = scene.register(KEY);
    assert!(scene.is_granting());
    let mut stopped = scene.stop(KEY);
    assert!(matches!(done(&mut registered), Err(Error::Ended)));
    assert!(done(&mut stopped).is_ok());
    assert_eq!(scene.released, [KEY]);
    scene.grant();
    assert_eq!(scene.revocation(), FIRST);
}

#[test]
fn a_key_that_is_stopped_while_it_is_written_is_deleted_after_the_write() {
    let mut scene = Scene::holding();
    let mut registered = scene.register(OTHER);
    let mut stopped = scene.stop(OTHER);
    assert!(matches!(done(&mut registered), Err(Error::Ended)));
    assert!(is_owed(&mut stopped));
    scene.write();
    assert_eq!(scene.ops(), [format!("-{OTHER} {FIRST}")]);
    scene.write();
    assert!(done(&mut stopped).is_ok());
}

#[test]
fn a_stop_waits_until_no_late_write_can_bring_the_key_back() {
    let mut scene = Scene::holding();
    let _registered = scene.register(OTHER);
    scene.fail_write(unanswered());
    let mut stopped = scene.stop(OTHER);
    scene.pass(INTERVAL / 4);
    scene.grant();
    // A delete that meets the key gone says nothing of the write before it.
    scene.write_with(|op| match op {
        Op::Delete { .. } => Outcome::Absent,
        Op::Put { held, .. } => Outcome::Written { over: *held, revision: 0 },
    });
    assert!(is_owed(&mut stopped) && scene.released.is_empty());
    assert_eq!(scene.revocation(), FIRST);
    scene.revoke();
    assert!(done(&mut stopped).is_ok());
    assert_eq!(scene.released, [OTHER]);
}

#[test]
fn a_dropped_handle_stops_its_key() {
    let mut scene = Scene::holding();
    let _other = scene.register(OTHER);
    scene.write();
    scene.handles[KEY].remove_owner();
    scene.handle(Input::HandleDropped);
    assert_eq!(scene.ops(), [format!("-{KEY} {FIRST}")]);
}

#[test]
fn a_key_that_is_registered_again_is_written_once_in_a_transaction() {
    let mut scene = Scene::holding();
    scene.pass(SECOND);
    scene.set_weight(KEY, 10);
    // Gone while it was queued behind the transaction in progress, and registered anew.
    let _first = scene.register(OTHER);
    let _stopped = scene.stop(OTHER);
    assert_eq!(scene.released, [OTHER]);
    let _second = scene.register(OTHER);
    scene.write();
    assert_eq!(scene.ops(), [format!("+{OTHER} none")]);
}

#[test]
fn an_audit_finds_keys_that_are_missing_or_were_written_over() {
    for (found, altered, over, healed) in [
        (&[] as &[&str], &[] as &[&str], None, true),
        (&[KEY], &[KEY], Some(FIRST), true),
        (&[], &[KEY], None, true),
        (&[KEY], &[], Some(FIRST), false),
    ] {
        let mut scene = Scene::holding();
        scene.pass(INTERVAL);
        scene.renew(FIRST);
        scene.events.clear();
        scene.audit(found, altered);
        assert_eq!(scene.request.is_some(), healed);
        if healed {
            assert_eq!((scene.state(KEY), scene.ops()), (State::Recovering, vec![format!("+{KEY} {FIRST}")]));
            scene.write_with(|_| Outcome::Written { over, revision: 0 });
            assert_eq!((scene.recoveries(KEY), scene.events()), (1, vec![EventKind::Healed]));
        }
        assert_eq!(scene.state(KEY), State::Registered);
    }
}

#[test]
fn an_audit_that_fails_changes_nothing() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    scene.renew(FIRST);
    let (keys, revisions) = (Err(unreachable()), Err(unreachable()));
    scene.respond(Response::Audited { lease: FIRST, keys, revisions });
    assert_eq!(scene.state(KEY), State::Registered);
    scene.pass(INTERVAL);
    assert!(matches!(scene.request, Some((Request::Audit { .. }, _))));
}

/// A lease with 700 keys, whose audits compare a third of them: its interval is a third of the longest one.
fn holding_many() -> (Scene, Vec<String>, Duration) {
    let mut scene = Scene::new();
    let all: Vec<_> = (0..700).map(|n| format!("/user/10.0.{}.{}:80", n / 250, n % 250)).collect();
    for key in &all {
        drop(scene.register(key));
    }
    let ttl = Duration::from_secs(10);
    scene.respond(Response::Granted(Ok(Granted { lease: FIRST, ttl })));
    while scene.request.is_some() {
        scene.write();
    }
    (scene, all, ttl)
}

#[test]
fn each_key_is_compared_within_the_longest_interval_between_audits() {
    let (mut scene, all, ttl) = holding_many();
    let names: Vec<_> = all.iter().map(String::as_str).collect();
    let mut compared = std::collections::BTreeSet::new();
    for _ in 0..3 {
        scene.pass(ttl / 3);
        let Some((Request::Audit { revisions, .. }, _)) = &scene.request else { panic!("{:?}", scene.request) };
        compared.extend(revisions.iter().map(|(key, _)| key.to_string()));
        scene.audit(&names, &[]);
    }
    assert_eq!(compared.len(), all.len());
}

#[test]
fn an_audit_reads_only_the_revision_while_nothing_is_written_in_etcd() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    assert_eq!(scene.intact_at(), None, "nothing is known of the key yet");
    scene.audit(&[KEY], &[]);
    scene.pass(INTERVAL);
    assert_eq!(scene.intact_at(), Some(1));
    // Another client has written something.
    scene.revision += 1;
    scene.audit(&[KEY], &[]);
    scene.pass(INTERVAL);
    assert_eq!(scene.intact_at(), Some(2));
    // Nothing has.
    scene.respond(Response::Audited { lease: FIRST, keys: Ok(None), revisions: Ok(Comparison::default()) });
    assert_eq!(scene.state(KEY), State::Registered);
    for (found, altered) in [(&[] as &[&str], &[] as &[&str]), (&[KEY], &[KEY])] {
        scene.pass(INTERVAL);
        scene.revision += 1;
        scene.audit(found, altered);
        scene.write();
        scene.pass(INTERVAL);
        assert_eq!(scene.intact_at(), None, "what was repaired is compared once more");
        scene.audit(&[KEY], &[]);
    }
}

#[test]
fn a_stop_concerns_the_registration_of_its_handle_alone() {
    let mut scene = Scene::holding();
    let _other = scene.register(OTHER);
    scene.write();
    let first = scene.handles[KEY].clone();
    let mut stopped = scene.stop(KEY);
    scene.write();
    assert!(done(&mut stopped).is_ok());
    // The same node again, on the same lease.
    let mut second = scene.register(KEY);
    scene.write();
    assert!(done(&mut second).is_ok());
    let mut again = scene.stop_of(&first);
    assert!(done(&mut again).is_ok() && scene.request.is_none(), "it is the second one's key");
    let (reply, mut weighed) = oneshot::channel();
    scene.handle(Input::Command(Command::SetWeight { key: first, weight: weight(9), reply }));
    assert!(matches!(done(&mut weighed), Err(Error::Ended)));
    assert_eq!(scene.state(KEY), State::Registered);
}

#[test]
fn a_stop_that_comes_after_its_key_was_shared_deletes_nothing() {
    let mut scene = Scene::holding();
    scene.handles[KEY].remove_owner();
    let shared = scene.handles[KEY].clone();
    shared.add_owner();
    let mut stopped = scene.stop_of(&shared);
    assert!(done(&mut stopped).is_ok() && scene.request.is_none());
    assert_eq!(scene.state(KEY), State::Registered);
}

#[test]
fn a_failed_audit_ends_what_was_known_of_a_revision() {
    let mut scene = Scene::holding();
    for failed in [true, false] {
        scene.pass(INTERVAL);
        scene.audit(&[KEY], &[]);
        scene.pass(INTERVAL);
        assert_eq!(scene.intact_at(), Some(1));
        if failed {
            let (keys, revisions) = (Err(unreachable()), Err(unreachable()));
            scene.respond(Response::Audited { lease: FIRST, keys, revisions });
        } else {
            let (keys, revisions) = (scene.view(&[KEY]), Err(unreachable()));
            scene.respond(Response::Audited { lease: FIRST, keys: Ok(Some(keys)), revisions });
        }
        scene.pass(INTERVAL);
        assert_eq!(scene.intact_at(), None);
    }
}

#[test]
fn all_keys_are_compared_again_after_a_while_whatever_the_revision() {
    let mut scene = Scene::holding();
    let mut compared = Vec::new();
    for _ in 0..14 {
        scene.pass(INTERVAL);
        scene.renew(FIRST);
        match scene.intact_at() {
            None => {
                compared.push(true);
                scene.audit(&[KEY], &[]);
            }
            Some(_) => {
                compared.push(false);
                let revisions = Ok(Comparison::default());
                scene.respond(Response::Audited { lease: FIRST, keys: Ok(None), revisions });
            }
        }
    }
    assert_eq!(compared.iter().filter(|compared| **compared).count(), 3, "{compared:?}");
    // A response without a revision says nothing.
    scene.revision = 0;
    let mut scene = Scene::holding();
    scene.revision = 0;
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.pass(INTERVAL);
    assert_eq!(scene.intact_at(), None);
}

#[test]
fn a_revision_counts_for_all_keys_once_each_was_compared_at_it() {
    let (mut scene, all, ttl) = holding_many();
    let names: Vec<_> = all.iter().map(String::as_str).collect();
    let revision = scene.revision;
    for expected in [None, None, None, Some(revision)] {
        scene.pass(ttl / 3);
        assert_eq!(scene.intact_at(), expected);
        scene.audit(&names, &[]);
    }
    scene.pass(ttl / 3);
    let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    let view = LeaseView { ttl, remaining: ttl, keys: names, revision: revision + 1 };
    // A member behind the others has compared at an earlier revision, which counts.
    let revisions = Ok(Comparison { compared: 1, altered: Vec::new(), revision: Some(revision - 1) });
    scene.respond(Response::Audited { lease: FIRST, keys: Ok(Some(view)), revisions });
    scene.pass(ttl / 3);
    assert_eq!(scene.intact_at(), None);
}
