//! Bindings generated from `wit/world.wit`: the registry, the configuration, and the exported lifecycle.

#![expect(unsafe_code, reason = "generated")]

use crate::Greeter;

wit_bindgen::generate!({
    path: "wit",
    world: "greeter",
    generate_all,
});

export!(Greeter);
