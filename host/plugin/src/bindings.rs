//! Bindings that `bindgen!` generates for `leasehold:registry`, for embedders that need more than
//! [`add_to_linker`](crate::add_to_linker).
//!
//! One world covers both directions: its imports are the host's traits, its export is the component's `lifecycle`.
//! [`Lifecycle`](crate::Lifecycle) wraps the latter, because a component need not export it.

#![expect(missing_docs, reason = "generated; the WIT is the documentation")]

wasmtime::component::bindgen!({
    path: "wit",
    world: "leasehold:registry/service",
    imports: {
        "leasehold:registry/registrar.register": async | trappable,
        "leasehold:registry/registrar.[method]registration.set-weight": async | trappable,
        "leasehold:registry/registrar.[method]registration.stop": async | trappable,
        "leasehold:registry/discovery.resolve": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: { "leasehold:registry/registrar.registration": crate::handle::Handle },
    trappable_error_type: { "leasehold:registry/types.error" => crate::error::CallError },
});
