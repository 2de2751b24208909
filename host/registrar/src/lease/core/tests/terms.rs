//! The way back from a lost lease and from a write without a response.

use super::*;

#[test]
fn a_lost_lease_is_replaced_and_then_revoked() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.end_renewal(FIRST, Err(Failure::LeaseGone));
    assert_eq!((scene.state(KEY), scene.events()), (State::Recovering, vec![EventKind::Recovering]));
    // Not at once: hosts that lost their leases together must not come back together.
    scene.pass(INTERVAL / 4);
    assert_eq!(scene.grant(), SECOND_LEASE);
    // The key may be there still, under the lost lease.
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    scene.write();
    assert_eq!((scene.state(KEY), scene.events()), (State::Registered, vec![EventKind::Recovered]));
    assert_eq!(scene.revocation(), FIRST);
    scene.revoke();
    assert_eq!(scene.leases_granted, 2);
    assert_eq!(scene.recoveries(KEY), 0, "it was never out of etcd");
}

#[test]
fn a_key_that_went_with_its_lease_counts_as_recovered() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    scene.audit(&[KEY], &[]);
    scene.end_renewal(FIRST, Err(Failure::LeaseGone));
    scene.pass(INTERVAL / 4);
    scene.grant();
    scene.write_with(|_| Outcome::Written { over: None, revision: 0 });
    assert_eq!((scene.state(KEY), scene.recoveries(KEY)), (State::Registered, 1));
}

#[test]
fn a_write_without_a_response_moves_every_key_to_a_new_lease() {
    let mut scene = Scene::holding();
    let mut outcome = scene.register("/user/10.0.0.2:80");
    scene.fail_write(unanswered());
    assert_eq!((scene.state(KEY), scene.events()), (State::Recovering, vec![EventKind::Recovering]));
    scene.pass(INTERVAL / 4);
    scene.grant();
    // The first write may have taken effect, so the new one names its lease only where a key was confirmed under it.
    assert_eq!(scene.ops(), ["+/user/10.0.0.2:80 none".to_owned(), format!("+{KEY} {FIRST}")]);
    // It has: the key is this host's already.
    scene.write_with(|op| match op {
        Op::Put { held: None, .. } => held_by(FIRST),
        _ => Outcome::Written { over: Some(FIRST), revision: 0 },
    });
    assert_eq!(scene.ops(), [format!("+/user/10.0.0.2:80 {FIRST}")]);
    assert!(is_owed(&mut outcome));
    scene.write();
    assert!(done(&mut outcome).is_ok());
    assert_eq!(scene.revocation(), FIRST);
}

#[test]
fn no_more_than_four_leases_are_held_while_writes_have_no_response() {
    let mut scene = Scene::holding();
    scene.set_weight(KEY, 10);
    scene.pass(SECOND);
    for _ in 1..4 {
        scene.fail_write(unanswered());
        scene.pass(INTERVAL / 4);
        scene.grant();
    }
    // At the limit it goes on under the newest, and notes each lease once.
    for _ in 0..3 {
        scene.fail_write(unanswered());
        scene.pass(INTERVAL / 4);
    }
    assert_eq!(scene.doubtful(KEY).len(), 4);
    assert_eq!(scene.commit().0, LeaseId::new(4).unwrap());
    scene.write();
    assert_eq!(scene.revocation(), FIRST);
    scene.revoke();
    // With room for another it is replaced, since a write under it had no response.
    assert_eq!(scene.grant(), LeaseId::new(5).unwrap());
    scene.write();
    for former in 2..5 {
        assert_eq!(scene.revocation(), LeaseId::new(former).unwrap());
        scene.revoke();
    }
    assert_eq!(scene.state(KEY), State::Registered);
}

#[test]
fn a_response_after_the_news_that_the_lease_is_gone_confirms_nothing() {
    let mut scene = Scene::new();
    let mut outcome = scene.register(KEY);
    scene.grant();
    scene.end_renewal(FIRST, Err(Failure::LeaseGone));
    scene.write();
    assert!(is_owed(&mut outcome));
    scene.pass(INTERVAL / 4);
    scene.grant();
    scene.write_with(|_| held_by(FIRST));
    scene.write();
    assert!(done(&mut outcome).is_ok());
}

#[test]
fn a_second_response_changes_nothing() {
    let mut scene = Scene::holding();
    scene.set_weight(KEY, 10);
    scene.pass(SECOND);
    let (lease, ops) = scene.commit();
    scene.write();
    let events = scene.events();
    assert_eq!(events, [EventKind::Weighed]);
    let outcome = Ok(vec![Outcome::Written { over: None, revision: 9 }]);
    scene.handle(Input::Response(Response::Committed { lease, ops, outcome }));
    scene.handle(Input::Response(Response::Revoked { lease, outcome: Ok(()) }));
    scene.handle(Input::Response(Response::Granted(Ok(Granted { lease: THEIRS, ttl: TTL }))));
    assert_eq!((scene.state(KEY), scene.recoveries(KEY), scene.events()), (State::Registered, 0, vec![]));
    assert!(scene.lease.leases.is_current(FIRST));
}

#[test]
fn a_lease_granted_ahead_is_revoked_unless_a_key_comes() {
    for comes in [false, true] {
        let mut scene = Scene::new();
        let until = scene.now + SECOND;
        scene.handle(Input::Command(Command::GrantAhead(until)));
        scene.grant();
        assert!(scene.request.is_none());
        let outcome = comes.then(|| scene.register(KEY));
        if comes {
            scene.write();
        }
        scene.pass(SECOND);
        match outcome {
            Some(mut outcome) => assert!(done(&mut outcome).is_ok() && scene.request.is_none()),
            None => assert_eq!(scene.revocation(), FIRST),
        }
    }
}

#[test]
fn the_end_is_one_revocation_for_each_lease() {
    let mut scene = Scene::holding();
    scene.set_weight(KEY, 10);
    scene.pass(SECOND);
    scene.fail_write(unanswered());
    scene.pass(INTERVAL / 4);
    scene.grant();
    let mut stopped = scene.stop(KEY);
    scene.handle(Input::Command(Command::End));
    // The transaction in progress first; nothing is deleted by itself.
    scene.write();
    for lease in [FIRST, SECOND_LEASE] {
        assert!(!scene.lease.has_ended() && is_owed(&mut stopped));
        assert_eq!(scene.revocation(), lease);
        scene.revoke();
    }
    assert!(scene.lease.has_ended());
    assert!(done(&mut stopped).is_ok());
    assert_eq!(scene.state(KEY), State::Stopped);
    let mut late = scene.register("/user/10.0.0.2:80");
    assert!(matches!(done(&mut late), Err(Error::Ended)));
}

#[test]
fn a_revocation_that_fails_is_repeated_until_etcd_confirms_it() {
    let mut scene = Scene::holding();
    let mut stopped = scene.stop(KEY);
    for _ in 0..10 {
        let lease = scene.revocation();
        scene.respond(Response::Revoked { lease, outcome: Err(unanswered()) });
        assert!(is_owed(&mut stopped));
        assert!(scene.request.is_none(), "after a pause");
        scene.pass(INTERVAL / 4);
    }
    scene.revoke();
    assert!(done(&mut stopped).is_ok());
}
