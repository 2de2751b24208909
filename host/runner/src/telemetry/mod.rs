//! Logs, metrics of a service, spans and their export.

pub(crate) mod log;
pub(crate) mod log_level;
pub(crate) mod otlp;
pub(crate) mod service_metrics;
pub(crate) mod span;
pub(crate) mod throttle;
