//! Changes of a key's content.

use super::*;

#[test]
fn a_weight_is_written_once_a_second_at_most_and_the_last_one_wins() {
    let mut scene = Scene::holding();
    for value in 1..=40 {
        scene.set_weight(KEY, value);
        scene.pass(SECOND / 100);
    }
    assert!(scene.request.is_none(), "{:?}", scene.request);
    scene.pass(SECOND);
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    scene.set_weight(KEY, 99);
    scene.write();
    assert!(scene.request.is_none());
    scene.pass(SECOND);
    scene.write();
    assert_eq!(
        (scene.events(), scene.handles[KEY].read().weight),
        (vec![EventKind::Weighed, EventKind::Weighed], weight(99))
    );
    scene.set_weight(KEY, 99);
    scene.pass(SECOND);
    assert!(scene.request.is_none(), "an equal weight is not written");
}

#[test]
fn a_computed_weight_is_read_with_each_audit() {
    let mut scene = Scene::holding();
    scene.lease.set_computed_weight(ComputedWeight { weight: weight(90), is_estimate: false });
    scene.pass(INTERVAL - SECOND);
    assert!(scene.request.is_none());
    scene.pass(SECOND);
    scene.audit(&[KEY], &[]);
    assert_eq!(scene.ops(), [format!("+{KEY} {FIRST}")]);
    assert_eq!(scene.handles[KEY].read().weight, weight(90));
}

#[test]
fn a_measured_weight_replaces_an_estimate_as_soon_as_there_is_one() {
    for is_estimate in [true, false] {
        let mut scene = Scene::with(|config| config.damping.min_interval = 3 * INTERVAL);
        scene.lease.set_computed_weight(ComputedWeight { weight: weight(50), is_estimate });
        let _outcome = scene.register(KEY);
        scene.grant();
        scene.write();
        scene.lease.set_computed_weight(ComputedWeight { weight: weight(90), is_estimate: false });
        scene.pass(INTERVAL);
        scene.audit(&[KEY], &[]);
        assert_eq!(scene.request.is_some(), is_estimate);
    }
}

#[test]
fn another_node_is_published_under_the_same_key_only() {
    let mut scene = Scene::holding();
    let mut replace = |addr| {
        let node = Arc::new(ServerNode::new("user", addr).unwrap());
        let (reply, mut outcome) = oneshot::channel();
        scene.handle(Input::Command(Command::Replace {
            key: scene.handles[KEY].clone(),
            node,
            layout: "seed".parse().unwrap(),
            reply,
        }));
        done(&mut outcome)
    };
    assert!(matches!(replace("10.0.0.9:80"), Err(Error::Invalid(_))));
    assert!(replace("10.0.0.1:80").is_ok());
    scene.pass(SECOND);
    scene.write();
    assert_eq!(scene.events(), [EventKind::Updated]);
}
