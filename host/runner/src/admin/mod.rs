//! The admin endpoint of a running host: its listeners, its server, its routes, the status of the host, and the text of `/metrics`.

pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod status;
