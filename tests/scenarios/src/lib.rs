//! The harness of the scenarios: a simulated etcd, a real etcd, and a network that fails on demand.

pub mod fleet;
pub mod growth;
pub mod proxy;
pub mod real;
pub mod sim;
mod wait;
pub mod world;

pub use wait::wait_for;

/// Defines two tests per scenario, one on each etcd.
#[macro_export]
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test(start_paused = true)]
            async fn $scenario() {
                super::$scenario($crate::world::World::simulated()).await;
            })*
        }

        mod real {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario($crate::world::World::real().await).await;
            })*
        }
    };
}
