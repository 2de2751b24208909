//! Callers without a runtime, and in one without timers, on a real etcd.

use std::{thread, time::Duration};

use futures::executor::block_on;
use leasehold::{Error, Options, Registrar, ServerNode, State, Weight};
use leasehold_scenarios::real::Etcd;

/// A registration from its start to its end, with an etcd that stands still in between.
async fn live(endpoint: String, pause: impl Fn(bool)) {
    let second = Duration::from_secs(1);
    let options = Options { stop_timeout: second, register_timeout: second, ..Options::new([endpoint]) };
    let registrar = Registrar::start(options).unwrap();
    registrar.reach().await.unwrap();
    let node = ServerNode::new("user", "127.0.0.1:10002").unwrap();
    let user = registrar.register(node.clone()).await.unwrap();
    user.set_weight(Weight::try_from(7).unwrap()).await.unwrap();
    user.wait_for(|status| status.state == State::Registered && status.weight.value() == 7).await.unwrap();
    let view = registrar.watch(&node.name, &node.version).await.unwrap();
    view.ready().await.unwrap();
    assert_eq!(view.nodes().len(), 1);

    pause(true);
    let other = ServerNode::new("other", "127.0.0.1:10003").unwrap();
    assert!(matches!(registrar.register(other).await, Err(Error::Timeout { what: "register", .. })));
    assert!(matches!(user.stop().await, Err(Error::Timeout { what: "stop", .. })));
    pause(false);

    // A second is short for an etcd that has just woken.
    let mut tries = 0;
    while let Err(error) = user.stop().await {
        tries += 1;
        assert!(tries < 20 && matches!(error, Error::Timeout { .. }), "{error}");
    }
    assert_eq!(user.status().state, State::Stopped);
    registrar.shutdown(10 * second).await.unwrap();
    assert!(registrar.has_ended());
}

/// Runs the life of a registration on a thread of its own, as `run` drives it.
async fn driven(run: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()>>>) + Send + 'static) {
    let etcd = Box::pin(Etcd::start()).await;
    let endpoint = etcd.endpoint();
    let life = thread::spawn(move || {
        let pause = move |is_paused| if is_paused { etcd.pause() } else { etcd.resume() };
        run(Box::pin(live(endpoint, pause)));
    });
    tokio::task::spawn_blocking(|| life.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_caller_without_a_runtime_registers_and_stops() {
    driven(block_on).await;
}

#[tokio::test]
async fn a_caller_in_a_runtime_without_timers_registers_and_stops() {
    driven(|life| tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(life)).await;
}
