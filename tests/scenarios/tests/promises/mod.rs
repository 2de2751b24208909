//! The promises, as scenarios that run on the simulated etcd and on a real etcd.

mod bounded;
mod cheap;
mod gone;
mod layouts;
mod no_clobber;
mod no_gap;
mod quiet;
mod registered;
mod reported;
mod self_healing;
mod visible;

use leasehold::{EventKind, Layout, Registration, ServerNode, Weight};
use leasehold_scenarios::world::{SOON, World};
use tokio::{task::JoinSet, time::timeout};

pub(crate) fn user() -> ServerNode {
    ServerNode::new("user", "127.0.0.1:10002").unwrap()
}

pub(crate) const KEY: &str = "/user/127.0.0.1:10002";

pub(crate) const VALUE: &str = r#"{"name":"user","addr":"127.0.0.1:10002","version":"","weight":"73"}"#;

pub(crate) fn weight(value: u32) -> Weight {
    Weight::try_from(value).unwrap()
}

pub(crate) async fn wait_for_event(
    events: &mut tokio::sync::broadcast::Receiver<leasehold::Event>,
    kind: EventKind,
) -> leasehold::Event {
    let heard = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.kind == kind {
                return event;
            }
        }
    };
    timeout(SOON, heard).await.unwrap()
}

/// Registers that many services of one host, all at the same time.
pub(crate) async fn services(world: &World, count: usize) -> Vec<Registration> {
    let registrar = world.registrar("host").await;
    let mut registering = JoinSet::new();
    for index in 0..count {
        let (registrar, name) = (registrar.clone(), format!("service-{index}"));
        registering.spawn(async move { registrar.register(ServerNode::new(&name, "127.0.0.1:1").unwrap()).await });
    }
    registering.join_all().await.into_iter().collect::<Result<_, _>>().unwrap()
}

/// Layouts of these names.
pub(crate) fn layouts(names: &[&str]) -> Vec<Layout> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}
