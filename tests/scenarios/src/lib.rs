//! The harness of the scenarios: a simulated etcd, a real etcd, and a network between that fails on demand.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on ends"))]

pub mod fleet;
pub mod proxy;
pub mod real;
pub mod sim;
mod wait;
pub mod world;

pub use wait::wait_for;
