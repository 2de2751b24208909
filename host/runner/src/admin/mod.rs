//! The admin endpoint of a running host: its listeners, connections and routes with their handlers, the status of the host, and the
//! text of `/metrics`.

mod connection;
pub(crate) mod handlers;
pub(crate) mod listener;
pub(crate) mod metrics;
mod response;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod status;
