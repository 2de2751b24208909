//! Services of WASI 0.3: nothing stands still while a call waits.
//!
//! A service is declared as for 0.2; what it does at its start and its end may wait:
//!
//! ```no_run
//! use leasehold_guest::p3::{self, Service};
//!
//! leasehold_guest::async_service!(service);
//!
//! fn service() -> Service {
//!     Service::new("user").version("v1").on_start(async |registration| {
//!         let shops = p3::resolve("shop", "").await?;
//!         eprintln!("registered as {}, with {} shops", registration.key(), shops.len());
//!         Ok::<_, leasehold_guest::Error>(())
//!     })
//! }
//! # fn main() {}
//! ```
//!
//! With the feature `p3-http`, [`serve!`](crate::serve!) makes a function the HTTP server, and [`Client`] calls by name.

#[doc(hidden)]
pub mod bindings;
#[cfg(feature = "p3-http")]
mod client;
mod discovery;
#[cfg(feature = "p3-http")]
pub mod http;
mod registration;
mod service;

#[cfg(feature = "p3-http")]
pub use client::Client;
pub use discovery::{Snapshot, Watch, pick, resolve, watch};
pub use registration::{Registration, current};
pub use service::Service;
