//! The way of a request into a component: listener, connection, dispatch, response.

pub(crate) mod access_record;
mod authority;
pub(crate) mod dispatch;
pub(crate) mod error_code;
pub(crate) mod lingering_close;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod target;
pub(crate) mod tls;
