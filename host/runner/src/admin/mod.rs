//! The admin endpoint of a running host: its server and the text of `/metrics`.

pub(crate) mod metrics;
pub(crate) mod server;
