//! The registrar on the simulated and on a real etcd: the promises, faults, limits, and the simulated etcd itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod balancing;
mod callers;
mod cluster;
mod conformance;
mod faults;
mod flows;
mod growth;
mod harness;
mod herd;
mod limits;
mod patience;
mod promises;
mod refusals;
mod registrations;
mod rotation;
mod security;
mod simulation;
mod starvation;
mod suspension;
mod views;
