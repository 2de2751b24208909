//! The `leasehold:registry` WIT interfaces for any wasmtime embedder.
//!
//! A component that imports them declares its node (`register`) and its end (`stop`); a [`leasehold::Registrar`] keeps the
//! node in etcd in between. An embedder adds the imports to its linker, gives each component one [`RegistryCtx`]
//! with a [`Policy`], and calls the component's optional [`Lifecycle`]:
//!
//! ```no_run
//! use leasehold::{Options, Registrar};
//! use leasehold_wasmtime::{Lifecycle, Policy, RegistryCtx, RegistryView};
//! use wasmtime::component::{Component, Linker, ResourceTable};
//! use wasmtime::{Config, Engine, Store};
//! use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
//!
//! struct State {
//!     table: ResourceTable,
//!     wasi: WasiCtx,
//!     registry: RegistryCtx,
//! }
//!
//! impl WasiView for State {
//!     fn ctx(&mut self) -> WasiCtxView<'_> {
//!         WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let registrar = Registrar::start(Options::new(["http://127.0.0.1:2379"]))?;
//!     let policy = Policy::serving("worker".parse()?, "127.0.0.1:10002".parse()?);
//!     let registry = RegistryCtx::new(registrar.clone(), policy);
//!
//!     let engine = Engine::new(&Config::new())?;
//!     let mut linker = Linker::<State>::new(&engine);
//!     wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
//!     leasehold_wasmtime::add_to_linker(&mut linker, |state: &mut State| RegistryView {
//!         ctx: &state.registry,
//!         table: &mut state.table,
//!     })?;
//!
//!     let worker = linker.instantiate_pre(&Component::from_file(&engine, "worker.wasm")?)?;
//!     let lifecycle = Lifecycle::of(&worker)?.ok_or("the worker exports no lifecycle")?;
//!     let state = State { table: ResourceTable::new(), wasi: WasiCtx::default(), registry: registry.clone() };
//!     let mut store = Store::new(&engine, state);
//!     let instance = worker.instantiate_async(&mut store).await?;
//!     lifecycle.start(&mut store, &instance).await??;
//!     // Serve until it is time to end. Then:
//!     registry.stop_all().await?;
//!     lifecycle.stop(&mut store, &instance).await?;
//!     Ok(registrar.shutdown(std::time::Duration::from_secs(5)).await?)
//! }
//! ```
//!
//! Both versions of the contract are linked. An embedder that serves requests of components of WASI 0.3 calls
//! [`RegistryCtx::end_watches`] once it accepts none any more, so that requests which follow a watch end.
//!
//! `examples/embed.rs` is the same as a program, with deadlines for components that do not return.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bindings;
mod budget;
mod context;
mod convert;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handle;
mod host;
mod lifecycle;
mod lookups;
mod once_map;
mod policy;
mod registration;
mod watch;

/// Packages of the contract that this crate links, with their versions, the latest one first.
pub const CONTRACTS: [&str; 2] = ["leasehold:registry@0.2.0", "leasehold:registry@0.1.0"];

pub use context::RegistryCtx;
pub use error::CallError;
pub use handle::Handle;
pub use host::{RegistryView, add_to_linker};
pub use lifecycle::Lifecycle;
pub use policy::{Names, Policy};

#[cfg(test)]
mod tests {
    use super::CONTRACTS;

    #[test]
    fn the_contracts_are_those_of_the_wit() {
        let files = [
            ("leasehold:registry@0.2.0", include_str!("../wit/0.2/registry.wit")),
            ("leasehold:registry@0.2.0", include_str!("../wit/0.2/async.wit")),
            ("leasehold:registry@0.1.0", include_str!("../wit/0.1/registry.wit")),
        ];
        for (contract, wit) in files {
            assert!(CONTRACTS.contains(&contract) && wit.contains(&format!("package {contract};")));
        }
    }
}
