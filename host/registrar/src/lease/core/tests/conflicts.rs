//! Keys that the lease of another host holds.

use super::*;

#[test]
fn a_new_key_that_another_host_holds_is_treated_by_its_ownership() {
    for ownership in [Ownership::TakeOver, Ownership::Refuse, Ownership::Wait] {
        let mut scene = Scene::new();
        let mut outcome = scene.register_with(KEY, ownership);
        scene.grant();
        assert_eq!(scene.ops(), [format!("+{KEY} none")]);
        scene.write_with(|_| held_by(THEIRS));
        match ownership {
            Ownership::TakeOver => {
                assert_eq!(scene.ops(), [format!("+{KEY} {THEIRS}")]);
                scene.write();
                assert!(done(&mut outcome).is_ok());
                assert_eq!(scene.events(), [EventKind::TookOver]);
            }
            Ownership::Refuse => {
                assert!(matches!(done(&mut outcome), Err(Error::Conflict { lease: Some(THEIRS), .. })));
                assert_eq!(scene.released, [KEY]);
            }
            Ownership::Wait => assert!(is_owed(&mut outcome) && scene.request.is_none()),
        }
    }
}

#[test]
fn a_key_of_the_former_process_of_this_host_is_registered_and_not_taken_over_from_another() {
    let mut scene = Scene::with(|config| config.former_leases = [THEIRS].into());
    let mut outcome = scene.register_with(KEY, Ownership::TakeOver);
    scene.grant();
    scene.write_with(|_| held_by(THEIRS));
    assert_eq!(scene.ops(), [format!("+{KEY} {THEIRS}")]);
    scene.write();
    assert!(done(&mut outcome).is_ok());
    assert_eq!(scene.events(), [EventKind::Registered]);
}

#[test]
fn the_end_of_a_registration_says_whether_its_key_is_gone() {
    for (is_gone, expected) in [(true, "the key is gone"), (false, "the key stays, since lease 7e1 has it")] {
        let mut scene = Scene::holding();
        // The lease stays for another key.
        let _other = scene.register("/user/10.0.0.9:1");
        scene.write();
        let mut stopped = scene.stop(KEY);
        scene.write_with(|_| if is_gone { Outcome::Deleted } else { held_by(THEIRS) });
        assert!(done(&mut stopped).is_ok());
        let why = scene.reasons.last().unwrap();
        assert!(why.contains(expected), "{why}");
    }
    let mut scene = Scene::holding();
    let mut stopped = scene.stop(KEY);
    scene.revoke();
    assert!(done(&mut stopped).is_ok());
    assert_eq!(scene.reasons.last().unwrap(), "its lease is revoked");
}

#[test]
fn a_key_that_is_waited_for_is_written_once_it_is_free_or_fails_in_time_with_the_holder() {
    for is_freed in [true, false] {
        let mut scene = Scene::with(|config| config.register_timeout = 2 * INTERVAL);
        let mut outcome = scene.register_with(KEY, Ownership::Wait);
        scene.grant();
        scene.write_with(|_| held_by(THEIRS));
        assert_eq!(scene.state(KEY), State::Pending);
        assert!(matches!(scene.last_fault_change(), Some(FaultChange::Held { holder: THEIRS, is_logged: true, .. })));
        scene.pass(INTERVAL);
        scene.audit(&[], &[]);
        assert_eq!(scene.ops(), [format!("+{KEY} none")]);
        if is_freed {
            scene.write();
            assert!(done(&mut outcome).is_ok());
            assert!(matches!(scene.last_fault_change(), Some(FaultChange::Resolved(_))));
        } else {
            scene.write_with(|_| held_by(THEIRS));
            assert!(is_owed(&mut outcome));
            scene.pass(INTERVAL);
            assert!(matches!(done(&mut outcome), Err(Error::Conflict { lease: Some(THEIRS), .. })));
        }
    }
}

#[test]
fn a_key_that_another_host_has_taken_is_not_taken_back_by_force() {
    for ownership in [Ownership::TakeOver, Ownership::Refuse, Ownership::Wait] {
        let mut scene = Scene::new();
        let _outcome = scene.register_with(KEY, ownership);
        scene.grant();
        scene.write();
        scene.renew(FIRST);
        scene.events.clear();
        scene.pass(INTERVAL);
        scene.audit(&[], &[KEY]);
        for _ in 0..3 {
            assert_eq!(
                scene.ops(),
                [format!("+{KEY} {FIRST}")].map(|op| match scene.state(KEY) {
                    State::Conflict => format!("+{KEY} none"),
                    _ => op,
                })
            );
            scene.write_with(|_| held_by(THEIRS));
            assert_eq!(scene.state(KEY), State::Conflict, "{ownership:?}");
            scene.pass(INTERVAL);
            scene.audit(&[], &[]);
        }
        scene.write();
        assert_eq!((scene.state(KEY), scene.recoveries(KEY)), (State::Registered, 1));
        let events: Vec<_> = scene.events().into_iter().filter(|kind| *kind != EventKind::Renewed).collect();
        assert_eq!(events, [EventKind::Conflict, EventKind::Healed], "reported once");
    }
}

#[test]
fn a_delete_never_names_the_lease_that_a_take_over_was_about_to_displace() {
    let mut scene = Scene::new();
    let mut registered = scene.register(KEY);
    scene.grant();
    let mut stopped = scene.stop(KEY);
    assert!(matches!(done(&mut registered), Err(Error::Ended)));
    scene.write_with(|_| held_by(THEIRS));
    // The last key goes with the lease.
    assert_eq!(scene.revocation(), FIRST);
    scene.revoke();
    assert!(done(&mut stopped).is_ok());

    let mut scene = Scene::holding();
    let _registered = scene.register("/user/10.0.0.2:80");
    let mut stopped = scene.stop("/user/10.0.0.2:80");
    scene.write_with(|_| held_by(THEIRS));
    assert_eq!(scene.ops(), [format!("-/user/10.0.0.2:80 {FIRST}")]);
    scene.write_with(|_| held_by(THEIRS));
    assert!(done(&mut stopped).is_ok());
}

#[test]
fn a_take_over_whose_response_was_lost_is_this_hosts() {
    let mut scene = Scene::new();
    let mut outcome = scene.register(KEY);
    scene.grant();
    scene.write_with(|_| held_by(THEIRS));
    scene.fail_write(unanswered());
    scene.pass(INTERVAL / 4);
    scene.grant();
    assert_eq!(scene.ops(), [format!("+{KEY} {THEIRS}")]);
    scene.write_with(|_| held_by(FIRST));
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    scene.write();
    assert!(done(&mut outcome).is_ok());
}
