//! Rules of a registration.

use leasehold::{Error, Layout, ServerNode, State, Terms};
use leasehold_scenarios::{on_both, world::World};

use crate::promises::{KEY, VALUE, user};

on_both!(
    a_key_can_be_registered_again_right_after_its_stop,
    the_same_key_twice_is_refused,
    a_foreign_prefix_is_refused,
);

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
