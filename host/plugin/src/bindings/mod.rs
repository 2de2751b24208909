//! Bindings that `bindgen!` generates for each version of `leasehold:registry`, for embedders that need more than
//! [`add_to_linker`](crate::add_to_linker).
//!
//! The versions share the types of the latest one. [`Lifecycle`](crate::Lifecycle) wraps the exports, because a component need
//! not have them.

#![expect(missing_docs, reason = "generated; the WIT is the documentation")]

pub mod v0_1;
pub mod v0_2;
