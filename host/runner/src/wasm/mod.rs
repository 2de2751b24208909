//! Components: compiled, instantiated, scheduled, and given what their policy allows.

pub(crate) mod admission;
pub(crate) mod artifact;
pub(crate) mod cache;
pub(crate) mod compiler;
pub(crate) mod component;
pub(crate) mod context;
pub(crate) mod contract;
pub(crate) mod engine;
pub(crate) mod error;
mod idle;
pub(crate) mod in_flight;
pub(crate) mod initial_memory;
pub(crate) mod instance;
pub(crate) mod linker;
pub(crate) mod loader;
pub(crate) mod reuse;
pub(crate) mod scheduler;
pub(crate) mod sockets;
pub(crate) mod stdin;
pub(crate) mod stdout;
