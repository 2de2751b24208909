//! The promises, as scenarios that run on the simulated etcd and on a real etcd.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{sync::Arc, time::Duration};

use etcd_client::LeaseTimeToLiveOptions;
use leasehold::{
    Error, Layout, LeaseId, LoadSource, Options, Ownership, Registration, ServerNode, State, Terms, Verb, Weight, What,
};
use leasehold_scenarios::{
    sim::{self, Call, FaultPlan, SimEtcd},
    wait_for,
    world::{SOON, Standing, World},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Defines two tests per scenario, one on each etcd.
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test(start_paused = true)]
            async fn $scenario() {
                super::$scenario(super::World::simulated()).await;
            })*
        }

        mod real {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(super::World::real().await).await;
            })*
        }
    };
}

on_both!(
    visible_key_and_value_byte_for_byte,
    visible_under_a_lease_with_the_granted_ttl,
    visible_after_three_ttls,
    gone_key_and_lease_after_stop,
    gone_stays_gone_through_a_restart_of_etcd,
    gone_when_the_handle_is_dropped,
    kept_by_its_handle_alone,
    gone_when_the_caller_gives_up,
    gone_all_at_shutdown,
    self_healing_after_the_lease_is_revoked,
    self_healing_after_the_key_is_deleted,
    self_healing_after_the_key_is_detached,
    self_healing_after_a_value_is_changed_under_its_own_lease,
    self_healing_of_every_value_among_many,
    self_healing_at_once_after_the_machine_was_suspended,
    self_healing_after_etcd_restarts_with_its_data,
    self_healing_after_etcd_restarts_without_its_data,
    no_clobber_stop_leaves_a_successor_alone,
    no_clobber_take_over_replaces_the_holder,
    no_clobber_refuse_leaves_the_holder,
    no_clobber_wait_comes_after_the_holder,
    no_clobber_wait_tells_what_it_waits_for,
    no_clobber_a_taken_key_is_a_conflict_until_it_is_free,
    bounded_an_etcd_that_is_down_is_an_error_in_time,
    bounded_a_stop_without_etcd_times_out_and_goes_on,
    bounded_registrations_are_limited,
    bounded_calls_that_gave_up_are_forgotten,
    bounded_calls_end_with_the_registrar,
    quiet_a_renewal_creates_no_revision,
    quiet_a_small_move_of_the_load_is_not_written,
    quiet_weights_set_in_a_loop_are_written_once_a_second,
    no_gap_when_another_node_takes_the_key,
    weight_follows_the_load_and_a_set_weight_wins,
    cheap_many_services_share_one_lease,
    cheap_a_lease_granted_ahead_is_used_or_revoked,
    cheap_a_thousand_keys_are_all_that_one_lease_carries,
    cheap_instances_of_one_service_never_share_a_lease,
    a_key_can_be_registered_again_right_after_its_stop,
    the_same_key_twice_is_refused,
    a_foreign_prefix_is_refused,
    events_report_each_change_once,
    latencies_measure_each_kind_of_request,
    layouts_of_one_node_are_one_registration,
    layouts_of_a_refused_node_leave_nothing,
    layouts_are_read_together,
);

fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:10002").unwrap()
}

const KEY: &str = "/user/127.0.0.1:10002";
const VALUE: &str = r#"{"name":"user","addr":"127.0.0.1:10002","version":"","weight":"73"}"#;

fn weight(value: u32) -> Weight {
    Weight::try_from(value).unwrap()
}

async fn visible_key_and_value_byte_for_byte(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    assert_eq!(&**registration.key(), KEY);
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
    let versioned = ServerNode { version: "v1".parse().unwrap(), ..user() };
    let versioned = registrar.register(versioned).await.unwrap();
    let found = world.get("/user/v1/127.0.0.1:10002").await.unwrap();
    assert_eq!(found.value, r#"{"name":"user","addr":"127.0.0.1:10002","version":"v1","weight":"73"}"#);
    assert_eq!(versioned.status().state, State::Registered);
}

async fn visible_under_a_lease_with_the_granted_ttl(world: World) {
    let registrar = world.registrar("host").await;
    let ten = Terms { ttl: Some(10.try_into().unwrap()), ..Terms::default() };
    let _registration = registrar.register_on(user(), ten).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    let answer = world.client().await.lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(answer.granted_ttl(), 10);
}

async fn visible_after_three_ttls(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.get(KEY).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.get(KEY).await.unwrap(), before);
    let status = registration.status();
    assert_eq!(status.state, State::Registered);
    assert!(status.renewals >= 9, "{status:?}");
    assert_eq!(status.recoveries, 0);
    assert!(status.ttl_remaining <= Duration::from_secs(3) && !status.ttl_remaining.is_zero(), "{status:?}");
}

async fn gone_key_and_lease_after_stop(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    registration.stop().await.unwrap();
    assert_eq!(world.get(KEY).await, None);
    assert_eq!(registration.status().state, State::Stopped);
    wait_for("the lease is revoked", SOON, async || world.leases().await.is_empty()).await;
    registration.stop().await.unwrap();
    assert!(matches!(registration.set_weight(weight(5)).await, Err(Error::Ended)));
}

async fn gone_stays_gone_through_a_restart_of_etcd(mut world: World) {
    let registrar = world.registrar("host").await;
    let gone = registrar.register(user()).await.unwrap();
    let stays = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    gone.stop().await.unwrap();
    world.restart(false).await;
    world.stands(stays.key()).await;
    assert_eq!(world.get(KEY).await, None);
}

async fn gone_when_the_handle_is_dropped(world: World) {
    let registrar = world.registrar("host").await;
    drop(registrar.register(user()).await.unwrap());
    world.key_is(KEY, "gone", |found| found.is_none()).await;
}

async fn kept_by_its_handle_alone(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    drop(registrar);
    let renewals = registration.status().renewals;
    wait_for("it is renewed", SOON, async || registration.status().renewals >= renewals + 3).await;
    world.stands(KEY).await;
    drop(registration);
    world.key_is(KEY, "gone", |found| found.is_none()).await;
}

async fn gone_when_the_caller_gives_up(mut world: World) {
    let registrar = world.registrar("host").await;
    world.kill();
    assert!(timeout(Duration::from_millis(500), registrar.register(user())).await.is_err());
    world.restart(true).await;
    // If it were registered, its key would exist by now: another registration proves that the registrar has processed it.
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    assert_eq!(world.get(KEY).await, None);
    other.stop().await.unwrap();
}

async fn gone_all_at_shutdown(world: World) {
    let registrar = world.registrar("host").await;
    let mut registrations = Vec::new();
    for port in 1..=20 {
        let node = ServerNode::new("user", &format!("127.0.0.1:{port}")).unwrap();
        registrations.push(registrar.register(node).await.unwrap());
    }
    assert_eq!(world.count().await, 20);
    registrar.shutdown(SOON).await.unwrap();
    assert_eq!(world.count().await, 0);
    assert_eq!(world.leases().await, Vec::<i64>::new());
    assert!(matches!(registrar.register(user()).await, Err(Error::Ended)));
    assert!(registrations.iter().all(|registration| registration.status().state == State::Stopped));
    registrar.shutdown(SOON).await.unwrap();
}

async fn self_healing_after_the_lease_is_revoked(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    world.revoke(lease).await;
    let again = world.stands(KEY).await;
    assert_ne!(again.lease, lease);
    assert_eq!(again.value, VALUE);
    let status = registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(status.recoveries, 1);
}

async fn self_healing_after_the_key_is_deleted(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.get(KEY).await.unwrap();
    world.delete(KEY).await;
    assert_eq!(world.stands(KEY).await.lease, before.lease);
    let status = registration.wait_for(|status| status.recoveries == 1).await.unwrap();
    assert_eq!(status.state, State::Registered);
}

async fn self_healing_after_the_key_is_detached(world: World) {
    let registrar = world.registrar("host").await;
    let _registration = registrar.register(user()).await.unwrap();
    world.put(KEY, "garbage", 0).await;
    assert_eq!(world.stands(KEY).await.value, VALUE);
}

async fn self_healing_after_a_value_is_changed_under_its_own_lease(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    let mut events = registrar.events();
    // As `etcdctl put --ignore-lease` does.
    world.put(KEY, r#"{"name":"user","addr":"6.6.6.6:6","version":"","weight":"73"}"#, lease).await;
    world.key_is(KEY, "as it was", |found| found.is_some_and(|found| found.value == VALUE)).await;
    assert_eq!(world.get(KEY).await.unwrap().lease, lease);
    let status = registration.wait_for(|status| status.recoveries == 1).await.unwrap();
    assert_eq!(status.state, State::Registered);
    let healed = wait_for_event(&mut events, What::Healed).await;
    assert!(healed.why.contains("written over"), "{}", healed.why);
    // What was written over is all that is written.
    let revision = world.revision().await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.revision().await, revision);
}

async fn wait_for_event(
    events: &mut tokio::sync::broadcast::Receiver<leasehold::Event>,
    what: What,
) -> leasehold::Event {
    let heard = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.what == what {
                return event;
            }
        }
    };
    timeout(SOON, heard).await.unwrap()
}

/// An audit looks at some of the values, and the next one at others.
async fn self_healing_of_every_value_among_many(world: World) {
    let held = services(&world, 300).await;
    let lease = world.leases().await[0];
    let keys: Vec<_> = [0, 150, 299].map(|index| held[index].key().to_string()).into();
    for key in &keys {
        world.put(key, "foreign", lease).await;
    }
    for key in &keys {
        world.key_is(key, "as it was", |found| found.is_some_and(|found| found.value != "foreign")).await;
    }
    assert_eq!(held.iter().map(|one| one.status().recoveries).sum::<u64>(), 3);
}

async fn self_healing_at_once_after_the_machine_was_suspended(world: World) {
    let registrar = world.registrar("host").await;
    // The next renewal is due in 20 s.
    let minute = Terms { ttl: Some(60.try_into().unwrap()), ..Terms::default() };
    let registration = registrar.register_on(user(), minute).await.unwrap();
    wait_for("it was renewed", SOON, async || registration.status().renewals > 0).await;
    let before = world.get(KEY).await.unwrap().lease;
    registrar.simulate_suspension(Duration::from_secs(20));
    wait_for("what is left is confirmed", SOON, async || registration.status().renewals > 1).await;
    assert_eq!((registration.status().state, registration.status().recoveries), (State::Registered, 0));
    world.revoke(before).await;
    registrar.simulate_suspension(Duration::from_secs(180));
    let woke = Instant::now();
    let back = |found: Option<&Standing>| found.is_some_and(|found| found.lease != before);
    world.key_is(KEY, "back", back).await;
    assert!(woke.elapsed() < Duration::from_secs(2), "{:?}", woke.elapsed());
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
}

/// On the simulated etcd only: the renewal's response must arrive after the resume.
#[tokio::test(start_paused = true)]
async fn self_healing_trusts_no_renewal_from_before_the_machine_was_suspended() {
    let etcd = SimEtcd::new(1);
    let world = World::Simulated(etcd.clone());
    let registrar = world.registrar("host").await;
    // Renewed after 21.6 to 24 s, which coincides with no audit: audits run every 10 s and would detect the loss as well.
    let terms = Terms { ttl: Some(72.try_into().unwrap()), ..Terms::default() };
    let registration = registrar.register_on(user(), terms).await.unwrap();
    wait_for("it was renewed", SOON, async || registration.status().renewals > 0).await;
    let (lease, renewals) = (world.get(KEY).await.unwrap().lease, etcd.count("host", Call::Renew));
    let slow = Duration::from_millis(500);
    etcd.set_faults("host", FaultPlan { latency: slow..=slow, ..FaultPlan::none() });
    wait_for("etcd has renewed it", 2 * SOON, async || etcd.count("host", Call::Renew) > renewals).await;
    // The response is on its way.
    let mut events = registrar.events();
    etcd.set_faults("host", FaultPlan::none());
    etcd.revoke(lease);
    registrar.simulate_suspension(Duration::from_secs(180));
    assert_eq!(events.recv().await.unwrap().what, What::Recovering);
    registration.wait_for(|status| status.state == State::Registered && status.recoveries == 1).await.unwrap();
}

/// On the simulated etcd only: a bit that flips where it matters cannot be made to flip on a wire.
#[tokio::test(start_paused = true)]
async fn no_gap_while_answers_lack_their_content() {
    for seed in 1..=20 {
        let etcd = SimEtcd::new(seed);
        let world = World::Simulated(etcd.clone());
        let registrar = world.registrar("host").await;
        let kept = registrar.register(user()).await.unwrap();
        etcd.set_faults("host", FaultPlan { damaged: 1.0, ..FaultPlan::none() });
        let (registering, ()) = tokio::join!(
            timeout(SOON / 4, registrar.register(ServerNode::new("order", "127.0.0.1:81").unwrap())),
            async {
                kept.set_weight(7.try_into().unwrap()).await.unwrap();
                sleep(SOON / 4).await;
            }
        );
        assert!(!matches!(registering, Ok(Ok(_))), "nothing confirms it");
        assert!(!registrar.has_ended());
        etcd.set_faults("host", FaultPlan::none());
        kept.wait_for(|status| status.state == State::Registered).await.unwrap();
        world.key_is(KEY, "of that weight", |key| key.is_some_and(|key| key.value.contains("\"7\""))).await;
        let is_delete = |event: &sim::Event| matches!(&event.what, sim::What::Delete { key, .. } if key == KEY);
        assert_eq!(etcd.history().iter().find(|event| is_delete(event)), None, "seed {seed}");
        assert!(registrar.forbidden(vec![KEY.to_owned()]).await.unwrap().is_empty());
        kept.stop().await.unwrap();
        assert!(world.get(KEY).await.is_none());
    }
}

async fn self_healing_after_etcd_restarts_with_its_data(mut world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    let status = registration.wait_for(|status| status.state != State::Registered).await.unwrap();
    assert_eq!(status.state, State::Suspect);
    world.restart(true).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(world.stands(KEY).await.value, VALUE);
}

async fn self_healing_after_etcd_restarts_without_its_data(mut world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    world.restart(false).await;
    assert_eq!(world.stands(KEY).await.value, VALUE);
    registration.wait_for(|status| status.state == State::Registered && status.recoveries == 1).await.unwrap();
}

async fn no_clobber_stop_leaves_a_successor_alone(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let keeper = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    let lease = world.grant(60).await;
    world.put(KEY, "successor", lease).await;
    registration.stop().await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, "successor");
    keeper.stop().await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, "successor");
}

async fn no_clobber_take_over_replaces_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let _registration = registrar.register(user()).await.unwrap();
    let taken = world.get(KEY).await.unwrap();
    assert_eq!(taken.value, VALUE);
    world.revoke(lease).await;
    assert_eq!(world.get(KEY).await.unwrap(), taken);
}

async fn no_clobber_refuse_leaves_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let refuse = Terms { ownership: Some(Ownership::Refuse), ..Terms::default() };
    let error = registrar.register_on(user(), refuse.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict { lease: holder, .. } if *holder == LeaseId::new(lease)), "{error}");
    assert_eq!(world.get(KEY).await.unwrap().value, "holder");
    world.revoke(lease).await;
    let _registration = registrar.register_on(user(), refuse).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
}

async fn no_clobber_wait_comes_after_the_holder(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let wait = Terms { ownership: Some(Ownership::Wait), ..Terms::default() };
    let free = async {
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.get(KEY).await.unwrap().value, "holder");
        world.revoke(lease).await;
    };
    let (registration, ()) = tokio::join!(registrar.register_on(user(), wait), free);
    let registration = registration.unwrap();
    assert_eq!(registration.status().state, State::Registered);
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
}

async fn no_clobber_wait_tells_what_it_waits_for(world: World) {
    let lease = world.grant(60).await;
    world.put(KEY, "holder", lease).await;
    let registrar = world.registrar("host").await;
    let wait = Terms { ownership: Some(Ownership::Wait), ..Terms::default() };
    let told = async {
        wait_for("it is told", SOON, async || !registrar.faults().is_empty()).await;
        let faults = registrar.faults();
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!(fault.key.as_deref(), Some(KEY));
        assert!(
            matches!(&fault.why, Error::Conflict { lease: holder, .. } if *holder == LeaseId::new(lease)),
            "{fault}"
        );
        let text = fault.to_string();
        assert!(text.contains(&format!("{lease:x}")) && text.contains("with the value holder"), "{text}");
        wait_for("and for how long", SOON, async || registrar.faults()[0].to_string().contains("(for 1s)")).await;
        world.revoke(lease).await;
    };
    let (registration, ()) = tokio::join!(registrar.register_on(user(), wait), told);
    let registration = registration.unwrap();
    assert!(registrar.faults().is_empty() && registration.fault().is_none());
}

async fn no_clobber_a_taken_key_is_a_conflict_until_it_is_free(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.grant(60).await;
    world.put(KEY, "rival", lease).await;
    registration.wait_for(|status| status.state == State::Conflict).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.get(KEY).await.unwrap().value, "rival");
    let fault = registration.fault().unwrap().to_string();
    assert!(fault.contains(&format!("held by lease {lease:x}")) && fault.contains("with the value rival"), "{fault}");
    world.revoke(lease).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
    assert!(registration.fault().is_none());
}

async fn bounded_an_etcd_that_is_down_is_an_error_in_time(mut world: World) {
    let options = Options { register_timeout: Duration::from_secs(2), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    world.kill();
    let error = registrar.register(user()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    world.restart(true).await;
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    assert_eq!(world.get(KEY).await, None, "a failed registration came back");
    drop(other);
}

async fn bounded_a_stop_without_etcd_times_out_and_goes_on(mut world: World) {
    let options = Options { stop_timeout: Duration::from_secs(1), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    assert!(matches!(registration.stop().await, Err(Error::Timeout { .. })));
    assert_eq!(registration.status().state, State::Draining);
    world.restart(true).await;
    registration.wait_for(|status| status.state == State::Stopped).await.unwrap();
    assert_eq!(world.get(KEY).await, None);
}

async fn bounded_registrations_are_limited(world: World) {
    let options = Options { max_registrations: 1, ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let first = registrar.register(user()).await.unwrap();
    let second = ServerNode::new("order", "127.0.0.1:2").unwrap();
    assert!(matches!(registrar.register(second.clone()).await, Err(Error::Quota { limit: 1, .. })));
    first.stop().await.unwrap();
    assert!(registrar.register(second).await.is_ok());
}

async fn bounded_calls_that_gave_up_are_forgotten(mut world: World) {
    let options = Options { stop_timeout: Duration::from_millis(200), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let other = registrar.register(ServerNode::new("order", "127.0.0.1:2").unwrap()).await.unwrap();
    let leaving = registrar.register(user()).await.unwrap();
    let written = world.revision().await;
    world.kill();
    assert!(matches!(leaving.stop().await, Err(Error::Timeout { .. })));
    // More calls than the queue holds, and all of them have given up.
    for _ in 0..100 {
        assert!(timeout(Duration::from_millis(10), registrar.register(user())).await.is_err());
    }
    world.restart(true).await;
    let again = registrar.register(user()).await.unwrap();
    world.stands(other.key()).await;
    leaving.wait_for(|status| status.state == State::Stopped).await.unwrap();
    // The delete, the last registration, and at most all three keys again under another lease.
    let written = world.revision().await - written;
    assert!(written <= 6, "{written} revisions");
    again.wait_for(|status| status.state == State::Registered).await.unwrap();
}

async fn bounded_calls_end_with_the_registrar(mut world: World) {
    let registrar = Arc::new(world.registrar("host").await);
    let _user = registrar.register(user()).await.unwrap();
    world.kill();
    let asking = tokio::spawn({
        let registrar = registrar.clone();
        async move {
            loop {
                if let Err(Error::Ended) = registrar.leases().await {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    // The lease cannot be revoked.
    assert!(matches!(registrar.shutdown(Duration::from_secs(1)).await, Err(Error::Timeout { .. })));
    timeout(SOON, asking).await.unwrap().unwrap();
    assert!(matches!(registrar.register(user()).await, Err(Error::Ended)));
}

async fn quiet_a_renewal_creates_no_revision(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.revision().await;
    registration.set_weight(weight(73)).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    assert!(registration.status().renewals >= 5);
    assert_eq!(world.revision().await, before);
}

async fn quiet_a_small_move_of_the_load_is_not_written(world: World) {
    let (load, given) = watch::channel(weight(50));
    let options = Options { load: LoadSource::Given(given), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.revision().await;
    load.send(weight(90)).unwrap(); // Too soon after the previous write.
    sleep(Duration::from_secs(2)).await;
    load.send(weight(54)).unwrap(); // Too small a change.
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.revision().await, before);
    assert_eq!(registration.status().weight, weight(50));
}

async fn quiet_weights_set_in_a_loop_are_written_once_a_second(world: World) {
    let registrar = world.registrar("host").await;
    let registration = registrar.register(user()).await.unwrap();
    let before = world.revision().await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for value in 1..=100 {
            registration.set_weight(weight(value)).await.unwrap();
        }
        sleep(Duration::from_millis(1)).await;
    }
    registration.set_weight(weight(42)).await.unwrap();
    world
        .key_is(KEY, "at the last weight", |found| found.is_some_and(|found| found.value.contains(r#""weight":"42""#)))
        .await;
    let most = begun.elapsed().as_secs() + 1;
    let written = u64::try_from(world.revision().await - before).unwrap();
    assert!((2..=most).contains(&written), "{written} revisions in {:?}", begun.elapsed());
}

async fn no_gap_when_another_node_takes_the_key(world: World) {
    let terms = Terms { layouts: Some(layouts(&["kratos", "kitex"])), ..Terms::default() };
    let registrar = world.registrar("host").await;
    let node = |version: &str, zone: &str| ServerNode {
        version: version.parse().unwrap(),
        metadata: vec![("zone".to_owned(), zone.to_owned())].try_into().unwrap(),
        ..user()
    };
    let registration = registrar.register_on(node("v1", "a"), terms.clone()).await.unwrap();
    assert_eq!(registrar.keys(&node("v1", "a"), &terms), registrar.keys(&node("v1", "b"), &terms));
    let keys: Vec<String> = registration.keys().map(ToString::to_string).collect();
    let mut before = Vec::new();
    for key in &keys {
        before.push(world.get(key).await.unwrap());
    }
    let mut events = registrar.events();
    registration.replace(ServerNode { weight: Some(weight(9)), ..node("v1", "b") }).await.unwrap();
    for (key, before) in keys.iter().zip(&before) {
        world
            .key_is(key, "of the other node", |found| found.is_some_and(|found| found.value.contains(r#":"b""#)))
            .await;
        let now = world.get(key).await.unwrap();
        assert_eq!(now.lease, before.lease);
        let is_light = |value: &str| value.contains(r#""weight":"9""#) || value.contains(r#""weight":9"#);
        assert!(is_light(&now.value) && !is_light(&before.value), "{now:?}");
    }
    assert_eq!((registration.status().state, registration.status().recoveries), (State::Registered, 0));
    let mut updated = 0;
    while let Ok(event) = events.try_recv() {
        updated += u32::from(event.what == What::Updated);
        assert!(matches!(event.what, What::Updated | What::Renewed), "{event:?}");
    }
    assert_eq!(updated, 2);
    // Such a node has other keys.
    let elsewhere = ServerNode { addr: "127.0.0.1:3".parse().unwrap(), ..user() };
    assert!(matches!(registration.replace(elsewhere).await, Err(Error::Invalid(_))));
    registration.stop().await.unwrap();
    assert!(matches!(registration.replace(node("v1", "c")).await, Err(Error::Ended)));
    assert_eq!(world.get(&keys[0]).await, None);
}

async fn weight_follows_the_load_and_a_set_weight_wins(world: World) {
    let (load, given) = watch::channel(weight(50));
    let damping = leasehold::Damping { dead_band: 5, min_interval: Duration::from_millis(100) };
    let options = Options { load: LoadSource::Given(given), damping, ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    let lease = world.get(KEY).await.unwrap().lease;
    sleep(Duration::from_millis(200)).await;
    load.send(weight(20)).unwrap();
    world
        .key_is(KEY, "at weight 20", |found| found.is_some_and(|found| found.value.contains(r#""weight":"20""#)))
        .await;
    registration.set_weight(weight(99)).await.unwrap();
    world
        .key_is(KEY, "at weight 99", |found| found.is_some_and(|found| found.value.contains(r#""weight":"99""#)))
        .await;
    let settled = world.get(KEY).await.unwrap();
    load.send(weight(1)).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.get(KEY).await.unwrap(), settled);
    assert_eq!(settled.lease, lease);
}

/// Registers that many services of one host, all at the same time.
async fn services(world: &World, count: usize) -> Vec<Registration> {
    let registrar = world.registrar("host").await;
    let mut registering = JoinSet::new();
    for index in 0..count {
        let (registrar, name) = (registrar.clone(), format!("service-{index}"));
        registering.spawn(async move { registrar.register(ServerNode::new(&name, "127.0.0.1:1").unwrap()).await });
    }
    registering.join_all().await.into_iter().collect::<Result<_, _>>().unwrap()
}

async fn cheap_many_services_share_one_lease(world: World) {
    let held = services(&world, 300).await;
    assert_eq!(world.count().await, 300);
    assert_eq!(world.leases().await.len(), 1);
    drop(held);
}

async fn cheap_a_lease_granted_ahead_is_used_or_revoked(world: World) {
    let ttl = 4.try_into().unwrap();
    let registrar = world.registrar_with("host", Options { ttl, ..world.options() }).await;
    registrar.grant_ahead(Duration::MAX);
    let granted = async || world.leases().await.len() == 1;
    wait_for("a lease is granted", SOON, granted).await;
    let ahead = world.leases().await;
    // The lease is kept as long as a registration may still come.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.leases().await, ahead);
    let registration = registrar.register(user()).await.unwrap();
    assert_eq!(world.get(KEY).await.unwrap().lease, ahead[0]);
    registration.stop().await.unwrap();
    wait_for("it is revoked with its last key", SOON, async || world.leases().await.is_empty()).await;

    let (begun, within) = (Instant::now(), Duration::from_secs(3));
    registrar.grant_ahead(within);
    wait_for("a lease is granted", SOON, granted).await;
    wait_for("nobody used it", SOON, async || world.leases().await.is_empty()).await;
    assert!(begun.elapsed() >= within, "it was not waited with: {:?}", begun.elapsed());

    registrar.grant_ahead(Duration::from_secs(60));
    wait_for("a lease is granted", SOON, granted).await;
    registrar.shutdown(SOON).await.unwrap();
    assert!(world.leases().await.is_empty());
}

async fn cheap_a_thousand_keys_are_all_that_one_lease_carries(world: World) {
    let held = services(&world, 1001).await;
    let mut client = world.client().await;
    let mut carried = Vec::new();
    for lease in world.leases().await {
        let keys = Some(LeaseTimeToLiveOptions::new().with_keys());
        carried.push(client.lease_time_to_live(lease, keys).await.unwrap().keys().len());
    }
    carried.sort_unstable();
    assert_eq!(carried, [1, 1000]);
    drop(held);
}

async fn cheap_instances_of_one_service_never_share_a_lease(world: World) {
    let registrar = world.registrar("host").await;
    let mut leases = Vec::new();
    let mut held = Vec::new();
    for port in 1..=3 {
        let registration =
            registrar.register(ServerNode::new("user", &format!("127.0.0.1:{port}")).unwrap()).await.unwrap();
        leases.push(world.get(registration.key()).await.unwrap().lease);
        held.push(registration);
    }
    leases.dedup();
    assert_eq!(leases.len(), 3);
}

async fn a_key_can_be_registered_again_right_after_its_stop(world: World) {
    let registrar = world.registrar("host").await;
    for _ in 0..5 {
        let registration = registrar.register(user()).await.unwrap();
        registration.stop().await.unwrap();
        drop(registrar.register(user()).await.unwrap());
        let again = registrar.register(user()).await.unwrap();
        assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
        again.stop().await.unwrap();
        assert_eq!(world.get(KEY).await, None);
    }
}

async fn the_same_key_twice_is_refused(world: World) {
    let registrar = world.registrar("host").await;
    let first = registrar.register(user()).await.unwrap();
    assert!(matches!(registrar.register(user()).await, Err(Error::Duplicate(_))));
    assert_eq!(first.status().state, State::Registered);
    assert_eq!(world.get(KEY).await.unwrap().value, VALUE);
}

async fn a_foreign_prefix_is_refused(world: World) {
    let registrar = world.registrar("host").await;
    let error = registrar.register(ServerNode::new("microservices", "127.0.0.1:1").unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("kratos"), "{error}");
    let [seed, kratos, go_zero] = ["seed", "kratos", "go-zero"].map(|name| name.parse::<Layout>().unwrap());
    let terms = |layouts: &[Layout]| Terms { layouts: Some(layouts.to_vec()), ..Terms::default() };
    // go-zero has no prefix, and kitex no slash before its own.
    let error = registrar.register_on(ServerNode::new("kitex", "127.0.0.1:1").unwrap(), terms(&[go_zero])).await;
    assert!(error.unwrap_err().to_string().contains("kitex keeps its keys"));
    let moved = terms(&[seed, kratos.with_prefix("/prod").unwrap()]);
    let error = registrar.register_on(ServerNode::new("prod", "127.0.0.1:1").unwrap(), moved).await;
    assert!(error.unwrap_err().to_string().contains("kratos"));
    assert_eq!(world.count().await, 0);
}

async fn events_report_each_change_once(mut world: World) {
    let registrar = world.registrar("host").await;
    let mut events = registrar.events();
    let registration = registrar.register(user()).await.unwrap();
    world.kill();
    registration.wait_for(|status| status.state == State::Suspect).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    world.restart(false).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();
    registration.stop().await.unwrap();
    let mut reported = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert!(!event.why.is_empty());
        if event.what != What::Renewed {
            reported.push(event.what);
        }
    }
    assert_eq!(reported, [What::Registered, What::Suspect, What::Recovering, What::Recovered, What::Stopped]);
}

fn layouts(names: &[&str]) -> Vec<Layout> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

async fn latencies_measure_each_kind_of_request(mut world: World) {
    let registrar = world.registrar("host").await;
    let counted = |verb: Verb| {
        let latency = registrar.latencies().into_iter().find(|latency| latency.verb == verb).unwrap();
        (latency.buckets.iter().map(|(_, count)| count).sum::<u64>(), latency.failed)
    };
    let is_answered = |verb: Verb| counted(verb).0 > 0 && counted(verb).1 == 0;
    assert!(Verb::ALL.iter().all(|verb| counted(*verb) == (0, 0)));
    let registration = registrar.register(user()).await.unwrap();
    assert!(is_answered(Verb::Grant) && is_answered(Verb::Write));
    registrar.resolve(&user().name, &user().version).await.unwrap();
    assert!(is_answered(Verb::Read));
    wait_for("it is renewed and audited", SOON, async || is_answered(Verb::Renew) && is_answered(Verb::Look)).await;
    world.kill();
    wait_for("what fails is counted apart", SOON, async || counted(Verb::Renew).1 > 0).await;
    world.restart(true).await;
    registration.stop().await.unwrap();
    assert!(counted(Verb::Revoke).0 > 0);
}

async fn layouts_of_one_node_are_one_registration(mut world: World) {
    let names = ["seed", "kratos", "etcd-naming"];
    let options = Options { layouts: layouts(&names), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let registration = registrar.register(user()).await.unwrap();
    let keys: Vec<_> = registration.keys().cloned().collect();
    assert_eq!((keys.len(), &*keys[0], &*keys[2]), (3, KEY, "user/127.0.0.1:10002"));
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(world.stands(key).await.lease);
    }
    registration.set_weight(weight(5)).await.unwrap();
    world.key_is(&keys[1], "weighed", |found| found.is_some_and(|found| found.value.contains(r#""weight":"5""#))).await;
    world.key_is(&keys[0], "weighed", |found| found.is_some_and(|found| found.value.contains(r#""weight":"5""#))).await;

    // A change of one key shows in the status of the registration.
    let theirs = world.grant(60).await;
    world.put(&keys[1], "taken", theirs).await;
    registration.wait_for(|status| status.state == State::Conflict).await.unwrap();
    world.revoke(theirs).await;
    registration.wait_for(|status| status.state == State::Registered).await.unwrap();

    world.restart(false).await;
    for key in &keys {
        world.stands(key).await;
    }
    registration.wait_for(|status| status.state == State::Registered && status.recoveries >= 3).await.unwrap();
    registration.stop().await.unwrap();
    for key in &keys {
        assert_eq!(world.get(key).await, None, "{key}");
    }
    assert_eq!(registration.status().state, State::Stopped);
    wait_for("no lease is left", SOON, async || world.leases().await.is_empty()).await;
}

async fn layouts_of_a_refused_node_leave_nothing(world: World) {
    let options = Options { layouts: layouts(&["seed", "kitex"]), ownership: Ownership::Refuse, ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let theirs = world.grant(60).await;
    let taken = "kitex/registry-etcd/user/127.0.0.1:10002";
    world.put(taken, "theirs", theirs).await;
    assert!(matches!(registrar.register(user()).await, Err(Error::Conflict { .. })));
    world.key_is(KEY, "gone", |found| found.is_none()).await;
    assert_eq!(world.get(taken).await.unwrap().value, "theirs");
    let none = Terms { layouts: Some(Vec::new()), ..Terms::default() };
    assert!(matches!(registrar.register_on(user(), none).await, Err(Error::Invalid(_))));
}

async fn layouts_are_read_together(world: World) {
    let options = Options { layouts: layouts(&["seed", "go-zero", "kitex"]), ..world.options() };
    let registrar = world.registrar_with("host", options).await;
    let _registration = registrar.register(user()).await.unwrap();
    world.put("user/7587848943239875124", "127.0.0.2:80", 0).await;
    world.put("kitex/registry-etcd/user/127.0.0.3:80", r#"{"network":"tcp","address":"127.0.0.3:80"}"#, 0).await;
    world.put("/user/garbage", "}", 0).await;
    world.put("/user/v1/127.0.0.1:9", r#"{"name":"user","addr":"127.0.0.1:9","version":"v1","weight":"1"}"#, 0).await;
    let found = registrar.resolve(&"user".parse().unwrap(), &"".parse().unwrap()).await.unwrap();
    let mut addrs: Vec<_> = found.iter().map(|node| node.addr.as_str()).collect();
    addrs.sort_unstable();
    assert_eq!(addrs, ["127.0.0.1:10002", "127.0.0.1:9", "127.0.0.2:80", "127.0.0.3:80"]);
    let found = registrar.resolve(&"user".parse().unwrap(), &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(found.len(), 1);
    let listed = registrar.list(None).await.unwrap();
    // Our node under each layout, three foreign nodes, a node of another version, and an invalid key.
    assert_eq!(listed.len(), 7, "{listed:?}");
    assert_eq!(listed.iter().filter(|listed| listed.node.is_err()).count(), 1, "{listed:?}");
    assert!(listed.is_sorted_by_key(|listed| &listed.key));
}
