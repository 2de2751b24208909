//! Bindings of `leasehold:registry@0.1.0`, whose types are those of 0.2.

wasmtime::component::bindgen!({
    path: "wit/0.1",
    world: "leasehold:registry/service",
    imports: {
        "leasehold:registry/registrar.register": async | trappable,
        "leasehold:registry/registrar.[method]registration.set-weight": async | trappable,
        "leasehold:registry/registrar.[method]registration.stop": async | trappable,
        "leasehold:registry/discovery.resolve": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: {
        "leasehold:registry/types": crate::bindings::v0_2::leasehold::registry::registry_types,
        "leasehold:registry/registrar.registration": crate::handle::Handle,
    },
    trappable_error_type: { "leasehold:registry/types.error" => crate::error::CallError },
});
