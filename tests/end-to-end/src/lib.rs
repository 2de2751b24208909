//! The harness of the end-to-end tests: the programs under test, and their clients.

pub mod config;
pub mod follower;
mod host;
pub mod http;
pub mod large;
pub mod lines;
pub mod paths;
mod program;
pub mod raw;
pub mod registry;
pub mod sources;
pub mod startup;
pub mod template;
pub mod terminal;
pub mod transcript;

pub use host::Host;
pub use program::{Ended, Program};
