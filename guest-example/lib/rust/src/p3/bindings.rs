//! Bindings generated from `wit/`: the asynchronous functions of the registry, and the exported asynchronous lifecycle. The types
//! are those of the plain functions.

#![allow(unsafe_code, missing_docs, reason = "generated")]

wit_bindgen::generate!({
    path: "wit",
    world: "leasehold:registry/async-service",
    with: {
        "leasehold:registry/registry-types@0.2.0": crate::bindings::leasehold::registry::registry_types,
        "leasehold:registry/registrar@0.2.0": crate::bindings::leasehold::registry::registrar,
        "leasehold:registry/discovery@0.2.0": crate::bindings::leasehold::registry::discovery,
    },
    generate_all,
    pub_export_macro: true,
    export_macro_name: "export_async",
    default_bindings_module: "leasehold_guest::p3::bindings",
});

pub use exports::leasehold::registry::async_lifecycle::Guest as Lifecycle;
