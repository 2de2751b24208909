//! The `leasehold:registry` WIT interfaces for any wasmtime embedder.
//!
//! A component that imports them declares its node (`register`) and its end (`stop`); a [`leasehold::Registrar`] keeps the
//! node in etcd in between. An embedder adds the imports to its linker, gives each component one [`RegistryCtx`]
//! with a [`Policy`], and calls the component's optional [`Lifecycle`]:
//!
//! ```no_run
//! use std::{env, error::Error, time::Duration};
//!
//! use leasehold::{Options, Registrar};
//! use leasehold_wasmtime::{Lifecycle, Policy, RegistryCtx, RegistryCtxView, RegistryView};
//! use wasmtime::{
//!     Engine, Store,
//!     component::{Component, Linker, ResourceTable},
//! };
//! use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
//! use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
//! use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};
//!
//! struct State {
//!     table: ResourceTable,
//!     wasi: WasiCtx,
//!     http: WasiHttpCtx,
//!     config: WasiConfigVariables,
//!     registry: RegistryCtx,
//! }
//!
//! impl WasiView for State {
//!     fn ctx(&mut self) -> WasiCtxView<'_> {
//!         WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
//!     }
//! }
//!
//! impl WasiHttpView for State {
//!     fn http(&mut self) -> WasiHttpCtxView<'_> {
//!         WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: Default::default() }
//!     }
//! }
//!
//! impl RegistryView for State {
//!     fn registry(&mut self) -> RegistryCtxView<'_> {
//!         RegistryCtxView::new(&self.registry, &mut self.table)
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn Error>> {
//!     let etcd = env::args().nth(1).unwrap_or("http://127.0.0.1:2379".to_owned());
//!     let registrar = Registrar::start(Options::new([etcd]))?;
//!     let policy = Policy::serving("greeter".parse()?, "127.0.0.1:10002".parse()?);
//!     let registry = RegistryCtx::new(registrar.clone(), policy);
//!
//!     let engine = Engine::default();
//!     let mut linker = Linker::<State>::new(&engine);
//!     wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
//!     wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
//!     wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| WasiConfig::from(&state.config))?;
//!     leasehold_wasmtime::add_to_linker(&mut linker)?;
//!
//!     let greeter = Component::from_file(&engine, "target/components/greeter.wasm")?;
//!     let greeter = linker.instantiate_pre(&greeter)?;
//!     let lifecycle = Lifecycle::of(&greeter)?.ok_or("the greeter exports a lifecycle")?;
//!     let state = State {
//!         table: ResourceTable::new(),
//!         wasi: WasiCtx::default(),
//!         http: WasiHttpCtx::new(),
//!         config: WasiConfigVariables::from_iter([("name", "greeter"), ("version", "v1")]),
//!         registry: registry.clone(),
//!     };
//!     let mut store = Store::new(&engine, state);
//!     let instance = greeter.instantiate_async(&mut store).await?;
//!     // Requests are routed to it from here on, before it registers itself.
//!     lifecycle.start(&mut store, &instance).await??;
//!     assert_eq!(registry.registrations().len(), 1);
//!
//!     // Serve until it is time to end; then the keys go first.
//!     registry.stop_all().await?;
//!     lifecycle.stop(&mut store, &instance).await?;
//!     Ok(registrar.shutdown(Duration::from_secs(5)).await?)
//! }
//! ```
//!
//! This is `examples/minimal.rs`, which runs the repository's `greeter` (`make guests`). A component that imports less needs less
//! in the linker.
//!
//! Both versions of the contract are linked. An embedder that serves requests of components of WASI 0.3 calls
//! [`RegistryCtx::end_watches`] once it accepts none any more, so that requests which follow a watch end.
//!
//! `examples/embed.rs` is the same as a program, with deadlines for components that do not return. `examples/platform.rs` loads,
//! replaces and unloads many components, and survives what each of them does.
//!
//! # Features
//!
//! All of these are on by default.
//!
//! | feature | brings |
//! |---|---|
//! | `discovery` | the interfaces with which components look services up |
//! | `load` | weights that follow the load of this machine |
//! | `p3` | the asynchronous interfaces, for components of WASI 0.3 |
//! | `tls` | endpoints of etcd with `https` |

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bindings;
mod budget;
mod context;
mod convert;
mod error;
mod failures;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handle;
mod host;
mod lifecycle;
#[cfg(feature = "discovery")]
mod lookups;
mod once_map;
mod policy;
mod registration;
#[cfg(all(feature = "discovery", feature = "p3"))]
mod watch;

/// Packages of the contract that this crate links, with their versions, the latest one first.
pub const CONTRACTS: &[&str] = &["leasehold:registry@0.2.0", "leasehold:registry@0.1.0"];

/// Files of the contract, each with its path and its text, those of the latest version first.
///
/// `bindgen!` reads files of the crate in which it stands. An embedder with a world of its own keeps these there (`leasehold wit`
/// writes them, too), and a test that compares them with this constant. Its `with` takes the bindings of this crate:
///
/// ```text
/// wasmtime::component::bindgen!({
///     path: "wit",
///     world: "plugin",
///     imports: { default: async },
///     with: { "leasehold:registry": leasehold_wasmtime::bindings::v0_2::leasehold::registry },
/// });
/// ```
pub const WIT: &[(&str, &str)] = &[
    ("0.2/registry.wit", include_str!("../wit/0.2/registry.wit")),
    ("0.2/async.wit", include_str!("../wit/0.2/async.wit")),
    ("0.1/registry.wit", include_str!("../wit/0.1/registry.wit")),
];

pub use context::RegistryCtx;
pub use error::CallError;
pub use handle::Handle;
#[cfg(feature = "discovery")]
pub use host::add_discovery_to_linker;
pub use host::{
    HasRegistry, RegistryCtxView, RegistryView, add_registrar_to_linker, add_to_linker, add_to_linker_with,
};
pub use lifecycle::Lifecycle;
pub use policy::{Names, Policy};

#[cfg(test)]
mod tests {
    use super::{CONTRACTS, WIT};

    #[test]
    fn the_printed_example_is_the_one_that_runs() {
        let example = include_str!("../examples/minimal.rs").lines().skip(2);
        let printed = include_str!("lib.rs").lines().skip_while(|line| *line != "//! ```no_run").skip(1);
        let printed =
            printed.take_while(|line| *line != "//! ```").map(|line| line.trim_start_matches("//!").trim_start());
        assert!(example.map(str::trim_start).eq(printed));
    }

    #[test]
    fn the_contracts_are_those_of_the_wit() {
        for (path, wit) in WIT {
            let (version, _) = path.split_once('/').unwrap();
            let contract = CONTRACTS.iter().find(|contract| contract.ends_with(&format!("@{version}.0"))).unwrap();
            assert!(wit.contains(&format!("package {contract};")), "{path}");
        }
    }
}
