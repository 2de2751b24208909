//! The harness of the end-to-end tests: programs as their users run them, and clients as theirs reach them.

pub mod config;
pub mod follower;
mod host;
pub mod http;
pub mod paths;
mod program;
pub mod sources;
pub mod startup;

pub use host::Host;
pub use program::{Ended, Program};
