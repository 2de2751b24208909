//! Quiet: little is written.

use std::time::Duration;

use leasehold::{LoadSource, Options};
use leasehold_scenarios::{on_both, world::World};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::promises::{KEY, user, weight};

on_both!(
    quiet_a_renewal_creates_no_revision,
    quiet_a_small_move_of_the_load_is_not_written,
    quiet_weights_set_in_a_loop_are_written_once_a_second,
    weight_follows_the_load_and_a_set_weight_wins,
);

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
