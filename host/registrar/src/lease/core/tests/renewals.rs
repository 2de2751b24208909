//! Renewals of a lease, and the meaning of a missing response.

use super::*;
use crate::lease::core::deadline;

#[test]
fn a_lease_is_renewed_at_once_and_then_at_a_third_of_the_ttl_that_etcd_granted() {
    for granted in [2, 30, 3600] {
        let ttl = Duration::from_secs(granted);
        let mut scene = Scene::new();
        scene.register(KEY);
        scene.respond(Response::Granted(Ok(Granted { lease: FIRST, ttl })));
        assert_eq!(scene.renewals, [FIRST]);
        scene.write();
        for _ in 0..20 {
            let renewed_at = scene.now;
            scene.end_renewal(FIRST, Ok(ttl));
            while scene.renewals.is_empty() {
                scene.now = scene.lease.wake_at(scene.now);
                scene.advance();
                if let Some((Request::Audit { .. }, _)) = scene.request {
                    scene.audit(&[KEY], &[]);
                }
            }
            let interval = scene.now - renewed_at;
            let jitter = (ttl / 3).mul_f64(0.9)..=ttl / 3;
            assert!(jitter.contains(&interval), "{interval:?} of {ttl:?}");
        }
    }
}

#[test]
fn a_request_and_the_pause_after_it_fit_into_an_interval() {
    let millis = Duration::from_millis;
    for (request_timeout, interval, expected) in
        [(5000, 10_000, 5000), (5000, 4000, 3000), (5000, 1000, 750), (100, 1000, 100)]
    {
        assert_eq!(deadline(millis(request_timeout), millis(interval)), millis(expected));
    }
    let mut scene = Scene::with(|config| config.request_timeout = Duration::from_secs(3600));
    scene.register(KEY);
    let (_, deadline) = scene.request.as_ref().unwrap();
    assert_eq!(*deadline + scene.lease.longest_pause(), INTERVAL);
}

#[test]
fn a_renewal_without_a_response_makes_the_lease_suspect_and_not_lost() {
    let mut scene = Scene::holding();
    for failures in 1..20 {
        while scene.renewals.is_empty() {
            scene.pass(SECOND / 100);
            if let Some((Request::Audit { .. }, _)) = scene.request {
                scene.audit(&[KEY], &[]);
            }
        }
        let failed_at = scene.now;
        scene.end_renewal(FIRST, Err(unanswered()));
        assert_eq!(scene.state(KEY), State::Suspect);
        let pause = scene.lease.leases.current().unwrap().renew_at().unwrap() - failed_at;
        assert!(pause <= INTERVAL / 4, "{pause:?} after {failures} failures");
    }
    assert_eq!(scene.events(), [EventKind::Suspect]);
    assert_eq!(scene.leases_granted, 1);
    scene.pass(INTERVAL / 4);
    scene.renew(FIRST);
    assert_eq!(scene.state(KEY), State::Registered);
    assert_eq!(scene.events(), [EventKind::Renewed, EventKind::Confirmed]);
}

#[test]
fn a_lease_without_a_kept_key_is_not_suspect() {
    let mut scene = Scene::new();
    scene.handle(Input::Command(Command::GrantAhead(scene.now + TTL)));
    scene.grant();
    for _ in 0..3 {
        scene.end_renewal(FIRST, Err(unanswered()));
        scene.pass(INTERVAL / 4);
    }
    assert!(scene.events().is_empty());
}

#[test]
fn a_stream_that_breaks_between_two_renewals_counts_as_a_failed_one() {
    let mut scene = Scene::holding();
    let renewal = Renewal { lease: FIRST, requested_at: scene.now, outcome: Err(unanswered()) };
    scene.handle(Input::Renewal(renewal));
    assert_eq!(scene.state(KEY), State::Suspect);
    scene.pass(INTERVAL / 4);
    assert_eq!(scene.renewals, [FIRST]);
}

#[test]
fn a_renewal_that_never_ends_keeps_nothing_else_from_going_on() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    assert_eq!(scene.renewals, [FIRST]);
    scene.audit(&[KEY], &[]);
    let _outcome = scene.register("/user/10.0.0.2:80");
    assert_eq!(scene.ops(), ["+/user/10.0.0.2:80 none"]);
    scene.pass(TTL);
    assert_eq!(scene.renewals, [FIRST], "one renewal at a time");
}

#[test]
fn an_outcome_that_nothing_waits_for_changes_nothing() {
    let mut scene = Scene::holding();
    let expires_at = scene.lease.leases.current().unwrap().expires_at();
    scene.pass(SECOND);
    // A second time, and of a lease that was never granted.
    for lease in [FIRST, SECOND_LEASE] {
        scene.handle(Input::Renewal(Renewal { lease, requested_at: scene.now, outcome: Ok(TTL) }));
    }
    assert_eq!(scene.lease.leases.current().unwrap().expires_at(), expires_at);
    // Late: the lease has ended meanwhile.
    scene.pass(INTERVAL);
    scene.end_renewal(FIRST, Err(Failure::LeaseGone));
    scene.handle(Input::Renewal(Renewal { lease: FIRST, requested_at: scene.now, outcome: Ok(TTL) }));
    assert_eq!(scene.state(KEY), State::Recovering);
    assert!(scene.renewals.is_empty());
}

#[test]
fn after_a_suspension_every_lease_is_renewed_before_it_is_trusted() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    assert_eq!((scene.renewals.clone(), scene.metrics.remaining(scene.now)), (vec![FIRST], TTL - INTERVAL));
    scene.handle(Input::Suspended(INTERVAL));
    // The renewal that was in progress is given up: its response may be from before.
    assert_eq!(scene.disconnected, [FIRST]);
    assert_eq!(scene.renewals, [FIRST]);
    assert_eq!(scene.metrics.remaining(scene.now), TTL - 2 * INTERVAL);
    scene.handle(Input::Suspended(TTL));
    assert_eq!(scene.metrics.remaining(scene.now), Duration::ZERO);
    scene.renew(FIRST);
    assert_eq!((scene.state(KEY), scene.metrics.remaining(scene.now)), (State::Registered, TTL));
}

#[test]
fn failed_requests_are_repeated_as_soon_as_etcd_is_back() {
    let mut scene = Scene::holding();
    scene.pass(INTERVAL);
    for _ in 0..20 {
        scene.end_renewal(FIRST, Err(unreachable()));
        scene.handle(Input::EtcdIsBack);
        scene.pass(SECOND / 20);
        assert_eq!(scene.renewals, [FIRST]);
    }
}
