//! Bindings generated from `wit/`: the plain functions of the registry, and the exported lifecycle.

#![allow(unsafe_code, missing_docs, reason = "generated")]

wit_bindgen::generate!({
    path: "wit",
    world: "leasehold:registry/service",
    generate_all,
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "leasehold_guest::bindings",
});

pub use exports::leasehold::registry::lifecycle::Guest as Lifecycle;
