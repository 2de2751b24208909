//! Services that Leasehold runs and keeps registered in etcd: registration, look-ups and calls by name.
//!
//! A service says in one place what it is published as; the host registers it when its listener is open, and the
//! registration ends with the service:
//!
//! ```no_run
//! use leasehold_guest::Service;
//!
//! leasehold_guest::service!(service);
//!
//! fn service() -> Service {
//!     Service::new("user").version("v1").metadata("zone", "a")
//! }
//! # fn main() {}
//! ```
//!
//! The HTTP server is that of `wstd`. Everything here calls the host by plain functions, and `Client` awaits a response.

#[doc(hidden)]
pub mod bindings;
#[cfg(feature = "client")]
mod client;
mod discovery;
mod error;
mod registration;
mod service;

#[cfg(feature = "client")]
pub use client::{Client, Response};
pub use discovery::{pick, resolve};
pub use error::{Error, ErrorKind};
pub use registration::{Described, Node, Registration, State, Status, current, describe};
pub use service::Service;

/// Makes a component's `lifecycle` of a function that returns its [`Service`].
///
/// The function is called once at the start and once at the end.
#[macro_export]
macro_rules! service {
    ($service:path) => {
        const _: () = {
            struct Lifecycle;

            impl $crate::bindings::Lifecycle for Lifecycle {
                fn start() -> Result<(), String> {
                    $service().start().map_err(|error| error.to_string())
                }

                fn stop() {
                    $service().stop();
                }
            }

            $crate::bindings::export! { Lifecycle with_types_in $crate::bindings }
        };
    };
}
