//! The harness of the scenarios: a simulated etcd, a real etcd, and a network that fails on demand.

pub mod fleet;
pub mod proxy;
pub mod real;
pub mod sim;
mod wait;
pub mod world;

pub use wait::wait_for;
