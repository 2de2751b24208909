//! Bindings of `leasehold:registry@0.2.0`: the plain functions and, with the feature `p3`, the asynchronous ones, which leave the
//! store to others while they wait.

#[cfg(feature = "p3")]
wasmtime::component::bindgen!({
    path: "wit/0.2",
    inline: "
        package leasehold:host;

        world host {
            include leasehold:registry/async-service@0.2.0;
            export leasehold:registry/lifecycle@0.2.0;
        }
    ",
    world: "leasehold:host/host",
    imports: {
        "leasehold:registry/registrar.register": async | trappable,
        "leasehold:registry/registrar.[method]registration.set-weight": async | trappable,
        "leasehold:registry/registrar.[method]registration.stop": async | trappable,
        "leasehold:registry/discovery.resolve": async | trappable,
        "leasehold:registry/discovery.pick": async | trappable,
        "leasehold:registry/async-registrar": async | store | trappable,
        "leasehold:registry/async-discovery": async | store | trappable,
        default: trappable,
    },
    exports: {
        "leasehold:registry/async-lifecycle": async | store,
        default: async,
    },
    with: { "leasehold:registry/registrar.registration": crate::handle::Handle },
    trappable_error_type: { "leasehold:registry/registry-types.error" => crate::error::CallError },
});

// `async.wit` has streams, which bindings without wasmtime's concurrency cannot have.
#[cfg(not(feature = "p3"))]
wasmtime::component::bindgen!({
    path: "wit/0.2/registry.wit",
    world: "leasehold:registry/service",
    imports: {
        "leasehold:registry/registrar.register": async | trappable,
        "leasehold:registry/registrar.[method]registration.set-weight": async | trappable,
        "leasehold:registry/registrar.[method]registration.stop": async | trappable,
        "leasehold:registry/discovery.resolve": async | trappable,
        "leasehold:registry/discovery.pick": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: { "leasehold:registry/registrar.registration": crate::handle::Handle },
    trappable_error_type: { "leasehold:registry/registry-types.error" => crate::error::CallError },
});
