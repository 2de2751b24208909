//! Logs, metrics of a service, spans and their export.

pub(crate) mod access_log;
pub(crate) mod line_budget;
pub(crate) mod log;
pub(crate) mod log_level;
pub(crate) mod otlp;
pub(crate) mod process_metrics;
pub(crate) mod request;
pub(crate) mod request_id;
pub(crate) mod service_metrics;
pub(crate) mod span;
pub(crate) mod throttle;
