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
//! Components of WASI 0.3 have the same with asynchronous functions in the module `p3`, by the features `p3` and `p3-http`.

#[doc(hidden)]
pub mod bindings;
#[cfg(any(feature = "client", feature = "p3-http"))]
mod by_name;
#[cfg(feature = "client")]
mod client;
mod declared;
mod discovery;
mod error;
#[cfg(feature = "p3")]
pub mod p3;
mod registration;
mod service;

#[cfg(any(feature = "client", feature = "p3-http"))]
pub use by_name::Response;
#[cfg(feature = "client")]
pub use client::Client;
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

/// Makes a component's `async-lifecycle` of a function that returns its [`p3::Service`].
///
/// The function is called once at the start and once at the end.
#[cfg(feature = "p3")]
#[macro_export]
macro_rules! async_service {
    ($service:path) => {
        const _: () = {
            struct Lifecycle;

            impl $crate::p3::bindings::Lifecycle for Lifecycle {
                async fn start() -> Result<(), String> {
                    $service().start().await.map_err(|error| error.to_string())
                }

                async fn stop() {
                    $service().stop().await;
                }
            }

            $crate::p3::bindings::export_async! { Lifecycle with_types_in $crate::p3::bindings }
        };
    };
}
